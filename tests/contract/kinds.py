"""Every kind of cluster, for the contract: one entry each."""

import importlib.metadata
import os
import secrets
from pathlib import Path, PurePosixPath

from slurm_ray_flow import LocalMachine


class ThisMachine:
    """Roots below a folder of the test's."""

    def __init__(self, request):
        self.folder = PurePosixPath(request.getfixturevalue("tmp_path"), "cluster")
        os.mkdir(self.folder)

    def make(self, root):
        return LocalMachine(root=Path(root))

    def seen(self, path):
        """A path of the cluster as the test can look at it."""
        return Path(path)

    def interpreter(self, cluster, ray):
        """What a function's process runs in."""
        return {"python": cluster.facts().python, "isolated": False}


class Desi:
    """A server of the test hosts; all tests share the environments that their functions need."""

    def __init__(self, request):
        self._hosts = request.getfixturevalue("hosts_lab")
        self.folder = PurePosixPath("/home/alice") / f"contract-{secrets.token_hex(4)}"
        self._host = self._hosts["desi"]
        self._host.run("alice", ["mkdir", "-p", str(self.folder)])

    def make(self, root, **fields):
        from slurm_ray_flow import SshServer
        from slurm_ray_flow.blocks.ssh.block import SshConnection

        connection = SshConnection(
            host="desi", user="alice", key_file=self._hosts.key("alice"), config_file=self._hosts.ssh_config
        )
        return SshServer(connection=connection, root=str(root), **fields)

    def seen(self, path):
        return self._host.path(str(path))

    def interpreter(self, cluster, ray):
        shared = self.make("/home/alice/environments-of-the-contract")
        needed = ["dill", "ray"] if ray else ["dill"]
        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in needed]
        spec = {
            "root": str(shared.root_folder), "digest": ("a" if ray else "b") * 20, "python": shared.facts().python,
            "version": shared.facts().version, "requirements": requirements, "constraints": [], "options": [],
        }  # fmt: skip
        shared.build(spec, lambda _: None)
        python = shared.root_folder / "environments" / spec["digest"] / "bin" / "python"
        return {"python": str(python), "isolated": True}


KINDS = {"local-machine": ThisMachine, "ssh-server": Desi}
