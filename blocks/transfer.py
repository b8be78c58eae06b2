"""The transfer of a snapshot to a cluster (remote/agent/snapshots.py), without files that the cluster has already.

Small changes travel in the requests, in two round trips; others by rsync, with hard links to earlier snapshots.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.blocks.machine import Request, failure
from slurm_ray_flow.blocks.rsync import Copied
from slurm_ray_flow.core.errors import SlurmRayFlowError, SyncError
from slurm_ray_flow.core.snapshot import Entry, Manifest, refreshed
from slurm_ray_flow.core.text import printable
from slurm_ray_flow.remote.agent import snapshots
from slurm_ray_flow.remote.agent.operations import perform
from slurm_ray_flow.remote.agent.snapshots import PLACE, by_place
from slurm_ray_flow.remote.shared.protocol import OperationError

STALE_MINUTES = 60
"""Minutes after which the files of a broken transfer are removed."""
INLINE_BYTES = 32 * 1024
"""The most bytes of changed content that travel in requests, since rsync needs some round trips to start."""

_RESENT = 3


class SnapshotTarget(Protocol):
    """The target of snapshots."""

    @property
    def root(self) -> PurePosixPath:
        """The root on the target, absolute."""
        ...

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> Copied:
        """Copy some files of a folder at home to one on the target by rsync. Raises SlurmRayFlowError."""
        ...

    def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Do operations on the target, in one round trip. Raises SlurmRayFlowError."""
        ...


