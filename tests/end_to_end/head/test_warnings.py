"""Real heads on temporary roots: what a function is told before its end."""

import os
import signal
import sys
import time

import pytest

from remote_lab import nothing_left, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")


def stopping():
    def function():
        import time

        from slurm_ray_flow import on_warning

        class Told(Exception):
            pass

        @on_warning
        def stop(warning):
            raise Told(warning.reason, warning.seconds_left)

        print("listening", flush=True)
        try:
            time.sleep(60)
        except Told as told:
            return told.args

    return function


def test_the_function_is_told_before_its_time_limit(lab, name):
    ended = lab.run(name, stopping(), time_limit=12.0, warn_seconds=8.0)  # it has 4 s to begin to listen
    assert ended["outcome"] == "value", ended
    reason, left = lab.outcome(name)["value"]
    assert reason == "time_limit"
    assert 0.5 < left <= 8.0
    assert nothing_left(name)


def test_a_function_that_does_not_listen_is_not_harmed(lab, name):
    ended = lab.run(name, lambda: time.sleep(1.5) or "well", time_limit=60.0, warn_seconds=59.5)
    assert lab.outcome(name) == {"value": "well"}
    assert ended["cause"] is None


def test_a_library_that_waits_does_not_notice(lab, name):
    def function():
        import ctypes
        import os
        import threading

        reading, writing = os.pipe()
        threading.Timer(2.0, os.write, (writing, b"x")).start()
        return ctypes.CDLL(None).read(reading, ctypes.create_string_buffer(1), 1)

    lab.run(name, function, time_limit=60.0, warn_seconds=59.0)
    assert lab.outcome(name) == {"value": 1}


def test_a_handler_of_its_own_for_the_signal(lab, name):
    def function():
        import signal
        import time

        class Told(Exception):
            pass

        def stop(*_):
            raise Told

        signal.signal(signal.SIGUSR1, stop)
        try:
            time.sleep(60)
        except Told:
            return "told"

    lab.run(name, function, time_limit=24.0, warn_seconds=20.0)  # it has 4 s to begin to listen
    assert lab.outcome(name) == {"value": "told"}


def test_a_warning_that_came_before_anybody_listened_is_told_then(lab, name):
    def function():
        import time

        from slurm_ray_flow import on_warning

        time.sleep(1.0)
        heard = []
        on_warning(heard.append)
        return heard[0].reason

    lab.run(name, function, time_limit=60.0, warn_seconds=59.9)
    assert lab.outcome(name) == {"value": "time_limit"}


@pytest.mark.parametrize("listens", [True, False])
def test_a_cancelled_function_may_tidy_up(lab, name, tmp_path, listens):
    mark = tmp_path / "mark"

    def function():
        import time

        from slurm_ray_flow import on_warning

        if listens:
            on_warning(lambda warning: mark.write_text(warning.reason))
        print("listening", flush=True)
        time.sleep(60)

    lab.lay(name, function, time_limit=60.0)
    lab.enter(name, name)
    lab.head(name)
    until(lambda: (lab.folder(name) / "log.txt").exists() and "listening" in lab.log(name))
    (lab.folder(name) / "cancel").touch()
    ended = lab.wait_for(name, "call_ended")
    assert (ended["cause"], ended.get("signal")) == ("cancelled", signal.SIGTERM)
    assert mark.exists() is listens
    assert not listens or mark.read_text() == "cancelled"


def test_an_awaiting_function_is_told(lab, name):
    async def function():
        import asyncio

        from slurm_ray_flow import on_warning

        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        on_warning(lambda warning: loop.call_soon_threadsafe(told.set))
        await asyncio.wait_for(told.wait(), 30)
        return os.getpid() > 0

    lab.run(name, function, time_limit=30.0, warn_seconds=29.0)
    assert lab.outcome(name) == {"value": True}


@pytest.mark.ray
def test_a_function_that_waits_for_ray_is_told(lab, name):
    def function():
        import time

        import ray

        from slurm_ray_flow import on_warning

        class Told(Exception):
            pass

        @on_warning
        def stop(warning):
            raise Told(warning.reason)

        get = ray.get

        @ray.remote
        def one():
            return 1

        @ray.remote
        def forever():
            get(one.remote())  # by its name to a worker, which has Ray's own
            time.sleep(600)

        try:
            get(forever.remote())
        except Told as told:
            return told.args

    later = name + "-later"  # its time begins when Ray is there, however long that took
    lab.lay(name, lambda: None, ray=True, keep_warm=60)
    lab.lay(later, function, ray=True, time_limit=64.0, warn_seconds=60.0)
    lab.enter(name, name)
    head = lab.head(name)
    assert lab.wait_for(name, "call_ended")
    lab.enter(name, later)
    assert lab.wait_for(later, "call_ended")
    assert lab.outcome(later) == {"value": ("time_limit",)}
    head.terminate()
    assert lab.wait_for(name, "released")
