"""What strangers write: whatever it is, our readers end, with a value or with an error of ours, in bounded memory.

`SRF_FUZZ=20 .venv/bin/pytest tests/unit/test_strangers.py` tries twenty times as many.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from recorded_projects import recorded as recorded_projects
from slurm_ray_flow.blocks import concurrency_limit, map_record, store
from slurm_ray_flow.blocks.server.address import state_in
from slurm_ray_flow.blocks.ssh import answers, known_hosts
from slurm_ray_flow.cli.runs import RunRow, _cells
from slurm_ray_flow.core import lock
from slurm_ray_flow.core.cluster_report import Health
from slurm_ray_flow.core.environment import HeldEnvironment
from slurm_ray_flow.core.errors import ConnectionFailed, DependencyError, SlurmRayFlowError
from slurm_ray_flow.core.items import parse_results
from slurm_ray_flow.core.requirements import Requirements, wanted
from slurm_ray_flow.core.requirements.locks import read_toml
from slurm_ray_flow.core.run import GONE, CallEnd, RunRecord, error_of, find_event, parse_events
from slurm_ray_flow.core.run_state import RunFacts, run_state
from slurm_ray_flow.core.slurm import (
    accounting,
    queue,
    request,
    site,
    waiting,
)
from slurm_ray_flow.core.slurm import (
    queue as slurm_queue,
)
from slurm_ray_flow.core.warm import Cost, Warm
from slurm_ray_flow.deployments import profiles
from slurm_ray_flow.remote.environment import builder
from slurm_ray_flow.remote.lock import queue as lock_queue
from slurm_ray_flow.remote.scheduler.commands import job_id_in
from slurm_ray_flow.remote.shared import framing, leftovers
from slurm_ray_flow.remote.shared.items import pack_bundle, unpack_bundle
from slurm_ray_flow.remote.shared.protocol import OperationError
from slurm_recorded import RECORDED

NOW = 1795290058.0
TIMES = float(os.environ.get("SRF_FUZZ", "0.25"))
LONGEST = 10
"""Seconds after which a reader counts as hanging."""
OURS: tuple[type[BaseException], ...] = (SlurmRayFlowError, OperationError)
DEEP, LONG = b"[" * 1200, b"9" * 5000


# ---- who reads it


@dataclass(frozen=True)
class Reader:
    """One of our readers.

    Attributes:
        read: has it read these bytes, and does with the answer what we do with it.
        valid: what it is made for.
        raises: what else than our errors it may raise, as its docstring says.
        broke: what it was once broken by.
    """

    read: Callable[[bytes], object]
    valid: Sequence[bytes]
    raises: tuple[type[BaseException], ...] = ()
    broke: Sequence[bytes] = ()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _events(data: bytes) -> None:
    events, taken = parse_events(data)
    assert taken <= len(data)
    run_state(RunFacts(RECORD, events, GONE))
    for event in events:
        lock.queued_text("desi", event, NOW)
        Cost.from_released(event)
        Warm("a", event, event, ()).to_json()
    if ended := find_event(events, "call_ended"):
        found = CallEnd.from_event(ended)
        error_of(found.cause or "", found.message, "")


def _queue(data: bytes) -> None:
    jobs = queue.parse_queue(_text(data))
    for job in jobs.values():
        waiting.waiting_text(job, waiting.ahead_of(job, jobs.values()), NOW)
        accounting.cause_of_end(job, job.name, began=False)


def _accounting(data: bytes) -> None:
    for record in accounting.parse_accounting(_text(data)).values():
        accounting.cause_of_end(record, "", began=True)


def _site(data: bytes) -> None:
    found = site.parse_site(_text(data), _text(data), _text(data), _text(data))
    site.partition_table(found)


def _frames(data: bytes) -> None:
    stream = io.BytesIO(data)
    said, rest = answers.checked_message(stream.read)
    with contextlib.suppress(framing.NotAMessage):
        answers.greeting(said.get("hello"))
    assert isinstance(answers.results(said, rest, ["files.read"], "desi", "python3")[0], bytes)


def _listed(data: bytes) -> None:
    """What an agent answers of queues and of warm clusters, whose JSON is as the other side wants it."""
    said = _json(data)
    lock.queue_rows(lock.LockQueue.from_json(said), NOW)
    Warm.from_listed(said).to_json()


def _json(data: bytes) -> Any:
    """What a message may hold."""
    return framing.unpacked(io.BytesIO(f"{len(data):08x}{0:016x}".encode() + data).read)[0]


def _known_hosts(data: bytes) -> None:
    lines = known_hosts.parsed(_text(data), Path("known_hosts"))
    known_hosts.verdict_of(lines, "[desi]:2222", b"key")
    known_hosts.algorithms(lines, "desi")


def _requirements(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        project = _home() / "project"
        project.mkdir(exist_ok=True)
        (project / name).write_bytes(data)
        wanted(name, project, (), python="3.11", uv=_no_uv)

    return read


def _no_uv(arguments: Sequence[str], folder: Path) -> str:
    raise DependencyError("uv is not asked here")


def _records(data: bytes) -> None:
    store.record_path("a").parent.mkdir(exist_ok=True)
    store.record_path("a").write_bytes(data)
    store.known_record("a")
    for one in store.records():
        _cells(RunRow(one, one.ended or "lost", None))
        assert one.tries
        assert one.paths.events
        assert one.is_new(NOW) in (True, False)
    store.find_record("a").to_json()


def _at_home(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def reading(data: bytes) -> None:
        path = _home() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        read(path)

    return reading


def _home() -> Path:
    return Path(os.environ["SRF_HOME"])


def _lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _projects(name: str) -> list[bytes]:
    cases = [read_toml(path)["files"] for path in recorded_projects()]
    return [files[name].encode() for files in cases if name in files]


def _framed(message: object) -> bytes:
    return b"".join(framing.packed(message, [b"data"]))  # type: ignore[arg-type]


HOLDER = {"user": "ann", "since": NOW, "name": "train", "run": "f00", "server": "s", "foreign": False, "slots": 1}
EVENTS = _lines(
    {"event": "allocated", "time": NOW, "host": "n1", "pid": 1, "started": 2, "boot_id": "b"},
    {"event": "waiting", "time": NOW, "holder": HOLDER, "ahead": 2},
    {"event": "lock_held", "time": NOW},
    {"event": "call_started", "time": NOW, "pid": 3},
    {"event": "idle", "time": NOW, "idled": 3.5, "cpus": 8, "gpus": 1, "keep_warm": 60.0, "ends": NOW},
    {
        "event": "call_ended",
        "time": NOW,
        "outcome": None,
        "cause": "lost",
        "message": "gone",
        "sha256": None,
        "size": 3,
    },
)
RECORD = RunRecord("a", "a", "local", "local-machine", "/r", "a.2", "a.2", "f", 1, 2, "b", usage={"cpus": 1})
STATE = {
    "port": 4200,
    "version": "1",
    "pid": 1,
    "started": 2,
    "supervisor_pid": 3,
    "supervisor_started": 4,
    "boot_id": "b host",
    "url": "u",
}
MAP = {
    "map_id": "m",
    "function": "f",
    "cluster": "c",
    "values": ["1", "2"],
    "pid": 1,
    "started": 2,
    "boot_id": "b",
    "created": NOW,
}
CALLS = ({"index": 0, "run": "a"}, {"index": 1, "failure": "no", "cancelled": True})
SLOT = {"run_id": "a", "lease": "l", "limit": "srf-desi", "url": "http://127.0.0.1", "left": False}
WHOLE = {"digest": "d", "packages": {"numpy": "2.0"}}
WANTED = Requirements(("numpy==2",), (), ("--pre",), "given", "3.11", (("/a", "b"),))
RESULT = {"item": 1, "bundle": 2, "kind": "value", "seconds": 0.5, "offset": 3, "length": 4, "crc32": 5}
OWNER = {"boot_id": "b", "namespace": "n", "started": 1, "pid": 1}
HELLO = {"root": "/r", "home": "/h", "user": "u", "host": "n", "python": "p", "version": "3", "pid": 1}
ERROR = {"what": "no", "where": "there", "advice": "", "cause": "lock"}
KEY = b"AAAAC3NzaC1lZDI1NTE5AAAAIJqIaLZ4SnO7c4P2zc6A2HRW9DN6HWAiWJvLpGfUR1dL"
KNOWN_HOSTS = b"desi,[desi]:2222 ssh-ed25519 %s ann\n@revoked *.ch ssh-rsa %s\n# no\n|1|aGVsbG8=|d29ybGQ= ssh-rsa %s\n"
CONDA = b"dependencies:\n  - python=3.11\n  - numpy\n  - pip:\n    - requests>=2\n"
PROFILE = b'host: curnagl\npartition: "cpu"\nmodules: ["gcc"]\n'


BROKEN_EVENTS = (
    DEEP + b"\n",
    _lines({"event": "call_ended", "outcome": [], "cause": {}}),
    _lines({"event": "call_ended"}),
    _lines({"event": "idle", "time": None, "idled": None}),
    _lines({"event": "waiting", "holder": {"since": 1e300}}),
    _lines({"event": "waiting", "holder": {"since": 10**400}}),
)
BROKEN_HOSTS = (
    b"[" * 100_000,
    b"c[1-99999999999][2-1][2-1]",
    b"c[\xc2\xb2-3]",
    b"c[1-" + LONG + b"]",
    b"c" + b"[1]" * 2000,
    b"c" * 1_000_000 + b"[1-99999]",
    b"c[1-99999][" + b"0" * 10_000 + b"1-2]",
)
BROKEN_QUEUE = b"".join(
    b"%s\x1fPENDING\x1f\x1f\x1f1\x1f\x1f7\x1f\x1f\x1f\x1f\x1f\x1ff\n" % number for number in (LONG, LONG + b"1")
)
BROKEN_JOBS = tuple(
    b"7\x1ftrain\x1fFAILED\x1f0:0\x1f1\x1f2\x1f3\x1f%s\x1f%s\x1f%s\x1f8\x1f%s\x1f%s\x1f%s\x1fn\x1fp\x1f4\n"
    .replace(b"%s", number)
    for number in (LONG, b"9" * 400, b"9" * 400 + b"G", b"1:" + LONG)
)  # fmt: skip


def _answers(pattern: str) -> list[bytes]:
    return [path.read_bytes()[:4000] for path in sorted(RECORDED.rglob(pattern))]


READERS = {
    "events": Reader(_events, [EVENTS], broke=BROKEN_EVENTS),
    "queue": Reader(_queue, _answers("*queue*.txt"), broke=(BROKEN_QUEUE,)),
    "accounting": Reader(_accounting, _answers("*sacct*.txt") + _answers("*account*.txt"), broke=BROKEN_JOBS),
    "site": Reader(_site, _answers("*nodes*.txt") + _answers("*partition*.txt")),
    "host list": Reader(
        lambda data: slurm_queue.expanded(_text(data)), [b"c[1-3,07],login", b"r[1-2]n[08-9].site"], broke=BROKEN_HOSTS
    ),
    "sbatch's id": Reader(
        lambda data: job_id_in(_text(data), vars(request.RULES)), [b"banner\nSubmitted batch job 31 on cluster c\n"]
    ),
    "sbatch's refusal": Reader(lambda data: str(request.rejected(_text(data))), [b"sbatch: error: Invalid qos\n"]),
    "profile": Reader(lambda data: profiles.parse_profile(_text(data)), [PROFILE]),
    "frames": Reader(
        _frames,
        [_framed({"id": 1, "results": [{"size": 4}]}), _framed({"hello": HELLO}), _framed({"id": 1, "error": ERROR})],
        (framing.StreamEnded,),
    ),
    "answers": Reader(
        _listed,
        [
            json.dumps({"allocation": "a.2", "allocated": None, "idle": {"time": NOW}, "calls": ["b"]}).encode(),
            json.dumps({"holders": [HOLDER], "waiting": [HOLDER]}).encode(),
        ],
        (framing.StreamEnded,),
    ),
    "known_hosts": Reader(_known_hosts, [KNOWN_HOSTS.replace(b"%s", KEY)]),
    "requirements.txt": Reader(_requirements("requirements.txt"), _projects("requirements.txt")),
    "pyproject.toml": Reader(_requirements("pyproject.toml"), _projects("pyproject.toml")),
    "pylock.toml": Reader(_requirements("pylock.toml"), _projects("pylock.toml")),
    "poetry.lock": Reader(_requirements("poetry.lock"), _projects("poetry.lock")),
    "pdm.lock": Reader(_requirements("pdm.lock"), _projects("pdm.lock")),
    "environment.yml": Reader(_requirements("environment.yml"), [CONDA, *_projects("environment.yml")]),
    "record of a run": Reader(_records, [RECORD.to_json().encode()]),
    "server.json": Reader(_at_home("server.json", state_in), [json.dumps(STATE).encode()]),
    "record of a map": Reader(
        _at_home("cache/maps/m.jsonl", lambda _: map_record.find_map("m").alive), [_lines(MAP, *CALLS)]
    ),
    "slot": Reader(_at_home("slots/a.json", lambda _: list(concurrency_limit.noted())), [json.dumps(SLOT).encode()]),
    "whole.json at home": Reader(HeldEnvironment.from_json, [json.dumps(WHOLE).encode()], (ValueError,)),
    "whole.json": Reader(
        _at_home("environments/d/whole.json", lambda path: builder.read_whole(path.parent)),
        [json.dumps(WHOLE).encode()],
    ),
    "wanted packages": Reader(
        lambda data: Requirements.from_json(_text(data)), [WANTED.to_json().encode()], (ValueError,)
    ),
    "ticket": Reader(lock_queue._parse, [json.dumps({"run": "a", "name": "f", "server": "s"}).encode()]),
    "bundle of items": Reader(unpack_bundle, [pack_bundle([(1, b"one"), (2, b"two")])], (ValueError,)),
    "results of items": Reader(parse_results, [_lines(RESULT, {**RESULT, "kind": "error"})]),
    "owner of a folder": Reader(leftovers._is_dead, [json.dumps(OWNER).encode()]),
    "health": Reader(
        lambda data: Health.from_json(_json(data)),
        [json.dumps(Health("no", NOW).to_json()).encode()],
        (framing.StreamEnded,),
    ),
}


# ---- what is written


def _damaged(valid: Sequence[bytes]) -> SearchStrategy[bytes]:
    """A valid text with bytes that were flipped, cut out or put in, once or a few times."""
    put_in = st.binary(max_size=8) | st.sampled_from(
        [b"\0" * 40, b"\n", b"\xff", b'"', b"[", b"{}", b"null", LONG, DEEP]
    )
    change = st.tuples(st.floats(0, 1), st.integers(0, 40), put_in)
    return st.builds(_changed, st.sampled_from(valid), st.lists(change, min_size=1, max_size=3))


def _changed(data: bytes, changes: Sequence[tuple[float, int, bytes]]) -> bytes:
    for place, gone, new in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + gone :]
    return data


NUMBERS = st.sampled_from([0, -1, 10**20, 10**400, 1e300, 0.5, float("nan"), float("inf")])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.just([]) | st.just({}) | st.just([[]])


def _reshaped(valid: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Valid JSON in which one value, however deep, is another one; other texts as they are."""
    return st.builds(_replaced, st.sampled_from(valid), st.floats(0, 1), PLAIN)


