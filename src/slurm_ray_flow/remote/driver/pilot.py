"""A pilot: a call that takes bundles of items while it runs, instead of running one function once.

This process hands chunks of items to worker processes, and never imports the user's code: whatever a module or an item
does to its process costs that process alone. With Ray, items run in the driver's own process, one at a time: Ray gives
each process of its own a job of its own, so that there Ray's tasks are what runs in parallel.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

from slurm_ray_flow.remote.driver import execution, pilot_worker
from slurm_ray_flow.remote.driver.item_queue import ItemQueue
from slurm_ray_flow.remote.driver.items import ItemSink
from slurm_ray_flow.remote.driver.pilot_worker import ItemRunner, Memory
from slurm_ray_flow.remote.driver.worker_processes import PilotFailed, WorkerProcesses
from slurm_ray_flow.remote.shared import end_warning, script_end
from slurm_ray_flow.remote.shared.events import RunFiles

SHORT_PAUSE, LONG_PAUSE = 0.03, 0.1
"""Seconds between two looks for bundles, and between two looks at workers where no bundle is wanted."""
SYNC_SECONDS = 0.5
END_SECONDS, TERM_SECONDS = 10.0, 2.0
"""Seconds that idle workers may take to end, and that items may go on after SIGTERM; the head kills after three."""

JOB_VARIABLE = "OAR_JOB_ID"
"""The variable with the id of the pilot's job, as programs that were written for CiGri read it."""

Summary = Dict[str, Any]


def execute(run: RunFiles, settings: Dict[str, Any], with_ray: bool) -> execution.Report:
    """Be a pilot, write its summary as the run's outcome, and return the fields of its `call_ended`.

    Args:
        run: the run.
        settings: as for `serve`; `prologue` runs before the first item and `epilogue` after the last one, both with a
            `command` for a shell and the `seconds` that it may take. A pilot whose prologue fails runs no item.
        with_ray: whether items run in this process.
    """
    os.environ.setdefault(JOB_VARIABLE, os.environ.get("SLURM_JOB_ID") or run.id)
    if trouble := _trouble_of("prologue", settings):
        return {"outcome": None, "cause": "environment", "message": trouble}
    report = _execute(run, settings, with_ray)
    if trouble := _trouble_of("epilogue", settings):
        report["message"] = "\n".join(filter(None, [report.get("message"), trouble]))
    return report


def _execute(run: RunFiles, settings: Dict[str, Any], with_ray: bool) -> execution.Report:
    try:
        summary = serve_in_process(run, settings) if with_ray else serve(run, settings)
    except PilotFailed as error:
        return error.report
    except OSError as error:
        message = "The pilot can't go on: {}".format(error)
        return {"outcome": None, "cause": "environment", "message": message}
    return execution.succeeded(run, summary)


def _trouble_of(name: str, settings: Dict[str, Any]) -> str:
    """Run the script of this name, if there is one; gives what went wrong, "" for nothing."""
    if not settings.get(name):
        return ""
    from slurm_ray_flow.remote.driver import command  # few pilots have scripts

    try:
        return command.trouble_of_script(name, settings[name])
    except OSError as error:
        return "The {} can't be run: {}".format(name, error)


def serve(run: RunFiles, settings: Dict[str, Any]) -> Summary:
    """Run items in worker processes until all are done and home sends no more, nothing comes, or the end is near.

    Args:
        run: the run.
        settings: `workers`, their number; `idle_seconds`, how long to wait for a bundle; `threads`, the number for
            OMP_NUM_THREADS and the like where the user has not set them; `gpus_per_item`, how many of the run's GPUs
            each worker gets, 0 for all of them; `memory`, the bytes that all of them may use, None for no limit.

    Returns:
        How many items ended with a value (`done`), with an exception (`failed`), with the death of their worker
        (`crashed`), and how many that were taken did not end (`left`). `interrupted` has those of the last that had
        begun and were ended with the pilot: bundle, item and seconds of each.

    Raises:
        PilotFailed: the function can't be loaded, or the results can't be written.
        OSError: no process can be started, or the files of the items can't be opened.
    """
    pilot = _Pilot(run, settings)
    try:
        pilot.work()
    finally:
        pilot.end()
    return pilot.summary


class _Pilot:
    """A pilot with workers."""

    def __init__(self, run: RunFiles, settings: Dict[str, Any]) -> None:
        self._memory = Memory(settings["workers"])
        self._warning = _Warning(run, self._memory)
        self._workers = WorkerProcesses(run, settings, self._memory)
        self._queue = ItemQueue(run, settings["workers"])
        self._sync = _Sync(run, self._workers.sink)
        self._idle_seconds, self._idle_since = float(settings["idle_seconds"]), time.monotonic()

    def work(self) -> None:
        """Run items until it is over."""
        workers, queue = self._workers, self._queue
        workers.start()
        while True:
            workers.look_after(queue)
            if not self._memory.stopping:
                queue.fill(workers.mean_seconds)
                workers.hand_out(queue)
            if self._is_over():
                return
            self._sync.now_and_then()
            workers.pass_on(self._warning.take())
            workers.wait(SHORT_PAUSE if queue.has_room(workers.mean_seconds) else LONG_PAUSE)

    def _is_over(self) -> bool:
        if self._workers.busy:
            self._idle_since = time.monotonic()
            if not self._warning.time_is_over:
                return False
            self._workers.kill(self._queue)
        if self._memory.stopping or self._queue.is_over:
            return True
        if self._queue:
            self._idle_since = time.monotonic()
        return time.monotonic() - self._idle_since >= self._idle_seconds

    def end(self) -> None:
        """End the workers, and have all results on the disk."""
        self._workers.end(self._warning.patience)
        self._sync.at_once()

    @property
    def summary(self) -> Summary:
        return self._workers.summary(len(self._queue))


