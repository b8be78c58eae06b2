"""A container runtime that is a stand-in (`stand_in_apptainer.py`), and images for it that are folders."""

import shlex
import sys
from pathlib import Path

STAND_IN = Path(__file__).with_name("stand_in_apptainer.py")


def lay_runtime(folder, python=sys.executable, program=STAND_IN):
    """Put a program `apptainer` into a folder, for the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "apptainer", f'exec {shlex.quote(str(python))} -I {shlex.quote(str(program))} "$@"')


def lay_image(folder, python=sys.executable):
    """Make an image whose Python is this one, with its packages."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    _write(folder / "bin" / "python3", f'exec {python} "$@"')


def _write(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
