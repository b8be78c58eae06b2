"""An OAR cluster that functions are launched on, and what is there of their jobs."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from hosts.lab import Lab
from hosts.launcher import USER, Launcher, give_uv
from hosts.oar import ENDED
from slurm_ray_flow import OarCluster, SshConnection
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core.scheduler import run_of
from slurm_ray_flow.interface.handle import Handle
from support import BOUND, wait_for


class OarLaunchLab(Launcher):
    """A lab's OAR under a name and a root folder of these tests' own."""

    def __init__(self, lab: Lab, project: Path, name: str) -> None:
        super().__init__(lab["frontal"], project)
        self.lab, self.oar, self.name = lab, lab.oar, name
        self.root = f"/home/{USER}/launches-{secrets.token_hex(4)}"
        give_uv(self.host, self.root)
        connection = SshConnection(host="frontal", config_file=Path(lab.ssh_config), connect_timeout=5)
        self.block = OarCluster(connection=connection, root=self.root)
        with connected(ensure_server(print)):
            self.block.save(name, overwrite=True)

    def on(self, function: Any, **options: Any) -> Any:
        """A function of the project, on this cluster; without memory, which OAR does not give out."""
        return function.with_options(**{"cluster": self.name, "memory": None, **options})

    def begun(self, function: Any, **options: Any) -> tuple[Handle[Any], str]:
        """A run of a function that notes that it runs, and waits for a word to go on; and its folder."""
        folder = self.folder()
        handle = self.on(function, **options).submit(folder)
        wait_for(lambda: self.starts(folder), BOUND)
        return handle, folder

    def jobs(self, run_id: str) -> list[dict[str, Any]]:
        """OAR's jobs of a run, ended ones too, in the order of their ids."""
        found = [job for job in self.oar.jobs() if run_of(job["name"] or "").partition(".")[0] == run_id]
        return sorted(found, key=lambda job: int(job["Job_Id"]))

    def over(self) -> None:
        """No job is in the queue, and no process of the user's is on a node."""
        wait_for(lambda: self.oar.queue_empty() and not self.left(), BOUND)

    def left(self) -> list[list[str]]:
        """The user's processes on the nodes."""
        return [argv for node in self.oar.nodes for argv in self.oar.processes(node, USER)]

    def clear(self) -> None:
        """End what a test has left at home; on the cluster nothing may be left."""
        self.end_scripts()
        forgotten = [job["name"] for job in self.oar.jobs() if job["state"] not in {*ENDED, "Finishing"}]
        self.oar.oardel_all()
        for node in self.oar.nodes:
            self.oar.revive(node)
        wait_for(lambda: not self.left(), BOUND)
        assert forgotten == []
