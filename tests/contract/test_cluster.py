"""What blocks/cluster.py promises, asked of every kind of cluster. A new kind is one line in kinds.py."""

import contextlib
import json
import os
import threading
import time

import pytest

from contract.kinds import KINDS, Lab
from slurm_ray_flow import SlurmRayFlowError
from slurm_ray_flow.blocks.cluster import recorded
from slurm_ray_flow.core.launch_events import streamed_to
from slurm_ray_flow.core.run import RunPaths, find_event
from slurm_ray_flow.core.snapshot import manifest
from support import Noting, wait_for

ODD = ("it's; rm -rf $HOME", "two  spaces", "größe-名", "`touch x`", "new\nline", "x" * 150)


@pytest.fixture
def place(cluster):
    return cluster.root_folder / "runs" / "some"


def _double(number):
    return 2 * number


def _wait(seconds):
    import time

    time.sleep(seconds)


# ---- what it is


def test_it_says_what_it_is(cluster):
    facts = cluster.facts()
    assert facts.cpus >= 1
    assert facts.nodes >= 1
    assert facts.memory > 2**28
    assert facts.platform.startswith(f"cp{facts.version.replace('.', '')}-")
    assert cluster.kind in KINDS
    assert cluster.label
    assert cluster.root_folder.is_absolute()


def test_a_copy_with_another_root_is_another_place(cluster, kind):
    assert cluster.root_folder == kind.folder / "root"
    copied = cluster.model_copy(update={"root": type(cluster.root)(kind.folder / "other")})
    assert copied.prepare().is_relative_to(kind.folder / "other")
    assert cluster.root_folder == kind.folder / "root"


# ---- files


def test_a_file_is_read_from_an_offset(cluster, place):
    assert cluster.read(place / "log") == b""
    cluster.write(place / "log", b"0123456789")
    assert cluster.read(place / "log", 7) == b"789"
    assert cluster.read(place / "log", 10) == b""
    assert cluster.read(place / "log", 99) == b""


def test_files_are_watched_until_one_of_them_grows(cluster, place):
    cluster.write(place / "log", b"0123")
    began = time.monotonic()
    assert cluster.watch([(place / "none", 0), (place / "log", 1)], 60) == [b"", b"123"]
    assert cluster.watch([(place / "none", 0), (place / "log", 4)], 0.2) == [b"", b""]
    writing = threading.Timer(0.3, cluster.write, (place / "none", b"new"))
    writing.start()
    assert cluster.watch([(place / "none", 0), (place / "log", 4)], 60) == [b"new", b""]
    writing.join()
    assert time.monotonic() - began < 30


def test_a_large_file_is_read_in_pieces(cluster, place):
    data = os.urandom(3 * 2**20 + 17)
    cluster.write(place / "log", data)
    found = b""
    while piece := cluster.read(place / "log", len(found)):
        found += piece
    assert found == data


def test_a_file_is_written_whole_and_privately(cluster, place):
    cluster.write(place / "file", b"old")
    cluster.write(place / "file", b"new")
    assert cluster.read(place / "file") == b"new"
    assert list(cluster.names(place)) == ["file"]


def test_a_file_goes_there_and_comes_back(cluster, place, tmp_path):
    source = tmp_path / "source"
    for data in (os.urandom(100_000), b"", b"again"):
        source.unlink(missing_ok=True)
        source.write_bytes(data)
        cluster.place({place / "deep" / "file": source, place / "other": b"small"})
        with cluster.fetched(place / "deep" / "file", len(data)) as file:
            assert file.read_bytes() == data
        assert cluster.read(place / "other") == b"small"


def test_names_are_sorted_and_none_where_there_is_no_folder(cluster, place):
    assert list(cluster.names(place)) == []
    for name in ("b", "a", ".hidden"):
        cluster.write(place / name, b"")
    assert list(cluster.names(place)) == [".hidden", "a", "b"]
    assert list(cluster.names(place / "a")) == []


def test_announcing_into_a_closed_inbox_says_so(cluster, place):
    assert cluster.announce(place / "inbox" / "x") is False
    cluster.write(place / "inbox" / "other", b"")
    assert cluster.announce(place / "inbox" / "x") is True
    assert cluster.announce(place / "inbox" / "x") is True
    assert "x" in cluster.names(place / "inbox")


def test_removing_what_is_not_there_is_no_error(cluster, place):
    cluster.write(place / "file", b"")
    cluster.remove(place / "file")
    cluster.remove(place / "file")
    assert cluster.names(place) == []


# ---- snapshots and environments


def test_a_snapshot_is_sent_once(cluster, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "module.py").write_text("VALUE = 1")
    files = manifest([], project=project, working_directory=project, include=["*.py"], search_path=[str(project)])
    first, second = (cluster.send(files, "key") for _ in range(2))
    assert (first.reused, first.files) == (False, 1)
    assert (second.reused, second.files) == (True, 0)
    assert first.folder == second.folder
    entry = next(entry.place for entry in files.entries if entry.place.endswith("module.py"))
    assert cluster.read(first.folder / entry) == b"VALUE = 1"


