"""Brings a snapshot to a cluster: rsync, with hard links to what earlier snapshots hold already.

`<root>/snapshots/<project>/<digest>/` is the snapshot and `<digest>.list` its listing, whose SHA-256 is the digest.
A snapshot grows beside, in `.<digest>.<random>`, is checked, and gets its name when it is whole. Nothing in it can be
written by accident, files and folders alike, because its files are shared with other snapshots; only the empty
`__pycache__` folders are open, so that Python keeps its bytecode.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.blocks.rsync import Copied
from slurm_ray_flow.blocks.shell import Completed, run
from slurm_ray_flow.core.errors import SlurmRayFlowError, SyncError
from slurm_ray_flow.core.snapshot import Manifest, refreshed
from slurm_ray_flow.core.snapshot.entries import places_in
from slurm_ray_flow.core.snapshot.fingerprint import printable

STALE_MINUTES = 60
"""Age at which what a broken transfer left is removed."""

_RESENT = 3
_LINKED = 2  # more would hold little that these two don't, and each costs rsync a look per new file
_COMMAND_SECONDS = 3600.0

# Arguments: folder of the project, digest, name beside, minutes. Input: folders to make, NUL after each.
_PREPARE = f"""
umask 077
if [ -d "$1/$2" ]; then echo reused; exec touch -c "$1/$2.list"; fi
mkdir -p "$1" && cd "$1" || exit 1
for left in .[!.]*; do
  [ -d "$left" ] && [ -z "$(find "$left" -cmin "-$4" 2>/dev/null | head -n 1)" ] || continue
  find "$left" -type d -exec chmod u+rwx {{}} + && rm -rf "$left" "$left.list"
done
mkdir "$3" && (cd "$3" && xargs -0 mkdir -p) || exit 1
found=0
for listing in $(ls -t | grep '^[0-9a-f]*\\.list$'); do
  [ -d "${{listing%.list}}" ] || continue
  echo "${{listing%.list}}"; cat "$listing"; echo
  found=$((found + 1)); [ $found -lt {_LINKED} ] || break
done
"""
# Arguments: folder of the project, name beside. Input: files, NUL after each. Answers with their SHA-256, a line each.
_CHECK = """
cd "$1/$2" || exit 1
command -v sha256sum >/dev/null && exec xargs -0 sha256sum --
exec xargs -0 shasum -a 256 --
"""
# Arguments: folder of the project, name beside, digest. Input: the listing.
_PUBLISH = """
umask 077
cd "$1" && cat > "$2.list" &&
  find "$2" -type d ! -name __pycache__ -exec chmod 500 {} + && mv "$2.list" "$3.list" || exit 1
[ -d "$3" ] || mv -T "$2" "$3" 2>/dev/null || [ -d "$3" ] || mv "$2" "$3" || exit 1
[ ! -d "$2" ] || { find "$2" -type d -exec chmod u+rwx {} + && rm -rf "$2"; }
"""
# Arguments: folder of the project, name beside.
_DISCARD = """
cd "$1" || exit 0
[ -d "$2" ] && find "$2" -type d -exec chmod u+rwx {} + && rm -rf "$2"
rm -f "$2.list"
"""


class Target(Protocol):
    """Where snapshots go."""

    @property
    def root(self) -> PurePosixPath:
        """The folder on the target that holds all of ours, absolute."""
        ...

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> Copied:
        """Have rsync copy some files of a folder to one there. Raises SlurmRayFlowError."""
        ...

    def run(self, command: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run a command there. Raises SlurmRayFlowError if it can't be run or takes longer than `timeout` seconds."""
        ...


