"""The options of the decorator: every one is checked when the function is decorated."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.outputs import checked_pattern
from slurm_ray_flow.core.quantities import brief_duration, brief_memory, format_memory, parse_duration, parse_memory

IncreasedOption = Literal["memory", "time_limit"]

DEFAULT_TIMES = 3
_STEP = re.compile(r"(?:(double)|times\s+(\d+(?:\.\d+)?)|add\s+(\S+))(?:\s+(memory|time_limit))?", re.IGNORECASE)
_TIMES = re.compile(r"at\s+most\s+([1-9]\d*)\s+times?", re.IGNORECASE)
_MOST = re.compile(r"up\s+to\s+(\S+)", re.IGNORECASE)
_EXAMPLES = {
    "memory": '"double memory, at most 3 times", "add 8G, at most 2 times" or "times 1.5, up to 64G"',
    "time_limit": '"double time_limit, at most 2 times", "add 1h, at most 3 times" or "times 1.5, up to 12h"',
}


@dataclasses.dataclass(frozen=True)
class IncreaseRule:
    """A rule by which a value increases from try to try.

    Attributes:
        option: the option whose value increases.
        factor: the value is multiplied by this.
        more: then this is added, in bytes or seconds.
        times: the most increases.
        most: the upper bound of the value; None for no bound.
    """

    option: IncreasedOption
    factor: float = 1.0
    more: float = 0.0
    times: int = DEFAULT_TIMES
    most: float | None = None

    def after(self, value: float) -> float | None:
        """The value after `value`; None where the bound is reached."""
        increased = value * self.factor + self.more
        if self.most is not None:
            increased = min(increased, self.most)
        return increased if increased > value else None

    def written(self, value: float) -> str:
        """A value of the option, as a user would write it."""
        return brief_memory(value) if self.option == "memory" else brief_duration(value)


def parse_increase_rule(text: object, name: str, option: IncreasedOption) -> IncreaseRule:
    """Read a rule.

    Args:
        text: "double", "times 1.5" or "add 8G", then the option's name or nothing, then ", at most N times" and
            ", up to 64G", each or none of them.
        name: the option that has the rule, for errors.
        option: the option whose value increases.

    Raises:
        OptionError: the text is no such rule.
    """
    parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else [""]
    step = _STEP.fullmatch(parts[0])
    bounds = [match for part in parts[1:] for match in (_TIMES.fullmatch(part), _MOST.fullmatch(part)) if match]
    if step is None or (step[4] or option).lower() != option or len(bounds) < len(parts) - 1:
        raise _no_rule(text, name, option)
    rule = _with_bounds(_rule_of_step(step, name, option), bounds, name)
    if rule.factor <= 1 and not rule.more:
        raise _no_rule(text, name, option)
    return rule


def _rule_of_step(step: re.Match[str], name: str, option: IncreasedOption) -> IncreaseRule:
    double, factor, more = step[1], step[2], step[3]
    added = _parse_amount(more, name, option) if more else 0.0
    return IncreaseRule(option, 2.0 if double else float(factor or 1), added)


def _with_bounds(rule: IncreaseRule, bounds: list[re.Match[str]], name: str) -> IncreaseRule:
    for bound in bounds:
        if bound.re is _TIMES:
            rule = dataclasses.replace(rule, times=int(bound[1]))
        else:
            rule = dataclasses.replace(rule, most=_parse_amount(bound[1], name, rule.option))
    return rule


def _parse_amount(text: str, name: str, option: IncreasedOption) -> float:
    return parse_memory(text, name) if option == "memory" else parse_duration(text, name)


def _no_rule(text: object, name: str, option: IncreasedOption) -> OptionError:
    return OptionError(f"{name}={text!r} is no rule by which {option} grows", advice=f"write {_EXAMPLES[option]}")


RayUse = Literal["auto", "always", "never"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        cluster: the name of a saved cluster block, or the block itself; "local" is this machine.
        nodes: how many machines the Ray cluster spans.
        cpus_per_node: CPUs of each node; None takes what the machine has.
        gpus_per_node: GPUs of each node.
        memory: bytes for each node; None sets no limit.
        time_limit: seconds that the allocation may last; None sets no limit.
        partition: the partition on a Slurm cluster, OAR's queue on an OAR cluster; None takes that of the block.
        account: the account that is charged there; None takes that of the block.
        qos: the quality of service there; None takes that of the block.
        constraint: features that its nodes must have, as sbatch takes them; None takes those of the block.
        warn_before: seconds before the end of the allocation at which `on_warning` calls back; None is a minute, or a
            tenth of a shorter time limit.
        environment: "auto", "isolated", "packed" (isolated, and kept as one file), a path of a requirements.txt,
            uv.lock or pyproject.toml, or requirement lines.
        container: the path of an image of Apptainer or Singularity on the cluster, in which the function runs with the
            image's own packages; None takes that of the cluster's block, "" takes none.
        include: files, folders and globs that travel along with the code.
        package_data: the most bytes of packages' data files that travel.
        outputs: files of the function's working directory that come home after its end: paths, folders and globs.
        overwrite_outputs: whether outputs also replace files at home that were changed since the launch.
        env_vars: environment variables of the function's process. They are never logged.
        retries: the number of further tries after a transient failure.
        retry_on: exceptions of the function, or names of them, that count as transient.
        resubmit: the number of further tries after a preemption or the failure of a node.
        on_out_of_memory: how `memory` increases from try to try after OutOfMemory; None does not try again.
        on_time_limit: how `time_limit` increases after TimeLimit; None does not try again.
        cache: seconds for which a call gives back the value of an earlier run with the same code, environment and
            arguments; None never does.
        keep_warm: seconds for which the Ray cluster waits for a next call after this one; 0 ends it at once.
        keep: no clean-up removes the run, however old it is; `srf clean --run ID` does.
        name: the name of the flow; None takes the function's.
        dashboard: whether Ray's dashboard starts, for `srf dashboard RUN`; Ray then starts some seconds later.
        ray: "auto" starts Ray if the function's code uses it.
        given: the names of the options that the code gives; others may be configured (`core/config.py`).
    """

    cluster: Any = "local"
    nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int = 0
    memory: int | None = None
    time_limit: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    warn_before: float | None = None
    environment: str | tuple[str, ...] = "auto"
    container: str | None = None
    include: tuple[str, ...] = ()
    package_data: int = 50 * 1024**2
    outputs: tuple[str, ...] = ()
    overwrite_outputs: bool = False
    env_vars: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    retries: int = 0
    retry_on: tuple[type[BaseException] | str, ...] = ()
    resubmit: int = 3
    on_out_of_memory: IncreaseRule | None = None
    on_time_limit: IncreaseRule | None = None
    cache: float | None = None
    keep_warm: float = 0.0
    keep: bool = False
    name: str | None = None
    dashboard: bool = False
    ray: RayUse = "auto"
    given: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)

    @property
    def warn_seconds(self) -> float:
        """The seconds between the warning and the end of the allocation."""
        if self.warn_before is not None:
            return self.warn_before
        return min(60.0, (self.time_limit or 600.0) / 10)

    def but(self, **changes: object) -> Options:
        """These options with some changed; the changes are checked like the decorator's own.

        Raises:
            OptionError: an option is unknown, its value is wrong, or it needs another one.
        """
        changed = self.stating(**changes)
        check_together(changed)
        return changed

    def stating(self, **changes: object) -> Options:
        """These options with some changed, each checked alone, before the settings that complete them are known.

        Raises:
            OptionError: an option is unknown, or its value is wrong.
        """
        return dataclasses.replace(self, **checked(changes), given=self.given | changes.keys())


