"""A container image that a run's processes start in."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Facts:
    """The properties of a cluster, as it reports them.

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


IMAGE_PYTHON = "python3"


@dataclasses.dataclass(frozen=True)
class Container:
    """A container image, and the options that it is started with.

    Attributes:
        image: its path on the cluster; one that is not absolute begins at the user's home there.
        options: more options of `apptainer exec`.
        python: the image's Python, as one would call it inside.
        version: changes when the image does; "" where nobody has looked.
    """

    image: str
    options: tuple[str, ...] = ()
    python: str = IMAGE_PYTHON
    version: str = ""

    def found(self, there: dict[str, Any]) -> Container:
        """The same container, with its path and version as the cluster reports them."""
        return dataclasses.replace(self, image=there["image"], version=f"{there['changed']}-{there['size']}")

    def to_spec(self, root: str) -> dict[str, Any]:
        """The container's entry in a run's spec.json.

        Args:
            root: the cluster's root folder, which is to be seen inside.
        """
        versions = {name: importlib.metadata.version(name) for name in ("cloudpickle", "dill", "ray")}
        wants = {"python": "{}.{}".format(*sys.version_info[:2]), **versions}
        return {**dataclasses.asdict(self), "root": root, "wants": wants}
