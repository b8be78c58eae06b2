"""`srf init` that asks: where, as whom; it logs in, looks what is there, proposes what to save, and checks it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.cli.check import show_findings
from slurm_ray_flow.cli.output import print_json, print_table, print_text, tell
from slurm_ray_flow.cli.place import entered, named, placed
from slurm_ray_flow.cli.proposals import Found, proposed
from slurm_ray_flow.cli.questions import Questions, somebody_is_there
from slurm_ray_flow.cli.saved import cluster_named, use_server
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import format_memory

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the command line has said already.

    Attributes:
        name: what functions call the cluster; None to be proposed.
        connection: fields of the connection.
        fields: fields of the cluster; what is given is not asked for.
        here: the cluster is this machine's Slurm.
        slurm: whether it is a Slurm cluster; None to be found out.
        overwrite: replace what was saved under this name.
    """

    name: str | None
    connection: dict[str, Any]
    fields: dict[str, Any]
    here: bool
    slurm: bool | None
    overwrite: bool


def guide(wanted: Wanted, *, yes: bool, fingerprints: Sequence[str], json: bool) -> None:
    """Lead through it. Exits with 1 when the cluster is saved and can't be used yet.

    Raises:
        OptionError: there is nobody to ask.
        SlurmRayFlowError: the host can't be reached, or does not let us in.
        KeyboardInterrupt: nothing was saved.
    """
    if not yes and not somebody_is_there():
        advice = "give what is to be saved: srf init NAME --host HOST --user USER; or --host HOST --yes"
        raise OptionError("there is no terminal to ask in", advice=advice)
    from slurm_ray_flow.blocks.saved import save_cluster

    use_server()
    try:
        name, kind, connection, cluster = _answered(wanted, Questions(yes), fingerprints, json)
    except KeyboardInterrupt:
        tell("\nNothing was saved.")
        raise
    save_cluster(kind, name, connection, cluster, overwrite=wanted.overwrite)
    _look_at(name, json)


def _answered(
    wanted: Wanted, questions: Questions, fingerprints: Sequence[str], json: bool
) -> tuple[str, str, dict[str, Any] | None, dict[str, Any]]:
    """All questions; gives the name, the kind, and the fields of the connection and of the cluster."""
    fields = None if wanted.here else placed(wanted.connection, questions)
    name = named(wanted.name, fields, questions, overwrite=wanted.overwrite)
    connection = entered(fields, name, questions, fingerprints) if fields is not None else None
    found = _surveyed(connection, name)
    if not json:
        _show(found)
    kind, cluster = proposed(found, connection, name, wanted.slurm, wanted.fields, questions)
    reached = None if connection is None else {**_given(connection), **_password(connection, name, questions)}
    if not json:
        _show_fields(name, kind, cluster)
    if not questions.confirm("Save it?"):
        raise KeyboardInterrupt
    return name, kind, reached, cluster


def _surveyed(connection: SshConnection | None, name: str) -> Found:
    tell("looks what is there ...")
    if connection is None:
        from slurm_ray_flow.blocks.local_machine import LocalMachine

        return Found(**LocalMachine().ask("survey.look"))
    return Found(**connection.agent("~/.slurm-ray-flow", label=name).ask_all([("survey.look", {})])[0])


def _show(found: Found) -> None:
    versions = ", ".join(one["version"] for one in found.pythons) or "none of 3.9 or later"
    scratch = ", ".join(f"{one['path']} ({format_memory(one['bytes'])} free)" for one in found.scratch) or "none found"
    machine = f"{found.cpus} CPUs, {format_memory(found.memory)}, {found.gpus} GPUs"
    rows = [
        ["you are", f"{found.user} on {found.host}"],
        ["it has", machine + (" (the login node itself)" if found.slurm == "answers" else "")],
        ["Slurm", {"answers": "yes", "silent": "its commands, without an answer"}.get(found.slurm, "no")],
        ["Pythons", versions + ("; and environment modules" if found.modules else "")],
        ["home", f"{found.home} ({format_memory(found.home_bytes or 0)} free)"],
        ["scratch folders", scratch],
    ]
    print_table(["FOUND", ""], rows)


def _show_fields(name: str, kind: str, fields: dict[str, Any]) -> None:
    shown = [[key, ", ".join(value) if isinstance(value, list) else str(value)] for key, value in fields.items()]
    print_table([name, kind], [*shown, ["all else", "as the defaults are"]])


def _given(connection: SshConnection) -> dict[str, Any]:
    """The fields of the connection that differ from their defaults; those of the guide's own haste are left out."""
    said = {name: getattr(connection, name) for name in connection.model_fields_set}
    return {name: value for name, value in said.items() if name not in {"reconnect_within", "connect_timeout"}}


def _password(connection: SshConnection, name: str, questions: Questions) -> dict[str, Any]:
    """What was typed as the password, if it is to be saved."""
    typed = connection.open(name).password
    if not typed or connection.password is not None or questions.yes:
        return {}
    asked = "Save the password, too? It is kept encrypted; without it you are asked once for each program"
    return {"password": typed} if questions.confirm(asked, proposal=False) else {}


def _look_at(name: str, json: bool) -> None:
    """The check, and what comes next."""
    cluster = cluster_named(name)
    if json:
        from slurm_ray_flow.tasks.check import check

        findings = check(cluster)
        good = all(one.state != "failed" for one in findings)
        print_json({"name": name, "kind": cluster.kind, "findings": [dataclasses.asdict(one) for one in findings]})
    else:
        print_text(f"\n{name} is saved.\n")
        good = show_findings(cluster)
        after = f'write cluster="{name}" into a decorator, or: srf run FILE.py:FUNCTION --option cluster={name}'
        print_text(f"\nNext: {after if good else f'mend what failed, and `srf check {name}` again'}")
    if not good:
        sys.exit(1)
