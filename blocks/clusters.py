"""Clusters by name."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import Any, cast

from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import ValidationError

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.server import connect, ensure_server
from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.blocks.trusted import Unconfirmed, check_confirmed
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.run import RunRecord

KINDS: tuple[type[Block], ...] = (LocalMachine, SshServer, SlurmCluster)
"""Every kind of cluster."""


def find_cluster(wanted: Any, *, to_look: bool = False) -> Cluster:
    """A cluster from its name, or the block itself.

    Args:
        wanted: a block; or the name of a saved one, with or without its kind ("local-machine/lab"). "local" is this
            machine even where no block of that name is saved.
        to_look: only its fields are looked at: it need not be what its user has confirmed.

    Raises:
        OptionError: no saved block has this name; or others have changed what it has executed, and nobody confirms it.
    """
    if not isinstance(wanted, str):
        return cast(Cluster, wanted)
    if wanted == "local":
        return LocalMachine()
    kind, _, name = wanted.rpartition("/")
    for block_type in KINDS:
        slug = block_type.get_block_type_slug()
        if kind in {"", slug} and (found := _load(block_type, name)):
            if not to_look:
                check_confirmed(f"{slug}/{name}", found)
            return cast(Cluster, found)
    known = ["local", *(saved for block_type in KINDS for saved in saved_names(block_type))]
    near = difflib.get_close_matches(wanted, known, n=1)
    raise OptionError(
        f"there is no cluster {wanted!r}",
        advice=f"did you mean {near[0]!r}?"
        if near
        else f"there are {', '.join(known)}; `srf init NAME` saves another one",
    )


def slug_of(cluster: Cluster) -> str:
    """What finds exactly this saved cluster: its kind and its name."""
    return f"{cluster.kind}/{cluster.label}"


def cluster_of(record: RunRecord) -> Cluster:
    """The cluster of an earlier run."""
    if record.kind == LocalMachine.kind:
        return LocalMachine(root=record.root)  # type: ignore[arg-type]
    name = f"{record.kind}/{record.cluster}"
    found, since = _known.get(name, (None, 0.0))
    if found is None or time.monotonic() - since > KNOWN_SECONDS:
        found = _saved_or_host(record, name)
        _known[name] = found, time.monotonic()
    return found


def _saved_or_host(record: RunRecord, name: str) -> Cluster:
    """A server that was never saved is known by the host it is."""
    if (
        FlowRunContext.get() is None
    ):  # without a server's address Prefect would start a server of its own, for this once
        connect(ensure_server(lambda _: None))
    try:
        return find_cluster(name)
    except Unconfirmed:
        raise
    except OptionError:
        if record.kind not in (SshServer.kind, SlurmCluster.kind):
            raise
        here = record.cluster == SlurmCluster.UNNAMED
        connection = None if here else SshConnection(host=record.cluster)
        if record.kind == SlurmCluster.kind:
            return SlurmCluster(connection=connection, root=record.root)
        return SshServer(connection=SshConnection(host=record.cluster), root=record.root)


def remember(cluster: Cluster) -> None:
    """Know a cluster again that was never saved: runs of this process are on it."""
    name = slug_of(cluster)
    if isinstance(cluster, Block) and cluster._block_document_name is None:
        _known[name] = cluster, float("inf")


KNOWN_SECONDS = 60.0
"""For how long a saved cluster is taken for what it was when it was loaded."""
_known: dict[str, tuple[Cluster, float]] = {}


def _load(block_type: type[Block], name: str) -> Block | None:
    load = cast(Callable[..., Block], block_type.load)
    try:
        return load(name, _sync=True)  # inside the run of an async flow Prefect would give something to await
    except RuntimeError as error:  # Prefect's word for a block whose fields are wrong
        if not isinstance(error.__cause__, ValidationError):
            raise
        found = error.__cause__.errors(include_url=False, include_input=False, include_context=False)
        fields = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the block'}: {one['msg']}" for one in found)
        raise OptionError(
            f"the saved cluster {name!r} can't be read",
            where=fields,
            advice=f"`srf forget {name}` removes it, `srf init {name}` saves it anew; or mend it in Prefect's UI",
        ) from None
    except ValueError:  # Prefect's word for "no such block"
        return None


def saved_names(block_type: type[Block]) -> list[str]:
    """What the saved blocks of a kind are called."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            documents = client.read_block_documents_by_type(block_type.get_block_type_slug())
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 404 or "json" not in error.response.headers.get("content-type", ""):
            raise
        return []  # nobody has registered this kind yet
    return [document.name for document in documents if document.name]