@dataclass(frozen=True)
class LocalTarget:
    """This machine."""

    root: PurePosixPath

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> Copied:
        """Copy them here."""
        return rsync.copy(source, path, names, options)

    def run(self, command: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run it here."""
        return run(command, stdin=stdin, timeout=timeout)


@dataclass(frozen=True)
class Transfer:
    """What a transfer did.

    Attributes:
        manifest: what the snapshot holds; newer than the one that was given if files changed while they were sent.
        folder: the snapshot on the target.
        files: how many travelled.
        bytes_sent: bytes that travelled, names included.
        bytes_total: bytes of the whole snapshot.
        seconds: how long it took.
        reused: the snapshot was there already.
    """

    manifest: Manifest
    folder: PurePosixPath
    files: int
    bytes_sent: int
    bytes_total: int
    seconds: float
    reused: bool


def send_snapshot(
    manifest: Manifest, *, target: Target, project_key: str, stale_minutes: int = STALE_MINUTES
) -> Transfer:
    """Bring a snapshot to a target. One that is there already is used as it is.

    Whatever travelled is checked against the manifest. A file that changed in the meantime is read and sent again, up
    to three times; the snapshot then has another digest than `manifest` (see `Transfer.manifest`).

    Args:
        manifest: what to send.
        target: where to.
        project_key: names the project's folder there.
        stale_minutes: what a broken transfer left untouched for so long is removed.

    Raises:
        SyncError: rsync is missing or fails, the target is full, or a file does not stop changing.
        SlurmRayFlowError: a command could not be run on the target.
    """
    began = time.monotonic()
    sending = _Sending(manifest, target, project_key)
    reused = sending.prepare(stale_minutes)
    if not reused:
        try:
            sending.send()
            sending.publish()
        except BaseException:
            sending.discard()
            raise
    sent = sending.manifest
    folder = PurePosixPath(sending.base, sent.digest)
    seconds = time.monotonic() - began
    return Transfer(sent, folder, len(sending.sent), sending.bytes_sent, sent.total_bytes, seconds, reused)


class _Sending:
    def __init__(self, manifest: Manifest, target: Target, project_key: str) -> None:
        self.manifest, self.sent, self.bytes_sent = manifest, set[str](), 0
        self.base = str(target.root / "snapshots" / project_key)
        self._target = target
        self._beside = f".{manifest.digest}.{secrets.token_hex(6)}"
        self._earlier: dict[str, dict[str, str]] = {}

    def prepare(self, stale_minutes: int) -> bool:
        """Make the folder beside, and learn of earlier snapshots; True if the snapshot is there already."""
        folders = "".join(f"{folder}\0" for folder in _folders(self.manifest))
        arguments = (self.manifest.digest, self._beside, str(stale_minutes))
        answer = self._run(_PREPARE, *arguments, stdin=_encoded(folders)).stdout
        if answer == "reused\n":
            return True
        for block in filter(None, answer.split("\n\n")):
            digest, *records = block.split("\n")
            self._earlier[digest] = places_in(records)
        return False

    def send(self) -> None:
        """Send links and files, until all that travelled is as the manifest says."""
        self._send_links()
        pending = [entry.place for entry in self.manifest.entries if entry.link is None]
        doubtful = self._changed()
        linked: Sequence[str] = tuple(self._earlier)
        for _ in range(1 + _RESENT):
            moved = self._send_files(pending, linked)
            pending = self._wrong(moved | doubtful)
            if not pending:
                return
            self.manifest = refreshed(self.manifest, set(pending))
            linked, doubtful = (), set()
        raise SyncError(
            f"{printable(pending[0])} does not stop changing: it was sent {1 + _RESENT} times.",
            where=", ".join(printable(place) for place in pending[:5]),
            advice="Write it elsewhere, or leave it out of the snapshot: by .gitignore, or by a narrower include.",
        )

    def publish(self) -> None:
        """Give the snapshot its name."""
        self._run(_PUBLISH, self._beside, self.manifest.digest, stdin=self.manifest.listing)

    def discard(self) -> None:
        """Remove what was begun; what can't be removed now is, later, as stale."""
        with contextlib.suppress(SlurmRayFlowError):
            self._target.run(("sh", "-c", _DISCARD, "sh", self.base, self._beside), stdin=b"", timeout=_COMMAND_SECONDS)

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
                options = [*rsync.FILES, *(f"--link-dest={self.base}/{digest}/{root}" for digest in linked)]
                if not linked:
                    options.append("--ignore-times")
                moved.update(f"{root}/{name}" for name in self._rsync(source, root, names, options))
        self.sent |= moved
        return moved

    def _rsync(self, source: str, place: str, names: Sequence[str], options: Sequence[str]) -> set[str]:
        moved = self._target.copy(source, f"{self.base}/{self._beside}/{place}", names, options)
        self.bytes_sent += moved.bytes_sent
        return set(moved.names)

    def _changed(self) -> set[str]:
        """Files that differ from an earlier snapshot: rsync takes one of the same size and second for the same."""
        changed: set[str] = set()
        for earlier in self._earlier.values():
            for entry, record in zip(self.manifest.entries, self.manifest.records, strict=False):
                if earlier.get(record[67:], record) != record and entry.link is None:
                    changed.add(entry.place)
        return changed

    def _wrong(self, places: Collection[str]) -> list[str]:
        """Those of the files whose content on the target is not the manifest's."""
        wanted = [entry for entry in self.manifest.entries if entry.place in places]
        if not wanted:
            return []
        names = "".join(f"{entry.place}\0" for entry in wanted)
        answer = self._run(_CHECK, self._beside, stdin=_encoded(names)).stdout.splitlines()
        # sha256sum marks a line with a backslash where it had to escape the name.
        found = [line.removeprefix("\\")[:64] for line in answer]
        return [entry.place for entry, digest in zip(wanted, found, strict=True) if entry.sha256 != digest]

    def _run(self, script: str, *arguments: str, stdin: bytes) -> Completed:
        command = ("sh", "-c", script, "sh", self.base, *arguments)
        done = self._target.run(command, stdin=stdin, timeout=_COMMAND_SECONDS)
        if not done.ok:
            raise SyncError(
                f"The snapshot can't be made: {done.stderr.strip() or f'exit code {done.exit_code}'}",
                where=self.base,
                advice="See that the folder can be written and that neither its disk nor your quota is full.",
            )
        return done


def _folders(manifest: Manifest) -> list[str]:
    """What is made before rsync starts: the required folders, and open ones for Python's bytecode."""
    modules = {entry.place.rpartition("/")[0] for entry in manifest.entries if entry.place.endswith(".py")}
    roots = (place for place, _ in manifest.roots)
    return [*roots, *manifest.folders, *(f"{folder}/__pycache__" for folder in sorted(modules))]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
