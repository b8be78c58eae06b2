"""The report of a cluster, the verdicts on its answers, and what is news since the last report. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from slurm_ray_flow.core.errors import (
    ConnectionFailed,
    EnvironmentFailed,
    HostKeyFailed,
    LogInFailed,
    SlurmRayFlowError,
)
from slurm_ray_flow.core.lock import LockQueue, clock
from slurm_ray_flow.core.prefect_events import PrefectEvent, cluster_down, cluster_up, warm_idle
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.warm import Warm
from slurm_ray_flow.remote.shared.protocol import MAKE_ONE

GIB = 1024**3
CLOCK_SECONDS = 60.0
OLDEST_RSYNC = (3, 1)
State = Literal["ok", "warning", "failed", "not known"]
Answer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One line of the table.

    Attributes:
        name: what was looked at.
        state: "ok", "warning", "failed" or "not known".
        found: what it is like.
        advice: what to do about it; "" where there is nothing to do.
    """

    name: str
    state: State
    found: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class HomeFacts:
    """What home knows, to compare with.

    Attributes:
        now: home's time at the middle of the question.
        rsync: the version of rsync here; "" for none.
        version: the Python version that is needed there.
        gpus: how many GPUs the cluster is said to have; None for what is there.
        wheels: where packages come from: "index" or "upload".
    """

    now: float
    rsync: str
    version: str
    gpus: int | None = None
    wheels: str = "index"


def judged(answers: Mapping[str, Answer], home: HomeFacts) -> list[CheckResult]:
    """All findings of a cluster that answered."""
    return [_judged(name, answers[name], judge, home) for name, judge in _JUDGES.items() if name in answers]


def _judged(
    name: str, answer: Answer, judge: Callable[[Answer, HomeFacts], CheckResult], home: HomeFacts
) -> CheckResult:
    if "error" in answer:
        return CheckResult(name, "failed", str(answer["error"]), str(answer.get("advice", "")))
    return judge(answer, home)


def logged_in(label: str) -> list[CheckResult]:
    """Of a cluster that let us in."""
    return [CheckResult("host key", "ok", "it is the known one"), CheckResult("log-in", "ok", f"{label} lets you in")]


def not_logged_in(error: SlurmRayFlowError) -> list[CheckResult]:
    """Of a cluster that did not: the row that says why, and nothing known of the rest."""
    known = "we got no further"
    if not isinstance(error, ConnectionFailed):  # it was let in, and met a host that our program can't start on
        name = "python" if isinstance(error, EnvironmentFailed) else "root"
        rest = [CheckResult(one, "not known", known) for one in _JUDGES if one != name]
        return [*logged_in("the server"), _failure(name, error), *rest]
    if isinstance(error, HostKeyFailed):
        first = [_failure("host key", error), CheckResult("log-in", "not known", known)]
    elif isinstance(error, LogInFailed):
        first = [CheckResult("host key", "ok", "it is the known one"), _failure("log-in", error)]
    else:
        first = [CheckResult("host key", "not known", known), _failure("log-in", error)]
    return [*first, *(CheckResult(name, "not known", known) for name in _JUDGES)]


def _failure(name: str, error: SlurmRayFlowError) -> CheckResult:
    return CheckResult(name, "failed", error.what, error.advice)


# ---- one judge for each question


def _account(answer: Answer, _: HomeFacts) -> CheckResult:
    text = f"{answer['user']} on {answer['host']}, home {answer['home']} ({answer['mode']:04o})"
    if not answer["writable"]:
        return CheckResult("account", "warning", text + " can't be written", "choose a root elsewhere")
    if answer["mode"] & 0o022:
        return CheckResult("account", "warning", text + ": others can write in it", f"chmod go-w {answer['home']}")
    return CheckResult("account", "ok", text)


def _root(answer: Answer, _: HomeFacts) -> CheckResult:
    path = answer["path"]
    if answer["exists"] and not answer["ours"]:
        advice = "choose another root for this cluster"
        return CheckResult("root", "failed", f"{path} belongs to another user (number {answer['owner']})", advice)
    if not answer["writable"]:
        advice = "see that the disk is neither full nor read-only, or choose another root"
        return CheckResult("root", "failed", f"nothing can be written in {path}", advice)
    return CheckResult("root", "ok", path if answer["exists"] else f"{path} (made by the first launch)")


def _python(answer: Answer, _: HomeFacts) -> CheckResult:
    if not answer["python"]:
        return CheckResult("python", "ok", f"uv downloads {answer['version']} at the first launch")
    return CheckResult("python", "ok", f"{answer['version']}, {answer['python']}")


