"""The driver: the process that runs one call. It boots ahead of time and waits on its stdin for orders, a line each.

`{"prepare": run folder, "folder": where to, "ray": address, "allocation": run folder}` readies it for a next call: it
joins Ray, and copies that run's project into the folder;
`{"run": run folder, ...}` runs the call and ends the process. What became of it goes to a pipe of its own, as one
JSON line. Runs with the environment's Python: `driver.py PARENT_PID WITH_RAY REPORT_DESCRIPTOR`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # the folder of this file would hide modules; the package's folder is what is meant
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

import contextlib
import faulthandler
import importlib
import json
import signal
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote.driver import checkpoints, execution, ray_session
from slurm_ray_flow.remote.shared import end_warning, limits, processes, rebuilding, script_end, working_directory
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import TRY, OperationError

Report = Dict[str, Any]


class Driver:
    """One driver process, from its boot to its report.

    Args:
        report: the descriptor that the report is written to.
        with_ray: whether calls run inside a Ray cluster.
    """

    def __init__(self, report: int, with_ray: bool) -> None:
        self._report, self._with_ray = report, with_ray
        self._session: Any = None
        self._spare: Dict[Any, str] = {}
        self._tools, self._environment, self._path = sys.path[0], dict(os.environ), list(sys.path)

    def boot(self) -> None:
        """Import what every call needs."""
        importlib.import_module("slurm_ray_flow.remote.shared.pickler")

        if self._with_ray:
            from slurm_ray_flow.remote.driver.ray_session import RaySession

            self._session = RaySession(self._tools)

    def serve(self) -> Optional[Report]:
        """Follow the orders up to the first call; returns its report, or None if stdin ended first."""
        while True:
            line = sys.stdin.readline()
            if not line:
                return None
            order = json.loads(line)
            if "run" in order:
                return self._run(_run_of(order["run"]), order)
            self._prepare(_run_of(order["prepare"]), order)

    def finish(self, report: Report) -> None:
        """Report what is on the disk already, then end as a script ends, and have the workers' prints arrive."""
        self.send(report)
        script_end.end_as_a_script(lambda what: self.send({"waits_for": what}))
        if self._session:
            with contextlib.suppress(Exception):
                self._session.flush()

    def send(self, report: Report) -> None:
        """Write a line for the head: the report, later what is waited for."""
        os.write(self._report, json.dumps(report).encode() + b"\n")

    def _prepare(self, run: RunFiles, order: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError, OperationError):  # the call itself will say what is wrong
            if self._session:
                self._join(order)
                self._session.warm_up()
            spec = run.read_spec()
            working_directory.fill_spare(run, spec, order["folder"])
            self._spare = {spec.get("snapshot"): order["folder"]}

    def _join(self, order: Dict[str, Any]) -> None:
        """Join the Ray cluster, from a folder that workers may have on their path: Ray puts it there."""
        self._environment["RAY_ADDRESS"] = order["ray"]
        os.chdir(self._tools)
        self._session.join(order["ray"])

    def _run(self, run: RunFiles, order: Dict[str, Any]) -> Report:
        _redirect(run.log)
        os.environ["SRF_RUN_ID"] = self._environment["SRF_RUN_ID"] = run.id
        try:
            self._enter(run, run.read_spec(), order)
        except OperationError as error:
            message = "{} ({})".format(error.what, error.where) + TRY + error.advice
            return {"outcome": None, "cause": error.cause or "environment", "message": message}
        except Exception as error:
            return {"outcome": None, "cause": "environment", "message": "The call can't be set up: {}".format(error)}
        self._know(run)
        if self._session:
            ray_session.watch()
        limits.restore_umask()
        return execution.execute(run)

    def _know(self, run: RunFiles) -> None:
        """Prepare answers to the function: the folder of its checkpoints, and the warning of its end."""
        os.environ["SRF_RUN_ID"] = run.id
        os.environ[checkpoints.FOLDER] = folder = checkpoints.folder_of(run.folder)
        end_warning.listen(run.warning)
        if self._session:
            self._session.note(checkpoints.FOLDER, folder)

    def _enter(self, run: RunFiles, spec: Dict[str, Any], order: Dict[str, Any]) -> None:
        """Join the allocation's Ray cluster, and take on the files, the variables and the program of a run."""
        if self._session:
            self._join(order)
        working_directory.move(self._spare.get(spec.get("snapshot"), run.folder), run.folder)
        working_directory.make(spec, run.folder)
        setting = _setting(spec, run.folder)
        os.environ.clear()
        os.environ.update({**self._environment, **setting["environment_variables"]})
        sys.path[:] = [self._tools, *setting["path"], *self._path[1:]]
        os.chdir(setting["working_directory"])
        _take_on_the_program(spec, run.folder)
        if self._session:
            known = _run_of(order["allocation"]).read_spec().get("environment_variables") or {}
            self._session.enter(setting, known)
        working_directory.fill(run, spec, run.folder)
        importlib.invalidate_caches()


def _run_of(folder: str) -> RunFiles:
    return RunFiles(os.path.dirname(os.path.dirname(folder)), os.path.basename(folder))


def _setting(spec: Dict[str, Any], folder: str) -> Dict[str, Any]:
    there = working_directory.with_absolute_paths(spec, folder)
    return {
        "path": there["path"],
        "working_directory": there["working_directory"],
        "environment_variables": dict(spec.get("environment_variables") or {}),
    }


def _take_on_the_program(spec: Dict[str, Any], folder: str) -> None:
    """Take on the command line, the recursion limit and the folders of home's program."""
    rebuilding.map_folders([(home, os.path.join(folder, place)) for home, place in spec.get("folders") or ()])
    sys.setrecursionlimit(spec.get("recursion_limit") or sys.getrecursionlimit())
    program, *arguments = spec.get("argv") or ["slurm-ray-flow"]
    sys.argv[:] = [rebuilding.local_path_of(program), *arguments]


def _redirect(log: str) -> None:
    """Redirect stdout and stderr of this process and its children to the run's log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.close(descriptor)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()


def main(arguments: List[str]) -> None:
    """Boot, serve one call, report, and end as a script does."""
    processes.die_with_parent(int(arguments[0]))
    driver = Driver(int(arguments[2]), arguments[1] == "1")
    os.set_inheritable(int(arguments[2]), False)
    end_warning.listen()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    limits.be_first_to_go()
    rebuilding.become_driver()
    try:
        driver.boot()
    except Exception as error:
        driver.send({"outcome": None, "cause": "environment", "message": "The driver can't start: {}".format(error)})
        os._exit(1)
    report = driver.serve()
    if report is not None:
        driver.finish(report)
    script_end.flush_buffers()
    os._exit(0)


if __name__ == "__main__":
    # Under its own name, so that nothing of it lives in `__main__`, which is the user's.
    importlib.import_module("slurm_ray_flow.remote.driver.driver").main(sys.argv[1:])
