"""Real heads with real Ray clusters."""

import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from remote_lab import nothing_left, processes_of, until
from slurm_ray_flow.core.run import error_of
from slurm_ray_flow.remote.head.ray_cluster import RayCluster
from slurm_ray_flow.remote.shared import limits

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")]


def asks_a_worker():
    def call():
        import ray

        @ray.remote
        def where():
            import mine

            print("said by a worker")
            secret = os.environ["TOKEN"].encode()
            logs = [
                path for path in Path(os.environ["RAY_TMPDIR"]).rglob("*") if path.suffix in (".log", ".out", ".err")
            ]
            places = [path for path in (*Path("/proc").glob("[0-9]*/cmdline"), *logs) if path.exists()]
            assert logs
            shown = [str(place) for place in places if secret in place.read_bytes()]
            return mine.NAME, os.getcwd(), os.environ.get("COLOUR"), shown

        return ray.get(where.remote())

    return call


def spec_of(tmp_path, word):
    folder = tmp_path / word
    folder.mkdir()
    (folder / "mine.py").write_text(f"NAME = {word!r}")
    colours = {"environment_variables": {"COLOUR": word, "TOKEN": secrets.token_hex()}}
    return {"ray": True, "path": [str(folder)], "working_directory": str(folder), **colours}


def test_workers_see_the_files_of_their_own_call_and_their_prints_come_home(lab, name, tmp_path):
    first, second = spec_of(tmp_path, "red"), spec_of(tmp_path, "blue")
    lab.lay(name, asks_a_worker(), keep_warm=60, **first)
    lab.lay(name + "-2", asks_a_worker(), **second)
    lab.enter(name, name)
    head = lab.head(name)
    assert lab.wait_for(name, "call_ended")["outcome"] == "value", lab.events(name)
    lab.enter(name, name + "-2")
    assert lab.wait_for(name + "-2", "call_ended")["outcome"] == "value", lab.events(name + "-2")
    for run, word in ((name, "red"), (name + "-2", "blue")):
        assert lab.outcome(run)["value"] == (word, str(tmp_path / word), word, [])
        assert lab.log(run).count("said by a worker") == 1
    ready = lab.wait_for(name, "ray_ready")
    assert ready["address"].startswith("127.0.0.1:")
    head.terminate()
    assert lab.wait_for(name, "released")
    assert nothing_left(name)


def one_task():
    def call():
        import ray

        ray.init(num_cpus=1)

        @ray.remote
        def one():
            return 1

        return ray.get(one.remote())

    return call


def test_a_second_call_is_answered_at_once(lab, name, tmp_path):
    lab.lay(name, one_task(), ray=True, keep_warm=60, working_directory=str(tmp_path))
    lab.enter(name, name)
    lab.head(name)
    lab.wait_for(name, "call_ended")
    for attempt in range(1, 7):
        run, entered = f"{name}-{attempt}", time.monotonic() + attempt
        lab.lay(run, one_task(), working_directory=str(tmp_path))
        until(lambda entered=entered: time.monotonic() >= entered)  # the next driver boots meanwhile
        lab.enter(name, run)
        assert lab.wait_for(run, "call_ended")["outcome"] == "value"
        took = time.monotonic() - entered
        if took < 0.4:
            return
    pytest.fail(f"the last call still took {took:.2f} s")


def asks_workers_of_all_kinds():
    def call():
        import ray

        def told():
            import os
            import random
            import sys

            with open("/proc/self/oom_score_adj") as file:
                first_to_go = file.read().strip()
            with open(f"/proc/{os.getppid()}/cmdline") as file:
                forked = "ray_node.py" in file.read()
            known = "numpy" in sys.modules
            return os.getpid(), random.random(), forked, first_to_go, known, sys.flags.hash_randomization

        def abort():
            os.abort()

        alike = [ray.remote(num_cpus=0)(told).remote() for _ in range(3)]
        fixed = ray.remote(num_cpus=0, runtime_env={"env_vars": {"PYTHONHASHSEED": "0"}})(told)
        values = ray.get(alike), ray.get(fixed.remote())
        try:
            ray.get(ray.remote(num_cpus=0, max_retries=0)(abort).remote())
        except ray.exceptions.WorkerCrashedError:
            after = ray.get(ray.remote(num_cpus=0, runtime_env={"env_vars": {"NEW": "1"}})(told).remote())
        return (*values, after)

    return call


