"""How others on this machine look at a run."""

import base64
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from support import wait_for

NOBODY = 65534


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index that wants a password."""

    def __init__(self, *args, password, **kwargs):
        self.wanted = "Basic " + base64.b64encode(f"reader:{password}".encode()).decode()
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.headers.get("Authorization") == self.wanted:
            super().do_GET()
        else:
            self.send_error(401)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def processes_seen():
    """Pid, arguments and environment of all processes of this machine while the block runs."""
    seen, stop = set(), threading.Event()

    def look():
        while not stop.wait(0.01):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    arguments, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
                    if arguments == (folder / "cmdline").read_bytes():  # else it became another program meanwhile
                        seen.add((int(folder.name), arguments, environment))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def files_with(text, folder):
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(path)
    return found


def told_by_prefect(server, run_id, logged):
    """All that Prefect's API tells of a run, as one text; `logged` is a word of its log."""
    api = Api(server.url, auth_string(server_files()))
    chosen = {"flow_runs": {"id": {"any_": [run_id]}}}
    logs = {"logs": {"flow_run_id": {"any_": [run_id]}}}
    # Tasks and logs reach the server after the run.
    wait_for(lambda: len(api.post("/task_runs/filter", chosen)) == 7 and logged in str(api.post("/logs/filter", logs)))
    answers = [
        api.get(f"/flow_runs/{run_id}"),
        api.get(f"/flow_run_states/?flow_run_id={run_id}"),
        api.post("/task_runs/filter", chosen),
        api.post("/artifacts/filter", chosen),
        api.post("/logs/filter", logs),
        api.post("/events/filter", {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run_id}"]}}}),
    ]
    assert all(answers[:5])
    return json.dumps(answers)


def ask_ray(address, token):
    program = f"from ray._raylet import GcsClient; print(GcsClient({address!r}).internal_kv_keys(b'', None, 10))"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env={**variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def family(pid):
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in path.read_text().split()]
    return found


def listening(pids):
    """The addresses on which processes listen."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(link))
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(_address(fields[1].split(":")[0]))
    assert found
    return found


def _address(digits):
    if len(digits) == 32 and not digits.startswith("0000000000000000FFFF0000"):
        return digits
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(digits[-8:])))


def as_nobody(action):
    """What becomes of an action that another user tries."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
            answer = "done"
        except PermissionError:
            answer = "denied"
        except urllib.error.HTTPError as error:
            answer = f"HTTP {error.code}"
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(child, 0)
    return answer
