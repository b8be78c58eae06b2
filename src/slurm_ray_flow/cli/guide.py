"""The questions of `srf init`: it asks for host and user, logs in, surveys, proposes a block, saves and checks it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import getpass
import re
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.cli.clusters import show_findings
from slurm_ray_flow.cli.names import KINDS, cluster_named, use_server
from slurm_ray_flow.cli.output import print_error, print_json, print_table, print_text, tell
from slurm_ray_flow.cli.trust import agreement
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed, OptionError, SlurmRayFlowError
from slurm_ray_flow.core.quantities import format_memory

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection


T = TypeVar("T")
Fields = dict[str, Any]

THIS_MACHINE = "this machine's scheduler"
ROOT = "~/.slurm-ray-flow"
MOST_HOSTS = 30
GENERIC_NAME = re.compile(r"(log-?in|front-?end|head|submit|ssh|www|cluster|hpc|gateway|node)?\d*")
"""Labels of host names that say nothing of the site."""
QUICK: dict[str, Any] = {"reconnect_within": 5.0}
"""Somebody waits: an error comes soon from a host that does not answer."""


class Questions:
    """Asks the user, or takes each proposal.

    Args:
        yes: whether to take each proposal.
    """

    def __init__(self, yes: bool = False) -> None:
        self.yes = yes

    def ask(self, question: str, proposal: str, read: Callable[[str], T]) -> T:
        """Ask until the answer can be read.

        Args:
            question: the question, without a mark at its end.
            proposal: the answer that Enter gives; "" for none.
            read: makes a value of the answer; raises a SlurmRayFlowError for a wrong answer.

        Raises:
            KeyboardInterrupt: Ctrl-C, or the end of the input.
            SlurmRayFlowError: each proposal is taken, and this one can't be read.
        """
        while True:
            answer = proposal if self.yes else _read_line(question, proposal)
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

    def choose(self, question: str, names: Sequence[str], read_other: Callable[[str], str]) -> str:
        """Ask for one of several, by its number or its name; `read_other` reads any other answer."""
        for number, name in enumerate(names, 1):
            print_text(f"  {number:>2}  {name}")
        return self.ask(question, "", lambda answer: _chosen(answer, names, read_other))


def _chosen(answer: str, names: Sequence[str], read_other: Callable[[str], str] | None = None) -> str:
    if answer in names:
        return answer
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    if read_other and answer and not answer.isdecimal():
        return read_other(answer)
    near = difflib.get_close_matches(answer, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "type the number or the name of one"
    raise OptionError(f"{answer!r} is none of them" if answer else "there is no answer", advice=advice)


def _yes_or_no(answer: str) -> bool:
    answers = {"y": True, "yes": True, "n": False, "no": False}
    if answer.lower() in answers:
        return answers[answer.lower()]
    raise OptionError(f"{answer!r} is neither yes nor no")


def _read_line(question: str, proposal: str) -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys while one types

    try:
        return input(f"{question} [{proposal}]: " if proposal else f"{question}: ").strip() or proposal
    except EOFError:
        raise KeyboardInterrupt from None


def connection_fields(given: Fields, questions: Questions) -> Fields | None:
    """The fields of the connection to the host; None for this machine's own scheduler.

    Raises:
        OptionError: the user is not asked, and no host is given.
    """
    if "host" in given:
        return given
    if questions.yes:
        raise OptionError("--yes needs to know where", advice="give --host HOST, or --here on a login node")
    from slurm_ray_flow.blocks.ssh.endpoint import CONFIG, configured_hosts

    config = given.get("config_file", CONFIG)
    hosts = configured_hosts(config)[:MOST_HOSTS]
    names = [*([THIS_MACHINE] if shutil.which("sbatch") else []), *hosts]
    print_text("Where shall functions run?" + ("" if hosts else f" ({config} names no host.)"))
    chosen = questions.choose("Number, or user@host", names, lambda answer: str(_parse_host(answer) and answer))
    if chosen == THIS_MACHINE:
        return None
    fields = {**_parse_host(chosen), **given}
    if chosen not in hosts and "user" not in fields:
        fields["user"] = questions.text("Your user name there", getpass.getuser())
    return fields


def _parse_host(answer: str) -> Fields:
    """The fields that user@host:port means.

    Raises:
        OptionError: the answer is no host.
    """
    match = re.fullmatch(r"(?:ssh\s+)?(?:([\w.+-]+)@)?([\w][\w.-]*|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?", answer)
    if match is None:
        raise OptionError(f"{answer!r} is no host", advice="type a number, a host's name, user@host or user@host:port")
    user, host, port = match.groups()
    fields = {"host": host.strip("[]"), "user": user, "port": int(port) if port else None}
    return {name: value for name, value in fields.items() if value is not None}


def chosen_name(given: GivenAnswers, connection: Fields | None, questions: Questions) -> str:
    """The cluster's name: the given one, else the answer to a question."""
    from slurm_ray_flow.blocks.clusters import saved_clusters, valid_name

    used = [] if given.overwrite else [cluster.name for cluster in saved_clusters()]

    def read(answer: str) -> str:
        if answer in used:
            raise OptionError(f"there is a cluster {answer!r} already", advice="choose another name, or --overwrite")
        return valid_name(answer)

    if given.name is not None:
        return read(given.name)
    host = str(connection["host"]) if connection else socket.gethostname()
    return questions.ask("A name for it, for cluster=...", name_for(host), read)


