"""The parts of the remote program that need no processes of their own, and its diet: Python 3.9, nothing installed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import slurm_ray_flow.remote as remote_package
from slurm_ray_flow.blocks import programs
from slurm_ray_flow.remote.driver import package_in_run
from slurm_ray_flow.remote.head import head
from slurm_ray_flow.remote.shared import events, failures, files, limits, pickling, processes, protocol
from support import python_of, wait_for

REMOTE = Path(remote_package.__file__).parent
RECORDED = Path(__file__).parents[1] / "recorded" / "proc"


@pytest.fixture
def tools(tmp_path):
    package = tmp_path / "tools" / "slurm_ray_flow"
    shutil.copytree(REMOTE, package / "remote", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REMOTE / "driver" / "package_in_run.py", package / "__init__.py")
    return package.parent


def isolated(python, tools, code, folder):
    program = f"import sys; sys.path.insert(0, {str(tools)!r})\n{code}"
    return subprocess.run(
        [python, "-I", "-S", "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=180
    )


def test_every_file_imports_on_python_3_9_with_the_standard_library_alone(tools, tmp_path):
    # The pickler is cloudpickle's, and runs in the driver alone, whose Python is home's.
    left_out = ("__init__", "package_in_run", "pickler", "pickle_rules")
    own = [path.relative_to(REMOTE).with_suffix("") for path in REMOTE.rglob("*.py") if path.stem not in left_out]
    code = "\n".join(f"import slurm_ray_flow.remote.{'.'.join(path.parts)}" for path in own)
    done = isolated(python_of("3.9"), tools, code, tmp_path)
    assert done.returncode == 0, done.stderr


INSIDE = """
from slurm_ray_flow import slurm_ray_flow, Handle, LocalMachine, OutOfMemory, SlurmRayFlowError
@slurm_ray_flow
def plain(x): return x
@slurm_ray_flow(cluster="anything", nodes=3)
def with_options(x): return x
assert plain(1) == with_options.with_options(nodes=4)(1) == plain.local(1) == 1
assert issubclass(OutOfMemory, SlurmRayFlowError)
for use in (lambda: plain.submit(1), lambda: Handle.attach("r"), lambda: LocalMachine().facts()):
    try:
        use()
    except SlurmRayFlowError as error:
        assert "inside a run" in str(error)
    else:
        raise AssertionError(use)
