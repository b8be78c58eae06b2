"""A program whose imports are done (tests/prepared.py) is seen from outside as one that did them itself."""

import os
import signal
import subprocess
import sys

import pytest

import hangs
import prepared

SHOWS = """
import os, sys, threading
print(__name__, sys.argv[1:], os.getcwd(), os.environ["MARK"], sys.stdin.read())
threading.Thread(target=lambda: print("a thread")).start()
{ending}
"""


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "sys.exit('so')", "1 / 0", "raise KeyboardInterrupt"])
def test_it_shows_and_ends_the_same(tmp_path, ending):
    (tmp_path / "script.py").write_text(SHOWS.format(ending=ending))
    command = [sys.executable, "script.py", "one", "two words"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = {"cwd": tmp_path, "env": {**os.environ, "MARK": "of the test"}, **pipes}
    both = [subprocess.Popen(command, **options), prepared.start(command, **options)]
    assert isinstance(both[1], prepared.Program)
    real, copy = [(*process.communicate("said"), process.returncode) for process in both]
    assert copy == real


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_in_the_same_way(number):
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    codes = []
    for start in (subprocess.Popen, prepared.start):
        with start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            process.stdout.readline()
            process.send_signal(number)
        codes.append(process.returncode)
    assert codes == [-number, -number]


def test_where_it_hangs_is_told():
    command = [sys.executable, "-c", "def here():\n    print(flush=True); input()\nhere()"]
    with prepared.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        told = hangs.what_is_done()
        process.kill()
    assert "in here" in told and str(process.pid) in told
    assert "test_where_it_hangs_is_told" in told
