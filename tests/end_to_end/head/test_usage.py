"""Real heads on temporary roots: what is said of a call's use of processors, memory and cards."""

import os
import re
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")


def burn():
    """A function by value: takes processor seconds in this process."""

    def burning(seconds):
        import time

        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return burning


def test_processor_seconds_of_the_call_and_of_what_it_starts_and_ends(lab, name):
    here = burn()

    def function():
        import subprocess

        here(0.5)
        program = "import time\nwhile time.process_time() < 1: pass"
        subprocess.run(["sh", "-c", f"{sys.executable} -c '{program}'; true"], check=True)

    usage = lab.run(name, function, cpus=2, memory=1 << 30)["usage"]
    assert 1.45 <= usage["cpu_seconds"] < 2.5
    assert (usage["cpus"], usage["memory"], usage["gpus"]) == (2, 1 << 30, 0)
    assert usage["wall"] > 1
    [node] = usage["nodes"]
    assert node["cpu_seconds"] == usage["cpu_seconds"]
    assert node["host"]


def test_the_most_memory_that_it_held(lab, name):
    def function():
        held = bytearray(os.urandom(1 << 20)) * 200
        time.sleep(3.0)
        del held
        time.sleep(1.2)

    usage = lab.run(name, function)["usage"]
    assert 200 << 20 < usage["memory_peak"] < 300 << 20
    assert usage["cpu_seconds"] < 3.0  # it slept for longer


def test_a_call_that_is_ended_has_its_use_told(lab, name):
    usage = lab.run(name, lambda: time.sleep(60), time_limit=1.0)["usage"]
    assert usage["wall"] < 30


FAKE_NVIDIA_SMI = """#!/bin/sh
echo "0, GPU-aaaa, 50, 1000"
echo "1, GPU-bbbb, 100, 9000"
echo "2, GPU-cccc, [N/A], 5"
"""


@pytest.mark.parametrize("answers", [True, False])
def test_cards_are_asked_and_never_waited_for(lab, name, tmp_path, monkeypatch, answers):
    program = tmp_path / "nvidia-smi"
    program.write_text(FAKE_NVIDIA_SMI if answers else "#!/bin/sh\nsleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ended = lab.run(name, lambda: time.sleep(4.0), gpus=1)
    assert ended["outcome"] == "value"
    usage = ended["usage"]
    assert usage["gpus"] == 1
    if answers:
        assert usage["gpu_memory_peak"] == 1000 << 20
        assert usage["gpu_seconds"] == pytest.approx(usage["wall"] / 2, abs=0.2)
    else:
        assert "gpu_seconds" not in usage


@pytest.mark.ray
def test_the_tasks_of_ray_count(lab, name):
    here = burn()

    def function():
        import ray

        remote = ray.remote(here)
        ray.get([remote.remote(1.5) for _ in range(2)])

    usage = lab.run(name, function, ray=True, cpus=2)["usage"]
    assert 2.5 < usage["cpu_seconds"] < 8


def readers(number, seconds):
    """Forks that read what their parent had before, all of them at the same time."""

    def function():
        held = bytearray(os.urandom(1 << 20)) * 150
        children = []
        for _ in range(number):
            children.append(os.fork())
            if not children[-1]:
                sum(held[::4096])
                time.sleep(seconds)
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)

    return function


def test_what_forks_only_read_counts_once(lab, name):
    ended = lab.run(name, readers(4, 2.5), memory=400 << 20)
    assert ended["outcome"] == "value", ended
    assert 150 << 20 < ended["usage"]["memory_peak"] < 300 << 20


def test_a_segment_of_shared_memory_counts_once_and_does_count(lab, name):
    def function(size):
        from multiprocessing import shared_memory

        segment = shared_memory.SharedMemory(create=True, size=size)
        try:
            segment.buf[:] = bytes(size)
            child = os.fork()
            if not child:
                bytes(segment.buf[::4096])
                time.sleep(2.0)
                os._exit(0)
            os.waitpid(child, 0)
        finally:
            segment.close()
            segment.unlink()

    assert lab.run(name, function, 150 << 20, memory=450 << 20)["outcome"] == "value"
    assert lab.run(f"{name}-more", function, 250 << 20, memory=200 << 20)["cause"] == "out_of_memory"


def test_who_holds_too_much_is_named(lab, name):
    def function():
        child = os.fork()
        print(os.getpid() if child else f"most {os.getpid()}", flush=True)
        held = bytearray(os.urandom(1 << 20)) * (20 if child else 200)
        time.sleep(60)
        return held

    ended = lab.run(name, function, memory=200 << 20)
    assert ended["cause"] == "out_of_memory"
    most = next(line.split()[1] for line in lab.log(name).splitlines() if line.startswith("most"))
    assert re.search(rf"processes: \S+ \({most}\) \d\d\d(\.\d+)? MiB, ", ended["message"])
