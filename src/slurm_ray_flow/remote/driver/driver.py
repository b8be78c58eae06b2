"""The driver: the process that runs one call. It boots in advance and reads orders from stdin, a line of JSON each.

`{"prepare": run folder, "folder": target, "ray": address, "allocation": run folder}` prepares it for a next call: it
joins Ray, and copies that run's project into the target.
`{"run": run folder, ...}` runs the call and ends the process. The driver writes its report to a pipe, as one line of
JSON. It runs with the environment's Python: `driver.py PARENT_PID WITH_RAY REPORT_DESCRIPTOR`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # this file's folder would hide modules, so the package's folder takes its place
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
        report: the descriptor for the report.
        with_ray: whether calls run inside a Ray cluster.
    """

    def __init__(self, report: int, with_ray: bool) -> None:
        self._report, self._with_ray = report, with_ray
        self._session: Any = None
        self._spare_folders: Dict[Any, str] = {}
        self._tools_folder, self._initial_variables, self._initial_path = sys.path[0], dict(os.environ), list(sys.path)

    def boot(self) -> None:
        """Import what every call needs."""
        importlib.import_module("slurm_ray_flow.remote.shared.pickler")

        if self._with_ray:
            from slurm_ray_flow.remote.driver.ray_session import RaySession

            self._session = RaySession(self._tools_folder)

    def serve(self) -> Optional[Report]:
        """Follow orders until the first call has ended; returns its report, or None if stdin ended before."""
        while True:
            line = sys.stdin.readline()
            if not line:
                return None
            order = json.loads(line)
            if "run" in order:
                return self._run(_run_files(order["run"]), order)
            self._prepare(_run_files(order["prepare"]), order)

    def finish(self, report: Report) -> None:
        """Send the report, end as a script ends, and wait for the output of Ray's workers."""
        self.send(report)
        script_end.end_as_a_script(lambda awaited: self.send({"waits_for": awaited}))
        if self._session:
            with contextlib.suppress(Exception):
                self._session.flush()

    def send(self, report: Report) -> None:
        """Write a line for the head: the report, or later what the driver waits for."""
        os.write(self._report, json.dumps(report).encode() + b"\n")

    def _prepare(self, run: RunFiles, order: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError, OperationError):  # the call itself will report the error
            if self._session:
                self._join(order)
                self._session.warm_up()
            spec = run.read_spec()
            working_directory.fill_spare(run, spec, order["folder"])
            self._spare_folders = {spec.get("snapshot"): order["folder"]}

    def _join(self, order: Dict[str, Any]) -> None:
        """Join the Ray cluster. Ray puts the working folder on the workers' path, so that is the tools' folder then."""
        self._initial_variables["RAY_ADDRESS"] = order["ray"]
        os.chdir(self._tools_folder)
        self._session.join(order["ray"])

    def _run(self, run: RunFiles, order: Dict[str, Any]) -> Report:
        _redirect(run.log)
        os.environ["SRF_RUN_ID"] = self._initial_variables["SRF_RUN_ID"] = run.id
        try:
            spec = run.read_spec()
            self._enter(run, spec, order)
        except OperationError as error:
            message = "{} ({})".format(error.what, error.where) + TRY + error.advice
            return {"outcome": None, "cause": error.cause or "environment", "message": message}
        except Exception as error:
            return {"outcome": None, "cause": "environment", "message": "The call can't be set up: {}".format(error)}
        self._set_answers(run)
        if self._session:
            ray_session.watch()
        limits.restore_umask()
        if spec.get("pilot"):
            from slurm_ray_flow.remote.driver import pilot  # few runs are pilots

            settings = {"memory": spec.get("memory"), **spec["pilot"]}
            return pilot.execute(run, settings, with_ray=self._session is not None)
        return execution.execute(run)

    def _set_answers(self, run: RunFiles) -> None:
        """Set what the function may ask for: its run's id, the folder of its checkpoints, the warning of its end."""
        os.environ["SRF_RUN_ID"] = run.id
        os.environ[checkpoints.FOLDER_VARIABLE] = folder = checkpoints.folder_of(run.folder)
        end_warning.listen(run.warning)
        if self._session:
            self._session.note(checkpoints.FOLDER_VARIABLE, folder)

    def _enter(self, run: RunFiles, spec: Dict[str, Any], order: Dict[str, Any]) -> None:
        """Join the allocation's Ray cluster, and set the run's files, variables and command line."""
        if self._session:
            self._join(order)
        working_directory.move(self._spare_folders.get(spec.get("snapshot"), run.folder), run.folder)
        working_directory.make(spec, run.folder)
        setting = _call_setting(spec, run.folder)
        os.environ.clear()
        os.environ.update({**self._initial_variables, **setting["environment_variables"]})
        sys.path[:] = [self._tools_folder, *setting["path"], *self._initial_path[1:]]
        os.chdir(setting["working_directory"])
        _set_program(spec, run.folder)
        if self._session:
            inherited = _run_files(order["allocation"]).read_spec().get("environment_variables") or {}
            self._session.note_setting(setting, inherited)
        working_directory.fill(run, spec, run.folder)
        importlib.invalidate_caches()


def _run_files(folder: str) -> RunFiles:
    return RunFiles(os.path.dirname(os.path.dirname(folder)), os.path.basename(folder))


def _call_setting(spec: Dict[str, Any], folder: str) -> Dict[str, Any]:
    absolute_spec = working_directory.with_absolute_paths(spec, folder)
    variables = dict(spec.get("environment_variables") or {})
    paths = {name: absolute_spec[name] for name in ("path", "working_directory")}
    return {**paths, "environment_variables": variables}


def _set_program(spec: Dict[str, Any], folder: str) -> None:
    """Set the command line, the recursion limit and the folders of home's program."""
    rebuilding.map_folders([(home, os.path.join(folder, path)) for home, path in spec.get("folders") or ()])
    sys.setrecursionlimit(spec.get("recursion_limit") or sys.getrecursionlimit())
    program, *arguments = spec.get("argv") or ["slurm-ray-flow"]
    sys.argv[:] = [rebuilding.local_path_of(program), *arguments]


def _redirect(log: str) -> None:
    """Redirect stdout and stderr of this process and its children to the run's log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.close(descriptor)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()


def main(arguments: List[str]) -> None:
    """Boot, serve one call, report, and end as a script does."""
    processes.die_with_parent(int(arguments[0]))
    driver = Driver(int(arguments[2]), arguments[1] == "1")
    os.set_inheritable(int(arguments[2]), False)
    end_warning.listen()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT
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
    # The driver runs as a module of its own, since `__main__` is the user's.
    importlib.import_module("slurm_ray_flow.remote.driver.driver").main(sys.argv[1:])
