"""A run: the files of its folder, its record at home, the end of its call, and its outcome."""

from __future__ import annotations

import dataclasses
import json
import linecache
import re
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from slurm_ray_flow.core.errors import CAUSES, Crashed, RunError, SlurmRayFlowError
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.remote.shared.protocol import FILES, TRY, find_event, parse_events, parse_json


@dataclasses.dataclass(frozen=True)
class Liveness:
    """Whether a head lives.

    Attributes:
        alive: the head lives, or will start: its job waits in a scheduler's queue.
        waiting: the reason of its wait, in words for people; "" after the start, and for an unknown reason.
        cause: why the head is gone, one of the words of `CAUSES`, if the cluster knows.
        message: the cluster's message about the cause.
    """

    alive: bool
    waiting: str = ""
    cause: str = ""
    message: str = ""


ALIVE, GONE = Liveness(alive=True), Liveness(alive=False)


__all__ = ["Event", "RunPaths", "RunRecord", "RunState", "error_of", "find_event", "parse_events"]

NOT_YET = 60.0
"""Seconds that a head may take from its start to its first event."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The paths of all files of one run, under a cluster's root (docs/decisions/0002)."""

    root: PurePosixPath
    run_id: str

    @property
    def folder(self) -> PurePosixPath:
        return self.root / "runs" / self.run_id

    def __getattr__(self, name: str) -> PurePosixPath:
        if name in FILES:
            return self.folder / FILES[name]
        raise AttributeError(name)

    def inbox(self, allocation: str) -> PurePosixPath:
        """The file that announces this run's call to the head of `allocation`."""
        return self.root / "runs" / allocation / "inbox" / self.run_id


class RunState(str, Enum):
    """The state of a run.

    Attributes:
        PREPARING: home prepares files and packages; the run is not submitted yet.
        WAITING: it waits in a scheduler's queue, or for the lock of a shared server.
        STARTING: its allocation has begun; Ray starts, if the function uses it.
        RUNNING: the function runs.
        SUCCEEDED: it has a value.
        FAILED: it has ended with an exception of the function, or with an error of this package.
        CANCELLED: somebody has cancelled it.
        LOST: the head is gone, and has left no outcome.
    """

    PREPARING = "preparing"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether it has ended: the last four are final."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The record of a run at home, by which any process finds the run.

    Attributes:
        run_id: the id of the Prefect flow run, which is the run's id everywhere.
        cluster: the cluster's name.
        kind: the slug of the cluster's block type.
        root: the cluster's root folder.
        attempt: the id of the newest try's folder under `runs/`; the first try has the run's id itself.
        allocation: the id of the allocation whose head takes the call; differs from `attempt` on a warm cluster.
        function: module and name of the function, for people.
        pid, started, boot_id: the identity of the launching process.
        created: seconds since 1970.
        keep: no clean-up removes the run.
        failure, failure_cause: why the launch failed before the submission; "" if it did not.
        waiting: the reason of a wait before the submission; "" for none.
        again: the reason of the last retry, and the changes for it; "" without a retry.
        usage: the resources that the call used, and those that it was given; None where that is not known.
        warm: the allocation may still wait for a next call.
        handed_over: the newest try may be submitted, and its launch has not yet noted its end.
        handed_over_at: the time of that submission, in seconds since 1970; 0 for none.
        home_folder: the folder at home for the run's files; "" where that is not known.
        ended, ended_at: the final state, and when the run ended; "" where home does not know of an end.
    """

    run_id: str
    flow_run_id: str
    cluster: str
    kind: str
    root: str
    attempt: str
    allocation: str
    function: str
    pid: int
    started: int | None
    boot_id: str | None
    created: float = dataclasses.field(default_factory=time.time)
    gpus: int = 0
    keep: bool = False
    failure: str = ""
    failure_cause: str = ""
    waiting: str = ""
    again: str = ""
    usage: dict[str, Any] | None = None
    warm: bool = False
    handed_over: bool = False
    handed_over_at: float = 0.0
    home_folder: str = ""
    ended: str = ""
    ended_at: float = 0.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read a record; fields of later versions are ignored.

        Raises:
            ValueError: the text is no record.
        """
        record = read_record(cls, parse_json(text))
        RunState(record.ended or "lost")
        return record

    @property
    def paths(self) -> RunPaths:
        return RunPaths(PurePosixPath(self.root), self.attempt)

    def is_new(self, now: float) -> bool:
        """Whether the head of the newest try may not have started yet, because the submission was a moment ago."""
        return now - max(self.created, self.handed_over_at) < NOT_YET

    @property
    def unsent(self) -> bool:
        """Whether a run whose launch is gone was never submitted."""
        return not (self.handed_over or self.failure) and self.attempt == self.run_id and self.ended in {"", "lost"}

    @property
    def tries(self) -> int:
        """The number of the run's own tries; tries of an earlier run whose value it gives back do not count."""
        return count_tries(self.run_id, self.attempt)


