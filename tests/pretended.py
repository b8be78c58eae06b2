"""Pretended SSH servers on loopback, by paramiko: for what a real one never does, or to be quick."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import paramiko

from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint

logging.getLogger("paramiko.transport").setLevel(logging.CRITICAL)  # the servers' own; visitors leave them abruptly
LIMITS = ConnectionTimeouts(connect=2, first=1, again=1, quiet=0.5, patience=1, begin=2)


@contextlib.contextmanager
def listening(serve):
    """A server on loopback that treats each visitor in a thread; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = listener.accept()
                    threading.Thread(target=treat, args=(visitor,), daemon=True).start()

        def treat(visitor):
            with visitor, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                serve(visitor)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def endpoint(port, known_hosts=()):
    return Endpoint("hostile", "127.0.0.1", port, "alice", f"[127.0.0.1]:{port}", (), False, True, None, known_hosts)


@contextlib.contextmanager
def showing(key):
    """A server that shows this host key; gives its port."""

    def serve(visitor):
        with contextlib.closing(paramiko.Transport(visitor)) as transport:
            transport.add_server_key(key)
            transport.start_server(server=paramiko.ServerInterface())
            transport.join(20)

    with listening(serve) as port:
        yield port
