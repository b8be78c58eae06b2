"""The folder of this package on the user's machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of this package's own files: `$SRF_HOME`, else `~/.slurm-ray-flow`.

    Nothing is created here: whoever writes into it first makes it, readable by its owner alone.
    """
    chosen = os.environ.get("SRF_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".slurm-ray-flow"