def checked(options: Mapping[str, object]) -> dict[str, Any]:
    """Check options and bring them to their normal form.

    Raises:
        OptionError: an option is unknown (the error suggests a name), or its value is wrong.
    """
    for name in options:
        if name not in _CHECKS:
            similar = _OPTIONS_ELSEWHERE.get(name)
            advice = f"did you mean {similar!r}?" if similar else _suggestion(name, _CHECKS)
            raise OptionError(f"there is no option {name!r}", advice=advice)
    return {name: _CHECKS[name](name, value) for name, value in options.items()}


def check_together(options: Options) -> None:
    """Check that options fit to each other.

    Raises:
        OptionError: an option needs or excludes another one.
    """
    if options.warn_before and options.time_limit and options.warn_before >= options.time_limit:
        raise OptionError("warn_before must be less than time_limit", advice='write warn_before="1m"')
    for name, resource, example in (("on_out_of_memory", "memory", "4G"), ("on_time_limit", "time_limit", "2h")):
        if getattr(options, name) and getattr(options, resource) is None:
            raise OptionError(f"{name} needs a {resource} to begin with", advice=f'write {resource}="{example}", too')
    if options.dashboard and options.ray == "never":
        raise OptionError("there is no dashboard without Ray", advice='leave out dashboard=True, or ray="never"')
    if options.container and options.environment != "auto":
        raise OptionError(
            "a container brings its own packages, and environment asks for others",
            advice="leave out environment, or container, or install them in the image",
        )
    if options.retry_on and not options.retries:
        raise OptionError("retry_on says what to try again for, and retries=0 never to", advice="write retries=1, too")


