"""All errors that a user can get. Each says what went wrong, where, and what to try.

SlurmRayFlowError
├── OptionError (ValueError)      an option of the decorator or the command is wrong; nothing was submitted
├── ScanError                     the function's sources can't be followed
├── DependencyError               the wanted packages can't be read or resolved
├── SyncError                     a file can't be sent as it is
├── PayloadError (TypeError)      an argument or the function can't be pickled
├── UnknownRunError (LookupError) no run has this id
├── ServerError                   the Prefect server can't be started or reached
├── GridError                     the grid's database or files can't be used
│   └── UnknownCampaignError (LookupError) no campaign has this id
└── RunError                      a run ended without a value; has a cause
    ├── OutOfMemory   ├── TimeLimit     ├── Preempted         ├── NodeFailed
    ├── EnvironmentFailed ├── Rejected  ├── LockFailed
    ├── ConnectionFailed (├── HostKeyFailed  └── LogInFailed, which are not transient)
    ├── Cancelled     ├── Lost          ├── Crashed           ├── ResultError
    └── InputFailed

The function's own exception is none of these: it is raised unchanged.
"""

from __future__ import annotations

from typing import ClassVar

from slurm_ray_flow.core.text import plain


class SlurmRayFlowError(Exception):
    """Base of all errors of this package.

    Args:
        what: the problem, in one sentence.
        where: the cluster, job, file or run with the problem.
        advice: what to try.
    """

    transient: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str = "", advice: str = "") -> None:
        what, where, advice = plain(what), plain(where), plain(advice)  # much of it comes from a cluster
        super().__init__(what, where, advice)
        self.what, self.where, self.advice = what, where, advice

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.advice)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.advice:
            lines.append(f"  try:   {self.advice}")
        return "\n".join(lines)


def _rebuild(kind: type[SlurmRayFlowError], what: str, where: str, advice: str) -> SlurmRayFlowError:
    return kind(what, where=where, advice=advice)


class OptionError(SlurmRayFlowError, ValueError):
    """An option is unknown or has a value that can't be meant."""


class ScanError(SlurmRayFlowError):
    """The sources of the function can't be read or followed."""


class DependencyError(SlurmRayFlowError):
    """The wanted packages can't be read, compared or resolved."""


class SyncError(SlurmRayFlowError):
    """A file of the project can't be sent as it is."""


class PayloadError(SlurmRayFlowError, TypeError):
    """The function or an argument can't be pickled."""


class UnknownRunError(SlurmRayFlowError, LookupError):
    """No run has this id."""


class ServerError(SlurmRayFlowError):
    """The Prefect server can't be started or reached."""


class GridError(SlurmRayFlowError):
    """The grid's database, outcome logs or arguments can't be used, or a campaign allows no such change."""


class UnknownCampaignError(GridError, LookupError):
    """No campaign has this id."""


class GridTokenError(GridError):
    """The token for a grid that several users share is missing or wrong, or was revoked."""


class NotAllowedError(GridError):
    """Only another user, or an administrator of the grid, may do this."""


class RunError(SlurmRayFlowError):
    """A run ended without a value. `cause` says why, in one of the words of `CAUSES`."""

    cause: ClassVar[str] = "crashed"


class OutOfMemory(RunError):
    """The run used more memory than it asked for, or than the machine has."""

    cause = "out_of_memory"


class TimeLimit(RunError):
    """The run's time limit passed."""

    cause = "time_limit"


class Preempted(RunError):
    """The cluster took the allocation back for somebody with a higher priority."""

    cause = "preempted"
    transient = True


class NodeFailed(RunError):
    """A node of the allocation failed."""

    cause = "node_failed"
    transient = True


class EnvironmentFailed(RunError):
    """The environment could not be built, or the program in it could not start."""

    cause = "environment"


class Rejected(RunError):
    """The cluster refused the submission."""

    cause = "rejected"


class ConnectionFailed(RunError):
    """The cluster can't be reached."""

    cause = "connection"
    transient = True


class HostKeyFailed(ConnectionFailed):
    """The server's host key is unknown, or is not the one that is known."""

    transient = False


class LogInFailed(ConnectionFailed):
    """The server does not let the user in. It is never tried again by itself: sites block accounts for that."""

    transient = False


class LockFailed(RunError):
    """The lock of a shared server can't be had."""

    cause = "lock"
    transient = True


class Cancelled(RunError):
    """The run was cancelled."""

    cause = "cancelled"


class Lost(RunError):
    """The run's program on the cluster is gone and left no outcome."""

    cause = "lost"
    transient = True


class Crashed(RunError):
    """The function's process ended by itself: `os._exit`, a signal, a segmentation fault."""

    cause = "crashed"


class ResultError(RunError):
    """The function ended, but its value can't be brought home: not picklable, a full disk, a damaged file."""

    cause = "result"


class InputFailed(RunError):
    """A run whose value is an argument of this one has ended without a value. Its own error is the `__cause__`."""

    cause = "input"


CAUSES: dict[str, type[RunError]] = {
    kind.cause: kind
    for kind in (
        OutOfMemory,
        TimeLimit,
        Preempted,
        NodeFailed,
        EnvironmentFailed,
        Rejected,
        ConnectionFailed,
        LockFailed,
        Cancelled,
        Lost,
        Crashed,
        ResultError,
        InputFailed,
    )
}
