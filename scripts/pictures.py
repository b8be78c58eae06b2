"""Makes the pictures of the README anew: docs/pictures/demo.svg and docs/pictures/run.png.

`python scripts/pictures.py` records `make demo` on a terminal of its own and draws what stood there; then it opens the
run's page in headless Chromium, logged in the way `srf up --open` does it. Needs Chromium. For developers only: set
HOME to an empty folder first, so that nothing of your own is seen.
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
from pathlib import Path
from typing import Any

import websockets
from rich.console import Console
from rich.text import Text

from slurm_ray_flow.blocks.server import ensure_server
from slurm_ray_flow.blocks.server.files import server_files
from slurm_ray_flow.blocks.server.log_in import open_ui

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


async def photograph(port: int, log_in: str, run_url: str, target: Path) -> None:
    """Log in as the user's browser would, go to the run, take its picture."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
        (found,) = [page for page in json.load(answer) if page["type"] == "page"]
    async with websockets.connect(found["webSocketDebuggerUrl"], max_size=None) as connection:
        page = Page(connection)
        size = {"width": 1280, "height": 860, "deviceScaleFactor": 1, "mobile": False}
        await page.ask("Emulation.setDeviceMetricsOverride", **size)
        await page.ask("Page.navigate", url=log_in)
        await page.until("location.protocol == 'http:' && document.body.innerText.includes('Flow Runs')")
        await page.ask("Page.navigate", url=run_url)
        await page.until(
            "['execute_call', 'fetch_outcome', 'Completed'].every(w => document.body.innerText.includes(w))"
        )
        await asyncio.sleep(2)  # the graph draws itself into a canvas, which nothing can be asked about
        await page.picture(target)


def browse(log_in: str, run_url: str, target: Path) -> None:
    """The same with a Chromium of its own."""
    with tempfile.TemporaryDirectory() as profile:
        command = [shutil.which("chromium") or "chromium", *CHROMIUM, f"--user-data-dir={profile}", "about:blank"]
        chromium = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert chromium.stderr
            line = next(line for line in chromium.stderr if "DevTools listening" in line)
            port = int(re.search(r":(\d+)/", line).group(1))  # type: ignore[union-attr]
            asyncio.run(photograph(port, log_in, run_url, target))
        finally:
            chromium.terminate()
            chromium.wait(20)


def main() -> None:
    """Both pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    address = ensure_server(print)
    written = record(["make", "--no-print-directory", "demo"])
    draw(written, PICTURES / "demo.svg")
    run_url = re.search(r"http://\S+/runs/flow-run/[0-9a-f-]+", written).group(0)  # type: ignore[union-attr]
    open_ui(address)  # writes the page that logs in
    browse(server_files().log_in_page.as_uri(), run_url, PICTURES / "run.png")
    print(*(f"{path.name}: {path.stat().st_size // 1024} KiB" for path in sorted(PICTURES.iterdir())), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