def _space(name: str, little: float, least: float, advice: str) -> Callable[[Answer, HomeFacts], CheckResult]:
    def judge(answer: Answer, _: HomeFacts) -> CheckResult:
        if "bytes" not in answer:
            return CheckResult(name, "ok", "none is set")
        files = answer.get("files")
        text = f"{format_memory(answer['bytes'])} free" + ("" if files is None else f", {files} files")
        full = answer["bytes"] < least or (files is not None and files < 1000)
        short = answer["bytes"] < little or (files is not None and files < 50_000)
        state: State = "failed" if full else "warning" if short else "ok"
        return CheckResult(name, state, text, "" if state == "ok" else advice)

    return judge


def _shared_memory(answer: Answer, _: HomeFacts) -> CheckResult:
    text = f"{format_memory(answer['all_bytes'])}, {format_memory(answer['bytes'])} free"
    if not answer["all_bytes"]:
        return CheckResult("shared memory", "warning", "none, and Ray does not start without", MAKE_ONE)
    if answer["bytes"] < GIB // 4:
        advice = "Ray keeps objects there, else in /tmp, which is slower: free some of /dev/shm, or make it larger"
        return CheckResult("shared memory", "warning", text, f"{advice} (of a container by --shm-size=2g)")
    return CheckResult("shared memory", "ok", text)


