"""Find the Python for environments, which must have the major and minor version of home's.

The policy is the place to search:

    ""             PATH, also that of a login shell, and the usual folders of Pythons
    /some/python   this Python only
    module:NAME    the python3 of an environment module
    download       a Python that uv downloads
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from slurm_ray_flow.remote.environment import uv_tool
from slurm_ray_flow.remote.environment.uv_tool import BuildError, UvProcess, clean_variables
from slurm_ray_flow.remote.shared.files import private_folder, sync_all
from slurm_ray_flow.remote.shared.machine import platform_tag
from slurm_ray_flow.remote.shared.processes import output_of
from slurm_ray_flow.remote.shared.protocol import OperationError

START_SECONDS = 30.0
"""Seconds for a Python, a login shell or a module to start; on a slow file system that takes long."""
_MARK = "srf-python:"
QUESTION = (
    "import json, os, platform, sys, sysconfig; print({mark!r} + json.dumps(dict("
    "python=sys.executable, version=platform.python_version(), implementation=platform.python_implementation(), "
    "system=sysconfig.get_platform(), libc=' '.join(platform.libc_ver()).strip(), "
    "libraries=os.environ.get('LD_LIBRARY_PATH', ''))))"
).format(mark=_MARK)


class PythonAnswer(NamedTuple):
    """A Python's own description."""

    python: str
    version: str
    implementation: str
    system: str
    libc: str
    libraries: str

    def fits(self, version: str) -> bool:
        """Whether this Python and a CPython of that version can read each other's pickles."""
        return self.implementation == "CPython" and self.version.startswith(version + ".")

    def __str__(self) -> str:
        kind = "" if self.implementation == "CPython" else " ({})".format(self.implementation)
        return "{} is {}{}".format(self.python, self.version, kind)


def find(policy: str, version: str, root: str = "", uv_version: str = "") -> Dict[str, Any]:
    """Find the interpreter for environments.

    Args:
        policy: as above.
        version: the wanted major and minor version, "3.11".
        root: the root folder, with uv and the Pythons that uv downloads.
        uv_version: the version of that uv; "" uses no uv.

    Returns:
        python, version ("3.11.7"), platform ("cp311-linux_x86_64"), libc ("glibc 2.36"), and variables that the Python
        needs to start outside its module.

    Raises:
        OperationError: there is none; the message names the Pythons of other versions.
    """
    others: List[PythonAnswer] = []
    for command in _commands(policy, version, root, uv_version):
        answer = ask_python(command)
        if answer is not None and answer.fits(version):
            return _described(answer, version)
        if answer is not None and answer not in others:
            others.append(answer)
    what = _not_found(policy, version, others)
    raise OperationError(what, _searched(policy), _advice(policy, version), "environment")


def ask_python(command: Sequence[str], variables: Optional[Dict[str, str]] = None) -> Optional[PythonAnswer]:
    """Start a Python and have it describe itself; None if it is no Python, or can't start."""
    output = output_of(command, START_SECONDS, {**clean_variables(), **(variables or {})})
    try:
        # A login shell may print other lines before the answer.
        return PythonAnswer(**json.loads((output or "").rpartition(_MARK)[2]))
    except (ValueError, TypeError):
        return None


def _commands(policy: str, version: str, root: str, uv_version: str) -> Iterator[List[str]]:
    """The commands that start Pythons, the preferred one first; each is made only when those before it did not fit."""
    if policy.startswith("module:"):
        yield _in_login_shell("module load {} && exec python3".format(shlex.quote(policy[len("module:") :].strip())))
    elif policy == "download":
        yield _question(_download(version, root, uv_version))
    elif policy:
        yield _question(os.path.expanduser(policy))
    else:
        yield from map(_question, candidates(version))
        yield _in_login_shell("exec python{}".format(version))
        yield _in_login_shell("exec python3")
        uv = uv_tool.located(root, uv_version)["uv"] if uv_version else ""
        if uv:
            yield from map(_question, _known_to_uv(version, uv))


