"""Profiles of known sites: one YAML file for each, beside this one."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.slurm.request import parse_profile

_ENDING = ".yaml"


def profile_names() -> list[str]:
    """The sites that there is a profile of."""
    return sorted(file.name.removesuffix(_ENDING) for file in files(__name__).iterdir() if file.name.endswith(_ENDING))


def load_profile(name: str) -> dict[str, Any]:
    """The fields that a site's profile sets.

    Raises:
        OptionError: there is no profile of that name, or it is wrong.
    """
    names = profile_names()
    if name not in names:
        raise OptionError(f"there is no profile {name!r}", advice=f"the profiles are {', '.join(names)}")
    return parse_profile((files(__name__) / f"{name}{_ENDING}").read_text(encoding="utf-8"), where=f"{name}{_ENDING}")
