"""A scheduler's commands, run on a login node for home: a submission that happens once, questions that don't crowd.

What they are and say is known at home (`core/scheduler.py`); here stands only what must happen where the files are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import subprocess
import time
from typing import Any, Dict, Iterator, List, Optional

from slurm_ray_flow.remote.head.inbox import close as close_run
from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.files import lock_if_possible, private_folder, write
from slurm_ray_flow.remote.shared.liveness import noted_alive
from slurm_ray_flow.remote.shared.protocol import OperationError, is_moment, parse_json

SUBMIT_SECONDS = 60.0
"""`sbatch`, for one, tries for long when its controller is away; home tries again, and can say so meanwhile."""
QUERY_SECONDS = 30.0
NO_ANSWER = "it did not answer"
QUESTIONS = "slurm"
"""The folder of answers in the root, as it has always been called, whatever the scheduler."""
SPACING = 2.0
"""Seconds between two questions to the scheduler, whoever asks: all launches of a root folder share them."""


def submit(
    root: str, run_id: str, command: List[str], name: str, rules: Dict[str, Any], again: str = ""
) -> Dict[str, Any]:
    """Submit a run's script, once.

    A mark is written before the command starts, and its answer goes to a file whoever lives to see it. A run with a
    mark and no answer may be in the queue: then nothing is submitted, unless home has looked there and names that mark.

    Args:
        root: the root folder.
        run_id: the run.
        command: what submits, with its arguments, without the script.
        name: the job's.
        rules: `SubmissionRules.of` of the scheduler's dialect.
        again: the mark of a submission that did not reach the queue.

    Returns:
        job: its id, or None; told: what may be one although the command failed, or "";
        defaults: the variables that count; code, out, err: of the command, code None where its end is not known; mark.
    """
    run = RunFiles(root, run_id)
    with _alone(os.path.join(run.folder, "submit.lock"), SUBMIT_SECONDS + 10):
        known = job_of(run)
        if known:
            return {"job": known, "told": known, "code": 0, "out": "", "err": "", "mark": ""}
        mark = _read(_mark_file(run))
        if mark and mark.get("id") != again:
            return _earlier(run, mark, rules)
        if os.path.exists(run.cancel):
            raise OperationError("the run was cancelled", cause="cancelled")
        return _submit(run, command, name, rules)


def note(root: str, run_id: str, job: str) -> None:
    """Note the job that home has found in the queue."""
    run = RunFiles(root, run_id)
    write(os.path.join(run.folder, "job.json"), json.dumps({"job": job}).encode())


def job_of(run: RunFiles) -> Optional[str]:
    """The id of the run's job, once it is known here."""
    known = _read(os.path.join(run.folder, "job.json"))
    return str(known["job"]) if known else None


