"""What type checkers make of users' code: a decorated function keeps its parameters and the type of its value."""

import json
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("users.py")
WRONG = {number for number, line in enumerate(FILE.read_text().splitlines(), 1) if line.endswith("# error")}


def test_mypy_sees_what_is_right_and_what_is_wrong(pytestconfig):
    """What has changed since mypy's last run, and what has errors, it reads anew."""
    cache = pytestconfig.cache.mkdir("typed")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--hide-error-context"]
    done = subprocess.run([*command, "--cache-dir", str(cache), str(FILE)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = re.findall(r"^(.*):(\d+): error: ", done.stdout, re.MULTILINE)
    assert {Path(file).name for file, _ in found} == {FILE.name}, done.stdout
    assert {int(number) for _, number in found} == WRONG, done.stdout


def test_pyright_sees_the_same(tmp_path):
    """In a folder of a user's own, without this project's settings."""
    (tmp_path / FILE.name).write_text(FILE.read_text())
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard"}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, FILE.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}
    assert lines == WRONG, json.dumps(found, indent=1)
