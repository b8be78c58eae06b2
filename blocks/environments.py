"""The build of an environment on a machine, with the files that it needs from home."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from packaging.utils import parse_wheel_filename
from uv import find_uv_bin

from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.processes import Completed, inherited, run
from slurm_ray_flow.blocks.store import short_digest
from slurm_ray_flow.core.environment import WheelPlatform, is_local, local_links, without_wheel
from slurm_ray_flow.core.errors import DependencyError, EnvironmentFailed
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.launch_events import Note, publish
from slurm_ray_flow.core.requirements import RequirementLine, hide_credentials
from slurm_ray_flow.core.requirements.files import UV_OPTIONS
from slurm_ray_flow.core.requirements.local import ignored_names, path_of, url_of
from slurm_ray_flow.remote.environment.environments import NO_REGISTRY
from slurm_ray_flow.remote.environment.installation import split_options
from slurm_ray_flow.remote.environment.uv_tool import MISLEADING
from slurm_ray_flow.remote.shared.machine import machine_facts as facts_of_this_machine

SECONDS = 3600.0
"""Seconds that a download or a build may take."""
_LARGE = 1 << 20


def ask_uv(arguments: Sequence[str], folder: Path | None = None) -> str:
    """The output of uv in a folder; tools that it runs get this Python.

    Raises:
        DependencyError: uv failed; with the end of its output.
    """
    variables = {name: value for name, value in inherited().items() if name not in {*MISLEADING, "UV_LOCKED"}}
    command = [find_uv_bin(), "--no-progress", "--color", "never", *arguments]
    done = run(command, timeout=SECONDS, env={**variables, "UV_PYTHON": sys.executable}, cwd=folder)
    if not done.ok:
        raise uv_failure(
            f"uv can't tell what is required (uv {' '.join(arguments[:2])})", done, str(folder or "this machine")
        )
    return done.stdout


def ask_uv_once(arguments: Sequence[str], folder: Path) -> str:
    """The output of `ask_uv`, which is cached for a project until a file beside its pyproject.toml changes.

    uv's own cache depends on fewer files; building metadata takes seconds, and needs an index.
    """
    if arguments[0] != "tool":
        return ask_uv(arguments, folder)
    files = sorted(path for path in (*folder.glob("*"), *folder.glob("requirements*/*")) if path.is_file())
    digests = [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files if path.stat().st_size < _LARGE
    ]
    cache_file = home() / "cache" / "wanted" / f"{short_digest(json.dumps([*arguments, digests]))}.txt"
    with contextlib.suppress(OSError):
        return cache_file.read_text(encoding="utf-8")
    text = ask_uv(arguments, folder)
    write_whole(cache_file, text.encode())
    return text


def uv_failure(what: str, done: Completed, where: str = "this machine") -> DependencyError:
    """The error with the end of a command's output."""
    output = hide_credentials(done.stderr.strip() or done.stdout.strip())
    advice = "see what is named there, and change it; or write the packages into a requirements.txt"
    if NO_REGISTRY.search(output):
        advice = "see to this machine's network, or to the proxy that leads to its package index (HTTPS_PROXY); "
        advice += 'or have the cluster get packages by itself, if it can: wheels="index" on its block'
    return DependencyError(f"{what}:\n" + "\n".join(output.splitlines()[-15:]), where=where, advice=advice)


_WORK, _WHEELS, _LINES, _WHEELHOUSE_ADDRESS = ".work", "wheels", "lines.json", "file:///srf-wheelhouse"


@dataclasses.dataclass(frozen=True)
class Wheelhouse:
    """Wheels to send, and the changes of a build's spec that install them.

    Attributes:
        folder: the folder with `<digest of the content>/<wheel>`.
        changes: the fields of the build's spec that change once the wheels are on the cluster.
    """

    folder: Path
    changes: dict[str, Any]


def wheels_of_all(spec: Mapping[str, Any], target: WheelPlatform, folder_there: PurePosixPath) -> Wheelhouse:
    """All packages of an environment as wheels: the cluster needs no index.

    Args:
        spec: the spec of the build: digest, requirements, constraints, options.
        target: the platform of the cluster's Python.
        folder_there: the folder on the cluster for the wheels.

    Raises:
        DependencyError: a package has no wheel for the cluster, and can't be built here.
    """
    wheelhouse = private_folder(home() / "wheelhouses") / f"{spec['digest']}-all"
    with _fill_wheelhouse(wheelhouse) as folder:
        if folder is not None:
            publish(Note(f"collects packages for {target.machine}, Python {target.version}"))
            _Collector(spec, target, folder).collect_all()
    lines, options = _wheel_lines(wheelhouse, folder_there), ["--no-index", "--no-deps"]
    return Wheelhouse(wheelhouse / _WHEELS, {"requirements": lines, "constraints": [], "options": options})


