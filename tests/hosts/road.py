"""A road to a host that is longer than the real one, or worse: this end of hosts/relay.py."""

from __future__ import annotations

import json
import secrets
import signal
import socket
from dataclasses import dataclass
from typing import Any

from hosts.host import Host
from hosts.machine import LabError, background, until

TIMEOUT = 10.0


@dataclass(frozen=True)
class Counts:
    """What has passed over a road. `turns` are round trips as the client waits for them, without the TCP handshake."""

    connections: int
    sent: int
    received: int
    turns: int


class Road:
    """Another way to a host's port 22, through a process that delays and counts. Ends with the lab, or by `close`."""

    def __init__(self, host: Host, listen: str, delay: float) -> None:
        self.host, self.address = host, listen
        own = host.place.folder / f"road-{host.name}-{secrets.token_hex(3)}"
        self._control, log = own.with_suffix(".sock"), own.with_suffix(".log")
        self.ssh_config, self.known_hosts = own.with_suffix(".ssh_config"), own.with_suffix(".known_hosts")
        target = f"{host.address}:22"
        self._process = background("hosts.relay", host.place, str(self._control), listen, target, str(delay), log=log)
        until(lambda: self._answers() or self._process.poll() is not None, "a relay answers")
        if self._process.poll() is not None:
            raise LabError(f"the relay to {host.name} ended: {log.read_text()}")
        self.port = int(self._tell()["port"])

    def counts(self, *, reset: bool = False) -> Counts:
        """What has passed so far; with `reset` it counts from nothing from here on."""
        answer = self._tell(reset=reset)
        del answer["port"]
        return Counts(**answer)

    def set_delay(self, seconds: float) -> None:
        """Make the road as long as this, each way."""
        self._tell(delay=seconds)

    def stall(self, seconds: float | None = None) -> None:
        """Let nothing through, for so long or until `resume`; connections stay."""
        self._tell(stalled=True, **({} if seconds is None else {"seconds": seconds}))

    def resume(self) -> None:
        """Let through what has waited."""
        self._tell(stalled=False)

    def cut(self) -> None:
        """Break all connections at both ends; new ones may be made."""
        self._tell(cut=True)

    def close(self) -> None:
        """End the road and its connections."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(TIMEOUT)
        for path in (self._control, self.known_hosts, self.ssh_config):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Road:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            return bool(self._tell())
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def _tell(self, **order: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(TIMEOUT)
            control.connect(str(self._control))
            control.sendall(json.dumps(order).encode() + b"\n")
            with control.makefile() as answers:
                return dict(json.loads(answers.readline()))
