"""What a snapshot holds: places, sys.path, digest, the cache of hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot import Hashes, Manifest, manifest, refreshed
from support import as_somebody_without_rights


@dataclass(frozen=True)
class Module:
    path: Path
    root: Path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)


def listed(
    project: Path, *modules: Module, search_path: tuple[Path, ...] = (), hashes: Hashes | None = None
) -> Manifest:
    return manifest(
        modules,
        project=project,
        working_directory=project,
        search_path=[str(entry) for entry in search_path],
        hashes=hashes,
    )


def places(found: Manifest) -> list[str]:
    return [entry.place for entry in found.entries]


def test_files_of_the_project_keep_their_place_and_roots_outside_are_numbered_as_on_sys_path(project: Path) -> None:
    sibling, editable = project.parent / "sibling", project.parent / "editable" / "src"
    write(project, src__a="1", main="2")
    write(sibling, helper="3")
    write(editable, tool__inner="4")
    found = listed(
        project,
        Module(editable / "tool" / "inner.py", editable),
        Module(sibling / "helper.py", sibling),
        Module(project / "main.py", project),
        Module(project / "src" / "a.py", project / "src"),
        search_path=(project / "src", sibling, project, editable),
    )
    assert places(found) == ["outside/0/helper.py", "outside/1/tool/inner.py", "project/main.py", "project/src/a.py"]
    assert found.path == ("project/src", "outside/0", "project", "outside/1")


def test_a_module_that_is_imported_from_above_the_project_keeps_the_name_of_the_project(project: Path) -> None:
    write(project, a="1")
    found = listed(project, Module(project / "a.py", project.parent))
    assert places(found) == ["outside/0/project/a.py"]
    assert found.path == ("outside/0",)


def test_a_function_without_modules_has_an_empty_snapshot_with_a_folder_to_run_in(project: Path) -> None:
    found = listed(project)
    assert (found.entries, found.total_bytes, found.folders) == ((), 0, ("project",))
    assert found.digest == hashlib.sha256(found.listing).hexdigest()


@pytest.mark.parametrize(("inside", "place"), [("deep/er", "project/deep/er"), ("..", "project")])
def test_the_function_runs_where_the_user_is_if_that_is_in_the_project(project: Path, inside: str, place: str) -> None:
    (project / "deep" / "er").mkdir(parents=True)
    found = manifest([], project=project, working_directory=project / inside)
    assert found.working_directory == place
    assert place in found.folders


def test_the_digest_does_not_see_times_but_contents_names_executable_bits_and_links(project: Path) -> None:
    write(project, a="1", b="2")
    digests = []

    def look() -> str:
        digests.append(manifest([], project=project, working_directory=project, include=["."]).digest)
        return digests[-1]

    first = look()
    os.utime(project / "a.py", (1, 1))
    (project / "a.py").chmod(0o600)
    assert look() == first
    (project / "a.py").chmod(0o700)
    look()
    (project / "b.py").write_text("3")
    look()
    (project / "b.py").rename(project / "c.py")
    look()
    (project / "d.py").symlink_to("a.py")
    look()
    (project / "d.py").unlink()
    (project / "d.py").symlink_to("c.py")
    look()
    assert len(set(digests[1:])) == len(digests) - 1


def test_two_projects_whose_names_and_contents_only_look_alike_when_joined_differ(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    sha = hashlib.sha256(b"").hexdigest()
    for folder, names in ((one, [f"a\n{sha} f project", "b"]), (two, ["a", "b"])):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    digests = {manifest([], project=each, working_directory=each, include=["."]).digest for each in (one, two)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    "name", [b"new\nline.py", b"quote'\".py", b"two  spaces .py", b"100%41.py", b"latin-\xe9.py", b"-n"]
)
def test_names_of_any_bytes_are_listed(project: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(os.fsencode(project) + b"/" + name)).write_text("1")
    except OSError:
        pytest.skip("this file system refuses such names")
    found = manifest([], project=project, working_directory=project, include=["."])
    assert [os.fsencode(entry.place) for entry in found.entries] == [b"project/" + name]
    assert found.listing.count(b"\n") == 2
    assert found.entries[0].source.read_text() == "1"


def test_a_file_that_was_not_touched_is_not_read_again(project: Path) -> None:
    old = Path(os.__file__)  # change times can't be set, and only what is some seconds old is remembered
    hashes: Hashes = {}
    listed(project, Module(old, old.parent), hashes=hashes)
    ((file, stamp),) = hashes.items()
    assert stamp[4] == hashlib.sha256(old.read_bytes()).hexdigest()
    hashes[file] = (*stamp[:4], "known")
    assert listed(project, Module(old, old.parent), hashes=hashes).entries[0].sha256 == "known"


def test_an_edit_of_the_same_size_and_time_is_seen(project: Path) -> None:
    write(project, a="1")
    file = project / "a.py"
    before = file.stat()
    # As a cache would have it from before the edit: all is the same but the time of change, which nobody can set.
    stamp = (before.st_mtime_ns, before.st_ctime_ns - 1, before.st_size, before.st_ino)
    hashes: Hashes = {str(file): (*stamp, hashlib.sha256(b"0").hexdigest())}
    assert listed(project, Module(file, project), hashes=hashes).entries[0].sha256 == hashlib.sha256(b"1").hexdigest()


def test_what_was_just_written_is_not_remembered_because_clocks_of_file_systems_are_coarse(project: Path) -> None:
    write(project, a="1")
    hashes: Hashes = {}
    listed(project, Module(project / "a.py", project), hashes=hashes)
    assert hashes == {}


def test_an_imported_module_that_gitignore_names_is_sent_and_said(project: Path) -> None:
    write(project, generated__schema="1", b="2")
    (project / ".gitignore").write_text("generated/\n")
    found = listed(project, Module(project / "generated" / "schema.py", project), Module(project / "b.py", project))
    assert places(found) == ["project/b.py", "project/generated/schema.py"]
    assert len(found.findings) == 1
    assert "schema.py" in found.findings[0]


def test_a_module_that_is_gone_since_the_scan_is_named(project: Path) -> None:
    with pytest.raises(SyncError, match=r"gone\.py can't be read: No such file"):
        listed(project, Module(project / "gone.py", project))


def test_a_refreshed_manifest_has_the_new_content_and_another_digest(project: Path) -> None:
    write(project, a="1", b="2")
    found = listed(project, Module(project / "a.py", project), Module(project / "b.py", project))
    (project / "a.py").write_text("changed")
    again = refreshed(found, {"project/a.py"})
    assert [entry.size for entry in again.entries] == [7, 1]
    assert again.digest != found.digest
    (project / "a.py").unlink()
    with pytest.raises(SyncError, match=r"a\.py can't be read"):
        refreshed(found, {"project/a.py"})


@pytest.mark.parametrize(
    ("include", "mode"), [("secret.txt", "(----------)"), (".", "(d---------)"), ("closed", "(d---------)")]
)
def test_what_can_not_be_read_is_named_with_its_mode(include: str, mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: another user can't get there
        project = Path(folder)
        project.chmod(0o755)
        (project / "secret.txt").touch(0o000)
        (project / "closed").mkdir()
        (project / "closed").chmod(0o000)
        if include == ".":
            (project / "secret.txt").unlink()
        with as_somebody_without_rights(), pytest.raises(SyncError) as caught:
            manifest([], project=project, working_directory=project, include=[include])
        (project / "closed").chmod(0o700)
    assert "Permission denied" in caught.value.what
    assert caught.value.where.endswith(mode)
    assert "chmod" in caught.value.advice
