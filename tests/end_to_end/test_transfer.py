"""Snapshots on a target: small edits with the questions, the rest by the real rsync."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.blocks.machine import Request
from slurm_ray_flow.blocks.transfer import LocalTarget, SnapshotTarget, Transfer, send_snapshot
from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot import Manifest, manifest
from slurm_ray_flow.remote.agent import snapshots
from slurm_ray_flow.remote.shared import files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    write(folder, "main.py", "package/__init__.py", "package/inner.py", "data/a.csv", "run.sh")
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> PurePosixPath:
    return PurePosixPath(tmp_path, "root")


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def listed(project: Path, *include: str) -> Manifest:
    return manifest([], project=project, working_directory=project, include=include or ["."])


Send = Callable[..., Transfer]


@pytest.fixture(params=["inline", "rsync"])
def send(request: pytest.FixtureRequest, project: Path, root: PurePosixPath) -> Send:
    """Sends the project, or what a manifest lists; both ways keep the same promises."""
    inline_bytes = 32 * 1024 if request.param == "inline" else -1

    def sent(found: Manifest | None = None, target: SnapshotTarget | None = None, **options: float) -> Transfer:
        found, target = found or listed(project), target or LocalTarget(root)
        return send_snapshot(found, target=target, project_key="p", inline_bytes=inline_bytes, **options)

    return sent


def contents(transfer: Transfer) -> dict[str, str]:
    folder = Path(transfer.folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def beside(root: PurePosixPath) -> list[str]:
    return [path.name for path in Path(root, "snapshots", "p").iterdir() if path.name.startswith(".")]


def test_a_snapshot_holds_the_files_and_is_named_by_its_listing(send: Send, project: Path, root: PurePosixPath) -> None:
    sent = send()
    names = ("data/a.csv", "main.py", "package/__init__.py", "package/inner.py", "run.sh")
    assert contents(sent) == {f"project/{name}": name for name in names}
    assert (sent.files, sent.reused, sent.bytes_total) == (5, False, sum(map(len, names)))
    assert sent.bytes_sent > sent.bytes_total
    listing = Path(f"{sent.folder}.list").read_bytes()
    assert hashlib.sha256(listing).hexdigest() == sent.folder.name == sent.manifest.digest
    assert beside(root) == []


def test_nothing_is_writable_but_the_folders_for_bytecode_and_only_the_owner_reads(
    send: Send, project: Path, root: PurePosixPath
) -> None:
    folder = Path(send().folder)
    modes = {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    assert modes.pop("project/__pycache__") == modes.pop("project/package/__pycache__") == 0o700
    assert modes.pop("project/run.sh") == 0o500
    assert {mode for path, mode in modes.items() if (folder / path).is_dir()} == {0o500}
    assert {mode for path, mode in modes.items() if (folder / path).is_file()} == {0o400}


def test_python_keeps_its_bytecode_in_a_snapshot(send: Send, project: Path, root: PurePosixPath) -> None:
    write(project, "package/inner.py")
    for file in project.rglob("*.py"):
        file.write_text("")
    folder = Path(send().folder, "project")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-c", "import package.inner"], cwd=folder, check=True, env=environment)
    assert [path.name.split(".")[0] for path in (folder / "package" / "__pycache__").glob("inner.*.pyc")] == ["inner"]


@pytest.mark.parametrize("few", [0, 16])
def test_what_has_travelled_is_on_the_disk_before_the_snapshot_has_its_name(
    send: Send, project: Path, root: PurePosixPath, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    synced, named, fsync, sync_all, rename = set[str](), set[str](), os.fsync, files.sync_all, os.rename

    def seen_fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def seen_sync_all(folder: str) -> None:
        synced.update(path.name for path in Path(folder).rglob("*"))
        sync_all(folder)

    def seen_rename(source: str, target: str) -> None:
        named.update(synced)
        rename(source, target)

    for module, name, seen in (
        (os, "fsync", seen_fsync),
        (files, "sync_all", seen_sync_all),
        (os, "rename", seen_rename),
    ):
        monkeypatch.setattr(module, name, seen)
    monkeypatch.setattr(files, "FSYNC_LIMIT", few)
    sent = send()
    assert named >= {path.name for path in Path(sent.folder).rglob("*") if path.is_file()}


def test_what_is_told_of_earlier_snapshots_is_bounded_and_no_reason_to_stop(
    send: Send, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    monkeypatch.setattr(snapshots, "LARGEST_LISTING", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        snapshots.unzipped(zlib.compress(bytes(10**6)))
    for told in (b"no zlib", zlib.compress(bytes(10**6)), zlib.compress(b"[1]"), zlib.compress(b'{"a": 1}')):
        monkeypatch.setitem(snapshots.OPERATIONS, "snapshots.earlier", lambda folder, digest, told=told: told)
        write(project, f"{len(told)}.py")
        (project / "main.py").write_text(str(told))
        with pytest.MonkeyPatch.context() as roomy:
            roomy.setattr(snapshots, "LARGEST_LISTING", 10**5)
            assert contents(send())["project/main.py"] == str(told)


def test_a_snapshot_that_is_there_is_used_as_it_is(send: Send, project: Path, root: PurePosixPath) -> None:
    first = send()
    os.utime(project / "main.py", (1, 1))
    again = send()
    assert (again.reused, again.files, again.bytes_sent, again.folder) == (True, 0, 0, first.folder)
    assert beside(root) == []


def test_only_what_changed_travels_and_the_rest_is_shared(send: Send, project: Path, root: PurePosixPath) -> None:
    first = send()
    (project / "main.py").write_text("changed")
    (project / "data" / "a.csv").unlink()
    second = send()
    assert (second.files, second.bytes_total) == (1, first.bytes_total - len("data/a.csv"))
    assert contents(first)["project/main.py"] == "main.py"
    assert contents(second)["project/main.py"] == "changed"
    assert "project/data/a.csv" not in contents(second)
    same = "project/package/inner.py"
    assert Path(first.folder, same).stat().st_ino == Path(second.folder, same).stat().st_ino


def test_an_edit_of_the_same_size_and_time_travels_and_leaves_the_earlier_snapshot_alone(
    send: Send, project: Path, root: PurePosixPath
) -> None:
    times = (1_700_000_000, 1_700_000_000)
    os.utime(project / "main.py", times)
    first = send()
    (project / "main.py").write_text("MAIN.PY")
    os.utime(project / "main.py", times)
    second = send()
    assert contents(first)["project/main.py"] == "main.py"
    assert contents(second)["project/main.py"] == "MAIN.PY"
    assert second.files == 1


@pytest.mark.parametrize(
    "name",
    [b"new\nline.py", b"quote'\".py", b" two  spaces ", b"-n", b"back\\#012slash", b"100%41", b"#x#", b";x", b"\xe9"],
)
def test_names_of_any_bytes_travel(send: Send, project: Path, name: bytes) -> None:
    file = Path(os.fsdecode(os.fsencode(project) + b"/" + name))
    times = (1_700_000_000, 1_700_000_000)
    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, times)
        sent = send()
        assert Path(sent.folder, "project", file.name).read_text() == text


def test_an_empty_manifest_gives_a_folder_to_run_in(send: Send, project: Path, root: PurePosixPath) -> None:
    (project / "deep").mkdir()
    nothing = manifest([], project=project, working_directory=project / "deep")
    sent = send(nothing)
    assert Path(sent.folder, "project", "deep").is_dir()
    assert (sent.files, sent.bytes_total) == (0, 0)


def test_links_and_files_from_outside_arrive(send: Send, project: Path, root: PurePosixPath) -> None:
    write(project.parent, "other/x.csv", "shared/big.csv")
    (project / "link").symlink_to(project / "data")
    (project / "main_link.py").symlink_to("main.py")
    (project / "big.csv").symlink_to(project.parent / "shared" / "big.csv")
    found = listed(project, ".", str(project.parent / "other" / "x.csv"))
    folder = Path(send(found).folder)
    assert (folder / "project" / "link").readlink() == Path("data")
    assert (folder / "project" / "link" / "a.csv").read_text() == "data/a.csv"
    assert (folder / "project" / "main_link.py").readlink() == Path("main.py")
    assert not (folder / "project" / "big.csv").is_symlink()
    assert (folder / "project" / "big.csv").read_text() == "shared/big.csv"
    assert (folder / "outside" / "0" / "x.csv").read_text() == "other/x.csv"


def test_a_module_behind_a_link_that_leaves_the_project_arrives_where_it_is_imported_from(
    send: Send, project: Path, root: PurePosixPath
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Module:
        path: Path
        root: Path

    write(project.parent, "shared/helper.py")
    (project / "lib").symlink_to(project.parent / "shared")
    found = manifest([Module(project / "lib" / "helper.py", project)], project=project, working_directory=project)
    sent = send(found)
    assert contents(sent) == {"project/lib/helper.py": "shared/helper.py"}
    assert not Path(sent.folder, "project", "lib").is_symlink()


@dataclasses.dataclass(frozen=True)
class Distant(LocalTarget):
    """A target that rsync reaches through a remote shell, as it does over SSH; the shell runs here."""

    shell: str = ""

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> rsync.Copied:
        return rsync.copy(source, f"host:{path}", names, ("-s", "-e", self.shell, *options))


def test_a_target_behind_a_remote_shell_gets_the_same(send: Send, project: Path, tmp_path: Path) -> None:
    remote_shell = tmp_path / "remote_shell"
    remote_shell.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    remote_shell.chmod(0o755)
    write(project, "two words.txt", "new\nline.txt")
    (project / "link").symlink_to("data")
    target = Distant(PurePosixPath(tmp_path, "far away"), str(remote_shell))
    first = send(listed(project), target)
    (project / "two words.txt").write_text("changed")
    second = send(listed(project), target)
    assert (first.files, second.files) == (7, 1)
    assert contents(second) == {**contents(first), "project/two words.txt": "changed"}
    assert Path(second.folder, "project", "link").readlink() == Path("data")


def test_a_file_that_changes_before_it_is_sent_is_sent_as_it_is_then(
    send: Send, project: Path, root: PurePosixPath
) -> None:
    found = listed(project)
    (project / "main.py").write_text("changed since")
    sent = send(found)
    assert contents(sent)["project/main.py"] == "changed since"
    assert sent.folder.name == sent.manifest.digest != found.digest
    assert sent.manifest == listed(project)
    assert send().reused


@dataclasses.dataclass(frozen=True)
class Restless(LocalTarget):
    """The file is written to each time before rsync starts."""

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> rsync.Copied:
        with (Path(self.root).parent / "project" / "main.py").open("a") as stream:
            stream.write("!")
        return super().copy(source, path, names, options)


def test_a_file_that_does_not_stop_changing_is_named_and_nothing_is_left(project: Path, root: PurePosixPath) -> None:
    with pytest.raises(SyncError, match=r"main\.py does not stop changing: it was sent 4 times"):
        send_snapshot(listed(project), target=Restless(root), project_key="p", inline_bytes=-1)
    assert list(Path(root, "snapshots", "p").iterdir()) == []


def test_a_file_that_vanishes_is_named_and_nothing_is_left(send: Send, project: Path, root: PurePosixPath) -> None:
    found = listed(project)
    (project / "main.py").unlink()
    with pytest.raises(SyncError, match=r"main\.py"):
        send(found)
    assert list(Path(root, "snapshots", "p").iterdir()) == []


def test_a_broken_transfer_is_never_taken_for_a_snapshot_and_removed_when_it_is_old(
    send: Send, project: Path, root: PurePosixPath
) -> None:
    broken = Path(root, "snapshots", "p", f".{listed(project).digest}.dead")
    write(broken, "project/main.py")
    (broken / "project").chmod(0o500)
    assert not send().reused
    assert beside(root) == [broken.name]
    (project / "main.py").write_text("changed")
    send(stale_minutes=0)
    assert beside(root) == []


def test_two_that_send_the_same_at_once_get_one_whole_snapshot(send: Send, project: Path, root: PurePosixPath) -> None:
    class Together(LocalTarget):
        def ask_all(self, requests: Sequence[Request]) -> list[Any]:
            done = super().ask_all(requests)
            if not gate.broken:
                gate.wait(60)
            return done

    gate = threading.Barrier(2)
    sent: list[Transfer] = []
    found = listed(project)

    def one() -> None:
        sent.append(send(found, Together(root)))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({each.folder for each in sent}) == 1
    assert [each.reused for each in sent] == [False, False]
    assert len(contents(sent[0])) == 5
    assert beside(root) == []


def test_a_root_that_can_not_be_written_is_named(send: Send, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SyncError, match="The snapshot can't be made") as caught:
        send(target=LocalTarget(PurePosixPath(tmp_path, "file")))
    assert str(tmp_path / "file") in caught.value.where
    assert "quota" in caught.value.advice


def test_without_rsync_the_error_names_the_package(
    project: Path, root: PurePosixPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    rsync.program.cache_clear()
    with pytest.raises(SyncError, match="not installed here") as caught:
        send_snapshot(listed(project), target=LocalTarget(root), project_key="p", inline_bytes=-1)
    assert "apt install rsync" in caught.value.advice
    (tools / "rsync").write_text("#!/bin/sh\necho 'openrsync: protocol version 29'\n")
    (tools / "rsync").chmod(0o755)
    with pytest.raises(SyncError, match="openrsync"):
        send_snapshot(listed(project), target=LocalTarget(root), project_key="p", inline_bytes=-1)
    small = send_snapshot(listed(project), target=LocalTarget(root), project_key="p")
    assert small.files, "what is small travels without"
