"""Partitions and their nodes, as `scontrol show partition` and `sinfo` describe them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from slurm_ray_flow.core.slurm.queue import NO_LIMIT, count, duration, is_nothing, limit, memory

SEPARATOR = "\x1f"
# With both a width and a separator a line can be parsed, whichever of them a version of Slurm obeys.
_WIDTHS = {
    "Partition": 64,
    "StateLong": 24,
    "Nodes": 12,
    "CPUs": 12,
    "CPUsState": 40,
    "Memory": 20,
    "Gres": 200,
    "GresUsed": 400,
    "Features": 400,
}
NODES_COMMAND = [
    *("env", "-u", "SINFO_PARTITION", "-u", "SLURM_CLUSTERS", "sinfo", "--noheader", "--all"),
    "--Format=" + ",".join(f"{name}:{width}{SEPARATOR}" for name, width in _WIDTHS.items()),
]
PARTITIONS_COMMAND = ["env", "-u", "SLURM_CLUSTERS", "scontrol", "--all", "--oneliner", "show", "partition"]
_AWAY = ("down", "drain", "drng", "fail", "maint", "reboot", "power", "unk", "future", "reserved", "blocked", "inval")


@dataclasses.dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition with equal properties.

    Attributes:
        count: the number of nodes.
        state: Slurm's word, without the flags behind it: "idle", "mixed", "down".
        cpus, memory, gpus: of each node; memory in bytes.
        gpu_types: "a100", where the site names them.
        cpus_idle, cpus_used: of all these nodes.
        gpus_used: of all these nodes.
        features: the names that `constraint` can have.
        silent: whether the nodes do not answer.
    """

    count: int
    state: str
    cpus: int
    memory: int
    gpus: int = 0
    gpu_types: tuple[str, ...] = ()
    cpus_idle: int = 0
    cpus_used: int = 0
    gpus_used: int = 0
    features: tuple[str, ...] = ()
    silent: bool = False

    @property
    def away(self) -> bool:
        """Whether no job can start there now: down, drained, reserved, rebooting."""
        return self.silent or self.state.startswith(_AWAY)


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition with its limits; infinity is no limit. An empty set of names allows all, or denies none.

    Attributes:
        state: "UP", "DOWN", "DRAIN" or "INACTIVE".
        max_time, default_time: seconds; None where Slurm does not say.
        min_nodes, max_nodes: of one job.
        max_memory: bytes of a job on each node.
        max_cpus: of a job on each node.
        preemptible: whether jobs in it may be preempted.
    """

    name: str
    state: str = "UP"
    default: bool = False
    hidden: bool = False
    max_time: float | None = None
    default_time: float | None = None
    min_nodes: float = 0
    max_nodes: float = NO_LIMIT
    max_memory: float = NO_LIMIT
    max_cpus: float = NO_LIMIT
    groups: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    denied_accounts: frozenset[str] = frozenset()
    qos: frozenset[str] = frozenset()
    denied_qos: frozenset[str] = frozenset()
    root_only: bool = False
    needs_reservation: bool = False
    preemptible: bool = False
    kinds: tuple[NodeKind, ...] = ()

    @property
    def nodes(self) -> int:
        return sum(kind.count for kind in self.kinds)

    @property
    def cpus_per_node(self) -> int:
        """CPUs of its largest node."""
        return max((kind.cpus for kind in self.kinds), default=0)

    @property
    def memory_per_node(self) -> int:
        """Bytes of its largest node."""
        return max((kind.memory for kind in self.kinds), default=0)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of the node that has most."""
        return max((kind.gpus for kind in self.kinds), default=0)

    @property
    def node_states(self) -> dict[str, int]:
        """The number of nodes in each state."""
        states: dict[str, int] = {}
        for kind in self.kinds:
            states[kind.state] = states.get(kind.state, 0) + kind.count
        return states

    @property
    def load(self) -> float | None:
        """The fraction of the CPUs of usable nodes that is allocated; None without usable nodes."""
        used = sum(kind.cpus_used for kind in self.kinds if not kind.away)
        idle = sum(kind.cpus_idle for kind in self.kinds if not kind.away)
        return used / (used + idle) if used + idle else None


def parse_partitions(text: str, kinds: dict[str, tuple[NodeKind, ...]]) -> dict[str, Partition]:
    """The partitions of `scontrol --oneliner show partition`, with their nodes, the site's order kept."""
    described = [_partition(line, kinds) for line in text.splitlines() if line.strip().startswith("PartitionName=")]
    return {partition.name: partition for partition in described}


