"""Real heads on temporary roots: what one try leaves for the next one."""

import stat
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")


def counting():
    """Counts the tries, in a file that belongs to the run."""

    def function():
        from slurm_ray_flow import checkpoint

        path = checkpoint("deep/count.txt")
        before = int(path.read_text()) if path.exists() else 0
        path.write_text(str(before + 1))
        return before + 1, str(path)

    return function


def test_the_next_try_finds_what_the_one_before_wrote(lab, name):
    lab.run(name, counting())
    lab.run(name + ".2", counting())
    assert [lab.outcome(name)["value"][0], lab.outcome(name + ".2")["value"][0]] == [1, 2]
    folder = lab.folder(name) / "checkpoints"
    assert lab.outcome(name + ".2")["value"][1] == str(folder / "deep" / "count.txt")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lab.run(name + "-other", counting())
    assert lab.outcome(name + "-other")["value"][0] == 1


def test_a_process_of_the_function_has_the_same_folder(lab, name):
    def function():
        import subprocess

        code = "from slurm_ray_flow import checkpoint; print(checkpoint('a'))"
        paths = ["-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
        return subprocess.run([sys.executable, *paths], capture_output=True, text=True, check=True).stdout.strip()

    lab.run(name, function)
    assert lab.outcome(name)["value"] == str(lab.folder(name) / "checkpoints" / "a")


@pytest.mark.ray
def test_a_ray_task_has_the_same_folder_also_on_a_warm_cluster(lab, name):
    def function():
        import ray

        from slurm_ray_flow import checkpoint

        @ray.remote
        def task():
            return str(checkpoint("a"))

        return ray.get(task.remote())

    later = name + "-later"
    lab.lay(name, function, ray=True, keep_warm=60)
    lab.lay(later, function, ray=True)
    lab.enter(name, name)
    head = lab.head(name)
    for run in (name, later):
        lab.enter(name, run) if run == later else None
        assert lab.wait_for(run, "call_ended")["outcome"] == "value"
        assert lab.outcome(run)["value"] == str(lab.folder(run) / "checkpoints" / "a")
    head.terminate()
    assert lab.wait_for(name, "released")
