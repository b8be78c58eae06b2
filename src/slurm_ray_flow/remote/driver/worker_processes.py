"""The worker processes of a pilot, from their start to their end, and the blame for the death of one."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import selectors
import signal
import sys
import time
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

from slurm_ray_flow.remote.driver import execution, item_outcomes, pilot_worker
from slurm_ray_flow.remote.driver.item_queue import ItemQueue
from slurm_ray_flow.remote.driver.items import ItemSink, LogSlice
from slurm_ray_flow.remote.driver.memory_guard import MemoryGuard
from slurm_ray_flow.remote.driver.pilot_worker import Disk, Item, Memory, Slot
from slurm_ray_flow.remote.shared import end_warning, limits, processes, script_end
from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.items import INTERRUPTED, RESULTS, log_name
from slurm_ray_flow.remote.shared.protocol import MAKE_MORE, TRY

FRUITLESS_DEATHS = 3
"""So many workers in a row may die before an item."""
SHORT_ITEM = 0.25
"""Seconds: shorter items wait in their worker, so that it need not ask; others wait for the first idle worker."""
END_PAUSE = 0.005
REPORT_SECONDS, ANSWER_PAUSE = 60.0, 0.2
"""Seconds that a worker may take to write why the function can't be loaded."""
VALUE_MARK = b'"kind": "value"'
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS",
)  # fmt: skip


class PilotFailed(Exception):
    """The pilot can't go on; `report` has the fields of its `call_ended`."""

    def __init__(self, report: execution.Report) -> None:
        super().__init__(report.get("message"))
        self.report = report


class _Chunk(NamedTuple):
    number: int
    items: List[Item]


