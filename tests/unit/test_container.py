"""The dialect of Apptainer and Singularity: command lines and variables, written down by hand from their manuals."""

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.remote.shared import container
from slurm_ray_flow.remote.shared import container as shared_container
from slurm_ray_flow.remote.shared.protocol import OperationError

IMAGE = {"image": "/home/u/i.sif", "options": ["--bind=/data"], "python": "python3", "root": "/home/u/.srf"}
APPTAINER, SINGULARITY = "/usr/bin/apptainer", "/opt/bin/singularity"


def test_the_command_binds_our_folders_and_cleans_the_environment(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    assert container.container_command(IMAGE, 0, APPTAINER) == [
        *(APPTAINER, "exec", "--cleanenv", "--bind=/home/u/.srf", "--bind=/tmp", "--bind=/data"),
        *("/home/u/i.sif", "python3"),
    ]


def test_a_scratch_folder_is_bound_too(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/scratch/u")
    assert "--bind=/scratch/u" in container.container_command(IMAGE, 0, APPTAINER)


@pytest.mark.parametrize(("options", "there"), [([], True), (["--rocm"], False)])
def test_cards_bring_nvidias_driver_in_unless_another_one_is_chosen(options, there):
    command = container.container_command({**IMAGE, "options": options}, 2, APPTAINER)
    assert ("--nv" in command) is there


@pytest.mark.parametrize(("runtime", "prefix"), [(APPTAINER, "APPTAINERENV_"), (SINGULARITY, "SINGULARITYENV_")])
def test_what_goes_in_is_ours_rays_slurms_and_what_the_user_chose(runtime, prefix):
    given = {"SRF_RUN_ID": "1", "RAY_TMPDIR": "/t", "SLURM_JOB_ID": "7", "MINE": "secret", "HOSTS_OWN": "x"}
    found = container.container_variables(given, ["MINE"], runtime)
    inside = {name[len(prefix) :] for name in found if name.startswith(prefix)}
    assert inside == {"SRF_RUN_ID", "RAY_TMPDIR", "SLURM_JOB_ID", "MINE", "PYTHONNOUSERSITE"}
    assert found[prefix + "MINE"] == "secret"


def test_a_folder_that_the_command_line_can_not_name_is_refused():
    with pytest.raises(OperationError, match="with `,` or `:`"):
        container.container_command({**IMAGE, "root": "/home/u/a:b"}, 0, APPTAINER)


def test_without_a_container_python_is_started_by_itself():
    spec = {"python": "/env/bin/python", "isolated": True}
    assert shared_container.python_command(spec) == ["/env/bin/python", "-I"]
    assert shared_container.python_variables(spec, {"A": "1"}) == {"A": "1"}


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"container": "docker://python:3.11"}, "apptainer pull"),
        ({"container": 3}, "image.sif"),
        ({"container": "a.sif", "environment": "isolated"}, "leave out environment"),
    ],
)
def test_what_can_not_be_meant_is_refused_at_once(wrong, hint):
    with pytest.raises(OptionError, match=hint):
        Options().but(**wrong)


def test_no_container_is_a_choice_against_the_clusters_own():
    assert Options().but(container="").container == ""
