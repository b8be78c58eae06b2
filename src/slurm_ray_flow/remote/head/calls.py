"""A call in the head: its driver process, its limits, and the cause of its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import Any, Callable, Dict, List, Optional, Set

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.head import nursery, usage
from slurm_ray_flow.remote.head.ray_nodes import RayNodes
from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.shared import container, end_warning, limits, processes, script_end
from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.protocol import MAKE_MORE, TRY

GRACE_SECONDS = 3.0
ASK_NODES_SECONDS = 5.0
PILOT_MEMORY_SECONDS = 1.0
"""Seconds in which a pilot that uses too much memory may end one of its workers, before the head ends all of it."""
LONGEST_PAUSE = 1.0
"""The most seconds between two measurements of memory, which take long if processes share much of it."""


class DriverProcess:
    """A driver that boots, waits for orders or runs a call.

    Args:
        spec: the allocation's spec.json.
        environment: the driver's variables.
        with_ray: whether it is to import Ray.
    """

    def __init__(self, spec: Dict[str, Any], environment: Dict[str, str], with_ray: bool) -> None:
        self.report_descriptor, report = os.pipe()
        os.set_blocking(self.report_descriptor, False)
        orders, self._orders = os.pipe()
        arguments = [container.watched_parent(spec), str(int(with_ray))]
        self._process: Optional[subprocess.Popen[bytes]] = None
        try:
            self.pid = self._fork(spec, environment, arguments, [orders, 1, 2, report]) if with_ray else 0
            if not self.pid:
                program = path_of("driver/driver.py")
                self._process = subprocess.Popen(
                    [*container.python_command(spec), program, *arguments, str(report)],
                    stdin=orders, env=container.python_variables(spec, environment), pass_fds=[report],
                )  # fmt: skip
                self.pid = self._process.pid
        finally:
            os.close(report)
            os.close(orders)
        self.exit_code: Optional[int] = None
        self._partial_line = b""
        self._report: Optional[Dict[str, Any]] = None
        self.waits_for = ""

    @staticmethod
    def _fork(spec: Dict[str, Any], environment: Dict[str, str], arguments: List[str], descriptors: List[int]) -> int:
        """Have the nursery fork the driver; returns 0 if it can't. A container's Python it can't fork."""
        if spec.get("container"):
            return 0
        forked = nursery.fork_process(
            "slurm_ray_flow.remote.driver.driver", descriptors, arguments=arguments, environment=environment,
            folder=os.getcwd(), executable=container.python_command(spec)[0], orphan=True,
        )  # fmt: skip
        if forked is None:
            return 0
        pid, connection = forked
        connection.close()
        return pid

    def order(self, **order: Any) -> None:
        """Send one order; a dead driver gets none, and its exit code says so."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, json.dumps(order).encode() + b"\n")

    def report(self) -> Optional[Dict[str, Any]]:
        """The driver's report, or None. Sets `waits_for`: what the driver waits for after its report."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.report_descriptor, 65536)
                if not data:
                    break
                self._partial_line += data
        *lines, self._partial_line = self._partial_line.split(b"\n")
        for line in map(json.loads, lines):
            self._report = self._report or line
            self.waits_for = str(line.get("waits_for") or "")
        return self._report

    def signal(self, number: int) -> None:
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, exit_code: int) -> None:
        """Note that the process was reaped."""
        self.exit_code = exit_code
        if self._process:
            self._process.returncode = exit_code

    def close(self) -> None:
        """Release the pipes."""
        os.close(self.report_descriptor)
        os.close(self._orders)


