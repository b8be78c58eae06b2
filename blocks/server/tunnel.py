"""The tunnel from this host to the Prefect server on another host with the same home.

    python -m slurm_ray_flow.blocks.server.tunnel HOST PORT DESCRIPTOR

This host's supervisor starts it, and passes it the listening socket. It logs in by OpenSSH's configuration and checks
the host's key. It can't ask anybody for a password.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import Any

from slurm_ray_flow.blocks.server.address import HOST
from slurm_ray_flow.blocks.ssh import SshConnection
from slurm_ray_flow.blocks.ssh.connection import ConnectionLost
from slurm_ray_flow.blocks.tunnel import join_sockets
from slurm_ray_flow.core.errors import SlurmRayFlowError


def main() -> int:
    """Serve connections until the supervisor ends this process, or the server can't be reached any more."""
    host, port, descriptor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connection = SshConnection(host=host, reconnect_within=0).open()
    try:
        connection.reach(HOST, port).close()
        with socket.socket(fileno=descriptor) as listener:
            while True:
                visitor, _ = listener.accept()
                far = connection.reach(HOST, port)
                threading.Thread(target=_serve_visitor, args=(visitor, far), daemon=True).start()
    except (SlurmRayFlowError, ConnectionLost) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1


def _serve_visitor(visitor: socket.socket, far: Any) -> None:
    with visitor, contextlib.suppress(OSError):
        join_sockets(visitor, far)


if __name__ == "__main__":
    sys.exit(main())
