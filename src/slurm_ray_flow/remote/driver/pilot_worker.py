"""A worker of a pilot: it loads the function once, and runs items in chunks.

The pilot's process writes pickled chunks into the worker's pipe, a list of `(bundle, item, data)` each. The worker
writes lines back: `loaded`, `chunk 57` after 57 items of a chunk, `failed` where the function can't be loaded; then it
waits for an order, writes the exception as the run's outcome, and sends the report as a line of JSON.

What the worker is at it notes in memory that outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.driver import execution, item_outcomes
from slurm_ray_flow.remote.driver.items import ItemSink
from slurm_ray_flow.remote.shared import end_warning, limits, pickling, processes, script_end
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.items import INTERRUPTED, VALUE, log_name
from slurm_ray_flow.remote.shared.protocol import TRY

Item = Tuple[int, int, bytes]
"""The numbers of bundle and item, and the pickle of `(args, kwargs)`."""
LOADED, CHUNK, FAILED = b"loaded", b"chunk", b"failed"
CHUNK_SECONDS = 2.0
"""Seconds after which a worker gives the rest of a chunk back, so that others can have it."""
DISK_SECONDS = 600.0
"""The longest wait of a worker for a disk that is full."""
LAST_SECONDS = 1.5
"""So soon before its end an item is noted that the time limit will end."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
DISK_EXIT = 71
"""The exit code of a worker whose result could not be written for `DISK_SECONDS`."""

_POSITION, _STARTED, _LOG, _WRITING, _DONE, _FAILED, _BUSY, _FIELDS = range(8)


class Memory:
    """The anonymous memory that a pilot shares with its workers."""

    def __init__(self, workers: int) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * _FIELDS * (workers + 1))).cast("q")
        self.slots = [Slot(self._words[_FIELDS * number :][:_FIELDS]) for number in range(1, workers + 1)]

    @property
    def stopping(self) -> bool:
        """Whether workers begin no more items."""
        return self._words[0] != 0

    def stop(self) -> None:
        """Have workers begin no more items."""
        self._words[0] = 1


class Slot:
    """What one worker notes. One assignment changes the position: chunk, index in it, and whether the item runs."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def begin(self, chunk: int, index: int, log: int) -> None:
        """Note that an item begins; `log` is the size of the worker's log."""
        words = self._words
        words[_STARTED], words[_LOG], words[_WRITING] = time.monotonic_ns(), log, 0
        words[_POSITION] = chunk << 32 | index << 1 | 1

    def write(self, offset: int) -> None:
        """Note that the item's line is written next, behind this offset."""
        self._words[_WRITING] = offset + 1

    def end(self, chunk: int, index: int, succeeded: bool) -> float:
        """Note that the item at `index` has ended; gives the seconds that it took."""
        words = self._words
        took = time.monotonic_ns() - words[_STARTED]
        words[_BUSY] += took
        words[_DONE if succeeded else _FAILED] += 1
        words[_POSITION] = chunk << 32 | index + 1 << 1
        return took / 1e9

    @property
    def position(self) -> Tuple[int, int, bool]:
        """The chunk, the index of the present or next item in it, and whether that item runs."""
        word = self._words[_POSITION]
        return word >> 32, (word & 0xFFFFFFFF) >> 1, bool(word & 1)

    @property
    def seconds(self) -> float:
        """Seconds since the last item began."""
        return (time.monotonic_ns() - self._words[_STARTED]) / 1e9

    @property
    def log(self) -> int:
        return int(self._words[_LOG])

    @property
    def writing(self) -> Optional[int]:
        """The offset behind which the running item's line may be; None if it is not written."""
        return int(self._words[_WRITING]) - 1 if self._words[_WRITING] else None

    @property
    def counts(self) -> Tuple[int, int]:
        """How many items had a value, and how many raised something."""
        return int(self._words[_DONE]), int(self._words[_FAILED])

    @property
    def busy_seconds(self) -> float:
        """The seconds of all items that have ended."""
        return self._words[_BUSY] / 1e9


