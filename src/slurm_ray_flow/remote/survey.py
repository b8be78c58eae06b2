"""What a machine is, for somebody who is about to save it as a cluster: all in one answer, found by looking alone."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote import machines, pythons
from slurm_ray_flow.remote.asking import said_by

SECONDS = 10.0
_SCRATCH_VARIABLES = ("SCRATCH", "SCRATCHDIR", "WORK", "WORKDIR", "LOCAL_SCRATCH")
_SCRATCH_FOLDERS = ("/scratch", "/work", "/local_scratch", "/data")


def survey() -> Dict[str, Any]:
    """Look at this machine.

    Returns:
        user, home, host; home_bytes: what is free there; cpus, gpus, memory (bytes); slurm: "answers", "silent", or ""
        where there is none; accounts: what sacctmgr says that the user may charge; modules: whether there are
        environment modules; pythons: path and version of each; scratch: path and free bytes of each folder that the
        user can write in.
    """
    with ThreadPoolExecutor(max_workers=5) as pool:
        found = pool.submit(_pythons)
        accounts = pool.submit(_accounts)
        modules = pool.submit(_modules)
        slurm = pool.submit(_slurm)
        facts = machines.facts()
        return {
            "user": _user(), "home": os.path.expanduser("~"), "host": facts["host"],
            "cpus": facts["cpus"], "gpus": facts["gpus"], "memory": facts["memory"],
            "home_bytes": _room(os.path.expanduser("~")),
            "slurm": slurm.result(),
            "accounts": accounts.result(), "modules": modules.result(), "pythons": found.result(),
            "scratch": _scratch(),
        }  # fmt: skip


def _user() -> str:
    import getpass

    return getpass.getuser()


def _pythons() -> List[Dict[str, str]]:
    """Every CPython of 3.9 or later that starts, one for each version."""
    found: Dict[str, Dict[str, str]] = {}
    for path in pythons.candidates("3"):
        answer = pythons.ask([path, "-I", "-c", pythons.QUESTION])
        if answer is not None and answer.implementation == "CPython" and _release(answer.version) >= [3, 9]:
            found.setdefault(answer.version, {"path": answer.python, "version": answer.version})
    return sorted(found.values(), key=lambda one: _release(one["version"]), reverse=True)


def _release(version: str) -> List[int]:
    """Major and minor."""
    return [int(part) for part in version.split(".")[:2]]


def _slurm() -> str:
    """Whether Slurm gives out nodes here: "answers"; "silent" where its commands are here and nothing answers; ""."""
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return ""
    return "answers" if (said_by(["sinfo", "--noheader", "--format=%R"], SECONDS) or "").strip() else "silent"


def _accounts() -> List[str]:
    """What the user may charge, where the site keeps accounts; sorted."""
    if not shutil.which("sacctmgr"):
        return []
    command = ["sacctmgr", "-nP", "show", "assoc", "user=" + _user(), "format=account"]
    return sorted({line.strip() for line in (said_by(command, SECONDS) or "").splitlines() if line.strip()})


def _modules() -> bool:
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    mark = "srf-modules"
    return mark in (said_by([shell, "-lc", "type module >/dev/null 2>&1 && echo " + mark], SECONDS) or "")


def _scratch() -> List[Dict[str, Any]]:
    """Folders with room that are not the home, the user's own before those of all."""
    user = _user()
    named = [os.environ.get(name, "") for name in _SCRATCH_VARIABLES]
    for folder in _SCRATCH_FOLDERS:
        named += [os.path.join(folder, user), *sorted(glob.glob(os.path.join(folder, "*", glob.escape(user)))), folder]
    found: List[Dict[str, Any]] = []
    for path in dict.fromkeys(os.path.normpath(path) for path in named if path):
        room = _room(path)
        if room is not None:
            found.append({"path": path, "bytes": room})
    return found


def _room(path: str) -> Optional[int]:
    with contextlib.suppress(OSError):
        if os.path.isabs(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            there = os.statvfs(path)
            return there.f_bavail * there.f_frsize
    return None


OPERATIONS: Dict[str, Any] = {"look": survey}