@dataclass(frozen=True)
class LocalTarget:
    """This machine as a target."""

    root: PurePosixPath

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> Copied:
        """Copy some files of a folder by rsync."""
        return rsync.copy(source, path, names, options)

    def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Do operations in this process."""
        try:
            return [perform(operation, dict(arguments)) for operation, arguments in requests]
        except OperationError as error:
            raise failure(error, "local") from error


@dataclass(frozen=True)
class Transfer:
    """The result of a transfer.

    Attributes:
        manifest: the manifest of the snapshot; newer than the given one if files changed during the transfer.
        folder: the snapshot's folder on the target.
        places: the places of the sent files.
        bytes_sent: the sent bytes, with names.
        bytes_total: bytes of the whole snapshot.
        seconds: the duration of the transfer.
        reused: whether the target had the snapshot already.
    """

    manifest: Manifest
    folder: PurePosixPath
    places: frozenset[str]
    bytes_sent: int
    bytes_total: int
    seconds: float
    reused: bool

    @property
    def files(self) -> int:
        """The number of files that were sent."""
        return len(self.places)


def send_snapshot(
    manifest: Manifest,
    *,
    target: SnapshotTarget,
    project_key: str,
    stale_minutes: float = STALE_MINUTES,
    inline_bytes: int = INLINE_BYTES,
) -> Transfer:
    """Send a snapshot to a target. A snapshot that the target has already is reused.

    The sent files are checked against the manifest. A file that changed meanwhile is read and sent again, up to three
    times; the snapshot then has another digest than `manifest` (see `Transfer.manifest`).

    Args:
        manifest: the manifest of the snapshot.
        target: the target.
        project_key: the name of the project's folder there.
        stale_minutes: files of a broken transfer that are older than this are removed.
        inline_bytes: the most bytes of content that are sent without rsync.

    Raises:
        SyncError: rsync is missing or fails, the target is full, or a file does not stop changing.
        SlurmRayFlowError: the target can't be asked.
    """
    began = time.monotonic()
    sending = _Sending(manifest, target, project_key)
    reused = sending.begin(stale_minutes)
    if not reused:
        try:
            if not sending.send_inline(inline_bytes):
                sending.send_by_rsync()
        except BaseException:
            sending.discard()
            raise
    sent = sending.manifest
    folder = PurePosixPath(sending.folder, sent.digest)
    seconds = time.monotonic() - began
    return Transfer(sent, folder, frozenset(sending.sent), sending.bytes_sent, sent.total_bytes, seconds, reused)


class _Sending:
    def __init__(self, manifest: Manifest, target: SnapshotTarget, project_key: str) -> None:
        self.manifest, self.sent, self.bytes_sent = manifest, set[str](), 0
        self.folder = str(target.root / "snapshots" / project_key)
        self._target = target
        self._temporary = f".{manifest.digest}.{secrets.token_hex(6)}"
        self._earlier_snapshots: dict[str, dict[str, str]] = {}

    def begin(self, stale_minutes: float) -> bool:
        """Make the temporary folder, and list earlier snapshots; True if the target has the snapshot already."""
        snapshot = {"folder": self.folder, "digest": self.manifest.digest}
        roots = [place for place, _ in self.manifest.roots]
        request = {**snapshot, "beside": self._temporary, "roots": roots, "stale_minutes": stale_minutes}
        reused, earlier = self._ask(("snapshots.begin", request), ("snapshots.earlier", snapshot))
        if earlier:
            with contextlib.suppress(ValueError, AttributeError):  # then all files are sent
                listings: dict[str, str] = json.loads(snapshots.unzipped(earlier))
                self._earlier_snapshots = {digest: by_place(text.splitlines()) for digest, text in listings.items()}
        return bool(reused)

    def send_inline(self, limit: int) -> bool:
        """Send the changes in the request that makes the snapshot; False if they are too large, or change again."""
        changed = self._entries_missing_in(self._nearest)
        if sum(entry.size for entry in changed) > limit:
            return False
        contents = [_content(entry) for entry in changed]
        if None in contents:
            return False
        inline = [(content or b"", entry.mtime_ns) for content, entry in zip(contents, changed, strict=True)]
        files = {entry.place for entry in changed if entry.link is None}
        if self._finish(files, inline) != []:
            return False
        self.sent = files
        return True

    def send_by_rsync(self) -> None:
        """Send links and files by rsync, until all sent files match the manifest."""
        self._send_links()
        pending: Sequence[str] = [entry.place for entry in self.manifest.entries if entry.link is None]
        uncertain = self._changed()
        linked: Sequence[str] = tuple(self._earlier_snapshots)
        for _ in range(1 + _RESENT):
            moved = self._send_files(pending, linked)
            pending = self._finish_or_list_wrong(moved | uncertain)
            if not pending:
                return
            self.manifest = refreshed(self.manifest, set(pending))
            linked, uncertain = (), set()
        raise SyncError(
            f"{printable(pending[0])} does not stop changing: it was sent {1 + _RESENT} times.",
            where=", ".join(printable(place) for place in pending[:5]),
            advice="Write it elsewhere, or leave it out of the snapshot: by .gitignore, or by a narrower include.",
        )

    def discard(self) -> None:
        """Remove the temporary folder; if that fails, a later transfer removes it as stale."""
        with contextlib.suppress(SlurmRayFlowError):
            self._ask(("snapshots.discard", {"folder": self.folder, "beside": self._temporary}))

    @property
    def _nearest(self) -> str:
        """The digest of the most similar earlier snapshot; "" for none."""
        return min(self._earlier_snapshots, key=lambda digest: len(self._entries_missing_in(digest)), default="")

    def _entries_missing_in(self, digest: str) -> list[Entry]:
        """The entries that an earlier snapshot lacks."""
        earlier = self._earlier_snapshots.get(digest, {})
        pairs = zip(self.manifest.entries, self.manifest.records, strict=False)
        return [entry for entry, record in pairs if earlier.get(record[PLACE:]) != record]

    def _finish_or_list_wrong(self, check: Collection[str]) -> list[str]:
        """Finish the snapshot on the target; gives the files whose content there does not match the manifest."""
        wrong = self._finish(check)
        if wrong is None:  # a clean-up has removed the earlier snapshot
            self._earlier_snapshots.clear()
            wrong = self._finish(check)
        return wrong or []

    def _finish(self, check: Collection[str], inline: Sequence[tuple[bytes, int]] | None = None) -> list[str] | None:
        nearest = self._nearest
        earlier = self._earlier_snapshots.get(nearest, {})
        records = by_place(self.manifest.records)
        places = {
            record[PLACE:]: entry.place for entry, record in zip(self.manifest.entries, records.values(), strict=False)
        }
        data = snapshots.packed(
            nearest,
            new=[record for place, record in records.items() if earlier.get(place) != record],
            gone=[place for place in earlier if place not in records],
            check=[quoted for quoted, place in places.items() if place in check],
            inline=inline,
        )
        snapshot = {"folder": self.folder, "digest": self.manifest.digest, "beside": self._temporary}
        [wrong] = self._ask(("snapshots.finish", {**snapshot, "data": data}))
        self.bytes_sent += len(data)
        return None if wrong is None else [places[quoted] for quoted in wrong]

    def _send_links(self) -> None:
        links = [(entry.place, entry.link) for entry in self.manifest.entries if entry.link is not None]
        if not links:
            return
        with tempfile.TemporaryDirectory(prefix="srf-") as folder:
            for place, text in links:
                path = Path(folder, place)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(text)
            self._rsync(folder, "", [place for place, _ in links], rsync.LINKS)

    def _send_files(self, places: Sequence[str], linked: Sequence[str]) -> set[str]:
        moved: set[str] = set()
        for root, source in self.manifest.roots:
            start = len(root) + 1
            names = [place[start:] for place in places if place.startswith(f"{root}/")]
            if names:
                options = [*rsync.FILES, *(f"--link-dest={self.folder}/{digest}/{root}" for digest in linked)]
                if not linked:
                    options.append("--ignore-times")
                moved.update(f"{root}/{name}" for name in self._rsync(source, root, names, options))
        self.sent |= moved
        return moved

    def _rsync(self, source: str, place: str, names: Sequence[str], options: Sequence[str]) -> set[str]:
        moved = self._target.copy(source, f"{self.folder}/{self._temporary}/{place}", names, options)
        self.bytes_sent += moved.bytes_sent
        return set(moved.names)

    def _changed(self) -> set[str]:
        """The files that differ from an earlier snapshot; rsync takes one of the same size and second for equal."""
        changed: set[str] = set()
        for earlier in self._earlier_snapshots.values():
            for entry, record in zip(self.manifest.entries, self.manifest.records, strict=False):
                if earlier.get(record[PLACE:], record) != record and entry.link is None:
                    changed.add(entry.place)
        return changed

    def _ask(self, *requests: Request) -> list[Any]:
        try:
            return self._target.ask_all(requests)
        except SlurmRayFlowError as error:
            if type(error) is not SlurmRayFlowError:
                raise
            raise SyncError(
                f"The snapshot can't be made: {error.what}",
                where=error.where or self.folder,
                advice="See that the folder can be written and that neither its disk nor your quota is full.",
            ) from error


def _content(entry: Entry) -> bytes | None:
    """The content of a file, or the text of a link; None if the file no longer matches the manifest."""
    if entry.link is not None:
        return entry.link.encode("utf-8", "surrogateescape")
    try:
        content = entry.source.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == entry.sha256 else None