def _replaced(data: bytes, place: float, new: Any) -> bytes:
    if data[:24].isalnum() and len(data) > 24:  # a message
        size = int(data[:8], 16)
        said = _replaced(data[24 : 24 + size], place, new)
        return f"{len(said):08x}".encode() + data[8:24] + said + data[24 + size :]
    lines = data.splitlines()
    try:
        values = [json.loads(line) for line in lines]
    except ValueError:  # TOML, YAML, or lines of their own
        at = [match.end() for match in re.finditer(rb"[=:\x1f] ?", data)] or [0]
        begin = at[int(place * (len(at) - 1))]
        end = re.compile(rb"$|\x1f", re.MULTILINE).search(data, begin)
        return data[:begin] + json.dumps(new).encode() + data[end.start() if end else begin :]
    places = list(_places(values))
    holder, key = places[int(place * (len(places) - 1))]
    holder[key] = new
    return b"\n".join(json.dumps(value).encode() for value in values) + b"\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield value, key
        yield from _places(part)


def _written(valid: Sequence[bytes]) -> SearchStrategy[bytes]:
    return st.one_of(_reshaped(valid), _damaged(valid), st.binary(max_size=200))


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read(reader: Reader, data: bytes) -> None:
    with _bounded(), contextlib.suppress(*OURS, *reader.raises):
        reader.read(data)


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRF_HOME", str(tmp_path))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_what_it_is_made_for(name: str) -> None:
    assert READERS[name].valid
    for data in READERS[name].valid:
        _read(READERS[name], data)


