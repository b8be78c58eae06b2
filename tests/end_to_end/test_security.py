"""What others on this machine can see of a run, and what they can do to it: nothing."""

import contextlib
import functools
import http.server
import json
import os
import pickle
import secrets
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from onlookers import (
    NOBODY,
    Index,
    as_nobody,
    ask_ray,
    family,
    files_with,
    listening,
    processes_seen,
    told_by_prefect,
)
from slurm_ray_flow import Handle, LocalMachine, SlurmRayFlowError, UnknownRunError
from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.machine import FOLDERS
from slurm_ray_flow.blocks.server.files import server_files
from slurm_ray_flow.core.home import home
from support import make_wheel, wait_for

pytestmark = pytest.mark.server

OURS = ("runs", "server", "server/prefect", "store")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def guarded(work):
    import guarded

    return guarded


@pytest.fixture
def index(tmp_path):
    """An index with one package; gives its address and its password."""
    password = secrets.token_hex(16)
    make_wheel(tmp_path / "index" / "private-package", "private_package")
    handler = functools.partial(Index, directory=tmp_path / "index", password=password)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://reader:{password}@127.0.0.1:{served.server_port}/", password
        served.shutdown()


@contextlib.contextmanager
def held(flow, folder):
    """A run, stopped in the midst of its function."""
    folder.mkdir()
    mark, release = folder / "mark", folder / "release"
    handle = flow.submit(str(mark), str(release))
    try:
        wait_for(mark.exists)
        yield handle, mark.read_text()
    finally:
        release.touch()
        handle.result(timeout=180)


def open_to_others(folder):
    """What somebody else could read or enter below a folder, the folder's own mode left aside."""
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.is_symlink() or not mode & 0o077:
                continue
            found.append(f"{entry.path} {mode & 0o777:o}")
    return found


def test_secrets_are_nowhere_but_in_private_files(guarded, server, index, tmp_path, capfd):
    secret, (address, password) = secrets.token_hex(16), index
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--extra-index-url {address}\nprivate-package==1.0\n")
    flow = guarded.hold.with_options(env_vars={"TOKEN": secret}, environment=str(requirements))
    with processes_seen() as seen, held(flow, tmp_path / "held") as (handle, _):
        holding = [*files_with(secret, home()), *files_with(password, home())]
    assert handle.result() == (secret, 1)
    # The run's own spec holds its variables, in a folder of mode 0700. Nothing else does.
    assert {path.name for path in holding} <= {"spec.json"}
    shown = capfd.readouterr()
    told = [
        told_by_prefect(server, handle.run_id, "held"),
        *handle.logs(),
        repr(flow),
        repr(flow.options),
        repr(handle),
    ]
    arguments = [line for _, line, _ in seen]
    told += [shown.out, shown.err, *(line.decode(errors="replace") for line in arguments)]
    assert len(arguments) > 10
    for word in (secret, password):
        assert not [text for text in told if word in text]


def test_an_exception_holds_no_secret(guarded, monkeypatch):
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    secret, password = secrets.token_hex(16), secrets.token_hex(16)
    wish = [f"--extra-index-url http://reader:{password}@127.0.0.1:9/", "there-is-no-such-package==1.0"]
    broken = guarded.fail_with_secret.with_options(env_vars={"TOKEN": secret}, environment=wish)
    for flow in (broken, broken.with_options(environment="auto")):
        with pytest.raises(Exception, match=r"no secret|127.0.0.1") as caught:
            flow()
        text = f"{caught.value!r}{caught.value}{getattr(caught.value, '__notes__', '')}{pickle.dumps(caught.value)!r}"
        assert secret not in text
        assert password not in text


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_what_a_run_leaves_is_its_users_alone(script, tmp_path, umask, monkeypatch):
    """In a home that others may enter, all that lies right in it is closed; so all below is out of reach."""
    root = tmp_path / "home"
    root.mkdir()
    root.chmod(0o755)
    monkeypatch.setenv("ROOT", str(root))
    done = script(
        f"import os; os.umask({umask})\n"
        "from slurm_ray_flow import LocalMachine, slurm_ray_flow\n"
        "@slurm_ray_flow(cluster=LocalMachine(root=os.environ['ROOT']), environment=['six==1.17.0'], keep_warm=0.1)\n"
        "def function():\n    import six\n    return 'done'\n"
        "print(function())\n"
    )
    assert "done" in done.stdout, done.stderr
    assert sorted(os.listdir(root)) == sorted(FOLDERS)
    closed = [root, home(), *root.glob("*"), *root.glob("runs/*"), *(home() / name for name in OURS)]
    assert {str(folder): open_to_others(folder) for folder in closed} == {str(folder): [] for folder in closed}


