"""Commands that look at a run, or end it: they wait for no import of Prefect, on any kind of cluster."""

import os
import subprocess
import sys

import pytest

from slurm_ray_flow import slurm_ray_flow
from slurm_ray_flow.blocks.server import connected

COMMAND = """
import atexit, sys
from slurm_ray_flow.cli.main import main
atexit.register(lambda: sys.stderr.write(f"imported: {'prefect' in sys.modules}"))
main()
"""


@slurm_ray_flow
def answer():
    print("in the run")
    return 42


def srf(*arguments):
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ}, check=False)


@pytest.fixture
def saved(kind, server):
    """The name of a saved cluster, which has a lock where its kind has one."""
    name, changes = "without-prefect", {"lock_path": str(kind.folder / "lock")}
    cluster = kind.make(kind.folder / "root")
    if not hasattr(cluster, "save"):
        pytest.skip("Prefect has no block of this kind")
    cluster = cluster.model_copy(update={name: value for name, value in changes.items() if hasattr(cluster, name)})
    with connected(server):
        if getattr(cluster, "connection", None):
            cluster.connection.save(name, overwrite=True)
        cluster.save(name, overwrite=True)
    yield f"{cluster.kind}/{name}"
    with connected(server):
        type(cluster).delete(name)


def test_commands_on_a_run_import_no_prefect(saved):
    run = answer.with_options(cluster=saved).submit()
    assert run.result(timeout=180) == 42
    expected = {"attach": "gave 42", "logs": "in the run", "fetch": "no files", "cancel": "succeeded"}
    for verb, text in expected.items():
        done = srf(verb, run.run_id)
        assert text in done.stdout and done.stderr.endswith("imported: False"), (verb, done)
    for words in (["clusters"], ["check", saved]):
        done = srf(*words)
        assert "without-prefect" in done.stdout and done.stderr.endswith("imported: False"), (words, done)
    queue = srf("queue", saved)
    assert queue.stderr.endswith("imported: False"), queue
    assert "nobody waits" in queue.stdout if saved.startswith("ssh-server") else "has no lock" in queue.stderr
