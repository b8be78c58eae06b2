"""The driver's connection to the Ray cluster of its allocation."""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import importlib
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from slurm_ray_flow.remote.shared import end_warning, limits

_MARKERS = (b":job_id:", b":actor_name:", b":task_name:")
STARTED_IN = "SRF_RAY_STARTED_IN"
_SETTING = "setting"
# What `ray.init` takes to start a cluster, and refuses where there is one already.
_FOR_A_NEW_CLUSTER = {"num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard",
                      "dashboard_host", "dashboard_port", "local_mode", "address", "ignore_reinit_error"}  # fmt: skip


class RaySession:
    """The connection to a Ray cluster, which the function's own `ray.init(...)` then means.

    Args:
        tools: the folder from which `slurm_ray_flow` is imported; workers need it too.
    """

    def __init__(self, tools: str) -> None:
        import ray
        from ray._private import worker

        self._ray, self._tools, self._init = ray, tools, ray.init
        self._notes: Dict[str, str] = {}
        self._lines = 0
        self._count_lines(worker)
        keep_on_loopback()
        atexit.unregister(worker.shutdown)  # it sleeps; the job ends with this process anyway
        ray.init = self._replacement()
        for name in ("get", "wait"):  # in both places: what is pickled by its name must be what has that name
            setattr(ray, name, end_warning.letting_through(getattr(ray, name)))
            setattr(worker, name, getattr(ray, name))

    def join(self, address: str) -> None:
        """Connect, unless that is done. It needs nothing of the call, which may be known later.

        Args:
            address: host:port of the cluster.
        """
        if not self._ray.is_initialized():
            os.environ["RAY_ADDRESS"] = address
            self._connect({})

    def enter(self, setting: Dict[str, Any], inherited: Dict[str, str]) -> None:
        """Have each worker of this job take on a call's setting before its first task.

        Args:
            setting: path, working directory and variables of the call.
            inherited: the variables that the cluster was started with, and which its workers therefore have already.
        """
        given = setting["environment_variables"]
        variables = {name: given[name] for name in given if given[name] != inherited.get(name)}
        self.note(_SETTING, json.dumps({**setting, "environment_variables": variables}))

    def note(self, name: str, value: str) -> None:
        """Set a value that this job's workers read with `noted`."""
        self._notes[name] = value
        self._write_notes()

    def _write_notes(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        for name, value in self._notes.items():
            _internal_kv_put(_key(name), value.encode(), overwrite=True)

    def warm_up(self) -> None:
        """Have one worker started before it is needed; does not wait for it."""
        self._ray.remote(max_retries=0, num_cpus=0)(_nothing).remote()

    def flush(self, patience: float = 2.0, seconds: float = 30.0) -> None:
        """Wait until what this call's workers printed has reached this process's stdout.

        Args:
            patience: how long to wait while nothing more comes, in seconds.
            seconds: when to give up although more keeps coming.
        """
        if not self._ray.is_initialized():
            return
        deadline, last, since = time.monotonic() + seconds, -1, time.monotonic()
        while self._lines < self._printed() and time.monotonic() < min(deadline, since + patience):
            if self._lines != last:
                last, since = self._lines, time.monotonic()
            time.sleep(0.01)

    def _count_lines(self, worker: Any) -> None:
        """Count the lines of workers that arrive here, whoever prints them then."""
        show = worker.print_worker_logs

        @functools.wraps(show)
        def counting(data: Dict[str, Any], *rest: Any, **named: Any) -> Any:
            shown = show(data, *rest, **named)
            self._lines += len(data.get("lines", ()))
            return shown

        worker.print_worker_logs = counting

    def _printed(self) -> int:
        """The number of lines that this job's workers on this host have printed."""
        worker = self._ray._private.worker
        logs, job = worker._global_node.get_logs_dir_path(), worker.global_worker.current_job_id.hex()
        # A worker that was started before it had a job keeps its file's name; the job stands in the file.
        return sum(_lines_of(path, job.encode()) for path in glob.glob(os.path.join(logs, "worker-*")))

    def _connect(self, named: Dict[str, Any]) -> Any:
        from ray.job_config import JobConfig

        config = named.pop("job_config", None) or JobConfig(_py_driver_sys_path=[self._tools])
        joined = self._init(**{"logging_level": logging.WARNING, **named, "job_config": config})
        self._write_notes()
        return joined

    def _replacement(self) -> Any:
        @functools.wraps(self._init)
        def init(_address: Any = None, **named: Any) -> Any:
            return self._user_init(named)

        return init

    def _user_init(self, named: Dict[str, Any]) -> Any:
        kept = {name: value for name, value in named.items() if name not in _FOR_A_NEW_CLUSTER and name[:1] != "_"}
        if self._ray.is_initialized():
            if not kept:
                return self._init(ignore_reinit_error=True, logging_level=logging.WARNING)
            self._ray.shutdown()
        return self._connect(kept)


def keep_on_loopback() -> None:
    """Have Ray take 127.0.0.1 as it is; it would look for the machine's address in the network instead."""
    from ray._private import services

    if hasattr(services, "resolve_ip_for_localhost"):
        services.resolve_ip_for_localhost = lambda host: host


def enter_before_tasks(manager: Any) -> None:
    """In a worker: have it take on its call's setting, as soon as there is one, before it looks for what it is to run.

    Args:
        manager: the class with which Ray's workers look for functions and actors.
    """
    for name in ("get_execution_info", "load_actor_class"):
        setattr(manager, name, _entering(getattr(manager, name)))


def _entering(look_up: Any) -> Any:
    @functools.wraps(look_up)
    def entering(*positional: Any, **named: Any) -> Any:
        if _SETTING not in _entered and (told := noted_value(_SETTING)):
            _entered.add(_SETTING)
            _enter(json.loads(told))
        return look_up(*positional, **named)

    return entering


_entered: Set[str] = set()


def _enter(setting: Dict[str, Any]) -> None:
    os.environ.update(setting["environment_variables"])
    sys.path[:0] = setting["path"]
    if os.getcwd() == os.environ.get(STARTED_IN):  # else the function has chosen one for its workers
        os.chdir(setting["working_directory"])


def noted_value(name: str) -> Optional[str]:
    """The value, in a worker, that the driver of its job has noted, or None."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(_key(name))
    return value.decode() if value else None


def _key(name: str) -> bytes:
    import ray

    return "srf-{}-{}".format(ray.get_runtime_context().get_job_id(), name).encode()


def _nothing() -> None:
    return None


def _lines_of(path: str, job: bytes) -> int:
    """The number of complete lines in a worker's log without Ray's markers; 0 for another job's."""
    try:
        with open(path, "rb") as file:
            if job not in os.path.basename(path).encode() and b":job_id:" + job not in file.read(4096):
                return 0
            file.seek(0)
            return sum(1 for line in file if line.endswith(b"\n") and not line.startswith(_MARKERS))
    except OSError:
        return 0


LOOK_SECONDS = 5.0
Sizes = Dict[str, float]


def watch() -> None:
    """In the driver: look every few seconds, in a thread of its own, and tell of each want once in the log."""
    with contextlib.suppress(RuntimeError):  # no more threads are to be had
        threading.Thread(target=_watch, daemon=True, name="srf-ray-wants").start()


def _watch() -> None:
    reported: Set[str] = set()
    while True:
        time.sleep(LOOK_SECONDS)
        with contextlib.suppress(Exception):  # the function may be leaving Ray just now
            for text in in_vain(*_state()):
                if text not in reported:
                    reported.add(text)
                    os.write(2, "slurm-ray-flow: {}\n".format(text).encode())


def _state() -> Tuple[List[Sizes], int, List[Tuple[str, List[Sizes]]]]:
    """The resources of each living node, the number of lost nodes, and the pending requests."""
    worker: Any = importlib.import_module("ray._private.worker")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    data = worker.global_worker.gcs_client.get_cluster_resource_state(timeout_s=LOOK_SECONDS)
    state = messages.GetClusterResourceStateReply.FromString(data).cluster_resource_state
    dead = messages.NodeStatus.DEAD
    nodes = [dict(node.total_resources) for node in state.node_states if node.status != dead]
    wants = [("", [dict(each.request.resources_bundle)]) for each in state.pending_resource_requests]
    for group in state.pending_gang_resource_requests:
        strategy = group.details.rpartition(":")[2].partition("|")[0]
        wants.append((strategy, [dict(one.resources_bundle) for one in group.requests]))
    return nodes, len(state.node_states) - len(nodes), wants


def in_vain(nodes: List[Sizes], lost: int, wants: List[Tuple[str, List[Sizes]]]) -> Iterator[str]:
    """A line for each want that the nodes can't fulfil, though nothing else ran there.

    Args:
        nodes: what each node has.
        lost: how many there are no longer.
        wants: the strategy of a placement group and its bundles; "" and one bundle for a task or an actor.
    """
    for strategy, bundles in wants:
        names = sorted({name for bundle in bundles for name in bundle})
        if any("_group_" in name for name in names) or _can(strategy, bundles, nodes):
            continue  # what is to run in a placement group waits for that, which is told itself
        what = "a placement group ({})".format(strategy) if strategy else "a task or an actor"
        given = _counted([{name: node.get(name, 0.0) for name in names} for node in nodes], "node of ", "nodes of ")
        text = "Ray waits in vain: {} asks for {}; there {} {}".format(
            what, _counted(bundles, "", "times "), "is" if len(nodes) == 1 else "are", given or "no nodes"
        )
        yield text + ("; {} lost".format("1 node was" if lost == 1 else "{} nodes were".format(lost)) if lost else "")


def _can(strategy: str, bundles: List[Sizes], nodes: List[Sizes]) -> bool:
    """Whether the nodes may fulfil a request; False is certain."""
    together = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for bundle in bundles for name in bundle}
    whole = {name: sum(node.get(name, 0.0) for node in nodes) for name in together}
    if strategy == "STRICT_PACK":
        return any(_fits(together, node) for node in nodes)
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return False
    return _fits(together, whole) and all(any(_fits(bundle, node) for node in nodes) for bundle in bundles)


def _fits(bundle: Sizes, node: Sizes) -> bool:
    return all(node.get(name, 0.0) >= size for name, size in bundle.items())


def _counted(each: List[Sizes], single: str, several: str) -> str:
    """Bundles in words, equal ones together: `2 times CPU 1, GPU 1`."""
    counts = Counter(", ".join(_described(name, size) for name, size in sorted(sizes.items())) for sizes in each)
    return " and ".join(
        "{}{}{}".format("{} ".format(n) if n > 1 or single else "", several if n > 1 else single, text)
        for text, n in counts.items()
    )


def _described(name: str, size: float) -> str:
    return "{} {}".format(name, limits.readable(int(size)) if name.endswith("memory") else "{:g}".format(size))
