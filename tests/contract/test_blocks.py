"""Clusters as Prefect blocks: what Prefect asks of a block, and saved ones on a real server."""

import dataclasses

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from contract.kinds import KINDS
from slurm_ray_flow import LocalMachine, OarCluster, OptionError, SlurmCluster, SshConnection, SshServer, slurm_ray_flow
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.core.options import Options

BLOCKS = (LocalMachine, SshServer, SlurmCluster, OarCluster)


@pytest.mark.parametrize("block", [*BLOCKS, SshConnection])
class TestKinds(BlockStandardTestSuite):
    test_has_a_documentation_url = None  # the project has no public address yet
    test_has_a_valid_image = None  # nor a logo

    @pytest.fixture
    def block(self, block):
        return block


def test_every_kind_is_under_contract():
    assert {block.get_block_type_slug() for block in BLOCKS} | {"toy-cluster"} == set(KINDS)


@pytest.mark.server
def test_the_server_knows_every_kind_by_itself(server):
    """It finds them by the entry point: nobody has to register them."""
    api = Api(server.url, auth_string(server_files()))
    for block in BLOCKS:
        assert api.get(f"/block_types/slug/{block.get_block_type_slug()}")["name"] == block._block_type_name


@pytest.mark.server
def test_a_saved_cluster_is_found_by_its_name(server, tmp_path):
    @slurm_ray_flow
    def where():
        import os

        return os.environ["SRF_RUN_ID"]

    with connected(server):
        LocalMachine(root=tmp_path / "lab").save("lab", overwrite=True)
        assert find_cluster("lab").root_folder == find_cluster("local-machine/lab").root_folder
        assert find_cluster("lab").label == "lab"
        with pytest.raises(OptionError, match="did you mean 'lab'"):
            find_cluster("labb")
    run_id = where.with_options(cluster="lab")()
    assert (tmp_path / "lab" / "runs" / run_id / "outcome.dill").exists()


@pytest.mark.server
def test_a_run_on_a_saved_cluster_is_found_from_another_process(server, srf, tmp_path):
    @slurm_ray_flow
    def answer():
        print("in the lab")
        return 42

    with connected(server):
        LocalMachine(root=tmp_path / "other").save("other", overwrite=True)
    handle = answer.with_options(cluster="other").submit()
    assert handle.result(timeout=180) == 42
    done = srf("attach", handle.run_id)
    assert done.returncode == 0, done.stderr
    assert "in the lab" in done.stdout
    assert "42" in done.stdout


@pytest.mark.parametrize("option", ["partition", "account", "qos", "constraint"])
def test_what_only_slurm_has_is_refused_elsewhere(tmp_path, option):
    cluster = LocalMachine(root=tmp_path)
    with pytest.raises(OptionError, match=option) as told:
        cluster.check(Options().stating(**{option: "some"}))
    assert "cluster=" in told.value.advice
    cluster.check(
        dataclasses.replace(Options(), **{option: "some"})
    )  # of a configuration, which also holds for other clusters
