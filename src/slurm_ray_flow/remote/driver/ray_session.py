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

_LOG_MARKERS = (b":job_id:", b":actor_name:", b":task_name:")
START_FOLDER_VARIABLE = "SRF_RAY_STARTED_IN"
_SETTING = "setting"
# The options by which `ray.init` starts a cluster; it refuses them if one exists.
_FOR_A_NEW_CLUSTER = {"num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard",
                      "dashboard_host", "dashboard_port", "local_mode", "address", "ignore_reinit_error"}  # fmt: skip


class RaySession:
    """The connection to a Ray cluster; the function's own `ray.init(...)` gets this connection.

    Args:
        tools: the folder from which `slurm_ray_flow` is imported, also by workers.
    """

    def __init__(self, tools: str) -> None:
        import ray
        from ray._private import worker

        self._ray, self._tools, self._init = ray, tools, ray.init
        self._notes: Dict[str, str] = {}
        self._arrived_lines = 0
        self._count_lines(worker)
        keep_on_loopback()
        atexit.unregister(worker.shutdown)  # it sleeps, and the job ends with this process anyway
        ray.init = self._init_replacement()
        for name in ("get", "wait"):  # in both modules: pickling by name needs the same function
            setattr(ray, name, end_warning.letting_through(getattr(ray, name)))
            setattr(worker, name, getattr(ray, name))

    def join(self, address: str) -> None:
        """Connect, unless this process is connected. This may happen before the call is known.

        Args:
            address: host:port of the cluster.
        """
        if not self._ray.is_initialized():
            os.environ["RAY_ADDRESS"] = address
            self._connect({})

    def note_setting(self, setting: Dict[str, Any], inherited: Dict[str, str]) -> None:
        """Have each worker of this job apply a call's setting before its first task.

        Args:
            setting: path, working directory and variables of the call.
            inherited: the variables that Ray's processes were started with, which its workers have already.
        """
        variables = setting["environment_variables"]
        variables = {name: value for name, value in variables.items() if value != inherited.get(name)}
        self.note(_SETTING, json.dumps({**setting, "environment_variables": variables}))

    def note(self, name: str, value: str) -> None:
        """Set a value that this job's workers read with `noted_value`."""
        self._notes[name] = value
        self._write_notes()

    def _write_notes(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        for name, value in self._notes.items():
            _internal_kv_put(_key(name), value.encode(), overwrite=True)

    def warm_up(self) -> None:
        """Have Ray start one worker in advance, without waiting for it."""
        self._ray.remote(max_retries=0, num_cpus=0)(_empty_task).remote()

    def flush(self, patience: float = 2.0, seconds: float = 30.0) -> None:
        """Wait until the output of this call's workers has reached this process's stdout.

        Args:
            patience: the longest wait for a next line, in seconds.
            seconds: the longest wait for all lines.
        """
        if not self._ray.is_initialized():
            return
        deadline, last_count, last_time = time.monotonic() + seconds, -1, time.monotonic()
        while self._arrived_lines < self._printed_lines() and time.monotonic() < min(deadline, last_time + patience):
            if self._arrived_lines != last_count:
                last_count, last_time = self._arrived_lines, time.monotonic()
            time.sleep(0.01)

    def _count_lines(self, worker: Any) -> None:
        """Count the lines of workers that arrive in this process."""
        original = worker.print_worker_logs

        @functools.wraps(original)
        def print_and_count(data: Dict[str, Any], *rest: Any, **named: Any) -> Any:
            result = original(data, *rest, **named)
            self._arrived_lines += len(data.get("lines", ()))
            return result

        worker.print_worker_logs = print_and_count

    def _printed_lines(self) -> int:
        """The number of lines that this job's workers on this host have printed."""
        worker = self._ray._private.worker
        logs, job = worker._global_node.get_logs_dir_path(), worker.global_worker.current_job_id.hex()
        # The file of a worker that Ray started before the job has another name, and the job's id inside.
        return sum(_count_lines_in(path, job.encode()) for path in glob.glob(os.path.join(logs, "worker-*")))

    def _connect(self, named: Dict[str, Any]) -> Any:
        from ray.job_config import JobConfig

        config = named.pop("job_config", None) or JobConfig(_py_driver_sys_path=[self._tools])
        context = self._init(**{"logging_level": logging.WARNING, **named, "job_config": config})
        self._write_notes()
        return context

    def _init_replacement(self) -> Any:
        @functools.wraps(self._init)
        def init(_address: Any = None, **named: Any) -> Any:
            return self._init_by_function(named)

        return init

    def _init_by_function(self, named: Dict[str, Any]) -> Any:
        options = {name: value for name, value in named.items() if name not in _FOR_A_NEW_CLUSTER and name[:1] != "_"}
        if self._ray.is_initialized():
            if not options:
                return self._init(ignore_reinit_error=True, logging_level=logging.WARNING)
            self._ray.shutdown()
        return self._connect(options)


def keep_on_loopback() -> None:
    """Keep Ray from replacing 127.0.0.1 by the machine's address in the network."""
    from ray._private import services

    if hasattr(services, "resolve_ip_for_localhost"):
        services.resolve_ip_for_localhost = lambda host: host


def apply_setting_before_tasks(manager: Any) -> None:
    """In a worker: apply its call's setting, if there is one, before it looks up a function or an actor.

    Args:
        manager: the class by which Ray's workers look up functions and actors.
    """
    for name in ("get_execution_info", "load_actor_class"):
        setattr(manager, name, _with_setting_first(getattr(manager, name)))


def _with_setting_first(look_up: Any) -> Any:
    @functools.wraps(look_up)
    def look_up_with_setting(*positional: Any, **named: Any) -> Any:
        if _SETTING not in _applied and (setting := noted_value(_SETTING)):
            _applied.add(_SETTING)
            _apply_setting(json.loads(setting))
        return look_up(*positional, **named)

    return look_up_with_setting


_applied: Set[str] = set()


def _apply_setting(setting: Dict[str, Any]) -> None:
    os.environ.update(setting["environment_variables"])
    sys.path[:0] = setting["path"]
    if os.getcwd() == os.environ.get(START_FOLDER_VARIABLE):  # otherwise the function has chosen a folder
        os.chdir(setting["working_directory"])


def noted_value(name: str) -> Optional[str]:
    """In a worker: the value that the driver of its job has noted under this name, or None."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(_key(name))
    return value.decode() if value else None


def _key(name: str) -> bytes:
    import ray

    return "srf-{}-{}".format(ray.get_runtime_context().get_job_id(), name).encode()


def _empty_task() -> None:
    return None


def _count_lines_in(path: str, job: bytes) -> int:
    """The number of complete lines in a worker's log without Ray's markers; 0 for another job's."""
    try:
        with open(path, "rb") as file:
            if job not in os.path.basename(path).encode() and b":job_id:" + job not in file.read(4096):
                return 0
            file.seek(0)
            return sum(1 for line in file if line.endswith(b"\n") and not line.startswith(_LOG_MARKERS))
    except OSError:
        return 0


WATCH_SECONDS = 5.0
Sizes = Dict[str, float]


def watch() -> None:
    """In the driver: a thread writes each request that Ray's nodes can't fulfil to the log, once."""
    with contextlib.suppress(RuntimeError):  # the limit of threads is reached
        threading.Thread(target=_watch, daemon=True, name="srf-ray-wants").start()


def _watch() -> None:
    reported: Set[str] = set()
    while True:
        time.sleep(WATCH_SECONDS)
        with contextlib.suppress(Exception):  # the function may disconnect from Ray meanwhile
            for text in unfulfillable(*_cluster_state()):
                if text not in reported:
                    reported.add(text)
                    os.write(2, "slurm-ray-flow: {}\n".format(text).encode())


def _cluster_state() -> Tuple[List[Sizes], int, List[Tuple[str, List[Sizes]]]]:
    """The resources of each living node, the number of lost nodes, and the pending requests."""
    worker: Any = importlib.import_module("ray._private.worker")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    data = worker.global_worker.gcs_client.get_cluster_resource_state(timeout_s=WATCH_SECONDS)
    state = messages.GetClusterResourceStateReply.FromString(data).cluster_resource_state
    dead = messages.NodeStatus.DEAD
    nodes = [dict(node.total_resources) for node in state.node_states if node.status != dead]
    requests = [("", [dict(pending.request.resources_bundle)]) for pending in state.pending_resource_requests]
    for group in state.pending_gang_resource_requests:
        strategy = group.details.rpartition(":")[2].partition("|")[0]
        requests.append((strategy, [dict(request.resources_bundle) for request in group.requests]))
    return nodes, len(state.node_states) - len(nodes), requests


def unfulfillable(nodes: List[Sizes], lost: int, requests: List[Tuple[str, List[Sizes]]]) -> Iterator[str]:
    """A line for each request that the nodes could not fulfil even if they were idle.

    Args:
        nodes: the resources of each node.
        lost: the number of lost nodes.
        requests: the strategy of a placement group and its bundles; "" and one bundle for a task or an actor.
    """
    for strategy, bundles in requests:
        names = sorted({name for bundle in bundles for name in bundle})
        if any("_group_" in name for name in names) or _may_fulfil(strategy, bundles, nodes):
            continue  # a task in a placement group waits for the group, which is a request itself
        kind = "a placement group ({})".format(strategy) if strategy else "a task or an actor"
        present = [{name: node.get(name, 0.0) for name in names} for node in nodes]
        there = _bundles_text(present, "node of ", "nodes of ") or "no nodes"
        text = "Ray waits in vain: {} asks for {}; there {} {}".format(
            kind, _bundles_text(bundles, "", "times "), "is" if len(nodes) == 1 else "are", there
        )
        yield text + ("; {} lost".format("1 node was" if lost == 1 else "{} nodes were".format(lost)) if lost else "")


def _may_fulfil(strategy: str, bundles: List[Sizes], nodes: List[Sizes]) -> bool:
    """Whether the nodes may fulfil a request; only False is certain."""
    demand = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for bundle in bundles for name in bundle}
    supply = {name: sum(node.get(name, 0.0) for node in nodes) for name in demand}
    if strategy == "STRICT_PACK":
        return any(_fits(demand, node) for node in nodes)
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return False
    return _fits(demand, supply) and all(any(_fits(bundle, node) for node in nodes) for bundle in bundles)


def _fits(bundle: Sizes, node: Sizes) -> bool:
    return all(node.get(name, 0.0) >= size for name, size in bundle.items())


def _bundles_text(bundles: List[Sizes], single: str, several: str) -> str:
    """Bundles for people, equal ones counted: `2 times CPU 1, GPU 1`."""
    counts = Counter(", ".join(_resource_text(name, size) for name, size in sorted(sizes.items())) for sizes in bundles)
    return " and ".join(
        "{}{}{}".format("{} ".format(count) if count > 1 or single else "", several if count > 1 else single, text)
        for text, count in counts.items()
    )


def _resource_text(name: str, size: float) -> str:
    return "{} {}".format(name, limits.readable(int(size)) if name.endswith("memory") else "{:g}".format(size))
