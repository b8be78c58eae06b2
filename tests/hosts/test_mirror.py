"""One real host, two people with a Prefect server each, and strangers: who has it, who waits, who shares it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import prepared
from slurm_ray_flow import LockFailed, SshConnection, SshServer
from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.core.lock import limit_name, waiting_state
from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import os, sys, threading, time
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def work(who: str, notes: str, go: str = "") -> str:
    with open(notes, "a") as file:
        file.write(f"begin {who}\\n")
    deadline = time.monotonic() + 300
    while go and not os.path.exists(go) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    with open(notes, "a") as file:
        file.write(f"end {who}\\n")
    return who

@slurm_ray_flow(cpus_per_node=1, gpus_per_node=1)
def share(folder: str, who: str, beside: int) -> tuple[list[int], str]:
    open(os.path.join(folder, who), "w").close()
    deadline = time.monotonic() + 300
    while len(os.listdir(folder)) < beside and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(os.sched_getaffinity(0)), os.environ["CUDA_VISIBLE_DEVICES"]

if __name__ == "__main__":
    cluster, threads = sys.argv[1], []
    for line in sys.stdin:
        call = lambda said=line.split(): print("value", work.with_options(cluster=cluster)(*said), flush=True)
        threads.append(threading.Thread(target=call))
        threads[-1].start()
    for thread in threads:
        thread.join()
"""
STRANGER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a")
while True:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        time.sleep(0.05)
with open(sys.argv[2], "a") as notes:
    notes.write("begin stranger\\n"); notes.flush()
    deadline = time.monotonic() + 300
    while not os.path.exists(sys.argv[3]) and time.monotonic() < deadline:
        time.sleep(0.05)
    notes.write("end stranger\\n")
"""


class Desi:
    """The host under a lock and a name of these tests' own. Alice launches from this process, Bob from another home."""

    def __init__(self, lab: Any, folder: Path, other_home: dict[str, str]) -> None:
        mark = uuid.uuid4().hex[:8]
        self.lab, self.host, self.name, self.other_home = lab, lab["desi"], f"desi-{mark}", other_home
        self.script, self.lock, self.folder = folder / f"script_{mark}.py", f"/tmp/lock-{mark}", f"/tmp/notes-{mark}"
        self.script.write_text(SCRIPT)
        self.host.run("root", ["mkdir", "-m", "777", self.folder])
        sys.path.insert(0, str(folder))
        self.module = __import__(self.script.stem)
        self.api = self.save("alice", self.name, key_file=lab.key("alice"))
        self.pool = ThreadPoolExecutor()

    def save(self, user: str, name: str, *, server: dict[str, Any] | None = None, **login: Any) -> Api:
        """Save the block on the server of the present home."""
        address = ensure_server(print)
        connection = SshConnection(host="desi", user=user, config_file=self.lab.ssh_config, **login)
        with connected(address):
            SshServer(connection=connection, **{"lock_path": self.lock, **(server or {})}).save(name)
        return Api(address.url, auth_string(server_files()))

    def call(self, *arguments: str, **options: Any) -> Future[str]:
        """Launch in this process, as Alice."""
        work = self.module.work.with_options(cluster=self.name, **options)
        return self.pool.submit(work, *arguments)

    def launcher(self, **environment: str) -> subprocess.Popen[str]:
        """A process that launches what it is told."""
        environment = {**os.environ, "SRF_PROGRESS": "off", **environment}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        command = [sys.executable, str(self.script), self.name]
        return prepared.start(command, cwd=self.script.parent, env=environment, **pipes)

    def stranger(self, notes: str, until: str) -> threading.Thread:
        command = ["python3.11", "-c", STRANGER, self.lock, notes, until]
        thread = threading.Thread(target=self.host.run, args=("frank", command), daemon=True)
        thread.start()
        return thread

    def notes(self) -> str:
        """A new file there that everybody may write."""
        notes = f"{self.folder}/{uuid.uuid4().hex}"
        self.host.path(notes).touch()
        self.host.path(notes).chmod(0o666)
        return notes

    def lines(self, notes: str) -> list[str]:
        return self.host.path(notes).read_text().splitlines()

    def one_at_a_time(self, notes: str) -> list[str]:
        lines = self.lines(notes)
        assert all(one.replace("begin", "end") == two for one, two in zip(lines[::2], lines[1::2], strict=True)), lines
        return [line.split()[1] for line in lines[::2]]


