"""The layout of a snapshot: the place of each file and link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot.entries import Entry, Hashes, fingerprint, unreadable
from slurm_ray_flow.core.text import printable


@dataclass(frozen=True)
class PlacedTree:
    """A folder at home (its real path) that is kept whole, and its place in the snapshot."""

    source: str
    place: str

    def inside(self, path: str) -> str | None:
        """A real path relative to this tree; "" for the tree itself, None if it lies elsewhere."""
        if path == self.source:
            return ""
        prefix = self.source if self.source == "/" else self.source + "/"
        return path[len(prefix) :] if path.startswith(prefix) else None


@dataclass(frozen=True)
class PlacedFolder:
    """A folder at home (its real path), and its place in the snapshot; `tree` is None beyond a link that leaves it."""

    source: str
    place: str
    tree: PlacedTree | None


class Layout:
    """Collects the entries of a snapshot.

    Args:
        project: the real path of the project; it becomes "project/".
        hashes: the cache of digests.

    Attributes:
        entries: the collected entries, by place.
        linked: folders to which a kept link points, and whose files are still to be added.
    """

    def __init__(self, project: str, hashes: Hashes) -> None:
        self.project = PlacedTree(project, "project")
        self.entries: dict[str, Entry] = {}
        self.linked: list[PlacedFolder] = []
        self._hashes = hashes
        self._outside: dict[str, PlacedTree] = {}
        self._folders: dict[tuple[str, str], PlacedFolder] = {}

    @property
    def roots(self) -> tuple[tuple[str, str], ...]:
        """Place and real path of each tree."""
        return tuple((tree.place, tree.source) for tree in (self.project, *self._outside.values()))

    def tree(self, root: str) -> tuple[PlacedTree, str]:
        """The tree of a root (a real path), and the root relative to it; a root outside the project gets a new one."""
        relative = self.project.inside(root)
        if relative is not None:
            return self.project, relative
        if root not in self._outside:
            self._outside[root] = PlacedTree(root, f"outside/{len(self._outside)}")
        return self._outside[root], ""

    def folder(self, tree: PlacedTree, relative: str) -> PlacedFolder:
        """A folder of a tree. A link on the way that stays in the tree is kept and followed.

        Raises:
            SyncError: a link on the way points to nothing.
        """
        key = (tree.place, relative)
        if key not in self._folders:
            self._folders[key] = self._find_folder(tree, relative)
        return self._folders[key]

    def add(self, folder: PlacedFolder, name: str) -> None:
        """Add the file, or the link and its target.

        Raises:
            SyncError: it is neither file nor link, can't be read, or is a link to nothing or to a folder outside.
        """
        place, file = f"{folder.place}/{name}", f"{folder.source}/{name}"
        if place in self.entries and self.entries[place].link is None:
            return
        status = _lstat(file)
        if stat.S_ISLNK(status.st_mode):
            self._add_link(folder, name)
        else:
            self._add_file(place, file, status)

    def _find_folder(self, tree: PlacedTree, relative: str) -> PlacedFolder:
        if not relative:
            return PlacedFolder(tree.source, tree.place, tree)
        parent_path, _, name = relative.rpartition("/")
        parent = self.folder(tree, parent_path)
        source = f"{parent.source}/{name}"
        if not stat.S_ISLNK(_lstat(source).st_mode):
            return PlacedFolder(source, f"{parent.place}/{name}", parent.tree)
        target, _ = _link_target(source)
        relative_target = parent.tree.inside(target) if parent.tree else None
        if parent.tree is None or relative_target is None:
            return PlacedFolder(target, f"{parent.place}/{name}", None)
        self._keep_link(parent, name, target)
        return self.folder(parent.tree, relative_target)

    def _add_file(self, place: str, file: str, status: os.stat_result) -> None:
        self.entries[place] = _entry(place, file, status, self._hashes)

    def _add_link(self, folder: PlacedFolder, name: str) -> None:
        file = f"{folder.source}/{name}"
        target, status = _link_target(file)
        relative_target = folder.tree.inside(target) if folder.tree else None
        if folder.tree is not None and relative_target is not None:
            self._keep_link(folder, name, target)
            self._add_target(folder.tree, relative_target, status)
        elif stat.S_ISDIR(status.st_mode):
            raise SyncError(
                f"{printable(file)} is a link to a folder outside: {printable(target)}.",
                where=printable(file),
                advice="Name that folder itself in include, by its absolute path; or name the link in .gitignore.",
            )
        else:
            self._add_file(f"{folder.place}/{name}", file, status)

    def _add_target(self, tree: PlacedTree, relative: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.linked.append(self.folder(tree, relative))
        else:
            parent_path, _, name = relative.rpartition("/")
            self.add(self.folder(tree, parent_path), name)

    def _keep_link(self, folder: PlacedFolder, name: str, target: str) -> None:
        place, file = f"{folder.place}/{name}", f"{folder.source}/{name}"
        text = os.path.relpath(target, folder.source)
        digest = hashlib.sha256(os.fsencode(text)).hexdigest()
        self.entries[place] = Entry(place, file, len(text), 0, 0o777, digest, text)


def read_again(entry: Entry) -> Entry:
    """The entry of a file as the file is now.

    Raises:
        SyncError: the file is gone, can't be read, or is no plain file any more.
    """
    try:
        status = os.stat(entry.file)  # noqa: PTH116 (paths are strings here: a project has thousands)
    except OSError as problem:
        raise unreadable(entry.file, problem) from problem
    return _entry(entry.place, entry.file, status, {})


def _entry(place: str, file: str, status: os.stat_result, hashes: Hashes) -> Entry:
    if not stat.S_ISREG(status.st_mode):
        raise SyncError(
            f"{printable(file)} is {_kind(status.st_mode)}, not a file: it can't be sent.",
            where=f"{printable(file)} ({stat.filemode(status.st_mode)})",
            advice="Take it out of include, or name the files beside it.",
        )
    digest = fingerprint(file, status, hashes)
    return Entry(place, file, status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode), digest)


def _lstat(file: str) -> os.stat_result:
    try:
        return os.lstat(file)
    except OSError as problem:
        raise unreadable(file, problem) from problem


def _link_target(link: str) -> tuple[str, os.stat_result]:
    target = os.path.realpath(link)
    try:
        return target, os.stat(target)  # noqa: PTH116 (paths are strings here: a project has thousands)
    except OSError as problem:
        if problem.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise unreadable(target, problem) from problem
    raise SyncError(
        f"{printable(link)} is a link to {printable(target)}, which isn't there.",
        where=printable(link),
        advice="Remove the link, mend it, or name it in .gitignore.",
    )


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
