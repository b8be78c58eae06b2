"""What a scan finds in a project on disk. Nothing of these projects is ever imported."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan import ParsedFile, Scan, Target, scan

Make = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Make:
    def write(name: str, text: str | bytes = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def scanned(folder: Path, *path: Path, parsed: dict[str, ParsedFile] | None = None, module: str = "main") -> Scan:
    """Scan module `main` of a folder with only the given folders on sys.path."""
    target = Target(module, folder.joinpath(*module.split(".")).with_suffix(".py"), None, "main.f", 1, ())
    search = [str(entry) for entry in path or (folder, folder / "site-packages")]
    return scan(target, search_path=search, project=folder, parsed={} if parsed is None else parsed)


def modules(found: Scan) -> set[str]:
    return {file.module for file in found.files}


def kinds(found: Scan) -> list[tuple[str, int]]:
    return [(finding.kind, finding.line) for finding in found.findings]


def install(write: Make, name: str, files: dict[str, str], metadata: str = "", direct: object = None) -> None:
    folder = f"site-packages/{name.replace('-', '_')}-1.5.dist-info"
    write(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{metadata}\n\nName: not this\n")
    for file, text in files.items():
        write(f"site-packages/{file}", text)
    write(f"{folder}/RECORD", "".join(f"{file},sha256=x,1\n" for file in files) + f"{folder[14:]}/RECORD,,\n")
    if direct is not None:
        write(f"{folder}/direct_url.json", json.dumps(direct))


def test_follows_packages_with_all_their_parents(tmp_path: Path, write: Make) -> None:
    write("main.py", "import a.b.c\nfrom d import e, VALUE\n")
    for name in ("a/__init__.py", "a/b/__init__.py", "a/b/c.py", "d/e.py", "a/unused.py", "unused.py"):
        write(name)
    write("d/__init__.py", "VALUE = 1\n")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "a", "a.b", "a.b.c", "d", "d.e"}
    assert {file.root for file in found.files} == {tmp_path}
    assert tmp_path / "a/b/c.py" in {file.path for file in found.files}
    assert found.findings == ()


def test_follows_relative_imports_over_three_levels_and_cycles(tmp_path: Path, write: Make) -> None:
    write("main.py", "from p.q.r import s\n")
    for name in ("p/__init__.py", "p/q/__init__.py", "p/q/r/__init__.py", "p/x.py", "p/y/__init__.py", "p/y/z.py"):
        write(name)
    write("p/q/r/s.py", "from ...x import thing\nfrom ...y import z\nfrom . import t\nfrom ..... import above\n")
    write("p/q/r/t.py", "from .s import back\nimport main\n")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "p", "p.q", "p.q.r", "p.q.r.s", "p.q.r.t", "p.x", "p.y", "p.y.z"}
    assert kinds(found) == [("unresolved", 4)]


def test_a_name_that_is_package_and_file_means_the_package(tmp_path: Path, write: Make) -> None:
    write("main.py", "import both\n")
    write("both.py")
    package = write("both/__init__.py")
    assert [file.path for file in scanned(tmp_path).files if file.module == "both"] == [package]


def test_namespace_packages_span_several_roots(tmp_path: Path, write: Make) -> None:
    write("main.py", "import space.one\nfrom space import two\nfrom space import none\n")
    write("space/one.py")
    write("other/space/two.py")
    found = scanned(tmp_path, tmp_path, tmp_path / "other")
    assert {(file.module, file.root) for file in found.files} >= {
        ("space.one", tmp_path),
        ("space.two", tmp_path / "other"),
    }
    assert kinds(found) == [("unresolved", 3)]


def test_packages_that_extend_their_path_span_several_roots(tmp_path: Path, write: Make) -> None:
    write("main.py", "import old.one, old.two\n")
    merge = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"
    write("old/__init__.py", merge)
    write("old/one.py")
    write("other/old/__init__.py", merge)
    write("other/old/two.py")
    assert modules(scanned(tmp_path, tmp_path, tmp_path / "other")) == {"main", "old", "old.one", "old.two"}


def test_modules_under_src_are_local(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lib.part\n")
    write("src/lib/__init__.py")
    write("src/lib/part.py")
    assert {(file.module, file.root) for file in scanned(tmp_path).files} >= {("lib.part", tmp_path / "src")}


@pytest.mark.parametrize(
    "line",
    [
        "import importlib; importlib.import_module('lib.part')",
        "import importlib as il; il.import_module(name='lib.part')",
        "from importlib import import_module as get\nget('lib.part')",
        "import importlib; importlib.import_module('.part', package='lib')",
        "import importlib; importlib.import_module('..part', 'lib.sub')",
        "__import__('lib.part')",
        "__import__('lib', fromlist=['part'])",
        "def f():\n    def g():\n        import lib.part",
        "class A:\n    from lib import part",
        "async def f():\n    async with x:\n        from lib import part",
        "match x:\n    case 1:\n        import lib.part",
        "x = [lambda: __import__('lib.part')]",
        "exec('import lib.part')",
        "from lib import *",
        "if x: pass\nelif y: import lib.part",
        "for x in y: pass\nelse: import lib.part",
        "import runpy; runpy.run_module('lib.part')",
    ],
)
def test_every_way_to_import_by_a_literal_name(tmp_path: Path, write: Make, line: str) -> None:
    write("main.py", line + "\n")
    write("lib/__init__.py", "__all__ = ['part']\n")
    write("lib/part.py")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "lib", "lib.part"}
    assert found.findings == ()


@pytest.mark.parametrize(
    "call",
    [
        "importlib.import_module('.part', __package__)",
        "importlib.import_module(f'{__package__}.part')",
        "__import__(__name__ + '.part')",
    ],
)
def test_a_package_imports_its_own_part_by_name(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", "import lib, __main__\n")
    write("lib/__init__.py", f"import importlib\n{call}\n")
    write("lib/part.py")
    found = scanned(tmp_path)
    assert "lib.part" in modules(found)
    assert found.findings == ()


def test_both_branches_of_a_try_count_and_what_is_missing_there_is_no_finding(tmp_path: Path, write: Make) -> None:
    write(
        "main.py",
        "import contextlib, sys\n"
        "try:\n    import one, nowhere\nexcept (ImportError, KeyError):\n    import two\nelse:\n    import three\n"
        "with contextlib.suppress(ModuleNotFoundError):\n    import nowhere_either\n"
        "if sys.version_info < (3, 11):\n    import backport\n"
        "try:\n    import needed\nexcept KeyError:\n    pass\n",
    )
    for name in ("one.py", "two.py", "three.py"):
        write(name)
    found = scanned(tmp_path)
    assert modules(found) == {"main", "one", "two", "three"}
    assert kinds(found) == [("unresolved", 13)]
    assert str(found.findings[0]).startswith(f"{tmp_path}/main.py:13: no module named 'needed'")


@pytest.mark.parametrize(
    ("head", "test"),
    [
        ("from typing import TYPE_CHECKING", "TYPE_CHECKING"),
        ("import typing", "typing.TYPE_CHECKING"),
        ("import typing as t", "t.TYPE_CHECKING"),
        ("from typing import TYPE_CHECKING as checking", "checking"),
        ("from typing import TYPE_CHECKING", "TYPE_CHECKING and x"),
    ],
)
def test_imports_for_type_checkers_are_left_out_but_not_their_else(
    tmp_path: Path, write: Make, head: str, test: str
) -> None:
    write("main.py", f"{head}\nif {test}:\n    import hints, absent\nelse:\n    import real\n")
    write("hints.py")
    write("real.py")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "real"}
    assert found.findings == ()


def test_the_main_block_of_an_imported_module_is_left_out(tmp_path: Path, write: Make) -> None:
    write("main.py", "if __name__ == '__main__':\n    import plots\nif not TYPE_CHECKING:\n    import real\n")
    write("plots.py")
    write("real.py")
    assert modules(scanned(tmp_path)) == {"main", "real"}


@pytest.mark.parametrize("local_first", [True, False])
def test_of_two_modules_with_one_name_the_first_on_the_path_wins(
    tmp_path: Path, write: Make, local_first: bool
) -> None:
    write("app/main.py", "import twin\n")
    write("app/twin.py")
    install(write, "twin", {"twin.py": ""})
    roots = [tmp_path / "app", tmp_path / "site-packages"]
    found = scanned(tmp_path / "app", *(roots if local_first else reversed(roots)))
    assert ("twin" in modules(found)) is local_first
    assert [each.name for each in found.distributions] == ([] if local_first else ["twin"])


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


def test_a_syntax_error_is_named_and_the_file_still_sent(tmp_path: Path, write: Make) -> None:
    write("main.py", "import broken\nimport fine\n")
    broken = write("broken.py", "x = 1\nimport (\n")
    write("fine.py", b"x = '\0'\n")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "broken", "fine"}
    assert (broken, 2, "syntax") in [(f.file, f.line, f.kind) for f in found.findings]
    assert [f.file.name for f in found.findings if f.file] == ["broken.py", "fine.py"]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfimport other\n",
        b"# -*- coding: latin-1 -*-\nname = '\xe9'\nimport other\n",
        b"x = 1\rimport other\r",
        b"'''\r\nimport nothing\r\n'''\r\nimport other\r\n",
    ],
)
def test_marks_cookies_and_line_ends(tmp_path: Path, write: Make, text: bytes) -> None:
    write("main.py", text)
    write("other.py")
    found = scanned(tmp_path)
    assert modules(found) == {"main", "other"}
    assert found.findings == ()


def test_what_cannot_be_followed_is_reported_with_its_line_and_advice(tmp_path: Path, write: Make) -> None:
    write(
        "main.py",
        "import importlib, pkgutil\nname = input()\nimportlib.import_module(name)\n__import__(f'plugins.{name}')\n"
        "exec(name)\npkgutil.iter_modules(['plugins'])\nexec(open(name).read())\n",
    )
    found = scanned(tmp_path)
    assert kinds(found) == [
        ("computed_import", 3),
        ("computed_import", 4),
        ("exec", 5),
        ("computed_import", 6),
        ("exec", 7),
    ]
    assert all("include=[" in finding.text for finding in found.findings)
    assert "import_module(name)" in found.findings[0].text


@pytest.mark.parametrize(
    "call",
    [
        "open('data/x.csv')",
        "Path('data/x.csv').read_text()",
        "pathlib.Path('data/x.csv')",
        "pd.read_csv('data/x.csv')",
        "pd.read_csv(filepath_or_buffer='data/x.csv')",
        "np.load('data/x.csv')",
        "(Path(__file__).parent / 'data' / 'x.csv')",
        "os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'x.csv')",
        "Path(__file__).resolve().with_name('data').joinpath('x.csv')",
        "Path(__file__).parents[0] / 'data/x.csv'",
    ],
)
def test_a_file_of_the_project_that_is_read_is_reported_not_sent(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", f"x = 1\ny = {call}\n")
    data = write("data/x.csv")
    found = scanned(tmp_path)
    assert found.data_files == (data,)
    assert kinds(found) == [("open", 2)]
    assert "include=['data/x.csv']" in found.findings[0].text
    assert modules(found) == {"main"}


@pytest.mark.parametrize(
    "call", ["open('data/x.csv', 'w')", "Path('data/x.csv').write_text('')", "open('/etc/passwd')", "open('none')"]
)
def test_files_that_are_written_absent_or_outside_are_not_reported(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", call + "\n")
    write("data/x.csv")
    assert scanned(tmp_path).findings == ()


def test_a_script_is_scanned_but_not_sent_unless_imported(tmp_path: Path, write: Make) -> None:
    script = write("job.py", "import helper\nif __name__ == '__main__':\n    import local_only\n")
    write("helper.py")
    write("local_only.py")
    target = Target(None, script, None, "job.f", 1, ())
    assert modules(scan(target, search_path=[], project=tmp_path, parsed={})) == {"helper", "local_only"}
    write("helper.py", "import job\n")
    assert "job" in modules(scan(target, search_path=[], project=tmp_path, parsed={}))


def test_a_cell_is_scanned_by_its_text_and_by_what_it_refers_to(tmp_path: Path, write: Make) -> None:
    write("helper.py", "import deeper\n")
    write("deeper.py")
    write("other/__init__.py")
    target = Target(None, None, "def f():\n    import helper\n    exec(f)\n", "f", 7, ("other.thing", "gone"))
    found = scan(target, search_path=[str(tmp_path)], project=tmp_path, parsed={})
    assert modules(found) == {"helper", "deeper", "other"}
    assert kinds(found) == [("unresolved", 7), ("exec", 9)]


def test_a_module_that_no_search_path_entry_leads_to_is_found_from_its_file(tmp_path: Path, write: Make) -> None:
    write("far/pkg/__init__.py")
    write("far/pkg/mod.py", "from . import other\n")
    write("far/pkg/other.py")
    target = Target("pkg.mod", tmp_path / "far/pkg/mod.py", None, "pkg.mod.f", 1, ())
    found = scan(target, search_path=[], project=tmp_path / "elsewhere", parsed={})
    assert {(file.module, file.root) for file in found.files} == {
        (name, tmp_path / "far") for name in ("pkg", "pkg.mod", "pkg.other")
    }


def test_a_function_whose_file_is_gone_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"gone\.py"):
        scan(Target(None, tmp_path / "gone.py", None, "f", 1, ()), search_path=[], project=tmp_path, parsed={})


def test_only_changed_files_are_parsed_again(tmp_path: Path, write: Make) -> None:
    write("main.py", "import one\n")
    write("one.py", "x = 1\n")
    write("two.py")
    parsed: dict[str, ParsedFile] = {}
    first = scanned(tmp_path, parsed=parsed)
    parsed = pickle.loads(pickle.dumps(parsed))
    main = parsed[str(tmp_path / "main.py")]
    assert scanned(tmp_path, parsed=parsed) == first
    write("one.py", "import two\n")
    assert modules(scanned(tmp_path, parsed=parsed)) == {"main", "one", "two"}
    assert parsed[str(tmp_path / "main.py")] is main


def test_the_scan_survives_json(tmp_path: Path, write: Make) -> None:
    write("main.py", "import dist, gone, helper\nopen('data.txt')\n")
    write("helper.py")
    write("data.txt")
    install(write, "dist", {"dist.py": ""})
    found = scanned(tmp_path)
    assert found.files and found.distributions and found.findings and found.data_files
    assert Scan.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_nothing_of_the_project_is_run(tmp_path: Path, write: Make) -> None:
    before = set(sys.modules)
    write("main.py", "import helper\nraise SystemExit\n")
    write("helper.py", "raise SystemExit\n")
    scanned(tmp_path)
    assert not {"main", "helper"} & (set(sys.modules) - before)