def wheels_of_local(spec: Mapping[str, Any], target: WheelPlatform, folder_there: PurePosixPath) -> Wheelhouse:
    """The local packages of an environment as wheels; the cluster gets the others from its index.

    Raises:
        DependencyError: a package can't be built here for the cluster, or an option names a folder at home.
    """
    if links := local_links(spec["options"]):
        raise DependencyError(
            "the packages are looked for in a folder of this machine, which the cluster does not see",
            where=f"--find-links {links[0]}",
            advice='set wheels="upload" on the cluster\'s block, and they are sent',
        )
    wheelhouse = private_folder(home() / "wheelhouses") / f"{spec['digest']}-local"
    with _fill_wheelhouse(wheelhouse) as folder:
        if folder is not None:
            publish(Note("builds the local packages"))
            _Collector(spec, target, folder).collect_local()
    index_lines = [line for line in spec["requirements"] if not is_local(line)]
    return Wheelhouse(wheelhouse / _WHEELS, {"requirements": [*index_lines, *_wheel_lines(wheelhouse, folder_there)]})


@contextlib.contextmanager
def with_copies_of_local(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spec of a build with copies of its local packages, which exist as long as the block lasts."""
    with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "sent")) as folder:
        lines = list(spec["requirements"])
        for number, text in enumerate(lines):
            if is_local(text):
                line = RequirementLine.parse(text)
                lines[number] = dataclasses.replace(line, url=_copy_of_local(line.url, Path(folder, str(number)))).text
        yield {**spec, "requirements": lines}


def _copy_of_local(url: str, folder: Path) -> str:
    """The address of a copy of a local package, since a build writes into the package's folder."""
    path = path_of(url) if url.startswith("file:") else None
    if path is None or not path.is_dir():
        return url
    copy = folder / path.name
    try:
        shutil.copytree(path, copy, symlinks=True, ignore=ignored_names)
    except OSError:  # a file can't be copied
        return url
    for name in (".git", ".hg"):
        if (path / name).exists():
            (copy / name).symlink_to(path / name)  # the build may read the version there
    return url_of(copy) + "".join(url.partition("#")[1:])


class _Collector:
    """A collector of wheels below a folder, each in a subfolder named by its content."""

    def __init__(self, spec: Mapping[str, Any], target: WheelPlatform, folder: Path) -> None:
        self._spec, self._target, self._folder = spec, target, folder
        self._work, self._wheels = folder / _WORK, folder / _WHEELS
        self._work.mkdir(mode=0o700)
        self._wheels.mkdir(mode=0o700)

    def collect_all(self) -> None:
        for pin in self._resolve(self.collect_local()):
            self._build(pin)
        wheels = self._wheels.glob("*/*.whl")
        self._note([RequirementLine(parse_wheel_filename(wheel.name)[0], url=wheel.as_uri()) for wheel in wheels])

    def collect_local(self) -> list[str]:
        """Build the local packages; gives requirement lines for them."""
        lines = [RequirementLine.parse(line) for line in self._spec["requirements"] if is_local(line)]
        wheels = [self._build(line.url) for line in lines]
        names = [parse_wheel_filename(wheel.name)[0] for wheel in wheels]
        local_lines = [
            dataclasses.replace(line, name=name, url=wheel.as_uri(), hashes=())
            for line, name, wheel in zip(lines, names, wheels, strict=True)
        ]
        self._note(local_lines)
        return [line.text for line in local_lines]

    def _note(self, lines: Sequence[RequirementLine]) -> None:
        """Write the requirement lines into the wheelhouse, with addresses relative to it."""
        start = self._wheels.as_uri()
        texts = [dataclasses.replace(line, url=line.url.replace(start, _WHEELHOUSE_ADDRESS)).text for line in lines]
        write_whole(self._folder / _LINES, json.dumps(sorted(texts)).encode())

    def _resolve(self, local: Sequence[str]) -> list[str]:
        """Pin all packages exactly and download them; gives the pins without a wheel."""
        index_lines = [line for line in self._spec["requirements"] if not is_local(line)]
        lines, arguments = split_options(self._spec["options"])
        file = self._file("wanted.in", [*lines, *index_lines, *local])
        constraints = ["--constraint", self._file("bounds.in", self._spec["constraints"])]
        target_options = ["--python-version", self._target.python, "--python-platform", self._target.uv_platform]
        format_options = ["--quiet", "--no-header", "--no-annotate"]
        output = ask_uv(["pip", "compile", *format_options, *target_options, *constraints, *arguments, file])
        pins = [line.strip() for line in output.splitlines() if line.strip() and line[0] not in "#- "]
        pins = [pin for pin in pins if not is_local(pin)]
        sources = [pin for pin in pins if " @ " in pin and not pin.partition("#")[0].endswith(".whl")]
        downloaded = self._download([pin for pin in pins if pin not in sources])
        return [pin.partition(" @ ")[2] for pin in sources] + downloaded

    def _download(self, pins: list[str]) -> list[str]:
        """Download wheels for the target; gives the pins without a wheel."""
        missing: list[str] = []
        abi = "cp" + self._target.version.replace(".", "")
        tags = [f"--platform={name}" for name in self._target.platforms]
        tags += [f"--abi={name}" for name in (abi, "abi3", "none")]
        while remaining := [pin for pin in pins if pin not in missing]:
            file = self._file("pins.txt", [*self._options(), *remaining])
            target_options = ["--dest", str(self._work / "down"), f"--python-version={self._target.version}", *tags]
            download = _pip("download", "--no-deps", "--only-binary=:all:", *target_options, "--requirement", file)
            if download.ok:
                break
            without_wheels = without_wheel(download.stderr)
            unavailable = [pin for pin in remaining if pin.replace(" ", "").partition(";")[0] == without_wheels]
            if not unavailable:
                raise uv_failure("the packages can't be downloaded", download)
            missing += unavailable
        for wheel in sorted((self._work / "down").glob("*.whl")):
            self._keep(wheel)
        return missing

    def _build(self, source: str) -> Path:
        """Build a wheel here: of a path, an address, or a pin whose source is on an index."""
        path = path_of(source) if source.startswith("file:") else None
        if path is not None and path.suffix == ".whl":
            return self._keep(self._checked(path, str(path)), copy=True)
        wheel_folder = Path(tempfile.mkdtemp(dir=self._work))
        for address in dict.fromkeys((_copy_of_local(source, Path(tempfile.mkdtemp(dir=self._work))), source)):
            file = self._file("build.txt", [*self._options(), address])
            build = _pip("wheel", "--no-deps", "--wheel-dir", str(wheel_folder), "--requirement", file)
            if build.ok:
                break  # else it may need a folder beside its own, and is built in its place
        else:
            raise uv_failure(f"{hide_credentials(source)} can't be built here for the cluster", build)
        (wheel,) = wheel_folder.glob("*.whl")
        return self._keep(self._checked(wheel, source))

    def _checked(self, wheel: Path, source: str) -> Path:
        if self._target.takes(wheel.name):
            return wheel
        raise DependencyError(
            f"{wheel.name.partition('-')[0]} has no wheel for {self._target.machine} with {self._target.libc or 'musl'}"
            f" and Python {self._target.version}, and holds compiled code, which can't be built here for the cluster",
            where=hide_credentials(source),
            advice="choose a version that has such a wheel, or let the cluster install it (wheels='index')",
        )

    def _keep(self, wheel: Path, copy: bool = False) -> Path:
        with open(wheel, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:16]
        kept = self._wheels / digest / wheel.name
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(wheel, kept) if copy else os.replace(wheel, kept)
        os.utime(kept, (0x60000000, 0x60000000))  # rsync takes one of the same time and size for the same
        return kept

    def _options(self) -> list[str]:
        """The options that pip has, too."""
        return [option for option in self._spec["options"] if option.partition(" ")[0] not in UV_OPTIONS]

    def _file(self, name: str, lines: Sequence[str]) -> str:
        write_whole(self._work / name, "".join(f"{line}\n" for line in lines).encode())
        return str(self._work / name)


@contextlib.contextmanager
def _fill_wheelhouse(wheelhouse: Path) -> Iterator[Path | None]:
    """A folder to fill, which is renamed to the wheelhouse after success; None if the wheelhouse exists."""
    if (wheelhouse / _LINES).exists():
        os.utime(wheelhouse)
        yield None
        return
    temporary = Path(tempfile.mkdtemp(prefix=f".{wheelhouse.name}.", dir=wheelhouse.parent))
    try:
        yield temporary
        shutil.rmtree(temporary / _WORK, ignore_errors=True)
        with contextlib.suppress(OSError):  # another launch was first
            os.rename(temporary, wheelhouse)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _wheel_lines(folder: Path, remote_folder: PurePosixPath) -> list[str]:
    """The requirement lines of a wheelhouse, with addresses on the cluster."""
    texts: list[str] = json.loads((folder / _LINES).read_text())
    return [text.replace(_WHEELHOUSE_ADDRESS, "file://" + quote(str(remote_folder))) for text in texts]


def _pip(*arguments: str) -> Completed:
    """Run pip, which unlike uv downloads wheels for another platform; uv installs it."""
    command = [find_uv_bin(), "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    return run([*command, "--disable-pip-version-check", "--no-input", "--no-color", *arguments], timeout=SECONDS)


Send = Callable[[Path, PurePosixPath], None]
"""A function that copies the content of a folder at home into one on the cluster; existing files stay."""

UV_VERSION = importlib.metadata.version("uv")
"""The version of uv for clusters: home's own, so that both read a requirement alike."""
_SECONDS = 600.0


def build(machine: Machine, spec: Mapping[str, Any], *, send: Send, policy: str = "", wheels: str = "index") -> None:
    """Build an environment on a machine, once among parallel launches.

    Args:
        machine: the machine.
        spec: root, digest, version ("3.11"), requirements, constraints, options, and `packed`.
        send: copies folders to the machine.
        policy: which Python to use (remote/environment/pythons.py).
        wheels: "index", or "upload" for a machine that reaches no package index.

    Raises:
        EnvironmentFailed: the machine has no such Python, or uv failed; with uv's messages.
        DependencyError: a package can't be built here for the machine.
    """
    root = str(machine.root_folder)
    python_request = {"policy": policy, "version": spec["version"], "root": root, "uv_version": UV_VERSION}
    python, uv_found = machine.ask_all(
        [("pythons.find", python_request), ("uv_tool.located", {"root": root, "version": UV_VERSION})]
    )
    uv = uv_found["uv"] or _provide_uv(machine, python, send, wheels)
    full_spec = {**spec, "uv": uv, "python": python["python"], "variables": python["variables"]}
    target = WheelPlatform.of(python["version"], python["platform"], python["libc"])
    full_spec.update(_send_wheels(machine, spec, target, wheels, send))
    machine.ask_all([("environments.build", {"spec": full_spec})], publish_progress)


def publish_progress(event: Mapping[str, Any]) -> None:
    """Publish the text of a builder's event, without uv's list of packages, which the table shows."""
    text = _EVENT_TEXTS.get(event["event"], "").format(**event)
    if text and not (event["event"] == "line" and text.startswith((" ", "Activate with"))):
        publish(Note(text))


_EVENT_TEXTS = {
    "waiting": "another launch is building it (process {pid} on {host})",
    "building": "builds the environment with uv",
    "line": "{text}",
    "whole": "packages in {path}: {packages}",
}


def _send_wheels(
    machine: Machine, spec: Mapping[str, Any], target: WheelPlatform, wheels: str, send: Send
) -> dict[str, Any]:
    """Send the wheels that the machine can't get itself; gives the changes of the spec."""
    remote_folder = machine.root_folder / "wheelhouses"
    if wheels == "upload":
        wheelhouse = wheels_of_all(spec, target, remote_folder)
    elif any(map(is_local, spec["requirements"])) or local_links(spec["options"]):
        wheelhouse = wheels_of_local(spec, target, remote_folder)
    else:
        return {}
    publish(Note("sends packages"))
    send(wheelhouse.folder, remote_folder)
    return wheelhouse.changes


def _provide_uv(machine: Machine, python: Mapping[str, Any], send: Send, wheels: str) -> str:
    """Install uv on the machine, from its package index or else from home; gives the path there."""
    root = str(machine.root_folder)
    if wheels == "index":
        request = ("uv_tool.provide", {"root": root, "version": UV_VERSION})
        with contextlib.suppress(EnvironmentFailed):
            return str(machine.ask_all([request], publish_progress)[0]["uv"])
    publish(Note(f"sends uv {UV_VERSION}"))
    remote_folder = machine.root_folder / "tools" / "uv" / f"sent-{UV_VERSION}"
    with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "sent")) as folder:
        _put_uv(Path(folder), WheelPlatform.of(python["version"], python["platform"], python["libc"]))
        send(Path(folder), remote_folder)
    return str(machine.ask("uv_tool.provide", root=root, version=UV_VERSION, sent=str(remote_folder / "uv"))["uv"])


def _put_uv(folder: Path, target: WheelPlatform) -> None:
    """Put a uv for the target into a folder: home's own if it starts there, else one for that platform."""
    facts = facts_of_this_machine()
    if WheelPlatform.of(target.python, facts["platform"], facts["libc"]).platforms == target.platforms:
        shutil.copy(find_uv_bin(), folder / "uv")
        return
    installed = folder / ".installed"
    platform = ["--python-platform", target.uv_platform, "--python-version", target.python]
    command = ["pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(installed), *platform]
    installation = run([find_uv_bin(), *command, f"uv=={UV_VERSION}"], timeout=_SECONDS)
    if not installation.ok:
        raise EnvironmentFailed(
            f"there is no uv for the cluster's platform: {installation.stderr.strip()[-500:]}",
            where=f"{target.machine}, {target.libc or 'musl'}",
            advice="install uv on the cluster yourself, so that it is on PATH there",
        )
    os.replace(installed / "bin" / "uv", folder / "uv")
    shutil.rmtree(installed)
