"""Turns on a server that is shared under a lock: many calls at once, and launches that are killed and started again."""

import json
import subprocess

import pytest

from hosts.launch_lab import NAME
from slurm_ray_flow import Handle, Handles
from slurm_ray_flow.blocks import concurrency_limit, store
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import client_settings
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.core.lock import limit_name, queued_state
from support import BOUND, wait_for

pytestmark = pytest.mark.server
WARM = {"SRF_KEEP_WARM": "5m"}


@pytest.fixture
def api(server):
    return Api(server.url, auth_string(server_files()))


def nobody_has_it(launches, api):
    wait_for(launches.free)
    wait_for(lambda: not [held for held in concurrency_limit.noted() if held.limit == limit_name(NAME)])
    wait_for(lambda: concurrency_limit.read(api, limit_name(NAME)).active == 0)


def test_calls_take_turns_and_those_that_wait_when_they_are_killed_are_begun_by_another_process(launches, api):
    import calls

    folder = launches.folder()
    values = calls.alone.with_options(cluster=NAME).map(range(5), max_parallel=3, folder=folder).results(180, True)
    assert isinstance(values[3], calls.OddError)
    assert [*values[:3], *values[4:]] == [0, 0, 1, 2]
    notes = launches.host.path(f"{folder}/notes").read_text().split()
    assert notes == ["begin", "end"] * 5
    nobody_has_it(launches, api)

    script = launches.script(NAME, folder, file="calls.py")
    handles = Handles.attach(json.loads(script.stdout.readline()))
    wait_for(lambda: launches.starts(folder) and waiting(handles.map_id) == 3)
    script.kill()
    script.wait()
    handles = Handles.attach(handles.map_id)
    assert handles.not_begun == [1, 2, 3, 4, 5]
    launches.go(folder)
    assert handles.results(BOUND) == [0, 1, 2, 3, 4, 5]
    assert sorted(launches.starts(folder)) == ["0", "1", "2", "3", "4", "5"]
    nobody_has_it(launches, api)


def waiting(map_id):
    """How many calls of a map wait for their turn."""
    known = [store.known_record(handle.run_id) for handle in Handles.attach(map_id) if handle.run_id]
    return sum(bool(record and record.waiting) for record in known)


def test_a_flow_run_that_is_started_again_keeps_the_server_or_its_place_in_the_line(launches, api, server):
    """One held the server, the other stood in the line there, when their processes were killed."""
    holds, waits = launches.folder(), launches.folder()
    scripts = [launches.script("wait", holds, "", NAME)]
    first = run_of(scripts[0])
    wait_for(lambda: launches.starts(holds))
    scripts.append(launches.script("wait", waits, "", NAME, **WARM))
    second = run_of(scripts[1])
    wait_for(lambda: store.find_record(second).waiting)
    wait_for(lambda: passed_on(api) and store.find_record(second).handed_over)
    wait_for(lambda: api.get(f"/flow_runs/{second}")["state"]["name"] == queued_state(NAME))  # its head lives
    for script in scripts:
        script.kill()
        script.wait()
    again = {run_id: started_again(launches, api, server, run_id) for run_id in (second, first)}
    wait_for(lambda: api.get(f"/flow_runs/{second}")["state"]["name"] == queued_state(NAME))
    launches.go(holds)
    launches.go(waits)
    for run_id, process in again.items():
        said = "".join(process.communicate(timeout=BOUND))
        assert (process.returncode, Handle.attach(run_id).result(180)) == (0, 42), said
        assert store.find_record(run_id).attempt == run_id
    assert [len(launches.starts(folder)) for folder in (holds, waits)] == [1, 1]
    another = launches.script("wait", waits, "", NAME, **WARM)
    joined = run_of(another)
    assert another.communicate(timeout=BOUND)[0].endswith("value 42\n")
    assert store.find_record(joined).allocation == second
    launches.srf("release", second).communicate(timeout=BOUND)
    nobody_has_it(launches, api)


def passed_on(api):
    """Somebody gives the limit's slots free in Prefect: who is first in the line there goes to the server's own."""
    api.patch(f"/v2/concurrency_limits/{limit_name(NAME)}", {"active_slots": 0})
    return True


def run_of(script: subprocess.Popen[str]) -> str:
    """The run of a script that has just been started."""

    def found():
        return [record.run_id for record in store.records() if record.pid == script.pid]

    wait_for(found)
    return found()[0]


def started_again(launches, api, server, run_id):
    """As Prefect's user does it with a flow run that has crashed."""
    api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    again = launches.prefect(
        *("flow-run", "retry", run_id, "--entrypoint", "again.py:again"),
        **client_settings(server),
        AGAIN_ON=NAME,
        **WARM,
    )
    wait_for(lambda: store.find_record(run_id).pid == again.pid)
    return again
