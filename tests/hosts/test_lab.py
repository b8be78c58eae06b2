"""Labs come up, stand side by side, and go without a trace, however their owner ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hosts.lab import Lab, down
from hosts.layout import KINDS
from hosts.machine import LabError, marked, until
from hosts.network import interfaces
from hosts.place import CHECKOUT, LABS, Place

TESTS = str(CHECKOUT / "tests")
OWNER = """
import os, sys, time
from hosts.lab import Lab
Lab.up(sys.argv[1], owner=os.getpid())
print("up", flush=True)
time.sleep(600)
"""
ASK_PROXY = """
import socket, sys
home, target = sys.argv[1:]
with socket.create_connection((home, 3128), 10) as proxy:
    proxy.send(f"CONNECT {home}:{target} HTTP/1.1\\r\\n\\r\\n".encode())
    while said := proxy.recv(100):
        print(said.decode(), end="")
"""


@pytest.fixture
def purpose(hosts_lab):
    """A purpose of this test's own; nothing is left of its lab afterwards."""
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    Lab.find(name) and Lab.find(name).down()


def traces(place):
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place.identity in line]
    return [*marked(place), *interfaces(place), *mounts, *([place.folder] if place.folder.exists() else [])]


def test_up_takes_seconds_and_down_leaves_nothing(purpose):
    start = time.monotonic()
    lab = Lab.up(purpose)
    assert time.monotonic() - start < 60
    assert traces(lab.place)
    inside = [pid for host in lab.hosts.values() for pid in host.processes()]
    lab.down()
    assert not traces(lab.place)
    assert not any(Path(f"/proc/{pid}").exists() for pid in inside)
    assert f"{lab.facts['base']}." not in subprocess.check_output(["ip", "route"], text=True)


def test_up_again_finds_the_same(purpose):
    first, second = Lab.up(purpose), Lab.up(purpose)
    assert first["desi"].pid == second["desi"].pid


def test_two_at_once_make_one(purpose):
    with ThreadPoolExecutor() as pool:
        pids = list(pool.map(lambda _: Lab.up(purpose)["desi"].pid, range(2)))
    assert pids[0] == pids[1]


def test_another_checkout_has_its_own(hosts_lab, ssh, purpose, monkeypatch):
    elsewhere = Place.of(purpose, Path("/elsewhere"))
    monkeypatch.setattr(Place, "of", lambda _: elsewhere)
    other = Lab.up(purpose)
    assert other.place != hosts_lab.place
    assert other["desi"].address != hosts_lab["desi"].address
    assert other.password("bob") != hosts_lab.password("bob")
    assert ssh("frank@desi", "hostname", config=other.ssh_config).stdout == "desi\n"
    other.down()
    assert ssh("frank@desi", "hostname").stdout == "desi\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_goes_with_its_owner(purpose, number):
    owner = [sys.executable, "-c", OWNER, purpose]
    with subprocess.Popen(owner, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": TESTS}) as process:
        assert process.stdout.readline() == b"up\n"
        assert traces(Place.of(purpose))
        process.send_signal(number)
    until(lambda: not traces(Place.of(purpose)), "the lab has gone", 60)


def test_what_a_dead_owner_and_a_dead_watch_left_is_swept(purpose, hosts_lab):
    owner = subprocess.Popen(["sleep", "600"])
    lab = Lab.up(purpose, owner=owner.pid)
    for pid in marked(lab.place):
        if b"hosts.watch" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    owner.kill()
    owner.wait()
    assert traces(lab.place)
    Lab.up(f"{purpose}-next", owner=os.getpid()).down()
    assert not traces(lab.place)


def test_what_a_crash_in_the_middle_left_goes(purpose):
    place = Place.of(purpose)
    making = [sys.executable, "-c", OWNER, purpose]
    with subprocess.Popen(making, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": TESTS}) as process:
        until(lambda: interfaces(place), "it has begun")
        process.kill()
    time.sleep(0.2)
    down(place)
    assert not traces(place)


def test_a_lab_that_cannot_be_made_leaves_nothing(purpose, monkeypatch):
    monkeypatch.setattr("hosts.files.SSHD", "NoSuchSetting yes\n")
    with pytest.raises(LabError, match="NoSuchSetting"):
        Lab.up(purpose)
    assert not traces(Place.of(purpose))


def test_hosts_share_nothing_that_people_touch(hosts_lab):
    desi, offline = hosts_lab["desi"], hosts_lab["offline"]
    for folder in ("/tmp", "/dev/shm", "/home/frank", "/run", "/var/tmp"):
        desi.path(f"{folder}/mark").write_text("desi")
        assert not offline.path(f"{folder}/mark").exists()
        assert not Path(f"{folder}/mark").exists()
        desi.path(f"{folder}/mark").unlink()
    for kind in ("net", "uts", "ipc", "mnt", "pid"):
        spaces = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (desi.pid, offline.pid, os.getpid())}
        assert len(spaces) == 3


def test_a_host_sees_its_own_processes_only(hosts_lab):
    seen = hosts_lab["desi"].run("root", ["ps", "-e", "-o", "pid="]).stdout.split()
    assert "1" in seen
    assert len(seen) < 30


def test_neither_home_nor_the_accounts_of_the_other_side_are_seen(hosts_lab):
    desi = hosts_lab["desi"]
    for folder in map(desi.path, (CHECKOUT, "/root")):  # a checkout below /tmp is not even a name there
        assert not folder.exists() or not list(folder.iterdir())
    assert not desi.path(LABS).exists() or not list(desi.path(LABS).iterdir())
    assert "alice" not in Path("/etc/passwd").read_text()
    assert desi.run("alice", ["cat", "/etc/shadow"], check=False).returncode
    assert desi.run("alice", ["ls", "/home/bob"], check=False).returncode


def test_what_ends_on_a_host_is_reaped(hosts_lab):
    desi = hosts_lab["desi"]
    desi.run("frank", ["sh", "-c", "(sleep 0.1 & ) ; (true &)"])
    time.sleep(0.3)
    assert "Z" not in desi.run("root", ["ps", "-e", "-o", "state="]).stdout


def test_python_of_home_runs_there_and_makes_environments(hosts_lab):
    desi = hosts_lab["desi"]
    ours = "{}.{}.{}".format(*sys.version_info[:3])
    assert desi.run("frank", [f"python3.{sys.version_info[1]}", "-V"]).stdout == f"Python {ours}\n"
    desi.run("frank", [f"python3.{sys.version_info[1]}", "-m", "venv", "--without-pip", "there"])
    said = desi.run("frank", ["there/bin/python", "-c", "import subprocess, ssl, sys; print(sys.prefix)"]).stdout
    assert said == "/home/frank/there\n"


def test_the_offline_host_reaches_nobody_outside(hosts_lab):
    offline = hosts_lab["offline"]
    assert not offline.path("/etc/pip.conf").exists()
    assert "PROXY" not in offline.run("frank", ["env"]).stdout.upper()
    assert "default" not in offline.run("root", ["ip", "route"]).stdout
    with served(hosts_lab.home, b"a package") as port:
        ask = ["python3", "-c", ASK_PROXY, hosts_lab.home, str(port)]
        assert hosts_lab["desi"].run("frank", ask).stdout.endswith("200 OK\n\na package")
        assert not offline.run("frank", ask, check=False).stdout


@contextlib.contextmanager
def served(address, what):
    """A server that says something to the first who comes."""
    with socket.create_server((address, 0)) as server:

        def serve():
            with server.accept()[0] as one:
                one.sendall(what)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_without_root_there_are_no_hosts_and_that_is_said(tmp_path):
    caps = [
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    ]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps]
    tests = f"{TESTS}/hosts/test_log_in.py"
    tmp_path.chmod(0o777)
    said = subprocess.run(
        [*nobody, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "noisy", tests],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        check=False,
    )
    assert "takes root" in said.stdout
    assert "1 skipped" in said.stdout, said.stdout


