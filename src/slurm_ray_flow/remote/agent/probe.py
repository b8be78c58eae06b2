"""What a machine has that runs need, asked all at once. Each question has its own answer or error."""

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

WITHIN = 15.0
"""Seconds after which a question that has no answer gets none; a dead file system may hold it back for ever."""
COMMAND_SECONDS = 5.0
PACKAGE_INDEX = "https://pypi.org/simple"
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")

Answer = Dict[str, Any]


def all_of(root: str, python: str = "", version: str = "", lock: str = "", slots: int = 1) -> Dict[str, Answer]:
    """Ask everything at once.

    Args:
        root: the folder of everything of ours, which need not be there.
        python: the policy by which a Python is found.
        version: the major and minor version it must have.
        lock: the path of the server's lock; empty for none.
        slots: how many runs share it.

    Returns:
        By the name of the question, what was found, or an `error` and what to try.
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
    """The Python that runs would have; a look downloads none."""
    if pythons.to_be_downloaded(policy, version, root):
        return {"python": "", "version": version}
    return pythons.find(policy, version, root)


def answered(questions: Dict[str, Callable[[], Answer]], within: float = WITHIN) -> Dict[str, Answer]:
    """Ask several questions side by side; one that takes too long is left alone."""
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
    except Exception as error:  # whatever it is, the other answers are worth having
        answers[name] = {"error": "{}: {}".format(type(error).__name__, error), "advice": ""}


def account() -> Answer:
    """Who asks, and whether others can write where that user's files are."""
    home = os.path.expanduser("~")
    return {
        "user": getpass.getuser(), "host": os.uname().nodename, "home": home,
        "mode": stat.S_IMODE(os.stat(home).st_mode), "writable": os.access(home, os.W_OK),
    }  # fmt: skip


def root_folder(root: str) -> Answer:
    """Whose the root is, and whether something can be written there."""
    path = os.path.expanduser(root)
    there = existing(path)
    return {
        "path": path, "exists": os.path.isdir(path), "owner": os.stat(there).st_uid,
        "ours": os.stat(there).st_uid == os.geteuid(), "writable": _can_write(there),
    }  # fmt: skip


def _can_write(folder: str) -> bool:
    """By trying: a full or read-only disk lets `access` say yes."""
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
    """The path, or the nearest folder above it that is there."""
    folder = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def disk(path: str) -> Answer:
    """What is free on the disk of a folder."""
    found = os.statvfs(existing(path))
    files = {"files": found.f_favail} if found.f_files else {}
    return {"bytes": found.f_bavail * found.f_frsize, "all_bytes": found.f_blocks * found.f_frsize, **files}


def quota(folder: str) -> Answer:
    """What the user's quota has free where a folder lies; nothing where no quota answers or none limits."""
    program = shutil.which("quota")
    if program is None:
        return {}
    mount = next(path for path in (folder, *map(str, Path(folder).parents)) if os.path.ismount(path))
    return read_quota(output_of([program, "-w", "-p", "--hide-device", "-f", mount], COMMAND_SECONDS) or "")


def read_quota(text: str) -> Answer:
    """What is free of a quota by the line of numbers that `quota -w -p` prints; nothing where there is no limit."""
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
    """What is free where Ray and multiprocessing keep what their processes share."""
    return {"bytes": 0, "all_bytes": 0} if limits.lacks_shared_memory() else disk(SHARED_MEMORY)


def rsync() -> Answer:
    """The version of rsync; "" where there is none."""
    program = shutil.which("rsync")
    if program is None:
        return {"version": ""}
    found = re.search(r"version v?(\d+(?:\.\d+)*)", output_of([program, "--version"], COMMAND_SECONDS) or "")
    return {"version": found[1] if found else "unknown"}


def lock_state(path: str, slots: int) -> Answer:
    """The lock's file, and who holds it."""
    state: Answer = queue.state(path, slots)
    there = os.path.lexists(path)
    writable = os.access(path, os.W_OK) if there else os.access(os.path.dirname(path) or ".", os.W_OK)
    return {"path": path, "exists": there, "writable": writable, **state}


def registry() -> Answer:
    """Whether the package index answers that is configured here."""
    address = index_address()
    shown = re.sub(r"//[^/@]*@", "//", address)
    request = urllib.request.Request(_without_credentials(address), method="HEAD", headers={"User-Agent": "srf"})
    try:
        with urllib.request.urlopen(request, timeout=COMMAND_SECONDS):
            return {"address": shown, "reached": True}
    except urllib.error.HTTPError as error:  # it is there, and wants something more
        return {"address": shown, "reached": error.code < 500}
    except (OSError, ValueError) as error:
        return {"address": shown, "reached": False, "why": str(getattr(error, "reason", error))}


