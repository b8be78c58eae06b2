"""Questions about a machine and its services that a check asks in parallel, each with its own answer or error."""

from __future__ import annotations

import configparser
import contextlib
import getpass
import glob
import os
import re
import shutil
import stat
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from slurm_ray_flow.remote.environment import pythons
from slurm_ray_flow.remote.lock import queue
from slurm_ray_flow.remote.shared import limits, machine
from slurm_ray_flow.remote.shared.processes import output_of
from slurm_ray_flow.remote.shared.protocol import SHARED_MEMORY, OperationError

ANSWER_SECONDS = 15.0
"""Seconds that a question may take; on a dead file system it never returns."""
COMMAND_SECONDS = 5.0
PACKAGE_INDEX = "https://pypi.org/simple"
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")

Answer = Dict[str, Any]


def probe_all(root: str, python: str = "", version: str = "", lock: str = "", slots: int = 1) -> Dict[str, Answer]:
    """Ask all questions in parallel.

    Args:
        root: the root folder, which need not exist.
        python: the policy by which a Python is found.
        version: the major and minor version that it must have.
        lock: the path of the server's lock; empty for none.
        slots: the number of the lock's slots.

    Returns:
        The answer by the name of each question, or an `error` with `advice`.
    """
    questions: Dict[str, Callable[[], Answer]] = {
        "account": account,
        "root": lambda: root_folder(root),
        "python": lambda: python_of(python, version, root),
        "disk": lambda: disk(root),
        "quota": lambda: quota(existing(root)),
        "temporary": lambda: disk("/tmp"),
        "shared memory": shared_memory,
        "rsync": rsync,
        "gpus": lambda: {"count": machine.gpus()},
        "registry": registry,
    }
    if lock:
        questions["lock"] = lambda: lock_state(lock, slots)
    began = time.time()
    answers = answered(questions)
    answers["clock"] = {"began": began, "ended": time.time()}
    return answers


def python_of(policy: str, version: str, root: str) -> Answer:
    """The Python that runs would use; a check downloads none."""
    if pythons.to_be_downloaded(policy, version, root):
        return {"python": "", "version": version}
    return pythons.find(policy, version, root)


def answered(questions: Dict[str, Callable[[], Answer]], within: float = ANSWER_SECONDS) -> Dict[str, Answer]:
    """Ask several questions in parallel; one that takes too long gets an error as its answer."""
    answers: Dict[str, Answer] = {}
    threads = []
    for name, question in questions.items():
        threads.append(threading.Thread(target=_ask, args=(name, question, answers), daemon=True))
        threads[-1].start()
    deadline = time.monotonic() + within
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {"error": "no answer within {:g} s".format(within), "advice": "a disk or a service there does not answer"}
    return {name: answers.get(name, late) for name in questions}


def _ask(name: str, question: Callable[[], Answer], answers: Dict[str, Answer]) -> None:
    try:
        answers[name] = question()
    except OperationError as error:
        answers[name] = {"error": error.what, "advice": error.advice}
    except Exception as error:  # it must not affect the other answers
        answers[name] = {"error": "{}: {}".format(type(error).__name__, error), "advice": ""}


def account() -> Answer:
    """The user, the home folder, and the modes that say whether other users can write there."""
    home = os.path.expanduser("~")
    return {
        "user": getpass.getuser(), "host": os.uname().nodename, "home": home,
        "mode": stat.S_IMODE(os.stat(home).st_mode), "writable": os.access(home, os.W_OK),
    }  # fmt: skip


def root_folder(root: str) -> Answer:
    """The owner of the root, and whether this user can write there."""
    path = os.path.expanduser(root)
    nearest = existing(path)
    return {
        "path": path, "exists": os.path.isdir(path), "owner": os.stat(nearest).st_uid,
        "ours": os.stat(nearest).st_uid == os.geteuid(), "writable": _can_write(nearest),
    }  # fmt: skip


