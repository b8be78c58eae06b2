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
from slurm_ray_flow.core.requirements.local import path_of, url_of, without_meaning
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
        DependencyError: it refused; has its last words.
    """
    variables = {name: value for name, value in inherited().items() if name not in {*MISLEADING, "UV_LOCKED"}}
    command = [find_uv_bin(), "--no-progress", "--color", "never", *arguments]
    done = run(command, timeout=SECONDS, env={**variables, "UV_PYTHON": sys.executable}, cwd=folder)
    if not done.ok:
        raise failure(
            f"uv can't tell what is required (uv {' '.join(arguments[:2])})", done, str(folder or "this machine")
        )
    return done.stdout


def ask_uv_once(arguments: Sequence[str], folder: Path) -> str:
    """`ask_uv`, whose answer about a project is cached until a file beside its pyproject.toml changes.

    uv remembers metadata by fewer files still: building it takes seconds, and an index.
    """
    if arguments[0] != "tool":
        return ask_uv(arguments, folder)
    files = sorted(path for path in (*folder.glob("*"), *folder.glob("requirements*/*")) if path.is_file())
    seen = [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files if path.stat().st_size < _LARGE
    ]
    place = home() / "cache" / "wanted" / f"{short_digest(json.dumps([*arguments, seen]))}.txt"
    with contextlib.suppress(OSError):
        return place.read_text(encoding="utf-8")
    text = ask_uv(arguments, folder)
    write_whole(place, text.encode())
    return text


def failure(what: str, done: Completed, where: str = "this machine") -> DependencyError:
    """The error with a command's last words."""
    words = hide_credentials(done.stderr.strip() or done.stdout.strip())
    advice = "see what is named there, and change it; or write the packages into a requirements.txt"
    if NO_REGISTRY.search(words):
        advice = "see to this machine's network, or to the proxy that leads to its package index (HTTPS_PROXY); "
        advice += 'or have the cluster get packages by itself, if it can: wheels="index" on its block'
    return DependencyError(f"{what}:\n" + "\n".join(words.splitlines()[-15:]), where=where, advice=advice)


_WORK, _WHEELS, _LINES, _HERE = ".work", "wheels", "lines.json", "file:///srf-wheelhouse"


@dataclasses.dataclass(frozen=True)
class Wheelhouse:
    """Wheels to send, and the changes of a build's spec that install them.

    Attributes:
        folder: holds `<digest of the content>/<wheel>`.
        changes: what changes in the build's spec, when the folder's content lies there.
    """

    folder: Path
    changes: dict[str, Any]


def whole(spec: Mapping[str, Any], target: WheelPlatform, there: PurePosixPath) -> Wheelhouse:
    """All packages of an environment as wheels: the cluster needs no index.

    Args:
        spec: of the build: digest, requirements, constraints, options.
        target: the cluster's Python.
        there: the folder that will hold the wheels.

    Raises:
        DependencyError: a package has no wheel for the cluster, and can't be built here.
    """
    place = private_folder(home() / "wheelhouses") / f"{spec['digest']}-all"
    with _filled(place) as folder:
        if folder is not None:
            publish(Note(f"collects packages for {target.machine}, Python {target.version}"))
            _Collector(spec, target, folder).collect_all()
    changes = {"requirements": _lines(place, there), "constraints": [], "options": ["--no-index", "--no-deps"]}
    return Wheelhouse(place / _WHEELS, changes)


def local_only(spec: Mapping[str, Any], target: WheelPlatform, there: PurePosixPath) -> Wheelhouse:
    """The local packages of an environment as wheels; the cluster gets the others from its index.

    Raises:
        DependencyError: one can't be built here for the cluster; or an option names a folder at home.
    """
    if found := local_links(spec["options"]):
        raise DependencyError(
            "the packages are looked for in a folder of this machine, which the cluster does not see",
            where=f"--find-links {found[0]}",
            advice='set wheels="upload" on the cluster\'s block, and they are sent',
        )
    place = private_folder(home() / "wheelhouses") / f"{spec['digest']}-local"
    with _filled(place) as folder:
        if folder is not None:
            publish(Note("builds the local packages"))
            _Collector(spec, target, folder).collect_local()
    others = [line for line in spec["requirements"] if not is_local(line)]
    return Wheelhouse(place / _WHEELS, {"requirements": [*others, *_lines(place, there)]})


@contextlib.contextmanager
def copied(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spec of a build with copies of its local packages, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "sent")) as folder:
        lines = list(spec["requirements"])
        for number, text in enumerate(lines):
            if is_local(text):
                line = RequirementLine.parse(text)
                lines[number] = dataclasses.replace(line, url=_copied(line.url, Path(folder, str(number)))).text
        yield {**spec, "requirements": lines}


