"""The files of a run and its events; the decision record "The remote program" describes them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from typing import Any, Dict, List

from slurm_ray_flow.remote.shared.files import NO_LOCKS, sync
from slurm_ray_flow.remote.shared.protocol import FILES, find_event, parse_events

RESERVE_SIZE = 64 << 10
FINAL_EVENTS = ("call_ended", "released")
"""Events that no process would write again after a loss of power."""


class RunFiles:
    """The paths of a run's files, and its events.

    Args:
        root: the root folder on the cluster.
        run_id: the run.
    """

    def __init__(self, root: str, run_id: str) -> None:
        self.id, self.root = run_id, os.path.abspath(root)
        self.folder = os.path.join(self.root, "runs", run_id)
        self.spec, self.events = self._file("spec"), self._file("events")
        self.log, self.head_log = self._file("log"), self._file("head_log")
        self.function, self.arguments = self._file("function"), self._file("arguments")
        self.outcome, self.inbox = self._file("outcome"), self._file("inbox")
        self.cancel, self.reserve = self._file("cancel"), self._file("reserve")
        self.script, self.warning = self._file("script"), self._file("warning")
        self.dashboard, self.items = self._file("dashboard"), self._file("items")
        self.values = self._file("values")
        self._ended = False

    def _file(self, name: str) -> str:
        return os.path.join(self.folder, FILES[name])

    def read_spec(self) -> Dict[str, Any]:
        """The content of spec.json.

        Raises:
            OSError: the file can't be read.
            ValueError: it is not JSON, or has another format.
        """
        with open(self.spec, encoding="utf-8") as file:
            spec: Dict[str, Any] = json.load(file)
        if spec.get("format") != 1:
            raise ValueError("{}: format {!r} is not known here".format(self.spec, spec.get("format")))
        return spec

    def record(self, event: str, **fields: Any) -> None:
        """Append one event; a full disk gets the reserve back for it. A final event is synced to the disk.

        Raises:
            OSError: the event can't be written even so.
        """
        line = {"event": event, "time": time.time(), "host": socket.gethostname(), **fields}
        data = json.dumps(line).encode() + b"\n"
        try:
            self._append(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.free_reserve()
            self._append(data)
        if event in FINAL_EVENTS:
            sync(self.folder, [self.events])

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.events)
        finally:
            os.close(descriptor)

    def keep_reserve(self) -> None:
        """Write the reserve file, whose disk space is for the last event when the disk is full."""
        with contextlib.suppress(OSError), open(self.reserve, "wb") as file:
            file.write(os.urandom(RESERVE_SIZE))

    def free_reserve(self) -> None:
        """Remove the reserve file, which frees its disk space."""
        with contextlib.suppress(OSError):
            os.unlink(self.reserve)

    def recorded(self) -> List[Dict[str, Any]]:
        """All events so far, without an incomplete last line."""
        try:
            with open(self.events, "rb") as file:
                return parse_events(file.read())[0]
        except FileNotFoundError:
            return []

    def has_ended(self) -> bool:
        """Whether the call has ended, by the event `call_ended`."""
        self._ended = self._ended or find_event(self.recorded(), "call_ended") is not None
        return self._ended


def tail(path: str, size: int = 2000) -> str:
    """The last bytes of a text file; "" if it can't be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


CLAIM_SECONDS = 30.0
_CLAIM_PAUSE = 0.02


def claim(run: RunFiles) -> bool:
    """Make this process the run's head, for as long as it lives. False if the run has, or had, another head.

    Before it returns False, the other head has recorded `allocated`, so that callers can rely on the events.

    Raises:
        TimeoutError: another process has claimed the run, and does not record `allocated`.
    """
    path = os.path.join(run.folder, "claim")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + CLAIM_SECONDS
    while True:
        locked = _lock(descriptor, path)
        if find_event(run.recorded(), "allocated"):
            return False
        if locked:
            return True
        if time.monotonic() > deadline:
            raise TimeoutError("another head claims the run and does not start; see head.log")
        time.sleep(_CLAIM_PAUSE)


def _lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS and _is_first(path + "ed")
    return True


def _is_first(path: str) -> bool:
    """Whether this process is the first to create the file, which replaces a lock on file systems without locks."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
