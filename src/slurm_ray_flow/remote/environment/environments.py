"""Operations on the environments of a cluster: list them, and build one."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.environment.uv_tool import DISK_FULL
from slurm_ray_flow.remote.shared.protocol import OperationError
from slurm_ray_flow.remote.upkeep.clean_up import touch

NO_REGISTRY = re.compile(
    r"error sending request|dns error|failed to lookup address|connection refused|network (is )?unreachable"
    r"|tcp connect error|operation timed out|no route to host|client error \(connect\)|failed to fetch: `https?:"
    r"|network was disabled|name resolution|failed to establish a new connection",
    re.IGNORECASE,
)
"""Messages of uv and pip about a package index that can't be reached."""
STOP_SECONDS = 20.0
"""Seconds for a builder that is told to end to remove its temporary files."""


def held_environments(root: str, using: str = "") -> List[str]:
    """The content of each environment's `whole.json`.

    Args:
        root: the root folder.
        using: the digest of the environment that a launch is about to use: it counts as used now.
    """
    if using:
        touch(root, ["environments/{}/whole.json".format(using)])
    contents = []
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "environments", "*", "whole.json"))):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
            contents.append(file.read())
    return contents


def build(spec: Mapping[str, Any], tell: Callable[[Any], None] = lambda _: None) -> Dict[str, Any]:
    """Build an environment unless it exists, in a process that does not outlive this one.

    Args:
        spec: the `spec` of `builder.build`.
        tell: gets the builder's events.

    Returns:
        The event `whole`: path, packages (their number), and built, whether it was built now.

    Raises:
        OperationError: the build failed, with the last lines of uv's output.
    """
    last_event: Dict[str, Any] = {}
    other_lines: List[str] = []
    with _builder(spec) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = _event(line)
            if event is None:
                other_lines.append(line.strip())
            elif event["event"] == "failed":
                last_event = event
            else:
                last_event = event
                tell(event)
        code = process.wait()
    if last_event.get("event") == "whole":
        return last_event
    crash = "the builder ended with {}: {}".format(code, " | ".join(other_lines[-5:]))
    message = str(last_event.get("message") or crash)
    raise OperationError(message, _target(spec), advice(message, spec), "environment")


def advice(message: str, spec: Mapping[str, Any]) -> str:
    """The advice for a build that failed with this message."""
    if NO_REGISTRY.search(message) and "--no-index" not in spec.get("options", ()):  # wheels="upload" sets that option
        return 'if the cluster has no way to the package index, set wheels="upload" on its block'
    if DISK_FULL.search(message):
        return 'remove environments that nobody needs (srf clean), or keep this one as one file: environment="packed"'
    return "see which package uv names, and change its version or leave it out"


@contextlib.contextmanager
def _builder(spec: Mapping[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    """The builder's process, which gets the spec by stdin, and ends when this end of stdin is closed."""
    program = path_of("environment/builder.py")
    process = subprocess.Popen(
        [sys.executable, "-I", program, "build", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(dict(spec)) + "\n")
            process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        _wait_or_kill(process)
        process.stdout.close()


def _wait_or_kill(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _event(line: str) -> Any:
    """An event of the builder's; None for other lines, such as the interpreter's own."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _target(spec: Mapping[str, Any]) -> str:
    return os.path.join(str(spec.get("root", "")), "environments", str(spec.get("digest", "")))


OPERATIONS: Dict[str, Any] = {"environments.build": build, "environments.held": held_environments}