def serve_in_process(run: RunFiles, settings: Dict[str, Any]) -> Summary:
    """Run items in this process, one at a time; the death of this process is the pilot's.

    Args:
        run: the run.
        settings: as for `serve`; only `idle_seconds` counts.

    Raises:
        PilotFailed: the function can't be loaded, or the results can't be written.
    """
    memory = Memory(1)
    queue, ended = ItemQueue(run, 1), threading.Event()
    _Warning(run, memory)
    with _output_kept():
        runner = ItemRunner(run, 0, memory)
        try:
            runner.load()
        except BaseException as error:
            raise PilotFailed(pilot_worker.load_report(run, error, runner.log)) from error
        sync = _Sync(run, ItemSink(run.items))
        syncing = threading.Thread(target=_sync_until, args=(sync, ended, runner), daemon=True)
        syncing.start()
        try:
            _run_items(runner, memory, queue, settings["idle_seconds"], run)
        finally:
            ended.set()
            syncing.join()
            sync.at_once()
    done, failed = memory.slots[0].counts
    return {"done": done, "failed": failed, "crashed": 0, "left": len(queue), "interrupted": []}


def _run_items(runner: ItemRunner, memory: Memory, queue: ItemQueue, idle_seconds: float, run: RunFiles) -> None:
    idle_since, chunk = time.monotonic(), 0
    while not memory.stopping:
        queue.fill(1.0)
        if items := queue.next_chunk(1.0):
            chunk += 1
            try:
                queue.give_back(items[runner.run_chunk(chunk, items) :])
            except OSError as error:
                report = {"outcome": None, "cause": "environment", "message": pilot_worker.disk_message(run.items)}
                raise PilotFailed(report) from error
            idle_since = time.monotonic()
        elif queue.is_over or time.monotonic() - idle_since >= idle_seconds:
            return
        else:
            time.sleep(SHORT_PAUSE)


class _Sync:
    """Has the results on the disk at most each `SYNC_SECONDS`."""

    def __init__(self, run: RunFiles, sink: ItemSink) -> None:
        self._run, self._sink = run, sink
        self._last, self._failed = time.monotonic(), False

    def now_and_then(self) -> None:
        if time.monotonic() - self._last >= SYNC_SECONDS:
            self.at_once()

    def at_once(self) -> None:
        self._last = time.monotonic()
        try:
            self._sink.sync()
        except OSError as error:
            if not self._failed:
                script_end.say(self._run.log, "results are not safe on the disk yet: {}".format(error))
            self._failed = True


def _sync_until(sync: _Sync, ended: threading.Event, runner: Optional[ItemRunner] = None) -> None:
    """Have results on the disk, and at the time limit note which item it ends: nobody else can in this process."""
    is_noted = runner is None
    while not ended.wait(SYNC_SECONDS):
        is_noted = is_noted or (runner is not None and runner.note_interruption())
        sync.at_once()


class _Warning:
    """Has workers stop when the head warns of the end or sends SIGTERM, for the rest of this process."""

    def __init__(self, run: RunFiles, memory: Memory) -> None:
        self._memory = memory
        self._told: List[int] = []
        self._kills_at: Optional[float] = None
        for number in (end_warning.SIGNAL, signal.SIGTERM):
            pilot_worker.handle_here_only(number, self._on_signal)
        if os.path.exists(run.warning):  # it came before
            memory.stop()

    def _on_signal(self, number: int, _: Any) -> None:
        self._memory.stop()
        self._told.append(number)
        if number == signal.SIGTERM:
            self._kills_at = self._kills_at or time.monotonic() + TERM_SECONDS

    def take(self) -> List[int]:
        """The signals that have come since the last call."""
        told, self._told = self._told, []
        return told

    @property
    def time_is_over(self) -> bool:
        """Whether items that still run have to be ended."""
        return self._kills_at is not None and time.monotonic() >= self._kills_at

    @property
    def patience(self) -> float:
        """Seconds that idle workers may take to end."""
        return END_SECONDS if self._kills_at is None else TERM_SECONDS / 4


@contextlib.contextmanager
def _output_kept() -> Iterator[None]:
    """Have what this process prints go to the run's log again after the block."""
    kept = [os.dup(1), os.dup(2)]
    try:
        yield
    finally:
        script_end.flush_buffers()
        for target, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, target)
            os.close(descriptor)
