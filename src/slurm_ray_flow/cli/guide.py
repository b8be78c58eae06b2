"""`srf init` that asks: where, as whom; it logs in, looks what is there, proposes what to save, and checks it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import getpass
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.cli.clusters import show_findings
from slurm_ray_flow.cli.names import cluster_named, use_server
from slurm_ray_flow.cli.output import print_error, print_json, print_table, print_text, tell
from slurm_ray_flow.cli.trust import agreement
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed, OptionError, SlurmRayFlowError
from slurm_ray_flow.core.quantities import format_memory

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection


T = TypeVar("T")
Fields = dict[str, Any]

HERE = "this machine's Slurm"
ROOT = "~/.slurm-ray-flow"
MOST_HOSTS = 30
NO_NAME = re.compile(r"(log-?in|front-?end|head|submit|ssh|www|cluster|hpc|gateway|node)?\d*")
"""What a site calls its login node says nothing of the site."""
HASTE: dict[str, Any] = {"reconnect_within": 5.0}
"""Somebody waits: a host that does not answer is said so soon."""


class Questions:
    """Asks somebody, or takes each proposal.

    Args:
        yes: ask nobody.
    """

    def __init__(self, yes: bool = False) -> None:
        self.yes = yes

    def ask(self, question: str, proposal: str, read: Callable[[str], T]) -> T:
        """Ask until the answer can be read.

        Args:
            question: without a mark at its end.
            proposal: what Enter means; "" is no proposal.
            read: makes a value of the answer; raises one of our errors for one that can't be meant.

        Raises:
            KeyboardInterrupt: Ctrl-C, or the end of the input.
            SlurmRayFlowError: nobody is asked, and the proposal can't be read.
        """
        while True:
            answer = proposal if self.yes else _line(question, proposal)
            try:
                return read(answer)
            except SlurmRayFlowError as error:
                if self.yes:
                    raise
                print_text(f"  {error.what}" + (f"; {error.advice}" if error.advice else ""))

    def text(self, question: str, proposal: str = "") -> str:
        """Ask for any text."""
        return self.ask(question, proposal, str)

    def confirm(self, question: str, proposal: bool = True) -> bool:
        """Ask for yes or no."""
        return self.ask(f"{question} (yes or no)", "yes" if proposal else "no", _yes_or_no)

    def choose(self, question: str, names: Sequence[str], other: Callable[[str], str]) -> str:
        """Ask for one of several, by its number or its name; `other` reads an answer that is none of them."""
        for number, name in enumerate(names, 1):
            print_text(f"  {number:>2}  {name}")
        return self.ask(question, "", lambda answer: _chosen(answer, names, other))


def _chosen(answer: str, names: Sequence[str], other: Callable[[str], str] | None = None) -> str:
    if answer in names:
        return answer
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    if other and answer and not answer.isdecimal():
        return other(answer)
    near = difflib.get_close_matches(answer, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "type the number or the name of one"
    raise OptionError(f"{answer!r} is none of them" if answer else "there is no answer", advice=advice)


def _yes_or_no(answer: str) -> bool:
    known = {"y": True, "yes": True, "n": False, "no": False}
    if answer.lower() in known:
        return known[answer.lower()]
    raise OptionError(f"{answer!r} is neither yes nor no")


def _line(question: str, proposal: str) -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys while one types

    try:
        return input(f"{question} [{proposal}]: " if proposal else f"{question}: ").strip() or proposal
    except EOFError:
        raise KeyboardInterrupt from None


def connection_fields(known: Fields, questions: Questions) -> Fields | None:
    """The fields of the connection to the host; None for this machine's own Slurm.

    Raises:
        OptionError: nobody is asked, and no host is given.
    """
    if "host" in known:
        return known
    if questions.yes:
        raise OptionError("--yes needs to know where", advice="give --host HOST, or --here on a login node of Slurm")
    from slurm_ray_flow.blocks.ssh.endpoint import CONFIG, configured_hosts

    config = known.get("config_file", CONFIG)
    hosts = configured_hosts(config)[:MOST_HOSTS]
    names = [*([HERE] if shutil.which("sbatch") else []), *hosts]
    print_text("Where shall functions run?" + ("" if hosts else f" ({config} names no host.)"))
    chosen = questions.choose("Number, or user@host", names, lambda answer: str(_typed(answer) and answer))
    if chosen == HERE:
        return None
    fields = {**_typed(chosen), **known}
    if chosen not in hosts and "user" not in fields:
        fields["user"] = questions.text("Your user name there", getpass.getuser())
    return fields


def _typed(answer: str) -> Fields:
    """The fields that user@host:port means.

    Raises:
        OptionError: it is no host.
    """
    match = re.fullmatch(r"(?:ssh\s+)?(?:([\w.+-]+)@)?([\w][\w.-]*|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?", answer)
    if match is None:
        raise OptionError(f"{answer!r} is no host", advice="type a number, a host's name, user@host or user@host:port")
    user, host, port = match.groups()
    said = {"host": host.strip("[]"), "user": user, "port": int(port) if port else None}
    return {name: value for name, value in said.items() if value is not None}


def chosen_name(wanted: GivenAnswers, connection: Fields | None, questions: Questions) -> str:
    """What functions call the cluster: what is given, else the answer."""
    from slurm_ray_flow.blocks.clusters import saved_clusters, valid_name

    taken = [] if wanted.overwrite else [cluster.name for cluster in saved_clusters()]

    def read(answer: str) -> str:
        if answer in taken:
            raise OptionError(f"there is a cluster {answer!r} already", advice="choose another name, or --overwrite")
        return valid_name(answer)

    if wanted.name is not None:
        return read(wanted.name)
    host = str(connection["host"]) if connection else "slurm"
    return questions.ask("A name for it, for cluster=...", name_for(host), read)


def name_for(host: str) -> str:
    """A name that reminds of the site: "curnagl" for login1.curnagl.example.org."""
    label = next((label for label in host.lower().split(".") if not NO_NAME.fullmatch(label)), "server")
    return re.sub("[^a-z0-9-]+", "-", label).strip("-")


def logged_in(fields: Fields, name: str, questions: Questions, fingerprints: Sequence[str]) -> SshConnection:
    """Log in; what the host or the user's answers make fail is asked again.

    Raises:
        HostKeyFailed: the host's key has changed, or is not the right one.
        SlurmRayFlowError: nobody is asked, and it can't be reached or does not let us in.
    """
    while True:
        try:
            return _logged_in(fields, name, agreement(lambda: _agreed(questions), fingerprints, tell))
        except (HostKeyFailed, OptionError):
            raise
        except ConnectionFailed as error:
            if questions.yes:
                raise
            print_error(error)
            fields = _corrected(fields, isinstance(error, LogInFailed), questions)


def _logged_in(fields: Fields, name: str, confirm: Callable[[Any], bool]) -> SshConnection:
    from slurm_ray_flow.blocks.clusters import make_block
    from slurm_ray_flow.blocks.ssh import SshConnection

    connection = make_block(SshConnection, {**HASTE, **fields})
    for shown in connection.trust(confirm):
        if not shown.known:
            tell(f"The key is known now, in {shown.file}.")
    opened = connection.open(name)
    opened.close()  # forgets a log-in that was refused before
    user = connection.agent(ROOT, label=name).hello["user"]
    tell(f"{connection.host} lets {user} in.")
    return connection


def _agreed(questions: Questions) -> bool:
    if questions.yes:
        advice = "give --fingerprint SHA256:... as the people who run it say, or run `srf trust HOST` before"
        raise HostKeyFailed("the server's host key is not known", advice=advice)
    return questions.confirm("Is this the server's key? Compare it with what the people who run it say", proposal=False)


def _corrected(fields: Fields, reached: bool, questions: Questions) -> Fields:
    """What to try next, after a failure."""
    if not reached:
        return {**fields, **questions.ask("Another host, or Enter to try again", str(fields["host"]), _typed)}
    user = questions.text("Your user name there", str(fields.get("user") or getpass.getuser()))
    key = questions.text("A private key to log in with, or Enter for what ssh takes")
    return {**fields, "user": user, **({"key_file": key} if key else {})}


@dataclasses.dataclass(frozen=True)
class GivenAnswers:
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


def guide(wanted: GivenAnswers, *, yes: bool, fingerprints: Sequence[str], json: bool) -> None:
    """Lead through it. Exits with 1 when the cluster is saved and can't be used yet.

    Raises:
        OptionError: there is nobody to ask.
        SlurmRayFlowError: the host can't be reached, or does not let us in.
        KeyboardInterrupt: nothing was saved.
    """
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        advice = "give what is to be saved: srf init NAME --host HOST --user USER; or --host HOST --yes"
        raise OptionError("there is no terminal to ask in", advice=advice)
    from slurm_ray_flow.blocks.clusters import save_cluster

    use_server()
    try:
        name, kind, connection, cluster = _answered(wanted, Questions(yes), fingerprints, json)
    except KeyboardInterrupt:
        tell("\nNothing was saved.")
        raise
    save_cluster(kind, name, connection, cluster, overwrite=wanted.overwrite)
    _look_at(name, json)


def _answered(
    wanted: GivenAnswers, questions: Questions, fingerprints: Sequence[str], json: bool
) -> tuple[str, str, dict[str, Any] | None, dict[str, Any]]:
    """All questions; gives the name, the kind, and the fields of the connection and of the cluster."""
    fields = None if wanted.here else connection_fields(wanted.connection, questions)
    name = chosen_name(wanted, fields, questions)
    connection = logged_in(fields, name, questions, fingerprints) if fields is not None else None
    found = _surveyed(connection, name)
    if not json:
        _show(found)
    kind, cluster = proposed(found, connection, name, wanted, questions)
    reached = None if connection is None else {**_given(connection), **_password(connection, name, questions)}
    if not json:
        _show_fields(name, kind, cluster)
    if not questions.confirm("Save it?"):
        raise KeyboardInterrupt
    return name, kind, reached, cluster


@dataclasses.dataclass(frozen=True)
class SurveyResult:
    """What `remote/agent/probe.py` found."""

    user: str
    home: str
    host: str
    cpus: int
    gpus: int
    memory: int
    home_bytes: int | None
    slurm: str
    modules: bool
    pythons: list[dict[str, str]]
    scratch: list[dict[str, Any]]


def _surveyed(connection: SshConnection | None, name: str) -> SurveyResult:
    tell("looks what is there ...")
    if connection is None:
        from slurm_ray_flow.blocks.local_machine import LocalMachine

        return SurveyResult(**LocalMachine().ask("survey.look"))
    return SurveyResult(**connection.agent(ROOT, label=name).ask_all([("survey.look", {})])[0])


def _show(found: SurveyResult) -> None:
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


def proposed(
    found: SurveyResult, connection: SshConnection | None, name: str, wanted: GivenAnswers, questions: Questions
) -> tuple[str, Fields]:
    """The kind of block, and its fields.

    Args:
        found: what is there.
        connection: how it is reached; None for this machine.
        name: what the cluster will be called.
        wanted: what the command line gives: it stays, and is not asked for.
        questions: asks, or takes what is proposed.
    """
    is_slurm = wanted.slurm
    if is_slurm is None:
        is_slurm = found.slurm == "answers" and questions.confirm("Slurm is there. Shall it run your functions?")
    if connection is None and not is_slurm:
        advice = 'cluster="local" runs functions on this machine, and needs not be saved'
        raise OptionError("this machine has no Slurm to be used", advice=advice)
    fields = {**(_profile(connection, questions) if is_slurm else {}), **wanted.fields}
    version = f"{sys.version_info.major}.{sys.version_info.minor}."
    if not any(python["version"].startswith(version) for python in found.pythons):
        fields = {"python": "download", **fields}
    if not is_slurm:
        return "ssh-server", fields
    return "slurm-cluster", {**_partition(connection, name, fields, questions), **fields}


def _profile(connection: SshConnection | None, questions: Questions) -> Fields:
    """What is known of the site, if it is one that is known."""
    from slurm_ray_flow.deployments.profiles import load_profile, profile_names

    host = connection.endpoint().host if connection else ""
    for name in profile_names():
        fields = load_profile(name)
        if fields.pop("host", None) == host and questions.confirm(f"There is a profile of {name}. Take what it says?"):
            return fields
    return {}


def _partition(connection: SshConnection | None, name: str, fields: Fields, questions: Questions) -> Fields:
    """Where jobs run; nothing for the site's default."""
    if "partition" in fields:
        return {}
    from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
    from slurm_ray_flow.core.slurm.site import partition_table

    cluster = SlurmCluster(connection=connection, root=fields.get("root", ROOT))
    cluster._block_document_name = name
    try:
        site = cluster.scheduler.site()
    except SlurmRayFlowError as error:
        print_error(error)
        return {}
    names = [partition.name for partition in site.partitions.values() if not partition.hidden]
    if not names:
        return {}
    if not questions.yes:
        print_table(partition_table(site).columns, partition_table(site).rows)
    default = site.default.name if site.default else names[0]
    chosen = questions.ask("Partition", default, lambda answer: _chosen(answer, names))
    return {} if site.default and chosen == default else {"partition": chosen}


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
    from slurm_ray_flow.tasks.cluster_report import report

    cluster = cluster_named(name)
    if not json:
        print_text(f"\n{name} is saved.\n")
    seen = report(cluster, "findings")
    if json:
        print_json({"name": name, "kind": cluster.kind, "findings": seen.to_json()["findings"]})
    else:
        show_findings(seen)
        after = f'write cluster="{name}" into a decorator, or: srf run FILE.py:FUNCTION --option cluster={name}'
        print_text(f"\nNext: {f'mend what failed, and `srf check {name}` again' if seen.down else after}")
    if seen.down:
        sys.exit(1)
