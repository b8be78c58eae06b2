"""Launches on a host that is cut off for a while: a cut costs no run, and starts none twice."""

import signal
import threading
import time

import pytest

from hosts import faults
from hosts.launch_lab import SHARED
from slurm_ray_flow.core.launch_events import StepStarted
from slurm_ray_flow.interface.session import Launching

pytestmark = pytest.mark.server

STEPS = ("diff_dependencies", "sync_files", "install_environment", "start_ray", "execute_call", "fetch_outcome")


class Stopping:
    """Holds a launch back at the start of one of its steps until all launches are at theirs."""

    def __init__(self, step, together):
        self._step, self._together = step, together

    def __call__(self, event):
        if event == StepStarted(self._step):
            self._together.wait(120)


def launched(held, step, together, folder, values):
    changes = {"environment": ("dill", "toml==0.10.2")} if step == "install_environment" else {}
    flow = held.note.with_options(cluster=SHARED, **changes)
    values[step] = flow.call(Launching(Stopping(step, together)), (folder, step), {})


@pytest.mark.parametrize(("seconds", "quiet", "patience"), [(2, 8.0, 15.0), (6, 1.0, 1.5)], ids=["short", "long"])
def test_a_cut_in_any_step_costs_nothing(launches, seconds, quiet, patience):
    """Six launches at once, each at the start of another step when the cut comes."""
    import held

    limits = launches.shared.agent.connection.timeouts
    limits.quiet, limits.patience = quiet, patience
    folder, values = launches.folder(), {}
    together = threading.Barrier(len(STEPS), lambda: faults.cut_for(launches.host, seconds))
    threads = [
        threading.Thread(target=launched, args=(held, step, together, folder, values), daemon=True) for step in STEPS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert values == {step: f"<{step}>" for step in STEPS}
    assert sorted(launches.starts(folder)) == sorted(STEPS)


SECONDS = 240  # six commands at once on a machine under load; alone, on an idle one, each takes about 25
AWAY = {
    "runs": (0, '"not known"'),
    "logs": (1, "can't be reached"),
    "attach": (1, "can't be reached"),
    "cancel": (1, "can't be reached"),
    "queue": (1, "can't be reached"),
    "check": (1, "can't be reached"),
}


def test_nothing_waits_for_ever_for_a_host_that_is_away(launches):
    """Ctrl-C and all commands at once; three runs are under way, and a list of them asks once."""
    import held

    others = [held.wait.with_options(cluster=SHARED).submit(launches.folder()) for _ in range(2)]
    run = launches.waiting(cluster=SHARED)
    after = {"runs": "--json", "queue": launches.name, "check": launches.name}
    with faults.cut(launches.host):
        began = time.monotonic()
        run.script.send_signal(signal.SIGINT)
        commands = {verb: launches.srf(verb, after.get(verb, run.id)) for verb in AWAY}
        _, stderr = run.script.communicate(timeout=SECONDS)
        seconds = {"Ctrl-C": time.monotonic() - began}
        for verb, process in commands.items():
            said = "".join(process.communicate(timeout=SECONDS))
            seconds[verb] = time.monotonic() - began
            assert (process.returncode, AWAY[verb][1] in said) == (AWAY[verb][0], True), said
    assert "it is not known whether run" in stderr
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert "Lost" not in stderr
    assert max(seconds.values()) < SECONDS, seconds
    said, _ = launches.srf("cancel", run.id).communicate(timeout=180)
    assert "is cancelled" in said
    launches.over(run.id)
    assert [other.cancel() for other in others] == [True, True]
    assert run.state() == "cancelled"
