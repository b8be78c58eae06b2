"""The digest of an environment, and the difference to what a cluster holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recorded_projects import no_uv
from slurm_ray_flow.core.environment import HeldEnvironment, difference, digest, same_version
from slurm_ray_flow.core.requirements import Requirements, wanted

PLATFORM = "cp311-linux_x86_64"


def want(*lines: str, folder: Path = Path("/nowhere"), python: str = "3.11") -> Requirements:
    return wanted(list(lines), folder, [], python=python, uv=no_uv)


@pytest.mark.parametrize(
    ("held", "specifier", "same"),
    [
        ("1.0", "==1.0.0", True),
        ("1.0.0", "1.0", True),
        ("1.0", "==1.0.1", False),
        ("2.9.1+cu130", "==2.9.1", True),
        ("2.9.1", "==2.9.1+cu130", False),
        ("2.9.1+cpu", "==2.9.1+cu130", False),
        ("2.9.1+cu130", "==2.9.1+cu130", True),
        ("2.5", ">=2,<3", True),
        ("3.0", ">=2,<3", False),
        ("3.0rc1", ">=2", True),
        ("1!1.0", "==1.0", False),
        ("7", "", True),
        ("2004d", "==2004d", True),
        ("2004d", "==2004e", False),
    ],
)
def test_same_version(held: str, specifier: str, same: bool) -> None:
    assert same_version(held, specifier) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["numpy==2.0", "six"], ["six", "numpy==2.0"]),
        (["scikit_learn==1.0"], ["Scikit.Learn == 1.0.0  # comment"]),
        (["a>=1,<2.0"], ["a<2,>=1.0"]),
        (["a[X,y_z]"], ["a[y-z,x]"]),
        (["a; python_version>='3.9'"], ['a ; python_version >= "3.9"']),
        (["a @ https://me:one@host.invalid/a.zip"], ["a@ https://me:two@host.invalid/a.zip"]),
        (["-i https://me:one@host.invalid/", "a"], ["a", "--index-url https://host.invalid/"]),
        (["a", "a"], ["a"]),
    ],
)
def test_one_environment_has_one_digest(one: list[str], other: list[str]) -> None:
    assert digest(want(*one), PLATFORM) == digest(want(*other), PLATFORM)


@pytest.mark.parametrize(
    "other",
    [
        ["a==1.1"],
        ["a~=1.0"],
        ["a==1.0.*"],
        ["a===1.0"],
        ["a==1.0", "b"],
        ["a[x]==1.0"],
        ["a==1.0+cu1"],
        ["-i https://h.invalid/", "a==1.0"],
    ],
)
def test_another_environment_has_another_digest(other: list[str]) -> None:
    assert digest(want("a==1.0"), PLATFORM) != digest(want(*other), PLATFORM)


def test_zeros_count_where_pep_440_lets_them_count() -> None:
    assert digest(want("a~=1.0"), PLATFORM) != digest(want("a~=1.0.0"), PLATFORM)
    assert digest(want("a==1.0.*"), PLATFORM) != digest(want("a==1.*"), PLATFORM)


def test_the_python_and_the_platform_are_in_the_digest() -> None:
    names = {digest(want("a", python=python), platform) for python in ("3.10", "3.11") for platform in ("x", "y")}
    assert len(names) == 4
    assert all(len(name) >= 16 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_bound_is_in_the_digest(tmp_path: Path) -> None:
    (tmp_path / "bounds.txt").write_text("b<2\n")
    assert digest(want("a", "-c bounds.txt", folder=tmp_path), PLATFORM) != digest(want("a"), PLATFORM)


def test_a_local_package_counts_by_its_content_not_by_its_place(tmp_path: Path) -> None:
    names = []
    for folder, text in (("one", "same"), ("two", "same"), ("three", "other")):
        package = tmp_path / folder
        package.mkdir()
        (package / "pyproject.toml").write_text('[project]\nname = "local"\n')
        (package / "x.py").write_text(text)
        names.append(digest(want(str(package), folder=tmp_path / "project"), PLATFORM))
    assert names[0] == names[1] != names[2]


def test_the_whole_environment_is_there() -> None:
    wish = want("numpy>=2", "six", "tool @ https://host.invalid/tool.zip")
    held = HeldEnvironment(digest(wish, PLATFORM), {"numpy": "2.1", "six": "1.17.0", "tool": "1.0", "extra": "1"})
    found = difference(wish, [HeldEnvironment("other", {}), held], PLATFORM)
    assert (found.present, found.add, found.change) == (True, (), ())
    assert [row[0] for row in found.rows()] == ["numpy", "six", "tool"]


def test_nothing_is_there() -> None:
    found = difference(want("xarray==2025.1", "six", "pywin32; sys_platform=='win32'"), [], PLATFORM)
    assert (found.present, found.change, found.keep) == (False, (), ())
    assert found.add == (("six", "any"), ("xarray", "==2025.1"))


def test_compared_with_the_most_similar_environment() -> None:
    far = HeldEnvironment("far", {"numpy": "1.0"})
    near = HeldEnvironment("near", {"Scikit_Learn": "1.5.0", "numpy": "2.0", "ray": "2.59.0", "tool": "1"})
    wish = want(
        "scikit-learn==1.5", "numpy>=2,<3", "ray[tune]==2.60.0", "xarray", "tool @ git+https://me:pw@git.invalid/t"
    )
    found = difference(wish, [far, near, HeldEnvironment("none", {})], PLATFORM)
    assert not found.present
    assert found.rows() == [
        ("numpy", "2.0", "<3,>=2", "already there"),
        ("ray", "2.59.0", "==2.60.0", "to change"),
        ("scikit-learn", "1.5.0", "==1.5", "already there"),
        ("tool", "1", "git+https://***@git.invalid/t", "to change"),
        ("xarray", "", "any", "to add"),
    ]
    assert json.loads(found.to_json())["add"] == [["xarray", "any"]]


def test_a_record_of_an_environment() -> None:
    assert HeldEnvironment.from_json(
        '{"digest": "d", "packages": {"six": "1.0"}, "python": "3.11.7"}'
    ) == HeldEnvironment("d", {"six": "1.0"})
    for text in ("", "[]", '{"digest": "d"}', '{"digest": "d", "packages": 3}'):
        with pytest.raises(ValueError):
            HeldEnvironment.from_json(text)
