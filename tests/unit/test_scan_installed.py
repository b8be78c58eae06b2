"""Which installed packages a scan finds, and what it takes from editable ones."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from scan_lab import Make, install, kinds, modules, scanned


def test_names_are_mapped_to_distributions_with_versions_and_origins(tmp_path: Path, write: Make) -> None:
    write("main.py", "import sklearn.svm, os, json, numpy\nimport slurm_ray_flow\n")
    git = {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "py"}
    install(write, "scikit-learn", {"sklearn/__init__.py": "", "sklearn/svm.py": ""}, direct=git)
    install(write, "NumPy", {"numpy/__init__.py": ""})
    first, second = scanned(tmp_path).distributions
    assert (first.name, first.version, first.imports, first.origin) == ("NumPy", "1.5", ("numpy",), None)
    assert (second.name, second.imports) == ("scikit-learn", ("sklearn",))
    assert second.origin == "git+https://host/x.git@abc#subdirectory=py"


def test_a_shared_namespace_is_mapped_by_files_not_to_all(tmp_path: Path, write: Make) -> None:
    write("main.py", "from google.cloud import storage\nimport google.cloud\n")
    install(write, "google-storage", {"google/cloud/storage/__init__.py": ""})
    install(write, "google-vision", {"google/cloud/vision/__init__.py": ""})
    install(write, "protobuf", {"google/protobuf/__init__.py": ""})
    assert [each.name for each in scanned(tmp_path).distributions] == ["google-storage"]


def test_a_loose_module_in_site_packages_is_reported(tmp_path: Path, write: Make) -> None:
    write("main.py", "import loose\n")
    write("site-packages/loose.py")
    assert kinds(scanned(tmp_path)) == [("unowned", 1)]


@pytest.mark.parametrize(
    ("code", "needs"),
    [
        ("import ray", True),
        ("def f():\n    from ray import tune", True),
        ("import booster", True),
        ("import outer", True),
        ("import plain", False),
        ("if TYPE_CHECKING:\n    import ray", False),
        ("import helper", True),
    ],
)
def test_use_of_ray_is_seen_directly_and_through_requirements(
    tmp_path: Path, write: Make, code: str, needs: bool
) -> None:
    write("main.py", code + "\n")
    write("helper.py", "import ray\n")
    install(write, "ray", {"ray/__init__.py": ""})
    install(write, "booster", {"booster.py": ""}, "Requires-Dist: Ray[default] (>=2)")
    install(write, "outer", {"outer.py": ""}, "Requires-Dist: booster")
    install(write, "plain", {"plain.py": ""}, 'Requires-Dist: ray ; extra == "all"\nRequires-Dist: array-ray')
    assert scanned(tmp_path).uses_ray is needs


def test_a_local_module_called_ray_is_not_ray(tmp_path: Path, write: Make) -> None:
    write("main.py", "import ray\n")
    write("ray.py")
    assert scanned(tmp_path).uses_ray is False


EDITABLE = {
    "pth": ("own.pth", "{project}/code\n"),
    "setuptools": (
        "__editable___own_1_5_finder.py",
        "raise SystemExit\nMAPPING: dict[str, str] = {{'own': '{project}/code/own'}}\nNAMESPACES = {{}}\n",
    ),
    "editables": ("_editable_impl_own.py", "F.map_module('own', '{project}/code/own/__init__.py')\nraise SystemExit\n"),
}


@pytest.mark.parametrize("how", EDITABLE)
def test_editable_installs_are_local(tmp_path: Path, write: Make, how: str) -> None:
    write("app/main.py", "import own.part\n")
    write("project/code/own/__init__.py")
    part = write("project/code/own/part.py")
    name, text = EDITABLE[how]
    install(write, "own", {name: text.format(project=tmp_path / "project")})
    found = scanned(tmp_path / "app", tmp_path / "app", tmp_path / "site-packages")
    assert (part, tmp_path / "project/code", "own.part") in [(f.path, f.root, f.module) for f in found.files]
    assert found.distributions == ()


def test_an_unknown_kind_of_editable_install_is_found_by_its_project(tmp_path: Path, write: Make) -> None:
    write("app/main.py", "import own\n")
    write("project/src/own.py")
    install(write, "own", {}, direct={"url": f"file://{tmp_path}/project", "dir_info": {"editable": True}})
    assert "own" in modules(scanned(tmp_path / "app", tmp_path / "app", tmp_path / "site-packages"))


def test_compiled_modules_of_local_packages_are_sent_and_stubs_are_not(tmp_path: Path, write: Make) -> None:
    write("main.py", "import fast\nfrom fast import core\n")
    for name in ("__init__.py", f"core{EXTENSION_SUFFIXES[0]}", f"other{EXTENSION_SUFFIXES[0]}", "core.pyi"):
        write(f"fast/{name}")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "fast", "fast.core", "fast.other"}
    assert not [file for file in found.files if file.path.suffix == ".pyi"]
    assert kinds(found) == [("compiled", 1)]
