"""Which hosts and accounts there are. To add a kind of host is to add a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["key", "password", "password+code", "key+code"]


@dataclass(frozen=True)
class Account:
    """Somebody who may log in on a host; exists there only."""

    name: str
    uid: int
    method: Method
    shell: str = "/bin/bash"
    noisy: bool = False

    @property
    def home(self) -> str:
        """The home folder on the host."""
        return f"/home/{self.name}"


ALICE = Account("alice", 2001, "key", noisy=True)
BOB = Account("bob", 2002, "password", noisy=True)
CAROL = Account("carol", 2003, "password+code")
DAVE = Account("dave", 2004, "key+code")
ERIN = Account("erin", 2005, "key", shell="/bin/tcsh", noisy=True)
FRANK = Account("frank", 2006, "key")
EVERYBODY = (ALICE, BOB, CAROL, DAVE, ERIN, FRANK)


@dataclass(frozen=True)
class Kind:
    """One host: its number in the networks it stands in, and what is special about it.

    `outside` is the network that home is in, too. `inside` is reached from hosts that stand in both.
    """

    name: str
    number: int
    networks: tuple[str, ...] = ("outside",)
    registry: bool = False
    accounts: tuple[Account, ...] = EVERYBODY
    jump: str = ""
    slurm: Literal["", "controller", "node"] = ""
    oar: Literal["", "frontend", "node"] = ""

    @property
    def sshd(self) -> bool:
        """Whether people can log in; compute nodes take jobs only."""
        return "node" not in (self.slurm, self.oar)

    @property
    def cluster(self) -> bool:
        """Whether it is one of a cluster's hosts, which have the same homes."""
        return bool(self.slurm or self.oar)


KINDS = (
    Kind("bastion", 10, networks=("outside", "inside")),
    Kind("desi", 11, registry=True),
    Kind("offline", 12),
    Kind("inner", 13, networks=("inside",), jump="bastion"),
)
SLURM = (
    Kind("login", 20, networks=("outside", "inside"), registry=True, slurm="controller"),
    Kind("c1", 21, networks=("inside",), slurm="node"),
    Kind("c2", 22, networks=("inside",), slurm="node"),
)
THIRD_NODE = Kind("c3", 23, networks=("inside",), slurm="node")
OAR = (
    Kind("frontal", 30, networks=("outside", "inside"), registry=True, oar="frontend"),
    Kind("o1", 31, networks=("inside",), oar="node"),
    Kind("o2", 32, networks=("inside",), oar="node"),
)
ALL_KINDS = (*KINDS, *SLURM, THIRD_NODE, *OAR)
INSIDE = 128
"""What is added to a host's number to get its address in the inside network."""
HOME = 1
"""Home's own number in the outside network."""
