"""Real heads on temporary roots: a pilot takes bundles of items, and what items do to their worker costs them alone."""

import contextlib
import os
import pickle
import signal
import sys
import time

import pytest

from remote_lab import nothing_left, processes_of, until
from slurm_ray_flow.core.errors import OutOfMemory, ResultError
from slurm_ray_flow.core.items import outcome_of_item, parse_results
from slurm_ray_flow.remote.shared import end_warning
from slurm_ray_flow.remote.shared.items import bundle_name, pack_bundle, withdraw
from slurm_ray_flow.remote.shared.protocol import TAKEN

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")

SETTINGS = {"workers": 2, "idle_seconds": 60.0, "threads": 1}


class Pilot:
    """A pilot under way, and home's side of its files."""

    def __init__(self, lab, name, function, *args, spec=None, **settings):
        self.lab, self.name, self.bundles = lab, name, 0
        self.folder = lab.lay(name, function, *args, pilot={**SETTINGS, **settings}, **(spec or {})) / "items"
        self.folder.mkdir()
        lab.enter(name, name)

    def start(self):
        self.head = self.lab.head(self.name)
        return self

    def place(self, calls, first=0):
        """Place a bundle with the positional arguments of items."""
        items = [(first + number, pickle.dumps((args, {}))) for number, args in enumerate(calls)]
        path = self.folder / bundle_name(self.bundles)
        path.with_suffix(".new").write_bytes(pack_bundle(items))
        path.with_suffix(".new").rename(path)
        self.bundles += 1
        return path

    def close(self):
        (self.folder / "closed").touch()

    def finished(self):
        """Close the stream, and give the pilot's summary."""
        self.close()
        ended = self.lab.wait_for(self.name, "call_ended")
        assert ended["outcome"] == "value", ended
        assert nothing_left(self.name)
        return self.lab.outcome(self.name, ended)["value"]

    def results(self):
        try:
            return parse_results((self.folder / "results.jsonl").read_bytes())[0]
        except FileNotFoundError:
            return []

    def outcomes(self):
        """The results by item, each with its outcome."""
        values, found = (self.folder / "values").read_bytes(), {}
        for result in self.results():
            data = result.verified(values[result.offset : result.offset + result.length])
            assert data is not None
            assert result.item not in found, f"two results of item {result.item}"
            found[result.item] = result, outcome_of_item(result.kind, data, "here")
        return found

    def printed(self, result):
        worker, start, length = result.log
        return (self.folder / f"log.{worker}").read_bytes()[start : start + length].decode()


def test_twenty_thousand_items_have_their_values(lab, name):
    pilot = Pilot(lab, name, lambda left, right: [left, {"sum": left + right}], 5).start()
    for bundle in range(20):
        pilot.place([(number,) for number in range(1000 * bundle, 1000 * bundle + 1000)], first=1000 * bundle)
    assert pilot.finished() == {"done": 20_000, "failed": 0, "crashed": 0, "left": 0, "interrupted": []}
    values = {item: outcome.unwrap() for item, (_, outcome) in pilot.outcomes().items()}
    assert values == {number: [number, {"sum": number + 5}] for number in range(20_000)}
    assert all(result.log is None and result.group == "" for result in pilot.results())


def ending():
    def function(how):
        import os
        import signal
        import sys
        import threading

        def fork():
            if os.fork():
                os.wait()

        def fail(error):
            raise error

        print("begins with", how)
        ways = {
            "exit": lambda: os._exit(3),
            "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "leaves": lambda: sys.exit("enough"),
            "interrupts": lambda: fail(KeyboardInterrupt()),
            "fails": lambda: fail(ValueError("a\nlong " + "x" * 500)),
            "lock": lambda: {"inner": threading.Lock()},
            "forks": fork,
        }
        return ways.get(how, lambda: None)() or how

    return function


