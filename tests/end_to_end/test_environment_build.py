"""The builder of environments, as a cluster runs it: real uv, real processes, packages that need no network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from slurm_ray_flow.blocks.environments import ask_uv
from slurm_ray_flow.core.requirements import RequirementLine, marker_environment, wanted
from slurm_ray_flow.remote.agent.operations import perform
from slurm_ray_flow.remote.environment import builder
from slurm_ray_flow.remote.environment.uv_tool import UvProcess
from slurm_ray_flow.remote.shared.protocol import OperationError
from support import BOUND, SLOW_BACKEND, make_wheel, python_of

PROGRAM = builder.__file__


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + BOUND
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {BOUND} s: {what}"
        time.sleep(0.01)
    return found


class Site:
    """A cluster's root, packages to install there, and the builders that were started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.wheels = folder, folder / "root", folder / "wheels"
        self.environments = self.root / "environments"
        self.started: list[subprocess.Popen[str]] = []
        make_wheel(self.wheels, "tiny")
        (folder / "slow").mkdir()
        (folder / "slow" / "backend.py").write_text(SLOW_BACKEND.format(control=str(folder)))
        (folder / "slow" / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "slow"\nversion = "1.0"\n'
        )

    @property
    def slow(self) -> str:
        return f"slow @ {(self.folder / 'slow').as_uri()}"

    def spec(self, digest: str = "d1", **changes: Any) -> Path:
        fields = {
            "root": str(self.root),
            "digest": digest,
            "uv": find_uv_bin(),
            "python": sys.executable,
            "requirements": ["tiny==1.0"],
            "constraints": [],
            "options": ["--no-index", f"--find-links {self.wheels}"],
        }
        path = self.folder / f"spec-{time.monotonic_ns()}.json"
        path.write_text(json.dumps({**fields, **changes}))
        return path

    def start(self, spec: Path, python: str = sys.executable, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, python, "-I", PROGRAM, "build", str(spec)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "UV_CACHE_DIR": str(self.folder / "cache"), "UV_HTTP_RETRIES": "0"},
        )
        self.started.append(process)
        return process

    def builds(self) -> list[int]:
        path = self.folder / "builds"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def go(self) -> None:
        (self.folder / "go").touch()

    def beside(self) -> list[str]:
        return [path.name for path in self.environments.iterdir() if path.name[0] == "." and path.is_dir()]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.go()
    for process in made.started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def end(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    output, _ = process.communicate(timeout=BOUND)
    return process.returncode, [json.loads(line) for line in output.splitlines()]


def next_event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"ended without {name}")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.13"])
def test_builds_a_whole_environment_that_runs(site: Site, version: str) -> None:
    python = python_of(version)
    code, events = end(site.start(site.spec(python=python, version=version), python))
    assert code == 0, events
    assert [event["event"] for event in events if event["event"] != "line"] == ["building", "whole"]
    whole = json.loads((site.environments / "d1" / "whole.json").read_text())
    assert (whole["digest"], whole["packages"], whole["python"].rsplit(".", 1)[0]) == ("d1", {"tiny": "1.0"}, version)
    inside = site.environments / "d1" / "bin"
    assert (
        subprocess.check_output([inside / "python", "-I", "-c", "import tiny; print(tiny.VALUE)"], text=True) == "1\n"
    )
    first_line = (inside / "tiny-says").read_text().splitlines()[0]
    assert str(site.folder) not in first_line, "a script must follow its environment when it is renamed into place"
    assert site.beside() == []
    assert site.environments.stat().st_mode & 0o777 == (site.environments / "d1").stat().st_mode & 0o777 == 0o700


def test_what_is_whole_is_not_built_again(site: Site) -> None:
    assert end(site.start(site.spec()))[0] == 0
    code, events = end(site.start(site.spec(uv="/nowhere/uv")))
    assert code == 0
    assert [(event["event"], event["built"]) for event in events] == [("whole", False)]


def test_two_builders_at_once_build_once_and_the_second_says_for_whom_it_waits(site: Site) -> None:
    first = site.start(site.spec(requirements=[site.slow]))
    until(site.builds, "the first build begins")
    second = site.start(site.spec(requirements=[site.slow]))
    assert next_event(second, "waiting")["pid"] == first.pid
    site.go()
    assert end(first)[1][-1]["built"] is True
    code, events = end(second)
    assert (code, events[-1]["event"], events[-1]["built"]) == (0, "whole", False)
    assert len(site.builds()) == 1