def test_workers_are_forks_where_that_makes_no_difference(lab, name, tmp_path):
    lab.lay(name, asks_workers_of_all_kinds(), ray=True, working_directory=str(tmp_path))
    lab.enter(name, name)
    lab.head(name)
    assert lab.wait_for(name, "call_ended")["outcome"] == "value", lab.events(name)
    alike, fixed, after = lab.outcome(name)["value"]
    assert all(forked for _, _, forked, *_ in alike)
    assert len({number for _, number, *_ in alike}) == len({pid for pid, *_ in alike})
    assert {(first_to_go, known) for *_, first_to_go, known, _ in alike} == {("1000", False)}
    assert (fixed[2], fixed[-1]) == (False, 0)  # what counts when Python starts, no fork can take on
    assert after[2] is False  # one has aborted, as Ray does where it can't be forked


def waits():
    def call():
        import ray

        @ray.remote
        def sleep():
            time.sleep(600)

        print("sleeping", flush=True)
        ray.get(sleep.remote())

    return call


@pytest.mark.parametrize("victim", ["keeper", "inner", "both"])
def test_a_killed_head_takes_its_own_ray_along_and_no_other(lab, name, victim):
    other = name + "-other"
    for run in (name, other):
        lab.lay(run, waits(), ray=True)
        lab.enter(run, run)
    head, _ = lab.head(name), lab.head(other)
    for run in (name, other):
        until(lambda run=run: (lab.folder(run) / "log.txt").exists() and "sleeping" in lab.log(run))
    inner = inner_of(head)
    for pid in {"keeper": [head.pid], "inner": [inner], "both": [inner, head.pid]}[victim]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not [pid for pid in processes_of(f"SRF_RUN_ID={name}") if not belongs_to(pid, other)])
    if victim != "both":
        assert lab.wait_for(name, "call_ended")["cause"] == "lost"
    assert len(processes_of(f"SRF_RUN_ID={other}")) > 4
    (lab.folder(other) / "cancel").touch()
    assert lab.wait_for(other, "call_ended")["cause"] == "cancelled"
    assert lab.wait_for(other, "released")
    assert nothing_left(other)


def keeps_an_actor():
    def call():
        import ray

        @ray.remote(num_cpus=1, lifetime="detached", name="stays")
        class Stays:
            def here(self):
                return True

        assert ray.get(Stays.remote().here.remote())
        print("sleeping", flush=True)
        time.sleep(600)

    return call


def test_no_actor_keeps_the_ray_of_a_killed_head(lab, name):
    """Ray itself would give it half a minute."""
    lab.lay(name, keeps_an_actor(), ray=True)
    lab.enter(name, name)
    head = lab.head(name)
    until(lambda: (lab.folder(name) / "log.txt").exists() and "sleeping" in lab.log(name))
    for pid in (inner_of(head), head.pid):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    nothing_left(name)
    assert time.monotonic() - killed < 25


def inner_of(head):
    return int(Path(f"/proc/{head.pid}/task/{head.pid}/children").read_text().split()[0])


def belongs_to(pid, run):
    try:
        return f"SRF_RUN_ID={run}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return True


def test_a_ray_that_cannot_start_is_an_environment_failure(lab, name):
    ended = lab.run(name, one_task(), ray=True, object_store_memory=1)
    assert ended["cause"] == "environment"
    assert "object" in ended["message"].lower()
    assert nothing_left(name)


def test_without_shared_memory_it_is_said_how_to_have_some(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SHARED_MEMORY", str(tmp_path / "none"))
    cluster = RayCluster({"python": sys.executable}, {})
    cluster.ended(1)
    error = error_of("environment", cluster.failure, "here")
    assert "no /dev/shm" in error.what and "tmpfs" in error.advice
    shutil.rmtree(cluster.folder)
