"""A process between a client and a host that makes the road between them long, or bad.

`python -m hosts.relay MARK CONTROL LISTEN TARGET DELAY`: TCP only. What it is told and asked comes as lines of JSON
over the Unix socket CONTROL (hosts/road.py is the other end). Every byte is `DELAY` seconds on its way, each way, and
so is the opening of a connection, which costs a round trip; there is no limit to the bandwidth.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

ON_THE_WAY = 64 * 2**20
"""Bytes that one direction of a connection holds before it reads no more."""


@dataclass
class Counts:
    """What has passed since the last reset. A turn is: the client speaks after it has heard the other side."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    turns: int = 0


@dataclass
class State:
    """What holds for all connections of this relay."""

    delay: float
    stalled: bool = False
    counts: Counts = field(default_factory=Counts)
    ends: set[End] = field(default_factory=set)

    def stall(self, stalled: bool) -> None:
        """Let nothing through, or go on where it stood."""
        self.stalled = stalled
        for end in self.ends:
            end.deliver()


class End(asyncio.Protocol):
    """One end of a connection; what it reads goes to the other end, later."""

    def __init__(self, state: State, home: bool) -> None:
        self.state, self.home = state, home
        self.queue: deque[tuple[float, bytes]] = deque()
        self.waiting = 0
        self.timer: asyncio.TimerHandle | None = None
        self.heard = True
        self.paused = False
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection came (at home's end) or stands (at the host's)."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=2**20)
        self.state.ends.add(self)

    def data_received(self, data: bytes) -> None:
        """Put what came on its way."""
        if self.home:
            self.state.counts.turns += self.heard
            self.heard = False
            self.state.counts.sent += len(data)
        self.queue.append((time.monotonic() + self.state.delay, data))
        self.waiting += len(data)
        self.throttle()
        self.deliver()

    def eof_received(self) -> bool:
        """The end of what one side says is on its way, too; the other side may go on."""
        self.queue.append((time.monotonic() + self.state.delay, b""))
        self.deliver()
        return True

    def deliver(self) -> None:
        """Hand over what has arrived, and come back for the next."""
        if self.timer:
            self.timer.cancel()
            self.timer = None
        if not self.other or not self.other.transport or self.state.stalled or self.other.paused:
            return
        while self.queue and self.queue[0][0] <= time.monotonic():
            self.hand_over(self.other, self.queue.popleft()[1])
        self.throttle()
        if self.queue:
            self.timer = asyncio.get_running_loop().call_at(self.queue[0][0], self.deliver)

    def hand_over(self, other: End, data: bytes) -> None:
        """Give bytes, or the end of them, to the other side."""
        assert other.transport
        if other.transport.is_closing():
            return
        if not data:
            other.transport.write_eof()
            return
        self.waiting -= len(data)
        if other.home:
            other.heard = True
            self.state.counts.received += len(data)
        other.transport.write(data)

    def throttle(self) -> None:
        """Read no more while too much is on its way."""
        if self.transport and not self.transport.is_closing():
            (self.transport.pause_reading if self.waiting > ON_THE_WAY else self.transport.resume_reading)()

    def pause_writing(self) -> None:
        """This side does not take more for now."""
        self.paused = True

    def resume_writing(self) -> None:
        """This side takes more again."""
        self.paused = False
        if self.other:
            self.other.deliver()

    def connection_lost(self, problem: Exception | None) -> None:
        """Close the other side, too."""
        self.state.ends.discard(self)
        if self.other and self.other.transport:
            self.other.transport.close() if problem is None else self.other.transport.abort()


async def open_road(state: State, target: tuple[str, int], home: End) -> None:
    """Connect to the host for a connection that came."""
    await asyncio.sleep(2 * state.delay)
    end = End(state, home=False)
    end.other = home
    try:
        await asyncio.get_running_loop().create_connection(lambda: end, *target)
    except OSError:
        assert home.transport
        home.transport.abort()
        return
    home.other = end
    home.deliver()


def accept(state: State, target: tuple[str, int], tasks: set[asyncio.Task[None]]) -> End:
    """The end for a connection that comes."""
    end = End(state, home=True)
    state.counts.connections += 1
    task = asyncio.get_running_loop().create_task(open_road(state, target, end))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return end


def obey(state: State, port: int, order: dict[str, Any]) -> dict[str, Any]:
    """Do what a line of JSON says; answer with the counts."""
    if "delay" in order:
        state.delay = float(order["delay"])
    if "stalled" in order:
        state.stall(bool(order["stalled"]))
    if "seconds" in order:
        asyncio.get_running_loop().call_later(float(order["seconds"]), state.stall, False)
    if order.get("cut"):
        for end in list(state.ends):
            assert end.transport
            end.transport.abort()
    answer = {"port": port, **asdict(state.counts)}
    if order.get("reset"):
        state.counts = Counts()
    return answer


async def controlled(state: State, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the lines of one control connection."""
    while line := await reader.readline():
        writer.write(json.dumps(obey(state, port, json.loads(line))).encode() + b"\n")
        await writer.drain()
    writer.close()


async def main() -> None:
    """Listen on any free port of an address until this process is ended."""
    _, control, listen, target, delay = sys.argv[1:]
    host, _, port = target.rpartition(":")
    state, tasks = State(float(delay)), set[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: accept(state, (host, int(port)), tasks), listen, 0)
    own = server.sockets[0].getsockname()[1]
    await asyncio.start_unix_server(partial(controlled, state, own), control)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
