"""The second half of `srf init` that asks: what was found there becomes the fields of a block."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.cli.output import print_error, print_table, print_text
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection
    from slurm_ray_flow.core.slurm.site import Site


T = TypeVar("T")


def somebody_is_there() -> bool:
    """Whether questions can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


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

    def choose(
        self, question: str, names: Sequence[str], proposal: str = "", other: Callable[[str], str] | None = None
    ) -> str:
        """Ask for one of several, by its number or its name.

        Args:
            question: without a mark at its end.
            names: what there is.
            proposal: what Enter means; "" is no proposal.
            other: reads an answer that is none of them; None refuses it.
        """
        for number, name in enumerate([] if self.yes else names, 1):
            print_text(f"  {number:>2}  {name}")
        return self.ask(question, proposal, lambda answer: _chosen(answer, names, other))


def _chosen(answer: str, names: Sequence[str], other: Callable[[str], str] | None) -> str:
    if answer in names:
        return answer
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    near = difflib.get_close_matches(answer, names, n=1)
    if other and answer and not answer.isdecimal():
        return other(answer)
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


ROOT = "~/.slurm-ray-flow"
LITTLE_BYTES = 20 * 1024**3
"""Environments with Ray take gigabytes: a home with less is no place for them, if there is another one."""

Fields = dict[str, Any]


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
    accounts: list[str]
    modules: bool
    pythons: list[dict[str, str]]
    scratch: list[dict[str, Any]]


def proposed(
    found: SurveyResult,
    connection: SshConnection | None,
    name: str,
    slurm: bool | None,
    known: Fields,
    questions: Questions,
) -> tuple[str, Fields]:
    """The kind of block, and its fields.

    Args:
        found: what is there.
        connection: how it is reached; None for this machine.
        name: what the cluster will be called.
        slurm: whether the command line says that it is a Slurm cluster; None where it says nothing.
        known: fields that the command line gives: they stay, and are not asked for.
        questions: asks, or takes what is proposed.
    """
    is_slurm = slurm if slurm is not None else _runs_jobs(found.slurm, questions)
    if connection is None and not is_slurm:
        advice = 'cluster="local" runs functions on this machine, and needs not be saved'
        raise OptionError("this machine has no Slurm to be used", advice=advice)
    fields = {**(_profile(connection, questions) if is_slurm else {}), **known}
    fields = {**_place(found, fields, questions), **fields}
    fields = {**_python(found, fields, questions), **fields}
    if not is_slurm:
        return "ssh-server", {**_lock(fields, questions), **fields}
    return "slurm-cluster", {**_slurm(found, connection, name, fields, questions), **fields}


def _runs_jobs(slurm: str, questions: Questions) -> bool:
    if slurm == "answers":
        return questions.confirm("Slurm is there. Shall it run your functions?")
    asked = "Slurm's commands are there, but it does not answer. Shall it run your functions all the same?"
    return slurm == "silent" and questions.confirm(asked, proposal=False)


def _profile(connection: SshConnection | None, questions: Questions) -> Fields:
    """What is known of the site, if it is one that is known."""
    from slurm_ray_flow.deployments.profiles import load_profile, profile_names

    host = connection.endpoint().host if connection else ""
    for name in profile_names():
        fields = load_profile(name)
        if fields.pop("host", None) == host and questions.confirm(f"There is a profile of {name}. Take what it says?"):
            return fields
    return {}


def _place(found: SurveyResult, fields: Fields, questions: Questions) -> Fields:
    """Where everything goes that runs leave: the home, or a folder with more room."""
    if "root" in fields or not found.scratch:
        return {}
    folders = [f"{_own(one['path'], found.user)}/.slurm-ray-flow" for one in found.scratch]
    small = found.home_bytes is not None and found.home_bytes < LITTLE_BYTES
    if not small:
        return {}
    print_text("Your home there is small. A folder for environments and runs, which all nodes must see:")
    chosen = questions.choose("Folder", [ROOT, *folders], folders[0], other=_folder)
    return {} if chosen == ROOT else {"root": chosen}


def _own(path: str, user: str) -> str:
    return path if user in path.split("/") else f"{path}/{user}"


def _folder(answer: str) -> str:
    if answer.startswith(("/", "~/")):
        return answer
    raise OptionError(f"{answer!r} is no absolute path", advice="write /... or ~/...")


def _python(found: SurveyResult, fields: Fields, questions: Questions) -> Fields:
    """Nothing where a Python of home's version is found by itself."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    if "python" in fields or any(one["version"].startswith(f"{wanted}.") for one in found.pythons):
        return {}
    print_text(f"Functions need Python {wanted} there, as you have it here, and none was found.")
    advice = "download (uv puts one into the root folder), module:NAME, or a path"
    return {"python": questions.ask(f"Which one? {advice}", "download", _policy)}


def _policy(answer: str) -> str:
    if answer == "download" or answer.startswith(("module:", "/", "~/")):
        return answer
    raise OptionError(f"{answer!r} is none of these", advice='write "download", "module:NAME" or a path')


def _lock(fields: Fields, questions: Questions) -> Fields:
    if "lock_path" in fields:
        return {}
    shared = questions.confirm("Do several people use this server? Then one launch at a time holds it")
    return {} if shared else {"lock_path": ""}


# ---- of a Slurm cluster


def _slurm(
    found: SurveyResult, connection: SshConnection | None, name: str, fields: Fields, questions: Questions
) -> Fields:
    account = _account(found.accounts, fields, questions)
    try:
        site = _site(connection, name, fields)
    except SlurmRayFlowError as error:
        print_error(error)
        return account
    return {**account, **_partition(site, fields, questions)}


def _site(connection: SshConnection | None, name: str, fields: Fields) -> Site:
    from slurm_ray_flow.blocks.slurm.sites import site
    from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster

    cluster = SlurmCluster(connection=connection, root=fields.get("root", ROOT))
    cluster._block_document_name = name
    return site(cluster.login)


def _account(accounts: Sequence[str], fields: Fields, questions: Questions) -> Fields:
    if "account" in fields or len(accounts) < 2:
        return {}
    print_text("You may charge several accounts.")
    chosen = questions.choose("Account", ["your default", *accounts], "your default")
    return {} if chosen == "your default" else {"account": chosen}


def _partition(site: Site, fields: Fields, questions: Questions) -> Fields:
    from slurm_ray_flow.core.slurm.site import COLUMNS, site_rows

    shown = [partition for partition in site.partitions.values() if not partition.hidden]
    if "partition" in fields or not shown:
        return {}
    if not questions.yes:
        print_table(COLUMNS, site_rows(site))
    default = site.default.name if site.default else shown[0].name
    names = [partition.name for partition in shown]
    chosen = questions.ask("Partition", default, lambda answer: _known(answer, names))
    return {} if site.default and chosen == default else {"partition": chosen}


def _known(answer: str, names: Sequence[str]) -> str:
    """One partition, or several with commas between them."""
    for name in answer.split(","):
        if name.strip() not in names:
            near = difflib.get_close_matches(name, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise OptionError(f"there is no partition {name!r}", advice=advice)
    return ",".join(name.strip() for name in answer.split(","))
