"""The `srf` command."""

from __future__ import annotations

import atexit
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cyclopts

from slurm_ray_flow import __version__
from slurm_ray_flow.cli import (
    clean,
    clusters,
    completion,
    config,
    dashboard,
    fetch,
    grid,
    grid_items,
    grid_submit,
    grid_users,
    init,
    prefect_command,
    queue,
    release,
    run,
    runs,
    server,
    trust,
)
from slurm_ray_flow.cli.output import print_error, show_progress, tell
from slurm_ray_flow.core.config import variable_warnings
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError, UnknownCampaignError, UnknownRunError

_SECTION = re.compile(r"^(Args|Examples|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE)


def described(command: Callable[..., Any]) -> dict[str, str]:
    """The texts for cyclopts: `help` and `help_epilogue`."""
    text = inspect.getdoc(command) or ""
    sections = {match[1]: inspect.cleandoc(match[2]) for match in _SECTION.finditer(text)}
    paragraphs = _SECTION.sub("", text).strip().split("\n\n")
    lines = [line for line in sections.get("Examples", "").splitlines() if line.strip()]
    return {
        "help": "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        "help_epilogue": "\n".join(["Examples:", *(f"  {line}" for line in lines)]),
    }


EXIT_CODES = {
    0: "all is well",
    1: "the function raised, the run or the command failed, a check found a fault, or no server answers",
    2: "the command line or a setting is wrong, or there is no such run or cluster",
    130: "Ctrl-C",
    141: "whoever read the output has gone",
}

app = cyclopts.App(
    name="srf",
    help="Run Python functions on clusters, watch them, and bring their values home.",
    help_epilogue="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    help_format="plaintext",
    help_formatter="default" if sys.stdout is not None and sys.stdout.isatty() else "plain",
    error_formatter=None if sys.stderr is not None and sys.stderr.isatty() else lambda error: f"srf: {error}",
    version=__version__,
    version_flags=["--version"],
)
app["--version"].help = "Show the version and exit."
app["--help"].help = "Show this message and exit; after a command's name, that command's."
GROUPS = {
    "Clusters": (init.init, clusters.check, clusters.clusters, queue.queue, trust.trust, clean.clean, clusters.forget),
    "Runs": (
        run.run,
        runs.runs,
        runs.logs,
        runs.attach,
        fetch.fetch,
        runs.cancel,
        release.release,
        dashboard.dashboard,
    ),
    "Campaigns": (),
    "This machine": (
        server.up,
        server.down,
        server.status,
        prefect_command.prefect,
        config.config,
        completion.completion,
    ),
}
GRID: tuple[Callable[..., None], ...] = (
    grid_submit.submit,
    grid_submit.add,
    grid.stat,
    grid_items.watch,
    grid.items,
    grid_items.results,
    grid_items.logs,
    grid_items.explain,
    grid.events,
    grid_items.fix,
    grid_items.resubmit,
    grid.pause,
    grid.resume,
    grid.cancel,
    grid_items.purge,
    grid_users.user,
    grid_users.token,
    grid_users.cap,
)
grid_app = cyclopts.App(
    name="grid",
    help="Begin, show and change campaigns: one function over many items. `f.campaign(values)` begins one, too.",
    help_epilogue="Examples:\n  srf grid submit train.py:train --values params.csv\n  srf grid stat",
    help_format="plaintext",
)
groups = {title: cyclopts.Group.create_ordered(title) for title in GROUPS}
for title, commands in GROUPS.items():
    for command in commands:
        app.command(command, group=groups[title], **described(command))
grid_app.group = (groups["Campaigns"],)
for verb in GRID:
    grid_app.command(verb, **described(verb))
app.command(grid_app)


def main() -> None:
    """Run the command; an error of ours is a message and an exit code, not a traceback."""
    _process_end.code = 1
    try:
        _process_end.code = _run()
    except SystemExit as ending:
        _process_end.code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    finally:
        _bound_process_end()
    sys.exit(_process_end.code)


def _run() -> int:
    try:
        _warn_of_variables()
        _show_progress()
        _pass_options_to_prefect()
        app(exit_on_error=False)
        sys.stdout.flush()
    except cyclopts.CycloptsError:
        return 2  # cyclopts has written the error; older versions would exit with 1
    except SlurmRayFlowError as error:
        print_error(error)
        return 2 if isinstance(error, OptionError | UnknownCampaignError | UnknownRunError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has gone (`| head`): the interpreter's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if (explained := _server_error_of(error)) is None:
            raise
        print_error(explained)
        return 1
    return 0


@dataclass
class _ProcessEnd:
    """The end of a process in which a thread still waits for a host, or imports Prefect.

    Python would end such a thread by unwinding its stack. Where a library in Rust (pydantic's) has called Python
    there, that aborts the whole process: "FATAL: exception not rethrown".
    """

    code: int | None = None
    """The command's exit code; None when no command has run."""

    def __call__(self) -> None:
        if self.code is not None and threading.active_count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


_process_end = _ProcessEnd()
atexit.register(_process_end)  # before all others, to be called after them


def _server_error_of(error: Exception) -> SlurmRayFlowError | None:
    """The error about the server for an exception of Prefect's client."""
    if "prefect" not in sys.modules:
        return None
    from slurm_ray_flow.blocks.server.client import server_error

    return server_error(error)


def _pass_options_to_prefect() -> None:
    """Leave the options of `srf prefect deploy --help` to Prefect; `srf prefect --help` is our own."""
    if sys.argv[1:2] == ["prefect"] and sys.argv[2:3] not in ([], ["--help"], ["-h"]):
        sys.argv.insert(2, "--")


def _warn_of_variables() -> None:
    """Warn of unknown variables such as SRF_MEMROY; a launch warns by itself, and a completion must be silent."""
    if sys.argv[1:2] not in (["run"], ["__complete"]):
        for text in variable_warnings(os.environ):
            tell(text)


def _show_progress() -> None:
    """Show progress, except for help; `srf runs` itself does where it asks a cluster."""
    if not {"--help", "-h", "--version"} & set(sys.argv[1:]) and sys.argv[1:2] not in ([], ["runs"]):
        show_progress()


def _bound_process_end() -> None:
    """Bound the end of the process, which Prefect's background services may delay for ever."""
    if "prefect" in sys.modules:
        from slurm_ray_flow.interface.cancellation import bound_process_end

        bound_process_end()


if __name__ == "__main__":
    main()
