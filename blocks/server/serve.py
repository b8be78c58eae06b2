"""The process of Prefect's server: `python -m slurm_ray_flow.blocks.server.serve`.

Two properties of Prefect's use of SQLite have no settings, and make many launches at once fail. The server answers up
to 100 requests at once with 15 database connections: while 15 writers wait for the lock, its holder may need one more
connection, and all wait until they fail. And a transaction that reads first can't become a writer once another one has
written, and fails at once; so each begins as a writer. Measured: 20 launches at once took 135 s or failed, now 12 s.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import uvicorn
from prefect.cli import app
from prefect.server.database import configurations
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction, create_async_engine

from slurm_ray_flow.blocks.server.settings import DATABASE_SETTING

MORE_CONNECTIONS = 200
"""The most further database connections: twice as many as requests, since the server's services need some."""
SQLITE = configurations.AioSqliteConfiguration
_begin = getattr(SQLITE, "begin_transaction", None)


def begin_as_writer(
    database: configurations.AioSqliteConfiguration,
    session: AsyncSession,
    with_for_update: bool = False,  # noqa: ARG001 - always true here
) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
    """Begin a transaction as a writer from its start."""
    assert _begin is not None
    transaction: AbstractAsyncContextManager[AsyncSessionTransaction] = _begin(database, session, with_for_update=True)
    return transaction


def main() -> None:
    """Run the server at the socket whose descriptor is the argument."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    original_run = uvicorn.Server.run

    def run_there(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        original_run(server, [*(sockets or ()), listener])

    uvicorn.Server.run = run_there  # type: ignore[method-assign,assignment]
    if os.environ.get(DATABASE_SETTING, "").startswith("postgresql"):
        _serve()
        return
    changes: list[tuple[Any, str, Any]] = [
        (configurations, "create_async_engine", partial(create_async_engine, max_overflow=MORE_CONNECTIONS)),
        (SQLITE, "begin_transaction", begin_as_writer),
    ]
    for holder, name, value in changes:
        if hasattr(holder, name):
            setattr(holder, name, value)
        else:  # slower with many launches at once is better than no server
            sys.stderr.write(f"This Prefect has no {name}: many launches at once may wait for each other.\n")
    _serve()


def _serve() -> None:
    sys.argv[1:] = ["server", "start", "--port", "0"]  # it would find that its port is taken, which is by us
    app()


if __name__ == "__main__":
    main()
