"""The remote shell of rsync at home, in place of ssh: `python -I rsync_shell.py SOCKET HOST COMMAND...`.

It passes rsync's pipes to the process with the SSH connection, which joins them to a channel, and ends with the exit
code that this process sends back.
"""

from __future__ import annotations

import json
import socket
import sys


def main() -> None:
    """Pass on the pipes, and wait for the exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(sys.argv[1])
        # The words are joined without quoting, as ssh does: rsync has quoted them.
        command = " ".join(sys.argv[3:])
        socket.send_fds(connection, [json.dumps({"command": command}).encode() + b"\n"], [0, 1, 2])
        exit_code = connection.makefile("rb").readline()
    sys.exit(int(exit_code) if exit_code.strip() else 255)


if __name__ == "__main__":
    main()
