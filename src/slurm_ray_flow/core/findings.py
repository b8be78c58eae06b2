"""What a check of a cluster found, judged: is it well, and what can be done about it. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from slurm_ray_flow.core.errors import (
    ConnectionFailed,
    EnvironmentFailed,
    HostKeyFailed,
    LogInFailed,
    SlurmRayFlowError,
)
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.remote.protocol import MAKE_ONE

GIB = 1024**3
CLOCK_SECONDS = 60.0
OLDEST_RSYNC = (3, 1)
State = Literal["ok", "warning", "failed", "not known"]
Answer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finding:
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
class Home:
    """What home knows, to compare with.

    Attributes:
        now: home's time at the middle of the question.
        rsync: the version of rsync here; "" for none.
        version: the Python version that is needed there.
        gpus: how many GPUs the cluster is said to have; None for what is there.
        wheels: where packages come from: "index" or "upload".
        remote: whether the cluster is another machine.
    """

    now: float
    rsync: str
    version: str
    gpus: int | None = None
    wheels: str = "index"
    remote: bool = True


def judged(answers: Mapping[str, Answer], home: Home) -> list[Finding]:
    """All findings of a cluster that answered."""
    return [_judged(name, answers[name], judge, home) for name, judge in _JUDGES.items() if name in answers]


def _judged(name: str, answer: Answer, judge: Callable[[Answer, Home], Finding], home: Home) -> Finding:
    if "error" in answer:
        return Finding(name, "failed", str(answer["error"]), str(answer.get("advice", "")))
    return judge(answer, home)


def logged_in(label: str) -> list[Finding]:
    """Of a cluster that let us in."""
    return [Finding("host key", "ok", "it is the known one"), Finding("log-in", "ok", f"{label} lets you in")]


def not_logged_in(error: SlurmRayFlowError) -> list[Finding]:
    """Of a cluster that did not: the row that says why, and nothing known of the rest."""
    known = "we got no further"
    if not isinstance(error, ConnectionFailed):  # it was let in, and met a host that our program can't start on
        name = "python" if isinstance(error, EnvironmentFailed) else "root"
        rest = [Finding(one, "not known", known) for one in _JUDGES if one != name]
        return [*logged_in("the server"), _failure(name, error), *rest]
    if isinstance(error, HostKeyFailed):
        first = [_failure("host key", error), Finding("log-in", "not known", known)]
    elif isinstance(error, LogInFailed):
        first = [Finding("host key", "ok", "it is the known one"), _failure("log-in", error)]
    else:
        first = [Finding("host key", "not known", known), _failure("log-in", error)]
    return [*first, *(Finding(name, "not known", known) for name in _JUDGES)]


def _failure(name: str, error: SlurmRayFlowError) -> Finding:
    return Finding(name, "failed", error.what, error.advice)


# ---- one judge for each question


def _account(answer: Answer, _: Home) -> Finding:
    text = f"{answer['user']} on {answer['host']}, home {answer['home']} ({answer['mode']:04o})"
    if not answer["writable"]:
        return Finding("account", "warning", text + " can't be written", "choose a root elsewhere")
    if answer["mode"] & 0o022:
        return Finding("account", "warning", text + ": others can write in it", f"chmod go-w {answer['home']}")
    return Finding("account", "ok", text)


def _root(answer: Answer, _: Home) -> Finding:
    path = answer["path"]
    if answer["exists"] and not answer["ours"]:
        advice = "choose another root for this cluster"
        return Finding("root", "failed", f"{path} belongs to another user (number {answer['owner']})", advice)
    if not answer["writable"]:
        advice = "see that the disk is neither full nor read-only, or choose another root"
        return Finding("root", "failed", f"nothing can be written in {path}", advice)
    return Finding("root", "ok", path if answer["exists"] else f"{path} (made by the first launch)")


def _python(answer: Answer, _: Home) -> Finding:
    if not answer["python"]:
        return Finding("python", "ok", f"uv downloads {answer['version']} at the first launch")
    return Finding("python", "ok", f"{answer['version']}, {answer['python']}")


def _space(name: str, little: float, least: float, advice: str) -> Callable[[Answer, Home], Finding]:
    def judge(answer: Answer, _: Home) -> Finding:
        if "bytes" not in answer:
            return Finding(name, "ok", "none is set")
        files = answer.get("files")
        text = f"{format_memory(answer['bytes'])} free" + ("" if files is None else f", {files} files")
        full = answer["bytes"] < least or (files is not None and files < 1000)
        short = answer["bytes"] < little or (files is not None and files < 50_000)
        state: State = "failed" if full else "warning" if short else "ok"
        return Finding(name, state, text, "" if state == "ok" else advice)

    return judge


def _shared_memory(answer: Answer, _: Home) -> Finding:
    text = f"{format_memory(answer['all_bytes'])}, {format_memory(answer['bytes'])} free"
    if not answer["all_bytes"]:
        return Finding("shared memory", "warning", "none, and Ray does not start without", MAKE_ONE)
    if answer["bytes"] < GIB // 4:
        advice = "Ray keeps objects there, else in /tmp, which is slower: free some of /dev/shm, or make it larger"
        return Finding("shared memory", "warning", text, f"{advice} (of a container by --shm-size=2g)")
    return Finding("shared memory", "ok", text)


def _rsync(answer: Answer, home: Home) -> Finding:
    there = answer["version"]
    text = f"{there or 'none'} there, {home.rsync or 'none'} here"
    old = [version for version in (there, home.rsync) if _numbers(version) < OLDEST_RSYNC]
    if old:
        advice = "install rsync 3.1 or later where it is missing: little of your files and values travels without it"
        return Finding("rsync", "warning", f"{text}; no more than 32 KiB of your files travel without", advice)
    return Finding("rsync", "ok", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _gpus(answer: Answer, home: Home) -> Finding:
    count = answer["count"]
    if home.gpus and count < home.gpus:
        advice = "see what nvidia-smi says there, or correct gpus= of the block"
        return Finding("gpus", "failed", f"{count} there, {home.gpus} in the block", advice)
    return Finding("gpus", "ok", str(count))


def _lock(answer: Answer, _: Home) -> Finding:
    path = answer["path"]
    if not answer["writable"]:
        advice = f"its owner can run: chmod a+rw {path}" if answer["exists"] else "choose another lock_path"
        return Finding("lock", "failed", f"{path} can't be written by you", advice)
    who = ", ".join(f"{holder['user']} since {clock(holder['since'])}" for holder in answer["holders"])
    waiting = f"; {len(answer['waiting'])} waiting" if answer["waiting"] else ""
    return Finding("lock", "ok", f"{path}, {f'held by {who}' if who else 'free'}{waiting}")


def clock(since: float | None) -> str:
    """A time as people say it: the hour, and the day where that is not today."""
    if not since:
        return "an unknown time"
    then, now = datetime.datetime.fromtimestamp(since).astimezone(), datetime.datetime.now().astimezone()
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def _clock(answer: Answer, home: Home) -> Finding:
    ahead = (answer["began"] + answer["ended"]) / 2 - home.now
    if abs(ahead) > CLOCK_SECONDS:
        text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
        return Finding("clock", "warning", text, "set the clocks right (NTP): ages and log-in tokens depend on them")
    return Finding("clock", "ok", f"{abs(ahead):.1f} s apart")


def _registry(answer: Answer, home: Home) -> Finding:
    if answer["reached"]:
        return Finding("registry", "ok", answer["address"])
    text = f"{answer['address']} can't be reached" + (f": {answer['why']}" if answer.get("why") else "")
    if home.wheels == "upload":
        return Finding("registry", "ok", f'{text}; not needed with wheels="upload"')
    return Finding("registry", "warning", text, 'set wheels="upload" on the block: packages then travel from here')


_FULL = "`srf clean` removes what is old; or choose a root on another disk"
_JUDGES: dict[str, Callable[[Answer, Home], Finding]] = {
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
