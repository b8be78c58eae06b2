"""What a scan finds in a project on disk. Nothing of these projects is ever imported."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from scan_lab import Make, install, kinds, modules, scanned
from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan import FunctionSource, ParsedFile, Scan, scan


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


def test_a_script_is_scanned_but_not_sent_unless_imported(tmp_path: Path, write: Make) -> None:
    script = write("job.py", "import helper\nif __name__ == '__main__':\n    import local_only\n")
    write("helper.py")
    write("local_only.py")
    target = FunctionSource(None, script, None, "job.f", 1, ())
    assert modules(scan(target, search_path=[], project=tmp_path, parsed={})) == {"helper", "local_only"}
    write("helper.py", "import job\n")
    assert "job" in modules(scan(target, search_path=[], project=tmp_path, parsed={}))


def test_a_cell_is_scanned_by_its_text_and_by_what_it_refers_to(tmp_path: Path, write: Make) -> None:
    write("helper.py", "import deeper\n")
    write("deeper.py")
    write("other/__init__.py")
    target = FunctionSource(None, None, "def f():\n    import helper\n    exec(f)\n", "f", 7, ("other.thing", "gone"))
    found = scan(target, search_path=[str(tmp_path)], project=tmp_path, parsed={})
    assert modules(found) == {"helper", "deeper", "other"}
    assert kinds(found) == [("unresolved", 7), ("exec", 9)]


def test_a_module_that_no_search_path_entry_leads_to_is_found_from_its_file(tmp_path: Path, write: Make) -> None:
    write("far/pkg/__init__.py")
    write("far/pkg/mod.py", "from . import other\n")
    write("far/pkg/other.py")
    target = FunctionSource("pkg.mod", tmp_path / "far/pkg/mod.py", None, "pkg.mod.f", 1, ())
    found = scan(target, search_path=[], project=tmp_path / "elsewhere", parsed={})
    assert {(file.module, file.root) for file in found.files} == {
        (name, tmp_path / "far") for name in ("pkg", "pkg.mod", "pkg.other")
    }


def test_a_function_whose_file_is_gone_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"gone\.py"):
        scan(FunctionSource(None, tmp_path / "gone.py", None, "f", 1, ()), search_path=[], project=tmp_path, parsed={})


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
    write("helper/__init__.py")
    write("data.txt")
    install(write, "dist", {"dist.py": ""})
    found = scanned(tmp_path)
    assert (
        found.files and found.distributions and found.packages and [each.data for each in found.findings if each.data]
    )
    assert Scan.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_nothing_of_the_project_is_run(tmp_path: Path, write: Make) -> None:
    before = set(sys.modules)
    write("main.py", "import helper\nraise SystemExit\n")
    write("helper.py", "raise SystemExit\n")
    scanned(tmp_path)
    assert not {"main", "helper"} & (set(sys.modules) - before)