class RunningCall:
    """A call that runs.

    Args:
        run: the call's run.
        driver: the driver that runs it.
        deadline: the end of its time limit, by `time.monotonic`, or None.
        memory: its limit in bytes, or None.
        call_pids: returns the pids that count for its memory.
        warn_seconds: how long before the deadline the function is warned; None for no warning.
        memory_seconds: how long it may use more memory than its limit: a pilot ends one of its workers meanwhile.
    """

    def __init__(
        self,
        run: RunFiles,
        driver: DriverProcess,
        deadline: Optional[float],
        memory: Optional[int],
        call_pids: Callable[[], Set[int]],
        warn_seconds: Optional[float] = None,
        memory_seconds: float = 0.0,
    ) -> None:
        self.run, self.driver, self._deadline, self._memory, self._call_pids = run, driver, deadline, memory, call_pids
        self._forced_end: Optional[Dict[str, Any]] = None
        self._kill_at: Optional[float] = None
        self._outcome_stays = False
        self._report: Optional[Dict[str, Any]] = None
        self._meter = usage.UsageMeter(call_pids)
        self._warn_seconds, self._signal_pending = warn_seconds, False
        self._warned: Set[str] = set()
        self._memory_seconds, self._over_since = memory_seconds, float("inf")
        self._used, self._bound, self._measured_at, self._next_measurement = 0, 0, time.monotonic(), 0.0
        self._kills: Callable[[], int] = limits.out_of_memory_kills
        self._kills_before, self._counts_own_kills = self._kills(), False

    def count_kills(self, kills: Callable[[], Optional[int]]) -> None:
        """Count the kernel's kills in the run's own control group, where all killed processes are the call's."""
        before = kills()
        if before is not None:
            self._kills, self._kills_before, self._counts_own_kills = lambda: kills() or 0, before, True

    @property
    def awaits_report(self) -> bool:
        """Whether the driver has not reported yet."""
        return self._report is None and self.driver.exit_code is None

    def watch(self, now: float) -> Optional[Dict[str, Any]]:
        """Check the driver and the limits; returns the fields of `call_ended` when the driver has ended, else None."""
        self._report = self.driver.report()
        if self.driver.exit_code is not None:
            return self._end_fields(self._report, self.driver.exit_code)
        if self._forced_end is None:
            self._check_limits(now)
            self._send_warning_signal()
            self._meter.look(now)
        if self._kill_at is not None and now >= self._kill_at:
            self.driver.signal(signal.SIGKILL)
        return None

    def end(self, cause: str, message: str, grace: float = GRACE_SECONDS) -> None:
        """End the call for this cause: SIGTERM, and SIGKILL after the grace. The first cause stays.

        An outcome that exists already stays, too: then this ends what the driver waits for after its report.
        """
        if self._forced_end is None:
            self._forced_end = {"outcome": None, "cause": cause, "message": message}
            self._kill_at = time.monotonic() + grace
            self._outcome_stays = self._report is not None
            if self._outcome_stays:
                awaited = self.driver.waits_for or "the last of its end"
                text = "{} The function had ended before, and its outcome counts; ended while it waited for {}"
                script_end.say(self.run.log, text.format(message, awaited))
            elif grace and cause in end_warning.REASONS and cause not in self._warned:
                end_warning.write(self.run.warning, cause, grace)
            self.driver.signal(signal.SIGTERM if grace else signal.SIGKILL)

    def warn(self, reason: str, seconds_left: float) -> None:
        """Warn the function of its end, once for each reason.

        Args:
            reason: "time_limit", "preempted" or "cancelled".
            seconds_left: the seconds until its end.
        """
        if reason not in self._warned and self._report is None:
            self._warned.add(reason)
            end_warning.write(self.run.warning, reason, seconds_left)
            self._signal_pending = True

    def is_near_deadline(self, now: float) -> bool:
        """Whether a warning of Slurm's, which may come a minute early, means the deadline."""
        return self._deadline is not None and now > self._deadline - (self._warn_seconds or 0.0) - 70.0

    def measured_use(self, spec: Dict[str, Any], other_uses: Callable[[], List[usage.Use]], failed: bool) -> usage.Use:
        """The call's use of resources until now, with those of the allocation's spec.

        Other nodes are asked only after a call that was long enough to be worth the wait, or one that failed.
        """
        ask = failed or self._meter.wall > ASK_NODES_SECONDS
        return usage.total(self._meter.wall, [self._meter.use(spec), *(other_uses() if ask else ())])

    def _send_warning_signal(self) -> None:
        """Send the signal of a warning when the driver has a handler: without one, the signal would kill the driver."""
        if self._signal_pending and processes.catches(self.driver.pid, end_warning.SIGNAL):
            self._signal_pending = False
            self.driver.signal(end_warning.SIGNAL)

    def _check_limits(self, now: float) -> None:
        if os.path.exists(self.run.cancel):
            self.end("cancelled", "The run was cancelled.")
        elif self._deadline is not None and now >= self._deadline:
            self.end("time_limit", "The time limit passed.")
        elif self._deadline is not None and self._warn_seconds and now >= self._deadline - self._warn_seconds:
            self.warn("time_limit", self._deadline - now)
        if self._memory and now >= self._next_measurement:
            self._check_memory(self._memory, now)

    def _check_memory(self, limit: int, now: float) -> None:
        """Measure memory, for at most a tenth of the time: an upper bound first, and exactly if that is too much."""
        began = time.process_time()
        sizes = limits.bounds(self._call_pids())
        bound, shared = sum(sizes.values()), limits.may_share(sizes)
        if shared and bound > limit:
            sizes, shared = limits.parts(sizes), False
            if sum(sizes.values()) > limit:  # shared memory of a process that ends meanwhile may have counted twice
                sizes = min(sizes, limits.held(self._call_pids()), key=lambda parts: sum(parts.values()))
        used = sum(sizes.values())
        if not shared:
            self._meter.add_memory(used)
        grown = max(used - self._used, bound - self._bound)  # a fork that writes to shared memory adds to `used` alone
        wait = limits.next_look(used, grown, now - self._measured_at, limit)
        self._next_measurement = now + max(wait, min(10 * (time.process_time() - began), LONGEST_PAUSE))
        self._used, self._bound, self._measured_at = used, bound, now
        self._over_since = min(self._over_since, now) if used > limit else float("inf")
        if now - self._over_since >= self._memory_seconds:
            text = "The call used {} of memory, its limit is {}. Its largest processes: {}."
            message = text.format(limits.readable(used), limits.readable(limit), limits.largest(sizes))
            self.end("out_of_memory", message, grace=0.0)

    def _end_fields(self, report: Optional[Dict[str, Any]], exit_code: int) -> Dict[str, Any]:
        """The fields of `call_ended`. A report after the head's SIGTERM counts only if it is of a value."""
        exit_fields = {"exit_code": exit_code} if exit_code >= 0 else {"signal": -exit_code}
        has_value = report is not None and report["outcome"] == "value"
        if self._forced_end is not None and not self._outcome_stays and not has_value:
            return {**self._forced_end, **exit_fields}
        if self._counts_own_kills and not has_value and self._kills() > self._kills_before:
            message = "The kernel ended a process of the call that would have used more memory than its limit."
            message += self._largest_processes()
            return {"outcome": None, "cause": "out_of_memory", "message": message, **exit_fields}
        return report or self._end_without_report(exit_code, exit_fields)

    def _largest_processes(self) -> str:
        return " Its largest processes were: {}.".format(self._meter.largest) if self._meter.largest else ""

    def _end_without_report(self, exit_code: int, exit_fields: Dict[str, int]) -> Dict[str, Any]:
        if exit_code == -signal.SIGKILL and self._kills() > self._kills_before:
            message = _out_of_memory_message(self._memory) + self._largest_processes()
            return {"outcome": None, "cause": "out_of_memory", "message": message, **exit_fields}
        return {"outcome": None, "cause": "crashed", "message": _crash_message(exit_code, self.run), **exit_fields}


