"""Makes the pictures of the documents anew: docs/pictures/demo.svg, and pages of Prefect's UI.

`python scripts/pictures.py` records `make demo` on a terminal of its own and draws what stood there; then it opens
pages in headless Chromium, logged in the way `srf up --open` does it. Needs Chromium. For developers only: set HOME to
an empty folder first, so that nothing of your own is seen.
"""

# ruff: noqa: S603, S606, T201, TID251 - a tool that runs programs and tells what it made

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websockets
from rich.console import Console
from rich.text import Text

from slurm_ray_flow.blocks.server import ensure_server
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.blocks.server.log_in import open_ui
from slurm_ray_flow.deployments.notify import notify

TOP = Path(__file__).parents[1]
PICTURES = TOP / "docs" / "pictures"
COLUMNS, ROWS = 92, 40
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--allow-file-access-from-files",
]


def record(command: list[str]) -> str:
    """Run a command on a terminal of its own; what it wrote, with all escape sequences."""
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(TOP)
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.environ.pop("SRF_PROGRESS", None)
        os.execvp(command[0], command)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written = b""
    while select.select([descriptor], [], [], 300)[0]:
        try:
            written += os.read(descriptor, 65536)
        except OSError:  # the other side has closed
            break
    _, status = os.waitpid(child, 0)
    assert status == 0, written.decode()
    return written.decode()


def left_on_the_screen(written: str) -> str:
    """Without what a later character overwrote; colours stay."""
    return "\n".join(line.rpartition("\r\x1b[2K")[2] for line in written.replace("\r\n", "\n").split("\n"))


def draw(written: str, target: Path) -> None:
    """An SVG of a terminal that shows this text."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text("$ make demo", "bold"))
        console.print(Text.from_ansi(left_on_the_screen(written).strip("\n")))
        text = console.export_svg(title="slurm-ray-flow")
    text = re.sub(r"@font-face \{.*?\}", "", text, flags=re.DOTALL)  # a picture fetches nothing
    target.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))


class Page:
    """One page of a browser, told what to do over Chromium's DevTools protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._number = connection, 0

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await asyncio.wait_for(self._connection.recv(), 30))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    async def value(self, script: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not await self.value(script):
            assert time.monotonic() < deadline, f"never: {script}; {await self.value('document.body.innerText')}"
            await asyncio.sleep(0.2)

    async def picture(self, target: Path) -> None:
        answer = await self.ask("Page.captureScreenshot", format="png")
        target.write_bytes(base64.b64decode(answer["data"]))


@dataclass(frozen=True)
class Shot:
    """A page to take a picture of: its path in the UI, words that must stand there, and what to call the picture."""

    path: str
    words: tuple[str, ...]
    name: str
    height: int = 860


async def photograph(port: int, log_in: str, ui_url: str, shots: Sequence[Shot], folder: Path) -> None:
    """Log in as the user's browser would, go from page to page, take their pictures."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
        (found,) = [page for page in json.load(answer) if page["type"] == "page"]
    async with websockets.connect(found["webSocketDebuggerUrl"], max_size=None) as connection:
        page = Page(connection)
        await page.ask("Page.navigate", url=log_in)
        await page.until("location.protocol == 'http:' && document.body.innerText.includes('Flow Runs')")
        for shot in shots:
            size = {"width": 1280, "height": shot.height, "deviceScaleFactor": 1, "mobile": False}
            await page.ask("Emulation.setDeviceMetricsOverride", **size)
            await page.ask("Page.navigate", url=ui_url + shot.path)
            await page.until(f"{list(shot.words)}.every(word => document.body.innerText.includes(word))")
            await asyncio.sleep(3)  # graphs draw themselves into a canvas, which nothing can be asked about
            await page.picture(folder / f"{shot.name}.png")


def browse(log_in: str, ui_url: str, shots: Sequence[Shot], folder: Path) -> None:
    """The same with a Chromium of its own."""
    with tempfile.TemporaryDirectory() as profile:
        command = [shutil.which("chromium") or "chromium", *CHROMIUM, f"--user-data-dir={profile}", "about:blank"]
        chromium = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert chromium.stderr
            line = next(line for line in chromium.stderr if "DevTools listening" in line)
            port = int(re.search(r":(\d+)/", line).group(1))  # type: ignore[union-attr]
            asyncio.run(photograph(port, log_in, ui_url, shots, folder))
        finally:
            chromium.terminate()
            chromium.wait(20)


def shots_of(run_id: str, artifact_id: str, deployment_id: str) -> list[Shot]:
    """The pages that the documents show."""
    return [
        Shot(f"/runs/flow-run/{run_id}", ("scan_imports", "Completed"), "run"),
        Shot(f"/artifacts/artifact/{artifact_id}", ("srf attach",), "artifact", 700),
        Shot(f"/deployments/deployment/{deployment_id}/run", ("max_parallel", "directory"), "deployment", 1100),
        Shot("/automations", ("tell of cluster.down",), "automations", 700),
        Shot("/blocks/catalog/slurm-cluster/create", ("Partition", "Account"), "block", 900),
    ]


def set_up() -> None:
    """Deployments and automations to be seen."""
    prefect = [str(Path(sys.executable).with_name("srf")), "prefect"]
    subprocess.run([*prefect, "work-pool", "create", "--overwrite", "--type", "process", "srf"], check=True, cwd=TOP)
    subprocess.run([*prefect, "deploy", "--all"], check=True, cwd=TOP)
    notify("https://hooks.example.org/services/T0/B0")


def found(run_id: str) -> tuple[str, str]:
    """The ids of the artifact that tells where a run is, and of the deployment `campaign`, as one would fill it in."""
    state = read_state(server_files())
    assert state
    api = Api(state.url, auth_string(server_files()))
    artifacts = api.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    [campaign] = api.post("/deployments/filter", {"deployments": {"name": {"any_": ["campaign"]}}})
    shown = {"function": "simulation:simulate", "directory": "~/project", "options": {"cluster": "curnagl"}}
    api.patch(f"/deployments/{campaign['id']}", {"parameters": {**campaign["parameters"], **shown}})
    return next(one["id"] for one in artifacts if str(one["key"]).startswith("run-")), campaign["id"]


def main() -> None:
    """All of them."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    address = ensure_server(print)
    written = record(["make", "--no-print-directory", "demo"])
    draw(written, PICTURES / "demo.svg")
    run_id = re.search(r"http://\S+/runs/flow-run/([0-9a-f-]+)", written).group(1)  # type: ignore[union-attr]
    set_up()
    shots = shots_of(run_id, *found(run_id))
    open_ui(address)  # writes the page that logs in
    browse(server_files().log_in_page.as_uri(), address.ui_url, shots, PICTURES)
    print(*(f"{path.name}: {path.stat().st_size // 1024} KiB" for path in sorted(PICTURES.iterdir())), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
