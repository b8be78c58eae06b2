"""What a run wants, read from projects as users write them (tests/recorded/requirements)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recorded_projects import Scanned, check, no_uv, recorded, write
from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import Requirements, wanted
from slurm_ray_flow.core.requirements.local import content_digest


@pytest.mark.parametrize("recorded", recorded(), ids=lambda path: path.stem)
def test_recorded_project(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRF_TEST_TOKEN", "from-the-shell")
    check(recorded, tmp_path, no_uv)


def install(site: Path, name: str, version: str, requires: tuple[str, ...] = (), direct_url: Any = None) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    if direct_url:
        (folder / "direct_url.json").write_text(json.dumps(direct_url))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr("sys.path", [str(folder)])
    return folder


def imports(project: Path, *scanned: Scanned, always: tuple[str, ...] = ()) -> tuple[str, ...]:
    project.mkdir(exist_ok=True)
    found = wanted("auto", project, scanned, python="3.11", uv=no_uv, always=always)
    assert found.source == "imports"
    return found.requirements


def test_imports_bring_what_they_require_as_it_is_installed(site: Path, tmp_path: Path) -> None:
    install(
        site, "Some_Thing", "1.2", ("base>=1", "odd; sys_platform=='win32'", "new; python_version>='3.11'", "absent")
    )
    install(site, "base", "4.0", ("base2[fast]", "some-thing"))
    install(site, "base2", "5.0", ("faster; extra == 'fast'", "slower; extra == 'slow'"))
    for name in ("odd", "new", "faster", "slower", "not-imported"):
        install(site, name, "1.0")
    found = imports(tmp_path / "p", Scanned("Some_Thing", "1.2"))
    assert found == ("base2==5.0", "base==4.0", "faster==1.0", "new==1.0", "some-thing==1.2")


def test_markers_are_read_for_the_python_of_the_cluster(site: Path, tmp_path: Path) -> None:
    install(site, "thing", "1.0", ("old; python_version<'3.11'", "new; python_version>='3.11'"))
    install(site, "old", "1.0")
    install(site, "new", "1.0")
    assert wanted("auto", tmp_path, [Scanned("thing", "1.0")], python="3.10", uv=no_uv).requirements == (
        "old==1.0",
        "thing==1.0",
    )
    assert wanted("auto", tmp_path, [Scanned("thing", "1.0")], python="3.12", uv=no_uv).requirements == (
        "new==1.0",
        "thing==1.0",
    )


def test_imports_keep_where_a_distribution_came_from(site: Path, tmp_path: Path) -> None:
    commit = {"url": "https://git.invalid/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    install(site, "needs", "1.0", ("from-git", "conda-built"))
    install(site, "from-git", "1.0", direct_url=commit)
    install(site, "conda-built", "1.0", direct_url={"url": "file:///nowhere/work", "dir_info": {}})
    outside = write(tmp_path / "outside", {"x.py": ""})
    inside = write(tmp_path / "p", {"lib/x.py": ""}) / "lib"
    found = imports(
        tmp_path / "p",
        Scanned("needs", "1.0"),
        Scanned("ours", "1.0", str(inside)),
        Scanned("near", "1.0", outside.as_uri()),
        Scanned("far", "1.0", "git+https://git.invalid/far.git@abc"),
        Scanned("farther", "1.0", "https://git.invalid/farther.git@abc"),
    )
    assert found == (
        "conda-built==1.0",
        "far @ git+https://git.invalid/far.git@abc",
        "farther @ git+https://git.invalid/farther.git@abc",
        "from-git @ git+https://git.invalid/x.git@abc",
        f"near @ {outside.as_uri()}",
        "needs==1.0",
    )


def test_imports_leave_out_this_package_and_what_it_alone_requires(site: Path, tmp_path: Path) -> None:
    install(site, "slurm-ray-flow", "0.1", ("prefect",))
    install(site, "prefect", "3.8.8")
    assert imports(tmp_path / "p", Scanned("slurm_ray_flow", "0.1"), always=("dill==0.4.1",)) == ("dill==0.4.1",)


def test_imports_ask_for_the_public_version_of_a_build_for_this_machine(site: Path, tmp_path: Path) -> None:
    assert imports(tmp_path / "p", Scanned("torch", "2.9.1+cpu")) == ("torch==2.9.1",)


def test_a_local_package_is_known_by_its_content(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"x.py": "1", "__pycache__/x.pyc": "1"})
    project = write(tmp_path / "project", {"requirements.txt": "../outside\n"})
    before = wanted("auto", project, [], python="3.11", uv=no_uv)
    write(outside, {"__pycache__/x.pyc": "2", ".git/HEAD": "3"})
    assert wanted("auto", project, [], python="3.11", uv=no_uv) == before
    write(outside, {"x.py": "2"})
    assert wanted("auto", project, [], python="3.11", uv=no_uv) != before


def test_what_a_build_leaves_in_a_local_package_says_nothing_of_it(tmp_path: Path) -> None:
    package = write(tmp_path / "package", {"mine/__init__.py": "1", "mine/build/x.py": "1", "build/own.py": "1"})
    before = content_digest(package)
    write(package, {"mine.egg-info/PKG-INFO": "1"})
    assert content_digest(package) == before
    write(package, {"mine/build/x.py": "2"})
    assert content_digest(package) != before
    (package / "build" / "own.py").unlink()
    before = content_digest(package)
    write(package, {"build/lib/mine/__init__.py": "1", "build/bdist.linux-x86_64/x": ""})
    assert content_digest(package) == before


def test_of_a_local_package_code_that_travels_as_files_does_not_count(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"src/mine/__init__.py": "", "src/mine/deep/x.py": "1", "src/other.py": "1"})
    project = write(tmp_path / "project", {"requirements.txt": "-e ../outside\n"})

    def found(*travelling: str) -> Requirements:
        files = [outside / name for name in travelling]
        return wanted("auto", project, [], python="3.11", uv=no_uv, travelling=files)

    before, without = found("src/mine/__init__.py"), found()
    write(outside, {"src/mine/__init__.py": "2", "src/mine/deep/x.py": "2"})
    assert found("src/mine/__init__.py") == before
    assert found() != without
    for name in ("src/other.py", "pyproject.toml", "setup.py", "src/mine/fast.c"):
        before = found("src/mine/__init__.py")
        write(outside, {name: "x = 1"})
        assert found("src/mine/__init__.py") != before


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_file_of_another_machine(encoding: str, end: str, tmp_path: Path) -> None:
    lines = ["# größer", "six==1.16.0  # as it was", "numpy==2.0 \\", "    --hash=sha256:aa", ""]
    (tmp_path / "requirements.txt").write_bytes(end.join(lines).encode(encoding))
    found = wanted("auto", tmp_path, [], python="3.11", uv=no_uv)
    assert found.requirements == ("numpy==2.0 --hash=sha256:aa", "six==1.16.0")


@pytest.mark.parametrize("name", ["requirements.txt", "environment.yml"])
def test_a_file_in_no_known_encoding(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("dependencies: [six]\n".encode("utf-16-le"))
    with pytest.raises(DependencyError, match=name):
        wanted("auto", tmp_path, [], python="3.11", uv=no_uv)


def test_a_pyproject_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["six"]\n', encoding="utf-8-sig")
    assert wanted("auto", tmp_path, [], python="3.11", uv=no_uv).requirements == ("six",)


def test_a_lock_further_up_counts_for_its_members_alone(tmp_path: Path) -> None:
    write(tmp_path / "ws", {"uv.lock": 'package = [{ name = "other", source = { editable = "other" } }]'})
    project = write(tmp_path / "ws" / "project", {"requirements.txt": "six"})
    assert wanted("auto", project, [], python="3.11", uv=no_uv).source == "requirements.txt"
