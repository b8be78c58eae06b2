"""The SSH connection as a Prefect block: what Prefect asks of one."""

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from slurm_ray_flow.blocks.ssh import SshConnection


class TestSshConnection(BlockStandardTestSuite):
    test_has_a_documentation_url = None  # the project has no public address yet
    test_has_a_valid_image = None  # nor a logo

    @pytest.fixture
    def block(self):
        return SshConnection
