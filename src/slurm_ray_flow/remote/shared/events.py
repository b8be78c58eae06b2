"""The folders of a run and its events, as the decision record "The remote program" describes them."""

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
LAST = ("call_ended", "released")
"""What nobody would write again after a loss of power."""


class RunFiles:
    """Names every file of one run.

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
        self._ended = False

    def _file(self, name: str) -> str:
        return os.path.join(self.folder, FILES[name])

    def read_spec(self) -> Dict[str, Any]:
        """The content of spec.json.

        Raises:
            OSError: there is none.
            ValueError: it is not JSON, or of another format.
        """
        with open(self.spec, encoding="utf-8") as file:
            spec: Dict[str, Any] = json.load(file)
        if spec.get("format") != 1:
            raise ValueError("{}: format {!r} is not known here".format(self.spec, spec.get("format")))
        return spec

    def record(self, event: str, **fields: Any) -> None:
        """Append one event; if the disk is full, the reserve is given up for it. The last ones are on the disk then.

        Raises:
            OSError: it can't be written even so.
        """
        line = {"event": event, "time": time.time(), "host": socket.gethostname(), **fields}
        data = json.dumps(line).encode() + b"\n"
        try:
            self._append(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.make_room()
            self._append(data)
        if event in LAST:
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
        """Occupy a little of the disk, so that the last event can be written when it is full."""
        with contextlib.suppress(OSError), open(self.reserve, "wb") as file:
            file.write(os.urandom(RESERVE_SIZE))

    def make_room(self) -> None:
        """Give the reserve back to the disk."""
        with contextlib.suppress(OSError):
            os.unlink(self.reserve)

    def recorded(self) -> List[Dict[str, Any]]:
        """All events so far; a line that is not whole is left out."""
        try:
            with open(self.events, "rb") as file:
                return parse_events(file.read())[0]
        except FileNotFoundError:
            return []

    def has_ended(self) -> bool:
        """Whether `call_ended` stands in the events; once it does, it stays."""
        self._ended = self._ended or find_event(self.recorded(), "call_ended") is not None
        return self._ended


def tail(path: str, size: int = 2000) -> str:
    """The end of a text file, or an empty string if it can't be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


PATIENCE = 30.0
_PAUSE = 0.02


def claim(run: RunFiles) -> bool:
    """Make this process the run's head, for as long as it lives. False if the run has, or had, another one.

    Waits until that other one has recorded that it lives, so that whoever started this one can rely on the events.

    Raises:
        TimeoutError: another process claims the run and does not say that it lives.
    """
    path = os.path.join(run.folder, "claim")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + PATIENCE
    while True:
        free = _lock(descriptor, path)
        if find_event(run.recorded(), "allocated"):
            return False
        if free:
            return True
        if time.monotonic() > deadline:
            raise TimeoutError("another head claims the run and does not start; see head.log")
        time.sleep(_PAUSE)


def _lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS and _is_first(path + "ed")
    return True


def _is_first(path: str) -> bool:
    """Whether this process makes a file that nobody has made: it stands for a lock where there is none."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
