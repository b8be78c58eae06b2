"""What others take for the same items. This file runs alone, also with a Python that has only the one peer.

    python grid_peers.py NAME ITEMS CORES

It prints the seconds from the first item's submission until all values are at hand and have been compared. Servers and
workers are up before, and have run some items, which favours the peer: a campaign's seconds have its pilot's start.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Run = Callable[[range], Iterable[Any]]
"""Runs the item of each number; gives the values in order."""
WARM = 20


def value(number: int) -> bytes:
    """A value of 100 bytes, another one for each number."""
    return (b"%d " % number).ljust(100, b".")


def print_value(number: int) -> None:
    """For a peer that brings home what an item prints, and no values."""
    sys.stdout.write(value(number).decode())


def command(number: int) -> int:
    """An item that runs a command with an argument of its own."""
    return subprocess.run(["true", str(number)], check=True).returncode


@contextmanager
def process_pool(cores: int) -> Iterator[Run]:
    """concurrent.futures.ProcessPoolExecutor, an item at a time."""
    with concurrent.futures.ProcessPoolExecutor(cores) as pool:
        yield lambda numbers: pool.map(value, numbers)


@contextmanager
def process_pool_commands(cores: int) -> Iterator[Run]:
    """The same with commands."""
    with concurrent.futures.ProcessPoolExecutor(cores) as pool:
        yield lambda numbers: pool.map(command, numbers)


@contextmanager
def joblib(cores: int) -> Iterator[Run]:
    """joblib with its own processes, which chooses the size of its batches itself."""
    module = importlib.import_module("joblib")
    with module.Parallel(n_jobs=cores) as parallel:
        yield lambda numbers: parallel(module.delayed(value)(number) for number in numbers)


@contextmanager
def dask(cores: int) -> Iterator[Run]:
    """dask.distributed with a process for each core."""
    module = importlib.import_module("distributed")
    with (
        module.LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=None) as cluster,
        module.Client(cluster) as client,
    ):
        yield lambda numbers: client.gather(client.map(value, numbers, pure=False))


@contextmanager
def parsl(cores: int) -> Iterator[Run]:
    """Parsl's HighThroughputExecutor."""
    module = importlib.import_module("parsl")
    provider = importlib.import_module("parsl.providers").LocalProvider(init_blocks=1, max_blocks=1)
    executors = importlib.import_module("parsl.executors")
    executor = executors.HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=cores, provider=provider)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with module.load(module.Config(executors=[executor], run_dir=str(Path.cwd()), strategy="none")):
        app = module.python_app(value)
        yield lambda numbers: [future.result() for future in [app(number) for number in numbers]]


@contextmanager
def ray_tasks(cores: int) -> Iterator[Run]:
    """A Ray task for each item."""
    ray = importlib.import_module("ray")
    ray.init(num_cpus=cores, logging_level="error", include_dashboard=False)
    task = ray.remote(value)
    yield lambda numbers: ray.get([task.remote(number) for number in numbers])
    ray.shutdown()


class _Actor:
    def value(self, number: int) -> bytes:
        return value(number)


@contextmanager
def ray_actor_pool(cores: int) -> Iterator[Run]:
    """Ray's ActorPool with an actor for each core."""
    ray = importlib.import_module("ray")
    ray.init(num_cpus=cores, logging_level="error", include_dashboard=False)
    actor = ray.remote(_Actor)
    pool = importlib.import_module("ray.util").ActorPool([actor.remote() for _ in range(cores)])
    yield lambda numbers: pool.map(lambda one, number: one.value.remote(number), numbers)
    ray.shutdown()


@contextmanager
def _hyperqueue(cores: int) -> Iterator[tuple[Any, Any]]:
    """HyperQueue's module and a client of a server and a worker of its own."""
    module = importlib.import_module("hyperqueue")
    cluster = importlib.import_module("hyperqueue.cluster")
    environment = importlib.import_module("hyperqueue.task.function").PythonEnv(python_bin=sys.executable)
    with cluster.LocalCluster(str(Path("server").resolve()), cluster.WorkerConfig(cores=cores)) as local:
        yield module, local.client(python_env=environment)


@contextmanager
def hyperqueue(cores: int) -> Iterator[Run]:
    """HyperQueue's tasks in Python, each a process of its own; what they print is read from their files."""
    with _hyperqueue(cores) as (module, client):

        def run(numbers: range) -> list[bytes]:
            job = module.Job()
            for number in numbers:
                job.function(print_value, args=(number,), stdout=str(Path(f"{len(numbers)}-{number}").resolve()))
            client.wait_for_jobs([client.submit(job)])
            return [Path(f"{len(numbers)}-{number}").read_bytes() for number in numbers]

        yield run


@contextmanager
def hyperqueue_commands(cores: int) -> Iterator[Run]:
    """HyperQueue's commands, whose output nobody keeps."""
    with _hyperqueue(cores) as (module, client):

        def run(numbers: range) -> list[int]:
            job = module.Job()
            for number in numbers:
                job.program(["true", str(number)], stdout=None, stderr=None)
            client.wait_for_jobs([client.submit(job)])
            return [0] * len(numbers)

        yield run


PEERS = {
    one.__name__: one
    for one in (
        process_pool, joblib, dask, parsl, ray_tasks, ray_actor_pool, hyperqueue, hyperqueue_commands,
        process_pool_commands,
    )
}  # fmt: skip


def main(name: str, items: int, cores: int) -> None:
    """Run a peer's items, and print the seconds."""
    expected = (lambda _: 0) if name.endswith("_commands") else value
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        with PEERS[name](cores) as run:
            assert list(run(range(WARM))) == [expected(number) for number in range(WARM)]
            began = time.perf_counter()
            assert all(got == expected(number) for number, got in enumerate(run(range(items))))
            print("seconds", time.perf_counter() - began, flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
