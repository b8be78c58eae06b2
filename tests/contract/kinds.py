"""Every kind of cluster, for the contract: one entry each; and runs on it, through nothing but the seam."""

import importlib.metadata
import json
import os
import secrets
import shlex
from pathlib import Path, PurePosixPath

from contract.toy import ToyCluster
from hosts.launcher import give_uv
from slurm_ray_flow import LocalMachine
from slurm_ray_flow.core.run import RunPaths, find_event, parse_events
from slurm_ray_flow.remote.shared import payload, pickling
from support import wait_for

ENVIRONMENTS = "/home/alice/environments-of-the-contract"


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
        if not self.seen(ENVIRONMENTS).exists():
            give_uv(self._host, ENVIRONMENTS)

    def connection(self):
        from slurm_ray_flow import SshConnection

        return SshConnection(
            host=self.host, user="alice", key_file=self._hosts.key("alice"), config_file=self._hosts.ssh_config
        )

    def seen(self, path):
        return self._host.path(str(path))

    def interpreter(self, cluster, ray):
        shared = self.make(ENVIRONMENTS)
        needed = ["cloudpickle", "dill", *(["ray"] if ray else [])]
        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in needed]
        spec = {
            "root": str(shared.root_folder), "digest": ("a" if ray else "b") * 20, "python": shared.facts().python,
            "version": shared.facts().version, "requirements": requirements, "constraints": [], "options": [],
        }  # fmt: skip
        shared.build(spec)
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


class PretendOar(Remote):
    """An OAR cluster."""

    lab, host, scheduler = "oar_lab", "frontal", {"name": "contract"}

    def make(self, root, **fields):
        from slurm_ray_flow import OarCluster

        return OarCluster(connection=self.connection(), root=str(root), **fields)


class Toy(ThisMachine):
    """A cluster of the toy scheduler, used from its login node: this machine."""

    def __init__(self, request):
        super().__init__(request)
        request.getfixturevalue("monkeypatch").setenv("TOY_SPOOL", str(self.folder.with_name("spool")))

    def make(self, root):
        return ToyCluster(root=str(root))

    def interpreter(self, cluster, ray):
        return {**super().interpreter(cluster, ray), "scheduler": {"name": "contract"}}


KINDS = {
    "local-machine": ThisMachine,
    "ssh-server": Desi,
    "slurm-cluster": Pretend,
    "oar-cluster": PretendOar,
    "toy-cluster": Toy,
}


class Lab:
    """Starts real runs through nothing but the seam."""

    def __init__(self, cluster, kind, folder):
        self.cluster, self.kind, self.folder, self.runs = cluster, kind, folder, []

    def start(self, run_id, function, *args, announce=True, joins="", **changes):
        """Start a run; one that joins another's warm head only has its call announced there."""
        cluster = self.cluster
        paths = RunPaths(cluster.root_folder, run_id)
        spec = {
            "format": 1, "run_id": run_id, "ray": False, **self.kind.interpreter(cluster, changes.get("ray", False)),
            "nodes": 1, "cpus": 1, "gpus": 0, "memory": None, "time_limit": None,
            "keep_warm": 0.0, "path": [], "working_directory": str(cluster.root_folder),
            "environment_variables": {}, **changes,
        }  # fmt: skip
        head = cluster.prepare() / "slurm_ray_flow" / "remote" / "head" / "head.py"
        command = shlex.join([cluster.facts().python, "-I", str(head), str(cluster.root_folder), run_id])
        cluster.write(paths.spec, json.dumps(spec).encode())
        cluster.write(paths.script, f'#!/bin/sh\nexec {command} "$@"\n'.encode())
        for name, value in {
            "function": ["value", function],
            "arguments": {"args": list(args), "kwargs": {}},
        }.items():
            file = self.folder / f"{run_id}.{name}"
            payload.write(str(file), value, pickling.dump)
            cluster.place({getattr(paths, name): file})
        if joins:
            assert cluster.announce(paths.inbox(joins))
            return paths
        if announce and cluster.scheduler:  # nobody may be there when its head begins
            cluster.write(paths.inbox(run_id), b"")
        cluster.submit(paths, spec)
        self.runs.append(paths)
        assert not announce or cluster.scheduler or cluster.announce(paths.inbox(run_id))
        return paths

    def event(self, paths, name):
        return find_event(parse_events(self.cluster.read(paths.events))[0], name)

    def ended(self, paths):
        wait_for(lambda: self.event(paths, "call_ended"))
        return self.event(paths, "call_ended")

    def gone(self, paths):
        wait_for(lambda: not self.lives(paths))

    def lives(self, paths):
        return self.cluster.life(paths, parse_events(self.cluster.read(paths.events))[0]).alive

    def value(self, paths):
        ended = self.ended(paths)
        assert ended["outcome"] == "value", str(ended)
        with self.cluster.fetched(paths.outcome, ended["size"]) as file:
            return payload.read(str(file), pickling.load, sha256=ended["sha256"])["value"]

    def cancel(self, paths):
        self.cluster.cancel(paths)
