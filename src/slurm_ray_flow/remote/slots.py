"""What a run gets of a server under a lock: all of it, or some of its slots, each with its processors and memory."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from slurm_ray_flow.remote.errors import OperationError

STORE_SHARE = 0.3
"""The part of a run's memory that Ray's object store may take, as Ray itself divides a machine."""


class Machine(NamedTuple):
    """What a server has to share out."""

    cpus: List[int]
    memory: int


class Needs(NamedTuple):
    """How many slots and graphics cards a run takes, out of which."""

    slots: int
    of: int
    gpus: int
    gpu_ids: List[str]


class Grant(NamedTuple):
    """What a run was given."""

    slots: List[int]
    cpus: List[int]
    gpus: List[str]
    memory: Optional[int]
    alone: bool

    def applied(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """The run's spec.json with what it was given."""
        given = {**spec, "cpus": len(self.cpus), "memory": self.memory}
        if not self.alone and self.memory and spec.get("object_store_memory") is None:
            given["object_store_memory"] = int(self.memory * STORE_SHARE)
        return given

    def variables(self) -> Dict[str, str]:
        """What restricts the run to its graphics cards; who is alone and asked for none may see all."""
        if not self.gpus and self.alone:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def this_machine() -> Machine:
    """Processors and memory of the machine this runs on. All users must see the same, to share it out."""
    cpus = _online()
    with contextlib.suppress(AttributeError, OSError):
        allowed = os.sched_getaffinity(0)
        cpus = [cpu for cpu in cpus if cpu in allowed] or sorted(allowed)
    return Machine(cpus, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _online() -> List[int]:
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            return parse_list(file.read())
    except (OSError, ValueError):
        return list(range(os.cpu_count() or 1))


def parse_list(text: str) -> List[int]:
    """The numbers in a list as the kernel writes it: `0-3,8`."""
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return [number for first, _, last in ends for number in range(int(first), int(last or first) + 1)]


def gpu_ids(lock: Dict[str, Any], wanted: int = 0) -> List[str]:
    """The graphics cards that the lock shares out, by the names that CUDA knows them by.

    Args:
        lock: as spec.json describes it; `gpus` may be names, a number, or null for all there are.
        wanted: how many a run asks for: where the cards can't be counted, there are taken to be so many.
    """
    gpus, restricted = lock.get("gpus"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(gpus, list):
        return [str(card) for card in gpus]
    if gpus is None and restricted is not None:
        return [card for card in restricted.split(",") if card]
    return [str(card) for card in range(int(gpus) if gpus is not None else max(_cards(), wanted))]


def _cards() -> int:
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def needs(lock: Dict[str, Any], spec: Dict[str, Any], machine: Machine) -> Needs:
    """How much of the server a run must have.

    Raises:
        OperationError: it asks for more than there is.
    """
    of = max(1, int(lock.get("slots") or 1))
    wanted = int(spec.get("gpus") or 0)
    cards = gpu_ids(lock, wanted)
    cpus, memory = int(spec.get("cpus") or 1), int(spec.get("memory") or 1)
    slots = max(1, -(-cpus * of // len(machine.cpus)), -(-memory * of // machine.memory))
    if slots > of:
        raise _too_much("{} processors and {} bytes of memory".format(cpus, memory), machine)
    if wanted > len(cards):
        raise OperationError(
            "the run asks for {} graphics cards, the server has {}".format(wanted, len(cards)),
            advice="ask for fewer",
            cause="rejected",
        )
    return Needs(slots, of, wanted, cards)


def _too_much(asked: str, machine: Machine) -> OperationError:
    there = "{} processors and {} bytes".format(len(machine.cpus), machine.memory)
    return OperationError(
        "the run asks for {}, there are {}".format(asked, there), advice="ask for less", cause="rejected"
    )


def grant(
    lock: Dict[str, Any], spec: Dict[str, Any], machine: Machine, slots: Sequence[int], gpus: Sequence[str]
) -> Grant:
    """What comes with these slots and cards."""
    of = max(1, int(lock.get("slots") or 1))
    cpus = sorted({cpu for slot in slots for cpu in _part(machine.cpus, slot, of)}) if of > 1 else machine.cpus
    memory = spec.get("memory") or (machine.memory * len(slots) // of if of > 1 else None)
    asked = int(spec.get("cpus") or len(cpus))
    return Grant(list(slots), cpus[:asked], list(gpus), memory, of == 1)


def _part(cpus: List[int], slot: int, of: int) -> List[int]:
    """The processors of one slot: those of two slots are never the same, unless there are fewer than slots."""
    first = slot * len(cpus) // of
    return cpus[first : max(first + 1, (slot + 1) * len(cpus) // of)]
