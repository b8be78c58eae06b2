"""The handle of a run, in the process that launched the run or in any other one."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, cast

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.run_facts import ask, launch_alive, status_of
from slurm_ray_flow.core.errors import Cancelled, RunError, UnknownRunError
from slurm_ray_flow.core.outputs import WrittenFile
from slurm_ray_flow.core.run import LeftThere, RunRecord, RunState, shorten
from slurm_ray_flow.core.run_state import RunFacts, run_state
from slurm_ray_flow.tasks.run import error_without_outcome, release, where
from slurm_ray_flow.tasks.run_files import bring, files_of, read_outcome

R = TypeVar("R")

SHORTEST_WAIT, LONGEST_WAIT = 0.02, 0.5
LAUNCH_SECONDS = 10.0
"""How long a launch may take to notice that its run was cancelled."""


class Producer:
    """What may be an argument in place of the value that it will have: a handle, handles, a campaign."""


class Handle(Producer, Generic[R]):
    """A run, by its id alone: a handle may be pickled, printed and kept.

    Attributes:
        run_id: the run's id, the same in Prefect, on the cluster and in `srf`.
    """

    def __init__(self, run_id: str, future: Future[R] | None = None) -> None:
        self.run_id = run_id
        self._future = future

    @classmethod
    def attach(cls, run_id: str) -> Handle[Any]:
        """The handle of a run that any process on this machine started.

        Args:
            run_id: the run's id, or the start of it.

        Raises:
            UnknownRunError: there is no such run, or several.
        """
        return Handle(store.find_record(run_id).run_id)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the value.

        Args:
            timeout: seconds to wait at most; the run goes on after it.

        Raises:
            TimeoutError: the run has not ended by then.
            RunError: the run ended without a value.
            BaseException: the function's own exception.
        """
        __tracebackhide__ = True
        try:
            return self._await_cluster(timeout) if self._future is None else self._await_future(self._future, timeout)
        except BaseException as error:
            shorten(error)
            raise error

    def done(self) -> bool:
        """Whether the run has ended."""
        return self.status().final

    def status(self) -> RunState:
        """The state of the run."""
        return self.status_and_end()[0]

    def status_and_end(self) -> tuple[RunState, float | None]:
        """The state of the run, and its end in seconds since 1970 where that is known.

        A cluster is asked only about a run whose end home does not know.
        """
        record = store.find_record(self.run_id)
        facts = RunFacts(record, launch_alive=launch_alive(record))
        if not record.ended and not (record.waiting and facts.launch_goes_on):
            facts = ask(record, cluster_of(record))
        status = status_of(facts)
        return status.state, status.ended_at

    def logs(self, follow: bool = False) -> Iterator[str]:
        """The lines that the function wrote.

        Args:
            follow: go on until the run ends.
        """
        record, cluster = self._record_and_cluster()
        log = _LogLines(cluster, record.paths.log)
        while True:
            ended = not follow or self.done()
            newest = store.find_record(self.run_id).paths.log
            yield from log.new()
            if newest != log.path:  # another try
                yield from log.last()
                log = _LogLines(cluster, newest)
            elif ended:
                break
            else:
                time.sleep(LONGEST_WAIT / 2)
        yield from log.last()

    def files(self) -> list[WrittenFile]:
        """The files that the function has written in its working directory, as long as the run is kept.

        Returns:
            Of each file its `path` from that directory, its `size` in bytes, and when it was `changed`.

        Raises:
            ConnectionFailed: the cluster does not answer.
        """
        return files_of(*self._record_and_cluster(), warnings.warn)[1]

    def fetch(self, *patterns: str, to: str | os.PathLike[str] | None = None, overwrite: bool = False) -> list[Path]:
        """Bring files that the function has written home, as long as the run is kept.

        A warning says which pattern names nothing, and which file was not brought and why.

        Args:
            patterns: paths, folders and globs, from the function's working directory: "log/*.txt".
            to: the folder to bring them to; None for where `outputs` go.
            overwrite: also over files that were changed here since the launch.

        Returns:
            The files that are here now.

        Raises:
            OptionError: a pattern is empty, absolute, or leads out of the working directory.
            SyncError: the files can't be written here, or the transfer fails.
            ConnectionFailed: the cluster does not answer.
        """
        warn = functools.partial(warnings.warn, stacklevel=4)
        return bring(*self._record_and_cluster(), patterns, Path(to) if to else None, overwrite, warn).paths

    def cancel(self) -> bool:
        """End the run, if it has not ended.

        Returns:
            Whether the run was under way and now is gone.

        Raises:
            RunError: it could not be verified that the run is gone.
        """
        if self.done():
            return False
        record, cluster = self._record_and_cluster()
        if not release(record, cluster):
            raise RunError("it is not sure that the run has ended", where=where(record), advice="try again")
        self._prevent_next_try(cluster)
        return True

    def _prevent_next_try(self, cluster: Cluster) -> None:
        """Write the files by which a launch that waits, for other runs or between two tries, learns of the cancel."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        while time.monotonic() < deadline and _launch_may_try_again(newest := store.find_record(self.run_id)):
            write_whole(store.cancel_request(self.run_id), b"")
            cluster.write(newest.paths.cancel, b"")
            time.sleep(LONGEST_WAIT)

    def _record_and_cluster(self) -> tuple[RunRecord, Cluster]:
        record = store.find_record(self.run_id)
        return record, cluster_of(record)

    def _await_future(self, future: Future[R], timeout: float | None) -> R:
        """The value of a run that this process has launched."""
        try:
            value = future.result(timeout)
            if isinstance(value, LeftThere):
                value = cast(R, value.value(functools.partial(self._await_cluster, None)))
            return value
        except FutureTimeoutError:
            if not future.done():
                raise self._timeout_error(timeout) from None
            raise

    def _has_value_here(self) -> bool:
        """Whether the run has ended and its value is in this process, so that `result` asks no cluster."""
        if self._future is None or not self._future.done():
            return False
        value: Any = None if self._future.exception() else self._future.result()
        return not isinstance(value, LeftThere) or value.is_here

    def _await_cluster(self, timeout: float | None) -> R:
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = SHORTEST_WAIT
        while True:
            record, cluster = self._record_and_cluster()
            status = run_state(ask(record, cluster))
            if status.state.final:
                if status.call_end is None:
                    raise error_without_outcome(record, status)
                value: R = read_outcome(record, status.call_end, cluster).unwrap()
                return value
            if deadline is not None and time.monotonic() >= deadline:
                raise self._timeout_error(timeout)
            time.sleep(wait)
            wait = min(wait * 1.3, LONGEST_WAIT)

    def _timeout_error(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"run {self.run_id[:8]} has not ended within {timeout} s; it goes on")

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, (self.run_id,)

    def __repr__(self) -> str:
        return f"Handle({self.run_id!r})"


class _LogLines:
    """A log file on a cluster, read line by line.

    Attributes:
        path: the file.
    """

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path = cluster, path
        self._offset, self._unfinished = 0, b""

    def new(self) -> Iterator[str]:
        """The complete lines since the last call."""
        while data := self._cluster.read(self.path, self._offset):
            self._offset += len(data)
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)

    def last(self) -> Iterator[str]:
        """A last line without an end."""
        if self._unfinished:
            yield self._unfinished.decode(errors="replace")


def attach(run_id: str | None = None) -> Handle[Any]:
    """The handle of a run that any process on this machine started, such as a notebook's kernel that is gone.

    Args:
        run_id: the run's id, or the start of it; without one, the run that was started last.

    Raises:
        UnknownRunError: there is no such run, or several.
    """
    if run_id is not None:
        return Handle.attach(run_id)
    newest = max(store.records(), key=lambda record: record.created, default=None)
    if newest is None:
        raise UnknownRunError("no run was started from this machine", advice="call a decorated function")
    return Handle(newest.run_id)


def _launch_may_try_again(record: RunRecord) -> bool:
    """Whether the launch may try again, or has not yet noted that it does not."""
    has_ended = record.ended or record.failure
    return not has_ended and RunFacts(record, launch_alive=launch_alive(record)).launch_goes_on


__all__ = ["Cancelled", "Handle", "attach"]
