"""The Python for environments, found among real ones; and uv, put where there is none."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from slurm_ray_flow.remote.environment import pythons, uv_tool
from slurm_ray_flow.remote.shared.machine import machine_facts
from slurm_ray_flow.remote.shared.protocol import OperationError
from support import python_of

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
SOURCE = Path(pythons.__file__).parents[3]


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_nearest_one_of_homes_version():
    found = pythons.find("", HERE)
    assert found["python"] == sys.executable
    assert found["version"].startswith(f"{HERE}.")
    assert found["platform"] == machine_facts()["platform"]
    assert found["variables"] == {}


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12"])
def test_another_version_is_found_by_any_python(version):
    wanted = python_of(version)
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\nfrom slurm_ray_flow.remote.environment import pythons\n"
    code += f"print(pythons.find('', {HERE!r})['version']); print(pythons.find({wanted!r}, {version!r})['version'])"
    said = subprocess.check_output([wanted, "-I", "-c", code], text=True).split()
    assert said[0].startswith(f"{HERE}.")
    assert said[1].startswith(f"{version}.")


def test_the_newest_release_comes_first(own_home):
    pythons_there = [own_home / f".pyenv/versions/3.11.{release}/bin/python" for release in (10, 9, 2)]
    for path in pythons_there:
        path.parent.mkdir(parents=True)
        path.symlink_to(sys.executable)
    assert [path for path in pythons.candidates("3.11") if path.startswith(str(own_home))] == list(
        map(str, pythons_there)
    )


def test_what_was_found_is_named_when_none_fits():
    with pytest.raises(OperationError, match=r"Python 3\.99 is needed") as caught:
        pythons.find("", "3.99")
    assert f"{sys.executable} is {HERE}" in caught.value.what
    assert caught.value.cause == "environment"


def test_a_path_is_that_one_and_no_other():
    with pytest.raises(OperationError) as caught:
        pythons.find(sys.executable, "3.99")
    assert f"{sys.executable} is {HERE}" in caught.value.what
    with pytest.raises(OperationError, match="nothing there starts"):
        pythons.find("/nowhere/python", HERE)


def test_a_module_is_loaded_in_a_noisy_login_shell_and_its_name_is_quoted(own_home):
    modules = own_home / "modules"
    modules.mkdir()
    (modules / "python3").symlink_to(sys.executable)
    (own_home / ".bash_profile").write_text(
        "echo 'Welcome {\"python\": 1}'\n"
        f'module() {{ [ "$2" = "it\'s; touch $HOME/planted" ] && PATH={shlex.quote(str(modules))}:$PATH; }}\n'
    )
    name = "it's; touch $HOME/planted"
    profile = (own_home / ".bash_profile").read_text().replace('"it\'s; touch $HOME/planted"', shlex.quote(name))
    (own_home / ".bash_profile").write_text(profile)
    assert pythons.find(f"module:{name}", HERE)["version"].startswith(f"{HERE}.")
    assert not (own_home / "planted").exists()
    with pytest.raises(OperationError, match="nothing there starts"):
        pythons.find("module:another", HERE)


def test_the_uv_that_was_sent_is_put_there_once(own_home, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    root = str(own_home / "root")
    assert uv_tool.located(root, "1.2.3") == {"uv": ""}
    place = uv_tool.provide(root, "1.2.3", sent=find_uv_bin())["uv"]
    assert place == os.path.join(root, "tools", "uv", "1.2.3", "uv")
    assert os.stat(place).st_mode & 0o777 == 0o700
    assert uv_tool.provide(root, "1.2.3", sent="/nowhere")["uv"] == place
    assert uv_tool.located(root, "1.2.3")["uv"] == place


def test_a_uv_that_a_loss_of_power_has_emptied_is_put_there_again(own_home, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    root = str(own_home / "root")
    shutil.copy(find_uv_bin(), own_home / "uv")
    place = uv_tool.provide(root, "1.2.3", sent=str(own_home / "uv"))["uv"]
    os.truncate(place, 0)
    assert uv_tool.located(root, "1.2.3") == {"uv": ""}
    with pytest.raises(OperationError, match="does not start"):
        uv_tool.provide(root, "1.2.3", sent=str(own_home / "uv"))  # the same file, by another name
    assert not (own_home / "uv").exists()
    assert uv_tool.number(uv_tool.provide(root, "1.2.3", sent=find_uv_bin())["uv"])


def test_a_python_that_a_loss_of_power_has_emptied_is_downloaded_again(own_home):
    root = own_home / "root"
    python = root / "tools" / "python" / f"cpython-{HERE}.99-linux" / "bin" / "python3"
    uv = root / "tools" / "uv" / "1.2.3" / "uv"
    for path in (python, uv):
        path.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    uv.write_text(
        "#!/bin/sh\ncase $* in *--version) echo uv 0.9.9;;\n"
        f"*'python install --reinstall'*) ln -sf {shlex.quote(sys.executable)} {shlex.quote(str(python))};; esac\n"
    )
    uv.chmod(0o755)
    assert pythons.find("download", HERE, str(root), "1.2.3")["python"] == str(python)


def test_a_uv_that_does_not_start_is_refused(own_home, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    broken = own_home / "uv"
    broken.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(OperationError, match="does not start"):
        uv_tool.provide(str(own_home / "root"), "1.2.3", sent=str(broken))
    assert not list((own_home / "root").rglob("uv?*/uv"))


def test_the_users_own_uv_is_good_enough(own_home, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (own_home / ".local" / "bin").mkdir(parents=True)
    own = own_home / ".local" / "bin" / "uv"
    own.symlink_to(find_uv_bin())
    assert uv_tool.located(str(own_home / "root"), "1.2.3") == {"uv": str(own)}
    own.unlink()
    own.write_text("#!/bin/sh\necho uv 0.4.0\n")
    own.chmod(0o700)
    assert uv_tool.located(str(own_home / "root"), "1.2.3") == {"uv": ""}
