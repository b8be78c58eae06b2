"""The step that sends the project's files to the cluster as a snapshot."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.files import load_cache, save_cache, tracked
from slurm_ray_flow.blocks.transfer import Transfer
from slurm_ray_flow.core.artifacts import about_files
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.launch_events import ArtifactMade, Note, Warned, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.scan.model import LocalFile, Scan
from slurm_ray_flow.core.snapshot import Manifest, manifest
from slurm_ray_flow.remote.shared.working_directory import WORK
from slurm_ray_flow.tasks.retry import RETRIED, step
from slurm_ray_flow.tasks.scan_imports import ScannedCode, warn_of


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The project's files on a cluster.

    Attributes:
        digest: the digest of their content.
        folder: the snapshot's folder.
        path: the entries of `sys.path`, in order; relative to the run's folder, which gets copies of them.
        working_directory: the function's working directory, relative to the run's folder.
        listing: the file below the root whose time is that of the snapshot's last use.
        folders: home's folders, each with its path relative to the run's folder.
    """

    digest: str
    folder: str
    path: tuple[str, ...]
    working_directory: str
    listing: str
    folders: tuple[tuple[str, str], ...] = ()


@step(**RETRIED)
def sync_files(code: ScannedCode, cluster: Cluster, options: Options) -> Snapshot:
    """Send the files that the cluster lacks, as a snapshot.

    Raises:
        SyncError: a file can't be sent as it is.
    """
    project, scanned = Path(code.project), code.scan()
    files = files_of(code, options)
    for text in files.findings:
        publish(Warned(text))
    travelling = {entry.file for entry in files.entries}
    for finding in scanned.findings:
        if finding.data and os.path.realpath(finding.data) not in travelling and str(finding.data) not in travelling:
            warn_of(finding, project)
    sent = cluster.send(files, store.short_digest(code.project))
    left_out = f"; {len(files.left)} of your packages left at home" if files.left else ""
    publish(Note(_summary(sent, len(files.entries)) + left_out))
    if files.entries or files.left:
        content = about_files(sent.manifest.entries, sent.places, sent.bytes_sent, sent.bytes_total, files.left)
        publish(ArtifactMade(content))
    path = tuple(f"{WORK}/{entry}" for entry in sent.manifest.path)
    listing = f"snapshots/{sent.folder.parent.name}/{sent.folder.name}.list"
    folders = tuple((home_folder, f"{WORK}/{place}") for place, home_folder in sent.manifest.roots)
    working_directory = f"{WORK}/{sent.manifest.working_directory}"
    return Snapshot(sent.manifest.digest, str(sent.folder), path, working_directory, listing, folders)


def files_of(code: ScannedCode, options: Options) -> Manifest:
    """The manifest of the present files.

    Raises:
        SyncError: a file can't be sent as it is.
    """
    cache = home() / "cache" / "hashes" / f"{store.short_digest(code.project)}.pickle"
    hashes = load_cache(cache)
    cached = dict(hashes)
    scanned = code.scan()
    files = manifest(
        _files_of(scanned, code.script),
        project=Path(code.project),
        working_directory=Path.cwd(),
        include=options.include,
        packages=scanned.packages,
        package_data=options.package_data,
        tracked=tracked(sorted({os.path.realpath(folder) for folder, _, _ in scanned.packages})),
        search_path=sys.path,
        hashes=hashes,
    )
    if hashes != cached:
        save_cache(cache, hashes)
    return files


def _files_of(scanned: Scan, name: str) -> tuple[LocalFile, ...]:
    """The user's modules, and the script, which child processes of the function run to find its functions."""
    script = Path(name)
    own = (LocalFile(script, script.parent, script.stem),) if name else ()
    return (*scanned.files, *own)


def _summary(sent: Transfer, files: int) -> str:
    if not files:
        return "no files to send"
    if sent.reused:
        return "nothing changed"
    return f"{sent.files} of {files} file{'s' if files > 1 else ''} sent, {format_memory(sent.bytes_sent)}"
