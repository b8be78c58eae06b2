"""The queue's folder is everybody's: what others put there is looked at with suspicion."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial

import pytest

from lock_lab import SYSTEM_PYTHON
from onlookers import NOBODY, as_nobody
from slurm_ray_flow.remote.lock import lock
from slurm_ray_flow.remote.lock.queue import QueueFolder, clean
from slurm_ray_flow.remote.shared.protocol import OperationError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")
HOLDS_A_TICKET = """
import sys
sys.path.insert(0, sys.argv[1])
from slurm_ray_flow.remote.lock.queue import QueueFolder
queue = QueueFolder(sys.argv[2])
queue.enter({"run": sys.argv[3]})
print("in", flush=True)
sys.stdin.readline()
"""


FORGES = """
import fcntl, os, sys
ticket = open(sys.argv[1], "w")
ticket.write('{"run": "first", "user": "root", "since": 1, "order": 1}')
ticket.flush()
fcntl.lockf(ticket, fcntl.LOCK_EX)
os.utime(sys.argv[1], (1, 1))
print("in", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def waiting(path, run):
    """Another process in the queue."""
    import slurm_ray_flow

    source = os.path.dirname(os.path.dirname(slurm_ray_flow.__file__))
    command = [sys.executable, "-c", HOLDS_A_TICKET, source, path, run]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "server.lock")


def test_tickets_come_in_the_order_in_which_they_were_taken_and_dead_ones_do_not_count(path):
    with waiting(path, "first"), waiting(path, "second") as second, waiting(path, "third"):
        assert [ticket.fields["run"] for ticket in QueueFolder(path).tickets()] == ["first", "second", "third"]
        second.kill()
        second.wait()
        assert [ticket.fields["run"] for ticket in QueueFolder(path).tickets()] == ["first", "third"]


def test_a_place_is_not_made_better_by_a_file_s_times(path):
    with waiting(path, "first"), waiting(path, "second"):
        forged = QueueFolder(path).tickets()[1].entry
        os.utime(os.path.join(path + ".queue", forged), (1, 1))
        assert [ticket.fields["run"] for ticket in QueueFolder(path).tickets()] == ["first", "second"]


def test_what_is_no_ticket_is_passed_over(path):
    folder = path + ".queue"
    with waiting(path, "real"):
        os.mkfifo(os.path.join(folder, "w-fifo"))
        os.mkdir(os.path.join(folder, "w-folder"))
        os.symlink("/etc/passwd", os.path.join(folder, "w-link"))
        with open(os.path.join(folder, "w-large"), "wb") as large:
            large.truncate(1 << 30)
        assert [ticket.fields["run"] for ticket in QueueFolder(path).tickets()] == ["real"]


def test_a_second_name_of_a_lock_that_is_held_does_not_have_it_dropped(path):
    queue, files = QueueFolder(path), lock.LockFiles()
    assert files.take(lock.open_shared(path), lock.EXCLUSIVE, path, partial(lock.open_shared, path))
    queue.enter({"run": "mine"})
    queue.own_files |= files.identities()
    for entry in os.listdir(queue.path):
        os.link(os.path.join(queue.path, entry), os.path.join(queue.path, "w-again"))
    os.link(path, os.path.join(queue.path, "w-lock"))
    queue.tickets()
    asks = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    for held in (path, os.path.join(queue.path, "w-again")):
        assert (
            subprocess.run([sys.executable, "-c", asks, held], check=False, stderr=subprocess.DEVNULL).returncode != 0
        )


@pytest.mark.parametrize("planted", ["link", "file", "narrow"])
def test_a_queue_that_is_no_folder_for_everybody_is_refused(path, planted, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o1777)
    {
        "link": lambda: os.symlink(tmp_path / "elsewhere", path + ".queue"),
        "file": lambda: open(path + ".queue", "w").close(),
        "narrow": lambda: os.mkdir(path + ".queue", 0o755),
    }[planted]()
    with pytest.raises(OperationError) as caught:
        QueueFolder(path)
    assert caught.value.cause == "lock"
    assert caught.value.where == path + ".queue"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ({"run": "r", "name": "n", "password": "p"}, {"run": "r", "name": "n"}),
        ({"run": "\x1b[2Jx\r\ny", "server": 7, "name": ["n"]}, {"run": "[2Jxy"}),
        ({"run": "x" * 5000}, {"run": "x" * 200}),
        (["no dictionary"], {}),
        (None, {}),
    ],
)
def test_a_ticket_s_text_is_known_short_and_harmless(text, known):
    assert clean(text) == known


