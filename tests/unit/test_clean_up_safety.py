"""What a clean-up must leave alone: links that lead out, other users' files, what somebody has come to use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_ray_flow.remote.agent.operations import perform
from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.shared import processes, tree
from slurm_ray_flow.remote.shared.leftovers import OWNER
from slurm_ray_flow.remote.shared.protocol import OperationError
from slurm_ray_flow.remote.upkeep import clean_up, stale_files

DAY = 86400.0
NOTHING = {"ages": {}, "launching": [], "kept": []}
STRANGER = 12001
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def age(root: Path, days: float = 60) -> None:
    then = time.time() - days * DAY
    for path in [*root.rglob("*"), root]:
        os.utime(path, (then, then), follow_symlinks=False)


def lay(root: Path, *places: str) -> None:
    """Old files; a place that ends in "/" is a folder."""
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if place.endswith("/") else path.write_bytes(b"x" * 5000)
    age(root)


def cleaned(root: Path, days: float = 30, known: dict[str, Any] | None = None, run: str = "") -> list[str]:
    """The first places of what went."""
    asked = {"root": str(root), "seconds": days * DAY, "known": known or NOTHING, "run": run}
    found = perform("clean_up.find", asked)
    names = [thing["name"] for thing in found["things"] if not thing["base"]]
    stayed = perform("clean_up.remove", {**asked, "places": names})["stayed"]
    assert perform("clean_up.remove", {**asked, "places": names})["stayed"] == stayed, "twice is as good as once"
    return [name for name in names if name not in stayed]


def findings(root: Path) -> list[str]:
    found: list[str] = perform("clean_up.find", {"root": str(root), "seconds": DAY, "known": NOTHING})["findings"]
    return found


EVERYTHING = (
    "runs/r/log.txt",
    "runs/r.2/log.txt",
    "snapshots/p/aa/src/m.py",
    "snapshots/p/aa.list",
    "environments/0123/whole.json",
    "environments/0123/bin/python",
    "wheelhouses/0123/a.whl",
    "tools/0123456789abcdef/slurm_ray_flow/__init__.py",
    "tools/uv/0.9.1/uv",
    "cache/values/k.json",
    "store/ab/cdef",
    "runs/.r9.abcd.expired/log.txt",
    "snapshots/p/.bb.random/src/m.py",
)


def test_all_that_is_old_goes_and_the_newest_uv_stays(tmp_path: Path) -> None:
    lay(tmp_path, *EVERYTHING, "tools/uv/0.9.2/uv", "tools/mine", "notes.txt")
    os.utime(tmp_path / "tools/uv/0.9.2", (1e9, 1.5e9))
    os.utime(tmp_path / "tools/uv/0.9.1", (1e9, 1e9))
    gone = cleaned(tmp_path)
    assert {name.partition("/")[0] for name in gone} == {place.partition("/")[0] for place in EVERYTHING}
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"tools/uv/0.9.2/uv", "tools/mine", "notes.txt"}


def test_nothing_younger_than_a_day_goes_whatever_is_asked(tmp_path: Path) -> None:
    lay(tmp_path, *EVERYTHING)
    age(tmp_path, days=0.9)
    assert [name for name in cleaned(tmp_path, days=0.001) if ".expired" not in name] == []


@pytest.mark.parametrize("folder", ["runs", "environments", "snapshots", "store", "tools/uv", "cache"])
def test_a_link_that_was_planted_leads_nowhere(tmp_path: Path, folder: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    lay(outside, "a/whole.json", "aa.list", "aa/precious", "x/y/precious")
    (root / folder).parent.mkdir(parents=True)
    (root / folder).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    assert cleaned(root) == []
    assert sorted(outside.rglob("*")) == before


def test_a_link_among_old_things_goes_itself(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    lay(outside, "precious")
    lay(root, "runs/r/log.txt", "environments/0123/whole.json")
    (root / "runs/r/link").symlink_to(outside)
    (root / "runs/q").symlink_to(outside)
    (root / "environments/0123/lib").symlink_to(outside)
    age(root)
    assert sorted(cleaned(root)) == ["environments/0123", "runs/q", "runs/r"]
    assert (outside / "precious").exists()


@needs_root
def test_another_users_files_stay_with_all_around_them(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/deep/theirs", "runs/q/log.txt", "runs/s/log.txt")
    os.chown(tmp_path / "runs/r/deep/theirs", STRANGER, STRANGER)
    os.chown(tmp_path / "runs/q", STRANGER, STRANGER)
    assert cleaned(tmp_path) == ["runs/s"]
    assert (tmp_path / "runs/r/deep/theirs").exists() and (tmp_path / "runs/q/log.txt").exists()
    assert any("another user" in text for text in findings(tmp_path))


@needs_root
def test_a_root_of_another_user_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/log.txt")
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(OperationError, match="another user"):
        cleaned(tmp_path)


def test_no_place_but_what_was_found_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    lay(root, "runs/r/log.txt")
    (tmp_path / "precious").write_text("")
    places = ["../precious", str(tmp_path / "precious"), "runs/../../precious", "runs"]
    perform("clean_up.remove", {"root": str(root), "seconds": DAY, "known": NOTHING, "places": places})
    assert (tmp_path / "precious").exists() and (root / "runs/r/log.txt").exists()


def head(root: Path, run_id: str, pid: int, needs: str) -> None:
    """A run whose head is this process."""
    noted = {"pid": pid, "started": processes.started(pid), "boot_id": processes.boot_id(), "host": os.uname().nodename}
    folder = root / "runs" / run_id
    (folder / "spec.json").write_text(json.dumps({"python": f"{root}/{needs}/bin/python"}))
    (folder / "events.jsonl").write_text(json.dumps({"event": "allocated", **noted}) + "\n")


def test_what_a_living_head_needs_stays_until_it_is_dead(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/log.txt", "environments/0123/whole.json", "environments/4567/whole.json", "warm/w/r")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    head(tmp_path, "r", sleeper.pid, "environments/0123")
    age(tmp_path)
    assert cleaned(tmp_path) == ["environments/4567"]
    with pytest.raises(OperationError, match="lives"):
        cleaned(tmp_path, run="r")
    sleeper.communicate(b"\n")
    assert sorted(cleaned(tmp_path)) == ["environments/0123", "runs/r", "warm/w/r"]


def test_a_process_that_works_in_a_snapshot_keeps_it(tmp_path: Path) -> None:
    lay(tmp_path, "snapshots/p/aa/src/m.py", "snapshots/p/aa.list", "snapshots/p/bb/m.py", "snapshots/p/bb.list")
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    sleeper = subprocess.Popen(command, cwd=tmp_path / "snapshots/p/aa/src", **pipes)  # type: ignore[call-overload]
    sleeper.stdout.readline()
    assert cleaned(tmp_path) == ["snapshots/p/bb"]
    sleeper.communicate(b"\n")
    assert cleaned(tmp_path) == ["snapshots/p/aa"]


def test_a_head_on_another_host_of_the_same_root_counts_as_alive(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/log.txt")
    noted = {"event": "allocated", "pid": 1, "started": 0, "boot_id": "another", "host": "another"}
    (tmp_path / "runs/r/events.jsonl").write_text(json.dumps(noted) + "\n")
    age(tmp_path)
    assert cleaned(tmp_path) == []
    age(tmp_path, days=100)
    assert cleaned(tmp_path) == ["runs/r"]


@pytest.mark.parametrize("elsewhere", [{"namespace": "pid:[1]"}, {"boot_id": "another", "host": "another"}])
def test_what_a_process_works_in_that_can_not_be_seen_stays_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, str]
) -> None:
    """In another container, or on another host of the same disks, its number means nothing here."""
    lay(tmp_path, "root/runs/r/log.txt", "srf-folder/session", f"{installation.PREFIX}folder/environment/bin/python")
    gone = {**processes.this(), "pid": 2**22 + 1, **elsewhere}
    (tmp_path / "root/runs/r/events.jsonl").write_text(json.dumps({"event": "allocated", **gone}) + "\n")
    for name in ("srf-folder", f"{installation.PREFIX}folder"):
        (tmp_path / name / OWNER).write_text(json.dumps(gone))
    monkeypatch.setattr(stale_files, "temporary_folders", lambda: [str(tmp_path)])
    age(tmp_path)
    assert cleaned(tmp_path / "root") == []
    assert [one.alive for one in stale_files.node_folders()] == [True, True]
    with pytest.raises(OperationError, match="lives"):
        cleaned(tmp_path / "root", run="r")
    age(tmp_path, days=100)
    assert cleaned(tmp_path / "root") == ["runs/r"]
    assert [one.alive for one in stale_files.node_folders()] == [None, None]


def test_what_a_process_of_before_the_last_boot_had_goes(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/log.txt")
    (tmp_path / "runs/r/events.jsonl").write_text(
        json.dumps({"event": "allocated", **processes.this(), "boot_id": "before"}) + "\n"
    )
    lay(tmp_path, "runs/damaged/log.txt")
    (tmp_path / "runs/damaged/events.jsonl").write_text(
        json.dumps({"event": "allocated", "boot_id": processes.boot_id()}) + "\n"
    )
    age(tmp_path)
    assert sorted(cleaned(tmp_path)) == ["runs/damaged", "runs/r"]


def test_a_kept_run_goes_by_hand_alone(tmp_path: Path) -> None:
    lay(tmp_path, "runs/kept/log.txt", "runs/known/log.txt", "runs/young/log.txt")
    (tmp_path / "runs/kept/spec.json").write_text('{"keep": true}')
    age(tmp_path)
    assert cleaned(tmp_path, known={"ages": {"young": 60.0}, "launching": [], "kept": ["known"]}) == []
    assert cleaned(tmp_path, run="kept") == ["runs/kept"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["known", "young"]


def test_who_comes_to_use_a_thing_between_finding_and_removing_keeps_it(tmp_path: Path) -> None:
    lay(tmp_path, "environments/0123/whole.json")
    asked = {"root": str(tmp_path), "seconds": DAY, "known": NOTHING}
    (thing,) = (thing for thing in perform("clean_up.find", asked)["things"] if not thing["base"])
    perform("environments.held", {"root": str(tmp_path), "using": "0123"})
    stayed = perform("clean_up.remove", {**asked, "places": [thing["name"]]})["stayed"]
    assert list(stayed) == ["environments/0123"]
    assert (tmp_path / "environments/0123/whole.json").exists()


def test_who_comes_in_the_moment_of_renaming_gets_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch touches a listing after the clean-up has looked at it, and before it has renamed it."""
    lay(tmp_path, "snapshots/p/aa/src/m.py", "snapshots/p/aa.list")
    aside = tree.set_aside

    def touched_first(base: str, place: str) -> str:
        if place.endswith(".list"):
            os.utime(os.path.join(base, place))
        return aside(base, place)

    monkeypatch.setattr(clean_up.tree, "set_aside", touched_first)
    assert cleaned(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "snapshots/p").iterdir()) == ["aa", "aa.list"]