def name_for(host: str) -> str:
    """A name that reminds of the site: "curnagl" for login1.curnagl.example.org."""
    label = next((label for label in host.lower().split(".") if not GENERIC_NAME.fullmatch(label)), "server")
    return re.sub("[^a-z0-9-]+", "-", label).strip("-")


def log_in(fields: Fields, name: str, questions: Questions, fingerprints: Sequence[str]) -> SshConnection:
    """Log in; after a failure ask for the host or the user again.

    Raises:
        HostKeyFailed: the host's key has changed, or is not the right one.
        SlurmRayFlowError: the user is not asked, and the host can't be reached or refuses the log-in.
    """
    while True:
        try:
            return _try_to_log_in(fields, name, agreement(lambda: _confirm_key(questions), fingerprints, tell))
        except (HostKeyFailed, OptionError):
            raise
        except ConnectionFailed as error:
            if questions.yes:
                raise
            print_error(error)
            fields = _ask_for_corrections(fields, isinstance(error, LogInFailed), questions)


def _try_to_log_in(fields: Fields, name: str, confirm: Callable[[Any], bool]) -> SshConnection:
    from slurm_ray_flow.blocks.clusters import make_block
    from slurm_ray_flow.blocks.ssh import SshConnection

    connection = make_block(SshConnection, {**QUICK, **fields})
    for key in connection.trust(confirm):
        if not key.known:
            tell(f"The key is known now, in {key.file}.")
    opened = connection.open(name)
    opened.close()  # forgets an earlier refused log-in
    user = connection.agent(ROOT, label=name).hello["user"]
    tell(f"{connection.host} lets {user} in.")
    return connection


def _confirm_key(questions: Questions) -> bool:
    if questions.yes:
        advice = "give --fingerprint SHA256:... as the people who run it say, or run `srf trust HOST` before"
        raise HostKeyFailed("the server's host key is not known", advice=advice)
    return questions.confirm("Is this the server's key? Compare it with what the people who run it say", proposal=False)


def _ask_for_corrections(fields: Fields, reached: bool, questions: Questions) -> Fields:
    """The fields for the next attempt, after a failure."""
    if not reached:
        return {**fields, **questions.ask("Another host, or Enter to try again", str(fields["host"]), _parse_host)}
    user = questions.text("Your user name there", str(fields.get("user") or getpass.getuser()))
    key = questions.text("A private key to log in with, or Enter for what ssh takes")
    return {**fields, "user": user, **({"key_file": key} if key else {})}