"""


def test_inside_a_run_the_decorator_leaves_functions_as_they_are(tools, tmp_path):
    done = isolated(sys.executable, tools, INSIDE, tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_event_that_finds_no_room_gets_the_reserve(tmp_path):
    run = events.RunFiles(str(tmp_path), "r")
    os.makedirs(run.folder)
    run.keep_reserve()
    assert os.path.getsize(run.reserve) == events.RESERVE_SIZE
    run.record("call_ended", message="ü")
    run.free_reserve()
    assert not os.path.exists(run.reserve)
    assert [event["message"] for event in run.recorded()] == ["ü"]
    assert run.has_ended()


@pytest.mark.parametrize("damage", ["emptied", "zeroed", "gone"])
def test_programs_that_a_loss_of_power_has_damaged_are_put_there_again(tmp_path, damage):
    agent = programs.install(tmp_path) / "slurm_ray_flow" / "remote" / "agent" / "agent.py"
    kept = agent.read_bytes()
    agent.unlink() if damage == "gone" else agent.write_bytes(bytes(len(kept) if damage == "zeroed" else 0))
    assert programs.install(tmp_path) == agent.parents[3]
    assert agent.read_bytes() == kept
    assert os.listdir(tmp_path / "tools") == [programs.digest()]
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "tools").iterdir()} == {0}


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_size) or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda source, target: seen.append(target) or replace(source, target))
    files.write_whole(str(tmp_path / "a"), b"four")
    (tmp_path / "b").write_bytes(b"other")
    files.rename(str(tmp_path / "b"), str(tmp_path / "c"))
    assert seen == [4, str(tmp_path / "a"), 5, str(tmp_path / "c")]


def test_the_end_of_a_run_is_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(run.has_ended()) or fsync(descriptor))
    run = events.RunFiles(str(tmp_path), "r")
    os.makedirs(run.folder)
    run.record("call_started")
    run.record("call_ended")
    assert synced == [True]


class Queueing:
    """A day in a queue whose holder changes all the time, but for the last hour."""

    now, ahead, pause = 0.0, 3, 0.0

    def __init__(self, *_):
        pass

    def take(self):
        Queueing.now += 5.0
        return Queueing.now > 86400

    def holders(self):
        return [{"user": "bob", "since": min(Queueing.now, 82800)}]


def test_a_long_wait_is_told_in_few_events_and_its_last_state_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(head, "Turn", Queueing)
    monkeypatch.setattr(head.time, "monotonic", lambda: Queueing.now)
    monkeypatch.setattr(head.signal, "sigtimedwait", lambda *_: None)
    run = events.RunFiles(str(tmp_path), "r")
    os.makedirs(run.folder)
    head.await_turn(run, {"lock": {"path": "/none"}}, set())
    told = [event["holder"]["since"] for event in run.recorded()]
    assert told[0] == 5.0
    assert told[-1] == 82800
    assert len(told) < 500


def test_half_a_line_is_no_event():
    assert protocol.parse_events(b'{"event": "a"}\n{"event": "b"') == ([{"event": "a"}], 15)


class Stubborn(Exception):
    def __reduce__(self):
        raise TypeError("not me")


class TwoParts(Exception):
    def __init__(self, left, right):
        super().__init__(left + right)
        self.left = left


def travels(value):
    try:
        return type(pickled(value)) is type(value)
    except Exception:
        return False


def pickled(value):
    import io

    file = io.BytesIO()
    pickling.dump(value, file, lambda _: True)
    file.seek(0)
    return pickling.load(file, [])


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_an_exception_keeps_its_chain_its_notes_and_its_type():
    error = raised(TwoParts("a", "b"), KeyError("why"))
    error.__notes__ = ["a note"]
    back = failures.unpack(failures.pack(error, travels))
    assert type(back) is TwoParts
    assert (back.args, back.left, back.__notes__) == (("ab",), "a", ["a note"])
    assert isinstance(back.__cause__, KeyError)


def test_an_exception_that_cannot_travel_becomes_its_nearest_base_that_can():
    class Local(KeyError):
        def __reduce__(self):
            raise TypeError("no")

        __str__ = Exception.__str__

    back = failures.unpack(failures.pack(raised(Local("the key"), KeyError("why")), travels))
    assert type(back) is KeyError
    assert back.args == ("the key",)
    assert back.__cause__.args == ("why",)
    assert "Local" in back.__notes__[0]


def test_of_an_exception_what_travels_comes_home():
    error = TwoParts("a", "b")
    error.stream, error.count = (n for n in ()), 3
    back = failures.unpack(failures.pack(raised(error), travels))
    assert type(back) is TwoParts
    assert (str(back), back.left, back.count) == ("ab", "a", 3)
    assert not hasattr(back, "stream")
    assert "stream" in back.__notes__[-1]


class Formats(OSError):
    def __init__(self, name, *, mode="r"):
        super().__init__(2, f"no {name}", "file.csv")
        self.mode = mode


class KeywordsOnly(Exception):
    def __init__(self, *, code, why):
        self.code, self.why = code, why


@pytest.mark.parametrize(
    "error",
    [
        Formats("input", mode="w"),
        KeywordsOnly(code=3, why="x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        StopIteration(7),
        ImportError("no", name="lab", path="/x"),
        SystemExit(4),
        FileNotFoundError(2, "no such measurement", "mesure-\udce9.csv"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_not_made_anew_by_its_init(error):
    error.__cause__ = ValueError("cause")
    back = failures.unpack(failures.pack(error, travels))
    assert type(back) is type(error)
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))
    for name in ("errno", "filename", "value", "code", "object", "path"):
        assert getattr(back, name, None) == getattr(error, name, None)
    assert back.__cause__.args == ("cause",)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups")
def test_a_group_comes_home_with_its_exceptions():
    inner = TwoParts("a", "b")
    inner.__cause__ = KeyError("why")
    error = ExceptionGroup("several", [inner, ExceptionGroup("more", [ValueError(1)])])  # noqa: F821
    back = failures.unpack(failures.pack(error, travels))
    assert (type(back), back.message) == (type(error), "several")
    assert (type(back.exceptions[0]), back.exceptions[0].left) == (TwoParts, "a")
    assert back.exceptions[0].__cause__.args == ("why",)
    assert back.exceptions[1].exceptions[0].args == (1,)


def test_a_chain_that_bites_its_tail_ends():
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    back = failures.unpack(failures.pack(first, travels))
    assert back.__cause__.args == ("2",)
    assert back.__cause__.__cause__ is back


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": 1, "b": [1, (n for n in ())]}, "value['b'][1]"),
        ([1, {2: (3, iter(()), (n for n in ()))}], "value[1][2][2]"),
        ((n for n in ()), None),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(value, path):
    assert pickling.offending_part(value) == path


@pytest.mark.parametrize(("recorded", "state"), [("stat-living.txt", "S"), ("stat-zombie.txt", "Z")])
def test_a_process_may_be_called_anything(recorded, state):
    fields = processes.stat_fields((RECORDED / recorded).read_text())
    started = {"S": "655445", "Z": "655475"}[state]
    assert (fields[0], fields[1], fields[19]) == (state, "12052", started)


def test_a_zombie_is_no_longer_there():
    child = subprocess.Popen(["true"])
    wait_for(lambda: not processes.is_alive(child.pid))
    assert processes.started(child.pid) is None
    child.wait()


@pytest.mark.parametrize(
    ("used", "grown", "seconds"),
    [(0, 0, 0.2), (100, -50, 0.2), (100, 100, 0.05), (900, 400, 0.025), (999, 400, 0.2)],
    ids=["nothing yet", "shrinks", "slow", "fast", "nearly there"],
)
def test_memory_is_looked_at_before_it_can_reach_its_limit(used, grown, seconds):
    wait = limits.next_look(used, grown, seconds, 1000)
    assert limits.SHORTEST_PAUSE <= wait <= limits.LONGEST_PAUSE
    if grown > 0:
        assert used + wait * grown / seconds < 1000 or wait == limits.SHORTEST_PAUSE


def test_descendants_without_a_branch():
    child = subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        found = processes.descendants(os.getpid())
        assert child.pid in found
        assert len(processes.descendants(child.pid)) == 1
        assert not (processes.descendants(os.getpid(), [child.pid]) & (processes.descendants(child.pid) | {child.pid}))
    finally:
        for pid in [*processes.descendants(child.pid), child.pid]:
            os.kill(pid, 9)
        child.wait()
        child.stdout.close()
    assert not processes.is_alive(child.pid)


def test_graphics_cards_are_restricted_unless_a_scheduler_did_it():
    assert limits.gpu_variables(2, {}) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert limits.gpu_variables(2, {"CUDA_VISIBLE_DEVICES": "5"}) == {}
    assert limits.gpu_variables(None, {}) == limits.gpu_variables(0, {}) == {}


def test_a_module_may_make_its_cluster_beside_its_functions():
    made = package_in_run.SlurmCluster(connection=package_in_run.SshConnection(host="login"), partition="gpu")
    assert isinstance(package_in_run.SshServer.load("desi"), package_in_run.SshServer)
    with pytest.raises(package_in_run.SlurmRayFlowError, match=r"SlurmCluster\.facts"):
        made.facts()


def test_what_a_process_holds_is_read_from_what_the_kernel_tells():
    status, rollup = (limits.sizes((RECORDED / name).read_text()) for name in ("status.txt", "smaps_rollup.txt"))
    assert (status["RssAnon"], status["RssShmem"]) == (313412 << 10, 0)
    assert (rollup["Pss_Anon"], rollup["Pss_Shmem"], rollup["Pss"]) == (63393 << 10, 0, 63445 << 10)


FORKS = """
import mmap, os, signal
from slurm_ray_flow.remote.shared import limits
size = 32 << 20
held, segment = bytearray(os.urandom(size)), mmap.mmap(-1, size)
segment[:] = held
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    held[: size // 2] = bytes(size // 2)
    os.write(writing, segment[:: mmap.PAGESIZE][:1])
    signal.pause()
try:
    os.read(reading, 1)
    alone = sum(limits.held([os.getpid()]).values())
    both = limits.held([os.getpid(), child])
    assert size // 2 <= sum(both.values()) - alone < size, (alone, both)
    assert sum(limits.bounds(both).values()) - alone >= size
    assert f"({child}) " in limits.largest(both)
finally:
    os.kill(child, 9)
"""
"""In a process of its own: a large one that is forked copies more than is meant here."""


def test_what_a_fork_shares_counts_once_and_what_it_writes_counts_twice():
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60)


def test_a_process_that_has_gone_holds_nothing():
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        bounds = {child.pid: 8 << 20 for child in children}
        children[0].kill()
        children[0].wait()
        found = limits.parts(bounds)
        assert found[children[0].pid] == 0
        assert 0 < found[children[1].pid] < 8 << 20
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_files_that_are_read_count_for_nobody(tmp_path):
    import mmap

    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as found:
        before = sum(limits.held([os.getpid()]).values())
        assert set(found[:: mmap.PAGESIZE]) == {0}
        assert sum(limits.held([os.getpid()]).values()) - before < 8 << 20


def test_shared_memory_counts_once_for_all_who_have_it():
    import mmap

    memory = mmap.mmap(-1, 8 << 20)
    memory[:] = b"x" * (8 << 20)
    child = os.fork()
    if child == 0:
        memory[:1] = b"y"
        signal.pause()
    try:
        both = limits.shared_memory([os.getpid(), child])
        assert both == limits.shared_memory([os.getpid()])
        assert both >= 8 << 20
        assert limits.shared_memory([]) == 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        memory.close()
