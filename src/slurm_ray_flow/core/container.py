"""A container image that a run's processes start in."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from typing import Any

IMAGE_PYTHON = "python3"


@dataclasses.dataclass(frozen=True)
class Container:
    """An image, and how it is started.

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
        """With what the cluster said of it."""
        return dataclasses.replace(self, image=there["image"], version=f"{there['changed']}-{there['size']}")

    def to_spec(self, root: str) -> dict[str, Any]:
        """What the run's spec.json says of it.

        Args:
            root: the cluster's root folder, which is to be seen inside.
        """
        versions = {name: importlib.metadata.version(name) for name in ("cloudpickle", "dill", "ray")}
        wants = {"python": "{}.{}".format(*sys.version_info[:2]), **versions}
        return {**dataclasses.asdict(self), "root": root, "wants": wants}
