"""What a job asks of Slurm, and the arguments of `sbatch` that say so."""

from __future__ import annotations

import dataclasses
import math
import re

from slurm_ray_flow.core.errors import OptionError

MIB = 1024**2
LONGEST_WARNING = 65535


@dataclasses.dataclass(frozen=True)
class Request:
    """What one job asks for. "" and None ask for nothing: the partition's or the site's default counts.

    Attributes:
        name: the job's name, by which it is found again.
        nodes: how many nodes, exactly.
        cpus_per_node, gpus_per_node: of each node.
        memory: bytes of each node.
        time_limit: seconds.
        partition, account, qos, constraint, reservation, exclude: as sbatch takes them.
        extra: more options of sbatch, each one text: "--mail-type=END" or "-w c1".
        output: the file that gets both outputs of the job, an absolute path.
        chdir: where the job starts.
        warn_seconds: how long before its end the job's script gets SIGUSR1; 0 for no warning.
    """

    name: str
    nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int = 0
    memory: int | None = None
    time_limit: float | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclude: str = ""
    extra: tuple[str, ...] = ()
    output: str = ""
    chdir: str = ""
    warn_seconds: int = 0


def sbatch_command(request: Request) -> list[str]:
    """The whole command but the script's path; `remote/slurm.py` drops the variables that would change the request."""
    return ["sbatch", *sbatch_arguments(request)]


def sbatch_arguments(request: Request) -> list[str]:
    """What follows `sbatch`, one argument each, no shell in between; the script's path comes after it.

    GPUs are asked for by `--gres`, which every Slurm knows; `--gpus-per-node` needs select/cons_tres.
    A node has one task, which starts what the run needs there. The job is never put into the queue again by
    Slurm (`--no-requeue`): a second start of the same run is ours to decide.

    Raises:
        OptionError: an extra option is one that the run sets itself, or a text can't be an argument.
    """
    for field in dataclasses.fields(request):
        _refuse_control_characters(field.name, getattr(request, field.name))
    extra = [part for option in request.extra for part in _checked(option)]
    return [*_own(request), *_limits(request), *_gres(request), *extra]


def _own(request: Request) -> list[str]:
    path = escaped_path(request.output) if request.output else ""
    return [
        "--parsable",
        f"--job-name={request.name}",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        "--no-requeue",
        "--open-mode=append",
        *_given({"--output": path, "--error": path, "--chdir": request.chdir}),
        *(["--no-kill"] if request.nodes > 1 else []),
    ]


def _limits(request: Request) -> list[str]:
    warning = min(request.warn_seconds, LONGEST_WARNING)
    return _given(
        {
            "--cpus-per-task": request.cpus_per_node or "",
            "--mem": f"{math.ceil(request.memory / MIB)}M" if request.memory else "",
            "--time": math.ceil(request.time_limit / 60) if request.time_limit else "",
            "--signal": f"B:USR1@{warning}" if warning > 0 else "",
            **{
                f"--{name}": getattr(request, name)
                for name in ("partition", "account", "qos", "constraint", "reservation", "exclude")
            },
        }
    )


def _given(values: dict[str, str | int]) -> list[str]:
    return [f"{option}={value}" for option, value in values.items() if value != ""]


def escaped_path(path: str) -> str:
    r"""The path as `--output` reads it: `%` begins a symbol, unless there is a backslash, which itself escapes.

    With any backslash in it Slurm takes `%` as it is and drops each backslash that is not escaped (seen with 22.05).
    """
    return path.replace("\\", "\\\\") if "\\" in path else path.replace("%", "%%")


# One --gres is all that sbatch hears, the last one: ours and an extra one are joined.


def _gres(request: Request) -> list[str]:
    items = [item for option in request.extra if _name(option) == "gres" for item in _value(option).split(",")]
    cards = [item for item in items if item.split(":")[0] == "gpu"]
    if any(_count(item) != request.gpus_per_node for item in cards):
        raise OptionError(
            f"--gres={','.join(items)} asks for another number of GPUs than gpus_per_node={request.gpus_per_node}",
            advice='give the number twice: gpus_per_node=2 and "--gres=gpu:a100:2"',
        )
    if request.gpus_per_node and not cards:
        items = [f"gpu:{request.gpus_per_node}", *items]
    return [f"--gres={','.join(items)}"] if items else []


def _count(item: str) -> int:
    last = item.partition("(")[0].rpartition(":")[2]
    return int(last) if last.isdecimal() else 1


_FIELDS = {
    **dict.fromkeys(("nodes", "N"), "nodes"),
    **dict.fromkeys(("cpus-per-task", "c"), "cpus_per_node"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory"),
    **dict.fromkeys(("gpus", "G", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus_per_node"),
    **dict.fromkeys(("time", "t", "time-min"), "time_limit"),
    **dict.fromkeys(("job-name", "J"), "name"),
    **dict.fromkeys(("partition", "p"), "partition"),
    **dict.fromkeys(("account", "A"), "account"),
    **dict.fromkeys(("qos", "q"), "qos"),
    **dict.fromkeys(("constraint", "C"), "constraint"),
    "reservation": "reservation",
    **dict.fromkeys(("exclude", "x"), "exclude"),
    **dict.fromkeys(("export", "export-file"), "env_vars"),
}
_OURS = (
    *("array", "a", "chdir", "D", "clusters", "M", "error", "e", "help", "h", "input", "i", "no-kill", "k"),
    *("no-requeue", "open-mode", "output", "o", "parsable", "quiet", "Q", "requeue", "signal", "test-only", "usage"),
    *("version", "V", "wait", "W", "wrap", "ntasks", "n", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node"),
    *("ntasks-per-socket", "tres-per-task"),
)
_LONG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?")
_SHORT = re.compile(r"-([A-Za-z])(?: *(\S.*))?")


def _checked(option: str) -> list[str]:
    name = _name(option)
    if not name:
        raise OptionError(
            f"{option!r} is no option of sbatch", advice='write each as one text: "--mail-type=END" or "-w c1"'
        )
    meant = _meant(name)
    if meant in _FIELDS:
        raise OptionError(f"{option!r} has an option of its own here", advice=f"write {_FIELDS[meant]}=... instead")
    if meant in _OURS:
        raise OptionError(f"{option!r} can't be given: each run sets it itself", advice="leave it out")
    if name == "gres":
        return []
    return [option] if option.startswith("--") else [f"-{name}", *filter(None, [_value(option)])]


def _name(option: str) -> str:
    match = _LONG.fullmatch(option) or _SHORT.fullmatch(option)
    return match[1] if match else ""


def _value(option: str) -> str:
    match = _LONG.fullmatch(option) or _SHORT.fullmatch(option)
    return (match[2] or "") if match else ""


def _meant(name: str) -> str:
    """The option that is meant: sbatch takes the beginning of a long one for the whole."""
    known = [*_FIELDS, *_OURS]
    if name in known or len(name) == 1:
        return name
    return next((longer for longer in sorted(known) if longer.startswith(name) and len(longer) > 1), name)


def _refuse_control_characters(field: str, value: object) -> None:
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and any(not letter.isprintable() for letter in text):
            raise OptionError(f"{field}={text!r} holds a control character", advice="write it on one line")
