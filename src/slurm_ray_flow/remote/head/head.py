"""The program that runs on a cluster: `python -I head.py ROOT RUN_ID [--detach]`.

It is two processes. The inner one (`allocation.Allocation`) does the work. The outer one, its keeper, only waits: if
the inner one is killed, the keeper ends all that it had started and says in the events that the call is lost. If the
keeper is killed, the inner one does the same.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

import contextlib
import json
import mmap
import os
import shutil
import signal
import time
import traceback
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.head.allocation import Allocation
from slurm_ray_flow.remote.head.inbox import close
from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.lock.turn import Turn, waits_for
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.shared import container, limits, processes, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles, claim, tail
from slurm_ray_flow.remote.shared.files import private_folder
from slurm_ray_flow.remote.shared.protocol import TRY, OperationError

NOTE_SIZE = 4096


class SharedNote:
    """A little memory that both processes share: what the keeper must know when the inner head has died."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, NOTE_SIZE)
        self._content: Dict[str, str] = {}

    def __call__(self, **fields: str) -> None:
        self._content.update(fields)
        self._memory[:] = json.dumps(self._content).encode().ljust(NOTE_SIZE)

    def read(self) -> Dict[str, str]:
        """What the other process wrote last."""
        text = bytes(self._memory).strip(b" \0")
        return json.loads(text) if text else {}


def main(arguments: List[str]) -> int:
    """Run the head of one allocation; returns the exit code."""
    root, run_id = arguments[:2]
    limits.keep_umask(os.umask(0o077))
    run = RunFiles(root, run_id)
    try:
        spec = working_directory.with_absolute_paths(run.read_spec(), run.folder)
        if "--detach" in arguments[2:]:
            return _detached(run, spec)
        return keep(run, spec)
    except (OSError, ValueError) as error:
        sys.stderr.write("The head can't start: {}\n".format(error))
        return 2


def _detached(run: RunFiles, spec: Dict[str, Any]) -> int:
    """Start the head in a session of its own; return when it has its allocation."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        if os.fork() == 0:
            _become_daemon(run, spec, writing)
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as file:
        if file.read():
            return 0
    sys.stderr.write("The head did not start.\n{}\n".format(tail(run.head_log)))
    return 2


def _become_daemon(run: RunFiles, spec: Dict[str, Any], writing: int) -> None:
    code = 2
    try:
        log = os.open(run.head_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = keep(run, spec, writing)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def keep(run: RunFiles, spec: Dict[str, Any], ready: Optional[int] = None) -> int:
    """Be the keeper: wait for the lock if there is one, start the inner head, wait for it, clean up if it was killed.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        ready: a descriptor that gets one byte when the allocation is recorded, and is then closed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | _WARNING)
    first = claim(run)
    if first:
        prepare_environment(run, spec)
        processes.become_subreaper()
        private_folder(run.inbox)
        run.keep_reserve()
        run.record("allocated", **processes.this(), **context_of(spec).described())
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    return _keep_allocation(run, spec) if first else 0


def _keep_allocation(run: RunFiles, spec: Dict[str, Any]) -> int:
    note = SharedNote()
    try:
        turn = await_turn(run, spec, _FORWARDED) if spec.get("lock") else None
        tenure = LockShare(run, spec, turn, lambda: _remove_folders(note)) if turn else None
    except OperationError as error:
        close(run, {"cause": error.cause or "lock", "message": _in_words(error)}, "")
        return 1
    inner = os.fork()
    if inner == 0:
        _be_inner(run, spec, note, tenure)
    return _wait_for(inner, run, note, [tenure.watchdog.pid] if tenure else [])


def _in_words(error: OperationError) -> str:
    place = " ({})".format(error.where) if error.where else ""
    return error.what + place + (TRY + error.advice if error.advice else "")


# An outer Ray's address and job; and what would let packages in from outside an isolated environment.
_MISLEADING = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_FOREIGN_PACKAGES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE")
_FORWARDED = {signal.SIGTERM, signal.SIGINT}
_WARNING = {signal.SIGUSR1}
"""What Slurm sends before it ends a job, where it is asked to."""


def prepare_environment(run: RunFiles, spec: Dict[str, Any]) -> None:
    """Take on the variables that all processes of the run have, on each of its hosts."""
    binaries = os.path.dirname(str(spec.get("python") or sys.executable))
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ["SRF_RUN_ID"] = os.environ["SRF_ALLOCATION"] = run.id
    if not spec.get("lock"):  # there the cards come with the turn
        os.environ.update(limits.gpu_variables(spec.get("gpus"), dict(os.environ)))
    for name in _MISLEADING + (_FOREIGN_PACKAGES if spec.get("isolated") else ()):
        os.environ.pop(name, None)


