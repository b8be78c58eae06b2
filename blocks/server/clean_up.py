"""Once a day: away with what nobody has used for long at home, and with the Ray folders of heads that were killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks.clean_up import LOCAL, Place
from slurm_ray_flow.blocks.clean_up import clean_up as clean_up_place
from slurm_ray_flow.core.expiry import DAY, KEPT_DAYS
from slurm_ray_flow.remote.operations import perform


def clean_up(root: Path) -> Iterator[str]:
    """Removes it, and says in a line what it was.

    Args:
        root: the folder of everything of ours.
    """
    report = clean_up_place(Place("local", LOCAL, str(root), _perform), KEPT_DAYS * DAY)
    for thing in report.things:
        yield f"removed {thing.name}"
    yield from report.stayed


def _perform(operation: str, **arguments: Any) -> Any:
    return perform(operation, arguments)