def _copied(url: str, folder: Path) -> str:
    """The address of a copy of a local package, since a build writes into the package's folder."""
    path = path_of(url) if url.startswith("file:") else None
    if path is None or not path.is_dir():
        return url
    copy = folder / path.name
    try:
        shutil.copytree(path, copy, symlinks=True, ignore=without_meaning)
    except OSError:  # it holds what can't be copied
        return url
    for name in (".git", ".hg"):
        if (path / name).exists():
            (copy / name).symlink_to(path / name)  # a version may be told by it
    return url_of(copy) + "".join(url.partition("#")[1:])


class _Collector:
    """A collector of wheels below a folder, each in a subfolder named by its content."""

    def __init__(self, spec: Mapping[str, Any], target: WheelPlatform, folder: Path) -> None:
        self._spec, self._target, self._folder = spec, target, folder
        self._work, self._wheels = folder / _WORK, folder / _WHEELS
        self._work.mkdir(mode=0o700)
        self._wheels.mkdir(mode=0o700)

    def collect_all(self) -> None:
        for pin in self._resolved(self.collect_local()):
            self._build(pin)
        wheels = self._wheels.glob("*/*.whl")
        self._note([RequirementLine(parse_wheel_filename(wheel.name)[0], url=wheel.as_uri()) for wheel in wheels])

    def collect_local(self) -> list[str]:
        """Build the local packages; gives requirement lines for them."""
        lines = [RequirementLine.parse(line) for line in self._spec["requirements"] if is_local(line)]
        wheels = [self._build(line.url) for line in lines]
        names = [parse_wheel_filename(wheel.name)[0] for wheel in wheels]
        made = [
            dataclasses.replace(line, name=name, url=wheel.as_uri(), hashes=())
            for line, name, wheel in zip(lines, names, wheels, strict=True)
        ]
        self._note(made)
        return [line.text for line in made]

    def _note(self, lines: Sequence[RequirementLine]) -> None:
        """Keep the requirement lines, with addresses as seen from the wheelhouse."""
        start = self._wheels.as_uri()
        texts = [dataclasses.replace(line, url=line.url.replace(start, _HERE)).text for line in lines]
        write_whole(self._folder / _LINES, json.dumps(sorted(texts)).encode())

    def _resolved(self, local: Sequence[str]) -> list[str]:
        """Pin all packages exactly and download them; gives the pins without a wheel."""
        wanted = [line for line in self._spec["requirements"] if not is_local(line)]
        lines, arguments = split_options(self._spec["options"])
        file = self._file("wanted.in", [*lines, *wanted, *local])
        bounds = ["--constraint", self._file("bounds.in", self._spec["constraints"])]
        target = ["--python-version", self._target.python, "--python-platform", self._target.uv_platform]
        plain = ["--quiet", "--no-header", "--no-annotate"]
        said = ask_uv(["pip", "compile", *plain, *target, *bounds, *arguments, file])
        pins = [line.strip() for line in said.splitlines() if line.strip() and line[0] not in "#- "]
        pins = [pin for pin in pins if not is_local(pin)]
        sources = [pin for pin in pins if " @ " in pin and not pin.partition("#")[0].endswith(".whl")]
        downloaded = self._downloaded([pin for pin in pins if pin not in sources])
        return [pin.partition(" @ ")[2] for pin in sources] + downloaded

    def _downloaded(self, pins: list[str]) -> list[str]:
        """Download wheels for the target; gives the pins without a wheel."""
        missing: list[str] = []
        abi = "cp" + self._target.version.replace(".", "")
        tags = [f"--platform={name}" for name in self._target.platforms]
        tags += [f"--abi={name}" for name in (abi, "abi3", "none")]
        while left := [pin for pin in pins if pin not in missing]:
            file = self._file("pins.txt", [*self._options(), *left])
            place = ["--dest", str(self._work / "down"), f"--python-version={self._target.version}", *tags]
            done = _pip("download", "--no-deps", "--only-binary=:all:", *place, "--requirement", file)
            if done.ok:
                break
            named = without_wheel(done.stderr)
            lost = [pin for pin in left if pin.replace(" ", "").partition(";")[0] == named]
            if not lost:
                raise failure("the packages can't be downloaded", done)
            missing += lost
        for wheel in sorted((self._work / "down").glob("*.whl")):
            self._keep(wheel)
        return missing

    def _build(self, source: str) -> Path:
        """Build a wheel here: of a path, an address, or a pin whose source is on an index."""
        path = path_of(source) if source.startswith("file:") else None
        if path is not None and path.suffix == ".whl":
            return self._keep(self._checked(path, str(path)), copy=True)
        place = Path(tempfile.mkdtemp(dir=self._work))
        for one in dict.fromkeys((_copied(source, Path(tempfile.mkdtemp(dir=self._work))), source)):
            file = self._file("build.txt", [*self._options(), one])
            done = _pip("wheel", "--no-deps", "--wheel-dir", str(place), "--requirement", file)
            if done.ok:
                break  # what needs a folder beside its own is built where it lies
        else:
            raise failure(f"{hide_credentials(source)} can't be built here for the cluster", done)
        (made,) = place.glob("*.whl")
        return self._keep(self._checked(made, source))

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
        place = self._wheels / digest / wheel.name
        place.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(wheel, place) if copy else os.replace(wheel, place)
        os.utime(place, (0x60000000, 0x60000000))  # rsync takes one of the same time and size for the same
        return place

    def _options(self) -> list[str]:
        """The options that pip has, too."""
        return [option for option in self._spec["options"] if option.partition(" ")[0] not in UV_OPTIONS]

    def _file(self, name: str, lines: Sequence[str]) -> str:
        write_whole(self._work / name, "".join(f"{line}\n" for line in lines).encode())
        return str(self._work / name)