def candidates(version: str) -> List[str]:
    """The usual paths of Pythons: those of this version first, each kind with its newest release first."""
    short = version.replace(".", "")
    patterns = ("~/.pyenv/versions/{}.*/bin/python", "/opt/python/{}*/bin/python3", "/opt/python/cp{}-*/bin/python3")
    paths = [sys.executable, *_on_path("python" + version)]
    for pattern, name in ((patterns[0], version), (patterns[1], version), (patterns[2], short)):
        paths += _newest_first(os.path.expanduser(pattern.format(name)))
    paths += ["/usr/local/bin/python" + version, "/usr/bin/python" + version]
    paths += [*_on_path("python3"), *sorted(glob.glob("/usr/bin/python3.[0-9]*[0-9]"))]
    paths += _newest_first(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    usable = [path for path in paths if path and os.access(path, os.X_OK) and os.path.isfile(path)]
    return list(dict.fromkeys(usable))


def _newest_first(pattern: str) -> List[str]:
    """The paths that match, by the numbers in them: 3.11.10 before 3.11.9."""
    return sorted(glob.glob(pattern), key=lambda path: [int(part) for part in re.findall(r"\d+", path)], reverse=True)


def _on_path(name: str) -> Iterator[str]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield os.path.join(folder, name)


def _question(python: str) -> List[str]:
    return [python, "-I", "-c", QUESTION]


def _in_login_shell(start: str) -> List[str]:
    """A command in a login shell, which alone may have modules, or the user's PATH."""
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    return [shell, "-lc", "{} -I -c {}".format(start, shlex.quote(QUESTION))]


def _known_to_uv(version: str, uv: str) -> List[str]:
    command = [uv, "python", "find", "--no-python-downloads", "--no-project", version]
    return [path for path in (output_of(command, START_SECONDS) or "").split("\n")[:1] if path]


def _download(version: str, root: str, uv_version: str) -> str:
    """Have uv download a Python into the root, unless it is there; returns its path."""
    folder = private_folder(_download_folder(root))
    downloaded = _downloaded(folder, version)
    if not downloaded or ask_python(_question(downloaded[0])) is None:  # or it is incomplete after a loss of power
        uv = uv_tool.provide(root, uv_version)["uv"]
        try:
            program = UvProcess(uv, Path(folder), None, lambda _: None)
            program.run("python", "install", "--reinstall", "--install-dir", folder, "--no-bin", version)
        except BuildError as error:
            what = "Python {} can't be downloaded: {}".format(version, error)
            advice = 'set `python` of the block to the path of a Python, or to "module:NAME"'
            raise OperationError(what, folder, advice, "environment") from error
        sync_all(folder)
    return [*_downloaded(folder, version), os.path.join(folder, "python3")][0]


def _download_folder(root: str) -> str:
    return os.path.join(os.path.expanduser(root), "tools", "python")


def to_be_downloaded(policy: str, version: str, root: str) -> bool:
    """Whether the next launch downloads a Python."""
    return policy == "download" and not _downloaded(_download_folder(root), version)


def _downloaded(folder: str, version: str) -> List[str]:
    return _newest_first(os.path.join(glob.escape(folder), "cpython-{}.*".format(version), "bin", "python3"))


def _described(answer: PythonAnswer, version: str) -> Dict[str, Any]:
    return {
        "python": answer.python,
        "version": answer.version,
        "platform": platform_tag(version, answer.implementation, answer.system),
        "libc": answer.libc,
        "variables": _needed_variables(answer),
    }


def _needed_variables(answer: PythonAnswer) -> Dict[str, str]:
    """The variables without which the Python can't start: a module may set the path of its library."""
    if not answer.libraries or ask_python(_question(answer.python), {"LD_LIBRARY_PATH": ""}) is not None:
        return {}
    return {"LD_LIBRARY_PATH": answer.libraries}


def _not_found(policy: str, version: str, others: Sequence[PythonAnswer]) -> str:
    needed = "Python {} is needed there, as at home".format(version)
    if others:
        return "{}, but {}".format(needed, "; ".join(map(str, others)))
    return "{}, and none was found".format(needed) if not policy else "{}, and nothing there starts".format(needed)


def _searched(policy: str) -> str:
    return "python={!r}".format(policy) if policy else "the usual places"


def _advice(policy: str, version: str) -> str:
    if policy.startswith("module:"):
        return "see `module avail python` there, and set `python` of the block to the right module"
    return 'set `python` of the block to a path, "module:NAME" or "download", or use Python {} there and here'.format(
        version
    )


OPERATIONS: Dict[str, Any] = {"pythons.find": find}
