"""environment="isolated" and its kin: environments built by uv, exactly as a cluster would have them."""

import importlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
from uv import find_uv_bin

from slurm_ray_flow import DependencyError, EnvironmentFailed
from slurm_ray_flow.blocks.processes import identify
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.core.home import home
from support import SLOW_BACKEND, wait_for

pytestmark = pytest.mark.server

DIGITS = Path(__file__).parents[2] / "examples" / "digits.py"
PROBE = """
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(environment="isolated")
def look():
    import importlib.util, sys, six, slurm_ray_flow
    from importlib.metadata import distributions
    return {
        "prefix": sys.prefix,
        "six": six.__version__,
        "ours": slurm_ray_flow.__file__,
        "prefect": importlib.util.find_spec("prefect") is not None,
        "packages": {item.metadata["Name"]: item.version for item in distributions()},
    }
"""


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    """A folder of the user's; gives what makes a module of it and imports that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def imported(text=PROBE):
        name = f"module_{secrets.token_hex(4)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    imported.folder = tmp_path
    return imported


def environments():
    return {path.name for path in (home() / "environments").glob("[!.]*")}


@pytest.mark.ray
def test_the_digits_in_an_environment_of_their_own(project, capfd, monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    shutil.copy(DIGITS, project.folder)
    search = importlib.import_module("digits").search.with_options(environment="isolated", cpus_per_node=2)
    before = environments()
    first = search(2)
    assert first["accuracy"] == pytest.approx(0.99, abs=0.005)
    (digest,) = environments() - before
    packages = set(json.loads((home() / "environments" / digest / "whole.json").read_text())["packages"])
    assert {"scikit-learn", "ray", "cloudpickle", "dill"} <= packages
    assert not {"prefect", "pytest", "slurm-ray-flow", "uv"} & packages
    said = capfd.readouterr().err
    assert f"packages in {home()}/environments/{digest}" in said
    assert "{" not in said
    assert search(2) == first
    assert "packages in" not in capfd.readouterr().err
    assert environments() - before == {digest}


def test_a_list_of_requirements(project):
    found = project().look.with_options(environment=["six==1.16.0"])()
    assert found["six"] == "1.16.0"
    assert set(found["packages"]) == {"six", "cloudpickle", "dill"}
    assert Path(found["prefix"]).parent == home() / "environments"
    assert Path(found["ours"]).parents[1].parent == home() / "tools"  # what the name means inside a run
    assert found["prefect"] is False


def _requirements(folder):
    (folder / "requirements.txt").write_text("six==1.16.0\n")


def _pyproject(folder):
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = ["six==1.16.0"]\n'
    )


def _lock(folder):
    _pyproject(folder)
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=folder, check=True)
    (folder / "pyproject.toml").write_text((folder / "pyproject.toml").read_text().replace("==1.16.0", ""))


@pytest.mark.parametrize("described", [_requirements, _pyproject, _lock])
def test_what_the_project_says(project, described):
    described(project.folder)
    assert project().look()["six"] == "1.16.0"


def test_what_is_imported_and_not_locked_is_named_before_it_is_missing(project, capfd, monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    _lock(project.folder)
    module = project(PROBE.replace("def look():", "def look():\n    import packaging"))
    with pytest.raises(ModuleNotFoundError, match="packaging"):
        module.look()
    assert "packaging is imported, but uv.lock does not give it" in capfd.readouterr().err


def test_a_file_by_its_path(project):
    (project.folder / "wishes").mkdir()
    (project.folder / "wishes" / "cluster.txt").write_text("six==1.16.0\n")
    assert project().look.with_options(environment="wishes/cluster.txt")()["six"] == "1.16.0"


def test_without_a_word_it_is_what_the_code_imports(project):
    import six

    assert project().look()["six"] == six.__version__


def test_the_users_own_dill_counts(project):
    found = project().look.with_options(environment=["six", "dill==0.3.9"])()
    assert found["packages"]["dill"] == "0.3.9"


def test_an_impossible_requirement_fails_with_uvs_words_and_leaves_nothing(project):
    before = set(os.listdir(home() / "environments")) if (home() / "environments").exists() else set()
    with pytest.raises(EnvironmentFailed, match="no version of six==99") as caught:
        project().look.with_options(environment=["six==99.0"])()
    assert "{" not in str(caught.value)
    left = set(os.listdir(home() / "environments")) - before
    assert all(name.endswith(".lock") for name in left)
    with pytest.raises(DependencyError, match="exclude each other"):
        project().look.with_options(environment=["six==1.16.0", "six>=1.17"])()


def test_a_module_that_is_missing_there_is_the_functions_own_failure(project):
    with pytest.raises(ModuleNotFoundError, match="six"):
        project().look.with_options(environment=["toml==0.10.2"])()


def test_the_difference_is_a_table_in_prefect(project, server):
    module = project()
    handle = module.look.with_options(environment=["six==1.16.0"]).submit()
    handle.result(timeout=180)
    api = Api(server.url, auth_string(server_files()))
    chosen = {"key": {"any_": ["dependencies-look-on-local"]}}
    wanted = {"flow_runs": {"id": {"any_": [handle.run_id]}}, "artifacts": chosen}
    wait_for(lambda: api.post("/artifacts/filter", wanted))
    (table,) = api.post("/artifacts/filter", wanted)
    rows = {row["package"]: (row["wanted"], row["what"]) for row in json.loads(table["data"])}
    assert set(rows) == {"six", "cloudpickle", "dill"}
    assert rows["six"] == ("==1.16.0", "already there") or rows["six"][1] == "to add"


@pytest.fixture
def slow(tmp_path_factory):
    """A package beside the project whose build says that it began, and waits for the word to go on."""
    place = tmp_path_factory.mktemp("packages")
    folder = place / "slow"
    folder.mkdir()
    (folder / "backend.py").write_text(SLOW_BACKEND.format(control=str(place)))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "slow"\nversion = "1.0"\ndescription = "{secrets.token_hex(4)}"\n'
    )
    return f"slow @ {folder.as_uri()}", place / "builds", place / "go"


LAUNCHER = """
import sys
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(environment=[sys.argv[1]])
def value():
    import slow
    return slow.VALUE

if __name__ == "__main__":
    print("value", value())
"""


def test_two_launches_at_once_build_once(script, slow, monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    requirement, builds, go = slow
    first, second = (script(LAUNCHER, requirement, wait=False) for _ in range(2))
    wait_for(builds.exists)
    go.touch()
    for process in (first, second):
        out, err = process.communicate(timeout=180)
        assert "value 1" in out, err
    assert len(builds.read_text().split()) == 1


def test_ctrl_c_ends_the_build(script, slow):
    requirement, builds, _ = slow
    process = script(LAUNCHER, requirement, wait=False)
    wait_for(lambda: builds.exists() and builds.read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    builder = int(builds.read_text())
    wait_for(lambda: identify(builder) is None)
    assert not list((home() / "environments").glob(".*/"))


def test_kept_as_one_file_it_is_unpacked_for_the_run_and_removed_with_it(project):
    found = project().look.with_options(environment="packed")()
    (kept,) = (home() / "environments").glob("*/environment.tar.gz")
    assert {path.name for path in kept.parent.iterdir()} == {"environment.tar.gz", "whole.json"}
    assert "six" in found["packages"]
    assert not found["prefix"].startswith(str(home()))
    wait_for(lambda: not os.path.exists(found["prefix"]))
