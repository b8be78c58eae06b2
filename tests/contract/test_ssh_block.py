"""The SSH connection as a Prefect block: what Prefect asks of one."""

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from slurm_ray_flow import ConnectionFailed, SshConnection, SshServer
from slurm_ray_flow.core.launch_events import streamed_to
from support import Noting


class TestSshConnection(BlockStandardTestSuite):
    test_has_a_documentation_url = None  # the project has no public address yet
    test_has_a_valid_image = None  # nor a logo

    @pytest.fixture
    def block(self):
        return SshConnection


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SshConnection, {"password": "hunter2"}),
        (SshConnection, {"host": "desi", "password": ["hunter2"]}),
        (SshConnection, {"host": "desi", "password": "hunter2", "port": 0}),
        (SshServer, {"connection": {"password": "hunter2"}}),
        (SshServer, {"connection": "hunter2"}),
    ],
)
def test_an_error_in_a_block_does_not_show_its_password(kind, fields):
    with pytest.raises(ValidationError) as caught:
        kind(**fields)
    assert "hunter2" not in f"{caught.value}{caught.value!r}"


def test_a_name_that_leads_to_no_host_is_said_at_once():
    shown = Noting()
    server = SshServer(connection=SshConnection(host="no-such-host.invalid", user="somebody", password="hunter2"))
    with streamed_to(shown), pytest.raises(ConnectionFailed, match=r"'no-such-host\.invalid'") as caught:
        server.facts()
    assert "hunter2" not in str(caught.value)
    assert not shown.said


def test_prefects_form_proposes_no_lock_and_code_has_one():
    lock = SshServer.model_json_schema()["properties"]["lock_path"]
    assert lock["default"] == "" and "/tmp/slurmray_desi.lock" in lock["description"]
    assert SshServer(connection=SshConnection(host="desi")).lock is not None
