"""The inner head of an allocation: starts Ray, takes calls from the inbox one at a time, and ends all it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, Callable, Dict, List, Optional, Set

from slurm_ray_flow.remote.head import ray_nodes
from slurm_ray_flow.remote.head.calls import GRACE, RunningCall, Standby
from slurm_ray_flow.remote.head.inbox import Idling, Inbox, close, close_if_nobody_waits, record_end
from slurm_ray_flow.remote.head.ray_nodes import RayNodes
from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.scheduler.job import NoJob
from slurm_ray_flow.remote.shared import limits, processes, script_end, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import find_event

FIRST_CALL_WITHIN = 600.0
FIRST_CALL_UNDER_LOCK_WITHIN = 120.0
POLL, IDLE_POLL, IDLE_AFTER = 0.025, 0.1, 120.0
NEXT_STANDBY_AFTER = 1.0
LOSS_WITHIN = 5.0
SIGN_OF_LIFE_EVERY = 10.0
PREEMPTED_WITHIN = 30.0
"""Seconds that a job has after its warning, by Slurm's defaults; sites differ."""


class Allocation:
    """An allocation, and the calls that run in it.

    Args:
        run: the allocation's own run.
        spec: its spec.json.
        note: tells the keeper what is to be done if this process dies: `note(call=run id, ray_folder=path)`.
        tenure: what it holds of a server under a lock.
    """

    def __init__(
        self, run: RunFiles, spec: Dict[str, Any], note: Callable[..., None], tenure: Optional[LockShare] = None
    ) -> None:
        self._run, self._spec, self._note, self._tenure = run, spec, note, tenure
        self._began = self._idle_since = time.monotonic()
        self._keep_warm = float(spec.get("keep_warm") or 0.0)
        self._idling = Idling(run, spec, tenure)
        self._ray: Optional[RayNodes] = None
        self._inbox, self._standby = Inbox(run), Standby(spec, tenure)
        self._call: Optional[RunningCall] = None
        self._call_began = 0.0
        self._last = run.folder
        self._stop: Optional[Dict[str, str]] = None
        self._keeper = os.getppid()
        self._job = context_of(spec)
        self._wake, self._wake_end = os.pipe()
        self._filling, self._next_sign = 0, 0.0

    def serve(self) -> None:
        """Take calls until there is a reason to end, then end everything."""
        self._filling = working_directory.begin(self._run, self._spec)
        self._start_ray()
        self._boot_standby()
        while self._stop is None:
            self._wait()
            self._turn()
        self._finish(self._stop)

    def stop(self, cause: str, message: str) -> None:
        """End the allocation at the next turn; the first reason stays."""
        self._stop = self._stop or {"cause": cause, "message": message}

    # ---- waiting

    def listen(self) -> None:
        """Have signals and ended children wake the loop; a SIGTERM ends the allocation."""
        os.set_blocking(self._wake_end, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_warning)

    def _on_signal(self, number: int, _: object) -> None:
        if os.getppid() != self._keeper:
            self.stop("lost", "The head's keeper was killed.")
        else:
            self.stop(*self._job.why_ended(self._run, signal.Signals(number).name))

    def _on_warning(self, *_: object) -> None:
        """Warn the call of a preemption: Slurm ends the job soon, and not for its time limit, which is known."""
        if self._call is not None and not self._call.near_its_end(time.monotonic()):
            self._call.warn("preempted", PREEMPTED_WITHIN)

    def _wait(self) -> None:
        idle = self._call is None and time.monotonic() - self._idle_since > IDLE_AFTER
        sources = [self._wake]
        if self._call is not None and self._call.awaits_report:
            sources.append(self._call.driver.report_descriptor)
        select.select(sources, [], [], IDLE_POLL if idle else POLL)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 65536)

    def _turn(self) -> None:
        if self._tenure:
            self._tenure.keep()
        self._give_sign_of_life()
        self._reap()
        self._watch_ray()
        self._watch_call()
        self._boot_standby()
        self._prepare_standby()
        self._begin_next()
        self._check_end()

    def _give_sign_of_life(self) -> None:
        """Touch the events in a job, which Slurm may call running long after all its processes are gone."""
        if time.monotonic() >= self._next_sign and not isinstance(self._job, NoJob):
            self._next_sign = time.monotonic() + SIGN_OF_LIFE_EVERY
            with contextlib.suppress(OSError):
                os.utime(self._run.events)

    def _reap(self) -> None:
        for pid, code in processes.reap().items():
            if pid == self._filling:
                self._filling, self._idle_since = 0, time.monotonic()
            if self._ray is not None:
                self._ray.ended(pid, code)
            for driver in (self._standby.driver, self._call.driver if self._call else None):
                if driver is not None and pid == driver.pid:
                    driver.ended(code)

    # ---- Ray

    def _start_ray(self) -> None:
        if not self._spec.get("ray"):
            return
        variables = {**os.environ, **(self._spec.get("environment_variables") or {})}
        self._ray = RayNodes(self._run, self._spec, variables)
        self._note(ray_folder=self._ray.folder)
        self._run.record("ray_starting")
        self._ray.start()

    def _watch_ray(self) -> None:
        if self._ray is None:
            return
        if self._ray.address is None and self._ray.poll():
            seconds = round(time.monotonic() - self._ray.started, 3)
            self._run.record("ray_ready", seconds=seconds, **self._ray.described())
            self._idle_since = time.monotonic()
        for name, why in self._ray.newly_lost().items():  # whoever waits for a call reads what the call's run says
            (self._call.run if self._call else self._run).record("node_lost", node=name, why=why)
        if self._ray.failure is not None:
            cause = "environment" if self._ray.address is None else "node_failed"
            self.stop("out_of_memory" if self._ray.starved else cause, self._ray.failure)

    @property
    def _ready(self) -> bool:
        return not self._filling and (self._ray is None or self._ray.address is not None)

    # ---- drivers

    def _boot_standby(self) -> None:
        if self._stop is not None:
            return
        if self._call is not None:
            running = time.monotonic() - self._call_began
            if not self._keep_warm or running < NEXT_STANDBY_AFTER:
                return
        elif self._run.has_ended() and not self._keep_warm:
            return
        self._standby.boot(self._ray)

    def _prepare_standby(self) -> None:
        """Prepare the standby driver for the next call, unless that waits already."""
        if self._standby.unprepared and self._ready and not self._inbox.entries():
            folder = working_directory.ahead(self._run, self._last)
            self._standby.prepare(self._last, {**self._place(), "folder": folder})

    def _place(self) -> Dict[str, Any]:
        return {"ray": self._ray.address if self._ray else None, "allocation": self._run.folder}

    # ---- calls

    def _begin_next(self) -> None:
        if self._call is not None or not self._ready or self._stop is not None:
            return
        entries = self._inbox.entries()
        if entries and self._inbox.take(entries[0]):
            run = RunFiles(self._run.root, entries[0])
            self._begin(run)
            if self._call is None:
                self._inbox.leave(run)

    def _begin(self, run: RunFiles) -> None:
        try:
            spec = run.read_spec()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                record_end(run, "environment", "The run can't be read: {}".format(error))
            return
        if find_event(run.recorded(), "call_started") or run.has_ended():
            return  # it was announced again, because the answer to its announcement was lost
        if os.path.exists(run.cancel):
            record_end(run, "cancelled", "The run was cancelled.")
            self._idle_since = time.monotonic()
            return
        driver = self._standby.take(self._ray)
        self._note(call=run.id)
        self._call_began = time.monotonic()
        if run.id != self._run.id:
            run.keep_reserve()
            for name, why in (self._ray.lost if self._ray else {}).items():
                run.record("node_lost", node=name, why=why)
        run.record("call_started", pid=driver.pid)
        self._idling.end(run.id)
        driver.order(run=run.folder, **self._place())
        self._last = run.folder
        allowed = self._deadline(run, spec), self._spec.get("memory")
        self._call = RunningCall(run, driver, *allowed, self._call_family, spec.get("warn_seconds"))
        if self._ray:
            self._ray.call_begins()
        if self._tenure:
            self._call.count_kills(self._tenure.kills)

    def _deadline(self, run: RunFiles, spec: Dict[str, Any]) -> Optional[float]:
        """The deadline of a call; in a job, no later than the job's."""
        own = run.id == self._run.id
        limit = (self._spec if own else spec).get("time_limit")
        ends = [float(limit) + (self._began if own else self._call_began)] if limit is not None else []
        if self._idling.ends is not None:
            ends.append(self._idling.ends)
        return min(ends, default=None)

    def _spared(self) -> List[int]:
        return [*(self._ray.pids if self._ray else []), *self._standby.pids]

    def _call_family(self) -> Set[int]:
        """The pids that count for a call's memory: its driver and Ray's workers, without Ray's own and the standby."""
        own = self._ray.own_processes if self._ray else set()
        return processes.descendants(os.getpid(), self._standby.pids) - own

    def _watch_call(self) -> None:
        ended = self._call.watch(time.monotonic()) if self._call else None
        if ended is not None:
            self._close_call(ended)

    def _close_call(self, ended: Dict[str, Any]) -> None:
        """End the call's other processes, then record its end: after that, its files do not change."""
        assert self._call is not None
        call, self._call = self._call, None
        lost = bool(ended.pop("lost_processes", False))
        used = call.used(self._spec, self._ray.uses if self._ray else list, lost)
        if ended["outcome"] is not None:
            script_end.report_survivors(call.run.log, self._spared())
        processes.end_descendants(self._spared())
        call.driver.close()
        call.run.free_reserve()
        self._inbox.leave(call.run)
        written = working_directory.Written(call.run)
        if not call.run.has_ended():  # home may have given this node up meanwhile
            verdict = self._with_true_cause(ended, used) if lost else ended
            call.run.record("call_ended", **verdict, usage=used, **written.told())
        written.remove_copies()
        self._note(call="")
        self._idle_since = time.monotonic()
        self._idling.begin(self._size())

    def _size(self) -> Dict[str, Any]:
        """The CPUs and GPUs of all nodes."""
        described = self._ray.described() if self._ray else {}
        nodes = int(self._spec.get("nodes") or 1)
        cpus = described.get("cpus") or nodes * int(self._spec.get("cpus") or limits.processors())
        return {"nodes": nodes, "cpus": cpus, "gpus": described.get("gpus") or nodes * int(self._spec.get("gpus") or 0)}

    def _with_true_cause(self, ended: Dict[str, Any], used: Dict[str, Any]) -> Dict[str, Any]:
        """The call's end with the cause of the loss of Ray's processes, which Ray may know a moment before the head."""
        assert self._ray is not None
        deadline = time.monotonic() + LOSS_WITHIN
        while self._ray.others and not self._ray.lost and time.monotonic() < deadline:
            self._reap()
            self._watch_ray()
            time.sleep(POLL)
        return ray_nodes.blamed(ended, used, self._ray, self._job)

    # ---- the end

    def _check_end(self) -> None:
        ended = self._call is None and self._stop is None and self._run.has_ended()
        if self._tenure and self._keep_warm:
            self._tenure.show_idle(ended)
        if self._call is not None or self._stop is not None:
            return
        idle = time.monotonic() - self._idle_since
        limit = self._spec.get("time_limit")
        if ended:
            self._check_idle()
        elif not os.path.isdir(self._run.folder):
            self.stop("lost", "The run's folder is gone.")
        elif os.path.exists(self._run.cancel):
            self.stop("cancelled", "The run was cancelled.")
        elif limit is not None and time.monotonic() - self._began > float(limit):
            self.stop("time_limit", "The time limit passed.")
        elif idle > self._patience and not self._filling:
            self.stop("lost", "No call arrived.")

    def _check_idle(self) -> None:
        """End an idle allocation that has no reason to wait; a call that comes at this moment is run before."""
        gone = not os.path.isdir(self._run.folder)
        why = "The run's folder is gone." if gone else self._idling.why_leave()
        if why is not None and (gone or close_if_nobody_waits(self._run)):
            self.stop("lost", why)

    @property
    def _patience(self) -> float:
        return FIRST_CALL_UNDER_LOCK_WITHIN if self._tenure else max(FIRST_CALL_WITHIN, self._keep_warm)

    def _finish(self, reason: Dict[str, str]) -> None:
        if self._call is not None:
            # The keeper was killed: the lock must be free at once.
            self._call.end(reason["cause"], reason["message"], grace=0.0 if reason["cause"] == "lost" else GRACE)
        while self._call is not None:
            self._wait()
            self._reap()
            self._watch_call()
        if self._ray is not None:
            self._ray.end()
        processes.end_descendants()
        working_directory.remove_spares(self._run)
        close(self._run, reason, self._ray.folder if self._ray else "", **self._idling.told())
