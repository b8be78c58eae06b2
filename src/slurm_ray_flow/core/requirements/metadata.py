"""What a project says that its build backend, or poetry, alone can tell: by the libraries made for that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.metadata import parse_email
from packaging.requirements import Requirement

from slurm_ray_flow.core.requirements.model import Uv

_METADATA = """
import glob, os, pathlib, shutil, subprocess, sys, tempfile
import build, build.env
source = sys.argv[1]
remains = lambda: {*glob.glob(source + "/*.egg-info"), *glob.glob(source + "/src/*.egg-info")}
def aloud(command, cwd=None, extra_environ=None):
    subprocess.run(command, cwd=cwd, env={**os.environ, **(extra_environ or {})}, stdout=sys.stderr, check=True)
before = remains()
try:
    with build.env.DefaultIsolatedEnv(installer="uv") as env, tempfile.TemporaryDirectory() as folder:
        builder = build.ProjectBuilder.from_isolated_env(env, source, runner=aloud)
        env.install(builder.build_system_requires)
        env.install(builder.get_requires_for_build("wheel"))
        print(pathlib.Path(builder.metadata_path(folder), "METADATA").read_text("utf-8"))
except Exception as error:
    words = getattr(error, "stderr", None) or getattr(error, "output", None) or b""
    sys.exit(words.decode() + str(error))
finally:
    for path in remains() - before:
        shutil.rmtree(path, ignore_errors=True)
"""
"""Prints the metadata of a project, by the library made for that; what setuptools leaves in the project goes."""
_POETRY = """
import json, pathlib, sys
from poetry.core.factory import Factory
package = Factory().create_poetry(pathlib.Path(sys.argv[1])).package
text = lambda found: [one.to_pep_508(with_extras=False) for one in found]
names = package.dependency_group_names(include_optional=True) - {"main"}
project = {"name": package.name, "dependencies": text(one for one in package.requires if not one.is_optional())}
project["optional-dependencies"] = {name: text(found) for name, found in package.extras.items()}
groups = {name: text(package.dependency_group(name).dependencies) for name in names}
print(json.dumps({"project": project, "dependency-groups": groups}))
"""
"""Prints the two tables of a project of poetry's as the standards have them, by poetry's own library."""
_RUN = ("tool", "run", "--quiet", "--from")


def is_dynamic(data: Mapping[str, Any]) -> bool:
    """Whether a pyproject.toml leaves the dependencies to its build backend, or to poetry."""
    dynamic = data.get("project", {}).get("dynamic", ())
    return "dependencies" in dynamic or "dependencies" in data.get("tool", {}).get("poetry", {})


def declared(
    data: Mapping[str, Any], folder: Path, names: Sequence[str], marks: Mapping[str, str], uv: Uv
) -> Mapping[str, Any]:
    """The `[project]` and `[dependency-groups]` tables of a folder's project, whoever must be asked for them.

    Args:
        data: its pyproject.toml; empty where there is none.
        names: the extras and groups that are wanted of it.
        marks: what markers are evaluated against.

    Raises:
        DependencyError: the metadata can't be built; has the builder's words.
    """
    poetry = data.get("tool", {}).get("poetry", {})
    if (poetry and is_dynamic(data)) or not {*names}.isdisjoint(poetry.get("group", {})):
        text = uv([*_RUN, "poetry-core>=2", "python", "-I", "-c", _POETRY, str(folder)], folder)
        said: dict[str, Any] = json.loads(text)
        return {**said, "dependency-groups": {**said["dependency-groups"], **data.get("dependency-groups", {})}}
    legacy = "project" not in data and any((folder / name).is_file() for name in ("setup.py", "setup.cfg"))
    if not legacy and not is_dynamic(data):
        return data
    text = uv([*_RUN, "build[uv]>=1.2", "python", "-I", "-c", _METADATA, str(folder)], folder)
    return {**data, "project": _from_metadata(text, marks)}


def _from_metadata(text: str, marks: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a package as a `[project]` table; markers are evaluated."""
    found, _ = parse_email(text)
    lines = [Requirement(line) for line in found.get("requires_dist", [])]
    plain = [line for line in lines if not line.marker or line.marker.evaluate({**marks, "extra": ""})]
    optional: dict[str, list[str]] = {}
    for extra in found.get("provides_extra", []):
        holding = [line for line in lines if line.marker and line.marker.evaluate({**marks, "extra": extra})]
        optional[extra] = [_bare(line) for line in holding if line not in plain]
    return {
        "name": found.get("name", ""),
        "dependencies": [_bare(line) for line in plain],
        "optional-dependencies": optional,
    }


def _bare(line: Requirement) -> str:
    """Without its marker."""
    line.marker = None
    return str(line)
