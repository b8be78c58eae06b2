"""Containers of Apptainer and Singularity: how Python is started in one, and what of one home wants to know.

The spec's `container` is `image` (a path here), `options` (more of `exec`), `python` (its name in the image) and `root`
(the folder of everything of ours). Both programs take the same command line; Apptainer is Singularity's new name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any, Callable, Dict, List

from slurm_ray_flow.remote.shared.protocol import OperationError

RUNTIMES = {"apptainer": "APPTAINERENV_", "singularity": "SINGULARITYENV_"}
"""The programs that do, the best first, and what the variables that go in begin with."""
PASSED = ("SRF_", "RAY_", "SLURM_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "GPU_", "OMP_")
ALSO_PASSED = {"TMPDIR", "LOG_NAME_UPDATE_INTERVAL_S"}
"""The variables that go into a container, besides the user's own; it sees no other."""
START_LIMIT = 300.0
"""Seconds in which a container must have started: the first time on a node, an image comes over the network."""
OLDEST_RAY = (2, 52)
"""Ray of before can't be asked for a token, so that it would serve everybody who reaches the node."""

_LOOK = """
import importlib.metadata, json, sys
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return ""
names = ("cloudpickle", "dill", "ray")
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], **{name: version(name) for name in names}}))
"""


def container_command(container: Dict[str, Any], gpus: int, runtime: str = "") -> List[str]:
    """What a program and its arguments are appended to: it starts the image's Python with them.

    Args:
        container: the spec's.
        gpus: how many there are on this host; NVIDIA's driver goes in where there are any.
        runtime: the program; found on the PATH where it is not given.

    Raises:
        OperationError: neither program is here, or a path can't be named to it.
    """
    options = [str(option) for option in container["options"]]
    nvidia = ["--nv"] if gpus and not {"--nv", "--nvccli", "--rocm"} & set(options) else []
    binds = ["--bind=" + _bindable(path) for path in _bound(container)]
    return [
        *(runtime or find_runtime(), "exec", "--cleanenv", *nvidia, *binds, *options),
        *(str(container["image"]), str(container["python"])),
    ]


def container_variables(environment: Dict[str, str], own: List[str], runtime: str = "") -> Dict[str, str]:
    """A program's variables as the runtime takes them: by itself it lets none in.

    Args:
        environment: all that it would have without a container.
        own: the names that its user chose.
        runtime: the program; found on the PATH where it is not given.
    """
    prefix = RUNTIMES[os.path.basename(runtime or find_runtime())]
    names = [name for name in environment if name.startswith(PASSED) or name in ALSO_PASSED or name in own]
    inside = {prefix + name: environment[name] for name in names}
    return {**environment, **inside, prefix + "PYTHONNOUSERSITE": "1"}


def find_runtime() -> str:
    """The program that starts containers on this host.

    Raises:
        OperationError: there is none.
    """
    for name in RUNTIMES:
        found = shutil.which(name)
        if found:
            return found
    raise OperationError(
        "there is neither apptainer nor singularity", os.uname().nodename,
        "load the module that has it: give it to the cluster with `srf init NAME --change --modules apptainer`",
        "environment",
    )  # fmt: skip


def examine(spec: Dict[str, Any]) -> None:
    """Start the image once, and see that its Python can run what home has pickled.

    Raises:
        OperationError: the image can't be started, or lacks something.
    """
    container = spec["container"]
    try:
        done = subprocess.run(
            [*container_command(container, int(spec.get("gpus") or 0)), "-I", "-c", _LOOK],
            env=container_variables(dict(os.environ), []), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=START_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _unusable(container, "it did not start within {:.0f} s".format(START_LIMIT)) from error
    try:
        versions = json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode("utf-8", "replace").strip()[-1500:]
        words = "its {} does not start (exit code {})\n{}".format(container["python"], done.returncode, said)
        raise _unusable(container, words) from None
    _judge(container, versions, bool(spec.get("ray")))


def _judge(container: Dict[str, Any], versions: Dict[str, str], ray: bool) -> None:
    wanted = container["wants"]
    if versions["python"] != wanted["python"]:
        words = "its Python is {}, and the function was pickled by {}".format(versions["python"], wanted["python"])
        raise _unusable(container, words, "choose an image with Python {}".format(wanted["python"]))
    for name in ("cloudpickle", "dill", *(["ray"] if ray else [])):
        add = "add `pip install {}=={}` to what the image is built from".format(name, wanted[name])
        if not versions[name]:
            raise _unusable(container, "it has no {}".format(name), add)
        if name == "ray" and _release(versions["ray"]) < OLDEST_RAY:
            words = "its Ray {} can't keep other users out: that needs {}.{} or later".format(
                versions["ray"], *OLDEST_RAY
            )
            raise _unusable(container, words, add)


def _release(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _unusable(container: Dict[str, Any], why: str, advice: str = "") -> OperationError:
    where = "{}, {}".format(os.uname().nodename, container["image"])
    start = "try `apptainer exec {} {} --version` there".format(container["image"], container["python"])
    return OperationError("The container can't run the function: {}".format(why), where, advice or start, "environment")


def _bound(container: Dict[str, Any]) -> List[str]:
    """Our own files, and where Ray has its own; the user's home comes by itself, on most sites."""
    return list(dict.fromkeys([str(container["root"]), os.environ.get("TMPDIR", "/tmp"), "/tmp"]))


def _bindable(path: str) -> str:
    if set(path) & set(",:"):
        raise OperationError(
            "a container can't be given a folder with `,` or `:` in its name",
            path,
            "choose another root",
            "environment",
        )
    return path


def look(image: str) -> Dict[str, Any]:
    """Find an image: its path, and what changes when it does.

    Args:
        image: a path; one that is not absolute begins at the user's home.

    Raises:
        OperationError: there is none, or it can't be read.
    """
    path = os.path.join(os.path.expanduser("~"), os.path.expanduser(image))
    advice = "give the path of an image that is there; `apptainer pull NAME.sif docker://...` makes one"
    try:
        status = os.stat(path)
    except OSError as error:
        raise OperationError(
            "there is no container image: {}".format(error.strerror), path, advice, "rejected"
        ) from None
    if not os.access(path, os.R_OK):
        raise OperationError("the container image can't be read", path, "ask whose it is", "rejected")
    return {"image": path, "changed": status.st_mtime_ns, "size": status.st_size}


OPERATIONS: Dict[str, Callable[..., Any]] = {"container.look": look}


def python_command(spec: Dict[str, Any]) -> List[str]:
    """What a program of ours and its arguments are appended to."""
    if spec.get("container"):
        return container_command(spec["container"], int(spec.get("gpus") or 0))
    return [str(spec.get("python") or sys.executable), *(["-I"] if spec.get("isolated") else [])]


def python_variables(spec: Dict[str, Any], environment: Dict[str, str]) -> Dict[str, str]:
    """The variables that it is started with, so that it has `environment`."""
    if spec.get("container"):
        return container_variables(environment, list(spec.get("environment_variables") or {}))
    return environment


def watched_parent(spec: Dict[str, Any]) -> str:
    """The pid with which it dies, `processes.die_with_parent`: in a container a process of the runtime is between."""
    return "0" if spec.get("container") else str(os.getpid())
