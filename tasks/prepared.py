"""What the first four steps of a launch have prepared on a cluster, in a form that another process can launch from."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.cluster_facts import Container
from slurm_ray_flow.core.errors import EnvironmentFailed
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json
from slurm_ray_flow.tasks.install_environment import Environment
from slurm_ray_flow.tasks.scan_imports import ScannedCode
from slurm_ray_flow.tasks.sync_files import Snapshot

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The code, files and environment of a function on one cluster, and what its process has of the one at home.

    Attributes:
        code: the function's code.
        snapshot: its files there.
        environment: its environment there.
        container: the entry of a container in spec.json, which names the versions of home's picklers; None without one.
        argv: the command line.
        recursion_limit: that of Python.
    """

    code: ScannedCode
    snapshot: Snapshot
    environment: Environment
    container: dict[str, Any] | None
    argv: tuple[str, ...]
    recursion_limit: int

    @classmethod
    def here(cls, code: ScannedCode, snapshot: Snapshot, environment: Environment, cluster: Cluster) -> Prepared:
        """What was prepared for a function of this process."""
        container = environment.container.to_spec(str(cluster.root_folder)) if environment.container else None
        return cls(code, snapshot, environment, container, tuple(sys.argv or [""]), sys.getrecursionlimit())

    @property
    def listings(self) -> list[str]:
        """The files below the cluster's root whose times are those of the last use."""
        return [place for place in (self.snapshot.listing, self.environment.listing) if place]

    def to_json(self) -> str:
        """As text, for `from_json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Prepared:
        """Read what `to_json` has written, in whichever process.

        Raises:
            ValueError: the text is none, or is of a later version.
        """
        fields = parse_json(text)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError("this is nothing that was prepared for a launch, or a later version wrote it")
        try:
            return cls(
                read_record(ScannedCode, fields["code"]),
                _snapshot(fields["snapshot"]),
                _environment(fields["environment"]),
                fields["container"],
                tuple(map(str, fields["argv"])),
                int(fields["recursion_limit"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is nothing that was prepared for a launch: {error!r}") from None


def _snapshot(fields: dict[str, Any]) -> Snapshot:
    folders = tuple((str(folder), str(place)) for folder, place in fields["folders"])
    return read_record(Snapshot, {**fields, "path": tuple(fields["path"]), "folders": folders})


def _environment(fields: dict[str, Any]) -> Environment:
    container = fields["container"]
    if container is not None:
        container = read_record(Container, {**container, "options": tuple(container["options"])})
    return read_record(Environment, {**fields, "container": container})


def use_prepared(prepared: Prepared, cluster: Cluster) -> None:
    """Mark what was prepared as used now, so that no clean-up removes it, and check that it is there.

    Raises:
        EnvironmentFailed: a clean-up has removed it, or somebody.
    """
    places = [cluster.root_folder / place for place in prepared.listings]
    touch = ("clean_up.touch", {"root": str(cluster.root_folder), "places": prepared.listings})
    _, *names = cluster.ask_all([touch, *(("files.names", {"path": str(place.parent)}) for place in places)])
    for place, found in zip(places, names, strict=True):
        if place.name not in found:
            what = "snapshot of the files" if place.match("snapshots/*/*") else "environment"
            raise EnvironmentFailed(
                f"the {what} that was prepared for these runs is gone from {cluster.label}",
                where=str(place),
                advice="start the calls again, which prepares it anew; a clean-up removes what nobody uses",
            )
