"""What a scan says that it could not follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from scan_lab import Make, install, kinds, modules, scanned
from slurm_ray_flow.core.scan import FunctionSource, scan


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
        "Path('data') / 'x.csv'",
        "Path('data', 'x.csv')",
        "pathlib.Path('data').resolve().joinpath('x.csv')",
        "os.path.join('data', 'x.csv')",
        "pd.read_csv(Path('.') / 'data' / 'x.csv').to_numpy()",
    ],
)
def test_a_file_of_the_project_that_is_read_is_reported_not_sent(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", f"x = 1\ny = {call}\n")
    data = write("data/x.csv")
    found = scanned(tmp_path)
    assert {finding.data for finding in found.findings} == {data}
    assert kinds(found) == [("open", 2)]
    assert "include=['data/x.csv']" in found.findings[0].text
    assert modules(found) == {"main"}


@pytest.mark.parametrize(
    "call",
    [
        "open('data/x.csv', 'w')",
        "Path('data/x.csv').write_text('')",
        "open('/etc/passwd')",
        "open('none')",
        "(Path('data') / 'x.csv').write_text('')",
        "open(os.path.join('data', 'x.csv'), 'w')",
        "table.to_csv(Path('data') / 'x.csv')",
        "numpy.save(Path('data/x.csv'), array)",
        "', '.join(['data', 'x.csv'])",
    ],
)
def test_files_that_are_written_absent_or_outside_are_not_reported(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", call + "\n")
    write("data/x.csv")
    assert scanned(tmp_path).findings == ()


@pytest.mark.parametrize(
    ("call", "read"),
    [
        ("(resources := importlib.resources).files('lab').joinpath('x.json').read_text()", "x.json"),
        ("(importlib.resources.files('lab') / 'deep' / 'y.json').read_text()", "deep/y.json"),
        ("importlib.resources.read_text('lab', 'x.json')", "x.json"),
        ("importlib.resources.files('lab.deep').joinpath('y.json')", "deep/y.json"),
        ("pkgutil.get_data('lab', 'deep/y.json')", "deep/y.json"),
        ("pkg_resources.resource_filename('lab', 'x.json')", "x.json"),
        ("jinja2.Environment(loader=jinja2.PackageLoader('lab', 'deep'))", None),
        ("importlib.resources.files('lab')", None),
    ],
)
def test_a_package_whose_files_are_read_by_its_name_is_imported_and_the_file_told(
    tmp_path: Path, write: Make, call: str, read: str | None
) -> None:
    write("main.py", f"x = 1\ny = {call}\n")
    write("lab/__init__.py", "import dependency\n")
    write("dependency.py")
    write("lab/x.json")
    write("lab/deep/y.json")
    found = scanned(tmp_path)
    assert {"lab", "dependency"} <= modules(found)
    assert (str(tmp_path / "lab"), str(tmp_path), True) in found.packages
    assert [finding.data for finding in found.findings] == ([tmp_path / "lab" / read] if read else [])


@pytest.mark.parametrize("anchor", ["lab", "__package__", "__name__"])
def test_a_file_that_is_read_from_the_package_of_a_module_is_told(tmp_path: Path, write: Make, anchor: str) -> None:
    write("main.py", "import lab.load\n")
    write("lab/__init__.py")
    write("lab/load.py", f"import lab\nfrom importlib.resources import files\nfiles({anchor}) / 'x.json'\n")
    data = write("lab/x.json")
    assert [(finding.data, finding.line) for finding in scanned(tmp_path).findings] == [(data, 3)]


@pytest.mark.parametrize("call", ["files('nowhere').joinpath('x')", "path('gone', view)", "Path(p).read_text('utf8')"])
def test_a_name_that_is_no_package_here_is_no_finding(tmp_path: Path, write: Make, call: str) -> None:
    write("main.py", f"from importlib import resources\n{call}\n")
    assert scanned(tmp_path).findings == ()


def test_a_file_outside_of_the_project_is_told_by_its_whole_path(tmp_path: Path, write: Make) -> None:
    write("project/main.py", "import other\nfrom importlib.resources import files\nfiles('other') / 'x.json'\n")
    write("elsewhere/other/__init__.py")
    data = write("elsewhere/other/x.json")
    found = scanned(tmp_path / "project", tmp_path / "project", tmp_path / "elsewhere")
    assert [finding.data for finding in found.findings] == [data]
    assert repr(str(data)) in found.findings[0].text


def test_packages_are_the_user_s_own_with_namespaces_and_without_what_is_installed(tmp_path: Path, write: Make) -> None:
    write("main.py", "import own.inner, space.part.module, bare, dist, single\n")
    for name in ("own/__init__", "own/inner", "space/part/module", "single"):
        write(f"{name}.py")
    write("bare/x.json")
    install(write, "dist", {"dist/__init__.py": "", "dist/x.json": "", "space/more.py": ""})
    found = [(Path(folder).relative_to(tmp_path).as_posix(), own) for folder, _, own in scanned(tmp_path).packages]
    assert found == [("bare", False), ("own", True), ("space", False), ("space/part", False)]


def test_the_package_of_a_script_that_python_m_runs_is_imported(tmp_path: Path, write: Make) -> None:
    script = write("lab/train.py", "from . import helper\n")
    write("lab/__init__.py")
    write("lab/helper.py")
    target = FunctionSource(None, script, None, "train", 1, (), "lab")
    found = scan(target, search_path=[str(tmp_path)], project=tmp_path, parsed={})
    assert modules(found) == {"lab", "lab.helper"}
    assert found.packages == ((str(tmp_path / "lab"), str(tmp_path), True),)
