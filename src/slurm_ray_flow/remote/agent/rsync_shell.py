"""What rsync starts instead of ssh, at home: `python -I rsync_shell.py SOCKET HOST COMMAND...`.

It hands rsync's pipes to the process that holds the connection, which joins them to a channel of it, and ends with
the exit code that this process tells.
"""

from __future__ import annotations

import json
import socket
import sys


def main() -> None:
    """Hand over the pipes, and wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.connect(sys.argv[1])
        # As ssh does it, the words of the command are joined as they are: rsync has quoted what needs it.
        command = " ".join(sys.argv[3:])
        socket.send_fds(door, [json.dumps({"command": command}).encode() + b"\n"], [0, 1, 2])
        answer = door.makefile("rb").readline()
    sys.exit(int(answer) if answer.strip() else 255)


if __name__ == "__main__":
    main()