def test_what_items_do_to_their_worker_costs_them_alone(lab, name):
    bad = ["exit", "killed", "segfault", "leaves", "interrupts", "fails", "lock", "forks"]
    calls = [(bad[number // 20] if number % 20 == 10 else number,) for number in range(20 * len(bad))]
    pilot = Pilot(lab, name, ending()).start()
    pilot.place(calls)
    assert pilot.finished() == {"done": 153, "failed": 4, "crashed": 3, "left": 0, "interrupted": []}
    outcomes = pilot.outcomes()
    assert sorted(outcomes) == list(range(160))
    for number, (how,) in enumerate(calls):
        result, outcome = outcomes[number]
        assert f"begins with {how}\n" in pilot.printed(result)
        if how not in bad[:-1]:
            assert (result.kind, outcome.unwrap()) == ("value", how)
    ends = {how: outcomes[number] for number, (how,) in enumerate(calls) if how in bad}
    assert {how: result.kind for how, (result, _) in ends.items()} == {
        "exit": "crashed", "killed": "crashed", "segfault": "crashed",
        "leaves": "error", "interrupts": "error", "fails": "error", "lock": "error",
        "forks": "value",
    }  # fmt: skip
    assert [ends[how][0].group for how in ("exit", "killed")] == ["crashed by exit code 3", "crashed by SIGKILL"]
    assert "SIGSEGV" in str(ends["segfault"][1].exception)
    assert ends["leaves"][1].exception.code == "enough"
    assert isinstance(ends["interrupts"][1].exception, KeyboardInterrupt)
    result, outcome = ends["fails"]
    assert result.group.startswith("ValueError at ")
    assert result.group.endswith("in fail")
    assert result.message.startswith("ValueError: a long x")
    assert len(result.message) == 300
    assert "in function" in outcome.traceback
    assert "remote" not in outcome.traceback
    assert isinstance(ends["lock"][1].exception, ResultError)
    assert "inner" in str(ends["lock"][1].exception)


def test_all_processes_are_killed_and_at_most_one_item_a_worker_is_lost(lab, name, tmp_path):
    def function(number, file):
        import os

        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"%d\n" % number)
        os.close(descriptor)
        return b"%d" % number * 30

    pilot = Pilot(lab, name, function, str(tmp_path / "begun")).start()
    for bundle in range(50):
        pilot.place([(number,) for number in range(1000 * bundle, 1000 * bundle + 1000)], first=1000 * bundle)
    until(lambda: len(pilot.results()) > 3000, 120)
    for pid in processes_of(f"SRF_RUN_ID={name}"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert lab.wait_for(name, "call_ended")["cause"] == "crashed"
    assert nothing_left(name)
    outcomes = pilot.outcomes()
    assert all(outcome.unwrap() == b"%d" % item * 30 for item, (_, outcome) in outcomes.items())
    begun = [int(line) for line in (tmp_path / "begun").read_text().splitlines()]
    assert len(begun) == len(set(begun)) < 50_000
    assert set(outcomes) <= set(begun)
    assert len(set(begun) - set(outcomes)) <= 2, "one for each worker"


def test_large_items_and_values_pass(lab, name):
    pilot = Pilot(lab, name, lambda data: data[::-1]).start()
    numbers = range(12)
    pilot.place([(bytes([number]) * 5_000_000 + b"end",) for number in numbers])
    assert pilot.finished()["done"] == 12
    assert {item: outcome.unwrap() for item, (_, outcome) in pilot.outcomes().items()} == {
        number: b"dne" + bytes([number]) * 5_000_000 for number in numbers
    }


def test_a_worker_whose_disk_is_full_waits_and_loses_nothing(lab, name):
    def function(number):
        import resource
        import threading

        def free():
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        if number == 5:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
            threading.Timer(1.0, free).start()
        return b"x" * 20_000 if number == 5 else number

    pilot = Pilot(lab, name, function).start()
    pilot.place([(number,) for number in range(20)])
    assert pilot.finished()["done"] == 20
    values = {item: outcome.unwrap() for item, (_, outcome) in pilot.outcomes().items()}
    assert values == {**{number: number for number in range(20)}, 5: b"x" * 20_000}
    assert "a result can't be written" in lab.log(name)


def test_an_item_that_takes_too_much_memory_costs_itself_alone(lab, name):
    def function(number):
        import time

        if number == 3:
            held = []
            for _ in range(40):
                held.append(bytearray(b"x") * (10 << 20))
                time.sleep(0.05)
        return number

    pilot = Pilot(lab, name, function, spec={"memory": 300 << 20}).start()
    pilot.place([(number,) for number in range(20)])
    assert pilot.finished() == {"done": 19, "failed": 0, "crashed": 1, "left": 0, "interrupted": []}
    result, outcome = pilot.outcomes()[3]
    assert (result.kind, result.group) == ("crashed", "out of memory")
    assert isinstance(outcome.exception, OutOfMemory)


@pytest.mark.ray
def test_with_ray_items_run_in_the_process_that_ray_knows(lab, name, tmp_path):
    def function(number, more, folder):
        import os
        import time

        import ray

        while number == 9 and not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)

        @ray.remote
        def double(value):
            return 2 * value

        print("item", number)
        if number == 2:
            raise LookupError(number)
        return os.getpid(), ray.get(double.remote(number + more))

    pilot = Pilot(lab, name, function, 10, str(tmp_path), spec={"ray": True}).start()
    pilot.place([(number,) for number in range(4)])
    until(lambda: len(pilot.results()) == 4)
    outcomes = pilot.outcomes()
    pilot.place([(9,)], first=9)
    end_warning.write(str(pilot.folder.with_name("warning.json")), "time_limit", 2.0)
    until(lambda: len(pilot.results()) == 5)
    assert pilot.results()[-1][:3] == (9, 1, "interrupted"), "it is noted before the head ends this process"
    (tmp_path / "go").touch()
    assert pilot.finished() == {"done": 4, "failed": 1, "crashed": 0, "left": 0, "interrupted": []}
    assert pilot.results()[-1][:3] == (9, 1, "value")
    values = {item: outcome.value for item, (_, outcome) in outcomes.items() if item != 2}
    assert len({pid for pid, _ in values.values()}) == 1
    assert {item: value for item, (_, value) in values.items()} == {0: 20, 1: 22, 3: 26}
    assert isinstance(outcomes[2][1].exception, LookupError)
    assert {item: pilot.printed(result) for item, (result, _) in outcomes.items()} == {
        n: f"item {n}\n" for n in range(4)
    }
    ended = lab.wait_for(name, "call_ended")
    assert ended["outcome"] == "value"


def waiting():
    def function(number, folder):
        import os
        import time

        from slurm_ray_flow import on_warning

        on_warning(lambda _: open(os.path.join(folder, f"told-{number}"), "w").close())
        open(os.path.join(folder, f"began-{number}"), "w").close()
        deadline = time.monotonic() + 60
        while not os.path.exists(os.path.join(folder, "go")) and time.monotonic() < deadline:
            time.sleep(0.01)
        return number

    return function


def test_home_withdraws_a_bundle_and_the_end_of_the_walltime_leaves_items(lab, name, tmp_path):
    began = lambda: sorted(path.name for path in tmp_path.glob("began-*"))  # noqa: E731
    pilot = Pilot(lab, name, waiting(), str(tmp_path)).start()
    paths = [pilot.place([(10 * number + one,) for one in range(10)], first=10 * number) for number in range(2)]
    until(lambda: len(began()) == 2, 60)
    assert withdraw(str(paths[1]))
    assert not withdraw(str(paths[0]))
    end_warning.write(str(pilot.folder.with_name("warning.json")), "time_limit", 60.0)
    os.kill(lab.wait_for(name, "call_started")["pid"], end_warning.SIGNAL)  # as the head does
    until(lambda: len(list(tmp_path.glob("told-*"))) == 2, 60)
    (tmp_path / "go").touch()
    assert pilot.finished() == {"done": 2, "failed": 0, "crashed": 0, "left": 8, "interrupted": []}
    assert began() == ["began-0", "began-1"]
    assert sorted(pilot.outcomes()) == [0, 1]


def test_an_item_that_does_not_end_is_left_when_the_run_is_ended(lab, name, tmp_path):
    pilot = Pilot(lab, name, waiting(), str(tmp_path)).start()
    pilot.place([(number,) for number in range(3)])
    until(lambda: len(list(tmp_path.glob("began-*"))) == 2, 60)
    pilot.folder.with_name("cancel").touch()
    summary = pilot.finished()
    interrupted = summary.pop("interrupted")
    assert summary == {"done": 0, "failed": 0, "crashed": 0, "left": 3}
    assert [[bundle, item] for bundle, item, _ in sorted(interrupted)] == [[0, 0], [0, 1]]
    assert all(seconds > 1 for *_, seconds in interrupted)
    assert pilot.results() == []


def test_items_that_the_time_limit_ends_are_named_with_their_seconds(lab, name, tmp_path):
    pilot = Pilot(lab, name, waiting(), str(tmp_path), spec={"time_limit": 8}).start()
    pilot.place([(number,) for number in range(3)])
    summary = pilot.finished()
    assert (summary["done"], summary["left"], len(summary["interrupted"])) == (0, 3, 2)
    assert {(one.item, one.bundle, one.kind) for one in pilot.results()} == {
        (0, 0, "interrupted"),
        (1, 0, "interrupted"),
    }
    limit = lab.wait_for(name, "call_started")["seconds_left"]
    assert all(1 < one.seconds <= limit + 5 for one in pilot.results())
    assert limit <= 8


def test_bundles_come_while_it_runs_and_an_idle_pilot_ends(lab, name):
    pilot = Pilot(lab, name, lambda number: number, idle_seconds=4.0).start()
    for bundle in range(3):
        pilot.place([(bundle,)], first=bundle)
        until(lambda seen=bundle: len(pilot.results()) == seen + 1, 60)
    ended = lab.wait_for(name, "call_ended")
    assert lab.outcome(name, ended)["value"]["done"] == 3
    assert all((pilot.folder / (bundle_name(number) + TAKEN)).exists() for number in range(3))


def test_items_may_have_processes_of_their_own(lab, name):
    def function(number):
        import multiprocessing
        import subprocess
        from concurrent.futures import ThreadPoolExecutor

        with multiprocessing.get_context("fork").Pool(2) as pool:  # whose end is a SIGTERM
            squares = pool.map(abs, [-number, number])
        with ThreadPoolExecutor(2) as threads:
            return squares, list(threads.map(abs, [-1])), subprocess.check_output(["echo", "here"])

    pilot = Pilot(lab, name, function).start()
    pilot.place([(number,) for number in range(6)])
    assert pilot.finished()["done"] == 6
    values = {item: outcome.unwrap() for item, (_, outcome) in pilot.outcomes().items()}
    assert values == {number: ([number, number], [1], b"here\n") for number in range(6)}


def test_a_process_of_an_item_is_ended_by_sigterm_however_soon_that_comes(lab, name):
    """Python itself would forget a signal that comes before the new process has begun."""

    def function(number):
        ends = set()
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            ends.add(os.waitpid(pid, 0)[1])
        return number, ends

    pilot = Pilot(lab, name, function).start()
    pilot.place([(number,) for number in range(2)])
    assert pilot.finished()["done"] == 2
    values = [outcome.unwrap() for _, outcome in pilot.outcomes().values()]
    assert sorted(values) == [(number, {signal.SIGTERM}) for number in range(2)]


def test_a_worker_does_not_outlive_its_pilot(lab, name, tmp_path):
    pilot = Pilot(lab, name, waiting(), str(tmp_path)).start()
    pilot.place([(number,) for number in range(3)])
    until(lambda: len(list(tmp_path.glob("began-*"))) == 2, 60)
    os.kill(lab.wait_for(name, "call_started")["pid"], signal.SIGKILL)
    assert lab.wait_for(name, "call_ended")["cause"] == "crashed"
    assert nothing_left(name)
    assert pilot.results() == []


def importing(tmp_path, text):
    (tmp_path / "their_module.py").write_text(text)
    return {"path": [str(tmp_path)]}


def test_a_function_that_can_not_be_loaded_ends_the_pilot_as_any_call(lab, name, tmp_path):
    spec = importing(tmp_path, "raise LookupError('no data')")
    pilot = Pilot(lab, name, ("their_module", "work"), spec=spec).start()
    pilot.place([(1,)])
    ended = lab.wait_for(name, "call_ended")
    assert (ended["outcome"], ended["cause"]) == ("exception", "environment")
    assert ended["message"] == "LookupError: no data"
    error = lab.error(name)
    assert (type(error), error.args) == (LookupError, ("no data",))
    assert pilot.results() == []


def test_a_module_that_ends_its_process_ends_the_pilot(lab, name, tmp_path):
    spec = importing(tmp_path, "import os; print('here', flush=True); os._exit(9)")
    Pilot(lab, name, ("their_module", "work"), spec=spec).start().place([(1,)])
    ended = lab.wait_for(name, "call_ended")
    assert (ended["outcome"], ended["cause"]) == (None, "environment")
    assert "exit code 9" in ended["message"]
    assert "here" in ended["message"]


def test_workers_share_processors_and_gpus(lab, name):
    def function(_):
        import os
        import time

        time.sleep(0.2)
        return os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]

    variables = {"MKL_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "4,6"}
    spec = {"environment_variables": variables}
    pilot = Pilot(lab, name, function, threads=3, gpus_per_item=1, spec=spec).start()
    pilot.place([(number,) for number in range(10)])
    pilot.finished()
    assert {outcome.unwrap() for _, outcome in pilot.outcomes().values()} == {("3", "7", "4"), ("3", "7", "6")}


def test_a_coroutine_function_has_its_value(lab, name):
    async def function(number):
        import asyncio

        await asyncio.sleep(0)
        return number + 1

    pilot = Pilot(lab, name, function).start()
    pilot.place([(1,)])
    pilot.finished()
    assert pilot.outcomes()[0][1].unwrap() == 2
