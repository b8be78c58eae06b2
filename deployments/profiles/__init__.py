"""Profiles of known sites: one YAML file for each, beside this one."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Any

import yaml

from slurm_ray_flow.core.errors import OptionError

TEXTS = (
    *("host", "partition", "account", "qos", "constraint", "reservation", "exclude", "scratch", "python", "root"),
    *("wheels", "container", "container_python"),
)
LISTS = ("modules", "setup", "sbatch_options", "container_options")
FIELDS = (*TEXTS, *LISTS)

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


def parse_profile(text: str, where: str = "") -> dict[str, Any]:
    """The fields that a profile sets.

    Args:
        text: the YAML.
        where: the file's name, for errors.

    Returns:
        Each field's value: a text, or a list of texts. What is empty in the file is left out.

    Raises:
        OptionError: it is no YAML, no table, or has a field that there is none of or that has another shape.
    """
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(
            f"the profile is no YAML: {_short(error)}", where=where, advice="write `field: value` on each line"
        ) from error
    if loaded is not None and not isinstance(loaded, dict):
        raise OptionError("the profile is no table", where=where, advice="write `field: value` on each line")
    return {
        str(name): _checked_field(str(name), value, where)
        for name, value in (loaded or {}).items()
        if value is not None or name not in FIELDS
    }


def _checked_field(name: str, value: object, where: str) -> str | list[str]:
    if name not in FIELDS:
        raise OptionError(
            f"the profile has a field {name!r}, which there is none of", where=where, advice=_suggested_field(name)
        )
    if name in TEXTS:
        if isinstance(value, str):
            return value
        raise OptionError(f"{name} must be a text, not {value!r}", where=where, advice=f'write {name}: "..."')
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [str(item) for item in value]
    raise OptionError(f"{name} must be a list of texts, not {value!r}", where=where, advice=f'write {name}: ["..."]')


def _suggested_field(name: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(FIELDS)}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
