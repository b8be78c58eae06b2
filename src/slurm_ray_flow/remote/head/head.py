"""The program that runs on a cluster: `python -I head.py ROOT RUN_ID [--detach]`.

It is two processes. The inner head (`allocation.Allocation`) does the work. The outer one, the keeper, only waits: if
the inner head is killed, the keeper ends the processes that it had started, and records that the call is lost. If the
keeper is killed, the inner head does the same.
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
from slurm_ray_flow.remote.head.inbox import close, record_end
from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.lock.turn import Turn, waits_for
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.shared import container, limits, processes, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles, claim, tail
from slurm_ray_flow.remote.shared.files import private_folder
from slurm_ray_flow.remote.shared.protocol import TRY, OperationError

NOTE_SIZE = 4096


class SharedNote:
    """A note in memory that both processes share: what the keeper must know when the inner head has died."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, NOTE_SIZE)
        self._content: Dict[str, str] = {}

    def __call__(self, **fields: str) -> None:
        self._content.update(fields)
        self._memory[:] = json.dumps(self._content).encode().ljust(NOTE_SIZE)

    def read(self) -> Dict[str, str]:
        """The fields that the inner head has noted."""
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
            return _start_detached(run, spec)
        return keep(run, spec)
    except (OSError, ValueError) as error:
        sys.stderr.write("The head can't start: {}\n".format(error))
        return 2


def _start_detached(run: RunFiles, spec: Dict[str, Any]) -> int:
    """Start the head in a session of its own; return when it has recorded its allocation."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        if os.fork() == 0:
            _become_daemon(run, spec, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as file:
        if file.read():
            return 0
    sys.stderr.write("The head did not start.\n{}\n".format(tail(run.head_log)))
    return 2


def _become_daemon(run: RunFiles, spec: Dict[str, Any], ready: int) -> None:
    code = 2
    try:
        log = os.open(run.head_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = keep(run, spec, ready)
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
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS | _WARNING_SIGNALS)
    claimed = claim(run)
    if claimed:
        prepare_environment(run, spec)
        processes.become_subreaper()
        private_folder(run.inbox)
        run.keep_reserve()
        run.record("allocated", **processes.this(), **context_of(spec).described())
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    return _keep_allocation(run, spec) if claimed else 0


def _keep_allocation(run: RunFiles, spec: Dict[str, Any]) -> int:
    note = SharedNote()
    try:
        turn = await_turn(run, spec, _END_SIGNALS) if spec.get("lock") else None
        lock_share = LockShare(run, spec, turn, lambda: _remove_folders(note)) if turn else None
    except OperationError as error:
        close(run, {"cause": error.cause or "lock", "message": _error_message(error)}, "")
        return 1
    inner_pid = os.fork()
    if inner_pid == 0:
        _run_inner_head(run, spec, note, lock_share)
    return _wait_for_inner_head(inner_pid, run, note, [lock_share.watchdog.pid] if lock_share else [])


def _error_message(error: OperationError) -> str:
    where = " ({})".format(error.where) if error.where else ""
    return error.what + where + (TRY + error.advice if error.advice else "")


# The address and the job of an outer Ray; the variables that add packages to an isolated environment.
_RAY_VARIABLES = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_PACKAGE_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE")
_END_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_WARNING_SIGNALS = {signal.SIGUSR1}
"""The signal by which Slurm warns of a job's end, if the job asks for it."""


def prepare_environment(run: RunFiles, spec: Dict[str, Any]) -> None:
    """Set the variables of all processes of the run; each of its hosts calls this."""
    binaries = os.path.dirname(str(spec.get("python") or sys.executable))
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ["SRF_RUN_ID"] = os.environ["SRF_ALLOCATION"] = run.id
    if not spec.get("lock"):  # under a lock, `LockShare.enter` sets the GPUs
        os.environ.update(limits.gpu_variables(spec.get("gpus"), dict(os.environ)))
    for name in _RAY_VARIABLES + (_PACKAGE_VARIABLES if spec.get("isolated") else ()):
        os.environ.pop(name, None)


