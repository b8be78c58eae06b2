"""The end of `srf` while its threads are still at work: Ctrl-C while hosts are asked and Prefect is imported."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
from typing import Annotated
from pydantic import AfterValidator, TypeAdapter
from slurm_ray_flow.cli import main

def slowly(value):
    for _ in range(1000):
        value += 0
    return value

def work():
    adapter = TypeAdapter(list[Annotated[int, AfterValidator(slowly)]])
    while True:
        adapter.validate_python([1] * 10_000)

@main.app.command
def busy():
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)
    print("all of it")
    ENDING

sys.argv = ["srf", "busy"]
main.main()
"""


@pytest.mark.parametrize(
    ("ending", "code"), [("raise KeyboardInterrupt", 130), ("sys.exit(3)", 3), ("pass", 0), ("1 / 0", 1)]
)
def test_threads_that_python_can_not_end_do_not_abort_it(ending, code):
    script = SCRIPT.replace("ENDING", ending)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (code, "all of it\n")
    assert "FATAL" not in done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
