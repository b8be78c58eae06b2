"""The environments of a cluster: which there are, and one more."""

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
"""What uv and pip say where the package index can't be reached."""
LAST_SECONDS = 20.0
"""How long a builder that is told to end may take to remove what it made."""


def held(root: str, using: str = "") -> List[str]:
    """The content of each environment's `whole.json`.

    Args:
        root: the folder of everything of ours.
        using: the digest of the one that a launch wants: no clean-up takes it for unused.
    """
    if using:
        touch(root, ["environments/{}/whole.json".format(using)])
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "environments", "*", "whole.json"))):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
            found.append(file.read())
    return found


def build(spec: Mapping[str, Any], tell: Callable[[Any], None] = lambda _: None) -> Dict[str, Any]:
    """Build an environment unless it is there, in a process that does not outlive this one.

    Args:
        spec: as the builder wants it (environment.py).
        tell: gets the builder's events.

    Returns:
        The event `whole`: path, packages (how many), and built, whether it was made now.

    Raises:
        OperationError: it could not be built; uv's own words are in it.
    """
    last: Dict[str, Any] = {}
    words: List[str] = []
    with _builder(spec) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = _event(line)
            if event is None:
                words.append(line.strip())
            elif event["event"] == "failed":
                last = event
            else:
                last = event
                tell(event)
        code = process.wait()
    if last.get("event") == "whole":
        return last
    message = str(last.get("message") or "the builder ended with {}: {}".format(code, " | ".join(words[-5:])))
    raise OperationError(message, _place(spec), advice(message, spec), "environment")


def advice(message: str, spec: Mapping[str, Any]) -> str:
    """What to try after a build that failed with these words."""
    if NO_REGISTRY.search(message) and "--no-index" not in spec.get("options", ()):  # that is what "upload" builds by
        return 'if the cluster has no way to the package index, set wheels="upload" on its block'
    if DISK_FULL.search(message):
        return 'remove environments that nobody needs (srf clean), or keep this one as one file: environment="packed"'
    return "see which package uv names, and change its version or leave it out"


@contextlib.contextmanager
def _builder(spec: Mapping[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    """The builder. Its stdin is the spec, and then what it lives by: it ends when our end of it closes."""
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
        _see_it_end(process)
        process.stdout.close()


def _see_it_end(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _event(line: str) -> Any:
    """An event of the builder's; None for the interpreter's own words."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _place(spec: Mapping[str, Any]) -> str:
    return os.path.join(str(spec.get("root", "")), "environments", str(spec.get("digest", "")))


OPERATIONS: Dict[str, Any] = {"environments.build": build, "environments.held": held}
