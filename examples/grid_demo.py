"""A campaign of 20,000 items over this machine, a server and a Slurm cluster; the server loses its power on the way.

The two clusters are pretended: real SSH and Slurm in namespaces of this machine (tests/hosts), which takes root.
Without root, this machine works alone. `make grid-demo` runs it: it takes a minute or two, and leaves nothing behind.
"""

import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow

ITEMS = 20_000
LONGEST = 300.0
SERVER, SLURM, HERE = "desi", "pretend", "local"


@slurm_ray_flow(ray="never")
def square(number: int) -> tuple[int, str]:
    """The square of a number, and the host that found it."""
    time.sleep(0.005)
    return number * number, os.uname().nodename


def main() -> None:
    """Run the campaign, and say what happens."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {text}", flush=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(own_home())
        if os.geteuid():
            say("the pretend clusters need root: this machine works alone")
            clusters, cut_power = [HERE], None
        else:
            say(f"starts a Prefect server, and the pretend clusters {SERVER} (SSH) and {SLURM} (Slurm)")
            clusters, cut_power = stack.enter_context(pretend_clusters())
        say("prepares an environment on each cluster")
        campaign = square.campaign(range(ITEMS), clusters=clusters, max_pilots=1)
        say(f"{len(campaign):,} items on {', '.join(clusters)}")
        follow(campaign, cut_power, say)
        values = list(campaign.results(timeout=LONGEST))
        assert [value for value, _ in values] == [number * number for number in range(ITEMS)]
        say(f"all {len(values):,} values are home, each once and right:")
        for host, count in Counter(host for _, host in values).most_common():
            print(f"         {count:6,} from {host}")
        say("waits until the pilots have ended, and cleans up")
        wait_for_pilots(campaign)


def follow(campaign, cut_power, say) -> None:
    """Say how the campaign goes until it has ended; cut the server's power once it has done some of the items."""
    from slurm_ray_flow.grid.client import GridClient

    client, deadline = GridClient(), time.monotonic() + LONGEST
    while not (status := campaign.status()).state.final:
        pilots = [pilot for pilot in client.pilots(campaign.id) if pilot["state"] != "ended"]
        told = ", ".join(f"{pilot['cluster']} {pilot['succeeded']:,} ({pilot['state']})" for pilot in pilots)
        say(f"{status.succeeded:6,} of {status.total:,} items; pilots: {told or 'none yet'}")
        done = sum(pilot["succeeded"] for pilot in pilots if pilot["cluster"] == SERVER)
        if cut_power is not None and done >= ITEMS // 20:
            say(f"{SERVER} loses its power; what it had not done, others will do")
            cut_power()
            cut_power = None
        if time.monotonic() > deadline:
            raise TimeoutError(f"the campaign has not ended within {LONGEST:.0f} s")
        time.sleep(2)
    for event in client.events(campaign.id):
        say(f"event on {event['cluster']}: {event['message'].splitlines()[0]}")


def wait_for_pilots(campaign) -> None:
    """Wait until nothing of the campaign runs."""
    from slurm_ray_flow.grid.client import GridClient

    client, deadline = GridClient(), time.monotonic() + 60
    while any(pilot["state"] != "ended" for pilot in client.pilots(campaign.id)) and time.monotonic() < deadline:
        time.sleep(0.5)


@contextlib.contextmanager
def own_home():
    """A home of the demo's own, whose server and engine end with it."""
    from slurm_ray_flow.blocks.grid_engine import end_engine
    from slurm_ray_flow.blocks.server import stop_server

    with tempfile.TemporaryDirectory(prefix="srf-demo-", ignore_cleanup_errors=True) as home:
        os.environ.update(SRF_HOME=home, PREFECT_HOME=f"{home}/prefect", SRF_PROGRESS="off")
        for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            end_engine()
            stop_server()


@contextlib.contextmanager
def pretend_clusters(delay=0.0):
    """The names of the clusters, and a function that cuts the server's power until the demo ends.

    Args:
        delay: seconds that each byte is on its way to a pretend cluster, and from there.
    """
    from slurm_ray_flow import SlurmCluster, SshConnection, SshServer
    from slurm_ray_flow.blocks.server import connected, ensure_server

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    lab_class, layout = importlib.import_module("hosts.lab").Lab, importlib.import_module("hosts.layout")
    give_uv = importlib.import_module("hosts.launcher").give_uv
    with contextlib.ExitStack() as stack:
        labs = []
        for purpose, kinds in (("demo", layout.KINDS), ("demo-slurm", layout.SLURM)):
            labs.append(lab_class.up(f"{purpose}-{os.getpid()}", owner=os.getpid(), kinds=kinds))
            stack.callback(labs[-1].down)
        server, slurm = labs
        with connected(ensure_server(print)):
            for name, kind, lab, host in ((SERVER, SshServer, server, "desi"), (SLURM, SlurmCluster, slurm, "login")):
                root = "/home/alice/demo"
                give_uv(lab[host], root)
                config = lab.road(host, delay).ssh_config if delay else Path(lab.ssh_config)
                kind(connection=SshConnection(host=host, config_file=config), root=root).save(name)
        yield [HERE, SERVER, SLURM], lambda: lab_class.reboot(server, "desi")


if __name__ == "__main__":
    main()