def _submit(run: RunFiles, command: List[str], name: str, rules: Dict[str, Any]) -> Dict[str, Any]:
    here = {key: value for key, value in processes.this().items() if key in ("host", "boot_id", "namespace")}
    mark = {"id": secrets.token_hex(8), "name": name, **here}
    write(_mark_file(run), json.dumps(mark).encode())
    with open(_out(run), "wb") as out, open(_err(run), "wb") as err:
        process = subprocess.Popen(
            [*command, run.script], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd="/", start_new_session=True,
            env=variables(processes.inherited(), rules),
        )  # fmt: skip
    write(_mark_file(run), json.dumps({**mark, "pid": process.pid, "started": processes.started(process.pid)}).encode())
    code: Optional[int] = None
    try:
        code = process.wait(SUBMIT_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    defaults = {variable: os.environ[variable] for variable in rules["defaults"] if variable in os.environ}
    return {**_answer(run, str(mark["id"]), code, rules), "defaults": defaults}


def variables(given: Dict[str, str], rules: Dict[str, Any]) -> Dict[str, str]:
    """Those of a start file or of a job around this, without what would change the new job, or its steps."""
    return {
        name: value
        for name, value in given.items()
        if not name.startswith(tuple(rules["dropped"])) or (rules["kept"] and re.match(rules["kept"], name))
    }


def _earlier(run: RunFiles, mark: Dict[str, Any], rules: Dict[str, Any]) -> Dict[str, Any]:
    """What became of a submission whose client is gone; its command may still be at it."""
    deadline = time.monotonic() + SUBMIT_SECONDS
    while _runs(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return _answer(run, str(mark["id"]), None, rules)


def _runs(mark: Dict[str, Any]) -> bool:
    return "pid" in mark and bool(noted_alive(mark))


def _answer(run: RunFiles, mark: str, code: Optional[int], rules: Dict[str, Any]) -> Dict[str, Any]:
    out, err = tail(_out(run), 10000), tail(_err(run), 10000)
    told = job_id_in(out, rules)
    job = told if told and code in (0, None) else None
    if job:
        note(run.root, run.id, job)
    return {"job": job, "told": told, "code": code, "out": out, "err": err, "mark": mark}


def job_id_in(output: str, rules: Dict[str, Any]) -> str:
    """The job's id in what was printed, or "": the last line that tells one, since sites print more than that."""
    lines = [line.strip() for line in output.splitlines()]
    for pattern in rules["job_id"]:
        found = [match[1] for match in (re.search(pattern, line) for line in lines) if match]
        if found:
            return str(found[-1])
    return ""


def _mark_file(run: RunFiles) -> str:
    return os.path.join(run.folder, "submission.json")


def _out(run: RunFiles) -> str:
    return os.path.join(run.folder, "sbatch.out")


def _err(run: RunFiles) -> str:
    return os.path.join(run.folder, "sbatch.err")


# ---- questions


def query(root: str, name: str, command: List[str], age: float) -> Dict[str, Any]:
    """Ask the scheduler, or give the answer that somebody else got a moment ago. One asks at a time.

    Args:
        root: the root folder, whose launches share what they ask.
        name: names the question.
        command: what asks.
        age: an answer of so many seconds ago will do; 0 wants one from after now.

    Returns:
        text; error ("" where the command succeeded); time, in seconds since 1970 by this host's clock.
    """
    folder = private_folder(os.path.join(root, QUESTIONS))
    file, began = os.path.join(folder, name + ".json"), time.time()
    known = _read(file)
    if _is_young(known, began, age):
        return known
    with _alone(os.path.join(folder, "lock"), 2 * QUERY_SECONDS) as turn:
        known = _read(file)
        if _is_young(known, began, age):
            return known  # somebody has asked while this one waited for its turn
        time.sleep(max(0.0, min(SPACING, SPACING - (time.time() - _asked_last(turn)))))
        answer = _asked(command)
        os.pwrite(turn, "{:<20.3f}".format(time.time()).encode(), 0)
        write(file, json.dumps(answer).encode())
    return answer


def _is_young(known: Dict[str, Any], began: float, age: float) -> bool:
    """An error of before is no answer: it may be over."""
    if not (is_moment(known.get("began")) and is_moment(known.get("time")) and isinstance(known.get("text"), str)):
        return False
    return bool(known["began"] >= began or (0 <= began - known["time"] < age and known.get("error") == ""))


def _asked(command: List[str]) -> Dict[str, Any]:
    began = time.time()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=QUERY_SECONDS,
            check=False,
        )
    except OSError as error:
        raise OperationError(
            "{} can't be started: {}".format(command[0], error.strerror),
            "",
            "is this host a login node?",
        ) from error
    except subprocess.TimeoutExpired:
        text, error_text = "", "{} within {:g} s".format(NO_ANSWER, QUERY_SECONDS)
    else:
        text = done.stdout.decode("utf-8", "replace")
        error_text = done.stderr.decode("utf-8", "replace").strip() or "it failed" if done.returncode else ""
    return {"text": text, "error": error_text, "began": began, "time": time.time()}


def _asked_last(turn: int) -> float:
    with contextlib.suppress(ValueError):  # nobody has yet; or a loss of power has left zeros
        return float(os.pread(turn, 20, 0))
    return 0.0


# ---- the end


def cancel(root: str, run_id: str) -> Optional[str]:
    """Ask the run's head to end it, and keep a submission from happening; gives the job's id where it is known."""
    run = RunFiles(root, run_id)
    if not os.path.isdir(run.folder):
        return None
    write(run.cancel, b"")
    return job_of(run)


def close(root: str, run_id: str, cause: str, message: str) -> None:
    """Say in the events how a job ended whose head can't say it any more; whoever waits for a call gets to know."""
    run = RunFiles(root, run_id)
    if os.path.isdir(run.folder) and not any(event["event"] == "released" for event in run.recorded()):
        close_run(run, {"cause": cause, "message": message}, "")


def words(root: str, run_id: str) -> Dict[str, Any]:
    """The last lines of the job's log, the scheduler's too; whether it was submitted and cancelled; its id and name."""
    run = RunFiles(root, run_id)
    mark = _read(_mark_file(run))
    known = {"job": job_of(run), "name": mark.get("name", ""), "submitted": bool(mark)}
    return {"words": tail(run.head_log), "cancelled": os.path.exists(run.cancel), **known}


def sign_of_life(root: str, run_id: str) -> Optional[float]:
    """When the job's program has last shown that it lives, by the file system's clock; None where it has not begun."""
    try:
        with open(RunFiles(root, run_id).events, "rb") as file:  # opened, for network file systems look anew then
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


# ---- files


@contextlib.contextmanager
def _alone(path: str, seconds: float) -> Iterator[int]:
    """Be the only one here; between hosts, too, where the file system can do that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise OperationError("another launch holds this file for too long", path, "try again")
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    # Of the description, not of the process: the operations of one agent run in threads.
    # Without locks, several at once ask more often than need be; `claim` keeps a run to one head.
    try:
        lock_if_possible(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = parse_json(file.read())
            return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


OPERATIONS: Dict[str, Any] = {
    "scheduler.submit": submit,
    "scheduler.note": note,
    "scheduler.query": query,
    "scheduler.cancel": cancel,
    "scheduler.close": close,
    "scheduler.words": words,
    "scheduler.sign_of_life": sign_of_life,
}
