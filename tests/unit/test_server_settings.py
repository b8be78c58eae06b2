"""Where the Prefect server keeps its data: a file of its own, or a PostgreSQL database whose address is a secret."""

import pytest

from slurm_ray_flow.blocks.server.files import ServerFiles, make_folders
from slurm_ray_flow.blocks.server.settings import DATABASE_SETTING, DATABASE_VARIABLE, server_environment
from slurm_ray_flow.core.errors import ServerError

URL = "postgresql://me:pa%40ss@db.example.org:5433/prefect"


@pytest.fixture
def files(tmp_path):
    made = ServerFiles(tmp_path / "home" / "server")
    make_folders(made)
    return made


def database(files):
    return server_environment(files, 4200).get(DATABASE_SETTING)


def test_without_a_word_it_is_prefect_s_own_file_whatever_the_caller_has(files, monkeypatch):
    monkeypatch.setenv(DATABASE_SETTING, "postgresql+asyncpg://another")
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    assert database(files) is None


def test_an_address_that_was_given_once_is_remembered_and_nobody_else_reads_it(files, monkeypatch):
    monkeypatch.setenv(DATABASE_VARIABLE, URL)
    wanted = URL.replace("postgresql:", "postgresql+asyncpg:")
    assert database(files) == wanted
    monkeypatch.delenv(DATABASE_VARIABLE)
    assert database(files) == wanted
    assert files.database.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(DATABASE_VARIABLE, "sqlite")
    assert database(files) is None
    monkeypatch.delenv(DATABASE_VARIABLE)
    assert database(files) is None


def test_what_is_no_such_address_is_refused_and_not_shown(files, monkeypatch):
    monkeypatch.setenv(DATABASE_VARIABLE, "mysql://me:hidden@db/prefect")
    with pytest.raises(ServerError) as caught:
        database(files)
    assert "hidden" not in str(caught.value)