def _can_write(folder: str) -> bool:
    """Whether a file can be written; `os.access` allows it on a full disk, too."""
    name = os.path.join(folder, ".srf-{}-{}".format(os.getpid(), time.monotonic_ns()))
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return False
    try:
        return os.write(descriptor, b"x" * 4096) == 4096
    except OSError:
        return False
    finally:
        os.close(descriptor)
        os.unlink(name)


def existing(path: str) -> str:
    """The path, or the nearest folder above it that exists."""
    folder = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def disk(path: str) -> Answer:
    """The free bytes and files of the disk of a folder."""
    status = os.statvfs(existing(path))
    files = {"files": status.f_favail} if status.f_files else {}
    return {"bytes": status.f_bavail * status.f_frsize, "all_bytes": status.f_blocks * status.f_frsize, **files}


def quota(folder: str) -> Answer:
    """The free bytes and files of the user's quota for a folder; empty if there is no quota."""
    program = shutil.which("quota")
    if program is None:
        return {}
    mount = next(path for path in (folder, *map(str, Path(folder).parents)) if os.path.ismount(path))
    return read_quota(output_of([program, "-w", "-p", "--hide-device", "-f", mount], COMMAND_SECONDS) or "")


def read_quota(text: str) -> Answer:
    """The free bytes and files by the line of numbers that `quota -w -p` prints; empty if it prints none."""
    for line in text.splitlines():
        fields = re.findall(r"(?<!\S)\d+(?=\*?(?!\S))", line)
        if len(fields) >= 7:
            used, soft, hard, _, files, soft_files, hard_files = map(int, fields[:7])
            limit, most_files = hard or soft, hard_files or soft_files
            return {
                "bytes": max(0, limit - used) * 1024 if limit else 1 << 62,
                "files": max(0, most_files - files) if most_files else 1 << 62,
            }
    return {}


def shared_memory() -> Answer:
    """The free bytes of shared memory, which Ray and multiprocessing use."""
    return {"bytes": 0, "all_bytes": 0} if limits.lacks_shared_memory() else disk(SHARED_MEMORY)


def rsync() -> Answer:
    """The version of rsync; "" if there is none."""
    program = shutil.which("rsync")
    if program is None:
        return {"version": ""}
    match = re.search(r"version v?(\d+(?:\.\d+)*)", output_of([program, "--version"], COMMAND_SECONDS) or "")
    return {"version": match[1] if match else "unknown"}


def lock_state(path: str, slots: int) -> Answer:
    """The lock's file, its holders and its queue."""
    state: Answer = queue.state(path, slots)
    exists = os.path.lexists(path)
    writable = os.access(path, os.W_OK) if exists else os.access(os.path.dirname(path) or ".", os.W_OK)
    return {"path": path, "exists": exists, "writable": writable, **state}


def registry() -> Answer:
    """Whether the configured package index answers."""
    address = index_address()
    public = re.sub(r"//[^/@]*@", "//", address)
    request = urllib.request.Request(_without_credentials(address), method="HEAD", headers={"User-Agent": "srf"})
    try:
        with urllib.request.urlopen(request, timeout=COMMAND_SECONDS):
            return {"address": public, "reached": True}
    except urllib.error.HTTPError as error:  # the server answers, and refuses this request
        return {"address": public, "reached": error.code < 500}
    except (OSError, ValueError) as error:
        return {"address": public, "reached": False, "why": str(getattr(error, "reason", error))}


def _without_credentials(address: str) -> str:
    """The address for urllib, which takes a user name in it for a part of the host's name."""
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/") + "/"


def index_address() -> str:
    """The package index that pip and uv use here."""
    configured: List[str] = [os.environ[name] for name in _INDEX_VARIABLES if os.environ.get(name)]
    return configured[0] if configured else _pip_index() or PACKAGE_INDEX


def _pip_index() -> str:
    files = configparser.RawConfigParser(strict=False)
    own = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "pip" / "pip.conf"
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        files.read(["/etc/xdg/pip/pip.conf", "/etc/pip.conf", os.path.expanduser("~/.pip/pip.conf"), str(own)])
    return files.get("global", "index-url", fallback="").strip()


