"""Build an environment on a machine that our programs run on, with what it needs from home."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from slurm_ray_flow.blocks import wheelhouse
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.shell import run
from slurm_ray_flow.core.errors import EnvironmentFailed
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.wheels import Target, is_local, local_links
from slurm_ray_flow.remote.installation import size_of
from slurm_ray_flow.remote.machines import facts as facts_of_this_machine

Send = Callable[[Path, PurePosixPath], None]
"""Brings what lies in a folder at home into a folder there; what is there stays."""
Tell = Callable[[str], None]

UV_VERSION = importlib.metadata.version("uv")
"""What is put on a cluster is what home has: both read a requirement alike."""
_SECONDS = 600.0


def build(
    machine: Machine, spec: Mapping[str, Any], tell: Tell, *, send: Send, policy: str = "", wheels: str = "index"
) -> None:
    """Build an environment there, once, whatever runs in parallel.

    Args:
        machine: where.
        spec: root, digest, version ("3.11"), requirements, constraints, options, and packed where it is wanted so.
        tell: is told what happens.
        send: brings folders there.
        policy: which Python (remote/pythons.py).
        wheels: "index", or "upload" for a machine that reaches no package index.

    Raises:
        EnvironmentFailed: there is no such Python, or uv could not; its own words are in the message.
        DependencyError: a package can't be made ready here for there.
    """
    root = str(machine.root_folder)
    wanted = {"policy": policy, "version": spec["version"], "root": root, "uv_version": UV_VERSION}
    python, found = machine.ask_all(
        [("pythons.find", wanted), ("uv_tool.located", {"root": root, "version": UV_VERSION})]
    )
    uv = found["uv"] or _provided(machine, python, tell, send, wheels)
    ready = {**spec, "uv": uv, "python": python["python"], "variables": python["variables"], "sizes": _sizes()}
    target = Target.of(python["version"], python["platform"], python["libc"])
    ready.update(_sent_wheels(machine, spec, target, wheels, tell, send))
    machine.ask_all([("environments.build", {"spec": ready})], lambda event: say(event, tell))


def say(event: Mapping[str, Any], tell: Tell) -> None:
    """Tell people what a builder's event means; nothing of uv's list of packages, which the table shows."""
    text = _TEXTS.get(event["event"], "").format(**event)
    if text and not (event["event"] == "line" and text.startswith((" ", "Activate with"))):
        tell(text)


_TEXTS = {
    "waiting": "another launch is building it (process {pid} on {host})",
    "building": "builds the environment with uv",
    "line": "{text}",
    "whole": "packages in {path}: {packages}",
}


def _sent_wheels(
    machine: Machine, spec: Mapping[str, Any], target: Target, wheels: str, tell: Tell, send: Send
) -> dict[str, Any]:
    """Bring there what the cluster can't get itself; gives what that changes in the spec."""
    there = machine.root_folder / "wheelhouses"
    if wheels == "upload":
        made = wheelhouse.whole(spec, target, there, tell)
    elif any(map(is_local, spec["requirements"])) or local_links(spec["options"]):
        made = wheelhouse.local_only(spec, target, there, tell)
    else:
        return {}
    tell("sends packages")
    send(made.folder, there)
    return made.changes


def _provided(machine: Machine, python: Mapping[str, Any], tell: Tell, send: Send, wheels: str) -> str:
    """Have uv put there: by the machine itself where it has a package index, else by sending it."""
    root = str(machine.root_folder)
    if wheels == "index":
        request = ("uv_tool.provide", {"root": root, "version": UV_VERSION})
        with contextlib.suppress(EnvironmentFailed):
            return str(machine.ask_all([request], lambda event: say(event, tell))[0]["uv"])
    tell(f"sends uv {UV_VERSION}")
    there = machine.root_folder / "tools" / "uv" / f"sent-{UV_VERSION}"
    with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "sent")) as folder:
        _put_uv(Path(folder), Target.of(python["version"], python["platform"], python["libc"]))
        send(Path(folder), there)
    return str(machine.ask("uv_tool.provide", root=root, version=UV_VERSION, sent=str(there / "uv"))["uv"])


def _put_uv(folder: Path, target: Target) -> None:
    """Home's own uv where it starts there, else one for that platform."""
    this = facts_of_this_machine()
    if Target.of(target.python, this["platform"], this["libc"]).platforms == target.platforms:
        shutil.copy(find_uv_bin(), folder / "uv")
        return
    place = folder / ".installed"
    platform = ["--python-platform", target.uv_platform, "--python-version", target.python]
    command = ["pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(place), *platform]
    done = run([find_uv_bin(), *command, f"uv=={UV_VERSION}"], timeout=_SECONDS)
    if not done.ok:
        raise EnvironmentFailed(
            f"there is no uv for the cluster's platform: {done.stderr.strip()[-500:]}",
            where=f"{target.machine}, {target.libc or 'musl'}",
            advice="install uv on the cluster yourself, so that it is on PATH there",
        )
    os.replace(place / "bin" / "uv", folder / "uv")
    shutil.rmtree(place)


@functools.cache
def _sizes() -> dict[str, tuple[int, int]]:
    """Bytes and files of what is installed at home: most of it is what runs want there."""
    found = importlib.metadata.distributions()
    return {canonicalize_name(item.metadata["Name"]): size_of(item) for item in found if item.metadata["Name"]}
