"""Processes are known by pid, start and boot; files of the server are private; the fast path asks nobody."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ray_flow.blocks import processes as blocks_processes
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.processes import alive, elsewhere, end, identify, this_process, wait_gone
from slurm_ray_flow.blocks.server import supervisor
from slurm_ray_flow.blocks.server.address import ServerState, listening, read_state, serving, versions, write_state
from slurm_ray_flow.blocks.server.files import auth_string, encryption_key, make_folders, server_files
from slurm_ray_flow.blocks.server.settings import on_network, server_environment
from slurm_ray_flow.blocks.server.start import ensure_server
from slurm_ray_flow.blocks.ssh.endpoint import password_variable
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.remote.shared import processes


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pid_that_another_process_has_now_is_not_the_process() -> None:
    this = this_process()
    assert alive(this)
    assert not alive(dataclasses.replace(this, started=this.started - 1))
    assert not alive(dataclasses.replace(this, boot_id="another boot"))


def test_a_started_process_is_ended_within_the_patience_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
    ]
    process = identify(blocks_processes.start(command, log=log))
    assert process is not None and os.getsid(process.pid) == process.pid
    while not log.read_text():
        assert alive(process)
    assert not wait_gone(process, 0.05)
    assert end(process, patience=0.1)
    assert not alive(process)
    assert mode(log) == 0o600


def test_a_command_gives_its_output_and_code_and_is_killed_when_too_slow() -> None:
    done = blocks_processes.run(["sh", "-c", "cat; echo error >&2; exit 3"], timeout=10, stdin=b"in")
    assert (done.stdout, done.stderr, done.exit_code, done.ok) == ("in", "error\n", 3, False)
    with pytest.raises(SlurmRayFlowError, match="sleep did not end within"):
        blocks_processes.run(["sleep", "60"], timeout=0.1)
    with pytest.raises(SlurmRayFlowError, match="no-such-program can't be started"):
        blocks_processes.run(["no-such-program"], timeout=1)


@pytest.mark.parametrize(
    ("noted", "away"),
    [
        ("{boot} {namespace} {host}", False),
        ("{boot} pid:[1] {host}", True),  # another container on the same kernel
        ("another-boot pid:[1] {host}", False),  # the same machine before it was started again
        ("another-boot {namespace} login2", True),
        ("{boot} {namespace} old-name", False),  # a laptop that got another name
        ("another-boot", False),  # as versions before wrote it
    ],
)
def test_what_another_host_or_container_runs_is_neither_alive_nor_dead(noted: str, away: bool) -> None:
    this = this_process()
    boot, namespace, host = this.boot_id.split(" ")
    there = noted.format(boot=boot, namespace=namespace, host=host)
    assert elsewhere(there) is away
    assert alive(dataclasses.replace(this, boot_id=there)) is (there.startswith(f"{boot} {namespace}"))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/users/ann/.slurm-ray-flow", True), ("/scratch/ann", True), ("/home/ann", False), ("/users2/ann", False)],
)
def test_a_database_is_not_opened_on_a_network_file_system(folder: str, expected: bool) -> None:
    mounts = (Path(__file__).parents[1] / "recorded/proc/mountinfo.txt").read_text()
    assert on_network(Path(folder), mounts) is expected


def test_folders_and_secrets_are_private_and_secrets_stay() -> None:
    files = server_files()
    files.folder.mkdir(parents=True)  # left open by somebody
    make_folders(files)
    assert auth_string(files) == auth_string(files) and len(auth_string(files)) > 40
    assert encryption_key(files) == encryption_key(files) != auth_string(files)
    assert [mode(path) for path in (home(), files.folder, files.prefect_home)] == [0o700] * 3
    assert [mode(path) for path in (files.secret, files.encryption_key)] == [0o600] * 2


def test_state_comes_back_as_written_and_damage_reads_as_none() -> None:
    files, this = server_files(), this_process()
    assert read_state(files) is None
    state = ServerState(1, "3", this.pid, this.started, this.pid, this.started, this.boot_id)
    write_state(files.state, state)
    assert read_state(files) == state
    files.state.write_text('{"port": 1')
    assert read_state(files) is None


@pytest.mark.parametrize(
    ("other", "told"), [({"version": "3.0.1"}, "Prefect 3.0.1"), ({"package": ""}, "slurm-ray-flow of before")]
)
def test_a_server_of_another_version_is_used_and_told_of(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str], told: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    files, this, said = server_files(), this_process(), list[str]()
    make_folders(files)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pids = (this.pid, this.started, this.pid, this.started, this.boot_id)
        state = ServerState(server.getsockname()[1], versions()[0], *pids, package=versions()[1])
        write_state(files.state, state)
        assert ensure_server(said.append).url == state.url and said == []
        write_state(files.state, dataclasses.replace(state, **other))
        assert ensure_server(said.append).url == state.url
    assert told in said[0] and "srf down" in said[0]


def test_a_periodic_task_that_takes_long_holds_up_no_heartbeat() -> None:
    go_on, done = threading.Event(), threading.Event()

    def clean() -> Iterator[str]:
        go_on.wait(60)
        done.set()
        yield "cleaned"

    supervisor.run_periodic_task(supervisor.PeriodicTask(1.0, clean, long=True))
    assert not done.is_set()
    go_on.set()
    assert done.wait(60)


def test_a_log_that_has_grown_large_begins_anew_under_its_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LARGEST_LOG", 10)
    files = server_files()
    make_folders(files)
    with files.log.open("a") as writer:
        print("a first line", file=writer, flush=True)
        assert len(list(supervisor.rotate(files))) == 1
        print("a second", file=writer, flush=True)
        assert list(supervisor.rotate(files)) == []
    assert files.log.read_text() == "a second\n"
    assert files.log.with_name("log.1").read_text() == "a first line\n"


def test_a_server_serves_when_its_process_lives_and_its_port_is_open() -> None:
    this = this_process()
    with socket.create_server(("127.0.0.1", 0)) as server:
        state = ServerState(server.getsockname()[1], "3", this.pid, this.started, this.pid, this.started, this.boot_id)
        assert serving(state)
        assert not serving(dataclasses.replace(state, started=this.started + 1))
    assert not listening(state.port)
    assert not serving(state)


def test_a_clusters_password_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LAB_PASSWORD", "secret")
    monkeypatch.setenv("UV_INDEX_MINE_PASSWORD", "needed")  # some that start processes here need theirs
    blocks_processes.withhold(password_variable("my lab"))
    printed = blocks_processes.run(["env"], timeout=10).stdout
    assert "MY_LAB_PASSWORD" not in printed
    assert "UV_INDEX_MINE_PASSWORD=needed" in printed
    assert not [name for name in server_environment(server_files(), 1) if name.endswith("_PASSWORD")]


def test_a_later_process_withholds_it_too_from_a_run_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LAB_PASSWORD", "secret")
    blocks_processes.withhold("MY_LAB_PASSWORD")
    monkeypatch.setattr("slurm_ray_flow.remote.shared.processes.WITHHELD", {"PREFECT_API_AUTH_STRING"})
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "srf:secret")
    monkeypatch.setenv("DATABASE_PASSWORD", "the function's own")
    LocalMachine().ask("files.names", path="/")
    assert "secret" not in " ".join(processes.inherited().values())
    assert processes.inherited()["DATABASE_PASSWORD"] == "the function's own"