_OPTIONS_ELSEWHERE = {
    **dict.fromkeys(("num_cpus", "ncpus", "cpus", "cpus_per_task", "cores"), "cpus_per_node"),
    **dict.fromkeys(("num_gpus", "ngpus", "gres"), "gpus_per_node"),
    **dict.fromkeys(("ntasks", "num_nodes", "num_workers"), "nodes"),
    **dict.fromkeys(("walltime", "time", "timeout", "timeout_min", "max_time"), "time_limit"),
    **dict.fromkeys(("mem", "mem_gb", "ram"), "memory"),
    **dict.fromkeys(("env", "environment_variables"), "env_vars"),
    **dict.fromkeys(("requirements", "packages", "pip"), "environment"),
    "queue": "partition", "project": "account", "image": "container",
}  # fmt: skip
"""Names of the same options in Slurm, PBS, Ray and submitit, for "did you mean"."""


def _suggestion(name: str, option_names: Iterable[str]) -> str:
    names = list(option_names)
    near = [known for known in names if known.startswith(name)] or difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"


def _cluster(name: str, value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise OptionError("cluster must not be empty", advice='write the name of a cluster block, or "local"')
    if isinstance(value, str) or hasattr(value, "submit"):
        return value
    raise OptionError(f"cluster={value!r} is neither a name nor a cluster", advice='write cluster="local"')


def _count(minimum: int, optional: bool = False) -> Any:
    def check(name: str, value: object) -> int | None:
        if value is None and optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise OptionError(f"{name}={value!r} must be a whole number of {minimum} or more")
        return value

    return check


LEAST_MEMORY = 16 << 20
"""The least memory in bytes in which a Python with its packages starts."""


def _memory(name: str, value: object) -> int | None:
    amount = None if value is None else parse_memory(value, name)
    if amount is not None and amount < LEAST_MEMORY:
        raise OptionError(
            f"{name}={value!r} is {format_memory(amount)}, in which no function runs",
            advice=f'ask for {format_memory(LEAST_MEMORY)} or more, with a unit, such as "4G"; '
            "a number without quotes is in bytes",
        )
    return amount


def _package_data(name: str, value: object) -> int:
    return 0 if value in (0, "0", None) else parse_memory(value, name)


def _time(name: str, value: object) -> float | None:
    return None if value is None else parse_duration(value, name)


def _keep_warm(name: str, value: object) -> float:
    return 0.0 if value is None or value == 0 or value is False else parse_duration(value, name)


def _cache(name: str, value: object) -> float | None:
    if value is None or value is False:
        return None
    return float("inf") if value is True else parse_duration(value, name)


def _increase_rule(option: IncreasedOption) -> Any:
    def check(name: str, value: object) -> IncreaseRule | None:
        return value if value is None or isinstance(value, IncreaseRule) else parse_increase_rule(value, name, option)

    return check


def _retry_on(name: str, value: object) -> tuple[type[BaseException] | str, ...]:
    kinds = value if isinstance(value, list | tuple) else (value,) if value is not None else ()
    if all(isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, BaseException)) for kind in kinds):
        return tuple(cast("Sequence[Any]", kinds))
    raise OptionError(
        f"{name}={value!r} must be exceptions", advice='write retry_on=(OSError,) or retry_on=["OSError"]'
    )