@contextlib.contextmanager
def _filled(place: Path) -> Iterator[Path | None]:
    """A folder to fill, which is renamed to its place after success; None where that is there already."""
    if (place / _LINES).exists():
        os.utime(place)
        yield None
        return
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield beside
        shutil.rmtree(beside / _WORK, ignore_errors=True)
        with contextlib.suppress(OSError):  # another launch was first
            os.rename(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _lines(folder: Path, there: PurePosixPath) -> list[str]:
    """The requirement lines of a wheelhouse that is there."""
    texts: list[str] = json.loads((folder / _LINES).read_text())
    return [text.replace(_HERE, "file://" + quote(str(there))) for text in texts]


def _pip(*arguments: str) -> Completed:
    """The command of pip, which unlike uv downloads wheels for another platform; uv installs it."""
    command = [find_uv_bin(), "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    return run([*command, "--disable-pip-version-check", "--no-input", "--no-color", *arguments], timeout=SECONDS)


Send = Callable[[Path, PurePosixPath], None]
"""A function that copies the content of a folder at home into a folder there; existing files stay."""

UV_VERSION = importlib.metadata.version("uv")
"""The version of uv for clusters: home's own, so that both read a requirement alike."""
_SECONDS = 600.0


def build(machine: Machine, spec: Mapping[str, Any], *, send: Send, policy: str = "", wheels: str = "index") -> None:
    """Build an environment on a machine, once among parallel launches.

    Args:
        machine: where.
        spec: root, digest, version ("3.11"), requirements, constraints, options, and packed where it is wanted so.
        send: brings folders there.
        policy: which Python (remote/environment/pythons.py).
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
    uv = found["uv"] or _provided(machine, python, send, wheels)
    ready = {**spec, "uv": uv, "python": python["python"], "variables": python["variables"]}
    target = WheelPlatform.of(python["version"], python["platform"], python["libc"])
    ready.update(_sent_wheels(machine, spec, target, wheels, send))
    machine.ask_all([("environments.build", {"spec": ready})], publish_progress)


def publish_progress(event: Mapping[str, Any]) -> None:
    """Publish a builder's event in words, without uv's list of packages, which the table shows."""
    text = _TEXTS.get(event["event"], "").format(**event)
    if text and not (event["event"] == "line" and text.startswith((" ", "Activate with"))):
        publish(Note(text))


_TEXTS = {
    "waiting": "another launch is building it (process {pid} on {host})",
    "building": "builds the environment with uv",
    "line": "{text}",
    "whole": "packages in {path}: {packages}",
}


def _sent_wheels(
    machine: Machine, spec: Mapping[str, Any], target: WheelPlatform, wheels: str, send: Send
) -> dict[str, Any]:
    """Send the wheels that the cluster can't get itself; gives the changes of the spec."""
    there = machine.root_folder / "wheelhouses"
    if wheels == "upload":
        made = whole(spec, target, there)
    elif any(map(is_local, spec["requirements"])) or local_links(spec["options"]):
        made = local_only(spec, target, there)
    else:
        return {}
    publish(Note("sends packages"))
    send(made.folder, there)
    return made.changes


def _provided(machine: Machine, python: Mapping[str, Any], send: Send, wheels: str) -> str:
    """Put uv on the machine: from its package index where it reaches one, else from home."""
    root = str(machine.root_folder)
    if wheels == "index":
        request = ("uv_tool.provide", {"root": root, "version": UV_VERSION})
        with contextlib.suppress(EnvironmentFailed):
            return str(machine.ask_all([request], publish_progress)[0]["uv"])
    publish(Note(f"sends uv {UV_VERSION}"))
    there = machine.root_folder / "tools" / "uv" / f"sent-{UV_VERSION}"
    with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "sent")) as folder:
        _put_uv(Path(folder), WheelPlatform.of(python["version"], python["platform"], python["libc"]))
        send(Path(folder), there)
    return str(machine.ask("uv_tool.provide", root=root, version=UV_VERSION, sent=str(there / "uv"))["uv"])


def _put_uv(folder: Path, target: WheelPlatform) -> None:
    """Home's own uv where it starts there, else one for that platform."""
    this = facts_of_this_machine()
    if WheelPlatform.of(target.python, this["platform"], this["libc"]).platforms == target.platforms:
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
