"""Which hosts of an OpenSSH configuration are offered."""

from slurm_ray_flow.blocks.ssh import SshConnection
from slurm_ray_flow.blocks.ssh.endpoint import configured_hosts, is_known


def test_hosts_that_are_names_are_found_in_their_order_with_what_is_included(tmp_path):
    (tmp_path / "more").write_text('Host inner "other one"\n  User bob\n')
    (tmp_path / "config").write_text(
        f"Host desi desi-*\n  HostName desi.example.org # the old one\n"
        f"Include {tmp_path}/mo*\nInclude {tmp_path}/none\n"
        "Host=curnagl\n User = alice\nHost *.example.org !x\n  User git\nMatch host a\n  User git\n"
        "host git\n  user git\n# Host gone\nHost desi\n"
    )
    assert configured_hosts(tmp_path / "config") == ["desi", "inner", "other one", "curnagl"]


def test_a_configuration_that_includes_itself_or_is_not_there_ends(tmp_path):
    file = tmp_path / "config"
    file.write_text(f"Include {file}\nHost a\n")
    assert configured_hosts(file) == ["a"]
    assert configured_hosts(tmp_path / "none") == []


def test_a_host_is_known_by_the_configuration_by_the_network_or_to_a_server_before_it(tmp_path):
    file = tmp_path / "config"
    file.write_text("Host desi\n  HostName 192.0.2.1\nHost behind\n  ProxyJump gate\n")

    def known(host, **fields):
        return is_known(SshConnection(host=host, config_file=file, **fields).endpoint())

    assert known("desi") and known("behind") and known("localhost")
    assert known("desi.invalid", proxy_jump="gate")
    assert not known("desi.invalid")