class Disk:
    """Waits for a disk that takes no more, and says so in the run's log. It is the `retry` of an `ItemSink`.

    Args:
        run: the run.
        given_up: whether nobody waits for the result any more.
    """

    def __init__(self, run: RunFiles, given_up: Callable[[], bool]) -> None:
        self._run, self._given_up = run, given_up
        self._since = 0.0

    def wait(self, error: OSError, tries: int) -> bool:
        """Wait a moment; says whether to try again."""
        if error.errno == errno.EBADF:
            return False
        if not tries:
            self._since = time.monotonic()
            text = "a result can't be written ({}); it is tried again for {:.0f} minutes"
            script_end.say(self._run.log, text.format(error.strerror, DISK_SECONDS / 60))
        if time.monotonic() - self._since > DISK_SECONDS or self._given_up():
            return False
        time.sleep(min(SHORTEST_PAUSE * 2 ** min(tries, 10), LONGEST_PAUSE))
        return True


class ItemRunner:
    """Runs items in this process, and writes their results.

    Args:
        run: the run.
        number: the worker's number.
        memory: the pilot's memory.
    """

    def __init__(self, run: RunFiles, number: int, memory: Memory) -> None:
        self._memory, self._slot, self._number = memory, memory.slots[number], number
        self._sink = ItemSink(run.items, Disk(run, lambda: memory.stopping).wait)
        self._run, self._pid = run, os.getpid()
        self.log = os.path.join(run.items, log_name(number))
        self._log_descriptor = _redirect(self.log)
        self._flush_c = _c_flush()
        self._items: List[Item] = []
        self._function: Any = None
        self._args: Tuple[Any, ...] = ()
        self._kwargs: Dict[str, Any] = {}

    def load(self) -> None:
        """Load the function and the arguments that all items share. An item that changes these changes them for all."""
        self._function, arguments = execution.read_call(self._run)
        self._args, self._kwargs = tuple(arguments["args"]), dict(arguments["kwargs"])

    def run_chunk(self, chunk: int, items: List[Item]) -> int:
        """Run items until they are done, the pilot stops, or `CHUNK_SECONDS` have passed; gives how many were run.

        Raises:
            OSError: a result can't be written.
        """
        deadline, self._items = time.monotonic() + CHUNK_SECONDS, items
        for index, (bundle, number, data) in enumerate(items):
            if self._memory.stopping or (index and time.monotonic() > deadline):
                return index
            self._run_item(chunk, index, bundle, number, data)
        return len(items)

    def _run_item(self, chunk: int, index: int, bundle: int, number: int, data: bytes) -> None:
        slot, log = self._slot, os.lseek(self._log_descriptor, 0, os.SEEK_CUR)
        slot.begin(chunk, index, log)
        outcome = self._outcome(data)
        if os.getpid() != self._pid:  # the item has forked, and its child comes back from the function, too
            os._exit(0)
        self._flush()
        printed = os.lseek(self._log_descriptor, 0, os.SEEK_CUR) - log
        slot.write(self._sink.results_size)
        kind, content, group, message = outcome
        piece = (self._number, log, printed) if printed > 0 else None
        self._sink.add(bundle, number, kind, slot.seconds, content, group, message, piece)
        slot.end(chunk, index, kind == VALUE)

    def note_interruption(self) -> bool:
        """Note the item that runs now where the time limit is about to end it; says whether it is. For another thread.

        An item that ends all the same has a result after this line, which counts.
        """
        warning = end_warning.pending(self._run.warning)
        if warning is None or warning.reason != "time_limit" or warning.seconds_left > LAST_SECONDS:
            return False
        _, index, runs = self._slot.position
        if runs and index < len(self._items):
            bundle, number, _ = self._items[index]
            with contextlib.suppress(OSError):
                self._sink.add(bundle, number, INTERRUPTED, self._slot.seconds, b"", "time limit")
        return True

    def _outcome(self, data: bytes) -> item_outcomes.ItemOutcome:
        try:
            args, kwargs = pickling.load(io.BytesIO(data), [])
            value = execution.completed(self._function(*args, *self._args, **{**self._kwargs, **kwargs}))
        except BaseException as error:
            return item_outcomes.of_error(error)
        return item_outcomes.of_value(value)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self._flush_c()


