"""The files beside the modules of packages: which of them a snapshot holds, and what stays at home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from scan_lab import Make, scanned
from slurm_ray_flow.core.snapshot import Hashes, Manifest, manifest
from support import as_somebody_without_rights

MIB = 1024**2


def sent(
    folder: Path,
    *path: Path,
    include: tuple[str, ...] = (),
    limit: int = 50 * MIB,
    forced: tuple[str, ...] = (),
    hashes: Hashes | None = None,
) -> Manifest:
    """What travels for module `main` of a folder."""
    found = scanned(folder, *path)
    return manifest(
        found.files,
        project=folder,
        working_directory=folder,
        include=include,
        packages=found.packages,
        package_data=limit,
        tracked=forced,
        search_path=[str(entry) for entry in path or (folder,)],
        hashes=hashes,
    )


def places(found: Manifest) -> set[str]:
    return {entry.place.removeprefix("project/") for entry in found.entries}


def left(found: Manifest) -> dict[str, str]:
    return {one.file: one.why for one in found.left}


def test_all_that_lies_in_a_package_travels_but_for_modules_that_nobody_imports_and_caches(
    tmp_path: Path, write: Make
) -> None:
    write("main.py", "import lab.load\n")
    names = ["lab/__init__.py", "lab/load.py", "lab/constants.json", "lab/native.so", "lab/load.pyi", "lab/py.typed"]
    names += ["lab/templates/page.html", "lab/templates/job.py", "lab/tests/case.csv"]
    for name in [
        *names,
        "lab/unused.py",
        "lab/tests/__init__.py",
        "lab/tests/test_unused.py",
        "beside.csv",
        "data/more.csv",
    ]:
        write(name)
    for name in ["__pycache__/load.pyc", "load.pyc", "node_modules/a.js", ".git/index", ".ipynb_checkpoints/a.ipynb"]:
        write(f"lab/{name}")
    write("lab/.venv/pyvenv.cfg")
    write("lab/.venv/lib/big.txt")
    found = sent(tmp_path)
    assert places(found) == {"main.py", *names}
    assert (found.left, found.findings) == ((), ())
    assert found.path == ("project",)


def test_a_namespace_brings_its_own_files_and_the_packages_in_it_that_are_imported(tmp_path: Path, write: Make) -> None:
    write("main.py", "import acme.lab.load, scripts.helper, bare\n")
    names = ["acme/about.txt", "acme/lab/__init__.py", "acme/lab/load.py", "acme/lab/x.json", "acme/data/y.json"]
    names += ["scripts/helper.py", "scripts/settings.yaml", "scripts/deep/more.yaml", "bare/z.csv"]
    for name in [*names, "acme/other/__init__.py", "acme/other/big.bin", "acme/tool.py", "scripts/deep/other.py"]:
        write(name)
    assert places(sent(tmp_path)) == {"main.py", *names}


def test_a_script_s_folder_is_no_package(tmp_path: Path, write: Make) -> None:
    write("main.py", "import helper\n")
    write("helper.py", "open('data.csv')\n")
    write("data.csv")
    assert places(sent(tmp_path)) == {"main.py", "helper.py"}


def test_packages_in_a_src_folder_and_outside_of_the_project_have_their_own_places(tmp_path: Path, write: Make) -> None:
    write("project/src/main.py", "import mine, other\n")
    for name in ["project/src/mine/__init__.py", "project/src/mine/a.json", "else/other/__init__.py", "else/other/b"]:
        write(name)
    write("else/beside.txt")
    found = scanned(tmp_path / "project" / "src", tmp_path / "project" / "src", tmp_path / "else")
    paths = manifest(
        found.files,
        project=tmp_path / "project",
        working_directory=tmp_path / "project",
        packages=found.packages,
        package_data=MIB,
        search_path=[str(tmp_path / "project" / "src"), str(tmp_path / "else")],
    )
    inside = {"project/src/main.py", "project/src/mine/__init__.py", "project/src/mine/a.json"}
    assert {entry.place for entry in paths.entries} == {*inside, "outside/0/other/__init__.py", "outside/0/other/b"}
    assert paths.path == ("project/src", "outside/0")


def test_what_gitignore_names_stays_at_home_unless_git_tracks_it(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lab\n")
    for name in ["__init__.py", "a.json", "b.csv", "kept.csv", "raw/c.txt", "raw/d.txt", "deep/e.tmp", "deep/f.txt"]:
        write(f"lab/{name}", "x")
    write(".gitignore", "*.csv\nraw/\n")
    write("lab/deep/.gitignore", "*.tmp\n")
    without = sent(tmp_path)
    assert places(without) == {"main.py", "lab/__init__.py", "lab/a.json", "lab/deep/f.txt", "lab/deep/.gitignore"}
    ignored = {"lab/b.csv", "lab/kept.csv", "lab/raw/", "lab/deep/e.tmp"}
    assert (set(left(without)), without.findings) == (ignored, ())
    forced = tuple(str(tmp_path / name) for name in ("lab/kept.csv", "lab/raw/c.txt"))
    within = sent(tmp_path, forced=forced)
    assert places(within) == {*places(without), "lab/kept.csv", "lab/raw/c.txt"}
    assert set(left(within)) == {"lab/b.csv", "lab/raw/d.txt", "lab/deep/e.tmp"}


def test_the_smallest_files_travel_up_to_the_limit_and_the_rest_is_told(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lab, other\n")
    sizes = {"lab/a.bin": 3000, "lab/empty": 0, "lab/z.bin": 10, "other/b.bin": 2000, "other/c.bin": 3000}
    for name, size in {**sizes, "lab/__init__.py": 9999, "other/__init__.py": 0}.items():
        write(name, b"x" * size)
    code = {"main.py", "lab/__init__.py", "other/__init__.py"}
    found = sent(tmp_path, limit=5010)
    assert places(found) == {*code, "lab/empty", "lab/z.bin", "other/b.bin", "lab/a.bin"}
    ((name, size, why),) = found.left
    assert (name, size) == ("other/c.bin", 3000)
    assert "package_data" in why
    (told,) = found.findings
    assert "other/c.bin" in told and "include=" in told and 'package_data="7.9K"' in told
    assert sent(tmp_path, limit=8010).left == ()
    assert places(sent(tmp_path, limit=1)) == {*code, "lab/empty"}
    assert places(sent(tmp_path, limit=0)) == code
    write(".gitignore", "raw/\n*.log\n")
    write("lab/raw/x.csv")
    write("lab/x.log")
    asked = sent(tmp_path, limit=5010, include=("other/c.bin", "lab/raw", "lab/x.log"))
    assert (asked.left, asked.findings) == ((), ())
    assert "other/c.bin" in places(asked)


def test_links_inside_of_the_project_are_kept_and_those_out_of_it_left_and_told(tmp_path: Path, write: Make) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    write("project/main.py", "import lab\n")
    for name in ["lab/__init__.py", "lab/v1.bin", "data/x.csv", "data/deep/y.csv", "one.txt", "data/ignored.log"]:
        write(f"project/{name}", "x" * 100)
    write("project/.gitignore", "*.log\n")
    write("elsewhere/secret")
    links = {"latest.bin": "v1.bin", "data": "../data", "one.txt": "../one.txt", "here": ".", "gone": "nothing"}
    for name, target in {**links, "out": str(elsewhere), "secret": str(elsewhere / "secret"), "loop": "loop"}.items():
        (project / "lab" / name).symlink_to(target)
    found = sent(project, project, limit=400)
    kept = {"lab/latest.bin", "lab/data", "lab/one.txt", "lab/here"}
    files = {"lab/v1.bin", "data/x.csv", "data/deep/y.csv", "one.txt"}
    assert places(found) == {"main.py", "lab/__init__.py", *kept, *files}
    assert {entry.place.removeprefix("project/") for entry in found.entries if entry.link is not None} == kept
    assert left(found).keys() == {"lab/out", "lab/secret", "lab/gone", "lab/loop", "data/ignored.log"}
    assert len(found.findings) == 1


def test_a_package_that_a_link_brings_from_elsewhere_has_its_data(tmp_path: Path, write: Make) -> None:
    project = tmp_path / "project"
    write("project/main.py", "import lab\n")
    write("elsewhere/lab/__init__.py")
    write("elsewhere/lab/x.json", "x")
    (tmp_path / "elsewhere/lab/same.json").symlink_to("x.json")
    (tmp_path / "elsewhere/lab/out").symlink_to(project / "main.py")
    (project / "lab").symlink_to(tmp_path / "elsewhere" / "lab")
    found = sent(project, project)
    assert places(found) == {"main.py", "lab/__init__.py", "lab/x.json", "lab/same.json"}
    assert [entry.place for entry in found.entries if entry.link is not None] == []
    assert len(found.left) == 1


def test_what_can_not_be_read_is_left_and_told() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: another user can't get there
        project = Path(name)
        project.chmod(0o755)
        (project / "lab" / "closed").mkdir(parents=True)
        (project / "main.py").write_text("import lab\n")
        for file in ("__init__.py", "x.json"):
            (project / "lab" / file).touch()
        (project / "lab" / "secret.json").touch(0o000)
        os.mkfifo(project / "lab" / "pipe")
        (project / "lab" / "closed").chmod(0o000)
        with as_somebody_without_rights():
            found = sent(project, project)
        (project / "lab" / "closed").chmod(0o700)
    assert places(found) == {"main.py", "lab/__init__.py", "lab/x.json"}
    assert left(found).keys() == {"lab/secret.json", "lab/closed/", "lab/pipe"}
    assert "Permission denied" in left(found)["lab/secret.json"]


def test_names_of_any_bytes_executable_bits_and_long_names_travel(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lab\n")
    write("lab/__init__.py")
    run = write("lab/run.sh")
    run.chmod(0o755)
    long = "n" * 255
    write(f"lab/{long}")
    odd = os.fsdecode(b"latin-\xe9.csv")
    try:
        write(f"lab/{odd}")
    except OSError:
        pytest.skip("this file system refuses such names")
    found = sent(tmp_path)
    assert places(found) == {"main.py", "lab/__init__.py", "lab/run.sh", f"lab/{long}", f"lab/{odd}"}
    assert [entry.record.split()[1] for entry in found.entries if entry.mode & 0o111] == ["x"]
    printable = sent(tmp_path, limit=-1).findings
    assert printable[0].encode("utf-8")


def test_data_that_changes_makes_another_snapshot_and_what_stays_at_home_does_not(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lab\n")
    write("lab/__init__.py")
    write("lab/x.json", "1")
    write("lab/y.log", "1")
    write("lab/unused.py", "1")
    write(".gitignore", "*.log\n")
    first = sent(tmp_path).digest
    write("lab/y.log", "2")
    write("lab/unused.py", "2")
    assert sent(tmp_path).digest == first
    write("lab/x.json", "2")
    second = sent(tmp_path).digest
    write("lab/z.json")
    assert len({first, second, sent(tmp_path).digest}) == 3


def test_data_that_was_not_touched_is_not_read_again(tmp_path: Path, write: Make) -> None:
    write("main.py", "import lab\n")
    write("lab/__init__.py")
    data = write("lab/x.json", "1")
    status = data.stat()
    hashes: Hashes = {str(data): (status.st_mtime_ns, status.st_ctime_ns, 1, status.st_ino, "known")}
    assert "known" in {entry.sha256 for entry in sent(tmp_path, hashes=hashes).entries}
