"""What a cluster is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a cluster says of itself.

    Attributes:
        host: the name of the machine that answered.
        python: the interpreter that runs the head, and the driver in an environment that is not isolated.
        version: that interpreter's major and minor version, "3.11".
        platform: what binary packages depend on, "cp311-linux_x86_64".
        cpus, gpus: of one node.
        memory: bytes of one node.
        nodes: how many there are.
        variables: what that interpreter needs in its environment to start.
    """

    host: str
    python: str
    version: str
    platform: str
    cpus: int
    gpus: int
    memory: int
    nodes: int
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
