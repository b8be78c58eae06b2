"""A way to the package registry for hosts that have no other way out: an HTTP proxy for TLS connections (CONNECT).

`python -m hosts.registry MARK ADDRESS PORT CLIENT...`: only these clients are served. When home itself goes through a
proxy, what comes is handed on to that one as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from urllib.parse import urlsplit

PORT = 3128
ANSWER = 30.0
"""Seconds that a client has to say what it wants, and the registry to answer the telephone."""
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def environment(address: str) -> dict[str, str]:
    """What a host's environment must say to reach the registry as home does."""
    given = ("PIP_", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "SSL_CERT_")
    same = {name: value for name, value in os.environ.items() if name.startswith(given)}
    proxy = f"http://{address}:{PORT}"
    return {**same, "HTTPS_PROXY": proxy, "https_proxy": proxy}


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end."""
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def connect(request: bytes) -> tuple[Pair, bytes, bytes]:
    """Reach whom a client asks for: the connection, what to say there first, what to answer."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        return await asyncio.open_connection(parts.hostname, parts.port or PORT), request, b""
    method, target, _ = request.decode("latin-1").split("\r\n")[0].split(" ")
    host, _, port = target.rpartition(":")
    if method != "CONNECT":
        raise ValueError(method)
    return await asyncio.open_connection(host, int(port)), b"", b"HTTP/1.1 200 OK\r\n\r\n"


async def serve(clients: set[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection of a client."""
    if writer.get_extra_info("peername")[0] not in clients:
        writer.close()
        return
    try:
        request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER)
        (there, back), first, answer = await asyncio.wait_for(connect(request), ANSWER)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError) as problem:
        writer.write(f"HTTP/1.1 502 {type(problem).__name__}\r\n\r\n".encode())
        writer.close()
        return
    back.write(first)
    writer.write(answer)
    await asyncio.gather(pipe(reader, back), pipe(there, writer))


async def main() -> None:
    """Serve until this process is ended."""
    _, address, port, *clients = sys.argv[1:]
    server = await asyncio.start_server(partial(serve, set(clients)), address, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
