"""The first half of `srf init` that asks: which host, what to call it, its key, and the log-in."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.cli.output import print_error, print_text, tell
from slurm_ray_flow.cli.questions import Questions
from slurm_ray_flow.cli.trust import agreement
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed, OptionError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection

HERE = "this machine's Slurm"
MOST_HOSTS = 30
NO_NAME = re.compile(r"(log-?in|front-?end|head|submit|ssh|www|cluster|hpc|gateway|node)?\d*")
"""What a site calls its login node says nothing of the site."""
HASTE: dict[str, Any] = {"reconnect_within": 5.0}
"""Somebody waits: a host that does not answer is said so soon."""

Fields = dict[str, Any]


def placed(known: Fields, questions: Questions) -> Fields | None:
    """The fields of the connection to the host; None for this machine's own Slurm.

    Raises:
        OptionError: nobody is asked, and no host is given.
    """
    if "host" in known:
        return known
    if questions.yes:
        raise OptionError("--yes needs to know where", advice="give --host HOST, or --here on a login node of Slurm")
    from slurm_ray_flow.blocks.ssh.hosts import CONFIG, configured_hosts

    config = known.get("config_file", CONFIG)
    hosts = configured_hosts(config)[:MOST_HOSTS]
    names = [*([HERE] if shutil.which("sbatch") else []), *hosts]
    print_text("Where shall functions run?" + ("" if hosts else f" ({config} names no host.)"))
    chosen = questions.choose("Number, or user@host", names, other=lambda answer: str(_typed(answer) and answer))
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


def named(name: str | None, connection: Fields | None, questions: Questions, *, overwrite: bool) -> str:
    """What functions call the cluster: what is given, else the answer; a free name is proposed."""
    from slurm_ray_flow.blocks.saved import saved_clusters, valid_name

    taken = [] if overwrite else [one.name for one in saved_clusters()]

    def read(answer: str) -> str:
        if answer in taken:
            raise OptionError(f"there is a cluster {answer!r} already", advice="choose another name, or --overwrite")
        return valid_name(answer)

    if name is not None:
        return read(name)
    return questions.ask("A name for it, for cluster=...", proposal_for(connection, taken), read)


def proposal_for(connection: Fields | None, taken: Sequence[str]) -> str:
    """A free name that reminds of the host: "curnagl" for login1.curnagl.example.org."""
    host = str(connection["host"]).lower() if connection else "slurm"
    labels = [] if re.fullmatch(r"[\d.]+|.*:.*", host) else host.split(".")
    label = next((one for one in labels if not NO_NAME.fullmatch(one)), labels[0] if labels else "server")
    plain = re.sub("[^a-z0-9-]+", "-", label).strip("-") or "server"
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    return next(plain + number for number in numbers if plain + number not in taken and plain + number != "local")


def entered(fields: Fields, name: str, questions: Questions, fingerprints: Sequence[str]) -> SshConnection:
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
    from slurm_ray_flow.blocks.saved import made
    from slurm_ray_flow.blocks.ssh import SshConnection

    connection = made(SshConnection, {**HASTE, **fields})
    for shown in connection.trust(confirm):
        if not shown.known:
            tell(f"The key is known now, in {shown.file}.")
    opened = connection.open(name)
    opened.close()  # forgets a log-in that was refused before
    user = connection.agent("~/.slurm-ray-flow", label=name).hello["user"]
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
