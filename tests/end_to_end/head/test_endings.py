"""Real heads on temporary roots: a call ends as a script does, and what it leaves behind is told."""

import asyncio
import atexit
import concurrent.futures
import ctypes
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from remote_lab import nothing_left, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")


def saves(seconds):
    """A function by value: writes a file in some seconds."""

    def save(text):
        time.sleep(seconds)
        Path("saved").write_text(text)

    return save


def by_thread(save):
    def function():
        threading.Thread(target=save, args=("thread",), name="saver").start()
        return 1

    return function


def by_executor(save):
    def function():
        pool = concurrent.futures.ThreadPoolExecutor(1)
        pool.submit(time.sleep, 0.5)
        pool.submit(save, "executor")
        return 1

    return function


def by_process(save):
    def function():
        multiprocessing.get_context("fork").Process(target=save, args=("process",)).start()
        return 1

    return function


def by_atexit(save):
    def function():
        atexit.register(save, "atexit")
        return 1

    return function


@pytest.mark.parametrize("way", [by_thread, by_executor, by_process, by_atexit], ids=lambda way: way.__name__)
def test_what_goes_on_when_the_function_has_returned_is_waited_for(lab, name, way):
    ended = lab.run(name, way(saves(3)))
    assert ended["outcome"] == "value"
    assert (lab.folder(name) / "saved").read_text() == way.__name__[3:]
    assert "waits for" in lab.log(name)


def test_a_function_that_failed_ends_in_the_same_way_and_in_the_order_of_a_script(lab, name):
    def function():
        def late():
            time.sleep(0.5)
            print("thread")

        atexit.register(print, "second")
        atexit.register(lambda: 1 / 0)
        atexit.register(print, "first")
        threading.Thread(target=late).start()
        raise LookupError("its own")

    ended = lab.run(name, function)
    assert (ended["outcome"], ended["cause"]) == ("exception", "user_code")
    log = lab.log(name)
    assert [line for line in log.splitlines() if line in ("thread", "first", "second")] == ["thread", "first", "second"]
    assert "ZeroDivisionError" in log


def hangs():
    def function():
        threading.Thread(target=time.sleep, args=(600,), name="hangs").start()
        print("returns", flush=True)
        return "the value"

    return function


def test_a_value_counts_when_the_time_limit_ends_a_thread_and_the_log_names_it(lab, name):
    ended = lab.run(name, hangs(), time_limit=8.0)
    assert ended["outcome"] == "value"
    assert lab.outcome(name, ended) == {"value": "the value"}
    assert "time limit" in lab.log(name).splitlines()[-1]
    assert "hangs" in lab.log(name).splitlines()[-1]
    assert nothing_left(name)


def test_an_exception_counts_as_well(lab, name):
    def function():
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise LookupError("its own")

    ended = lab.run(name, function, time_limit=8.0)
    assert ended["cause"] == "user_code"
    assert isinstance(lab.error(name), LookupError)


def test_a_cancel_ends_the_waiting_and_not_the_value(lab, name):
    lab.lay(name, hangs())
    lab.enter(name, name)
    lab.head(name)
    until(lambda: (lab.folder(name) / "log.txt").exists() and "waits for" in lab.log(name))
    (lab.folder(name) / "cancel").touch()
    assert lab.wait_for(name, "call_ended")["outcome"] == "value"
    assert nothing_left(name)


def test_a_warm_head_begins_the_next_call_as_soon_as_the_threads_of_the_last_one_have_ended(lab, name):
    lab.lay(name, by_thread(saves(1.0)), keep_warm=60)
    lab.enter(name, name)
    head = lab.head(name)
    lab.lay(f"{name}-next", lambda path: Path(path).read_text(), str(lab.folder(name) / "saved"))
    lab.enter(name, f"{name}-next")
    assert lab.wait_for(f"{name}-next", "call_ended")["outcome"] == "value"
    assert lab.outcome(f"{name}-next") == {"value": "thread"}
    head.terminate()
    assert lab.wait_for(name, "released")


def test_what_c_and_python_hold_back_is_written(lab, name):
    def function():
        ctypes.CDLL(None).printf(b"from C")
        sys.stdout.write(" and from Python")

    lab.run(name, function)
    assert "from C" in lab.log(name)
    assert " and from Python" in lab.log(name)


def test_processes_that_are_left_behind_are_named(lab, name):
    def function():
        print("no end of line", end="")
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    ended = lab.run(name, function)
    pid = lab.outcome(name, ended)["value"]
    [_, line] = lab.log(name).splitlines()
    assert f"sleep ({pid})" in line
    assert nothing_left(name)


def test_helpers_that_end_by_themselves_are_let_end(lab, name):
    """A resource tracker removes what the function has not."""

    def function():
        from multiprocessing import shared_memory

        return shared_memory.SharedMemory(create=True, size=1 << 20).name

    ended = lab.run(name, function)
    assert not Path("/dev/shm", lab.outcome(name, ended)["value"]).exists()
    assert "left" not in lab.log(name)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("awaits", [True, False], ids=["async", "sync"])
def test_what_the_function_raises_itself_is_its_own(lab, name, kind, awaits):
    async def awaited():
        raise kind("its own")

    def called():
        raise kind("its own")

    ended = lab.run(name, awaited if awaits else called)
    assert (ended["outcome"], ended["cause"]) == ("exception", "user_code")
    assert type(lab.error(name)) is kind


@pytest.mark.parametrize(
    ("code", "number", "said"), [(0, 0, "sys.exit(0)"), ("no data", 1, "no data"), (None, 0, "()")]
)
def test_an_exit_is_told_with_what_it_was_given(lab, name, code, number, said):
    ended = lab.run(name, sys.exit, code)
    assert (ended["cause"], ended["exit_code"]) == ("crashed", number)
    assert said in ended["message"]


def interrupts_itself():
    import os
    import signal

    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return "interrupted"
    return "deaf"


def test_a_function_has_pythons_own_ctrl_c_also_below_a_shells_background_job(lab, name):
    lab.lay(name, interrupts_itself)
    lab.enter(name, name)
    lab.head(name, before=("sh", "-c", "trap '' INT; exec \"$@\"", "sh"))
    assert lab.wait_for(name, "call_ended")["outcome"] == "value"
    assert lab.outcome(name)["value"] == "interrupted"