def test_an_environment_is_listed_when_it_is_whole(cluster):
    assert list(cluster.environments()) == []
    shown = Noting()
    spec = {
        "root": str(cluster.root_folder), "digest": "d" * 20, "python": cluster.facts().python,
        "version": cluster.facts().version, "requirements": [], "constraints": [], "options": [],
    }  # fmt: skip
    with streamed_to(shown):
        cluster.build(spec)
    (held,) = cluster.environments()
    assert held.digest == "d" * 20
    assert shown.said
    with pytest.raises(SlurmRayFlowError, match="no-such-package"):
        cluster.build({**spec, "digest": "e" * 20, "requirements": ["no-such-package"], "options": ["--no-index"]})
    assert [held.digest for held in cluster.environments()] == ["d" * 20]


# ---- runs


def test_a_run_lives_ends_and_leaves_its_value(lab, cluster):
    paths = lab.start("one", _double, 21)
    assert cluster.scheduler or lab.event(paths, "allocated")
    assert lab.value(paths) == 42
    lab.gone(paths)


def test_cancelling_ends_exactly_one_of_two(lab, cluster):
    first, second = lab.start("first", _wait, 60), lab.start("second", _wait, 60)
    for paths in (first, second):
        wait_for(lambda paths=paths: lab.event(paths, "call_started"))
    lab.cancel(first)
    assert lab.ended(first)["cause"] == "cancelled"
    lab.gone(first)
    assert lab.lives(second)
    assert lab.event(second, "call_ended") is None


def test_an_id_that_was_used_is_refused_or_harmless(lab, cluster):
    paths = lab.start("twice", _double, 1)
    assert lab.value(paths) == 2
    lab.gone(paths)
    before = cluster.read(paths.events)
    with contextlib.suppress(SlurmRayFlowError):
        lab.start("twice", _double, 5, announce=False)
    assert cluster.read(paths.events) == before
    lab.gone(paths)
    assert lab.value(paths) == 2


@pytest.mark.parametrize("name", ODD)
def test_a_root_with_an_odd_name(kind, tmp_path, name):
    cluster = kind.make(kind.folder / name)
    if cluster.scheduler and not name.isprintable():
        pytest.skip("no option of sbatch can hold it; it is refused before anything is submitted")
    lab = Lab(cluster, kind, tmp_path)
    paths = lab.start("one", _double, 4)
    assert lab.value(paths) == 8
    lab.gone(paths)
    assert os.listdir(kind.seen(kind.folder)) == [name]
    assert os.listdir(kind.seen(kind.folder / name))


@pytest.mark.ray
def test_ray_starts_below_a_root_whose_path_is_too_long_for_a_socket(kind, tmp_path):
    cluster = kind.make(kind.folder / ("long-" * 20) / ("path-" * 20))
    lab = Lab(cluster, kind, tmp_path)
    paths = lab.start("one", _double, 4, ray=True)
    assert lab.value(paths) == 8
    lab.gone(paths)


def test_a_root_that_cannot_be_written_is_named(kind):
    kind.make(kind.folder).write(kind.folder / "file", b"no folder")
    cluster = kind.make(kind.folder / "file" / "root")
    with pytest.raises(SlurmRayFlowError, match=str(kind.folder / "file")):
        cluster.prepare()


def test_a_head_that_never_was_is_not_alive(cluster):
    never = {"event": "allocated", "time": 0.0, "pid": 2**22 + 1, "started": 1, "boot_id": "x"}
    wait_for(lambda: not cluster.life(RunPaths(cluster.root_folder, "never"), [never]).alive)


@pytest.mark.parametrize("kind", ["ssh-server"], indirect=True)
def test_a_head_on_another_host_that_ssh_leads_to_is_waited_for_until_it_says_its_end(cluster):
    paths, here = RunPaths(cluster.root_folder, "elsewhere"), cluster.facts().host
    head = {"event": "allocated", "time": 0.0, "pid": 2**22 + 1, "started": 1, "boot_id": "x", "host": "login2"}
    life = cluster.life(paths, [head])
    assert life.alive
    assert "login2" in life.waiting
    assert not cluster.life(paths, [head, {"event": "released", "time": 1.0}]).alive
    assert not cluster.life(paths, [{**head, "host": here}]).alive, "this host was started again"


def test_what_stands_behind_many_events_is_seen(cluster, place):
    cluster.prepare()
    waits = json.dumps({"event": "waiting", "time": 0, "host": "h", "ahead": 1, "holder": "x" * 1000})
    cluster.write(
        place / "events.jsonl", f"{waits}\n".encode() * 3000 + b'{"event": "call_ended", "outcome": "value"}\n'
    )
    events = recorded(cluster, place / "events.jsonl")
    assert len(events) == 3001
    assert find_event(events, "call_ended")
