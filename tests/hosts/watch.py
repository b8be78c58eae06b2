"""Ends a lab when the process that owns it has ended."""

from __future__ import annotations

import contextlib
import os
import select
import sys

from hosts.lab import down
from hosts.place import Place


def main() -> None:
    """Wait for the process in the last argument."""
    mark, owner = sys.argv[1:]
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(owner))
        select.select([descriptor], [], [])
    down(Place(mark.rpartition("=")[2]))


if __name__ == "__main__":
    main()
