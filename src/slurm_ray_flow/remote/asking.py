"""Asks a program something."""

from __future__ import annotations

import subprocess
from typing import Dict, Optional, Sequence


def said_by(command: Sequence[str], seconds: float, variables: Optional[Dict[str, str]] = None) -> Optional[str]:
    """What it writes to stdout, however it ends; None where it can't be started or takes too long.

    Args:
        command: program and arguments.
        seconds: how long it may take.
        variables: its whole environment; None passes on this process's own.
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env=variables,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace")