def test_a_waiter_takes_over_from_a_killed_builder_and_removes_its_remains(site: Site) -> None:
    first = site.start(site.spec(requirements=[site.slow]))
    (backend,) = until(site.builds, "the first build begins")
    second = site.start(site.spec(requirements=[site.slow]))
    next_event(second, "waiting")
    first.kill()
    until(lambda: is_gone(backend), "the killed builder's own child is gone")
    assert not (site.environments / "d1").exists()
    until(lambda: len(site.builds()) == 2, "the waiter builds")
    assert len(site.beside()) == 1, "only the second builder's own folder"
    site.go()
    assert end(second)[0] == 0
    assert site.beside() == []


def test_the_remains_of_another_digest_are_removed_unless_it_is_being_built(site: Site) -> None:
    site.environments.mkdir(parents=True)
    (site.environments / ".dead.abc").mkdir()
    living = site.start(site.spec("alive", requirements=[site.slow]))
    until(site.builds, "the living build begins")
    assert end(site.start(site.spec("d2")))[0] == 0
    assert [name.split(".")[1] for name in site.beside()] == ["alive"]
    site.go()
    assert end(living)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_ended_builder_ends_its_children_and_leaves_nothing(site: Site, number: signal.Signals) -> None:
    process = site.start(site.spec(requirements=[site.slow]))
    (backend,) = until(site.builds, "the build begins")
    process.send_signal(number)
    assert end(process)[0] == 128 + number
    assert is_gone(backend)
    assert not (site.environments / "d1").exists()
    assert site.beside() == []


def test_what_only_looks_like_an_environment_is_replaced(site: Site) -> None:
    half = site.environments / "d1"
    (half / "bin").mkdir(parents=True)
    (half / "whole.json").write_text('{"digest": "d1", "packa')
    assert end(site.start(site.spec()))[1][-1]["built"] is True
    assert json.loads((half / "whole.json").read_text())["packages"] == {"tiny": "1.0"}


def test_uv_own_words_are_in_the_failure(site: Site) -> None:
    code, events = end(site.start(site.spec(requirements=["absent-package==7.0"])))
    assert code == 1
    assert events[-1]["event"] == "failed"
    assert "absent-package" in events[-1]["message"]
    assert not (site.environments / "d1").exists()
    assert site.beside() == []


def test_bounds_and_options_reach_uv(site: Site) -> None:
    _, events = end(site.start(site.spec(requirements=["tiny"], constraints=["tiny>=2"])))
    assert "tiny>=2" in events[-1]["message"]
    more = ["--pre", "--trusted-host localhost", "--index-strategy unsafe-best-match"]
    options = ["--no-index", f"--find-links {site.wheels}", *more]
    assert end(site.start(site.spec(options=options)))[0] == 0


def test_another_python_is_refused_before_anything_is_installed(site: Site) -> None:
    code, events = end(site.start(site.spec(version="3.8", requirements=[site.slow])))
    assert code == 1
    assert "3.8" in events[-1]["message"]
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in events[-1]["message"]
    assert site.builds() == []


def test_a_python_that_is_not_there_is_a_failure(site: Site) -> None:
    code, events = end(site.start(site.spec(python="/nowhere/bin/python")))
    assert code == 1
    assert "/nowhere/bin/python" in events[-1]["message"]


def test_secrets_are_in_a_private_file_and_nowhere_else(site: Site) -> None:
    options = ["--index-url http://me:hunter2@127.0.0.1:9/simple", f"--find-links {site.wheels}"]
    process = site.start(site.spec(requirements=[site.slow], options=options))
    until(site.builds, "the build begins")
    (written,) = site.environments.glob(".d1.*/requirements.txt")
    assert "hunter2" in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"hunter2" in _bytes(path)]
    site.go()
    end(process)
    code, events = end(site.start(site.spec("d2", requirements=["absent-package"], options=options)))
    assert code == 1
    assert "absent-package" in events[-1]["message"]
    assert "hunter2" not in json.dumps(events)
    left = [path for path in site.root.rglob("*") if path.is_file() and b"hunter2" in _bytes(path)]
    assert left == []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def small_disk(site: Site) -> tuple[str, ...]:
    make_wheel(site.wheels, "large", b"#" + os.urandom(4 << 20).hex().encode())
    site.root.mkdir()
    mounted = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=2m none "{site.root}" && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    return mounted


