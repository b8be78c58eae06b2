"""What the package of an earlier commit has left, at home and on clusters, goes on working with the present one.

A wheel of that commit is made from git's history and installed beside the present packages. Its user saves clusters,
launches and deploys (`before/made.py`), and is killed. Then comes the upgrade.
"""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from support import BOUND, wait_for

COMMIT = "46457f63b0847f871fe1dd437e768ef578622372"
TOP, FILES = Path(__file__).parents[2], Path(__file__).parent / "before"
UV, SRF = (Path(sys.executable).with_name(name) for name in ("uv", "srf"))
HAS_HOSTS = os.geteuid() == 0
CLUSTERS = ["local", *(["desi", "other", "shared", "curnagl"] if HAS_HOSTS else [])]

pytestmark = pytest.mark.server
needs_hosts = pytest.mark.skipif(not HAS_HOSTS, reason="real hosts are made of namespaces, which takes root")


@pytest.fixture(scope="module")
def programs(pytestconfig):
    """The folder of that commit's programs, which is made once for a checkout and a Python."""
    if subprocess.run(["git", "cat-file", "-e", COMMIT], cwd=TOP, capture_output=True, check=False).returncode:
        pytest.skip(f"commit {COMMIT[:7]} is not in this clone's history; `git fetch --unshallow` brings it")
    environment = pytestconfig.cache.mkdir("upgrade") / "{}-{}.{}".format(COMMIT[:7], *sys.version_info)
    if not environment.exists():
        install(environment, environment.with_suffix(f".{os.getpid()}"))
    [packages] = environment.glob("lib/*/site-packages")
    present = next(folder for folder in sys.path if Path(folder, "prefect").is_dir())
    (packages / "present.pth").write_text(present)
    return environment / "bin"


def install(environment, folder):
    """Make a wheel and an environment with nothing else; that is moved to its place once it is whole."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", COMMIT], cwd=TOP, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
    run(UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", folder / "dist", folder)
    run(UV, "venv", "--relocatable", "--python", sys.executable, folder / "made")
    run(UV, "pip", "install", "--no-deps", "--python", folder / "made", *folder.glob("dist/*.whl"))
    (folder / "made").rename(environment)
    shutil.rmtree(folder)


def run(*command, **options):
    """Run a program to its end; gives its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def with_half(said):
    """Deployments, one more for a function of the user's, and none on a schedule."""
    half = {"name": "half", "entrypoint": "made.py:half", "work_pool": {"name": "srf"}}
    return {**said, "deployments": [half, *({**one, "schedules": []} for one in said["deployments"])]}


