"""Notebooks, run for real: a kernel, its interrupt, its restart."""

import os
import re
import signal
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from slurm_ray_flow import Handles, RunState
from support import wait_for

pytestmark = pytest.mark.server

DOCUMENT = Path(__file__).parents[2] / "docs" / "notebooks.md"
DOCUMENTED = re.findall(r"^```python notebook\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
STEPS = ["scan_imports", "diff_dependencies", "sync_files", "install_environment", "start_ray", "execute_call"]
CLASSES = """
from slurm_ray_flow import slurm_ray_flow

class Bad(Exception):
    pass

class Point:
    def __init__(self, x):
        self.x = x

@slurm_ray_flow(ray="never")
def moved(point):
    if point.x < 0:
        raise Bad(point.x)
    return Point(point.x + 1)

try:
    moved(Point(-1))
except Bad as error:
    caught = error
isinstance(moved(Point(1)), Point), caught.args
"""
BROKEN = """
def inverse(value):
    return 1 / value  # of no use for 0

slurm_ray_flow(inverse, ray="never")HOW
"""
WAIT = """
import os, time
from pathlib import Path
from slurm_ray_flow import Handles, attach, slurm_ray_flow

HERE = os.getcwd() + "/"

@slurm_ray_flow(ray="never")
def wait(name, number=0):
    go = HERE + name
    Path(f"{go}.{number}").write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.05)
    return 42
"""


@pytest.fixture
def jupyter(server, tmp_path, monkeypatch):
    """Jupyter's own files in a folder of the test's, which is the working directory."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("SRF_PROGRESS", "auto")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(*sources, fails=False):
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=180, kernel_name="python3", allow_errors=fails).execute()
    return notebook.cells


def values_of(cell):
    return [out.data["text/plain"] for out in cell.outputs if out.output_type == "execute_result"]


def pages_of(cell):
    return [out.data["text/plain"] for out in cell.outputs if out.output_type == "display_data"]


def test_the_document_and_functions_classes_and_maps_of_cells(jupyter):
    *documented, classes, mapped = executed(*DOCUMENTED, CLASSES, "total.map(range(4), max_parallel=2).results()")
    for cell in documented:
        promised = re.findall(r"  # (\d+)$", cell.source)
        assert promised in ([], values_of(cell)), cell.source
    first = documented[1]
    [page] = pages_of(first)
    assert [line.split()[1] for line in page.splitlines()[2:-1]] == [*STEPS, "fetch_outcome"]
    assert "done in" in page
    assert [out.text.strip() for out in first.outputs if out.output_type == "stream"] == ["at work"]
    assert values_of(classes) == ["(True, (-1,))"]
    assert values_of(mapped) == ["[0, 100, 201, 305]"]
    [page] = pages_of(mapped)
    assert len(page.splitlines()) == 2, page


def test_an_error_shows_the_cell_and_the_line_and_no_way_between(jupyter):
    cells = [
        BROKEN.replace("HOW", how) for how in ("(0)", ".map([0], max_parallel=1).results()", ".submit(0).result()")
    ]
    for cell in executed("from slurm_ray_flow import slurm_ray_flow", *cells, fails=True)[1:]:
        [error] = [output for output in cell.outputs if output.output_type == "error"]
        shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        there = shown.partition("The traceback on the cluster:")[2]
        assert "return 1 / value  # of no use for 0" in there, shown
        assert len(re.findall(r"^File ", shown, re.MULTILINE)) == 1, shown  # which raises it; IPython hides no last one


class Kernel:
    """A kernel, as a notebook's server drives it."""

    def __init__(self):
        self.manager, self.client = start_new_kernel()

    def run(self, source, wait=True):
        """Run a cell; gives the texts of its outputs, an error as its name."""
        if not wait:
            self.client.execute(source)
            return []
        found = []
        self.client.execute_interactive(source, timeout=180, output_hook=found.append)
        return [text for message in found if (text := _text(message))]

    def error(self):
        """The name of the exception that ends the cell which runs now."""
        return self.client.get_shell_msg(timeout=180)["content"].get("ename")


def _text(message):
    content = message["content"]
    return content.get("ename") or content.get("text") or content.get("data", {}).get("text/plain")


@pytest.fixture
def kernel(jupyter):
    started = Kernel()
    yield started
    started.client.stop_channels()
    started.manager.shutdown_kernel(now=True)


def pid_of(path):
    wait_for(lambda: path.exists() and path.read_text())
    return path.read_text()


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def test_an_interrupt_cancels_and_a_kernel_that_is_gone_does_not(kernel, jupyter):
    kernel.run(WAIT)
    kernel.run("wait('one')", wait=False)
    pid = pid_of(jupyter / "one.0")
    kernel.manager.interrupt_kernel()
    assert kernel.error() == "KeyboardInterrupt"
    assert gone(pid)
    assert kernel.run("attach().status().value") == ["'cancelled'"]

    kernel.run("handles = wait.map(['two'] * 4, range(4), max_parallel=2); handles.results()", wait=False)
    pids = [pid_of(jupyter / "two.0"), pid_of(jupyter / "two.1")]
    kernel.manager.interrupt_kernel()
    assert kernel.error() == "KeyboardInterrupt"
    assert all(map(gone, pids))
    assert {handle.status() for handle in Handles.attach()} == {RunState.CANCELLED}
    assert not (jupyter / "two.2").exists()

    kernel.run("handles = wait.map(['loop'] * 4, range(4), max_parallel=2); time.sleep(600)", wait=False)
    pid = pid_of(jupyter / "loop.1")
    kernel.manager.interrupt_kernel()
    assert kernel.error() == "KeyboardInterrupt"
    assert gone(pid)
    assert kernel.run("handles.done()") == ["True"]

    kernel.run("handle = wait.submit('three')")
    pid = pid_of(jupyter / "three.0")
    kernel.manager.restart_kernel(now=False)
    kernel.client.wait_for_ready(timeout=180)
    assert not gone(pid)
    (jupyter / "three").touch()
    assert kernel.run("from slurm_ray_flow import attach; attach().result(180)") == ["42"]

    kernel.run(WAIT)
    [itself] = kernel.run("import os; os.getpid()")
    kernel.run("wait('four')", wait=False)
    pid = pid_of(jupyter / "four.0")
    os.kill(int(itself), signal.SIGKILL)  # by itself, for Jupyter interrupts a kernel before it kills it
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=180)
    assert not gone(pid)
    (jupyter / "four").touch()
    assert kernel.run("from slurm_ray_flow import attach; attach().result(180)") == ["42"]