def _environment(name: str, value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value.strip():
        close_matches = difflib.get_close_matches(value, ["auto", "isolated", "packed"], n=1, cutoff=0.7)
        if close_matches and value not in close_matches:
            raise OptionError(f"environment={value!r} is unknown", advice=f"did you mean {close_matches[0]!r}?")
        return value
    if _is_texts(value):
        return tuple(value)  # type: ignore[arg-type]
    raise OptionError(
        f"environment={value!r} is unknown",
        advice='write "auto", "isolated", "packed", the path of a requirements.txt, or a list of requirements',
    )


def _container(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or (value and not value.strip()) or not value.isprintable():
        raise OptionError(f"{name}={value!r} must be the path of an image", advice=f'write {name}="image.sif"')
    if "://" in value:
        raise OptionError(
            f"{name}={value!r} would be fetched by every process of the run anew",
            advice=f'`apptainer pull image.sif {value}` on the cluster once, then write {name}="image.sif"',
        )
    return value


def _is_texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(item, str) for item in value)


def _include(name: str, value: object) -> tuple[str, ...]:
    if not _is_texts(value):
        raise OptionError(f"include={value!r} must be a list of paths and globs", advice='write include=["data/*.csv"]')
    return tuple(value)  # type: ignore[arg-type]


def _outputs(name: str, value: object) -> tuple[str, ...]:
    if not _is_texts(value):
        raise OptionError(
            f"{name}={value!r} must be a list of paths and globs", advice='write outputs=["results/*.csv"]'
        )
    return tuple(checked_pattern(pattern) for pattern in cast("Sequence[object]", value))


def _env_vars(name: str, value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else None
    if pairs is None or not all(isinstance(key, str) and isinstance(text, str) for key, text in pairs):
        # The values may be secrets: the message shows none.
        raise OptionError("env_vars must be a dict of texts", advice='write env_vars={"OMP_NUM_THREADS": "4"}')
    bad = [key for key, text in pairs if not key or "=" in key or "\0" in key + text]
    if bad:
        raise OptionError(f"env_vars has a name or value that no process can have: {bad[0]!r}")
    return tuple(sorted(pairs))


def _one_of(*choices: object) -> Any:
    def check(name: str, value: object) -> object:
        if value in choices and type(value) in {type(choice) for choice in choices}:
            return value
        shown_choices = ", ".join(repr(choice) for choice in choices)
        raise OptionError(f"{name}={value!r} is unknown", advice=f"write one of {shown_choices}")

    return check


def _scheduler_word(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip() and value.isprintable()):
        return value
    raise OptionError(f"{name}={value!r} must be a text as Slurm takes it", advice=f'write {name}="..."')


def _name(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or set(value) & set("/%&<>"):
        raise OptionError(f"name={value!r} is no name", advice="write a text without / % & < >")
    return value


_CHECKS: dict[str, Any] = {
    "cluster": _cluster,
    "nodes": _count(1),
    "cpus_per_node": _count(1, optional=True),
    "gpus_per_node": _count(0),
    "memory": _memory,
    "time_limit": _time,
    "warn_before": _time,
    "partition": _scheduler_word,
    "account": _scheduler_word,
    "qos": _scheduler_word,
    "constraint": _scheduler_word,
    "environment": _environment,
    "container": _container,
    "include": _include,
    "package_data": _package_data,
    "outputs": _outputs,
    "overwrite_outputs": _one_of(True, False),
    "env_vars": _env_vars,
    "retries": _count(0),
    "retry_on": _retry_on,
    "resubmit": _count(0),
    "on_out_of_memory": _increase_rule("memory"),
    "on_time_limit": _increase_rule("time_limit"),
    "cache": _cache,
    "keep_warm": _keep_warm,
    "keep": _one_of(True, False),
    "name": _name,
    "dashboard": _one_of(True, False),
    "ray": _one_of("auto", "always", "never"),
}


def is_quantity(name: str) -> bool:
    """Whether the option is an amount of memory, or a length of time."""
    return _CHECKS.get(name) in (_memory, _package_data, _time, _cache, _keep_warm)


def is_option(name: str) -> bool:
    """Whether the decorator has an option of this name."""
    return name in _CHECKS