def _be_inner(run: RunFiles, spec: Dict[str, Any], note: SharedNote, tenure: Optional[LockShare]) -> None:
    code = 1
    try:
        processes.become_subreaper()
        spec = _with_environment(tenure.enter() if tenure else context_of(spec).with_share(spec), note)
        if spec.get("container"):
            container.examine(spec)
        allocation = Allocation(run, spec, note, tenure)
        allocation.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED | _WARNING)
        processes.die_with_parent(os.getppid(), signal.SIGTERM)
        allocation.serve()
        code = 0
    except OperationError as error:
        close(run, {"cause": error.cause or "environment", "message": _in_words(error)}, "")
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        _remove_folders(note)
        os._exit(code)


def _with_environment(spec: Dict[str, Any], note: SharedNote) -> Dict[str, Any]:
    """Unpack an environment that is kept as one file; it is there as long as the run."""
    if not spec.get("packed"):
        return spec
    prefix = installation.unpacked(str(spec["packed"]))
    note(environment=prefix)
    binaries = os.path.join(prefix, "bin")
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    return {**spec, "python": os.path.join(binaries, "python")}


def _remove_folders(note: SharedNote) -> None:
    """Remove what the run had on the node's own disk, if it is still there."""
    noted = note.read()
    if noted.get("environment"):
        installation.remove(noted["environment"])
    if noted.get("ray_folder"):
        shutil.rmtree(noted["ray_folder"], ignore_errors=True)


def _wait_for(inner: int, run: RunFiles, note: SharedNote, spared: List[int]) -> int:
    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(inner, number)

    for number in _FORWARDED | _WARNING:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED | _WARNING)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == inner:
            break
    code = processes.exit_code(status)
    if code != 0:
        processes.end_descendants(spared)
        _clean_up(code, run, note.read())
        _remove_folders(note)
    return 0 if code == 0 else 1


def _clean_up(code: int, run: RunFiles, note: Dict[str, str]) -> None:
    """Do what the inner head can't do any more."""
    how = "was killed by signal {}".format(-code) if code < 0 else "failed; see head.log"
    reason = {"cause": "lost", "message": "The head of the run {}.".format(how)}
    if note.get("call") and note["call"] != run.id:
        other = RunFiles(run.root, note["call"])
        if not other.has_ended():
            other.free_reserve()
            other.record("call_ended", outcome=None, **reason)
    close(run, reason, note.get("ray_folder", ""))


TELL_EVERY = 1.0
"""Seconds between two events `waiting`, at least; they grow with the wait, so that one of days has hundreds."""
LATE = 1 / 60
"""So much of its wait may have passed before a change is told."""
LOOK_EVERY = 0.5


def await_turn(run: RunFiles, spec: Dict[str, Any], signals: Set[signal.Signals]) -> Turn:
    """Wait in the queue until the run holds what it needs.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        signals: the signals that end the wait; they are blocked.

    Raises:
        OperationError: the lock can't be had, or the run was cancelled meanwhile.
    """
    turn, teller = Turn(spec["lock"], spec), _Teller(run)
    while not turn.take():
        _check(run, turn)
        teller.tell(turn)
        received = signal.sigtimedwait(signals, turn.pause)
        if received is not None:
            name = signal.Signals(received.si_signo).name
            raise _given_up(turn, "cancelled", "The head was told to end by {}.".format(name))
    return turn


def _check(run: RunFiles, turn: Turn) -> None:
    if os.path.exists(run.cancel):
        raise _given_up(turn, "cancelled", "The run was cancelled.")
    if not os.path.isdir(run.folder):
        raise _given_up(turn, "lost", "The run's folder is gone.")


def _given_up(turn: Turn, cause: str, message: str) -> OperationError:
    turn.release()
    return OperationError(message, cause=cause)


class _Teller:
    """Records what a run waits for, whenever that has changed."""

    def __init__(self, run: RunFiles) -> None:
        self._run, self._began, self._next = run, time.monotonic(), 0.0
        self._said: Dict[str, Any] = {}

    def tell(self, turn: Turn) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        waiting = waits_for(turn)
        self._next = now + (LOOK_EVERY if waiting == self._said else max(TELL_EVERY, LATE * (now - self._began)))
        if waiting != self._said:
            self._said = waiting
            self._run.record("waiting", **waiting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
