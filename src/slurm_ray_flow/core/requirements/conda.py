"""Read conda's environment.yml: the part that is pip's; the rest is told by name."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements.files import Reading


def read_conda(reading: Reading, path: Path, python: str) -> None:
    """Add what stands below `pip:`, and note what conda alone would install.

    Raises:
        DependencyError: it can't be read, or asks for another Python than the cluster's.
    """
    import yaml

    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
        listed = [
            item for key, value in (root.value if root else ()) if key.value == "dependencies" for item in value.value
        ]
        conda = [item for item in listed if isinstance(item, yaml.ScalarNode)]
        below = [part for item in listed if item not in conda for part in item.value]
        entries = {e.start_mark.line: e.value for key, value in below if key.value == "pip" for e in value.value}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise DependencyError(f"{path.name} can't be read: {error}", where=str(path)) from error
    for item in conda:
        _check_python(item.value, python, f"{path}:{item.start_mark.line + 1}")
    # Each entry in the line where the file has it, so that errors tell that line.
    text = "\n".join(entries.get(number, "") for number in range(max(entries, default=0) + 1))
    reading.read_text(text, path.parent, str(path))
    left = [item.value for item in conda if not re.match(r"(\S+::)?(python|pip)\b(?!-)", item.value)]
    if left:
        reading.notes.append(
            f"of {path.name} only the part below pip: is taken, not {', '.join(left)}: packages that the code imports "
            "come from the package index in the version that is installed here; write any other below "
            "pip:, and take programs and libraries from a module of the cluster or a container"
        )


def _check_python(item: str, python: str, where: str) -> None:
    """conda's `python=3.11` is what others write `python==3.11.*`."""
    pin = re.fullmatch(r"(?:\S+::)?python\s*([\s=<>!~].*)", item)
    bound = re.sub(r"^\s*={0,2}\s*(\d+\.\d+)\b.*", r"==\1.*", pin[1]) if pin else ""
    try:
        fits = any(SpecifierSet(bound).contains(f"{python}.{patch}") for patch in (0, 99))
    except InvalidSpecifier:
        return
    if not fits:
        what = f"{item} is asked for, and the run has Python {python}"
        raise DependencyError(what, where=where, advice="run it with a Python of that version, or change the line")
