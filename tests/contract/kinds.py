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


class Remote:
    """A cluster of the test hosts; all tests share the environments that their functions need."""

    lab, host, scheduler = "", "", None

    def __init__(self, request):
        self._hosts = request.getfixturevalue(self.lab)
        self.folder = PurePosixPath("/home/alice") / f"contract-{secrets.token_hex(4)}"
        self._host = self._hosts[self.host]
        self._host.run("alice", ["mkdir", "-p", str(self.folder)])

    def connection(self):
        from slurm_ray_flow.blocks.ssh.block import SshConnection

        return SshConnection(
            host=self.host, user="alice", key_file=self._hosts.key("alice"), config_file=self._hosts.ssh_config
        )

    def seen(self, path):
        return self._host.path(str(path))

    def interpreter(self, cluster, ray):
        shared = self.make("/home/alice/environments-of-the-contract")
        needed = ["cloudpickle", "dill", *(["ray"] if ray else [])]
        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in needed]
        spec = {
            "root": str(shared.root_folder), "digest": ("a" if ray else "b") * 20, "python": shared.facts().python,
            "version": shared.facts().version, "requirements": requirements, "constraints": [], "options": [],
        }  # fmt: skip
        shared.build(spec, lambda _: None)
        python = shared.root_folder / "environments" / spec["digest"] / "bin" / "python"
        return {"python": str(python), "isolated": True, "scheduler": self.scheduler}


class Desi(Remote):
    """A server."""

    lab, host = "hosts_lab", "desi"

    def make(self, root, **fields):
        from slurm_ray_flow import SshServer

        return SshServer(connection=self.connection(), root=str(root), **fields)


class Pretend(Remote):
    """A Slurm cluster."""

    lab, host, scheduler = "slurm_lab", "login", {"name": "contract"}

    def make(self, root, **fields):
        from slurm_ray_flow import SlurmCluster

        return SlurmCluster(connection=self.connection(), root=str(root), **fields)


KINDS = {"local-machine": ThisMachine, "ssh-server": Desi, "slurm-cluster": Pretend}
