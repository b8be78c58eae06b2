"""The settings that our server runs with."""

from __future__ import annotations

import contextlib
import os
import re

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.address import HOST
from slurm_ray_flow.blocks.server.database import local_file
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, encryption_key
from slurm_ray_flow.core.errors import ServerError

LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # SQLite answers five times as many runs when rows are written in batches.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    # In memory, a restart of the server would leave the slots of its limits taken for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
    # By default only events are removed, and the database grows with every run.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # The pages of "V2" tell their maker of each visit, from the browser, and no setting turns that off.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PYTHONUNBUFFERED": "1",
}

DATABASE_VARIABLE = "SRF_DATABASE_URL"
"""The address of a PostgreSQL database, "postgresql://user:password@host/name": given once, it is remembered."""
DATABASE_SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def server_environment(files: ServerFiles, port: int) -> dict[str, str]:
    """The whole environment of the server's process.

    The caller's own PREFECT_ variables stay out: they are meant for flows, and the server outlives its caller.
    So do clusters' passwords: only who logs in needs them. `SRF_DATABASE_URL` names a database other than SQLite.
    Secrets travel here and not as arguments, which every user of the machine can read.
    """
    inherited = {name: value for name, value in os.environ.items() if not _others(name)}
    return {
        **inherited,
        **SETTINGS,
        "PREFECT_HOME": str(files.prefect_home),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(files.user_interface),
        "PREFECT_SERVER_API_AUTH_STRING": auth_string(files),
        "PREFECT_API_AUTH_STRING": auth_string(files),
        "PREFECT_SERVER_ENCRYPTION_KEY": encryption_key(files),
        **_database(files),
    }


def _database(files: ServerFiles) -> dict[str, str]:
    """Where Prefect keeps everything; without an address that is a file of SQLite in its folder."""
    url = os.environ.get(DATABASE_VARIABLE, "")
    if url == "sqlite":
        files.database.unlink(missing_ok=True)
        return {}
    if url:
        url = checked_database(url)
        write_whole(files.database, url.encode())
    else:
        with contextlib.suppress(FileNotFoundError):
            url = files.database.read_text()
    if not url and (file := local_file(files)):
        url = f"sqlite+aiosqlite:///{file}"
    return {DATABASE_SETTING: url} if url else {}


def checked_database(url: str) -> str:
    """The address of a database as Prefect wants it.

    Raises:
        ServerError: it is none of PostgreSQL. The error does not show it, since a password may be in it.
    """
    found = re.fullmatch(r"postgres(?:ql)?(?:\+asyncpg)?(://.+)", url.strip())
    if found is None:
        advice = "write postgresql://user:password@host/name, or sqlite for Prefect's own file"
        raise ServerError(f"{DATABASE_VARIABLE} is no address of a PostgreSQL database", advice=advice)
    return f"postgresql+asyncpg{found[1]}"


def _others(name: str) -> bool:
    return name.startswith("PREFECT_") or name.endswith("_PASSWORD")