class Home:
    """A home, and the project of its user."""

    def __init__(self, folder, hosts):
        self.home, self.project, self.mark = folder / "home", folder / "project", secrets.token_hex(4)
        shutil.copytree(FILES, self.project)
        self.env = {**os.environ, "SRF_HOME": str(self.home), "PREFECT_HOME": str(folder / "prefect")}
        self.hosts, self.errors = hosts, folder / "errors"

    def make(self, programs):
        """Do what its user does before the upgrade; gives the ids of the runs by name."""
        run(programs / "srf", "up", env=self.env)
        self.ask("/work_pools/", name="srf", type="process")
        [deployments] = programs.parent.glob("lib/*/site-packages/slurm_ray_flow/deployments/prefect.yaml")
        (self.project / "prefect.yaml").write_text(json.dumps(with_half(yaml.safe_load(deployments.read_text()))))
        configs = [lab.ssh_config for lab in self.hosts]
        with self.started(programs / "python", "made.py", self.mark, *configs, **self.access()) as script:
            run(programs / "srf", "prefect", "deploy", "--all", env=self.env, cwd=self.project)
            said = script.stdout.readline()
        assert said, self.errors.read_text()
        return json.loads(said)

    @contextlib.contextmanager
    def started(self, *command, **variables):
        """A program in the user's project; it is killed at the end."""
        with self.errors.open("a") as errors:
            pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
            process = subprocess.Popen(command, cwd=self.project, env={**self.env, **variables}, **pipes)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def server(self):
        """Where the Prefect server is, and which process."""
        return json.loads((self.home / "server" / "server.json").read_text())

    def access(self):
        """What Prefect's client needs to use it."""
        secret = (self.home / "server" / "secret").read_text()
        return {"PREFECT_API_URL": self.server()["url"], "PREFECT_API_AUTH_STRING": f"srf:{secret}"}

    def ask(self, path, **said):
        """Have the Prefect server answer a question."""
        url, name_and_secret = self.access().values()
        log_in = f"Basic {base64.b64encode(name_and_secret.encode()).decode()}"
        headers = {"Content-Type": "application/json", "Authorization": log_in}
        request = urllib.request.Request(url + path, json.dumps(said).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def list_runs(self):
        """Note the state of each run by `srf runs`; gives whether all clusters have answered within eight seconds."""
        done = self.srf("runs", "--json")
        self.listed = {one["run_id"]: one["state"] for one in json.loads(done.stdout)}
        return not any(name in done.stderr for name in CLUSTERS)

    def ended(self, flow_runs):
        """How these flow runs have ended, those of them that have."""
        found = self.ask("/flow_runs/filter", flow_runs={"id": {"any_": flow_runs}})
        return [one["state_type"] for one in found if one["state_type"] not in ("SCHEDULED", "PENDING", "RUNNING")]

    def go(self):
        """Let the runs that wait go on."""
        (self.project / f"go-{self.mark}").touch()
        for lab, host in zip(self.hosts, ("desi", "login"), strict=False):
            lab[host].path(f"/home/alice/go-{self.mark}").touch()

    def processes(self, run_id=""):
        """What lives of it here and on the hosts, or what lives of one run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                argv, variables = (folder.joinpath(name).read_bytes().decode() for name in ("cmdline", "environ"))
                ours = f"SRF_HOME={self.home}\0" in variables or f"upgrade-{self.mark}" in argv
                if ours and run_id in argv:
                    found.append(argv.replace("\0", " "))
        return found


@pytest.fixture(scope="module")
def home(programs, tmp_path_factory, request, srf):
    """The home after the upgrade. `srf` in it gives the completed process of a command."""
    labs = [request.getfixturevalue(name) for name in ("hosts_lab", "slurm_lab") if HAS_HOSTS]
    made = Home(tmp_path_factory.mktemp("upgrade"), labs)
    made.runs, made.srf = {}, lambda *words: srf(*words, SRF_HOME=str(made.home), cwd=str(made.project))
    try:
        made.runs = made.make(programs)
        made.server_before, made.told = made.server(), made.srf("up").stderr
        assert made.srf("down").returncode == made.srf("up").returncode == 0
        wait_for(made.list_runs)
        yield made
    finally:
        made.go()
        made.srf("release", "--all")
        made.srf("cancel", made.runs.get("cancelled", ""))
        made.srf("down")
    wait_for(lambda: not made.processes())


def test_the_server_of_before_is_told_and_replaced(home):
    assert "`srf down` and `srf up`" in home.told
    assert home.server()["port"] == home.server_before["port"]
    assert home.server()["pid"] != home.server_before["pid"]
    assert not Path(f"/proc/{home.server_before['pid']}").exists()


def test_each_run_is_listed_as_what_it_is(home):
    wanted = {"done": "succeeded", "failed": "failed", "cached": "succeeded", "local": "running"}
    if HAS_HOSTS:
        wanted |= {"job": "succeeded", **dict.fromkeys(("cancelled", "desi", "curnagl"), "running")}
        wanted |= dict.fromkeys(("warm", "gives way"), "warm")
    assert {name: home.listed[home.runs[name]] for name in wanted} == wanted


def test_a_command_gets_what_a_run_printed_gave_and_raised(home):
    assert home.srf("logs", home.runs["done"]).stdout == "halves 84.0\n"
    assert "42.0" in home.srf("attach", home.runs["done"]).stdout
    assert "written no files" in home.srf("fetch", home.runs["done"]).stdout
    failed = home.srf("attach", home.runs["failed"])
    assert failed.returncode == 1 and "UnluckyError: as it is" in failed.stderr


@needs_hosts
def test_a_run_is_cancelled(home):
    assert home.srf("logs", home.runs["cancelled"]).stdout == "waits\n"
    assert home.processes(home.runs["cancelled"])
    assert "is cancelled" in home.srf("cancel", home.runs["cancelled"]).stdout
    wait_for(lambda: not home.processes(home.runs["cancelled"]))


@needs_hosts
def test_a_warm_cluster_is_released(home):
    assert home.processes(home.runs["warm"])
    assert "released run" in home.srf("release", home.runs["warm"]).stdout
    wait_for(lambda: not home.processes(home.runs["warm"]))


def test_a_script_launches_after_the_runs_of_before_and_has_their_values(home):
    going = [name for name in CLUSTERS if name in home.runs]
    gives_way = ["gives way"] if HAS_HOSTS else []
    runs = {name: home.runs[name] for name in ("map", "done", *going)}
    entrypoints = [one["entrypoint"] for one in home.ask("/deployments/filter")]
    arguments = map(json.dumps, (runs, CLUSTERS, entrypoints))
    assert all(home.processes(home.runs[name]) for name in [*going, *gives_way])
    with home.started(sys.executable, "attached.py", *arguments) as script:
        if HAS_HOSTS:
            wait_for(lambda: len(json.loads(home.srf("queue", "desi", "--json").stdout)["in_prefect"]) == 1)
        home.go()
        said = script.communicate(timeout=BOUND)[0].splitlines()
    assert said, home.errors.read_text()
    found = json.loads(said[-1])
    gave = {name: [{"answer": 42}, "succeeded", ["waits", "gone on"]] for name in going}
    assert found.pop("runs") == {"done": [42.0, "succeeded", ["halves 84.0"]], **gave}
    assert sorted(found.pop("flows")) == ["campaign", "checkup", "cleanup", "half", "mirror", "sweep"]
    assert found == {"map": [1.0, 2.0], "cached": 1.5, "launched": [5.0] * len(CLUSTERS)}
    wait_for(lambda: not any(home.processes(home.runs[name]) for name in [*going, *gives_way]))


def test_what_was_deployed_runs(home):
    deployed = {one["name"]: f"/deployments/{one['id']}" for one in home.ask("/deployments/filter")}
    campaign = {"function": "made:half", "directory": str(home.project), "values": [8]}
    wanted = {"half": {"number": 8}, "campaign": campaign}
    made = [home.ask(f"{deployed[name]}/create_flow_run", parameters=wanted[name])["id"] for name in wanted]

    with home.started(SRF, "prefect", "worker", "start", "--pool", "srf", PREFECT_WORKER_QUERY_SECONDS="1") as worker:
        wait_for(lambda: len(home.ended(made)) == len(made) or worker.poll() is not None)
        worker.terminate()
        worker.wait(BOUND)
    assert home.ended(made) == ["COMPLETED"] * len(made), home.errors.read_text()


def test_a_warm_cluster_ends_when_its_time_is_over(home):
    wait_for(lambda: not home.processes(home.runs["idle"]))
    assert home.srf("attach", home.runs["idle"]).returncode == 0


def test_prefect_shows_how_runs_ended_whose_launch_was_killed(home):
    home.go()
    killed = [home.runs[name] for name in CLUSTERS if name in home.runs]
    wait_for(lambda: home.ended(killed) == ["COMPLETED"] * len(killed))


def test_what_was_left_is_cleaned(home):
    for cluster in CLUSTERS:
        assert home.srf("clean", cluster).returncode == 0
    for name in ("failed", *(["job"] if HAS_HOSTS else [])):
        assert home.srf("clean", "--run", home.runs[name]).returncode == 0
        assert home.srf("attach", home.runs[name]).returncode == 2
