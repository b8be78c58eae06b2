"""Each fault does what it says, and ends."""

import contextlib
import os
import socket
import subprocess
import time

import pytest

from hosts import faults
from hosts.machine import until


@contextlib.contextmanager
def talking(config, where="frank@desi"):
    """A session that answers every line."""
    with subprocess.Popen(
        ["ssh", "-F", str(config), where, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        ask(process)
        yield process
        process.kill()


def ask(process):
    """How long the answer to a line takes."""
    start = time.monotonic()
    process.stdin.write(b"?\n")
    process.stdin.flush()
    assert b"?\n" in process.stdout  # after the noise of an account that makes some
    return time.monotonic() - start


def test_a_cut_is_silent_and_connections_outlive_it(hosts_lab, ssh):
    desi = hosts_lab["desi"]
    with talking(hosts_lab.ssh_config) as session:
        faults.cut_for(desi, 1.5)
        with pytest.raises(TimeoutError), socket.socket() as straight:
            straight.settimeout(0.5)
            straight.connect((desi.address, 22))
        assert 0.3 < ask(session) < 10
    assert ssh("frank@offline", "true").returncode == 0


def test_the_cable_comes_back_after_the_block(hosts_lab, ssh):
    with faults.cut(hosts_lab["desi"]):
        assert ssh("frank@desi", "true", options=("-o", "ConnectTimeout=1")).returncode == 255
    assert ssh("frank@desi", "true").returncode == 0


def test_max_sessions(hosts_lab, tmp_path, ssh):
    shared = ("-o", f"ControlPath={tmp_path}/c", "-o", "ControlMaster=auto")
    with faults.sshd_options(hosts_lab["desi"], "MaxSessions 1"):
        master = ["ssh", "-F", hosts_lab.ssh_config, *shared, "frank@desi", "cat"]
        with subprocess.Popen(
            master, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as first:
            ask(first)
            second = ssh("frank@desi", "true", options=(*shared, "-o", "BatchMode=yes"))
            assert "Session open refused" in second.stderr
            first.kill()


def test_max_startups(hosts_lab, ssh):
    desi = hosts_lab["desi"]
    with faults.sshd_options(desi, "MaxStartups 1"):
        with socket.create_connection((desi.address, 22)) as first:
            assert first.recv(4) == b"SSH-"
            assert ssh("frank@desi", "true").returncode == 255
        until(lambda: ssh("frank@desi", "true").returncode == 0, "there is room again")


def test_without_its_server_a_host_refuses_while_sessions_go_on(hosts_lab, ssh):
    with talking(hosts_lab.ssh_config) as session, faults.no_sshd(hosts_lab["desi"]):
        assert "Connection refused" in ssh("frank@desi", "true").stderr
        ask(session)
    assert ssh("frank@desi", "true").returncode == 0


def test_a_killed_session_ends_and_another_one_does_not(hosts_lab):
    with talking(hosts_lab.ssh_config) as franks, talking(hosts_lab.ssh_config, "erin@desi") as erins:
        assert faults.kill_sessions(hosts_lab["desi"], "frank") >= 2
        assert franks.wait(60) == 255
        ask(erins)


def test_a_full_disk(hosts_lab):
    desi = hosts_lab["desi"]
    with faults.small_disk(desi, "frank", "/home/frank/small", "1M", inodes=20):
        filled = desi.run("frank", ["dd", "if=/dev/zero", "of=small/file", "bs=1M", "count=2"], check=False)
        assert "No space left on device" in filled.stderr
        desi.run("frank", ["rm", "small/file"])
        many = desi.run("frank", ["sh", "-c", "touch $(seq -f small/%g 30)"], check=False)
        assert "No space left on device" in many.stderr
    assert desi.run("frank", ["ls", "small"]).stdout == ""
    desi.run("frank", ["rmdir", "small"])


def test_a_read_only_home(hosts_lab):
    desi = hosts_lab["desi"]
    with faults.read_only(desi, "/home/frank"):
        assert "Read-only file system" in desi.run("frank", ["touch", "file"], check=False).stderr
        desi.run("frank", ["touch", "/tmp/file"])
    desi.run("frank", ["touch", "file"])


@pytest.mark.parametrize("seconds", [3600, -86400])
def test_a_wrong_clock(hosts_lab, ssh, seconds):
    def date():
        return int(ssh("frank@desi", "date", "+%s").stdout)

    with faults.clock(hosts_lab["desi"], seconds):
        assert abs(date() - time.time() - seconds) < 30
        stamp = int(ssh("frank@desi", "touch new && stat -c %Y new").stdout)
        assert abs(stamp - time.time() - seconds) < 30
    assert abs(date() - time.time()) < 30


def test_another_host_key_is_noticed(hosts_lab, ssh):
    with faults.other_host_key(hosts_lab["desi"]):
        assert "IDENTIFICATION HAS CHANGED" in ssh("frank@desi", "true").stderr
    assert ssh("frank@desi", "true").returncode == 0


def test_a_long_road_delays_each_way(hosts_lab):
    with hosts_lab.road("desi", delay=0.1) as road, talking(road.ssh_config) as session:
        assert 0.2 <= min(ask(session) for _ in range(5)) < 0.4
        road.set_delay(0)
        assert min(ask(session) for _ in range(5)) < 0.1


def test_a_road_counts_round_trips_and_bytes(hosts_lab):
    with hosts_lab.road("desi", delay=0.01) as road, talking(road.ssh_config) as session:
        road.counts(reset=True)
        for _ in range(5):
            ask(session)
        counts = road.counts()
        assert (counts.connections, counts.turns) == (0, 5)
        assert 5 * 2 < counts.sent < 5 * 200
        assert counts.received > 5 * 2


def test_a_road_stalls_and_goes_on(hosts_lab):
    with hosts_lab.road("desi") as road, talking(road.ssh_config) as session:
        road.stall(seconds=1)
        assert 0.9 < ask(session) < 3
        road.stall()
        session.stdin.write(b"late\n")
        session.stdin.flush()
        time.sleep(0.3)
        road.resume()
        assert session.stdout.readline() == b"late\n"


def test_a_cut_road_breaks_connections_and_lets_new_ones_in(hosts_lab, ssh):
    with hosts_lab.road("desi") as road:
        with talking(road.ssh_config) as session:
            road.cut()
            assert session.wait(60) == 255
        assert ssh("frank@desi", "echo", "again", config=road.ssh_config).stdout == "again\n"


def test_much_passes_a_long_road_whole_and_fast(hosts_lab, ssh, tmp_path):
    sent = os.urandom(2**20) * 64
    (tmp_path / "sent").write_bytes(sent)
    with hosts_lab.road("desi", delay=0.02) as road:
        copy = ["scp", "-q", "-F", str(road.ssh_config), str(tmp_path / "sent"), "frank@desi:"]
        start = time.monotonic()
        subprocess.run(copy, check=True, timeout=180)
        assert time.monotonic() - start < 15
        assert road.counts().sent > len(sent)
    assert hosts_lab["desi"].path("/home/frank/sent").read_bytes() == sent
    hosts_lab["desi"].path("/home/frank/sent").unlink()


def test_the_inner_host_can_be_reached_over_a_long_road_to_the_bastion(hosts_lab, ssh):
    with hosts_lab.road("bastion", delay=0.05) as road:
        start = time.monotonic()
        assert ssh("frank@inner", "hostname", config=road.ssh_config).stdout == "inner\n"
        assert time.monotonic() - start > 0.5
        assert road.counts().connections == 1