def test_a_full_disk_is_a_failure_that_says_so(site: Site) -> None:
    mounted = small_disk(site)
    code, events = end(site.start(site.spec(requirements=["large"], sizes={"large": [1000, 1]}), before=mounted))
    assert code == 1
    assert events[-1]["event"] == "failed"
    assert "space" in events[-1]["message"]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.13"])
def test_a_lock_is_read_as_uv_reads_it(version: str) -> None:
    project = Path(__file__).parents[2]
    options = ["--no-default-groups", "--no-hashes", "--no-emit-project", "--no-annotate", "--no-header"]
    command = [find_uv_bin(), "export", "--frozen", "--offline", *options]
    exported = subprocess.check_output(command, cwd=project, text=True)
    marks = marker_environment(version)
    expected = {
        line.text.partition(" ;")[0]
        for line in map(RequirementLine.parse, exported.splitlines())
        if line.applies(marks)
    }
    assert set(wanted("auto", project, [], python=version, uv=ask_uv).requirements) == expected - {""}


def test_as_a_function_it_gives_what_the_environment_holds(site: Site) -> None:
    told: list[dict[str, Any]] = []
    spec = json.loads(site.spec().read_text())
    assert builder.build(spec, told.append)["packages"] == {"tiny": "1.0"}
    assert told[-1]["event"] == "whole"
    with pytest.raises(builder.BuildError, match="absent-package"):
        builder.build({**spec, "digest": "d2", "requirements": ["absent-package"]}, told.append)


def test_the_packages_are_on_the_disk_before_the_record_that_vouches_for_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[set[str]] = []
    monkeypatch.setattr(
        builder, "sync_all", lambda folder: synced.append({path.name for path in Path(folder).rglob("*")})
    )
    builder.build(json.loads(site.spec().read_text()), lambda _: None)
    assert ["tiny" in {name.partition(".")[0] for name in names} for names in synced] == [True]
    assert "whole.json" not in synced[0]


def test_uvs_cache_lies_where_it_can_be_linked_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across file systems each environment would be a copy."""
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho $UV_CACHE_DIR\n")
    program.chmod(0o700)
    near, far = tmp_path / "own", Path("/dev/shm")
    if far.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")

    def said(own: Path) -> list[str]:
        monkeypatch.setenv("UV_CACHE_DIR", str(own))
        return UvProcess(str(program), tmp_path, None, lambda _: None, cache=tmp_path / "cache").run()

    assert said(near) == [str(near)]
    assert said(far / "own") == [str(tmp_path / "cache")]


def test_the_operation_tells_what_happens_and_ends_with_whoever_asked(site: Site) -> None:
    told: list[dict[str, Any]] = []
    spec = json.loads(site.spec().read_text())
    assert perform("environments.build", {"spec": spec}, told.append)["built"] is True
    assert perform("environments.build", {"spec": spec}, told.append)["built"] is False
    assert [event["event"] for event in told if event["event"] != "line"] == ["building", "whole", "whole"]
    with pytest.raises(OperationError, match="absent-package") as caught:
        perform("environments.build", {"spec": {**spec, "digest": "d2", "requirements": ["absent-package"]}})
    assert caught.value.cause == "environment"

    code = "import json, sys\nfrom slurm_ray_flow.remote.agent.operations import perform\n"
    code += "perform('environments.build', {'spec': json.loads(sys.argv[1])})"
    slow = json.dumps({**spec, "digest": "d3", "requirements": [site.slow]})
    asker = subprocess.Popen([sys.executable, "-c", code, slow])
    try:
        (backend,) = until(site.builds, "the build begins")
    finally:
        asker.kill()
        asker.wait()
    until(lambda: is_gone(backend), "the build is gone with the one who asked")
    until(lambda: not site.beside(), "it left nothing")