@dataclasses.dataclass(frozen=True)
class GivenAnswers:
    """The answers that the command line gives already.

    Attributes:
        name: the cluster's name; None to ask for it.
        connection: fields of the connection.
        fields: fields of the cluster, which are not asked for.
        here: whether the cluster is that of this machine's scheduler.
        kind: the kind of block; None to find it out.
        overwrite: whether to replace a saved cluster of this name.
    """

    name: str | None
    connection: dict[str, Any]
    fields: dict[str, Any]
    here: bool
    kind: str | None
    overwrite: bool


def guide(given: GivenAnswers, *, yes: bool, fingerprints: Sequence[str], json: bool) -> None:
    """Ask, save and check. Exits with 1 when the cluster is saved and can't be used yet.

    Raises:
        OptionError: there is no terminal to ask in.
        SlurmRayFlowError: the host can't be reached, or refuses the log-in.
        KeyboardInterrupt: nothing was saved.
    """
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        advice = "give what is to be saved: srf init NAME --host HOST --user USER; or --host HOST --yes"
        raise OptionError("there is no terminal to ask in", advice=advice)
    from slurm_ray_flow.blocks.clusters import save_cluster

    use_server()
    try:
        name, kind, connection, cluster = _ask_all(given, Questions(yes), fingerprints, json)
    except KeyboardInterrupt:
        tell("\nNothing was saved.")
        raise
    save_cluster(kind, name, connection, cluster, overwrite=given.overwrite)
    _check_saved(name, json)


def _ask_all(
    given: GivenAnswers, questions: Questions, fingerprints: Sequence[str], json: bool
) -> tuple[str, str, dict[str, Any] | None, dict[str, Any]]:
    """Ask all questions; give the name, the kind, and the fields of the connection and of the cluster."""
    fields = None if given.here else connection_fields(given.connection, questions)
    name = chosen_name(given, fields, questions)
    connection = log_in(fields, name, questions, fingerprints) if fields is not None else None
    survey = _survey(connection, name)
    if not json:
        _show_survey(survey)
    kind, cluster = propose(survey, connection, name, given, questions)
    saved = None if connection is None else {**_changed_fields(connection), **_password(connection, name, questions)}
    if not json:
        _show_fields(name, kind, cluster)
    if not questions.confirm("Save it?"):
        raise KeyboardInterrupt
    return name, kind, saved, cluster


@dataclasses.dataclass(frozen=True)
class SurveyResult:
    """The answer of the operation `survey.look`."""

    user: str
    home: str
    host: str
    cpus: int
    gpus: int
    memory: int
    home_bytes: int | None
    slurm: str
    oar: str
    modules: bool
    pythons: list[dict[str, str]]
    scratch: list[dict[str, Any]]

    @property
    def scheduler(self) -> str | None:
        """The kind of block for the scheduler that answers."""
        return "slurm-cluster" if self.slurm == "answers" else "oar-cluster" if self.oar == "answers" else None


def _found_schedulers(survey: SurveyResult) -> str:
    states = {"answers": "", "silent": ", which does not answer"}
    found = (("Slurm", survey.slurm), ("OAR", survey.oar))
    return "; ".join(f"{name}{states[state]}" for name, state in found if state) or "none"


def _survey(connection: SshConnection | None, name: str) -> SurveyResult:
    tell("looks what is there ...")
    if connection is None:
        from slurm_ray_flow.blocks.local_machine import LocalMachine

        return SurveyResult(**LocalMachine().ask("survey.look"))
    return SurveyResult(**connection.agent(ROOT, label=name).ask_all([("survey.look", {})])[0])


def _show_survey(survey: SurveyResult) -> None:
    versions = ", ".join(one["version"] for one in survey.pythons) or "none of 3.9 or later"
    scratch = ", ".join(f"{one['path']} ({format_memory(one['bytes'])} free)" for one in survey.scratch) or "none found"
    machine = f"{survey.cpus} CPUs, {format_memory(survey.memory)}, {survey.gpus} GPUs"
    rows = [
        ["you are", f"{survey.user} on {survey.host}"],
        ["it has", machine + (" (the login node itself)" if survey.scheduler else "")],
        ["scheduler", _found_schedulers(survey)],
        ["Pythons", versions + ("; and environment modules" if survey.modules else "")],
        ["home", f"{survey.home} ({format_memory(survey.home_bytes or 0)} free)"],
        ["scratch folders", scratch],
    ]
    print_table(["FOUND", ""], rows)


