"""What `srf run` refuses before anything starts."""

import json
import sys

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.cli.run import load, run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Some files of a user, in the current folder; what is imported from them is forgotten at the end."""
    texts = ["class Kind:\n    pass\n", "def job(n):\n    return n\n", "def typed(n: int):\n    return n\n"]
    (tmp_path / "user_job.py").write_text("\n".join(texts))
    (tmp_path / "json.py").write_text("def dumps():\n    return 1\n")
    (tmp_path / "user_broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("user_job", None)


@pytest.mark.parametrize(
    ("function", "arg", "option", "hint"),
    [
        ("job", (), (), "path/to/file.py:function"),
        ("user_job:job", (), (), "path/to/file.py:function"),
        ("nowhere.py:job", (), (), "there is no such file"),
        ("user_job.py:jb", (), (), "did you mean 'job'"),
        ("user_job.py:", (), (), "there is no function"),
        ("user_job.py:Kind", (), (), "is not a function"),
        ("user_job.py:job", (), (), "'n'"),
        ("user_job.py:job", ("n=1", "m=2"), (), "'m'"),
        ("user_job.py:job", ("n",), (), "NAME=VALUE"),
        ("user_job.py:typed", ("n=four",), (), "n: Input should be a valid integer"),
        ("user_job.py:job", ("n=1",), ("memry=1G",), "did you mean 'memory'"),
        ("user_job.py:job", ("n=1",), ("memory=lots",), "memory"),
        ("user_job.py:job", ("n=1",), ("memory=4",), 'write "4G" or "4M"'),
        ("user_job.py:job", ("n=1",), ("time_limit=90",), 'write "90m" or "90s"'),
        ("json.py:dumps", (), (), "give json.py another name"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_advice(folder, function, arg, option, hint):
    with pytest.raises(OptionError) as caught:
        run(function, arg=arg, option=option)
    assert hint in str(caught.value)


def test_a_file_that_cannot_be_imported_shows_its_own_lines_alone(folder, capsys):
    with pytest.raises(OptionError, match="user_broken"):
        run("user_broken.py:job")
    shown = capsys.readouterr().err
    assert "import nowhere_to_be_found" in shown
    assert "importlib" not in shown
    assert "cli" not in shown


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """A home; nothing may be launched from there."""
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    yield
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {"cache", "store"}


def test_what_would_be_submitted_is_shown_and_nothing_is_done(folder, untouched):
    from slurm_ray_flow import SlurmCluster, SshConnection, slurm_ray_flow

    cluster = SlurmCluster(connection=SshConnection(host="nowhere.invalid"), partition="cpu", modules=["gcc"])
    options = {"nodes": 2, "memory": "2G", "time_limit": "90m", "env_vars": {"TOKEN": "hush"}}
    function = slurm_ray_flow(cluster=cluster, **options)(load("user_job.py:job"))
    lines = function.script(1).splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = {"--nodes=2", "--mem=2048M", "--time=90", "--partition=cpu", "--job-name=job.RUN"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert lines.index("module load gcc || exit 97") > last
    told = [line.split() for line in lines]
    assert any("user_job.py" in words for words in told) and ["#", "variables:", "TOKEN"] in told
    assert any(words[1:] and words[1].startswith("cloudpickle==") for words in told)
    assert "hush" not in "".join(lines)
    with pytest.raises(TypeError):
        function.script()


def test_a_dry_run_writes_it(folder, untouched, capsys):
    run("user_job.py:job", arg=("n=1",), option=("memory=1G",), dry_run=True, json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["cluster"], found["asks_for"], found["ray"]) == ("local", "1.0 GiB", False)
    assert [name.rpartition("/")[2] for name in found["files"]] == ["user_job.py"]
    assert found["script"].startswith("#!/bin/sh")