@pytest.mark.ray
def test_a_ray_cluster_is_its_users_alone(guarded, tmp_path):
    with held(guarded.ray_folder, tmp_path / "held") as (handle, token):
        folder = Path(token).parent
        assert folder.stat().st_mode & 0o777 == 0o700  # Ray itself opens its folder to everybody
        events = events_of(handle)
        address = events["ray_ready"]["address"]
        assert set(listening(family(events["allocated"]["pid"]))) == {"127.0.0.1"}
        refused = ask_ray(address, "0" * 64)
        assert "auth" in refused.lower()
        assert "[b" not in refused
        assert "[b" in ask_ray(address, Path(token).read_text())
    wait_for(lambda: not folder.exists())


def events_of(handle):
    """The events of a run by their names."""
    lines = Path(store.find_record(handle.run_id).paths.events).read_text().splitlines()
    return {event["event"]: event for event in map(json.loads, lines)}


def test_the_server_listens_on_loopback_and_wants_its_password(server):
    pid = json.loads((home() / "server" / "server.json").read_text())["pid"]
    assert set(listening(family(pid))) == {"127.0.0.1"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}/admin/version")
    assert refused.value.code == 401


@as_root
@pytest.mark.ray
def test_another_user_gets_nowhere(guarded, server, tmp_path):
    with held(guarded.ray_folder, tmp_path / "held") as (handle, token):
        folder = Path(store.find_record(handle.run_id).paths.folder)
        head = events_of(handle)["allocated"]["pid"]
        (socket_file,) = Path(token).parent.glob("r/session_latest/sockets/plasma_store")
        tries = {
            "list the run": lambda: os.listdir(folder),
            "read its variables": (folder / "spec.json").read_bytes,
            "cancel it": (folder / "cancel").touch,
            "list the home": lambda: os.listdir(home()),
            "read the password": server_files().secret.read_bytes,
            "read Ray's token": Path(token).read_bytes,
            "replace Ray's token": Path(token).unlink,
            "write beside Ray": (Path(token).parent / "r" / "planted").touch,
            "take Ray's objects": lambda: socket.socket(socket.AF_UNIX).connect(str(socket_file)),
            "end the head": lambda: os.kill(head, 0),
        }
        assert {name: as_nobody(action) for name, action in tries.items()} == dict.fromkeys(tries, "denied")
        assert as_nobody(lambda: urllib.request.urlopen(f"{server.url}/flow_runs/{handle.run_id}")) == "HTTP 401"
        assert as_nobody(lambda: socket.socket().connect(("127.0.0.1", 1))) != "denied"  # it is alive and can try


@as_root
def test_a_link_that_another_user_planted_is_not_followed(guarded, tmp_path):
    """Names in /tmp are never guessed: what stands there before is passed by."""
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / "keep").write_text("mine")
    planted = Path("/tmp", f"srf-{secrets.token_hex(4)}")
    as_nobody(lambda: planted.symlink_to(mine))
    try:
        with held(guarded.ray_folder, tmp_path / "held") as (_, token):
            assert Path(token).parent != planted
        assert planted.is_symlink()
        assert os.listdir(mine) == ["keep"]
    finally:
        planted.unlink()


@as_root
@pytest.mark.parametrize(("name", "kind"), [("runs", "folder"), ("runs", "link"), ("cache", "folder")])
def test_a_folder_that_another_user_planted_in_an_open_root_is_refused(guarded, tmp_path, name, kind):
    root, lure = tmp_path / "root", tmp_path / "lure"
    for folder in (root, lure):
        folder.mkdir()
        folder.chmod(0o1777)
    planted = root / name
    planted.symlink_to(lure) if kind == "link" else planted.mkdir()
    os.chown(planted, NOBODY, NOBODY, follow_symlinks=False)
    flow = guarded.fail_with_secret.with_options(cluster=LocalMachine(root=root), env_vars={"TOKEN": "secret"})
    with pytest.raises(SlurmRayFlowError, match="belongs to another user"):
        flow()
    assert not files_with("secret", lure)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "", "a/../../b"])
def test_a_run_id_is_no_path(server, name):
    with pytest.raises(UnknownRunError):
        Handle.attach(name)