def _out_of_memory_message(limit: Optional[int]) -> str:
    if limit is None:
        return "The machine ran out of memory."
    return "The kernel ended the function for want of memory; it asked for {}.".format(limits.readable(limit))


def _crash_message(exit_code: int, run: RunFiles) -> str:
    if exit_code >= 0:
        return "The function's process left with exit code {} before the function returned.".format(exit_code)
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "signal {}".format(-exit_code)
    message = "The function's process was ended by {}.\n{}".format(name, tail(run.log, 1000)).strip()
    return message + TRY + MAKE_MORE if name == "SIGBUS" else message


class Standby:
    """At most one driver that waits for orders.

    Args:
        spec: the allocation's spec.json.
        lock_share: the allocation's share of a server under a lock.
    """

    def __init__(self, spec: Dict[str, Any], lock_share: Optional[LockShare]) -> None:
        self._spec, self._lock_share = spec, lock_share
        self._prepared = False
        self.driver: Optional[DriverProcess] = None

    @property
    def unprepared(self) -> bool:
        """Whether there is a driver that has had no order yet."""
        return self.driver is not None and not self._prepared

    @property
    def pids(self) -> List[int]:
        return [self.driver.pid] if self.driver else []

    def boot(self, ray: Optional[RayNodes]) -> None:
        """Start a driver, unless there is one."""
        if self.driver is None:
            environment = {**os.environ, **(ray.variables if ray else {})}
            self.driver = DriverProcess(self._spec, environment, ray is not None)
            if self._lock_share:
                self._lock_share.limit(self.driver.pid)
            self._prepared = False

    def prepare(self, run_folder: str, fields: Dict[str, Any]) -> None:
        """Prepare the driver for a call like that of the run in this folder; `fields` are the order's other fields."""
        assert self.driver is not None
        self._prepared = True
        self.driver.order(prepare=run_folder, **fields)

    def take(self, ray: Optional[RayNodes]) -> DriverProcess:
        """Hand over the driver. If it was killed while it waited, a new one takes its place."""
        if self.driver is not None and self.driver.exit_code is not None and self.driver.report() is None:
            self.driver.close()
            self.driver = None
        self.boot(ray)
        assert self.driver is not None
        driver, self.driver = self.driver, None
        return driver