def _without_credentials(address: str) -> str:
    """urllib takes a user in an address for a part of the host's name; whether the index is there shows without."""
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/") + "/"


def index_address() -> str:
    """The index that pip and uv would use here."""
    named: List[str] = [os.environ[name] for name in _INDEX_VARIABLES if os.environ.get(name)]
    return named[0] if named else _of_pip() or PACKAGE_INDEX


def _of_pip() -> str:
    files = configparser.RawConfigParser(strict=False)
    own = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "pip" / "pip.conf"
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        files.read(["/etc/xdg/pip/pip.conf", "/etc/pip.conf", os.path.expanduser("~/.pip/pip.conf"), str(own)])
    return files.get("global", "index-url", fallback="").strip()


SECONDS = 10.0
_SCRATCH_VARIABLES = ("SCRATCH", "SCRATCHDIR", "WORK", "WORKDIR", "LOCAL_SCRATCH")
_SCRATCH_FOLDERS = ("/scratch", "/work", "/local_scratch", "/data")


def survey() -> Dict[str, Any]:
    """Look at this machine.

    Returns:
        user, home, host; home_bytes: what is free there; cpus, gpus, memory (bytes); slurm: "answers", "silent", or ""
        where there is none; modules: whether there are environment modules;
        pythons: path and version of each; scratch: path and free bytes of each folder that the
        user can write in.
    """
    with ThreadPoolExecutor(max_workers=4) as pool:
        pythons = pool.submit(_pythons)
        modules = pool.submit(_modules)
        slurm = pool.submit(_slurm)
        facts = machine.machine_facts()
        return {
            "user": getpass.getuser(), "home": os.path.expanduser("~"), "host": facts["host"],
            "cpus": facts["cpus"], "gpus": facts["gpus"], "memory": facts["memory"],
            "home_bytes": _room(os.path.expanduser("~")),
            "slurm": slurm.result(),
            "modules": modules.result(), "pythons": pythons.result(),
            "scratch": _scratch(),
        }  # fmt: skip


def _pythons() -> List[Dict[str, str]]:
    """Every CPython of 3.9 or later that starts, one for each version."""
    by_path: Dict[str, Dict[str, str]] = {}
    for path in pythons.candidates("3"):
        answer = pythons.ask_python([path, "-I", "-c", pythons.QUESTION])
        if answer is not None and answer.implementation == "CPython" and _release(answer.version) >= [3, 9]:
            by_path.setdefault(answer.version, {"path": answer.python, "version": answer.version})
    return sorted(by_path.values(), key=lambda one: _release(one["version"]), reverse=True)


def _release(version: str) -> List[int]:
    """Major and minor."""
    return [int(part) for part in version.split(".")[:2]]


def _slurm() -> str:
    """Whether Slurm gives out nodes here: "answers"; "silent" where its commands are here and nothing answers; ""."""
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return ""
    return "answers" if (output_of(["sinfo", "--noheader", "--format=%R"], SECONDS) or "").strip() else "silent"


def _modules() -> bool:
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    mark = "srf-modules"
    return mark in (output_of([shell, "-lc", "type module >/dev/null 2>&1 && echo " + mark], SECONDS) or "")


def _scratch() -> List[Dict[str, Any]]:
    """Folders with room that are not the home, the user's own before those of all."""
    user = getpass.getuser()
    named = [os.environ.get(name, "") for name in _SCRATCH_VARIABLES]
    for folder in _SCRATCH_FOLDERS:
        named += [os.path.join(folder, user), *sorted(glob.glob(os.path.join(folder, "*", glob.escape(user)))), folder]
    folders: List[Dict[str, Any]] = []
    for path in dict.fromkeys(os.path.normpath(path) for path in named if path):
        room = _room(path)
        if room is not None:
            folders.append({"path": path, "bytes": room})
    return folders


def _room(path: str) -> Optional[int]:
    with contextlib.suppress(OSError):
        if os.path.isabs(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            there = os.statvfs(path)
            return there.f_bavail * there.f_frsize
    return None


OPERATIONS: Dict[str, Any] = {"probe.all": all_of, "survey.look": survey}
