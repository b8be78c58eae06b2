"""What a scan says that it could not follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from scan_lab import Make, kinds, modules, scanned


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
