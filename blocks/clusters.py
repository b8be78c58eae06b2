"""Clusters by name."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from slurm_ray_flow.blocks.block_documents import BlockFields, read_block, saved_names
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.oar_cluster import OarCluster
from slurm_ray_flow.blocks.server import ensure_server
from slurm_ray_flow.blocks.server.api import Api, status_of
from slurm_ray_flow.blocks.server.client import connect, in_flow_run, needed_api, no_answer
from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.blocks.trusted import Unconfirmed, check_confirmed, confirm
from slurm_ray_flow.core.errors import OptionError, ServerError
from slurm_ray_flow.core.run import RunRecord

F = TypeVar("F", bound=BlockFields)
T = TypeVar("T")

KINDS: tuple[type[BlockFields], ...] = (LocalMachine, SshServer, SlurmCluster, OarCluster)
"""Every kind of cluster."""


def find_cluster(wanted: Any, *, to_look: bool = False) -> Cluster:
    """A cluster from its name, or the block itself.

    Args:
        wanted: a block; or the name of a saved one, with or without its kind ("local-machine/lab"). "local" is this
            machine even where no block of that name is saved.
        to_look: whether the caller only reads its fields, for which they need no confirmation by the user.

    Raises:
        OptionError: no saved block has this name; or its commands were changed, and the user does not confirm them.
    """
    if not isinstance(wanted, str):
        return cast(Cluster, wanted)
    if wanted == "local":
        return LocalMachine()
    kind, _, name = wanted.rpartition("/")
    for block_type in KINDS:
        if kind in {"", block_type.kind} and (block := _load(block_type, name)):
            if not to_look:
                check_confirmed(f"{block_type.kind}/{name}", block)
            return cast(Cluster, block)
    names = ["local", *(saved for block_type in KINDS for saved in _saved_names(block_type))]
    close_matches = difflib.get_close_matches(wanted, names, n=1)
    raise OptionError(
        f"there is no cluster {wanted!r}",
        advice=f"did you mean {close_matches[0]!r}?"
        if close_matches
        else f"there are {', '.join(names)}; `srf init NAME` saves another one",
    )


def slug_of(cluster: Cluster) -> str:
    """The name that finds exactly this saved cluster: its kind and its name."""
    return f"{cluster.kind}/{cluster.label}"


def saved_name(cluster: Any) -> str | None:
    """The name by which another process finds a cluster that is given as a block; None where it is not saved."""
    if isinstance(cluster, BlockFields) and cluster._block_document_name is not None:
        return slug_of(cast(Cluster, cluster))
    return "local" if isinstance(cluster, LocalMachine) and cluster == LocalMachine() else None


def cluster_of(record: RunRecord) -> Cluster:
    """The cluster of an earlier run."""
    if record.kind == LocalMachine.kind:
        return LocalMachine(root=record.root)  # type: ignore[arg-type]
    name = f"{record.kind}/{record.cluster}"
    cluster, loaded_at = _loaded.get(name, (None, 0.0))
    if cluster is None or time.monotonic() - loaded_at > KNOWN_SECONDS:
        cluster = _saved_or_host(record, name)
        _loaded[name] = cluster, time.monotonic()
    return cluster


def _saved_or_host(record: RunRecord, name: str) -> Cluster:
    """The saved cluster of a record, else a cluster on the record's host."""
    try:
        return find_cluster(name)
    except Unconfirmed:
        raise
    except OptionError:
        block_type = next((kind for kind in KINDS if kind.kind == record.kind), LocalMachine)
        if block_type is LocalMachine:
            raise
        on_this_machine = record.cluster == getattr(block_type, "UNNAMED", None)
        connection = None if on_this_machine else SshConnection(host=record.cluster)
        return cast(Cluster, make_block(block_type, {"connection": connection, "root": record.root}))


def remember(cluster: Cluster) -> None:
    """Keep a cluster that was never saved, so that `cluster_of` finds it for runs of this process."""
    name = slug_of(cluster)
    if isinstance(cluster, BlockFields) and cluster._block_document_name is None:
        _loaded[name] = cluster, float("inf")


KNOWN_SECONDS = 60.0
"""Seconds for which a loaded cluster is used before it is loaded again."""
_loaded: dict[str, tuple[Cluster, float]] = {}


def _load(block_type: type[F], name: str) -> F | None:
    try:
        return _ask_prefect(lambda api: read_block(api, block_type, name))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        fields = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the block'}: {each['msg']}" for each in errors)
        raise OptionError(
            f"the saved cluster {name!r} can't be read",
            where=fields,
            advice=f"`srf forget {name}` removes it, `srf init {name}` saves it anew; or mend it in Prefect's UI",
        ) from None


def _saved_names(block_type: type[BlockFields]) -> list[str]:
    return _ask_prefect(lambda api: saved_names(api, block_type.kind))


def _ask_prefect(question: Callable[[Api], T]) -> T:
    """The answer of the Prefect server that is in use; it is started if none runs."""
    if not in_flow_run():
        ensure_server(lambda _: None)
    api = needed_api()
    try:
        return question(api)
    except ServerError as error:
        status = status_of(error)
        raise no_answer(f"it answers {status}" if status else error.what, status) from error


Fields = dict[str, Any]


@dataclass(frozen=True)
class SavedCluster:
    """A saved cluster: its name, its kind, and the machine it leads to."""

    name: str
    kind: str
    host: str

    @property
    def slug(self) -> str:
        """The name that finds exactly this cluster."""
        return f"{self.kind}/{self.name}"


