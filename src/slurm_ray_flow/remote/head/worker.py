"""A worker of a Ray cluster on one of its other nodes: `python -I worker.py ROOT RUN_ID`, started by a `NodeLauncher`.

It reads the address of Ray's head from stdin, starts Ray, and writes messages about Ray to stdout. When stdin ends, the
run's head has ended: then the worker ends with all its processes.
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

POLL_SECONDS = 0.05
SIGN_OF_LIFE_SECONDS = 5.0


class Worker:
    """Ray on this node."""

    def __init__(self, run: RunFiles) -> None:
        spec = working_directory.with_absolute_paths(run.read_spec(), run.folder)
        self._job = context_of(spec)
        self._spec = self._job.with_share(spec)
        self._output = os.dup(1)
        os.dup2(2, 1)
        prepare_environment(run, self._spec)
        variables = {**os.environ, **(self._spec.get("environment_variables") or {})}
        self._ray = RayCluster(self._spec, variables, is_worker=True)
        self._meter = UsageMeter(self._call_pids)
        self._partial_line, self._ready_sent, self._last_sign_of_life = b"", False, time.monotonic()

    def serve(self) -> None:
        """Work until the run's head has ended, or Ray."""
        failure: Optional[str] = None
        while failure is None:
            readable = select.select([0], [], [], POLL_SECONDS)[0]
            if readable and not self._read():
                break
            for pid, code in processes.reap().items():
                if pid == self._ray.pid:
                    self._ray.ended(code)
            if self._ray.knows_head and not self._ready_sent and self._ray.poll():
                self._ready_sent = True
                self._send("ready", cpus=self._ray.cpus)
            failure = self._ray.failure
            self._meter.look(time.monotonic())
            self._give_sign_of_life()
        if failure is not None:
            self._send("ended", why=failure, starved=self._ray.starved)
        self.clean_up()

    def on_end(self, *_: object) -> None:
        """End for the scheduler's SIGTERM, which may come to this node alone, or to the head's node later."""
        self._send("ended", why="{} told it to end".format(self._job.name))
        sys.exit(0)

    def clean_up(self) -> None:
        """End all processes, and remove Ray's folder from the node."""
        processes.end_descendants()
        shutil.rmtree(self._ray.folder, ignore_errors=True)

    def _read(self) -> bool:
        """Read the head's messages; returns False when the head has ended."""
        data = os.read(0, 65536)
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        for line in lines:
            self._receive(json.loads(line))
        return bool(data)

    def _receive(self, message: Dict[str, Any]) -> None:
        if message.get("call") == "begins":
            self._meter = UsageMeter(self._call_pids)
        elif message.get("call") == "is over":
            self._send("used", use=self._meter.use(self._spec))
        elif "token" in message:
            self._ray.prepare(message["token"], message["folder"])
        elif not self._ray.knows_head:
            self._ray.join(message["address"], own_address(message["head"]))

    def _call_pids(self) -> Set[int]:
        """The pids of a call on this node: those of Ray's workers."""
        return processes.descendants(os.getpid()) - self._ray.own_processes

    def _give_sign_of_life(self) -> None:
        if time.monotonic() - self._last_sign_of_life > SIGN_OF_LIFE_SECONDS:
            self._last_sign_of_life = time.monotonic()
            self._send("lives")

    def _send(self, what: str, **fields: Any) -> None:
        message: Dict[str, Any] = {"node": self._job.node_name(), "what": what, **fields}
        with contextlib.suppress(OSError):
            os.write(self._output, json.dumps(message).encode() + b"\n")


def main(arguments: List[str]) -> int:
    """Run the worker of one run on this node."""
    limits.keep_umask(os.umask(0o077))
    processes.become_subreaper()
    worker = Worker(RunFiles(*arguments[:2]))
    signal.signal(signal.SIGTERM, worker.on_end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        worker.serve()
    finally:
        worker.clean_up()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