def _run_inner_head(run: RunFiles, spec: Dict[str, Any], note: SharedNote, lock_share: Optional[LockShare]) -> None:
    code = 1
    try:
        processes.become_subreaper()
        spec = _with_environment(lock_share.enter() if lock_share else context_of(spec).with_share(spec), note)
        if spec.get("container"):
            container.examine(spec)
        allocation = Allocation(run, spec, note, lock_share)
        allocation.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS | _WARNING_SIGNALS)
        processes.die_with_parent(os.getppid(), signal.SIGTERM)
        allocation.serve()
        code = 0
    except OperationError as error:
        close(run, {"cause": error.cause or "environment", "message": _error_message(error)}, "")
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        _remove_folders(note)
        os._exit(code)


def _with_environment(spec: Dict[str, Any], note: SharedNote) -> Dict[str, Any]:
    """Unpack an environment that is stored as one file, for the time of the run."""
    if not spec.get("packed"):
        return spec
    prefix = installation.unpacked(str(spec["packed"]))
    note(environment=prefix)
    binaries = os.path.join(prefix, "bin")
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    return {**spec, "python": os.path.join(binaries, "python")}


def _remove_folders(note: SharedNote) -> None:
    """Remove the run's folders on the node's own disk."""
    folders = note.read()
    if folders.get("environment"):
        installation.remove(folders["environment"])
    if folders.get("ray_folder"):
        shutil.rmtree(folders["ray_folder"], ignore_errors=True)


def _wait_for_inner_head(inner_pid: int, run: RunFiles, note: SharedNote, spared_pids: List[int]) -> int:
    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(inner_pid, number)

    for number in _END_SIGNALS | _WARNING_SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS | _WARNING_SIGNALS)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == inner_pid:
            break
    code = processes.exit_code(status)
    if code != 0:
        processes.end_descendants(spared_pids)
        _record_lost(code, run, note.read())
        _remove_folders(note)
    return 0 if code == 0 else 1


def _record_lost(code: int, run: RunFiles, note: Dict[str, str]) -> None:
    """Record the end of the call and of the allocation, in place of the inner head."""
    end = "was killed by signal {}".format(-code) if code < 0 else "failed; see head.log"
    reason = {"cause": "lost", "message": "The head of the run {}.".format(end)}
    if note.get("call") and note["call"] != run.id:
        call_run = RunFiles(run.root, note["call"])
        if not call_run.has_ended():
            record_end(call_run, reason["cause"], reason["message"])
    close(run, reason, note.get("ray_folder", ""))


SHORTEST_EVENT_INTERVAL = 1.0
"""The least seconds between two events `waiting`."""
EVENT_INTERVAL_SHARE = 1 / 60
"""The least time between two events, as a part of the wait so far: a wait of days has hundreds of events."""
WAIT_POLL_SECONDS = 0.5


def await_turn(run: RunFiles, spec: Dict[str, Any], signals: Set[signal.Signals]) -> Turn:
    """Wait in the lock's queue until the run holds its slots and GPUs.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        signals: the blocked signals that end the wait.

    Raises:
        OperationError: the lock can't be had, or the run was cancelled meanwhile.
    """
    turn, recorder = Turn(spec["lock"], spec), _WaitRecorder(run)
    while not turn.take():
        _check_run(run, turn)
        recorder.record(turn)
        received = signal.sigtimedwait(signals, turn.pause)
        if received is not None:
            name = signal.Signals(received.si_signo).name
            raise _give_up(turn, "cancelled", "The head was told to end by {}.".format(name))
    return turn


def _check_run(run: RunFiles, turn: Turn) -> None:
    if os.path.exists(run.cancel):
        raise _give_up(turn, "cancelled", "The run was cancelled.")
    if not os.path.isdir(run.folder):
        raise _give_up(turn, "lost", "The run's folder is gone.")


def _give_up(turn: Turn, cause: str, message: str) -> OperationError:
    turn.release()
    return OperationError(message, cause=cause)


class _WaitRecorder:
    """Records what a run waits for when that has changed."""

    def __init__(self, run: RunFiles) -> None:
        self._run, self._start_time, self._next_look = run, time.monotonic(), 0.0
        self._recorded: Dict[str, Any] = {}

    def record(self, turn: Turn) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        waiting = waits_for(turn)
        self._next_look = now + WAIT_POLL_SECONDS
        if waiting != self._recorded:
            self._next_look = now + max(SHORTEST_EVENT_INTERVAL, EVENT_INTERVAL_SHARE * (now - self._start_time))
            self._recorded = waiting
            self._run.record("waiting", **waiting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
