"""What Ray waits for in vain: tasks, actors and placement groups that no node can take, or none that is left.

Ray itself would wait for ever without a word, as its autoscaler, which tells of such, does not run here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections import Counter
from typing import Any, Dict, Iterator, List, Set, Tuple

from slurm_ray_flow.remote import limits

LOOK_SECONDS = 5.0
Sizes = Dict[str, float]


def watch() -> None:
    """In the driver: look every few seconds, in a thread of its own, and tell of each want once in the log."""
    with contextlib.suppress(RuntimeError):  # no more threads are to be had
        threading.Thread(target=_watch, daemon=True, name="srf-ray-wants").start()


def _watch() -> None:
    told: Set[str] = set()
    while True:
        time.sleep(LOOK_SECONDS)
        with contextlib.suppress(Exception):  # the function may be leaving Ray just now
            for text in in_vain(*_state()):
                if text not in told:
                    told.add(text)
                    os.write(2, "slurm-ray-flow: {}\n".format(text).encode())


def _state() -> Tuple[List[Sizes], int, List[Tuple[str, List[Sizes]]]]:
    """What each living node has, how many have gone, and what is waited for; the strategy is "" of no group."""
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
    """Whether the nodes may do: where this says no, they can't."""
    together = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for bundle in bundles for name in bundle}
    whole = {name: sum(node.get(name, 0.0) for node in nodes) for name in together}
    if strategy == "STRICT_PACK":
        return any(_fits(together, node) for node in nodes)
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return False
    return _fits(together, whole) and all(any(_fits(bundle, node) for node in nodes) for bundle in bundles)


def _fits(bundle: Sizes, node: Sizes) -> bool:
    return all(node.get(name, 0.0) >= size for name, size in bundle.items())


def _counted(each: List[Sizes], one: str, several: str) -> str:
    """Equal ones together: `2 times CPU 1, GPU 1`."""
    counts = Counter(", ".join(_described(name, size) for name, size in sorted(sizes.items())) for sizes in each)
    return " and ".join(
        "{}{}{}".format("{} ".format(n) if n > 1 or one else "", several if n > 1 else one, text)
        for text, n in counts.items()
    )


def _described(name: str, size: float) -> str:
    return "{} {}".format(name, limits.readable(int(size)) if name.endswith("memory") else "{:g}".format(size))
