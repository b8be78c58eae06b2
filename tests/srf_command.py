"""The `srf` command, each time as a process of its own, which needs not import everything anew.

To import Prefect takes longer than what most tests want to see. So one process has imported it, and each command is a
child of that one, with arguments, variables and outputs as from a shell. How it starts for real, test_cli.py sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PARENT = """
import json, os, sys
import slurm_ray_flow.cli.main
import paramiko, prefect.artifacts, prefect.blocks.core, prefect.client.orchestration
import slurm_ray_flow.blocks.clusters, slurm_ray_flow.tasks.cluster_report, slurm_ray_flow.tasks.clean_up
while line := sys.stdin.readline():
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
os.environ.clear()
os.environ.update(asked["environment"])
os.chdir(asked["folder"])
for number, name in enumerate([os.devnull, asked["out"], asked["err"]]):
    os.dup2(os.open(name, os.O_RDWR), number)
sys.argv = ["srf", *asked["arguments"]]
slurm_ray_flow.cli.main.main()
"""
Done = subprocess.CompletedProcess[str]


class Command:
    """`srf`, ready to be called."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None

    def __call__(self, *arguments: str, timeout: float = 120, cwd: str | None = None, **variables: str) -> Done:
        """Run it to its end."""
        if any(name.startswith("PREFECT_") for name in variables):  # read when Prefect is imported
            raise ValueError("Prefect's settings can't be changed for one command here")
        with tempfile.TemporaryDirectory() as folder:
            out, err = (Path(folder, name) for name in ("out", "err"))
            out.touch(), err.touch()
            said = {"arguments": arguments, "environment": {**os.environ, **variables}, "folder": cwd or os.getcwd()}
            code = self._run({**said, "out": str(out), "err": str(err)}, timeout)
            return subprocess.CompletedProcess(["srf", *arguments], code, out.read_text(), err.read_text())

    def _run(self, asked: dict[str, Any], timeout: float) -> int:
        parent = self._parent = self._parent or _start()
        assert parent.stdin and parent.stdout
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        if not select.select([parent.stdout], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
            parent.stdout.readline()
            raise subprocess.TimeoutExpired("srf", timeout)
        return int(parent.stdout.readline())

    def close(self) -> None:
        if self._parent:
            with contextlib.suppress(OSError):
                self._parent.communicate(timeout=10)


def _start() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PARENT], text=True, bufsize=1, **pipes)