def count_tries(run_id: str, attempt: str) -> int:
    """The number of tries up to this one; tries of another run are not counted."""
    own_id, _, number = attempt.partition(".")
    return int(number) if own_id == run_id and number.isdigit() else 1


Event = dict[str, Any]


_ADVICE = {
    "out_of_memory": 'ask for more with memory=...; on_out_of_memory="double" does that by itself',
    "time_limit": 'ask for more with time_limit=...; on_time_limit="double" does that by itself',
    "environment": "read the head's log; environment='isolated' builds the environment anew",
    "cancelled": "start the function again when you want it",
    "lost": "start it again; with retries=1 that happens by itself",
    "crashed": "read the end of the log: the process ended before it could say why",
    "result": "return plain data, or write large things to a file and return its path",
    "input": "start the run that it names again, then this one",
}


def error_of(cause: str, message: str, where: str) -> RunError:
    """The error of a cause, with advice."""
    kind = CAUSES.get(cause, Crashed)
    what, _, advice = message.partition(TRY)  # advice of the head goes before the general one
    return kind(what, where=where, advice=advice or _ADVICE.get(cause, ""))


NOTE = "The traceback on the cluster:"
_FRAME = re.compile(r'  File "(.+)", line (\d+), in ')


@dataclasses.dataclass(frozen=True)
class CallEnd:
    """The end of a call, from its event `call_ended`.

    Attributes:
        outcome: "value", "exception", or None without an outcome file.
        cause: why there is no value; None for a value.
        message: the cause in words for people.
        sha256, size: digest and bytes of the outcome file; None without one.
        files: count, bytes and largest of the files that the function has written in its working directory, or None.
        usage: the resources that the call used, and those that it was given; None where the cluster does not tell.
        modules: the names of the modules of the value's types.
    """

    outcome: str | None
    cause: str | None = None
    message: str = ""
    sha256: str | None = None
    size: int | None = None
    usage: Any = None
    files: Any = None
    modules: Any = None

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> CallEnd:
        return cls(
            **{
                field.name: event.get(field.name) or None
                for field in dataclasses.fields(cls)
                if field.name != "message"
            },
            message=encodable(event.get("message") or ""),
        )

    @property
    def most(self) -> int:
        """The most bytes of an outcome file that may come home: the size in the event."""
        return self.size if isinstance(self.size, int) else 0


class LeftThere:
    """In the place of a large value that is still on its cluster. Whoever asks for the value first brings it home."""

    def __init__(self) -> None:
        self._lock, self._values = threading.Lock(), list[Any]()

    @property
    def is_here(self) -> bool:
        """Whether the value has been brought home."""
        return bool(self._values)

    def value(self, bring: Callable[[], Any]) -> Any:
        """The value, which `bring` brings home the first time."""
        with self._lock:
            if not self._values:
                self._values.append(bring())
            return self._values[0]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A value, or the function's own exception with the traceback it had on the cluster."""

    value: Any = None
    exception: BaseException | None = None
    traceback: str = ""

    def unwrap(self) -> Any:
        """The value.

        Raises:
            BaseException: the function's own exception, with the remote traceback as a note.
        """
        if self.exception is None:
            return self.value
        raise with_note(self.exception, self.traceback)


def with_note(exception: BaseException, traceback: str) -> BaseException:
    """The exception with the remote traceback as a note (PEP 678; Python 3.10 keeps the note but shows none)."""
    note = f"{NOTE}\n\n{with_sources(traceback.rstrip())}" if traceback else ""
    notes = list(getattr(exception, "__notes__", []))
    if note and note not in notes:
        exception.__notes__ = [*notes, note]  # type: ignore[attr-defined]
    return exception


def is_from_the_cluster(exception: BaseException) -> bool:
    """Whether the exception has a remote traceback in a note."""
    return any(str(note).startswith(NOTE) for note in getattr(exception, "__notes__", []))


def with_sources(traceback: str) -> str:
    """The traceback with the source lines that only home has: of notebook cells, and of a script that was not sent."""
    lines = traceback.split("\n")
    shown: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        shown.append(line)
        frame = _FRAME.match(line)
        if frame and not after.startswith("    ") and (source := linecache.getline(frame[1], int(frame[2])).strip()):
            shown.append(f"    {source}")
    return "\n".join(shown)


def shorten(error: BaseException) -> None:
    """Remove the frames of an error whose text is enough, before it is raised again."""
    if isinstance(error, KeyboardInterrupt | SlurmRayFlowError) or is_from_the_cluster(error):
        error.__traceback__ = None
