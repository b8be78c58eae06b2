"""A scheduler's commands on a login node: a submission that happens only once, and queries at a limited rate.

Home has the scheduler's dialect (`core/scheduler.py`); this module has only the part that needs the cluster's files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
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
"""Seconds for a submission; a client may retry for long if its controller is down, but home can retry visibly."""
QUERY_SECONDS = 30.0
NO_ANSWER = "it did not answer"
ANSWERS_FOLDER = "slurm"
"""The root's folder of answers, for every scheduler."""
QUERY_PAUSE = 2.0
"""Seconds between two queries of the scheduler by all launches of a root."""


def submit(
    root: str, run_id: str, command: List[str], name: str, rules: Dict[str, Any], again: str = ""
) -> Dict[str, Any]:
    """Submit a run's script, only once.

    A mark is written before the command starts, and the command's output goes to files. A run with a mark and without a
    job may be in the queue: it is submitted again only if home has searched the queue, and names the mark in `again`.

    Args:
        root: the root folder.
        run_id: the run.
        command: the program that submits with its arguments, without the script.
        name: the job's name.
        rules: `SubmissionRules.of` of the scheduler's dialect.
        again: the mark of a submission that did not reach the queue.

    Returns:
        job: its id, or None; told: an id that a failed command has printed, or ""; defaults: the command's environment
        variables with defaults; code, out, err: of the command, with code None if its end is unknown; mark.
    """
    run = RunFiles(root, run_id)
    with _locked(os.path.join(run.folder, "submit.lock"), SUBMIT_SECONDS + 10):
        job = job_of(run)
        if job:
            return {"job": job, "told": job, "code": 0, "out": "", "err": "", "mark": ""}
        mark = _read_json(_mark_file(run))
        if mark and mark.get("id") != again:
            return _earlier_submission(run, mark, rules)
        if os.path.exists(run.cancel):
            raise OperationError("the run was cancelled", cause="cancelled")
        return _submit(run, command, name, rules)


def note(root: str, run_id: str, job: str) -> None:
    """Record the job that home has found in the queue."""
    run = RunFiles(root, run_id)
    write(os.path.join(run.folder, "job.json"), json.dumps({"job": job}).encode())


def job_of(run: RunFiles) -> Optional[str]:
    """The id of the run's job; None if it is not recorded."""
    record = _read_json(os.path.join(run.folder, "job.json"))
    return str(record["job"]) if record else None