def _redirect(log: str) -> int:
    """Redirect stdout and stderr to a log; gives a descriptor whose position follows theirs."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.lseek(descriptor, 0, os.SEEK_END)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    return descriptor


def _c_flush() -> Callable[[], Any]:
    flush = ctypes.CDLL(None).fflush
    return lambda: flush(None)


def work(
    run: RunFiles, number: int, memory: Memory, orders: int, reports: int, parent: int, variables: Dict[str, str]
) -> None:
    """Be a worker, in a process that the pilot has forked; it does not return.

    Args:
        run: the run.
        number: the worker's number.
        memory: the pilot's memory.
        orders, reports: the pipes from and to the pilot.
        parent: the pilot's pid.
        variables: environment variables of this worker.
    """
    code = 1
    try:
        processes.die_with_parent(parent)
        _set_signals(run)
        limits.be_first_to_go()
        os.environ.update(variables)
        code = _serve(ItemRunner(run, number, memory), run, orders, reports)
        script_end.end_as_a_script(lambda _: None)
    except BaseException as error:
        script_end.say(run.log, "worker {} ends: {}: {}".format(number, type(error).__name__, error))
    finally:
        with contextlib.suppress(BaseException):
            script_end.flush_buffers()
        os._exit(code)


def _set_signals(run: RunFiles) -> None:
    """SIGTERM, which a scheduler may send to all processes, stops no item."""
    handle_here_only(signal.SIGTERM, lambda *_: None)
    signal.signal(end_warning.SIGNAL, signal.SIG_IGN)  # instead of the pilot's own handler
    end_warning.listen(run.warning)


def handle_here_only(number: int, handler: Callable[[int, Any], Any]) -> None:
    """Handle a signal in this process; those that it forks are ended by it, as they would be without the handler.

    The signal is held back during a fork: Python forgets one that reaches a new process before that has begun, and
    `multiprocessing.Pool` would wait for ever for the end of that process.
    """
    before = threading.local()

    def hold_back() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def begin_child() -> None:
        if signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL)
        let_through()

    signal.signal(number, handler)
    os.register_at_fork(before=hold_back, after_in_parent=let_through, after_in_child=begin_child)


def _serve(runner: ItemRunner, run: RunFiles, orders: int, reports: int) -> int:
    with os.fdopen(orders, "rb", 1 << 20) as stream:
        try:
            runner.load()
        except BaseException as error:
            os.write(reports, FAILED + b"\n")
            with contextlib.suppress(EOFError):
                pickle.load(stream)
                os.write(reports, json.dumps(load_report(run, error, runner.log)).encode() + b"\n")
            return 0
        os.write(reports, LOADED + b"\n")
        while True:
            try:
                chunk, items = pickle.load(stream)
            except EOFError:
                return 0
            try:
                ended = runner.run_chunk(chunk, items)
            except OSError:
                return DISK_EXIT
            os.write(reports, b"%s %d\n" % (CHUNK, ended))


def load_report(run: RunFiles, error: BaseException, log: str) -> execution.Report:
    """Write the exception of a function that can't be loaded as the run's outcome, and give the report about it."""
    report = execution.failed(run, error, "environment")
    if isinstance(error, SystemExit):
        report["message"] = execution.import_exit_message(error, log)
    return report


def disk_message(folder: str) -> str:
    """What to say of a disk that was full for too long."""
    return "Results of items could not be written to {} for {:.0f} minutes.{}{}".format(
        folder, DISK_SECONDS / 60, TRY, "see whether the disk is full, or your quota (`df -h`, `quota`)"
    )