def test_two_clean_ups_at_once_remove_each_thing_once(tmp_path: Path) -> None:
    lay(tmp_path, *(f"runs/r{number}/{file}" for number in range(30) for file in ("log.txt", "spec.json")))
    code = (
        "import json, sys; from slurm_ray_flow.remote.agent.operations import perform\n"
        "asked = json.loads(sys.argv[1]); found = perform('clean_up.find', asked)\n"
        "names = [thing['name'] for thing in found['things'] if not thing['base']]\n"
        "print(json.dumps(perform('clean_up.remove', {**asked, 'places': names})))"
    )
    asked = json.dumps({"root": str(tmp_path), "seconds": DAY, "known": NOTHING})
    both = [subprocess.Popen([sys.executable, "-c", code, asked], stdout=subprocess.PIPE) for _ in range(2)]
    answers = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    assert answers == [{"stayed": {}}, {"stayed": {}}]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_tree_too_deep_to_look_through_is_left_alone(tmp_path: Path) -> None:
    deep = tmp_path / "runs/r"
    deep.mkdir(parents=True)
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    lay(tmp_path / "other", "x")
    os.utime(deep, (1e9, 1e9))
    os.utime(deep / "d", (1e9, 1e9))
    assert cleaned(tmp_path) == []
    assert deep.exists()
    subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_each_name_of_a_file_counts_its_share(tmp_path: Path) -> None:
    lay(tmp_path, "runs/r/log.txt")
    os.link(tmp_path / "runs/r/log.txt", tmp_path / "kept.txt")
    sizes = [(tmp_path / name).stat().st_blocks * 512 for name in ("runs/r", "kept.txt")]
    assert tree.measure(str(tmp_path), "runs/r") == (sizes[0] + sizes[1] // 2, 2)
