"""A test that hangs fails within its bound, with what every process did.

The bound is pytest-timeout's (300 s in pyproject.toml, or a mark of the test's own), several times what a test takes. A
machine that shares its processors with others may be slow without any sign of it, such as a high load.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LONG = 900
LONGER = (
    "hosts/test_slurm_",  # Slurm looks at nodes and time limits every half minute
    "hosts/test_shared_home.py",  # several machines, each of which starts a server
    "hosts/test_docs.py",  # environments are made, from the index
    "hosts/test_environments.py",
    "hosts/test_mirror.py",
    "hosts/test_cli_docs.py",  # all commands of a document
    "contract/test_cluster.py",
    "end_to_end/test_docs.py",
    "end_to_end/test_environment_build.py",
    "end_to_end/test_isolated.py",
    "end_to_end/test_lab_server.py",  # a PostgreSQL, a worker and its runs
    "end_to_end/test_many_at_once.py",
    "end_to_end/test_power_cut.py",
    "end_to_end/test_scan_for_real.py",
    "end_to_end/test_server.py",  # servers are started
    "end_to_end/test_turn.py",
    "end_to_end/test_dead_server.py",
    "end_to_end/test_upgrade.py",  # five clusters, and watches that look every half minute
    "typed/",
)
"""The files, by what their names begin with, whose tests wait longer for what they use, and have the bound LONG."""
STACKS = "stacks"
"""The folder in the server's home with a file for each prepared program, which writes its stacks there when asked."""
ASK = signal.SIGUSR2
LONGEST = 220


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of some files more time."""
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        if name.startswith(LONGER) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG))


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Fail the test when its time is over."""
    began = time.monotonic()

    def over(_number: int, _frame: object) -> None:
        __tracebackhide__ = True
        pytest.fail(f"it hangs: not done after {time.monotonic() - began:.0f} s\n{what_is_done()}")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """The test is done."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def what_is_done() -> str:
    """The stacks of this process, and what its descendants and all others of this home do."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        own = file.read()
    return "\n".join([own, "Processes:", *_processes()])


def _processes() -> Iterator[str]:
    mark = os.environ["SRF_HOME"].encode()
    parents = {pid: _parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
    ours = {os.getpid()}
    for _ in parents:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            break
        ours |= more
    for pid in sorted(parents):
        with contextlib.suppress(OSError):
            if pid in ours or mark in Path(f"/proc/{pid}/environ").read_bytes():
                yield from _shown(pid, parents[pid])


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _shown(pid: int, parent: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    busy = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    waits = ""
    with contextlib.suppress(OSError):
        waits = (folder / "wchan").read_text()
    yield f"{pid} of {parent}, {fields[0]} {waits}, {busy:.1f} s of processor: {' '.join(words.split())[:LONGEST]}"
    stacks = Path(os.environ.get("TEST_SERVER_HOME", ""), STACKS, str(pid))
    if stacks.exists():
        os.kill(pid, ASK)
        time.sleep(0.2)
        yield stacks.read_text()
