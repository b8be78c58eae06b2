"""Puts a host's network cable back after some seconds: `python -m hosts.plug MARK HOST SECONDS`."""

from __future__ import annotations

import sys
import time

from hosts.faults import plug
from hosts.lab import Lab
from hosts.place import Place


def main() -> None:
    """Wait, and put it back."""
    mark, name, seconds = sys.argv[1:]
    time.sleep(float(seconds))
    plug(Lab(Place(mark.rpartition("=")[2]))[name])


if __name__ == "__main__":
    main()
