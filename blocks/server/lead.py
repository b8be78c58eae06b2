"""The tunnel from this host to the Prefect server on another host with the same home.

    python -m slurm_ray_flow.blocks.server.lead HOST PORT DESCRIPTOR

Started by this host's supervisor, which gives it the socket that it listens at. It logs in as every connection of ours
does: by OpenSSH's configuration, with the host's key checked. There is nobody whom it could ask for a password.
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
from slurm_ray_flow.blocks.tunnel import join
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
                threading.Thread(target=_lead, args=(visitor, far), daemon=True).start()
    except (SlurmRayFlowError, ConnectionLost) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1


def _lead(visitor: socket.socket, far: Any) -> None:
    with visitor, contextlib.suppress(OSError):
        join(visitor, far)


if __name__ == "__main__":
    sys.exit(main())
