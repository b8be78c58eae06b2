"""A user's functions; as a script, what the user does before an upgrade: the package of before runs it."""

import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slurm_ray_flow import SlurmCluster, SshConnection, SshServer, slurm_ray_flow


class UnluckyError(Exception):
    """An exception of the user's own."""


@slurm_ray_flow
def half(number: float) -> float:
    """Prints what it does."""
    print("halves", number, flush=True)
    return number / 2


@slurm_ray_flow
def fail():
    raise UnluckyError("as it is")


@slurm_ray_flow
def wait(go: str) -> dict:
    """Goes on once a file is there."""
    print("waits", flush=True)
    while not Path(go).exists():
        time.sleep(0.05)
    print("gone on", flush=True)
    return {"answer": 42}


def ended(function, *arguments, **options):
    """The id of a run that has ended."""
    handle = function.with_options(**options).submit(*arguments)
    with contextlib.suppress(UnluckyError):
        handle.result(180)
    return handle.run_id


def going(cluster, go):
    """The id of a run that goes on."""
    return wait.with_options(cluster=cluster).submit(go).run_id


def on_this_machine(go):
    runs = {"done": ended(half, 84), "failed": ended(fail), "cached": ended(half, 3, cache="1d")}
    values = half.map([2, 4])
    values.results(180)
    return {**runs, "map": values.map_id, "local": going("local", go), "idle": ended(half, 2, keep_warm="20s")}


def on_the_server(go):
    warm = ended(half, 4, cluster="shared", keep_warm="10m")
    gives_way = ended(half, 4, cluster="other", keep_warm="10m", env_vars={"A": "B"})
    return {"warm": warm, "gives way": gives_way, "cancelled": going("shared", "/never"), "desi": going("desi", go)}


def on_slurm(go):
    return {"job": ended(half, 6, cluster="curnagl"), "curnagl": going("curnagl", go)}


def save(mark, config, slurm_config):
    """Save an SSH server, with two locks of its own and without any, and a Slurm cluster."""
    root, lock = f"/home/alice/upgrade-{mark}", f"/tmp/upgrade-{mark}.lock"
    server = SshServer(connection=SshConnection(host="desi", config_file=config), root=root, lock_path=lock)
    server.save("desi")
    server.model_copy(update={"lock_path": f"{lock}-other"}).save("other")
    server.model_copy(update={"lock_path": ""}).save("shared")
    SlurmCluster(connection=SshConnection(host="login", config_file=slurm_config), root=root).save("curnagl")


def main(mark, *configs):
    begun = [(on_this_machine, str(Path(f"go-{mark}").absolute()))]
    if configs:
        save(mark, *configs)
        begun += [(there, f"/home/alice/go-{mark}") for there in (on_the_server, on_slurm)]
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda one: one[0](one[1]), begun))
    print(json.dumps({name: run_id for some in runs for name, run_id in some.items()}), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
