"""CiGri's description of a campaign in our words; what can't be honoured is named with its path."""

import json
import subprocess

import pytest

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.jdl import OnCluster, read_description, shell_command, variables_of, with_macros
from slurm_ray_flow.remote.driver.command import filled

FULL = {
    "name": "povray",
    "resources": "/nodes=1/core=4",
    "exec_file": "{HOME}/povray.sh",
    "clusters": {
        "luke": {"walltime": "01:30:00", "max_jobs": 20, "temporal_grouping": "true"},
        "dahu": {"resources": "/nodes=2/gpu=2,walltime=2", "project": "l-fiction", "type": "normal"},
    },
    "params": ["0 a", "1 'b c'"],
}


def described(**changes):
    fields = {**FULL, **changes}
    return read_description(json.dumps({name: value for name, value in fields.items() if value is not None}))


def test_a_description_is_a_command_with_options_for_each_cluster():
    found = described()
    assert (found.name, found.params, found.test_mode) == ("povray", ["0 a", "1 'b c'"], False)
    command = ("cd {HOME} && {HOME}/povray.sh", "{HOME}")
    assert found.clusters == {
        "luke": OnCluster({"nodes": 1, "cpus_per_node": 4, "time_limit": 5400.0}, 20, *command),
        "dahu": OnCluster(
            {"nodes": 2, "cpus_per_node": 1, "gpus_per_node": 2, "time_limit": 7200.0, "account": "l-fiction"},
            None,
            *command,
        ),
    }
    assert described(params=None, nb_jobs=3).params == ["0", "1", "2"]
    assert described(params=None, param_file="p.txt").param_file == "p.txt"


def test_the_shell_reads_parameters_as_cigri_s_does(tmp_path):
    (tmp_path / "in dir").mkdir()
    found = described(exec_directory="'{HOME}/in dir'".replace("'", '"'), exec_file="printf '<%s>' {CAMPAIGN_ID}")
    text = filled(shell_command(found, "c0ffee"), {"params": "1 'b c' $((1 + 2)) ~"})
    shell = ["bash", "-c", f"{text}; pwd"]
    done = subprocess.run(
        shell, check=True, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/bin:/usr/bin"}
    )
    assert done.stdout == f"<c0ffee><1><b c><3><{tmp_path}>{tmp_path}/in dir\n"
    assert with_macros("x.{OAR_JOB_ID} {CAMPAIGN_ID}", "c") == "x.${OAR_JOB_ID} c"


def test_clusters_may_have_commands_scripts_and_kinds_of_jobs_of_their_own(tmp_path):
    found = described(
        prologue=["mkdir -p {CAMPAIGN_ID}", "true"],
        clusters={
            "luke": {"exec_file": "echo luke", "prologue_walltime": "00:01:00", "type": "best-effort"},
            "dahu": {"epilogue": "rm -r x", "properties": "gpu='YES' and qos = 'night' AND partition='long'"},
        },
    )
    luke, dahu = found.clusters["luke"], found.clusters["dahu"]
    assert luke.scripts == {"prologue": ("mkdir -p {CAMPAIGN_ID}\ntrue", 60.0)}
    assert dahu.scripts == {"prologue": ("mkdir -p {CAMPAIGN_ID}\ntrue", 600.0), "epilogue": ("rm -r x", 600.0)}
    assert (luke.best_effort, dahu.best_effort) == (True, False)
    assert {name: dahu.options[name] for name in ("gpus_per_node", "qos", "partition")} == {
        "gpus_per_node": 1,
        "qos": "night",
        "partition": "long",
    }
    text = filled(shell_command(found, "c0ffee"), {"params": "1 2"})
    variables = {"HOME": str(tmp_path), "PATH": "/bin:/usr/bin", **variables_of(found, "luke", "c0ffee")}
    done = subprocess.run(["bash", "-c", text], check=True, capture_output=True, text=True, env=variables)
    assert done.stdout == "luke 1 2\n"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": None}, "name"),
        ({"clusters": None}, "clusters"),
        ({"clusters": {}}, "clusters"),
        ({"clusters": {"luke": 3}}, "clusters.luke"),
        ({"exec_file": None}, "clusters.luke.exec_file"),
        ({"params": None}, "params"),
        ({"nb_jobs": 3}, "nb_jobs"),
        ({"params": "a"}, "params"),
        ({"params": None, "nb_jobs": 0}, "nb_jobs"),
        ({"prologue": []}, "clusters.luke.prologue"),
        ({"dimensional_grouping": True}, "dimensional_grouping"),
        ({"properties": "mem > 4"}, "clusters.luke.properties"),
        ({"properties": "gpu='NO'", "resources": "/gpu=1"}, "clusters.luke.properties"),
        ({"clusters": {"luke": {"params": ["1"]}}}, "clusters.luke.params"),
        ({"wall_time": "1"}, "wall_time"),
        ({"jobs_type": "desktop_computing"}, "jobs_type"),
        ({"clusters": {"luke": {"type": "deploy"}}}, "clusters.luke.type"),
        ({"clusters": {"luke": {"cluster_job_type": "container"}}}, "clusters.luke.cluster_job_type"),
        ({"clusters": {"luke": {"epilogue": [3]}}}, "clusters.luke.epilogue"),
        ({"clusters": {"luke": {"epilogue_walltime": "1"}}}, "clusters.luke.epilogue_walltime"),
        ({"clusters": {"luke": {}, "dahu": {"test_mode": True}}}, "clusters.dahu.test_mode"),
        ({"clusters": {"luke": {"walltime": "soon"}}}, "clusters.luke.walltime"),
        ({"clusters": {"luke": {"max_jobs": -1}}}, "clusters.luke.max_jobs"),
        ({"clusters": {"luke": {"temporal_grouping": False}}}, "clusters.luke.temporal_grouping"),
        ({"clusters": {"luke": {"test_mode": "perhaps"}}}, "clusters.luke.test_mode"),
        *(
            ({"clusters": {"luke": {"resources": text}}}, "clusters.luke.resources")
            for text in (
                "/nodes=2", "/cpu=2", "{gpu='YES'}/core=1", "/core=2+/core=1", "/core=0", "/core=BEST",
                "/core=1/core=2",
            )
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_honoured_is_named_with_its_path(changes, path):
    with pytest.raises(OptionError) as caught:
        described(**changes)
    assert caught.value.where == path


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_description_is_told(text):
    with pytest.raises(OptionError):
        read_description(text)
