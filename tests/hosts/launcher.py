"""A user at home who launches functions on hosts, in processes of their own; and what those functions note there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from uv import find_uv_bin

import prepared
from hosts.host import Host
from hosts.layout import ALICE
from prepared import SRF
from slurm_ray_flow.blocks.environments import UV_VERSION

PREFECT = str(Path(sys.executable).with_name("prefect"))
USER = ALICE.name


def own(name: str) -> str:
    """A cluster's name as this process saves it: others of the run use the same Prefect server."""
    return f"{name}-{os.getpid()}"


def give_uv(host: Host, root: str) -> None:
    """Put uv where an earlier launch of the user's has put it: pip takes five seconds of a processor for it."""
    lay_uv(host, USER, f"{root}/tools/uv/{UV_VERSION}")


def lay_uv(host: Host, user: str, folder: str) -> Path:
    """Put uv into a folder of a user's; gives the program."""
    host.run(user, ["sh", "-c", 'umask 077 && mkdir -p "$1" && : > "$1/uv" && chmod 700 "$1/uv"', "sh", folder])
    program = host.path(f"{folder}/uv")
    shutil.copyfile(find_uv_bin(), program)
    return program


class Launcher:
    """What one host and home have in common for these tests.

    Args:
        host: where the user's files lie.
        project: the user's project at home.
    """

    def __init__(self, host: Host, project: Path) -> None:
        self.host, self.project = host, project
        self._started: list[subprocess.Popen[str]] = []

    def folder(self) -> str:
        """A new folder there."""
        path = f"/home/{USER}/folder-{secrets.token_hex(4)}"
        self.host.run(USER, ["mkdir", path])
        return path

    def starts(self, folder: str) -> list[str]:
        """What a function noted there each time that it started."""
        with contextlib.suppress(FileNotFoundError):
            return self.host.path(f"{folder}/starts").read_text().splitlines()
        return []

    def go(self, folder: str) -> None:
        """Let a function that waits go on."""
        self.host.path(f"{folder}/go").touch()

    def script(self, *arguments: str, file: str = "held.py", **variables: str) -> subprocess.Popen[str]:
        """A user's script, in a process of its own."""
        return self._start(sys.executable, str(self.project / file), *arguments, **variables)

    def srf(self, *arguments: str) -> subprocess.Popen[str]:
        """A command of a user's."""
        return self._start(SRF, *arguments)

    def prefect(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Prefect's own command."""
        return self._start(PREFECT, *arguments, **variables)

    def _start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        environment = {**os.environ, "SRF_PROGRESS": "plain", **variables}
        self._started.append(prepared.start(command, cwd=self.project, env=environment, **pipes))
        return self._started[-1]

    def end_scripts(self) -> None:
        """Kill what a test has left at home."""
        for process in self._started:
            process.kill()
            process.communicate()
        self._started.clear()