class _Worker:
    """One worker process, as the pilot sees it."""

    def __init__(self, number: int, pid: int, orders: int, reports: int) -> None:
        self.number, self.pid, self.orders, self.reports = number, pid, orders, reports
        self.chunks: Deque[_Chunk] = collections.deque()
        self.is_loaded = False
        self.exit_code: Optional[int] = None
        self._outgoing: List[memoryview] = []
        self._partial_line = b""

    def send(self, order: Any) -> None:
        """Send an order; what the pipe does not take yet goes with the next `flush`."""
        self._outgoing.append(memoryview(pickle.dumps(order, 4)))
        self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes; says whether that was all."""
        try:
            while self._outgoing:
                piece = self._outgoing[0]
                count = os.write(self.orders, piece)
                self._outgoing[:1] = [piece[count:]] if count < len(piece) else []
        except BlockingIOError:
            return False
        except BrokenPipeError:  # it is dead, and its death is noticed elsewhere
            self._outgoing.clear()
        return True

    def lines(self) -> List[bytes]:
        """The whole lines that have come from the worker."""
        data = self._partial_line
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reports, 1 << 16):
                data += piece
        *lines, self._partial_line = data.split(b"\n")
        return lines

    def close_orders(self) -> None:
        """Have the worker end when it has done all."""
        if self.orders >= 0:
            os.close(self.orders)
            self.orders = -1

    def close(self) -> None:
        self.close_orders()
        os.close(self.reports)


class WorkerProcesses:
    """All workers of a pilot.

    Args:
        run: the run.
        settings: the pilot's settings.
        memory: what it shares with its workers.
    """

    def __init__(self, run: RunFiles, settings: Dict[str, Any], memory: Memory) -> None:
        self._run, self._settings, self._memory = run, settings, memory
        self.sink = ItemSink(run.items, Disk(run, lambda: memory.stopping).wait)
        self._workers: Dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._last_chunk = self._crashed = self._fruitless_deaths = 0
        self._kills_before = limits.out_of_memory_kills()
        self._memory_guard = MemoryGuard(settings.get("memory"))
        self._ended_for_memory: Set[int] = set()
        self._interrupted: List[List[float]] = []

    # ---- start

    def start(self) -> None:
        """Fork all workers.

        Raises:
            OSError: no process can be had.
        """
        for number in range(self._settings["workers"]):
            self._fork(number)
        limits.go_after_children()

    def _fork(self, number: int) -> None:
        orders, to_worker = os.pipe()
        from_worker, reports = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                for descriptor in (to_worker, from_worker, *self._descriptors()):
                    os.close(descriptor)
                self._selector.close()
                variables = worker_variables(number, self._settings, dict(os.environ))
                pilot_worker.work(self._run, number, self._memory, orders, reports, parent, variables)
            finally:
                os._exit(1)
        os.close(orders)
        os.close(reports)
        for descriptor in (to_worker, from_worker):
            os.set_blocking(descriptor, False)
        self._workers[number] = _Worker(number, pid, to_worker, from_worker)
        self._selector.register(from_worker, selectors.EVENT_READ)

    def _descriptors(self) -> List[int]:
        """The pilot's ends of all workers' pipes."""
        pipes = [(worker.orders, worker.reports) for worker in self._workers.values()]
        return [descriptor for pair in pipes for descriptor in pair if descriptor >= 0]

    # ---- work

    @property
    def busy(self) -> bool:
        """Whether a worker has items."""
        return any(worker.chunks for worker in self._workers.values())

    @property
    def mean_seconds(self) -> float:
        """The mean time of the items so far; 0 before the first has ended."""
        ended = sum(sum(slot.counts) for slot in self._memory.slots)
        return sum(slot.busy_seconds for slot in self._memory.slots) / ended if ended else 0.0

    def hand_out(self, queue: ItemQueue) -> None:
        """Give idle workers a chunk, and then, of short items, each worker one that waits in it."""
        mean = self.mean_seconds
        for most in range(2 if 0 < mean < SHORT_ITEM else 1):
            for worker in self._workers.values():
                if not queue:
                    return
                if worker.is_loaded and len(worker.chunks) <= most:
                    self._last_chunk += 1
                    chunk = _Chunk(self._last_chunk, queue.next_chunk(mean))
                    worker.chunks.append(chunk)
                    worker.send(tuple(chunk))

    def wait(self, seconds: float) -> None:
        """Wait until a worker reports something, or this time has passed."""
        blocked = [worker for worker in self._workers.values() if worker.orders >= 0 and not worker.flush()]
        for worker in blocked:
            self._selector.register(worker.orders, selectors.EVENT_WRITE)
        self._selector.select(min(seconds, self._memory_guard.due))
        for worker in blocked:
            self._selector.unregister(worker.orders)

    def look_after(self, queue: ItemQueue) -> None:
        """Read what workers report, and bury and replace the dead ones.

        Raises:
            PilotFailed: the function can't be loaded, or results can't be written.
        """
        self._reap()  # first, so that all that a dead worker has reported is read before it is buried
        for worker in list(self._workers.values()):
            for line in worker.lines():
                self._understand(worker, line, queue)
            if worker.exit_code is not None:
                self._bury(worker, worker.exit_code, queue)
        number = self._memory_guard.too_much({worker.pid: worker.number for worker in self._workers.values()})
        if number is not None:
            self._ended_for_memory.add(self._workers[number].pid)
            os.kill(self._workers[number].pid, signal.SIGKILL)

    def _reap(self) -> None:
        codes = processes.reap()
        for worker in self._workers.values():
            worker.exit_code = codes.get(worker.pid, worker.exit_code)

    def _understand(self, worker: _Worker, line: bytes, queue: ItemQueue) -> None:
        word, _, count = line.partition(b" ")
        if word == pilot_worker.LOADED:
            worker.is_loaded = True
        elif word == pilot_worker.FAILED:
            raise PilotFailed(self._report_of(worker))
        elif word == pilot_worker.CHUNK:
            ended = int(count)
            if ended:
                self._fruitless_deaths = 0
            queue.give_back(worker.chunks.popleft().items[ended:])

    def _report_of(self, worker: _Worker) -> execution.Report:
        """Have one worker write the exception as the run's outcome, after the others have ended."""
        for other in list(self._workers.values()):
            if other is not worker:
                self._end(other)
        worker.send("write")
        deadline = time.monotonic() + REPORT_SECONDS
        while worker.exit_code is None and time.monotonic() < deadline:
            self.wait(ANSWER_PAUSE)
            self._reap()
            for line in worker.lines():
                report: execution.Report = json.loads(line)
                return report
        message = "The function can't be loaded, and its worker did not say why; see {}"
        return {"outcome": None, "cause": "environment", "message": message.format(self._log(worker))}

    # ---- death

    def _slot(self, worker: _Worker) -> Slot:
        return self._memory.slots[worker.number]

    def _log(self, worker: _Worker) -> str:
        return os.path.join(self._run.items, log_name(worker.number))

    def _bury(self, worker: _Worker, exit_code: int, queue: ItemQueue) -> None:
        """Give back the items of a dead worker, save the one that it was at, and start another one in its place."""
        self._remove(worker)
        if exit_code == pilot_worker.DISK_EXIT and not self._memory.stopping:
            message = pilot_worker.disk_message(self._run.items)
            raise PilotFailed({"outcome": None, "cause": "environment", "message": message})
        blamed = self._give_back(worker, exit_code, queue)
        self._fruitless_deaths = 0 if blamed else self._fruitless_deaths + 1
        if self._memory.stopping:
            return
        if self._fruitless_deaths >= FRUITLESS_DEATHS:
            raise PilotFailed(self._fruitless_report(worker, exit_code))
        self._fork(worker.number)

    def _give_back(self, worker: _Worker, exit_code: int, queue: ItemQueue, ended_with_pilot: bool = False) -> bool:
        """Give back what a dead worker had; says whether it was at an item."""
        number, index, was_at_item = self._slot(worker).position
        was_at_item = was_at_item and any(chunk.number == number for chunk in worker.chunks)
        left: List[Item] = []
        for chunk in worker.chunks:
            if chunk.number == number:
                left += chunk.items[index:]
            elif chunk.number > number:
                left += chunk.items
        if was_at_item:
            if line := self._written_line(worker, left[0]):
                self._slot(worker).end(number, index, VALUE_MARK in line)
                left.pop(0)
            elif self._memory.stopping:
                self._interrupted.append([*left[0][:2], round(self._slot(worker).seconds, 3)])
                if ended_with_pilot:
                    self._note_interruption(worker, left[0])
            else:
                self._blame(worker, exit_code, left.pop(0))
        queue.give_back(left)
        return was_at_item

    def _written_line(self, worker: _Worker, item: Item) -> bytes:
        """The line of the item that a dead worker was at, if it has written one."""
        offset = self._slot(worker).writing
        if offset is None:
            return b""
        start = '{{"item": {}, "bundle": {}, '.format(item[1], item[0]).encode()
        with open(os.path.join(self._run.items, RESULTS), "rb") as file:
            file.seek(offset)
            return next((line for line in file if start in line and line.endswith(b"}\n")), b"")

    def _blame(self, worker: _Worker, exit_code: int, item: Item) -> None:
        """Write the result of an item that has ended its worker."""
        slot = self._slot(worker)
        printed = self._printed(worker)
        outcome = item_outcomes.of_crash(*self._crash(exit_code, printed, worker))
        self._crashed += 1
        self.sink.begin_line()
        self.sink.add(
            item[0], item[1], outcome.kind, slot.seconds, outcome.data, outcome.group, outcome.message, printed
        )

    def _note_interruption(self, worker: _Worker, item: Item) -> None:
        """Write for how long an item ran that the time limit has ended; a person's cancel says nothing of an item."""
        warning = end_warning.pending(self._run.warning)
        if warning is None or warning.reason != "time_limit":
            return
        slot = self._slot(worker)
        self.sink.begin_line()
        with contextlib.suppress(OSError):  # a full disk: the item counts as one of a lost pilot
            self.sink.add(item[0], item[1], INTERRUPTED, slot.seconds, b"", "time limit", "", self._printed(worker))

    def _printed(self, worker: _Worker) -> Optional[LogSlice]:
        """Where the last item of a dead worker has printed something."""
        start, size = self._slot(worker).log, os.stat(self._log(worker)).st_size
        return (worker.number, start, size - start) if size > start else None

    def _crash(self, exit_code: int, printed: Optional[LogSlice], worker: _Worker) -> Tuple[str, str, str]:
        """Cause, text and group of a death."""
        kills = limits.out_of_memory_kills()
        out_of_memory, self._kills_before = exit_code == -signal.SIGKILL and kills > self._kills_before, kills
        if worker.pid in self._ended_for_memory or out_of_memory:
            text = "The machine ran out of memory, and its kernel ended the process that ran this item."
            text = self._memory_guard.text if worker.pid in self._ended_for_memory else text
            return "out_of_memory", text + TRY + "ask for more memory, or have fewer workers", "out of memory"
        name = end_name(exit_code)
        text = "The process that ran this item ended before the item did: {}.".format(name)
        if printed:
            text = "{}\n{}".format(text, tail(self._log(worker), min(printed[2], 1000))).strip()
        return "crashed", text + TRY + _advice(exit_code), "crashed by {}".format(name)

    def _fruitless_report(self, worker: _Worker, exit_code: int) -> execution.Report:
        what = "before they had loaded the function" if not worker.is_loaded else "between items"
        message = "{} worker processes in a row ended {}, the last one by {}.\n{}".format(
            FRUITLESS_DEATHS, what, end_name(exit_code), tail(self._log(worker), 1000)
        ).strip()
        return {"outcome": None, "cause": "environment", "message": message + TRY + _advice(exit_code)}

    # ---- end

    def pass_on(self, numbers: List[int]) -> None:
        """Send the signals of a warning on to all workers, whose items may listen to it."""
        for worker in self._workers.values():
            for number in numbers if worker.is_loaded and worker.exit_code is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def kill(self, queue: ItemQueue) -> None:
        """Kill workers whose items do not end; home has the items again."""
        for worker in list(self._workers.values()):
            self._end(worker)
            self._give_back(worker, -signal.SIGKILL, queue, ended_with_pilot=True)

    def end(self, patience: float) -> None:
        """End all workers: those that are idle by themselves, others by force."""
        deadline = time.monotonic() + patience
        for worker in list(self._workers.values()):
            if worker.chunks or not worker.is_loaded:
                self._end(worker)
            else:
                worker.close_orders()
        while self._workers and time.monotonic() < deadline:
            self._reap()
            for worker in [worker for worker in self._workers.values() if worker.exit_code is not None]:
                self._remove(worker)
            time.sleep(END_PAUSE)
        for worker in list(self._workers.values()):
            script_end.say(self._run.log, "worker {} did not end by itself and is killed".format(worker.number))
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        if worker.exit_code is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.reports)
        if self._workers.pop(worker.number, None) is not None:
            worker.close()

    def summary(self, waiting: int) -> Dict[str, Any]:
        """How many items ended in each way, how many of the taken ones did not, and which of these had begun."""
        done, failed = (sum(slot.counts[place] for slot in self._memory.slots) for place in (0, 1))
        counts = {"done": done, "failed": failed, "crashed": self._crashed, "left": waiting}
        return {**counts, "interrupted": self._interrupted}


def end_name(exit_code: int) -> str:
    """The end of a process in words: a signal's name, or an exit code."""
    if exit_code >= 0:
        return "exit code {}".format(exit_code)
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return "signal {}".format(-exit_code)


def _advice(exit_code: int) -> str:
    if exit_code == -signal.SIGBUS:
        return MAKE_MORE
    if exit_code == -signal.SIGSEGV:
        return "look for a library that fails on this item; its traceback is in the log"
    if exit_code == -signal.SIGKILL:
        return "see whether the item takes more memory than there is; somebody may have killed its process, too"
    return "run the function with this item alone, and see where its process ends"


def worker_variables(number: int, settings: Dict[str, Any], environment: Dict[str, str]) -> Dict[str, str]:
    """The environment variables of one worker, beyond those of the run.

    Args:
        number: the worker's number.
        settings: the pilot's settings.
        environment: the run's variables.
    """
    threads = str(max(1, settings.get("threads") or 1))
    variables = {name: threads for name in THREAD_VARIABLES if name not in environment}
    gpus = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    each = settings.get("gpus_per_item") or 0
    if gpus and each:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[(number * each + one) % len(gpus)] for one in range(each))
    return variables
