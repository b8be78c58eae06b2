"""The environments of a cluster: which there are."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any, Dict, List


def held(root: str) -> List[str]:
    """The content of each environment's `whole.json`."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "environments", "*", "whole.json"))):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
            found.append(file.read())
    return found


OPERATIONS: Dict[str, Any] = {"held": held}