def saved_clusters() -> list[SavedCluster]:
    """All saved clusters, sorted by name."""
    saved = [(block_type.kind, name) for block_type in KINDS for name in _saved_names(block_type)]
    return [SavedCluster(name, kind, _host(f"{kind}/{name}")) for kind, name in sorted(saved, key=lambda pair: pair[1])]


def _host(slug: str) -> str:
    try:
        connection = getattr(find_cluster(slug, to_look=True), "connection", None)
    except (OptionError, ValidationError):  # an older or newer version saved it
        return "?"
    return "this machine" if connection is None else str(connection.host)


def valid_name(name: str) -> str:
    """The name, if it is a valid name of a cluster.

    Raises:
        OptionError: it is not.
    """
    if name == "local":
        raise OptionError("'local' is this machine", advice="choose another name")
    if not re.fullmatch("[a-z0-9-]+", name):
        raise OptionError(f"{name!r} can't be a cluster's name", advice="write lower-case letters, digits, dashes")
    return name


def save_cluster(kind: str, name: str, connection: Fields | None, fields: Fields, *, overwrite: bool = False) -> None:
    """Save a cluster and the connection to it under one name.

    Args:
        kind: the slug of its block type: "ssh-server", "slurm-cluster" or "oar-cluster".
        name: lower-case letters, digits and dashes.
        connection: the fields of the connection's block; None where the cluster is used from its own login node.
        fields: fields of the cluster's block; the others have their defaults.
        overwrite: whether to replace blocks of that name.

    Raises:
        OptionError: a field is wrong, or the name is taken or not valid.
    """
    valid_name(name)
    block_type = next(block_type for block_type in KINDS if block_type.kind == kind)
    others = [other for other in KINDS if other is not block_type and name in _saved_names(other)]
    if others:
        what = f"there is a cluster {name!r} already, of the kind {others[0]._block_type_name}"
        raise OptionError(what, advice=f"choose another name, or `srf forget {name}`")
    if not overwrite and (name in _saved_names(block_type) or name in _saved_names(SshConnection)):
        advice = "choose another name, or give --change or --overwrite"
        raise OptionError(f"there is a cluster {name!r} already", advice=advice)
    _save(block_type, name, connection, fields)


def change_cluster(name: str, connection: Fields, fields: Fields) -> str:
    """Change fields of a saved cluster and its connection; the others stay as they are.

    Returns:
        The kind of that cluster.

    Raises:
        OptionError: a field is wrong, or no cluster has this name.
    """
    if name == "local":
        raise OptionError("'local' is this machine", advice="there is nothing to change about it")
    block = cast(BlockFields, find_cluster(name, to_look=True))
    saved_connection = getattr(block, "connection", None)
    merged = {**_fields_of(saved_connection), **connection} if saved_connection is not None else connection or None
    _save(type(block), name, merged, {**_fields_of(block), **fields})
    return block.kind


def forget_cluster(name: str) -> None:
    """Delete a saved cluster, and the connection of its name.

    Raises:
        OptionError: no cluster has this name.
    """
    if name == "local":
        raise OptionError("'local' is this machine", advice="`srf clusters` lists those that are saved")
    block_type = next((block_type for block_type in KINDS if name in _saved_names(block_type)), None)
    if block_type is None:
        find_cluster(name)  # says which there are
        return
    _prefect_block(block_type).delete(name)
    if name in _saved_names(SshConnection):
        _prefect_block(SshConnection).delete(name)


def _prefect_block(block_type: type[BlockFields]) -> Any:
    """Prefect's Block class of these fields."""
    from slurm_ray_flow.blocks import prefect_blocks

    if not in_flow_run():
        connect(ensure_server(lambda _: None))
    return getattr(prefect_blocks, block_type.__name__)


def _fields_of(block: BlockFields) -> Fields:
    return {name: getattr(block, name) for name in type(block).model_fields}


def _save(block_type: type[BlockFields], name: str, connection: Fields | None, fields: Fields) -> None:
    for field in fields:
        if field not in block_type.model_fields:
            what = f"a {block_type._block_type_name} has no {field}"
            raise OptionError(what, advice=f"it has {', '.join(block_type.model_fields)}")
    connection_block = None if connection is None else make_block(_prefect_block(SshConnection), connection)
    cluster = make_block(_prefect_block(block_type), {**fields, "connection": connection_block})
    with _all_or_nothing(None if connection_block is None or name in _saved_names(SshConnection) else name):
        if connection_block is not None:
            connection_block.save(name, overwrite=True)
        cluster.save(name, overwrite=True)
        confirm(f"{block_type.kind}/{name}", cluster)


@contextlib.contextmanager
def _all_or_nothing(new_connection: str | None) -> Iterator[None]:
    """Save both blocks in this block, or none: it delays Ctrl-C, and removes a new connection after a failure."""
    interrupts: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number)) if is_main else None
    try:
        yield
    except Exception:
        if new_connection is not None:
            with contextlib.suppress(Exception):
                _prefect_block(SshConnection).delete(new_connection)
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt


def make_block(block_type: type[F], fields: Fields) -> F:
    """A block of these fields.

    Raises:
        OptionError: a field has a wrong value, which the error does not show, since it may be a secret.
    """
    try:
        return block_type(**fields)
    except ValidationError as error:
        # Pydantic's own text would show the values, secrets included.
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise OptionError(f"this is no {block_type._block_type_name}: {wrong}") from None