def _submit(run: RunFiles, command: List[str], name: str, rules: Dict[str, Any]) -> Dict[str, Any]:
    host = {key: value for key, value in processes.this().items() if key in ("host", "boot_id", "namespace")}
    mark = {"id": secrets.token_hex(8), "name": name, **host}
    write(_mark_file(run), json.dumps(mark).encode())
    text = rules.get("command_text")
    job = "{} {}".format(text, shlex.quote(run.script)) if text else run.script
    with open(_stdout_file(run), "wb") as out, open(_stderr_file(run), "wb") as err:
        process = subprocess.Popen(
            [*command, job], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd="/", start_new_session=True,
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


def variables(environment: Dict[str, str], rules: Dict[str, Any]) -> Dict[str, str]:
    """The variables without those of a start file or an outer job that would change the new job or its steps."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(tuple(rules["dropped"])) or (rules["kept"] and re.match(rules["kept"], name))
    }


def _earlier_submission(run: RunFiles, mark: Dict[str, Any], rules: Dict[str, Any]) -> Dict[str, Any]:
    """The result of a submission of an earlier process; waits while its command still runs."""
    deadline = time.monotonic() + SUBMIT_SECONDS
    while _is_running(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return _answer(run, str(mark["id"]), None, rules)


def _is_running(mark: Dict[str, Any]) -> bool:
    return "pid" in mark and bool(noted_alive(mark))


def _answer(run: RunFiles, mark: str, code: Optional[int], rules: Dict[str, Any]) -> Dict[str, Any]:
    out, err = tail(_stdout_file(run), 10000), tail(_stderr_file(run), 10000)
    candidate = job_id_in(out, rules)
    job = candidate if candidate and code in (0, None) else None
    if job:
        note(run.root, run.id, job)
    return {"job": job, "told": candidate, "code": code, "out": out, "err": err, "mark": mark}


def job_id_in(output: str, rules: Dict[str, Any]) -> str:
    """The job's id in the command's output, or "": that of the last line with one, since sites print other lines."""
    lines = [line.strip() for line in output.splitlines()]
    for pattern in rules["job_id"]:
        ids = [match[1] for match in (re.search(pattern, line) for line in lines) if match]
        if ids:
            return str(ids[-1])
    return ""


def _mark_file(run: RunFiles) -> str:
    return os.path.join(run.folder, "submission.json")


def _stdout_file(run: RunFiles) -> str:
    return os.path.join(run.folder, "sbatch.out")


def _stderr_file(run: RunFiles) -> str:
    return os.path.join(run.folder, "sbatch.err")


# ---- queries


def query(root: str, name: str, command: List[str], age: float) -> Dict[str, Any]:
    """Query the scheduler, or return a recent answer. Only one process queries at a time.

    Args:
        root: the root folder, whose launches share the answers.
        name: the name of the query.
        command: the command of the query.
        age: the greatest age of the answer in seconds; 0 for one from after this call.

    Returns:
        text; error ("" if the command succeeded); time, in seconds since 1970 by this host's clock.
    """
    folder = private_folder(os.path.join(root, ANSWERS_FOLDER))
    file, asked_at = os.path.join(folder, name + ".json"), time.time()
    known = _read_json(file)
    if _is_fresh(known, asked_at, age):
        return known
    with _locked(os.path.join(folder, "lock"), 2 * QUERY_SECONDS) as lock:
        known = _read_json(file)
        if _is_fresh(known, asked_at, age):
            return known  # another process has queried meanwhile
        time.sleep(max(0.0, min(QUERY_PAUSE, QUERY_PAUSE - (time.time() - _last_query_time(lock)))))
        answer = _ask(command)
        os.pwrite(lock, "{:<20.3f}".format(time.time()).encode(), 0)
        write(file, json.dumps(answer).encode())
    return answer


def _is_fresh(answer: Dict[str, Any], asked_at: float, age: float) -> bool:
    """Whether an answer is new enough; an earlier error never is, since its reason may be gone."""
    if not (is_moment(answer.get("began")) and is_moment(answer.get("time")) and isinstance(answer.get("text"), str)):
        return False
    return bool(answer["began"] >= asked_at or (0 <= asked_at - answer["time"] < age and answer.get("error") == ""))


def _ask(command: List[str]) -> Dict[str, Any]:
    began = time.time()
    try:
        result = subprocess.run(
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
        text = result.stdout.decode("utf-8", "replace")
        error_text = result.stderr.decode("utf-8", "replace").strip() or "it failed" if result.returncode else ""
    return {"text": text, "error": error_text, "began": began, "time": time.time()}


def _last_query_time(lock: int) -> float:
    with contextlib.suppress(ValueError):  # there was no query yet, or a loss of power has left zeros
        return float(os.pread(lock, 20, 0))
    return 0.0


# ---- the end


def cancel(root: str, run_id: str) -> Optional[str]:
    """Ask the run's head to end it, and prevent a submission; returns the job's id if it is recorded."""
    run = RunFiles(root, run_id)
    if not os.path.isdir(run.folder):
        return None
    write(run.cancel, b"")
    return job_of(run)


def close(root: str, run_id: str, cause: str, message: str) -> None:
    """Record the end of a job whose head no longer can, for launches that wait for its calls."""
    run = RunFiles(root, run_id)
    if os.path.isdir(run.folder) and not any(event["event"] == "released" for event in run.recorded()):
        close_run(run, {"cause": cause, "message": message}, "")


def report(root: str, run_id: str) -> Dict[str, Any]:
    """The end of the job's log, with the scheduler's lines; whether it was submitted and cancelled; its id and name."""
    run = RunFiles(root, run_id)
    mark = _read_json(_mark_file(run))
    facts = {"job": job_of(run), "name": mark.get("name", ""), "submitted": bool(mark)}
    return {"words": tail(run.head_log), "cancelled": os.path.exists(run.cancel), **facts}


def sign_of_life(root: str, run_id: str) -> Optional[float]:
    """The time of the head's last event, by the file system's clock; None if there is none."""
    try:
        with open(RunFiles(root, run_id).events, "rb") as file:  # opened, which updates its status on NFS
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


# ---- files


@contextlib.contextmanager
def _locked(path: str, seconds: float) -> Iterator[int]:
    """Lock a file, also between hosts if the file system can do that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise OperationError("another launch holds this file for too long", path, "try again")
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    # flock locks the open file, not the process: the operations of one agent run in threads.
    # Without locks, there may be more queries than need be; `claim` still limits a run to one head.
    try:
        lock_if_possible(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_json(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = parse_json(file.read())
            return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


OPERATIONS: Dict[str, Any] = {
    "scheduler.submit": submit,
    "scheduler.note": note,
    "scheduler.query": query,
    "scheduler.cancel": cancel,
    "scheduler.close": close,
    "scheduler.words": report,
    "scheduler.sign_of_life": sign_of_life,
}
