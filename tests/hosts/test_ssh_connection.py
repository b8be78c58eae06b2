"""What the connection survives: cuts, a killed session, a server with one session, a fork."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time

import pytest

from hosts import faults
from hosts.ssh_lab import agent_on
from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import streamed_to
from support import Noting

SHORT = ConnectionTimeouts(connect=3, first=5, again=30, quiet=0.5, patience=1.0)
SLOW = ("commands.run", {"argv": ["sh", "-c", "sleep 3; echo done"], "timeout": 30})


def test_many_threads_ask_over_one_connection(hosts_lab):
    found = []
    with hosts_lab.road("desi") as road, agent_on(hosts_lab, user="alice", config=road.ssh_config) as agent:

        def ask(number):
            argv = ["sh", "-c", f"sleep 0.2; echo {number}"]
            found.append(agent.ask_all([("commands.run", {"argv": argv, "timeout": 30})])[0]["stdout"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(map(int, found)) == list(range(20))
        assert road.counts().connections == 1
        assert agent.connection.round_trips == 20


def test_a_failure_of_an_operation_is_one_of_ours_and_of_no_one_else(hosts_lab):
    with agent_on(hosts_lab) as agent:
        with pytest.raises(SlurmRayFlowError) as caught:
            agent.ask_all([("files.write", {"path": "/proc/none/x", "data": b""})])
        assert "/proc/none" in caught.value.where
        assert agent.ask_all([("files.names", {"path": "/proc/none"})]) == [[]]


def test_a_cut_of_two_seconds_is_not_noticed(hosts_lab):
    with agent_on(hosts_lab) as agent:
        agent.hello  # noqa: B018
        faults.cut_for(hosts_lab["desi"], 2)
        assert agent.ask_all([SLOW])[0]["stdout"] == "done\n"
        assert agent.connection.times_connected == 1


def test_a_longer_cut_is_noticed_and_what_was_asked_is_asked_again(hosts_lab):
    with agent_on(hosts_lab, limits=SHORT) as agent:
        agent.hello  # noqa: B018
        with faults.cut(hosts_lab["desi"]):
            began = time.monotonic()
            answers = []
            asking = threading.Thread(target=lambda: answers.extend(agent.ask_all([SLOW])))
            asking.start()
            while agent.connection.alive:
                assert time.monotonic() - began < 30
                time.sleep(0.1)
        asking.join(60)
        assert answers[0]["stdout"] == "done\n"
        assert agent.connection.times_connected == 2


def test_a_link_that_stays_cut_ends_in_an_error_that_says_what_goes_on(hosts_lab):
    limits = ConnectionTimeouts(connect=1, first=2, again=2, quiet=0.3, patience=0.7)
    with agent_on(hosts_lab, limits=limits) as agent:
        agent.hello  # noqa: B018
        with faults.cut(hosts_lab["desi"]), pytest.raises(ConnectionFailed, match="can't be reached") as caught:
            agent.ask_all([SLOW])
    assert caught.value.transient
    assert "srf attach" in caught.value.advice


def test_a_killed_session_is_made_anew(hosts_lab):
    with agent_on(hosts_lab, limits=SHORT) as agent:
        agent.hello  # noqa: B018
        threading.Timer(1.0, lambda: faults.kill_sessions(hosts_lab["desi"], "frank")).start()
        assert agent.ask_all([SLOW])[0]["stdout"] == "done\n"
        assert agent.connection.times_connected == 2


@contextlib.contextmanager
def start_file(host, user, text):
    """Another .bashrc."""
    path = host.path(f"/home/{user}/.bashrc")
    before = path.read_text() if path.exists() else ""
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize("line", ["exec fish", "exec zsh"])
def test_a_start_file_that_does_not_return_is_told(hosts_lab, line):
    with (
        start_file(hosts_lab["desi"], "frank", f"echo welcome\n{line}\n"),
        agent_on(hosts_lab) as agent,
        pytest.raises(ConnectionFailed, match="start file") as caught,
    ):
        agent.hello  # noqa: B018
    assert "[[ $- == *i* ]] || return" in caught.value.advice


def test_a_start_file_that_waits_for_something_is_told(hosts_lab):
    with (
        start_file(hosts_lab["desi"], "frank", "sleep 100\n"),
        agent_on(hosts_lab, limits=ConnectionTimeouts(begin=2)) as agent,
        pytest.raises(ConnectionFailed, match="start file"),
    ):
        agent.hello  # noqa: B018


def test_a_start_file_that_takes_its_time_is_waited_for_and_told(hosts_lab):
    shown = Noting()
    with streamed_to(shown), start_file(hosts_lab["desi"], "frank", "sleep 7\n"), agent_on(hosts_lab) as agent:
        assert agent.hello["host"] == "desi"
    assert any("start file" in text for text in shown.said), shown.said


def test_a_start_file_that_talks_and_exits_is_told(hosts_lab):
    with (
        start_file(hosts_lab["desi"], "frank", "echo welcome\nexit 0\n"),
        agent_on(hosts_lab) as agent,
        pytest.raises(ConnectionFailed, match="welcome") as caught,
    ):
        agent.hello  # noqa: B018
    assert "`exit`" in caught.value.advice


@pytest.mark.parametrize("shell", ["/bin/false", "/usr/sbin/nologin"])
def test_an_account_without_a_shell_is_told(hosts_lab, shell):
    desi = hosts_lab["desi"]
    accounts = desi.path("/etc/passwd")
    before = accounts.read_text()
    accounts.write_text(re.sub(r"(?m)^(frank:.*:).*$", rf"\g<1>{shell}", before))
    try:
        with agent_on(hosts_lab, user="frank", port=22) as agent, pytest.raises(ConnectionFailed) as caught:
            agent.hello  # noqa: B018
    finally:
        accounts.write_text(before)
    assert "no command can be run" in caught.value.what
    assert "/bin/false" in caught.value.advice
    assert "-p 22 frank@desi" in caught.value.advice


def test_nothing_of_ours_is_left_there_when_home_has_gone(hosts_lab):
    desi = hosts_lab["desi"]
    with agent_on(hosts_lab) as agent:
        pid = agent.hello["pid"]
        running = ("commands.run", {"argv": ["sh", "-c", "sleep 1234"], "timeout": 99})
        threading.Thread(target=_quietly, args=(agent, running), daemon=True).start()
        _until(lambda: any("1234" in " ".join(argv) for argv in desi.processes().values()))
    _until(lambda: not any("1234" in " ".join(argv) for argv in desi.processes().values()))
    assert not any(str(agent.root) in " ".join(argv) for argv in desi.processes().values()), pid


def test_a_child_of_a_fork_makes_its_own_connection(hosts_lab):
    with agent_on(hosts_lab) as agent:
        before = agent.hello["pid"]
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                agent.connection.forget()
                agent.forget()
                os.write(write, str(agent.hello["pid"]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(read, 100)) != before
        assert agent.ask_all([]) == []
        assert agent.hello["pid"] == before


def test_ctrl_c_interrupts_a_waiting_question_at_once(hosts_lab):
    with agent_on(hosts_lab) as agent:
        agent.hello  # noqa: B018
        began = time.monotonic()
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            agent.ask_all([("commands.run", {"argv": ["sleep", "20"], "timeout": 30})])
        assert time.monotonic() - began < 18
        assert agent.ask_all([("files.names", {"path": "/none"})]) == [[]]


@pytest.mark.parametrize("damage", ["truncate -s 0", "rm"])
def test_an_agent_that_a_loss_of_power_has_damaged_is_sent_again(hosts_lab, damage):
    root = f"~/ssh-{os.getpid()}-damaged"
    with agent_on(hosts_lab, root=root) as agent:
        agent.hello  # noqa: B018
        tools = agent.tools
    hosts_lab["desi"].run("frank", ["sh", "-c", f"{damage} {tools}/slurm_ray_flow/remote/agent/agent.py"])
    with agent_on(hosts_lab, root=root) as agent:
        assert agent.ask_all([("files.names", {"path": str(tools.parent)})]) == [[tools.name]]


def test_a_root_of_somebody_else_is_refused(hosts_lab):
    desi = hosts_lab["desi"]
    desi.run("bob", ["sh", "-c", "mkdir -p /tmp/planted/tools && chmod -R 777 /tmp/planted"])
    try:
        with agent_on(hosts_lab, root="/tmp/planted") as agent, pytest.raises(SlurmRayFlowError, match="another user"):
            agent.hello  # noqa: B018
    finally:
        desi.run("bob", ["rm", "-r", "/tmp/planted"])


def _quietly(agent, request):
    with contextlib.suppress(SlurmRayFlowError):
        agent.ask_all([request])


def _until(true, seconds=180.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
