"""The trace of SRF_LOG=debug: each operation on a cluster and each program that is started here, with its time.

The lines go to stderr by the logger `slurm_ray_flow`, which Prefect's setting PREFECT_LOGGING_EXTRA_LOGGERS can send to
its server, too. The lines have names and paths of a request: never contents, variables or log-in data.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_SHOWN = ("path", "folder", "root", "run_id", "name", "command", "argv")
"""The arguments of an operation that are shown; the others may hold secrets or much data."""
_LONGEST = 400
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_EXPORTED = re.compile(r"(--export(?:=|\s+))\S+")


def tracing() -> bool:
    """Whether SRF_LOG asks for the trace."""
    return os.environ.get("SRF_LOG", "").lower() == "debug"


@contextlib.contextmanager
def traced(where: str, what: Callable[[], str]) -> Iterator[None]:
    """Log the work of this block, its time, and whether it failed.

    Args:
        where: the cluster's name, or "here".
        what: gives a description of the work; called only if the trace is on.
    """
    if not tracing():
        yield
        return
    began, failure = time.monotonic(), ""
    try:
        yield
    except BaseException as error:
        failure = f"  {type(error).__name__}"
        raise
    finally:
        _logger().debug("%s  %7.1f ms  %s%s", where, 1000 * (time.monotonic() - began), harmless(what()), failure)


def harmless(text: str) -> str:
    """A text without possible secrets: credentials in addresses, variables that sbatch is given."""
    shown = _EXPORTED.sub(r"\1...", _CREDENTIALS.sub("//...@", text))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."


def requests_shown(requests: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Operations in one line: the name of each, and its main arguments."""
    return "; ".join(" ".join([name, *_about(arguments)]) for name, arguments in requests)


def _about(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name in _SHOWN:
        value = arguments.get(name)
        if isinstance(value, list | tuple):
            yield shlex.join(map(str, value))
        elif isinstance(value, str) and value:
            yield value


@functools.cache
def _logger() -> logging.Logger:
    logger = logging.getLogger("slurm_ray_flow")
    logger.setLevel(logging.DEBUG)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d  %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    return logger