def _rsync(answer: Answer, home: HomeFacts) -> CheckResult:
    there = answer["version"]
    text = f"{there or 'none'} there, {home.rsync or 'none'} here"
    old = [version for version in (there, home.rsync) if _numbers(version) < OLDEST_RSYNC]
    if old:
        advice = "install rsync 3.1 or later where it is missing: little of your files and values travels without it"
        return CheckResult("rsync", "warning", f"{text}; no more than 32 KiB of your files travel without", advice)
    return CheckResult("rsync", "ok", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _gpus(answer: Answer, home: HomeFacts) -> CheckResult:
    count = answer["count"]
    if home.gpus and count < home.gpus:
        advice = "see what nvidia-smi says there, or correct gpus= of the block"
        return CheckResult("gpus", "failed", f"{count} there, {home.gpus} in the block", advice)
    return CheckResult("gpus", "ok", str(count))


def _lock(answer: Answer, _: HomeFacts) -> CheckResult:
    path = answer["path"]
    if not answer["writable"]:
        advice = f"its owner can run: chmod a+rw {path}" if answer["exists"] else "choose another lock_path"
        return CheckResult("lock", "failed", f"{path} can't be written by you", advice)
    who = ", ".join(f"{holder['user']} since {clock(holder['since'])}" for holder in answer["holders"])
    waiting = f"; {len(answer['waiting'])} waiting" if answer["waiting"] else ""
    return CheckResult("lock", "ok", f"{path}, {f'held by {who}' if who else 'free'}{waiting}")


def _clock(answer: Answer, home: HomeFacts) -> CheckResult:
    ahead = (answer["began"] + answer["ended"]) / 2 - home.now
    if abs(ahead) > CLOCK_SECONDS:
        text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
        return CheckResult(
            "clock", "warning", text, "set the clocks right (NTP): ages and log-in tokens depend on them"
        )
    return CheckResult("clock", "ok", f"{abs(ahead):.1f} s apart")


def _registry(answer: Answer, home: HomeFacts) -> CheckResult:
    if answer["reached"]:
        return CheckResult("registry", "ok", answer["address"])
    text = f"{answer['address']} can't be reached" + (f": {answer['why']}" if answer.get("why") else "")
    if home.wheels == "upload":
        return CheckResult("registry", "ok", f'{text}; not needed with wheels="upload"')
    return CheckResult("registry", "warning", text, 'set wheels="upload" on the block: packages then travel from here')


_FULL = "`srf clean` removes what is old; or choose a root on another disk"
_JUDGES: dict[str, Callable[[Answer, HomeFacts], CheckResult]] = {
    "account": _account,
    "python": _python,
    "root": _root,
    "disk": _space("disk", 5 * GIB, GIB // 4, _FULL),
    "quota": _space("quota", 5 * GIB, GIB // 4, _FULL),
    "temporary": _space("temporary", GIB, GIB // 16, "free some of /tmp: Ray's logs and sockets lie there"),
    "shared memory": _shared_memory,
    "rsync": _rsync,
    "gpus": _gpus,
    "lock": _lock,
    "clock": _clock,
    "registry": _registry,
}


AGAIN_SECONDS = 3600.0
"""A cluster that let us not in is not asked again for so long: sites block accounts for that."""


@dataclasses.dataclass(frozen=True)
class Health:
    """How a cluster was at the last look.

    Attributes:
        why: it could not be used; "" where it could.
        since: when that began, in seconds since 1970.
        again: it is not asked before.
        told: the idle times of Ray clusters that were told of already.
    """

    why: str = ""
    since: float = 0.0
    again: float = 0.0
    told: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, said: Any) -> Health:
        """Read it; what is not of its form, or nothing, is a cluster that nobody has looked at."""
        try:
            return read_record(cls, {**said, "told": tuple(map(str, said["told"]))})
        except (KeyError, TypeError, ValueError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "told": list(self.told)}


@dataclasses.dataclass(frozen=True)
class Load:
    """How much of a cluster is in use; of a scheduler's cluster, how much of the partition that jobs go to.

    Attributes:
        cpus: how many there are; None where that is not known.
        busy: how many of them are in use.
        partition: that partition; "" elsewhere.
        gpus, gpus_taken: of that partition.
    """

    cpus: int | None = None
    busy: float | None = None
    partition: str = ""
    gpus: int | None = None
    gpus_taken: int | None = None


@dataclasses.dataclass(frozen=True)
class JobCounts:
    """How many runs hold a lock and wait for it; on a scheduler's cluster, how many of one's own jobs do."""

    running: int | None = None
    waiting: int | None = None


@dataclasses.dataclass(frozen=True)
class PartitionTable:
    """The partitions of a scheduler's cluster, as a table and for scripts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ClusterReport:
    """What a cluster is like. What it was not asked for, and what it does not have, is None.

    Attributes:
        cluster: its name.
        error: why it could not be asked.
        load: how much of it is in use.
        lock: the holders of a server that is shared under a lock, and its queue.
        jobs: how many runs are at work there, and how many wait.
        partitions: what a scheduler gives out.
        findings: whether it has what runs need, one for each question: its Python, its disk, its lock.
        idle: the Ray clusters that wait there for a next call.
        health: since when it can be used, or not, as check-ups remember it.
    """

    cluster: str
    error: SlurmRayFlowError | None = None
    load: Load | None = None
    lock: LockQueue | None = None
    jobs: JobCounts | None = None
    partitions: PartitionTable | None = None
    findings: Sequence[CheckResult] | None = None
    idle: Sequence[Warm] | None = None
    health: Health = dataclasses.field(default_factory=Health)

    @property
    def state(self) -> str:
        """One of "up", "away" (it can't be asked) and "locked" (it wants to know something that a user would type)."""
        return "locked" if isinstance(self.error, LogInFailed) else "away" if self.error else "up"

    @property
    def failed(self) -> list[CheckResult]:
        """The findings for which it can't be used."""
        return [finding for finding in self.findings or () if finding.state == "failed"]

    @property
    def down(self) -> bool:
        """Whether it can't be used, as far as it was asked."""
        return bool(self.error or self.failed)

    @property
    def why(self) -> str:
        """The reason that it can't be used; "" where it can."""
        return self.error.what if self.error else self.failed[0].found if self.failed else ""

    @property
    def advice(self) -> str:
        """What to try then."""
        return self.error.advice if self.error else self.failed[0].advice if self.failed else ""

    def answered(self) -> ClusterReport:
        """The same report.

        Raises:
            SlurmRayFlowError: the cluster could not be asked.
        """
        if self.error:
            raise self.error
        return self

    def to_json(self) -> dict[str, Any]:
        """The report for scripts; null is what is not known."""
        lock = self.lock
        return {
            "state": self.state,
            "why": self.why,
            "advice": self.advice,
            **vars(self.load or Load()),
            "slots": lock and lock.slots,
            "slots_free": lock and lock.free,
            "holders": [vars(holder) for holder in lock.holders] if lock else [],
            **vars(self.jobs or JobCounts()),
            "findings": self.findings and [vars(finding) for finding in self.findings],
        }


def looked(before: Health, report: ClusterReport, idle_seconds: float, now: float) -> tuple[Health, list[PrefectEvent]]:
    """What is remembered after a check-up, and the events that tell what is new.

    Args:
        before: what was remembered.
        report: what the check-up found.
        idle_seconds: for how long a Ray cluster has to idle, to be told of.
        now: seconds since 1970.
    """
    cluster, why, error = report.cluster, report.why, report.error
    since = before.since if before.since and bool(before.why) == bool(why) else now
    if why:
        news = [] if before.why else [cluster_down(cluster, why, report.advice)]
        refused = isinstance(error, ConnectionFailed) and not error.transient
        return Health(why, since, now + AGAIN_SECONDS if refused else 0.0, before.told), news
    long = {_name(one): one for one in report.idle or () if now - _since(one) >= idle_seconds}
    news = [cluster_up(cluster, now - before.since)] if before.why else []
    news += [warm_idle(one, cluster) for name, one in long.items() if name not in before.told]
    return Health("", since, 0.0, tuple(long)), news


def _name(one: Warm) -> str:
    """One time of idling: after its next call it is another one."""
    return f"{one.allocation}@{_since(one)}"


def _since(one: Warm) -> float:
    return float((one.idle or {}).get("time", 0.0))
