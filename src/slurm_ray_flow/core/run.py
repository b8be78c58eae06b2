"""A run: its id, the files of its folder, what home remembers of it, and what its events say."""

from __future__ import annotations

import dataclasses
import json
import linecache
import re
import time
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from slurm_ray_flow.core.errors import CAUSES, Crashed, RunError, SlurmRayFlowError
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.remote.shared.protocol import FILES, TRY, find_event, parse_events, parse_json


@dataclasses.dataclass(frozen=True)
class Liveness:
    """Whether more can come from a head.

    Attributes:
        alive: it lives, or is still to come: it waits in a scheduler's queue.
        waiting: what it waits for, in words for people; "" where it has begun, and where nobody knows.
        cause: why it is gone, one of the words of `CAUSES`, where the cluster can tell.
        message: what the cluster says of that.
    """

    alive: bool
    waiting: str = ""
    cause: str = ""
    message: str = ""


ALIVE, GONE = Liveness(alive=True), Liveness(alive=False)


__all__ = ["Event", "RunPaths", "RunRecord", "RunState", "error_of", "find_event", "parse_events"]

NOT_YET = 60.0
"""Seconds that a head may take from its launch until it says that it lives."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The names of all files of one run, under a cluster's root (docs/decisions/0002)."""

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
        """Where this run's call is announced to the head of `allocation`."""
        return self.root / "runs" / allocation / "inbox" / self.run_id


class RunState(str, Enum):
    """Where a run is on its way.

    Attributes:
        PREPARING: home looks after files and packages; the cluster knows nothing of it yet.
        WAITING: it waits for its turn, in Slurm's queue or for the lock of a shared server.
        STARTING: it has its turn; Ray starts, if the function uses it.
        RUNNING: the function is called.
        SUCCEEDED: it has a value.
        FAILED: it has ended with an exception, its own or one of ours.
        CANCELLED: somebody ended it.
        LOST: the program that ran it is gone and left no word.
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
    """What home remembers of a run, so that any process can find it again.

    Attributes:
        run_id: the id of the Prefect flow run, which is the run's id everywhere.
        cluster: the cluster's name.
        kind: the slug of the cluster's block type.
        root: the cluster's root folder.
        attempt: the id of the newest try's folder under `runs/`; the run's id itself for the first one.
        allocation: the id of the allocation whose head takes the call; differs from `attempt` on a warm cluster.
        function: module and name of the function, for people.
        pid, started, boot_id: the launching process; together they tell whether it lives.
        created: seconds since 1970.
        keep: no clean-up removes the run.
        failure, failure_cause: why the launch ended before the cluster had the call; "" where it did not.
        waiting: what the launch waits for now, before the cluster has the run; "" for nothing.
        again: why it was tried again last, and what was changed; "" where it was not.
        usage: what its call used, against what it was given; None where that is not known.
        warm: its allocation may still wait for a next call.
        handed_over: the cluster may have its newest try, and no launch has seen to the end of that.
        handed_over_at: since when it may have it, in seconds since 1970; 0 where it never had.
        home_folder: where files of the run go at home; "" where that is not known.
        ended, ended_at: the state in which the run has ended, and when; "" where home does not know of an end.
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
        """Read a record; fields of later versions are passed over.

        Raises:
            ValueError: it is none.
        """
        record = read_record(cls, parse_json(text))
        RunState(record.ended or "lost")
        return record

    @property
    def paths(self) -> RunPaths:
        return RunPaths(PurePosixPath(self.root), self.attempt)

    def is_new(self, now: float) -> bool:
        """Whether the head of its newest try may be still to come: the cluster got it a moment ago, or gets it now."""
        return now - max(self.created, self.handed_over_at) < NOT_YET

    @property
    def unsent(self) -> bool:
        """Whether no cluster can have it, where its launch is gone: that one ended on the way, or waited in line."""
        return not (self.handed_over or self.failure) and self.attempt == self.run_id and self.ended in {"", "lost"}

    @property
    def tries(self) -> int:
        """How many tries it has had; where it gives back an earlier run's value, those of that one do not count."""
        return count_tries(self.run_id, self.attempt)


def count_tries(run_id: str, attempt: str) -> int:
    """How many tries a run has had whose newest one is this; another run's are not counted."""
    own, _, number = attempt.partition(".")
    return int(number) if own == run_id and number.isdigit() else 1


Event = dict[str, Any]


_ADVICE = {
    "out_of_memory": 'ask for more with memory=...; on_out_of_memory="double" does that by itself',
    "time_limit": 'ask for more with time_limit=...; on_time_limit="double" does that by itself',
    "environment": "read the head's log; environment='isolated' builds the environment anew",
    "cancelled": "start the function again when you want it",
    "lost": "start it again; with retries=1 that happens by itself",
    "crashed": "read the end of the log: the process ended before it could say why",
    "result": "return plain data, or write large things to a file and return its path",
}


def error_of(cause: str, message: str, where: str) -> RunError:
    """The exception that stands for a cause, with what to try."""
    kind = CAUSES.get(cause, Crashed)
    what, _, advice = message.partition(TRY)  # the head knows better what would help, where it says so
    return kind(what, where=where, advice=advice or _ADVICE.get(cause, ""))


NOTE = "The traceback on the cluster:"
_FRAME = re.compile(r'  File "(.+)", line (\d+), in ')


@dataclasses.dataclass(frozen=True)
class CallEnd:
    """What the last event of a call says.

    Attributes:
        outcome: "value", "exception", or None where there is no outcome file.
        cause: why there is no value; None for a value.
        message: what people read.
        sha256, size: of the outcome file, in bytes; None where there is none.
        files: what the function has written in its working directory: count, bytes, and the largest; None for nothing.
        usage: what the call used of what it was given, as the cluster tells it; None where it does not.
    """

    outcome: str | None
    cause: str | None = None
    message: str = ""
    sha256: str | None = None
    size: int | None = None
    usage: Any = None
    files: Any = None

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
        """How many bytes of an outcome file may come home: those that the event states."""
        return self.size if isinstance(self.size, int) else 0


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
    """Whether its note has the traceback that it had there."""
    return any(str(note).startswith(NOTE) for note in getattr(exception, "__notes__", []))


def with_sources(traceback: str) -> str:
    """The traceback with the source lines that only home has: of a notebook's cells, of a script that stayed here."""
    lines = traceback.split("\n")
    told: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        told.append(line)
        frame = _FRAME.match(line)
        if frame and not after.startswith("    ") and (source := linecache.getline(frame[1], int(frame[2])).strip()):
            told.append(f"    {source}")
    return "\n".join(told)


def shorten(error: BaseException) -> None:
    """Remove the frames of an error whose text is enough, before it is raised anew."""
    if isinstance(error, KeyboardInterrupt | SlurmRayFlowError) or is_from_the_cluster(error):
        error.__traceback__ = None
