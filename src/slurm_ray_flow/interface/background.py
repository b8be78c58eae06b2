"""A launch that its caller does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.core.progress import Silence
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.leaving import bound_the_end
from slurm_ray_flow.interface.session import Launching
from slurm_ray_flow.tasks.farewell import in_background

if TYPE_CHECKING:
    from slurm_ray_flow.interface.launch_flow import LaunchFlow


def submit(flow: LaunchFlow[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
    """Launch in a thread of this process; come back once the cluster has the run.

    From then on this process may end: the run goes on, and any process can attach to it.

    Raises:
        SlurmRayFlowError: the launch failed before that.
    """
    submitted = threading.Event()
    current = Launching(Silence(), submitted.set)
    future: Future[Any] = Future()
    future.add_done_callback(lambda _: submitted.set())
    work = work_of(flow, current, args, kwargs)
    threading.Thread(target=_settle, args=(future, work), name=f"srf-{flow.name}", daemon=True).start()
    submitted.wait()
    bound_the_end()
    if current.run_id is None:
        future.result()
    assert current.run_id is not None, "a launch that was submitted has an id"
    return Handle(current.run_id, future)


def work_of(
    flow: LaunchFlow[Any, Any], current: Launching, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    """A call, to be made in a thread of its own."""
    if flow.isasync:
        return lambda: asyncio.run(flow.called(current, args, kwargs))
    return lambda: flow.called(current, args, kwargs)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        with in_background():
            value = work()
        future.set_result(value)
    except BaseException as error:  # whatever it is, it belongs to whoever asks for the result
        future.set_exception(error)