def test_looking_makes_nothing(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        QueueFolder(path, make=False)
    assert os.listdir(tmp_path) == []


def test_a_dead_ticket_of_ours_is_removed_some_time_later(path, monkeypatch):
    monkeypatch.setattr("slurm_ray_flow.remote.lock.queue.DEAD_AFTER", 0.1)
    with waiting(path, "dead"):
        pass
    time.sleep(0.2)
    queue = QueueFolder(path)
    queue.enter({"run": "mine"})
    assert queue.tickets() == []
    assert len(os.listdir(queue.path)) == 1


def test_three_parts_of_a_file_are_one_lock(path):
    files = lock.LockFiles()
    assert files.take(lock.open_shared(path), lock.EXCLUSIVE, path, partial(lock.open_shared, path))
    reading, writing = os.pipe()
    files.divide()
    child = os.fork()
    if child == 0:
        files.join(lock.INNER)
        os.write(writing, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert lock.holder_pid(descriptor) == child
        os.close(descriptor)  # and with it goes this process's own part
        descriptor = os.open(path, os.O_RDWR)
        with pytest.raises(OSError, match="unavailable"):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_can_neither_remove_nor_change_nor_outrank_a_ticket():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)  # as /tmp is
        path = os.path.join(folder, "server.lock")
        with waiting(path, "first"):
            queue = QueueFolder(path)
            (ticket,) = queue.tickets()
            name = os.path.join(path + ".queue", ticket.entry)
            tries = {
                "remove it": lambda: os.unlink(name),
                "rename it": lambda: os.rename(name, name + "x"),
                "write to it": lambda: os.open(name, os.O_RDWR),
                "open it to others": lambda: os.chmod(name, 0o666),
                "give it another name": lambda: os.link(name, name + "x"),
                "remove the queue": lambda: os.rename(path + ".queue", path + ".old"),
                "close the queue": lambda: os.chmod(path + ".queue", 0o700),
            }
            assert {what: as_nobody(action) for what, action in tries.items()} == dict.fromkeys(tries, "denied")
            command = [SYSTEM_PYTHON, "-c", FORGES, os.path.join(path + ".queue", "w-0")]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[]
            ) as forger:
                assert forger.stdout.readline() == b"in\n"
                assert [each.describe()["user"] for each in queue.tickets()] == ["root", "nobody"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_link_that_another_user_planted_is_not_followed(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)  # as /tmp is
        path = os.path.join(folder, "server.lock")
        as_nobody(lambda: os.symlink(private, path + ".queue"))
        with pytest.raises(OperationError, match="no folder"):
            QueueFolder(path)
    assert private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="systemd is not installed here")
def test_a_lock_in_use_is_not_removed_as_an_old_file(path, tmp_path):
    """By the program that removes old files from /tmp, with seconds for its ten days."""
    queue, files = QueueFolder(path), lock.LockFiles()
    parts = [path, os.path.join(queue.path, "slot-0")]
    for part in parts:
        assert files.take(lock.open_shared(part), lock.EXCLUSIVE, part, partial(lock.open_shared, part))
    old = tmp_path / "old"
    old.touch()
    rules = tmp_path / "rules.conf"
    rules.write_text(f"d {tmp_path} 1777 - - 1s\n")
    time.sleep(1.1)
    assert files.keep(lock.INNER) == []
    subprocess.run(["systemd-tmpfiles", "--clean", str(rules)], check=True, capture_output=True)
    assert not old.exists()
    assert all(map(os.path.exists, parts))


def test_a_lock_that_was_removed_is_taken_again_or_told_to_be_lost(path):
    files = lock.LockFiles()
    assert files.take(lock.open_shared(path), lock.EXCLUSIVE, path, partial(lock.open_shared, path))
    os.unlink(path)
    assert files.keep(lock.INNER) == []
    assert other_gets(path) is False
    os.unlink(path)
    assert other_gets(path) is True
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE)
    holder.stdout.readline()
    assert files.keep(lock.INNER) == [path]
    holder.kill()
    holder.communicate()
    assert files.keep(lock.INNER) == []


def test_a_lock_in_tmp_has_a_first_file_where_nothing_old_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_FOLDER", str(tmp_path))
    assert lock.file_paths("/tmp/desi.lock") == ["/tmp/desi.lock"]
    tmp_path.chmod(0o1777)
    assert lock.file_paths("/tmp/desi.lock") == [str(tmp_path / "desi.lock"), "/tmp/desi.lock"]
    assert lock.file_paths("/scratch/desi.lock") == ["/scratch/desi.lock"]


HOLDS = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(60)
"""


def other_gets(path):
    asks = HOLDS.partition("print")[0]
    return subprocess.run([sys.executable, "-c", asks, path], check=False, stderr=subprocess.DEVNULL).returncode == 0
