"""The `srf` command, each time as a process of its own, which needs not import everything anew."""

from __future__ import annotations

import os
import subprocess

import prepared

Done = subprocess.CompletedProcess[str]


class Command:
    """`srf`, ready to be called. How it starts for real, test_cli.py sees."""

    def __call__(self, *arguments: str, timeout: float = 120, cwd: str | None = None, **variables: str) -> Done:
        """Run it to its end."""
        command, nothing = [prepared.SRF, *arguments], subprocess.DEVNULL
        return prepared.run(command, timeout=timeout, cwd=cwd, stdin=nothing, env={**os.environ, **variables})
