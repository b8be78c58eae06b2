"""Projects whose requirements uv tells, or a tool that uv runs."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from uv import find_uv_bin

import prepared
from recorded_projects import check, recorded, write
from slurm_ray_flow import DependencyError, LocalMachine
from slurm_ray_flow.blocks.environments import ask_uv
from slurm_ray_flow.core.requirements import wanted
from slurm_ray_flow.core.requirements.local import content_digest


@pytest.mark.parametrize("recorded", recorded(tools=True), ids=lambda path: path.stem)
def test_recorded_project(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("SRF_TEST_TOKEN", "from-the-shell")
    monkeypatch.setenv("UV_LOCKED", "1")  # of the user's own work; says nothing about ours
    check(recorded, tmp_path, ask_uv)


def test_nothing_of_a_build_stays_in_the_project(tmp_path):
    setup = "from setuptools import setup\nsetup(name='leg', version='1', install_requires=['iniconfig'])\n"
    write(tmp_path, {"setup.py": setup, "src/mine.egg-info/PKG-INFO": ""})
    found = wanted("setup.py", tmp_path, [], python="3.11", uv=ask_uv)
    assert found.requirements == ("iniconfig",)
    assert sorted(path.name for path in tmp_path.rglob("*.egg-info")) == ["mine.egg-info"]


@pytest.mark.parametrize("beside", [False, True])
def test_a_local_package_is_built_from_a_copy_as_it_is_now(tmp_path, monkeypatch, beside):
    """One that reads a file beside its folder is built where it lies."""
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    package, machine = tmp_path / "package", LocalMachine(root=tmp_path / "root")
    version = "open('../version').read()" if beside else "'1.0'"
    setup = f"from setuptools import setup\nsetup(name='mine', version={version}, packages=['mine'])\n"
    write(tmp_path, {"package/setup.py": setup, "version": "1.0"})
    for number in ("1", "2"):
        write(package, {"mine/__init__.py": f"VALUE = {number}\n"})
        before = content_digest(package)
        spec = {"root": str(tmp_path / "root"), "digest": f"d{number}", "version": "", "python": sys.executable}
        lines = {"requirements": [f"mine @ {package.as_uri()}"], "constraints": [], "options": []}
        machine.build({**spec, **lines})
        python = tmp_path / "root" / "environments" / f"d{number}" / "bin" / "python"
        assert subprocess.check_output([python, "-c", "import mine; print(mine.VALUE)"], text=True) == f"{number}\n"
        assert content_digest(package) == before
        assert beside or sorted(path.name for path in package.iterdir()) == ["mine", "setup.py"]


def test_a_lock_that_uv_refuses_is_told_with_uvs_words_and_no_password(tmp_path):
    lock = (
        'version = 99\nrequires-python = ">=3.10"\n[[package]]\nname = "x"\nversion = "1"\nsource = { virtual = "." }\n'
    )
    project = '[project]\nname = "x"\nversion = "1"\n[[tool.uv.index]]\nurl = "https://me:hunter2@host.invalid/"\n'
    write(tmp_path, {"uv.lock": lock, "pyproject.toml": project})
    with pytest.raises(DependencyError, match=r"uv\.lock") as caught:
        wanted("auto", tmp_path, [], python="3.11", uv=ask_uv)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def workspace(server, tmp_path):
    """A workspace with a member that stands on another one, locked by uv."""
    member = """
    [project]
    name = "app"
    version = "0.1.0"
    requires-python = ">=3.10"
    dependencies = ["lab", "iniconfig==2.0.0"]
    [dependency-groups]
    more = ["six==1.16.0"]
    [tool.uv.sources]
    lab = { workspace = true }
    """
    job = """
    import sys
    sys.path.insert(0, {lab!r})
    from lab import double
    from slurm_ray_flow import slurm_ray_flow

    @slurm_ray_flow(cluster="local", environment=sys.argv[1])
    def work(number):
        import importlib.metadata
        found = {{item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}}
        return double(number), found["iniconfig"], found.get("six")

    print("value", work(21))
    """
    table = '[project]\nname = "{}"\nversion = "0.1.0"\nrequires-python = ">=3.10"\ndependencies = []\n'
    root = table.format("ws") + '[tool.uv.workspace]\nmembers = ["app", "lab"]\n'
    write(tmp_path, {"pyproject.toml": root, "lab/pyproject.toml": table.format("lab")})
    write(tmp_path, {"lab/lab.py": "def double(number):\n    return 2 * number\n"})
    write(tmp_path, {"app/pyproject.toml": textwrap.dedent(member)})
    write(tmp_path, {"app/job.py": textwrap.dedent(job).format(lab=str(tmp_path / "lab"))})
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.server
@pytest.mark.parametrize(("environment", "six"), [("isolated", None), ("uv.lock[more]", "1.16.0")])
def test_a_member_of_a_workspace_runs_with_what_the_root_locks(workspace: Path, environment, six):
    import sys

    done = prepared.run([sys.executable, "app/job.py", environment], cwd=workspace)
    assert f"value {(42, '2.0.0', six)}" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["prefect", "rich", "random"])
def test_a_file_with_the_name_of_a_package_is_named_as_the_cause(script, tmp_path, name):
    (tmp_path / f"{name}.py").touch()
    done = script("from slurm_ray_flow import slurm_ray_flow", imports=True)
    assert f"{tmp_path}/{name}.py for the package {name!r}" in done.stderr
    assert len(done.stderr.splitlines()) < 15


def test_so_is_one_that_only_the_run_meets(script, tmp_path, monkeypatch):
    (tmp_path / "ray.py").touch()
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    texts = ["from slurm_ray_flow import slurm_ray_flow", "@slurm_ray_flow", "def f(): import ray; ray.remote"]
    done = script("\n".join([*texts, "if __name__ == '__main__': f()"]))
    assert done.returncode == 1
    assert f"{tmp_path}/ray.py for the package 'ray'" in done.stderr
