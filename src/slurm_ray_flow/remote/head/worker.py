"""A node of a Ray cluster that is not its head: `python -I worker.py ROOT RUN_ID`, started by a `NodeLauncher`.

It reads from stdin where Ray's head is, starts Ray beside it, and says on stdout what becomes of that. It ends, with
all that it started, when stdin does: the head of the run is gone then.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

import contextlib
import json
import select
import shutil
import signal
import time
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.head.head import prepare_environment
from slurm_ray_flow.remote.head.ray_cluster import RayCluster
from slurm_ray_flow.remote.head.usage import UsageMeter
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.scheduler.job import own_address
from slurm_ray_flow.remote.shared import limits, processes, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles

POLL = 0.05
SIGN_OF_LIFE_EVERY = 5.0


class Worker:
    """Ray on this node."""

    def __init__(self, run: RunFiles) -> None:
        spec = working_directory.with_absolute_paths(run.read_spec(), run.folder)
        self._job = context_of(spec)
        self._spec = self._job.with_share(spec)
        self._out = os.dup(1)
        os.dup2(2, 1)
        prepare_environment(run, self._spec)
        variables = {**os.environ, **(self._spec.get("environment_variables") or {})}
        self._ray = RayCluster(self._spec, variables, joins=True)
        self._meter = UsageMeter(self._family)
        self._message, self._said_ready, self._signs = b"", False, time.monotonic()

    def serve(self) -> None:
        """Stay until the head has gone, or Ray."""
        why: Optional[str] = None
        while why is None:
            readable = select.select([0], [], [], POLL)[0]
            if readable and not self._read():
                break
            for pid, code in processes.reap().items():
                if pid == self._ray.pid:
                    self._ray.ended(code)
            if self._ray.joined and not self._said_ready and self._ray.poll():
                self._said_ready = True
                self._say("ready", cpus=self._ray.cpus)
            why = self._ray.failure
            self._meter.look(time.monotonic())
            self._give_sign_of_life()
        if why is not None:
            self._say("ended", why=why, starved=self._ray.starved)
        self.leave()

    def on_end(self, *_: object) -> None:
        """The scheduler ends this: on this node alone, or before the rest of a job that is preempted."""
        self._say("ended", why="{} told it to end".format(self._job.name))
        sys.exit(0)

    def leave(self) -> None:
        """End everything here, and leave nothing on the node."""
        processes.end_descendants()
        shutil.rmtree(self._ray.folder, ignore_errors=True)

    def _read(self) -> bool:
        """Hear the head; False when it has gone."""
        data = os.read(0, 65536)
        *lines, self._message = (self._message + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        return bool(data)

    def _hear(self, told: Dict[str, Any]) -> None:
        if told.get("call") == "begins":
            self._meter = UsageMeter(self._family)
        elif told.get("call") == "is over":
            self._say("used", use=self._meter.use(self._spec))
        elif "token" in told:
            self._ray.prepare(told["token"], told["folder"])
        elif not self._ray.joined:
            self._ray.join(told["address"], own_address(told["head"]))

    def _family(self) -> Set[int]:
        """What a call has here: Ray's workers."""
        return processes.descendants(os.getpid()) - self._ray.own_processes

    def _give_sign_of_life(self) -> None:
        if time.monotonic() - self._signs > SIGN_OF_LIFE_EVERY:
            self._signs = time.monotonic()
            self._say("lives")

    def _say(self, what: str, **fields: Any) -> None:
        line: Dict[str, Any] = {"node": self._job.node_name(), "what": what, **fields}
        with contextlib.suppress(OSError):
            os.write(self._out, json.dumps(line).encode() + b"\n")


def main(arguments: List[str]) -> int:
    """Be the worker of one run on this node."""
    limits.keep_umask(os.umask(0o077))
    processes.become_subreaper()
    worker = Worker(RunFiles(*arguments[:2]))
    signal.signal(signal.SIGTERM, worker.on_end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        worker.serve()
    finally:
        worker.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
