"""Where a lab is: its name, its folder, its interfaces, its network addresses."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from hosts.layout import INSIDE, Kind

CHECKOUT = Path(__file__).resolve().parents[2]
LABS = Path("/var/lib/slurm-ray-flow-hosts")
PLAY = "play"
"""The purpose of the lab that a person plays with."""


@dataclass(frozen=True)
class Place:
    """A lab's name and all names that follow from it: whoever knows a purpose can find and end its lab."""

    identity: str

    @classmethod
    def of(cls, purpose: str, checkout: Path = CHECKOUT) -> Place:
        """The place of this checkout's lab for one purpose."""
        return cls(hashlib.sha256(f"{checkout}\0{purpose}".encode()).hexdigest()[:6])

    @property
    def folder(self) -> Path:
        """All files of the lab, readable by root alone."""
        return LABS / self.identity

    @property
    def mark(self) -> str:
        """An argument that all processes of the lab carry, so that they can be found."""
        return f"--slurm-ray-flow-hosts={self.identity}"

    @property
    def prefix(self) -> str:
        """What the names of the lab's network interfaces begin with (at most 15 characters are allowed)."""
        return f"srf-{self.identity}"

    def bridge(self, network: str) -> str:
        """The interface that joins the hosts of a network."""
        return f"{self.prefix}{network[0]}"

    def link(self, kind: Kind, network: str) -> str:
        """Home's end of a host's cable."""
        return f"{self.prefix}{network[0]}{kind.number}"


def present() -> list[Place]:
    """All labs that left a folder here, whosever they are."""
    try:
        return [Place(name) for name in sorted(os.listdir(LABS)) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def address(base: str, kind: Kind, network: str) -> str:
    """A host's address; `base` is the lab's range without its last number, as in 10.20.30."""
    return f"{base}.{kind.number + (INSIDE if network == 'inside' else 0)}"


def physical(base: str, kind: Kind, network: str) -> str:
    """The address of a host's network card: fixed, so that home can remember it while the cable is cut."""
    numbers = [int(part) for part in address(base, kind, network).split(".")]
    return "02:5f:" + ":".join(f"{number:02x}" for number in numbers)
