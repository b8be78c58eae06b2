"""Functions in a container, by a stand-in for Apptainer (see stand_in_apptainer.py): there is no real one here."""

import os
import sys
import threading

import pytest

from container_lab import lay_image, lay_runtime
from slurm_ray_flow import Cancelled, Crashed, EnvironmentFailed, Rejected
from support import wait_for

pytestmark = pytest.mark.server


@pytest.fixture
def contained(work, tmp_path, monkeypatch):
    """The functions, each in a container of the image at `contained.image`."""
    import contained

    lay_runtime(tmp_path / "runtime")
    monkeypatch.setenv("PATH", f"{tmp_path / 'runtime'}{os.pathsep}{os.environ['PATH']}")
    contained.image = tmp_path / "image.sif"
    lay_image(contained.image)
    contained.on = lambda function, ray="never", **options: function.with_options(
        container=str(contained.image), ray=ray, **options
    )
    return contained


def test_a_function_runs_in_the_image_with_the_variables_that_it_was_given_and_no_other(contained, monkeypatch):
    monkeypatch.setenv("OF_THIS_SHELL", "yes")
    look = contained.on(contained.look, env_vars={"CHOSEN": "a secret"})
    found = look("APPTAINER_CONTAINER", "OF_THIS_SHELL", "CHOSEN", "SRF_RUN_ID")
    assert found.pop("SRF_RUN_ID")
    assert found == {"APPTAINER_CONTAINER": str(contained.image), "OF_THIS_SHELL": None, "CHOSEN": "a secret"}


@pytest.mark.ray
def test_ray_runs_in_the_image_too(contained):
    squares = contained.on(contained.squares, env_vars={"SHOWN": "in the workers"}, cpus_per_node=2, ray="auto")
    assert squares() == (2470, {str(contained.image)}, {"in the workers"})


def test_no_secret_stands_in_an_argument_list(contained):
    shown, _ = contained.on(contained.argument_lists, env_vars={"CHOSEN": "a secret"})()
    assert b"exec\0--cleanenv" in shown
    assert b"a secret" not in shown


def test_a_cancelled_function_ends_and_so_does_its_container(contained, tmp_path):
    handle = contained.on(contained.wait).submit(str(tmp_path / "pid"))
    wait_for((tmp_path / "pid").exists)
    wait_for((tmp_path / "pid").read_text)
    pid = (tmp_path / "pid").read_text()
    canceller = threading.Thread(target=handle.cancel)
    canceller.start()
    with pytest.raises(Cancelled):
        handle.result(timeout=180)
    canceller.join(180)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_crash_in_a_container_is_told_as_one(contained):
    with pytest.raises(Crashed, match="SIGSEGV"):
        contained.on(contained.die)()


def test_an_image_that_is_not_there_is_refused_before_anything_is_sent(contained):
    with pytest.raises(Rejected) as caught:
        contained.look.with_options(ray="never", container="/nowhere/image.sif")()
    assert "/nowhere/image.sif" in caught.value.where
    assert "apptainer pull" in caught.value.advice


def test_what_is_no_image_is_told_with_the_runtimes_own_words(contained, tmp_path):
    (tmp_path / "text.sif").write_text("no image")
    with pytest.raises(EnvironmentFailed, match="image format not recognized"):
        contained.look.with_options(ray="never", container=str(tmp_path / "text.sif"))()


def test_an_image_without_what_a_run_needs_is_told_with_what_to_install(contained, tmp_path):
    bare = tmp_path / "bare.sif"
    lay_image(bare, f"{sys.executable} -S")
    with pytest.raises(EnvironmentFailed, match="it has no cloudpickle") as caught:
        contained.look.with_options(ray="never", container=str(bare))()
    assert "pip install cloudpickle==" in str(caught.value)


def test_where_there_is_no_runtime_the_error_says_which_are_known(contained, monkeypatch, tmp_path):
    (tmp_path / "runtime" / "apptainer").unlink()
    with pytest.raises(EnvironmentFailed, match="neither apptainer nor singularity"):
        contained.on(contained.look)()
