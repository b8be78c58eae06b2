"""Find the Python that environments are built with: the same major and minor version as home's.

A policy says where to look:

    ""             on PATH, as a login shell has it, and where Pythons usually lie
    /some/python   this one
    module:NAME    the python3 of an environment module
    download       where uv puts one that it downloads
"""

from __future__ import annotations

import glob
import json
import os
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
"""How long a Python, a login shell or a module may take to start; a home on a slow file system takes a while."""
_MARK = "srf-python:"
QUESTION = (
    "import json, os, platform, sys, sysconfig; print({mark!r} + json.dumps(dict("
    "python=sys.executable, version=platform.python_version(), implementation=platform.python_implementation(), "
    "system=sysconfig.get_platform(), libc=' '.join(platform.libc_ver()).strip(), "
    "libraries=os.environ.get('LD_LIBRARY_PATH', ''))))"
).format(mark=_MARK)


class PythonAnswer(NamedTuple):
    """What a Python says of itself."""

    python: str
    version: str
    implementation: str
    system: str
    libc: str
    libraries: str

    def fits(self, version: str) -> bool:
        """Whether what is pickled by a CPython of this version can be read there, and the other way round."""
        return self.implementation == "CPython" and self.version.startswith(version + ".")

    def __str__(self) -> str:
        kind = "" if self.implementation == "CPython" else " ({})".format(self.implementation)
        return "{} is {}{}".format(self.python, self.version, kind)


def find(policy: str, version: str, root: str = "", uv_version: str = "") -> Dict[str, Any]:
    """Find the interpreter for environments.

    Args:
        policy: as above.
        version: the wanted major and minor version, "3.11".
        root: the root folder, where uv is, and where it downloads a Python to.
        uv_version: which uv that is; "" looks for none.

    Returns:
        python, version ("3.11.7"), platform ("cp311-linux_x86_64"), libc ("glibc 2.36"), and variables: what that
        Python needs to start outside its module.

    Raises:
        OperationError: there is none; it names what was found.
    """
    seen: List[PythonAnswer] = []
    for command in _commands(policy, version, root, uv_version):
        answer = ask_python(command)
        if answer is not None and answer.fits(version):
            return _found(answer, version)
        if answer is not None and answer not in seen:
            seen.append(answer)
    raise OperationError(_missing(policy, version, seen), _place(policy), _advice(policy, version), "environment")


def ask_python(command: Sequence[str], variables: Optional[Dict[str, str]] = None) -> Optional[PythonAnswer]:
    """Start a Python and ask it what it is; None where it is none, or can't start."""
    said = output_of(command, START_SECONDS, {**clean_variables(), **(variables or {})})
    try:
        # A login shell's own words may stand before the answer.
        return PythonAnswer(**json.loads((said or "").rpartition(_MARK)[2]))
    except (ValueError, TypeError):
        return None


def _commands(policy: str, version: str, root: str, uv_version: str) -> Iterator[List[str]]:
    """What to start, the nearest first; each is looked for only when those before it did not fit."""
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
    """Where a Python of this version, or any other, usually lies."""
    short = version.replace(".", "")
    patterns = ("~/.pyenv/versions/{}.*/bin/python", "/opt/python/{}*/bin/python3", "/opt/python/cp{}-*/bin/python3")
    found = [sys.executable, *_on_path("python" + version)]
    for pattern, name in ((patterns[0], version), (patterns[1], version), (patterns[2], short)):
        found += sorted(glob.glob(os.path.expanduser(pattern.format(name))), reverse=True)
    found += ["/usr/local/bin/python" + version, "/usr/bin/python" + version]
    found += [*_on_path("python3"), *sorted(glob.glob("/usr/bin/python3.[0-9]*[0-9]"))]
    found += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python")))
    usable = [path for path in found if path and os.access(path, os.X_OK) and os.path.isfile(path)]
    return list(dict.fromkeys(usable))


def _on_path(name: str) -> Iterator[str]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield os.path.join(folder, name)


def _question(python: str) -> List[str]:
    return [python, "-I", "-c", QUESTION]


def _in_login_shell(start: str) -> List[str]:
    """Modules are functions of login shells; what lies on PATH may be known to those alone."""
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    return [shell, "-lc", "{} -I -c {}".format(start, shlex.quote(QUESTION))]


def _known_to_uv(version: str, uv: str) -> List[str]:
    command = [uv, "python", "find", "--no-python-downloads", "--no-project", version]
    return [path for path in (output_of(command, START_SECONDS) or "").split("\n")[:1] if path]


def _download(version: str, root: str, uv_version: str) -> str:
    """Have uv download one into the root, once; gives its path."""
    folder = private_folder(_folder(root))
    there = _downloaded(folder, version)
    if not there or ask_python(_question(there[0])) is None:  # a loss of power may have left a part of it
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


def _folder(root: str) -> str:
    return os.path.join(os.path.expanduser(root), "tools", "python")


def to_be_downloaded(policy: str, version: str, root: str) -> bool:
    """Whether the next launch has uv download a Python."""
    return policy == "download" and not _downloaded(_folder(root), version)


def _downloaded(folder: str, version: str) -> List[str]:
    name = "cpython-{}.*".format(version)
    return sorted(glob.glob(os.path.join(glob.escape(folder), name, "bin", "python3")), reverse=True)


def _found(answer: PythonAnswer, version: str) -> Dict[str, Any]:
    return {
        "python": answer.python,
        "version": answer.version,
        "platform": platform_tag(version, answer.implementation, answer.system),
        "libc": answer.libc,
        "variables": _needed_variables(answer),
    }


def _needed_variables(answer: PythonAnswer) -> Dict[str, str]:
    """A module's Python may find its own library only where the module says."""
    if not answer.libraries or ask_python(_question(answer.python), {"LD_LIBRARY_PATH": ""}) is not None:
        return {}
    return {"LD_LIBRARY_PATH": answer.libraries}


def _missing(policy: str, version: str, seen: Sequence[PythonAnswer]) -> str:
    wanted = "Python {} is needed there, as at home".format(version)
    if seen:
        return "{}, but {}".format(wanted, "; ".join(map(str, seen)))
    return "{}, and none was found".format(wanted) if not policy else "{}, and nothing there starts".format(wanted)


def _place(policy: str) -> str:
    return "python={!r}".format(policy) if policy else "the usual places"


def _advice(policy: str, version: str) -> str:
    if policy.startswith("module:"):
        return "see `module avail python` there, and set `python` of the block to the right module"
    return 'set `python` of the block to a path, "module:NAME" or "download", or use Python {} there and here'.format(
        version
    )


OPERATIONS: Dict[str, Any] = {"pythons.find": find}
