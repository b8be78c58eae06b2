"""The decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.options import Options, RayUse
from slurm_ray_flow.interface.launch_flow import LaunchFlow

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Decorator(Protocol):
    """The type of the decorator with options: it keeps the parameters and the type of the value."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> LaunchFlow[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> LaunchFlow[P, R]: ...


@overload
def slurm_ray_flow(function: Callable[P, Coroutine[Any, Any, T]], /) -> LaunchFlow[P, Coroutine[Any, Any, T]]: ...


@overload
def slurm_ray_flow(function: Callable[P, R], /) -> LaunchFlow[P, R]: ...


@overload
def slurm_ray_flow(
    *,
    cluster: str | object = "local",
    nodes: int = 1,
    cpus_per_node: int | None = None,
    gpus_per_node: int = 0,
    memory: int | str | None = None,
    time_limit: float | str | timedelta | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    warn_before: float | str | timedelta | None = None,
    environment: str | Sequence[str] = "auto",
    container: str | None = None,
    include: Sequence[str] = (),
    package_data: int | str = "50M",
    outputs: Sequence[str] = (),
    overwrite_outputs: bool = False,
    env_vars: Mapping[str, str] | None = None,
    retries: int = 0,
    retry_on: type[BaseException] | str | Sequence[type[BaseException] | str] = (),
    resubmit: int = 3,
    on_out_of_memory: str | None = None,
    on_time_limit: str | None = None,
    cache: bool | float | str | timedelta | None = None,
    keep_warm: float | str | timedelta | None = None,
    keep: bool = False,
    dashboard: bool = False,
    name: str | None = None,
    ray: RayUse = "auto",
) -> Decorator: ...


def slurm_ray_flow(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function run on a cluster, inside a temporary Ray cluster, each call a Prefect flow run.

    Calling the function then blocks and gives its value, or raises its exception. `.submit(...)` returns a handle at
    once, `.local(...)` is the plain function, `.with_options(...)` changes any option.

    An option that is left out is as the cluster's block, the project's `[tool.slurm-ray-flow]` in pyproject.toml, or a
    variable such as SRF_MEMORY says; `srf config` shows which.

    Args:
        function: any callable: a function, a lambda, a `functools.partial`, a bound method.
        cluster: the name of a saved cluster block, or a block; "local" is this machine.
        nodes: how many machines.
        cpus_per_node: CPUs of each; None takes what the machine has.
        gpus_per_node: GPUs of each.
        memory: memory of each: "64G", "512M", bytes; None sets no limit.
        time_limit: "2h30m", "1-12:00:00", seconds, a timedelta; None sets no limit.
        partition: where a Slurm cluster runs it, or the queue of an OAR cluster; None takes what its block says.
        account: what is charged there; None takes what its block says.
        qos: the quality of service there; None takes what its block says.
        constraint: features that its nodes must have, as sbatch takes them; None takes what its block says.
        warn_before: how long before its end `on_warning` tells the function; None: a minute, or a tenth of the limit.
        environment: "auto": the running environment on this machine, the project's packages elsewhere;
            "isolated": always a fresh one; "packed": the same, kept as one file where files are scarce;
            or a requirements file, a lock, "pyproject.toml[group]"; or a list of requirements.
        container: the path there of an Apptainer image with packages of its own; None as the block says, "" none.
        include: files, folders and globs to send along with the code.
        package_data: how much of the files beside the modules of your packages travels by itself; 0 for nothing.
        outputs: paths, folders and globs of files it writes that come home beside the script, also after a failure.
        overwrite_outputs: they also replace files that were changed at home since the launch.
        env_vars: environment variables for the function.
        retries: how often a run that failed for a transient cause is started again.
        retry_on: exceptions of the function, or their names, that count as transient.
        resubmit: how often a run that was preempted, or one of whose nodes failed, is submitted again.
        on_out_of_memory: "double memory, at most 3 times", "add 8G", "times 1.5, up to 64G": how to try again.
        on_time_limit: "double time_limit, at most 2 times", "add 1h", "times 1.5, up to 12h": the same for the time.
        cache: True, or a length of time: give back an earlier value for the same code, packages and arguments.
        keep_warm: how long the Ray cluster waits for a next call.
        keep: no clean-up removes the run, however old it is; `srf clean --run ID` does.
        dashboard: have Ray's dashboard, which `srf dashboard RUN` shows.
        name: the flow's name; the function's by default.
        ray: "auto" starts Ray when the function comes to code that uses it; "always", "never".

    Raises:
        OptionError: an option is unknown or has a wrong value, or this is no function that can run elsewhere.
    """
    chosen = Options().stating(**options)
    if function is None:
        return lambda decorated: _decorate(decorated, chosen)
    return _decorate(function, chosen)


def _decorate(function: Callable[P, R], options: Options) -> LaunchFlow[P, R]:
    if isinstance(function, LaunchFlow):
        raise OptionError("the function is decorated already", advice="use .with_options(...) to change it")
    if inspect.isclass(function) or not callable(function):
        raise OptionError(f"{function!r} is not a function", advice="decorate a function, a method or a partial")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError("a generator can't be brought home", advice="collect what it yields and return a list")
    return LaunchFlow(function, options)
