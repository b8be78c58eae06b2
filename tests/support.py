"""What several tests use."""

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from slurm_ray_flow.core.launch_events import Note, ResourcesUsed, Waiting, Warned

SLOW_BACKEND = """
import os, pathlib, time, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    here = pathlib.Path({control!r})
    with open(here / "builds", "a") as file:
        file.write(str(os.getpid()) + "\\n")
    while not (here / "go").exists():
        time.sleep(0.01)
    with zipfile.ZipFile(os.path.join(folder, "slow-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("slow.py", "VALUE = 1")
        wheel.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: slow\\nVersion: 1.0\\n")
        wheel.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("slow-1.0.dist-info/RECORD", "")
    return "slow-1.0-py3-none-any.whl"
"""
"""A package whose build begins, says so, and goes on when it is told."""


def python_of(version):
    """The interpreter of this version on this machine; the test is skipped where there is none that runs."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    kept = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"), reverse=True)
    for candidate in [*map(str, kept), shutil.which(f"python{version}")]:
        # A shim may be on PATH for a Python that is not there.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return pytest.skip(f"there is no Python {version} on this machine")


class Noting:
    """A subscriber of a launch's events that keeps its notes and warnings."""

    def __init__(self):
        self.said, self.warned = [], []

    def __call__(self, event):
        if isinstance(event, Note | Waiting | ResourcesUsed):
            self.said.append(event.text)
        elif isinstance(event, Warned):
            self.warned.append(event.text)


BOUND = 240
"""Seconds; nothing that a test waits for takes as long, on a machine under load either: whoever waits so long hangs."""


def wait_for(condition, seconds=BOUND):
    """Wait until a condition holds. To look takes a sixth of the time at most: it may ask a server that others need."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        looked = time.monotonic()
        assert looked < deadline, f"did not happen within {seconds} s"
        time.sleep(min(max(0.02, 5 * (looked - began)), 0.5))


def make_wheel(folder, name, data=b"VALUE = 1"):
    """A package of one module, version 1.0, that needs no network."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": data,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\n{name}-says = {name}:VALUE.__str__\n".encode(),
    }
    rows = [f"{path},sha256={_record(content)},{len(content)}" for path, content in files.items()]
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{about}/RECORD", "\n".join([*rows, f"{about}/RECORD,,", ""]))


def _record(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@contextlib.contextmanager
def as_somebody_without_rights():
    """Root may read all; another user may not."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
