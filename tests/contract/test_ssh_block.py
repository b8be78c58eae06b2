"""The SSH connection as a Prefect block: what Prefect asks of one."""

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from slurm_ray_flow import SshServer
from slurm_ray_flow.blocks.ssh import SshConnection


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
