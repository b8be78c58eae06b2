"""A call in the head: its driver process, its limits, and the verdict about its end."""

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

GRACE = 3.0
ASK_OTHERS_AFTER = 5.0
LONGEST_PAUSE = 1.0
"""Seconds between two looks at the memory of processes that share much, which cost something."""


class DriverProcess:
    """A driver that is booted and waits for orders, or runs a call.

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
        self.code: Optional[int] = None
        self._text = b""
        self._report: Optional[Dict[str, Any]] = None
        self.waits_for = ""

    @staticmethod
    def _fork(spec: Dict[str, Any], environment: Dict[str, str], arguments: List[str], descriptors: List[int]) -> int:
        """Fork the driver from the nursery; 0 where it would not be this process's child, as in a container."""
        if spec.get("container"):
            return 0
        wish = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "orphan": True}
        made = nursery.fork_process(
            "slurm_ray_flow.remote.driver.driver", descriptors, executable=container.python_command(spec)[0], **wish
        )
        if made is None:
            return 0
        made[1].close()
        return made[0]

    def order(self, **order: Any) -> None:
        """Send one order; a driver that is dead already shows by its exit."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, json.dumps(order).encode() + b"\n")

    def report(self) -> Optional[Dict[str, Any]]:
        """The driver's report, or None before it; sets `waits_for`, which the driver still waits for after it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.report_descriptor, 65536)
                if not data:
                    break
                self._text += data
        *lines, self._text = self._text.split(b"\n")
        for line in map(json.loads, lines):
            self._report = self._report or line
            self.waits_for = str(line.get("waits_for") or "")
        return self._report

    def signal(self, number: int) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, code: int) -> None:
        """Note that the process was reaped."""
        self.code = code
        if self._process:
            self._process.returncode = code

    def close(self) -> None:
        """Release the pipes."""
        os.close(self.report_descriptor)
        os.close(self._orders)


