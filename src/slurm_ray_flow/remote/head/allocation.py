"""The inner head of an allocation: starts Ray, takes calls from the inbox one at a time, and ends all it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, Callable, Dict, List, Optional, Set

from slurm_ray_flow.remote.head import ray_nodes
from slurm_ray_flow.remote.head.calls import GRACE_SECONDS, PILOT_MEMORY_SECONDS, RunningCall, Standby
from slurm_ray_flow.remote.head.inbox import Idling, Inbox, close, close_if_empty, record_end
from slurm_ray_flow.remote.head.ray_nodes import RayNodes
from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.scheduler.job import NoJob
from slurm_ray_flow.remote.shared import limits, processes, script_end, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import find_event

FIRST_CALL_SECONDS = 600.0
FIRST_CALL_UNDER_LOCK_SECONDS = 120.0
POLL_SECONDS, IDLE_POLL_SECONDS, IDLE_AFTER_SECONDS = 0.025, 0.1, 120.0
NEXT_STANDBY_SECONDS = 1.0
LOSS_SECONDS = 5.0
SIGN_OF_LIFE_SECONDS = 10.0
PREEMPTION_SECONDS = 30.0
"""Seconds that a job has after its warning, by Slurm's defaults; sites differ."""


class Allocation:
    """An allocation, and the calls that run in it.

    Args:
        run: the allocation's own run.
        spec: its spec.json.
        note: notes what the keeper must clean up if this process dies: `note(call=run id, ray_folder=path)`.
        lock_share: its share of a server under a lock.
    """

    def __init__(
        self, run: RunFiles, spec: Dict[str, Any], note: Callable[..., None], lock_share: Optional[LockShare] = None
    ) -> None:
        self._run, self._spec, self._note, self._lock_share = run, spec, note, lock_share
        self._start_time = self._idle_since = time.monotonic()
        self._keep_warm = float(spec.get("keep_warm") or 0.0)
        self._idling = Idling(run, spec, lock_share)
        self._ray: Optional[RayNodes] = None
        self._inbox, self._standby = Inbox(run), Standby(spec, lock_share)
        self._call: Optional[RunningCall] = None
        self._call_start_time = 0.0
        self._last_folder = run.folder
        self._end_reason: Optional[Dict[str, str]] = None
        self._keeper_pid = os.getppid()
        self._job = context_of(spec)
        self._wake_reader, self._wake_writer = os.pipe()
        self._filler_pid, self._next_sign_of_life = 0, 0.0

    def serve(self) -> None:
        """Take calls until there is a reason to end, then end everything."""
        self._filler_pid = working_directory.begin(self._run, self._spec)
        self._start_ray()
        self._boot_standby()
        while self._end_reason is None:
            self._wait()
            self._iterate()
        self._finish(self._end_reason)

    def stop(self, cause: str, message: str) -> None:
        """End the allocation in the next iteration; the first reason stays."""
        self._end_reason = self._end_reason or {"cause": cause, "message": message}

    # ---- waiting

    def listen(self) -> None:
        """Have signals and the ends of children wake the loop; SIGTERM and SIGINT end the allocation."""
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self._wake_reader, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_warning)

    def _on_signal(self, number: int, _: object) -> None:
        if os.getppid() != self._keeper_pid:
            self.stop("lost", "The head's keeper was killed.")
        else:
            self.stop(*self._job.why_ended(self._run, signal.Signals(number).name))

    def _on_warning(self, *_: object) -> None:
        """Warn the call of a preemption. Near the deadline, Slurm's signal means the time limit."""
        if self._call is not None and not self._call.is_near_deadline(time.monotonic()):
            self._call.warn("preempted", PREEMPTION_SECONDS)

    def _wait(self) -> None:
        is_idle = self._call is None and time.monotonic() - self._idle_since > IDLE_AFTER_SECONDS
        sources = [self._wake_reader]
        if self._call is not None and self._call.awaits_report:
            sources.append(self._call.driver.report_descriptor)
        select.select(sources, [], [], IDLE_POLL_SECONDS if is_idle else POLL_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 65536)

    def _iterate(self) -> None:
        if self._lock_share:
            self._lock_share.keep()
        self._give_sign_of_life()
        self._reap()
        self._watch_ray()
        self._watch_call()
        self._boot_standby()
        self._prepare_standby()
        self._begin_next()
        self._check_end()

    def _give_sign_of_life(self) -> None:
        """In a job, touch the events: Slurm may call a job running long after all its processes have ended."""
        if time.monotonic() >= self._next_sign_of_life and not isinstance(self._job, NoJob):
            self._next_sign_of_life = time.monotonic() + SIGN_OF_LIFE_SECONDS
            with contextlib.suppress(OSError):
                os.utime(self._run.events)

    def _reap(self) -> None:
        for pid, exit_code in processes.reap().items():
            if pid == self._filler_pid:
                self._filler_pid, self._idle_since = 0, time.monotonic()
            if self._ray is not None:
                self._ray.ended(pid, exit_code)
            for driver in (self._standby.driver, self._call.driver if self._call else None):
                if driver is not None and pid == driver.pid:
                    driver.ended(exit_code)

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
            seconds = round(time.monotonic() - self._ray.start_time, 3)
            self._run.record("ray_ready", seconds=seconds, **self._ray.described())
            self._idle_since = time.monotonic()
        for name, why in self._ray.new_losses().items():  # the launch of a call reads only the events of the call's run
            (self._call.run if self._call else self._run).record("node_lost", node=name, why=why)
        if self._ray.failure is not None:
            cause = "environment" if self._ray.address is None else "node_failed"
            self.stop("out_of_memory" if self._ray.starved else cause, self._ray.failure)

    @property
    def _ready(self) -> bool:
        return not self._filler_pid and (self._ray is None or self._ray.address is not None)

    # ---- drivers

    def _boot_standby(self) -> None:
        if self._end_reason is not None:
            return
        if self._call is not None:
            if not self._keep_warm or time.monotonic() - self._call_start_time < NEXT_STANDBY_SECONDS:
                return
        elif self._run.has_ended() and not self._keep_warm:
            return
        self._standby.boot(self._ray)

    def _prepare_standby(self) -> None:
        """Prepare the standby driver for the next call, unless a call waits already."""
        if self._standby.unprepared and self._ready and not self._inbox.entries():
            folder = working_directory.ahead(self._run, self._last_folder)
            self._standby.prepare(self._last_folder, {**self._ray_and_allocation(), "folder": folder})

    def _ray_and_allocation(self) -> Dict[str, Any]:
        return {"ray": self._ray.address if self._ray else None, "allocation": self._run.folder}

    # ---- calls

    def _begin_next(self) -> None:
        if self._call is not None or not self._ready or self._end_reason is not None:
            return
        entries = self._inbox.entries()
        if entries and self._inbox.take(entries[0]):
            run = RunFiles(self._run.root, entries[0])
            self._begin(run)
            if self._call is None:
                self._inbox.remove(run)

    def _begin(self, run: RunFiles) -> None:
        try:
            spec = run.read_spec()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                record_end(run, "environment", "The run can't be read: {}".format(error))
            return
        if find_event(run.recorded(), "call_started") or run.has_ended():
            return  # home announced the call twice, because the answer to its first announcement was lost
        if os.path.exists(run.cancel):
            record_end(run, "cancelled", "The run was cancelled.")
            self._idle_since = time.monotonic()
            return
        driver = self._standby.take(self._ray)
        self._note(call=run.id)
        self._call_start_time = time.monotonic()
        if run.id != self._run.id:
            run.keep_reserve()
            for name, why in (self._ray.lost if self._ray else {}).items():
                run.record("node_lost", node=name, why=why)
        deadline, memory = self._deadline(run, spec), self._spec.get("memory")
        left = {} if deadline is None else {"seconds_left": round(deadline - time.monotonic(), 3)}
        run.record("call_started", pid=driver.pid, **left)
        self._idling.end(run.id)
        driver.order(run=run.folder, **self._ray_and_allocation())
        self._last_folder = run.folder
        grace = PILOT_MEMORY_SECONDS if spec.get("pilot") and not spec.get("ray") else 0.0
        self._call = RunningCall(run, driver, deadline, memory, self._call_pids, spec.get("warn_seconds"), grace)
        if self._ray:
            self._ray.call_begins()
        if self._lock_share:
            self._call.count_kills(self._lock_share.kills)

    def _deadline(self, run: RunFiles, spec: Dict[str, Any]) -> Optional[float]:
        """The deadline of a call; in a job, no later than the job's."""
        is_own = run.id == self._run.id
        limit = (self._spec if is_own else spec).get("time_limit")
        start_time = self._start_time if is_own else self._call_start_time
        deadlines = [start_time + float(limit)] if limit is not None else []
        if self._idling.job_end is not None:
            deadlines.append(self._idling.job_end)
        return min(deadlines, default=None)

    def _spared_pids(self) -> List[int]:
        return [*(self._ray.pids if self._ray else []), *self._standby.pids]

    def _call_pids(self) -> Set[int]:
        """The pids of a call's processes: its driver's and those of Ray's workers."""
        ray_pids = self._ray.own_processes if self._ray else set()
        return processes.descendants(os.getpid(), self._standby.pids) - ray_pids

    def _watch_call(self) -> None:
        end_fields = self._call.watch(time.monotonic()) if self._call else None
        if end_fields is not None:
            self._close_call(end_fields)

    def _close_call(self, end_fields: Dict[str, Any]) -> None:
        """End the call's other processes, then record its end: after that, its files do not change."""
        assert self._call is not None
        call, self._call = self._call, None
        lost_processes = bool(end_fields.pop("lost_processes", False))
        usage = call.measured_use(self._spec, self._ray.uses if self._ray else list, lost_processes)
        if end_fields["outcome"] is not None:
            script_end.report_survivors(call.run.log, self._spared_pids())
        processes.end_descendants(self._spared_pids())
        call.driver.close()
        call.run.free_reserve()
        self._inbox.remove(call.run)
        written_files = working_directory.Written(call.run)
        if not call.run.has_ended():  # home may have recorded the end, after a time without signs of life
            end_fields = self._with_loss_cause(end_fields, usage) if lost_processes else end_fields
            call.run.record("call_ended", **end_fields, usage=usage, **written_files.event_fields())
        written_files.remove_copies()
        self._note(call="")
        self._idle_since = time.monotonic()
        self._idling.begin(self._resources())

    def _resources(self) -> Dict[str, Any]:
        """The CPUs and GPUs of all nodes."""
        ray_fields = self._ray.described() if self._ray else {}
        nodes = int(self._spec.get("nodes") or 1)
        cpus = ray_fields.get("cpus") or nodes * int(self._spec.get("cpus") or limits.processors())
        gpus = ray_fields.get("gpus") or nodes * int(self._spec.get("gpus") or 0)
        return {"nodes": nodes, "cpus": cpus, "gpus": gpus}

    def _with_loss_cause(self, end_fields: Dict[str, Any], usage: Dict[str, Any]) -> Dict[str, Any]:
        """Add the cause of the loss of Ray's processes; the head may hear of a lost node later than the function."""
        assert self._ray is not None
        deadline = time.monotonic() + LOSS_SECONDS
        while self._ray.other_nodes and not self._ray.lost and time.monotonic() < deadline:
            self._reap()
            self._watch_ray()
            time.sleep(POLL_SECONDS)
        return ray_nodes.with_loss_cause(end_fields, usage, self._ray, self._job)

    # ---- the end

    def _check_end(self) -> None:
        is_idle = self._call is None and self._end_reason is None and self._run.has_ended()
        if self._lock_share and self._keep_warm:
            self._lock_share.show_idle(is_idle)
        if self._call is not None or self._end_reason is not None:
            return
        idle_seconds = time.monotonic() - self._idle_since
        limit = self._spec.get("time_limit")
        if is_idle:
            self._check_idle()
        elif not os.path.isdir(self._run.folder):
            self.stop("lost", "The run's folder is gone.")
        elif os.path.exists(self._run.cancel):
            self.stop("cancelled", "The run was cancelled.")
        elif limit is not None and time.monotonic() - self._start_time > float(limit):
            self.stop("time_limit", "The time limit passed.")
        elif idle_seconds > self._first_call_seconds and not self._filler_pid:
            self.stop("lost", "No call arrived.")

    def _check_idle(self) -> None:
        """End an idle allocation that has a reason to end, unless a call comes at this moment."""
        gone = not os.path.isdir(self._run.folder)
        message = "The run's folder is gone." if gone else self._idling.end_reason()
        if message is not None and (gone or close_if_empty(self._run)):
            self.stop("lost", message)

    @property
    def _first_call_seconds(self) -> float:
        return FIRST_CALL_UNDER_LOCK_SECONDS if self._lock_share else max(FIRST_CALL_SECONDS, self._keep_warm)

    def _finish(self, reason: Dict[str, str]) -> None:
        if self._call is not None:
            grace = 0.0 if reason["cause"] == "lost" else GRACE_SECONDS  # the keeper was killed: free the lock at once
            self._call.end(reason["cause"], reason["message"], grace)
        while self._call is not None:
            self._wait()
            self._reap()
            self._watch_call()
        if self._ray is not None:
            self._ray.end()
        processes.end_descendants()
        working_directory.remove_spares(self._run)
        close(self._run, reason, self._ray.folder if self._ray else "", **self._idling.event_fields())