def test_a_host_comes_back_after_its_plug_was_pulled(purpose, ssh):
    lab = Lab.up(purpose, owner=os.getpid(), kinds=[kind for kind in KINDS if kind.name == "offline"])
    lab["offline"].run("frank", ["touch", "kept", "/dev/shm/lost"])
    lab.reboot("offline")
    assert ssh("frank@offline", "ls", "~", "/dev/shm", config=lab.ssh_config).stdout.split() == [
        "/dev/shm:",
        "/home/frank:",
        "kept",
    ]


def test_a_person_brings_them_up_and_down_by_command(purpose):
    def hosts(*words):
        command = [sys.executable, "-m", "hosts", "--purpose", purpose, *words]
        environment = {**os.environ, "PYTHONPATH": TESTS}
        return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)

    assert hosts("status").returncode == 1
    assert "already" not in hosts("up").stdout
    assert "already" in hosts("up").stdout
    assert str(Place.of(purpose).folder / "ssh_config") in hosts("status").stdout
    broken = hosts("fault", "desi", "read-only-home", "--seconds", "0.1")
    assert broken.stdout.endswith("is over\n"), broken.stderr
    assert hosts("down").returncode == 0
    assert not traces(Place.of(purpose))


IN_A_CHROOT = """
for name in $(ls -A /); do
    [ -d "/$name" ] && [ ! -L "/$name" ] || { cp -a "/$name" "$0/"; continue; }
    mkdir "$0/$name"; mount --rbind "/$name" "$0/$name"
done
exec chroot "$0" "$@"
"""


def test_a_chroot_is_refused_before_anything_is_made(tmp_path):
    check = "from hosts.lab import check_machine; from hosts.layout import KINDS; check_machine(KINDS)"
    root = tmp_path / "root"
    root.mkdir()
    inside = ["sh", "-c", IN_A_CHROOT, root, "env", f"PYTHONPATH={TESTS}", sys.executable, "-c", check]
    done = subprocess.run(["unshare", "--mount", *inside], capture_output=True, text=True, check=False, timeout=60)
    assert "this is a chroot" in done.stderr
    outside = {**os.environ, "PYTHONPATH": TESTS}
    subprocess.run([sys.executable, "-c", check], env=outside, check=True, timeout=60)
