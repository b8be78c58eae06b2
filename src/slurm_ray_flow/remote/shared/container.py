"""Containers of Apptainer and Singularity: the command that starts Python in one, and the check of an image.

The spec's `container` has `image` (a path on this host), `options` (more options of `exec`), `python` (its name in the
image) and `root` (the root folder). Both programs take the same command line; Apptainer is Singularity's new name.
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
"""The container programs, the preferred one first, and the prefix of the variables that each passes on."""
PASSED_PREFIXES = ("SRF_", "RAY_", "SLURM_", "OAR_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "GPU_", "OMP_")
PASSED_VARIABLES = {"TMPDIR", "LOG_NAME_UPDATE_INTERVAL_S"}
"""A container sees these variables and those that the user chose, and no others."""
START_LIMIT = 300.0
"""Seconds that a container may take to start: an image's first start on a node reads it over the network."""
OLDEST_RAY = (2, 52)
"""Earlier versions of Ray have no authentication by token: they would serve everybody who reaches the node."""

_VERSIONS_SCRIPT = """
import importlib.metadata, json, sys
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return ""
names = ("cloudpickle", "dill", "ray")
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], **{name: version(name) for name in names}}))
"""


def container_command(container: Dict[str, Any], gpus: int, runtime: str = "") -> List[str]:
    """The command that starts the image's Python; the caller appends a program and its arguments.

    Args:
        container: the spec's `container`.
        gpus: the number of GPUs on this host; if it is not 0, the container gets NVIDIA's driver.
        runtime: the container program; "" searches the PATH for one.

    Raises:
        OperationError: there is no container program, or it can't be given a path.
    """
    options = [str(option) for option in container["options"]]
    nvidia = ["--nv"] if gpus and not {"--nv", "--nvccli", "--rocm"} & set(options) else []
    binds = ["--bind=" + _checked_bind_folder(path) for path in _bind_folders(container)]
    return [
        *(runtime or find_runtime(), "exec", "--cleanenv", *nvidia, *binds, *options),
        *(str(container["image"]), str(container["python"])),
    ]


def container_variables(environment: Dict[str, str], user_variables: List[str], runtime: str = "") -> Dict[str, str]:
    """The variables for the container program, which passes only prefixed ones into the container.

    Args:
        environment: the variables that the program would have without a container.
        user_variables: the names that the user chose.
        runtime: the container program; "" searches the PATH for one.
    """
    prefix = RUNTIMES[os.path.basename(runtime or find_runtime())]
    chosen = PASSED_VARIABLES.union(user_variables)
    names = [name for name in environment if name.startswith(PASSED_PREFIXES) or name in chosen]
    passed = {prefix + name: environment[name] for name in names}
    return {**environment, **passed, prefix + "PYTHONNOUSERSITE": "1"}


def find_runtime() -> str:
    """The container program of this host.

    Raises:
        OperationError: there is none.
    """
    for name in RUNTIMES:
        program = shutil.which(name)
        if program:
            return program
    raise OperationError(
        "there is neither apptainer nor singularity", os.uname().nodename,
        "load the module that has it: give it to the cluster with `srf init NAME --change --modules apptainer`",
        "environment",
    )  # fmt: skip


def examine(spec: Dict[str, Any]) -> None:
    """Start the image once, and check that its Python can run what home has pickled.

    Raises:
        OperationError: the image can't be started, or a package is missing or too old.
    """
    container = spec["container"]
    try:
        result = subprocess.run(
            [*container_command(container, int(spec.get("gpus") or 0)), "-I", "-c", _VERSIONS_SCRIPT],
            env=container_variables(dict(os.environ), []), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=START_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _unusable(container, "it did not start within {:.0f} s".format(START_LIMIT)) from error
    try:
        versions = json.loads(result.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
    except (ValueError, IndexError):
        stderr = result.stderr.decode("utf-8", "replace").strip()[-1500:]
        problem = "its {} does not start (exit code {})\n{}".format(container["python"], result.returncode, stderr)
        raise _unusable(container, problem) from None
    _check_versions(container, versions, bool(spec.get("ray")))


def _check_versions(container: Dict[str, Any], versions: Dict[str, str], ray: bool) -> None:
    home = container["wants"]
    if versions["python"] != home["python"]:
        problem = "its Python is {}, and the function was pickled by {}".format(versions["python"], home["python"])
        raise _unusable(container, problem, "choose an image with Python {}".format(home["python"]))
    for name in ("cloudpickle", "dill", *(["ray"] if ray else [])):
        advice = "add `pip install {}=={}` to what the image is built from".format(name, home[name])
        if not versions[name]:
            raise _unusable(container, "it has no {}".format(name), advice)
        if name == "ray" and _release(versions["ray"]) < OLDEST_RAY:
            problem = "its Ray {} can't keep other users out: that needs {}.{} or later".format(
                versions["ray"], *OLDEST_RAY
            )
            raise _unusable(container, problem, advice)


def _release(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _unusable(container: Dict[str, Any], why: str, advice: str = "") -> OperationError:
    location = "{}, {}".format(os.uname().nodename, container["image"])
    first_check = "try `apptainer exec {} {} --version` there".format(container["image"], container["python"])
    what = "The container can't run the function: {}".format(why)
    return OperationError(what, location, advice or first_check, "environment")


def _bind_folders(container: Dict[str, Any]) -> List[str]:
    """The folders to bind: the root and those of Ray's files. Most sites bind the user's home by default."""
    return list(dict.fromkeys([str(container["root"]), os.environ.get("TMPDIR", "/tmp"), "/tmp"]))


def _checked_bind_folder(path: str) -> str:
    if set(path) & set(",:"):
        raise OperationError(
            "a container can't be given a folder with `,` or `:` in its name",
            path,
            "choose another root",
            "environment",
        )
    return path


def find_image(image: str) -> Dict[str, Any]:
    """The path of an image with its time and size, which change when the image does.

    Args:
        image: a path; a relative one begins at the user's home.

    Raises:
        OperationError: there is no such file, or it can't be read.
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


OPERATIONS: Dict[str, Callable[..., Any]] = {"container.look": find_image}


def python_command(spec: Dict[str, Any]) -> List[str]:
    """The command that starts the run's Python; the caller appends a program and its arguments."""
    if spec.get("container"):
        return container_command(spec["container"], int(spec.get("gpus") or 0))
    return [str(spec.get("python") or sys.executable), *(["-I"] if spec.get("isolated") else [])]


def python_variables(spec: Dict[str, Any], environment: Dict[str, str]) -> Dict[str, str]:
    """The variables for `python_command`, so that the program has those of `environment`."""
    if spec.get("container"):
        return container_variables(environment, list(spec.get("environment_variables") or {}))
    return environment


def watched_parent(spec: Dict[str, Any]) -> str:
    """The pid for the program's `processes.die_with_parent`; "0" in a container, whose runtime is the parent."""
    return "0" if spec.get("container") else str(os.getpid())