def _show_fields(name: str, kind: str, fields: dict[str, Any]) -> None:
    rows = [[key, ", ".join(value) if isinstance(value, list) else str(value)] for key, value in fields.items()]
    print_table([name, kind], [*rows, ["all else", "as the defaults are"]])


def propose(
    survey: SurveyResult, connection: SshConnection | None, name: str, given: GivenAnswers, questions: Questions
) -> tuple[str, Fields]:
    """The kind of block, and its fields.

    Args:
        survey: the survey of the host.
        connection: the connection to the host; None for this machine.
        name: the cluster's name.
        given: the answers of the command line, which are not asked for.
        questions: asks the user, or takes each proposal.
    """
    kind = given.kind or _proposed_kind(survey, connection, questions)
    fields = {**(_profile(connection, questions) if kind == "slurm-cluster" else {}), **given.fields}
    version = f"{sys.version_info.major}.{sys.version_info.minor}."
    if not any(python["version"].startswith(version) for python in survey.pythons):
        fields = {"python": "download", **fields}
    if kind == "slurm-cluster":
        return kind, {**_partition(connection, name, fields, questions), **fields}
    return kind, fields


def _proposed_kind(survey: SurveyResult, connection: SshConnection | None, questions: Questions) -> str:
    """The kind of block for what was found.

    Raises:
        OptionError: it is this machine, without a scheduler.
    """
    kind = survey.scheduler
    if kind is not None and questions.confirm(f"{KINDS[kind]} is there. Shall it run your functions?"):
        return kind
    if connection is None:
        advice = 'cluster="local" runs functions on this machine, and needs not be saved'
        raise OptionError("this machine has no scheduler to be used", advice=advice)
    return "ssh-server"


def _profile(connection: SshConnection | None, questions: Questions) -> Fields:
    """The fields of the site's profile, if there is one for this host."""
    from slurm_ray_flow.deployments.profiles import load_profile, profile_names

    host = connection.endpoint().host if connection else ""
    for name in profile_names():
        fields = load_profile(name)
        if fields.pop("host", None) == host and questions.confirm(f"There is a profile of {name}. Take what it says?"):
            return fields
    return {}


def _partition(connection: SshConnection | None, name: str, fields: Fields, questions: Questions) -> Fields:
    """The field of the partition; no field for the site's default."""
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


def _changed_fields(connection: SshConnection) -> dict[str, Any]:
    """The fields of the connection that were set, without those that make the guide quick."""
    fields = {name: getattr(connection, name) for name in connection.model_fields_set}
    return {name: value for name, value in fields.items() if name not in {"reconnect_within", "connect_timeout"}}


def _password(connection: SshConnection, name: str, questions: Questions) -> dict[str, Any]:
    """The field of a typed password, if the user wants to save it."""
    password = connection.open(name).password
    if not password or connection.password is not None or questions.yes:
        return {}
    question = "Save the password, too? It is kept encrypted; without it you are asked once for each program"
    return {"password": password} if questions.confirm(question, proposal=False) else {}


def _check_saved(name: str, json: bool) -> None:
    """Check the saved cluster, and say what comes next."""
    from slurm_ray_flow.tasks.cluster_report import report

    cluster = cluster_named(name)
    if not json:
        print_text(f"\n{name} is saved.\n")
    cluster_report = report(cluster, "findings")
    if json:
        print_json({"name": name, "kind": cluster.kind, "findings": cluster_report.to_json()["findings"]})
    else:
        show_findings(cluster_report)
        next_step = f'write cluster="{name}" into a decorator, or: srf run FILE.py:FUNCTION --option cluster={name}'
        print_text(f"\nNext: {f'mend what failed, and `srf check {name}` again' if cluster_report.down else next_step}")
    if cluster_report.down:
        sys.exit(1)