class RunningCall:
    """One call under way.

    Args:
        run: the call's run.
        driver: the driver that has been told to run it.
        deadline: when its time limit passes, in `time.monotonic` seconds, or None.
        memory: its limit in bytes, or None.
        family: gives the pids that count for its memory.
        warn_seconds: how long before the deadline the function is told of it; None never tells.
    """

    def __init__(
        self,
        run: RunFiles,
        driver: DriverProcess,
        deadline: Optional[float],
        memory: Optional[int],
        family: Callable[[], Set[int]],
        warn_seconds: Optional[float] = None,
    ) -> None:
        self.run, self.driver, self._deadline, self._memory, self._family = run, driver, deadline, memory, family
        self._ending: Optional[Dict[str, Any]] = None
        self._kill_at: Optional[float] = None
        self._cut_off = False
        self._report: Optional[Dict[str, Any]] = None
        self._meter = usage.UsageMeter(family)
        self._warn_seconds, self._untold = warn_seconds, False
        self._warned: Set[str] = set()
        self._used, self._bound, self._looked, self._next_memory = 0, 0, time.monotonic(), 0.0
        self._kills, self._kills_before, self._confined = (
            limits.out_of_memory_kills,
            limits.out_of_memory_kills(),
            False,
        )

    def count_kills(self, kills: Callable[[], Optional[int]]) -> None:
        """Count the kernel's kills in the run's own group, where each of them is of this call."""
        now = kills()
        if now is not None:
            self._kills, self._kills_before, self._confined = lambda: kills() or 0, now, True

    @property
    def awaits_report(self) -> bool:
        """Whether the driver has not reported yet."""
        return self._report is None and self.driver.code is None

    def watch(self, now: float) -> Optional[Dict[str, Any]]:
        """Look at the driver and the limits; the fields of `call_ended` once it has ended, else None."""
        self._report = self.driver.report()
        if self.driver.code is not None:
            return self._verdict(self._report, self.driver.code)
        if self._ending is None:
            self._check_limits(now)
            self._tell()
            self._meter.look(now)
        if self._kill_at is not None and now >= self._kill_at:
            self.driver.signal(signal.SIGKILL)
        return None

    def end(self, cause: str, message: str, grace: float = GRACE) -> None:
        """End the call for this cause: SIGTERM, and SIGKILL after the grace. The first cause stays.

        An outcome that is there already stays, too: then only what the end of the call waits for is cut off.
        """
        if self._ending is None:
            self._ending = {"outcome": None, "cause": cause, "message": message}
            self._kill_at = time.monotonic() + grace
            self._cut_off = self._report is not None
            if self._cut_off:
                waits = self.driver.waits_for or "the last of its end"
                text = "{} The function had ended before, and its outcome counts; ended while it waited for {}"
                script_end.say(self.run.log, text.format(message, waits))
            elif grace and cause in end_warning.REASONS and cause not in self._warned:
                end_warning.write(self.run.warning, cause, grace)
            self.driver.signal(signal.SIGTERM if grace else signal.SIGKILL)

    def warn(self, reason: str, seconds_left: float) -> None:
        """Warn the function of its end, once for each reason.

        Args:
            reason: "time_limit", "preempted" or "cancelled".
            seconds_left: how long it has.
        """
        if reason not in self._warned and self._report is None:
            self._warned.add(reason)
            end_warning.write(self.run.warning, reason, seconds_left)
            self._untold = True

    def near_its_end(self, now: float) -> bool:
        """Whether its time limit is so near that Slurm's warning, which may come a minute early, means that."""
        return self._deadline is not None and now > self._deadline - (self._warn_seconds or 0.0) - 70.0

    def used(self, spec: Dict[str, Any], others: Callable[[], List[usage.Use]], failed: bool) -> usage.Use:
        """The call's use of resources until now, here and on other hosts, with those of the allocation's spec.

        The others are asked after a call that was long enough to be worth the wait, or one that failed.
        """
        ask = failed or self._meter.wall > ASK_OTHERS_AFTER
        return usage.total(self._meter.wall, [self._meter.use(spec), *(others() if ask else ())])

    def _tell(self) -> None:
        """Send the signal, as soon as it would not kill: a driver that still boots has no handler for it."""
        if self._untold and processes.catches(self.driver.pid, end_warning.SIGNAL):
            self._untold = False
            self.driver.signal(end_warning.SIGNAL)

    def _check_limits(self, now: float) -> None:
        if os.path.exists(self.run.cancel):
            self.end("cancelled", "The run was cancelled.")
        elif self._deadline is not None and now >= self._deadline:
            self.end("time_limit", "The time limit passed.")
        elif self._deadline is not None and self._warn_seconds and now >= self._deadline - self._warn_seconds:
            self.warn("time_limit", self._deadline - now)
        if self._memory and now >= self._next_memory:
            self._check_memory(self._memory, now)

    def _check_memory(self, limit: int, now: float) -> None:
        """Measure memory quickly, and closely where that finds too much, for at most a tenth of the time."""
        spent = time.process_time()
        sizes = limits.bounds(self._family())
        bound, shared = sum(sizes.values()), limits.may_share(sizes)
        if shared and bound > limit:
            sizes, shared = limits.parts(sizes), False
            if sum(sizes.values()) > limit:  # one that ends between two of them leaves its part to the others
                sizes = min(sizes, limits.held(self._family()), key=lambda parts: sum(parts.values()))
        used = sum(sizes.values())
        if not shared:
            self._meter.saw_memory(used)
        grown = max(used - self._used, bound - self._bound)  # a fork that writes to what it shared adds to `used` alone
        wait = limits.next_look(used, grown, now - self._looked, limit)
        self._next_memory = now + max(wait, min(10 * (time.process_time() - spent), LONGEST_PAUSE))
        self._used, self._bound, self._looked = used, bound, now
        if used > limit:
            text = "The call used {} of memory, its limit is {}. Its largest processes: {}."
            message = text.format(limits.readable(used), limits.readable(limit), limits.largest(sizes))
            self.end("out_of_memory", message, grace=0.0)

    def _verdict(self, report: Optional[Dict[str, Any]], code: int) -> Dict[str, Any]:
        """The fields of `call_ended`. A value in time counts; any other report after the head's SIGTERM does not."""
        how = {"exit_code": code} if code >= 0 else {"signal": -code}
        if self._ending is not None and not self._cut_off and (report is None or report["outcome"] != "value"):
            return {**self._ending, **how}
        if self._confined and (report is None or report["outcome"] != "value") and self._kills() > self._kills_before:
            message = "The kernel ended a process of the call that would have used more memory than its limit."
            return {"outcome": None, "cause": "out_of_memory", "message": message + self._largest(), **how}
        return report or self._without_report(code, how)

    def _largest(self) -> str:
        return " Its largest processes were: {}.".format(self._meter.largest) if self._meter.largest else ""

    def _without_report(self, code: int, how: Dict[str, int]) -> Dict[str, Any]:
        if code == -signal.SIGKILL and self._kills() > self._kills_before:
            return {
                "outcome": None,
                "cause": "out_of_memory",
                "message": _too_much(self._memory) + self._largest(),
                **how,
            }
        return {"outcome": None, "cause": "crashed", "message": _how_it_died(code, self.run), **how}


def _too_much(limit: Optional[int]) -> str:
    if limit is None:
        return "The machine ran out of memory."
    return "The kernel ended the function for want of memory; it asked for {}.".format(limits.readable(limit))


def _how_it_died(code: int, run: RunFiles) -> str:
    if code >= 0:
        return "The function's process left with exit code {} before the function returned.".format(code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "signal {}".format(-code)
    died = "The function's process was ended by {}.\n{}".format(name, tail(run.log, 1000)).strip()
    return died + TRY + MAKE_MORE if name == "SIGBUS" else died


class Standby:
    """At most one driver that waits for orders.

    Args:
        spec: the allocation's spec.json.
        tenure: what the allocation holds of a server under a lock.
    """

    def __init__(self, spec: Dict[str, Any], tenure: Optional[LockShare]) -> None:
        self._spec, self._tenure = spec, tenure
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
        """Start a driver, if none is there."""
        if self.driver is None:
            environment = {**os.environ, **(ray.variables if ray else {})}
            self.driver = DriverProcess(self._spec, environment, ray is not None)
            if self._tenure:
                self._tenure.limit(self.driver.pid)
            self._prepared = False

    def prepare(self, like: str, place: Dict[str, Any]) -> None:
        """Prepare the driver for a call like that of the run in the folder `like`."""
        assert self.driver is not None
        self._prepared = True
        self.driver.order(prepare=like, **place)

    def take(self, ray: Optional[RayNodes]) -> DriverProcess:
        """Hand over the driver; one that was killed while it waited is replaced."""
        if self.driver is not None and self.driver.code is not None and self.driver.report() is None:
            self.driver.close()
            self.driver = None
        self.boot(ray)
        assert self.driver is not None
        driver, self.driver = self.driver, None
        return driver