SURVEY_SECONDS = 10.0
_SCRATCH_VARIABLES = ("SCRATCH", "SCRATCHDIR", "WORK", "WORKDIR", "LOCAL_SCRATCH")
_SCRATCH_FOLDERS = ("/scratch", "/work", "/local_scratch", "/data")


def survey() -> Dict[str, Any]:
    """The facts about this machine that `srf init` shows.

    Returns:
        user, home, host; home_bytes, free in the home folder; cpus, gpus, memory (bytes); slurm and oar: "answers",
        "silent", or "" for none; modules: whether there are environment modules; pythons: path and version of each;
        scratch: path and free bytes of each folder that the user can write to.
    """
    with ThreadPoolExecutor(max_workers=5) as pool:
        pythons = pool.submit(_pythons)
        modules = pool.submit(_modules)
        slurm = pool.submit(_scheduler, "sbatch", ["sinfo", "--noheader", "--format=%R"], "")
        oar = pool.submit(_scheduler, "oarsub", ["oarnodes", "-J"], "{")  # its errors are on stdout, too
        facts = machine.machine_facts()
        return {
            "user": getpass.getuser(), "home": os.path.expanduser("~"), "host": facts["host"],
            "cpus": facts["cpus"], "gpus": facts["gpus"], "memory": facts["memory"],
            "home_bytes": _free_bytes(os.path.expanduser("~")),
            "slurm": slurm.result(), "oar": oar.result(),
            "modules": modules.result(), "pythons": pythons.result(),
            "scratch": _scratch(),
        }  # fmt: skip


def _pythons() -> List[Dict[str, str]]:
    """Every CPython of 3.9 or later that starts, one for each version."""
    by_version: Dict[str, Dict[str, str]] = {}
    for path in pythons.candidates("3"):
        answer = pythons.ask_python([path, "-I", "-c", pythons.QUESTION])
        if answer is not None and answer.implementation == "CPython" and _release(answer.version) >= [3, 9]:
            by_version.setdefault(answer.version, {"path": answer.python, "version": answer.version})
    return sorted(by_version.values(), key=lambda python: _release(python["version"]), reverse=True)


def _release(version: str) -> List[int]:
    """Major and minor."""
    return [int(part) for part in version.split(".")[:2]]


def _scheduler(submits: str, question: List[str], answer_start: str) -> str:
    """Whether a scheduler answers: "answers"; "silent" if there are only its commands; "" if there is none."""
    if not (shutil.which(submits) and shutil.which(question[0])):
        return ""
    answer = (output_of(question, SURVEY_SECONDS) or "").strip()
    return "answers" if answer and answer.startswith(answer_start) else "silent"


def _modules() -> bool:
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    marker = "srf-modules"
    return marker in (output_of([shell, "-lc", "type module >/dev/null 2>&1 && echo " + marker], SURVEY_SECONDS) or "")


def _scratch() -> List[Dict[str, Any]]:
    """Folders for scratch files that the user can write to, the user's own ones first."""
    user = getpass.getuser()
    paths = [os.environ.get(name, "") for name in _SCRATCH_VARIABLES]
    for folder in _SCRATCH_FOLDERS:
        paths += [os.path.join(folder, user), *sorted(glob.glob(os.path.join(folder, "*", glob.escape(user)))), folder]
    folders: List[Dict[str, Any]] = []
    for path in dict.fromkeys(os.path.normpath(path) for path in paths if path):
        size = _free_bytes(path)
        if size is not None:
            folders.append({"path": path, "bytes": size})
    return folders


def _free_bytes(path: str) -> Optional[int]:
    with contextlib.suppress(OSError):
        if os.path.isabs(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            status = os.statvfs(path)
            return status.f_bavail * status.f_frsize
    return None


OPERATIONS: Dict[str, Any] = {"probe.all": probe_all, "survey.look": survey}
