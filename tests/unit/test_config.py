"""In which order what is configured counts, and what is said of a mistake in it."""

import os
import sys
import types

import pytest

from slurm_ray_flow import OptionError, slurm_ray_flow
from slurm_ray_flow.core.config import configured, origins, settings_of, variable_warnings, with_block_fields
from slurm_ray_flow.core.options import Options

GIB = 1024**3
TABLES = """
[tool.slurm-ray-flow]
memory = "2G"
time-limit = "1h"
partition = "cpu"
[tool.slurm-ray-flow.clusters.curnagl]
memory = "3G"
"""


@pytest.fixture
def project(tmp_path):
    """Write its pyproject.toml; gives what is configured in it."""

    def write(text, **variables):
        (tmp_path / "pyproject.toml").write_text(text)
        return settings_of(None, tmp_path, variables)

    return write


def memory(settings, block=None, **given):
    """The memory in GiB that counts."""
    options = configured(Options().stating(**given), settings)
    return (with_block_fields(options, block or {}).memory or 0) / GIB


def test_the_first_who_says_it_counts(project):
    nothing, variables = project(""), {"SRF_MEMORY": "1G"}
    assert memory(nothing) == 0
    assert memory(project("", **variables)) == 1
    assert memory(project(TABLES, **variables)) == 2
    assert memory(project(TABLES, **variables), cluster="curnagl") == 3
    assert memory(project(TABLES, **variables), cluster="slurm-cluster/curnagl") == 3
    assert memory(project(TABLES, **variables), {"memory": "its own"}) == 0  # the block's field then is what counts
    assert memory(project(TABLES, **variables), {"memory": "its own"}, memory="5G") == 5


def test_the_cluster_itself_may_be_configured(project):
    assert configured(Options(), project(TABLES, SRF_CLUSTER="curnagl")).memory == 3 * GIB
    assert configured(Options(), project('[tool.slurm-ray-flow]\ncluster = "desi"', SRF_CLUSTER="a")).cluster == "desi"


def test_each_value_has_its_origin(project):
    found = origins(
        Options().stating(nodes=2), project(TABLES, SRF_RETRIES="1", SRF_QOS="long"), {"qos": "short"}, "curnagl"
    )
    assert {name: found[name].origin for name in ("nodes", "memory", "qos", "retries", "keep")} == {
        "nodes": "the code",
        "memory": "pyproject.toml [tool.slurm-ray-flow]",
        "qos": "block curnagl",
        "retries": "SRF_RETRIES",
        "keep": "default",
    }
    assert (found["qos"].value, found["time_limit"].value) == ("short", 3600)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("nodes", "3", 3),
        ("keep", "true", True),
        ("account", "1234", "1234"),
        ("environment", '["numpy"]', ("numpy",)),
        ("environment", "packed", "packed"),
        ("env_vars", '{"A": "b"}', (("A", "b"),)),
        ("retry_on", "OSError", ("OSError",)),
    ],
)
def test_a_variable_is_read_as_its_option_takes_it(project, name, text, value):
    variables = {"SRF_RETRIES": "1", f"SRF_{name.upper()}": text}
    assert getattr(configured(Options(), project("", **variables)), name) == value


def test_variables_that_are_empty_or_no_options_say_nothing(project):
    assert project("", SRF_MEMORY="", SRF_HOME="/x", SRF_memory="1G", SRF_ZEBRA="1").variables == {}


def test_variables_that_mean_nothing_or_too_little_are_named():
    good = {
        "SRF_HOME": "~/x",
        "SRF_LOG": "Debug",
        "SRF_PROGRESS": "",
        "SRF_RUN_ID": "1",
        "SRF_X_PASSWORD": "a",
        "A": "b",
    }
    assert variable_warnings(good | {"SRF_MEMORY": "1G", "SRF_DATABASE_URL": "postgresql://x"}) == []
    wrong = {"SRF_MEMROY": "1G", "SRF_ZEBRA": "1", "SRF_memory": "1G", "SRF_PROGRESS": "loud", "SRF_HOME": "there"}
    told = variable_warnings(wrong)
    assert [line.partition("=")[0].split()[0] for line in told] == sorted(wrong)
    assert sum("did you mean SRF_MEMORY?" in line for line in told) == 2
    assert any('"plain"' in line for line in told)


@pytest.mark.parametrize(
    ("text", "variables", "named"),
    [
        ('[tool.slurm-ray-flow]\nmemroy = "1G"', {}, ["pyproject.toml", "memroy", "'memory'"]),
        ("[tool.slurm-ray-flow.clusters.desi]\nnodes = 0", {}, ["clusters.desi", "nodes"]),
        ('[tool.slurm-ray-flow.clusters.desi]\ncluster = "a"', {}, ["clusters.desi", "cluster"]),
        ("[tool.slurm-ray-flow]\nclusters = 3", {}, ["clusters"]),
        ("[tool]\nslurm-ray-flow = 3", {}, ["is no table"]),
        ("[tool", {}, ["pyproject.toml"]),
        ("", {"SRF_NODES": "two"}, ["SRF_NODES"]),
        ("", {"SRF_TIME_LIMIT": "90"}, ["SRF_TIME_LIMIT", '"90m"']),
        ("", {"SRF_MEMORY": "4"}, ["SRF_MEMORY", '"4G"']),
        ("[tool.slurm-ray-flow]\nmemory = 4", {}, ["pyproject.toml", "4 B"]),
        ("[tool.slurm-ray-flow]\nretry_on = 'OSError'", {}, ["retry_on is set by pyproject.toml"]),
        ("", {"SRF_ENV_VARS": '{"TOKEN": 12345}'}, ["SRF_ENV_VARS"]),
    ],
)
def test_a_mistake_is_named_with_its_place(project, text, variables, named):
    with pytest.raises(OptionError) as caught:
        configured(Options(), project(text, **variables))
    assert all(word in str(caught.value) for word in named), caught.value
    assert "12345" not in str(caught.value)


def test_a_function_has_the_configuration_of_its_own_project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(TABLES)
    file = tmp_path / "theirs.py"
    file.write_text("def function():\n    return 1\n")
    module = types.ModuleType("theirs")
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "theirs", module)
    flow = slurm_ray_flow(time_limit="2h")(module.function)
    assert (flow.options.memory, flow.options.time_limit) == (2 * GIB, 7200)
    there = flow.with_options(cluster="curnagl")
    assert (there.options.memory, there.options.time_limit) == (3 * GIB, 7200)
    assert there.with_options(cluster="local").options.memory == 2 * GIB


def test_a_file_of_somebody_who_is_not_trusted_configures_nothing(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text(TABLES)
    if os.geteuid():
        pytest.skip("a file can be given away by root alone")
    os.chown(file, 12345, -1)
    (tmp_path / "mine.py").touch()
    assert settings_of(tmp_path / "mine.py", tmp_path, {}).file is None
    os.chown(tmp_path / "mine.py", 12345, -1)
    assert settings_of(tmp_path / "mine.py", tmp_path, {}).file == file
