"""What the process of a map keeps at home, so that the engine has the calls begun that had not when it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect.utilities.callables import get_call_parameters

from slurm_ray_flow.blocks import processes
from slurm_ray_flow.blocks.clusters import saved_name
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.grid_engine import ensure_engine, is_running
from slurm_ray_flow.blocks.map_record import drop_kept, kept_file, kept_folder
from slurm_ray_flow.core.errors import OptionError, PayloadError, SlurmRayFlowError
from slurm_ray_flow.core.scan import FunctionSource, modules_of, target_of
from slurm_ray_flow.interface.parameters import Arguments, holds_future
from slurm_ray_flow.interface.session import DecoratedFunction, stored_function

ENGINE_SECONDS = 5.0
"""Seconds that a map must last before the engine is started for it: most maps need none."""
STORE_SECONDS = 30.0
"""Seconds for which the end of a process waits until its map is kept."""
VARIABLES = {"PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LANG", "TZ", "TMPDIR"}
"""The variables that are kept, besides those of this package and of the locale; others may hold secrets."""
SECRET_ENDS = ("_PASSWORD", "_TOKEN", "_KEY", "_SECRET", "_URL")

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]


class KeptMap:
    """What is kept of one map, written in a thread of its own.

    Args:
        map_id: the map.
        flow: the decorated function.
        arguments: positional and keyword arguments of each call.
        max_parallel: how many calls may be under way at a time.
        tell: gets a sentence for the user.
    """

    def __init__(
        self,
        map_id: str,
        flow: DecoratedFunction,
        arguments: Sequence[CallArguments],
        max_parallel: int,
        tell: Callable[[str], None],
    ) -> None:
        self._map_id, self._flow, self._max_parallel, self._tell = map_id, flow, max_parallel, tell
        self._arguments: Sequence[CallArguments] = list(arguments)
        self._lock = threading.Lock()
        self._prepared: bytes = b""
        self._stored, self._over = threading.Event(), threading.Event()
        self._problem = "what they need was not stored in time"

    def start(self) -> None:
        """Keep the map."""
        threading.Thread(target=self._keep, name=f"srf-keep-{self._flow.name}", daemon=True).start()

    def note_prepared(self, index: int, prepared: str) -> None:
        """Keep what the first call has prepared on its cluster; other calls of the same modules use it."""
        with self._lock:
            if self._prepared:
                return
            self._prepared = json.dumps({"index": index, "prepared": prepared}).encode()
            if kept_file(self._map_id).exists():
                self._write("prepared", self._prepared)

    def drop(self) -> None:
        """Keep nothing any more: all calls have ended."""
        with self._lock:
            self._over.set()
            drop_kept(self._map_id)

    def hand_over(self) -> str:
        """See that the engine begins what has not begun, when this process ends; gives the reason where it can't."""
        self._stored.wait(STORE_SECONDS)
        if self._problem:
            return self._problem
        try:
            ensure_engine(_say)
        except SlurmRayFlowError as error:
            drop_kept(self._map_id)
            return error.what
        return ""

    def _keep(self) -> None:
        try:
            self._store()
            self._problem = ""
        except PayloadError as error:  # each call says so itself
            self._problem = error.what
        except Exception as error:
            self._problem = getattr(error, "what", f"{type(error).__name__}: {error}")
            self._tell_problem()
        finally:
            self._arguments = ()
            self._stored.set()
        if self._problem or (not is_running() and self._over.wait(ENGINE_SECONDS)):
            return
        try:
            from slurm_ray_flow.grid.client import GridClient

            GridClient().show_map(self._map_id)
        except SlurmRayFlowError as error:
            if not self._over.is_set():
                self._problem = error.what
                drop_kept(self._map_id)
                self._tell_problem()

    def _tell_problem(self) -> None:
        self._tell(f"calls that have not begun when this process ends never will: {self._problem}")

    def _store(self) -> None:
        """Write all of it; what makes the map a kept one comes last.

        Raises:
            OptionError: the engine could not find its cluster.
            PayloadError: its function can't be pickled.
        """
        flow, name = self._with_saved_cluster(), self._flow.name
        target = target_of(self._flow.function)
        kept = {
            "flow": flow.pickled_by_value(),
            "digest": stored_function(self._flow),
            "target": target,
            "travels_by_name": self._flow.travels_by_name,
            "max_parallel": self._max_parallel,
            "arguments": [self._stored_arguments(index, target) for index in range(len(self._arguments))],
        }
        with self._lock:
            if self._over.is_set():
                return
            private_folder(kept_folder(self._map_id))
            self._write("function", pickle.dumps(kept, protocol=5))
            if self._prepared:
                self._write("prepared", self._prepared)
            self._write(kept_file(self._map_id).name, json.dumps({**_this_process(), "name": name}).encode())

    def _stored_arguments(self, index: int, target: FunctionSource) -> tuple[str, tuple[str, ...]]:
        """The digest of a call's arguments, and the modules of their types; "" where they can't be stored now."""
        args, kwargs = self._arguments[index]
        if self._over.is_set():
            return "", ()
        with contextlib.suppress(Exception):  # the call itself says what is wrong
            function = self._flow.fn
            parameters = get_call_parameters(function, args, kwargs)
            if not any(map(holds_future, parameters.values())):
                original = (args, kwargs) if hasattr(self._flow.function, "__wrapped__") else None
                arguments = Arguments(function, parameters, original)
                modules = set(modules_of(arguments.parameters.values())) - set(target.imported)
                return arguments.stored(), tuple(sorted(modules))
        return "", ()

    def _with_saved_cluster(self) -> Any:
        """The function on its cluster by name, which another process can find.

        Raises:
            OptionError: the cluster is not saved.
        """
        flow: Any = self._flow
        cluster = flow.options.cluster
        if isinstance(cluster, str):
            return flow
        if (name := saved_name(cluster)) is None:
            raise OptionError(f"its cluster {flow.options.cluster.label} is not saved")
        return flow.with_options(cluster=name)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(kept_folder(self._map_id) / name, data)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _this_process() -> dict[str, Any]:
    """How a process like this one is started. Its variables are those that hold no secret."""
    withheld = processes.withheld()
    environ = {
        name: value
        for name, value in os.environ.items()
        if name in VARIABLES or name.startswith(("SRF_", "LC_"))
        if name not in withheld and not name.endswith(SECRET_ENDS) and name != "SRF_HOME"
    }
    return {
        "executable": sys.executable,
        "folder": str(Path.cwd()),
        "path": sys.path,
        "python_path": os.environ.get("PYTHONPATH"),
        "argv": sys.argv,
        "recursion_limit": sys.getrecursionlimit(),
        "environ": environ,
    }