def _partition(line: str, kinds: dict[str, tuple[NodeKind, ...]]) -> Partition:
    fields = {key: value for key, _, value in (word.partition("=") for word in line.split())}
    name = fields["PartitionName"]
    return Partition(
        name=name,
        state=fields.get("State", "UP"),
        default=fields.get("Default") == "YES",
        hidden=fields.get("Hidden") == "YES",
        max_time=duration(fields.get("MaxTime", "")),
        default_time=duration(fields.get("DefaultTime", "")),
        min_nodes=limit(fields.get("MinNodes", "")) or 0,
        max_nodes=_limit_or_none(fields.get("MaxNodes", "")),
        max_memory=_memory_limit(fields.get("MaxMemPerNode", "")),
        max_cpus=_limit_or_none(fields.get("MaxCPUsPerNode", "")),
        groups=_names(fields.get("AllowGroups", "")),
        accounts=_names(fields.get("AllowAccounts", "")),
        denied_accounts=_names(fields.get("DenyAccounts", "")),
        qos=_names(fields.get("AllowQos", "")),
        denied_qos=_names(fields.get("DenyQos", "")),
        root_only=fields.get("RootOnly") == "YES",
        needs_reservation=fields.get("ReqResv") == "YES",
        preemptible=fields.get("PreemptMode", "OFF") not in {"OFF", "WITHIN", "GANG"},
        kinds=kinds.get(name, ()),
    )


def _limit_or_none(text: str) -> float:
    value = limit(text)
    return NO_LIMIT if value is None or value == 0 else value


def _memory_limit(text: str) -> float:
    value = memory(text)
    return NO_LIMIT if value is None else value


def _names(text: str) -> frozenset[str]:
    return frozenset() if text == "ALL" or is_nothing(text) else frozenset(text.split(","))


def parse_nodes(text: str) -> dict[str, tuple[NodeKind, ...]]:
    """The kinds of nodes of each partition, from the answer to `NODES_COMMAND`; other lines are ignored."""
    kinds: dict[str, tuple[NodeKind, ...]] = {}
    for line in text.splitlines():
        cells = _cells(line)
        kind = _kind(cells) if cells else None
        if kind is not None and kind.count:
            name = cells["Partition"].rstrip("*")
            kinds[name] = (*kinds.get(name, ()), kind)
    return kinds


def _cells(line: str) -> dict[str, str]:
    if line.count(SEPARATOR) >= len(_WIDTHS) - 1:
        return {name: cell.strip() for name, cell in zip(_WIDTHS, line.split(SEPARATOR), strict=False)}
    cells, start = {}, 0
    for name, width in _WIDTHS.items():
        cells[name] = line[start : start + width].strip()
        start += width
    return cells if cells["Nodes"].isdecimal() else {}


def _kind(cells: dict[str, str]) -> NodeKind | None:
    nodes, cpus, size = count(cells["Nodes"]), count(cells["CPUs"]), memory(cells["Memory"].rstrip("+"))
    if nodes is None or cpus is None or size is None:
        return None
    states = re.findall(r"\d+[KM]?", cells["CPUsState"])  # allocated/idle/other/total
    used, idle = (count(text) or 0 for text in [*states, "0", "0"][:2])
    return NodeKind(
        count=nodes,
        state=cells["StateLong"].rstrip("*~#!%$@^-+"),
        silent=cells["StateLong"].endswith("*"),
        cpus=cpus,
        memory=size,
        gpus=gpu_count(cells["Gres"]),
        gpu_types=gpu_types(cells["Gres"]),
        cpus_used=used,
        cpus_idle=idle,
        gpus_used=gpu_count(cells["GresUsed"]) * nodes,
        features=tuple(name for name in cells["Features"].split(",") if not is_nothing(name)),
    )


def gpu_count(gres: str) -> int:
    """How many GPUs "gpu:a100:2(S:0-1),gpu:v100:1,tmp:3G" means: 3."""
    return sum(int(parts[-1]) if parts[-1].isdecimal() else 1 for parts in _gpu_items(gres))


def gpu_types(gres: str) -> tuple[str, ...]:
    """The types of GPU in the same text: a100 and v100."""
    return tuple(dict.fromkeys(parts[1] for parts in _gpu_items(gres) if len(parts) > 1 and not parts[1].isdecimal()))


def _gpu_items(gres: str) -> Iterable[list[str]]:
    plain = re.sub(r"\([^)]*\)?", "", gres)
    return [item.split(":") for item in plain.split(",") if item.split(":")[0] == "gpu"]