@pytest.mark.parametrize("name", READERS)
def test_whatever_strangers_write_is_read_or_told(name: str) -> None:
    reader = READERS[name]

    @settings(
        max_examples=int(40 * TIMES),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_written(reader.valid))
    @example(b"")
    @example(b"null")
    @example(b"[]")
    @example(DEEP)
    @example(LONG)
    def read(data: bytes) -> None:
        _read(reader, data)

    for data in reader.broke:
        read = example(data)(read)
    read()


@pytest.mark.parametrize("claimed", ["ffffffff" + "0" * 16, "00000002" + "f" * 16, "01ffffff" + "0" * 8 + "7fffffff"])
def test_a_length_that_is_only_claimed_takes_no_memory(claimed: str) -> None:
    """An agent says that much is to come, sends little, and goes."""
    stream = io.BytesIO(claimed.encode() + b"{}" + b"x" * 1000)
    with _memory_below(8 << 20), pytest.raises(framing.StreamEnded):
        answers.checked_message(stream.read)


@pytest.mark.parametrize("text", BROKEN_HOSTS[-2:], ids=["of a long name", "of long numbers"])
def test_a_hostile_host_list_takes_little_memory(text: bytes) -> None:
    with _memory_below(64 << 20), _bounded():
        slurm_queue.expanded(_text(text))


@contextlib.contextmanager
def _memory_below(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("files.read", "text"),
        ("files.names", None),
        ("scheduler.query", {"text": 3, "error": ""}),
        ("commands.run", {"stdout": ""}),
        ("workplace.written", []),
    ],
)
def test_an_answer_of_another_shape_is_not_taken_for_one_of_ours(operation: str, said: object) -> None:
    with pytest.raises(ConnectionFailed):
        answers.results({"results": [{"value": said}]}, b"", [operation], "desi", "python3")
