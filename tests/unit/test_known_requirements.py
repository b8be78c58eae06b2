import pytest

from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.scan import Scan
from slurm_ray_flow.tasks.diff_dependencies import cached_wanted
from slurm_ray_flow.tasks.scan_imports import ScannedCode

PROJECT = """
[project]
name = "mine"
version = "1"
dependencies = ["{requirement}"]
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    from slurm_ray_flow.blocks import store

    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT.format(requirement="six>=1.16"))
    digest = store.put_scan(Scan((), (), (), (), False))
    return ScannedCode(digest, str(project), 0, 0, False)


def remembered():
    return sorted((home() / "cache" / "wanted").glob("*.json"))


def test_what_a_project_wants_is_read_once(code):
    first = cached_wanted("auto", code, "3.11", [])
    (entry,) = remembered()
    written = entry.stat().st_mtime_ns
    assert cached_wanted("auto", code, "3.11", []) == first
    assert entry.stat().st_mtime_ns == written
    assert first.requirements == ("six>=1.16",)


def test_an_edited_project_is_read_again(code, tmp_path):
    cached_wanted("auto", code, "3.11", [])
    (tmp_path / "project" / "pyproject.toml").write_text(PROJECT.format(requirement="six>=1.17"))
    assert cached_wanted("auto", code, "3.11", []).requirements == ("six>=1.17",)
    assert cached_wanted("auto", code, "3.12", ["dill==0.4.1"]).requirements == ("dill==0.4.1", "six>=1.17")


def test_a_damaged_memory_is_read_anew(code):
    first = cached_wanted("auto", code, "3.11", [])
    remembered()[0].write_text("{")
    assert cached_wanted("auto", code, "3.11", []) == first


def test_passwords_of_an_index_are_not_kept(code, tmp_path):
    file = tmp_path / "project" / "requirements.txt"
    file.write_text("--index-url https://user:hush@packages.example/simple\nsix==1.17.0\n")
    assert cached_wanted("auto", code, "3.11", []).options
    assert not remembered()


def test_what_a_tool_says_is_asked_once_until_a_file_changes(tmp_path, monkeypatch):
    from slurm_ray_flow.blocks import environments

    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    asked = []
    monkeypatch.setattr(environments, "ask_uv", lambda *words: asked.append(words) or str(len(asked)))
    project = tmp_path / "project"
    (project / "requirements").mkdir(parents=True)
    file = project / "requirements" / "base.in"
    file.write_text("six")
    assert [environments.ask_uv_once(["tool", "run"], project) for _ in range(2)] == ["1", "1"]
    file.write_text("attrs")
    assert [environments.ask_uv_once(["tool", "run"], project) for _ in range(2)] == ["2", "2"]
    assert [environments.ask_uv_once(["export"], project) for _ in range(2)] == ["3", "4"]