@pytest.fixture(scope="module")
def desi(server: Any, other_home: dict[str, str], hosts_lab: Any, tmp_path_factory: Any) -> Iterator[Desi]:
    made = Desi(hosts_lab, tmp_path_factory.mktemp("mirror"), other_home)
    yield made
    made.pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def bob(desi: Desi) -> Iterator[tuple[Api, subprocess.Popen[str]]]:
    """His Prefect server, and a process of his that launches what it is told."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in desi.other_home.items():
            patch.setenv(name, value)
        theirs = desi.save("bob", desi.name, password=desi.lab.password("bob"))
    process = desi.launcher(**desi.other_home)
    yield theirs, process
    process.kill()
    process.communicate()


def active(api: Api, desi: Desi) -> int:
    found = concurrency_limit.read(api, limit_name(desi.name))
    return found.active if found else 0


def waiting(api: Api, desi: Desi) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"state": {"name": {"any_": [waiting_state(desi.name)]}}}}
    found: list[dict[str, Any]] = api.post("/flow_runs/filter", wanted)
    return found


def artifact(api: Api, key: str) -> dict[str, Any]:
    wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    found: dict[str, Any] = api.post("/artifacts/filter", wanted)[0]
    return found


def test_a_warm_run_gives_way_to_a_person_with_another_prefect_server(desi: Desi, bob: Any) -> None:
    notes = desi.notes()
    assert desi.call("alice", notes, keep_warm="10m").result(180) == "alice"
    bob[1].stdin.write(f"bob {notes}\n")
    wait_for(lambda: desi.lines(notes)[-1:] == ["end bob"])
    assert desi.one_at_a_time(notes) == ["alice", "bob"]
    assert bob[1].stdout.readline() == "value bob\n"


def test_two_people_and_strangers_take_turns_and_everybody_sees_who_has_it(desi: Desi, bob: Any, srf: Any) -> None:
    from slurm_ray_flow.flows.checkup import checkup

    notes, (theirs, process) = desi.notes(), bob
    first = desi.stranger(notes, f"{notes}.go")
    wait_for(lambda: desi.lines(notes) == ["begin stranger"])
    calls = [desi.call(f"alice-{number}", notes) for number in range(3)]
    process.stdin.writelines(f"bob-{number} {notes}\n" for number in range(3))
    wait_for(lambda: len(waiting(desi.api, desi)) == len(waiting(theirs, desi)) == 3)
    assert "held by frank" in waiting(desi.api, desi)[0]["state"]["message"]
    queue = json.loads(srf("queue", desi.name, "--json").stdout)
    assert [holder["user"] for holder in queue["holders"]] == ["frank"] and len(queue["in_prefect"]) == 3
    with connected(ensure_server(print)):
        checkup(desi.name)
    assert "held by frank" in artifact(desi.api, f"queue-{desi.name}")["description"]
    assert active(desi.api, desi) == 1
    between = desi.stranger(notes, "/")  # comes while others wait, and has it for a moment
    desi.host.path(f"{notes}.go").touch()
    assert [call.result(150) for call in calls] == ["alice-0", "alice-1", "alice-2"]
    assert sorted(process.stdout.readline() for _ in range(3)) == [f"value bob-{number}\n" for number in range(3)]
    for thread in (first, between):
        thread.join(60)
    order = [one.split("-")[0] for one in desi.one_at_a_time(notes)]
    assert sorted(order) == ["alice"] * 3 + ["bob"] * 3 + ["stranger"] * 2
    wait_for(lambda: active(desi.api, desi) == 0 and active(theirs, desi) == 0)


def test_what_a_killed_client_held_comes_back_when_its_run_ends(desi: Desi) -> None:
    notes = desi.notes()
    killed = desi.launcher()
    assert killed.stdin
    killed.stdin.write(f"killed {notes} {notes}.go\n")
    wait_for(lambda: desi.lines(notes) == ["begin killed"])
    killed.kill()
    killed.communicate()
    [held] = [held for held in concurrency_limit.noted() if held.limit == limit_name(desi.name)]
    supervised = time.monotonic() + 7  # its supervisor looks every 5 s
    while time.monotonic() < supervised:
        assert active(desi.api, desi) == 1
        time.sleep(0.5)
    desi.host.path(f"{notes}.go").touch()
    wait_for(lambda: active(desi.api, desi) == 0)
    assert desi.one_at_a_time(notes) == ["killed"]
    wait_for(lambda: desi.api.get(f"/flow_runs/{held.run_id}")["state_type"] == "COMPLETED")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_runs_that_share_a_host_get_processors_memory_and_cards_of_their_own(desi: Desi) -> None:
    name, folder = f"{desi.name}-two", f"{desi.folder}/two"
    shared = {"lock_path": f"{desi.lock}-two", "slots": 2, "gpus": 2}
    desi.save("alice", name, server=shared, key_file=desi.lab.key("alice"))
    desi.host.run("alice", ["mkdir", folder])
    share = desi.module.share.with_options(cluster=name)
    calls = [desi.pool.submit(share, folder, f"call-{number}", 2) for number in range(3)]
    given = [call.result(180) for call in calls]
    held = _given(desi, name)
    first = held[:2]
    assert {tuple(event["gpus"]) for event in first} == {("0",), ("1",)}
    assert not set(first[0]["cpus"]) & set(first[1]["cpus"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert [event["memory"] for event in first] == [whole // 2] * 2
    # The third has what is free then, which may be the processor of one and the card of the other.
    assert sorted(given) == sorted((one["cpus"], one["gpus"][0]) for one in held)


def _given(desi: Desi, name: str) -> list[dict[str, Any]]:
    """What the runs on this cluster were given, in order."""
    found = []
    for path in desi.host.path("/home/alice/.slurm-ray-flow/runs").glob("*/events.jsonl"):
        spec = json.loads((path.parent / "spec.json").read_text())
        if spec["lock"] and spec["lock"]["label"] == name:
            found += [
                event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == "lock_held"
            ]
    return sorted(found, key=lambda event: event["time"])


def test_a_link_in_the_lock_s_place_is_told_and_not_followed(desi: Desi) -> None:
    name, notes = f"{desi.name}-link", desi.notes()
    desi.save("alice", name, server={"lock_path": f"{desi.lock}-link"}, key_file=desi.lab.key("alice"))
    desi.host.run("frank", ["ln", "-s", "/etc/passwd", f"{desi.lock}-link"])
    with pytest.raises(LockFailed, match="is a link"):
        desi.module.work.with_options(cluster=name)("nobody", notes)
    assert desi.lines(notes) == []
