"""The rules for another try of a failed run, by the cause of the failure."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

from slurm_ray_flow.core.errors import (
    NodeFailed,
    OutOfMemory,
    Preempted,
    Rejected,
    SlurmRayFlowError,
    TimeLimit,
)
from slurm_ray_flow.core.options import Growth, Options
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.remote.shared.failures import STANDS_FOR

LONGEST_PAUSE = 60.0
LONGEST_TEXT = 300


@dataclasses.dataclass(frozen=True)
class NextTry:
    """The next try of a run.

    Attributes:
        text: what went wrong, what is changed, and which try of how many it is; the failure's type is not in it.
        pause: seconds to wait before it.
        changed: it asks for more than the one before.
    """

    text: str
    pause: float = 0.0
    changed: bool = False


class Retries:
    """The tries of one launch. Each cause has a count of its own.

    Args:
        options: those of the first try.

    Attributes:
        options: those of the next try.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._spent: Counter[str] = Counter()
        self._grown: SlurmRayFlowError | None = None

    def after(self, failure: BaseException | None) -> NextTry | None:
        """The next try after a failure, which may be the function's own exception; None for no other try.

        A try with more memory or time than the one before goes through all the checks again, since it is a whole one.
        """
        match failure:
            case OutOfMemory():
                return self._growing(failure, self.options.on_out_of_memory, "out of memory")
            case TimeLimit():
                return self._growing(failure, self.options.on_time_limit, "the time limit passed")
            case Preempted() | NodeFailed():
                return self._repeated(failure.what, "resubmit", self.options.resubmit)
            case SlurmRayFlowError(transient=True):
                return self._repeated(failure.what, "retries", self.options.retries)
        if failure is None or not is_one_of(failure, self.options.retry_on):
            return None
        return self._repeated(plain(str(failure).partition("\n")[0])[:LONGEST_TEXT], "retries", self.options.retries)

    def explanation(self, error: SlurmRayFlowError) -> SlurmRayFlowError | None:
        """A better error than the one that ended the last try, where there is one.

        Where a cluster refuses the larger request of a further try, the cause of the try before explains the failure.
        """
        if self._grown is None or not isinstance(error, Rejected):
            return None
        advice = f"one more try was refused: {error.what}; {error.advice}"
        return type(self._grown)(self._grown.what, where=self._grown.where, advice=advice)

    def _growing(self, error: SlurmRayFlowError, rule: Growth | None, what: str) -> NextTry | None:
        value: float | None = None if rule is None else getattr(self.options, rule.option)
        if rule is None or value is None:
            return None
        grown = rule.after(value)
        if grown is None or self._spent[rule.option] == rule.times:
            return None
        self._spent[rule.option] += 1
        self.options = self.options.but(**{rule.option: int(grown) if rule.option == "memory" else grown})
        self._grown = error
        change = f"{what} at {rule.written(value)}; tries again with {rule.written(grown)}"
        return NextTry(f"{change} ({self._spent[rule.option]} of {rule.times})", changed=True)

    def _repeated(self, what: str, count: str, most: int) -> NextTry | None:
        if self._spent[count] == most:
            return None
        # The spread keeps many launches that failed together from coming back together.
        pause = min(2.0 ** self._spent[count], LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        self._spent[count] += 1
        return NextTry(f"{what.rstrip('.')}; tries again in {pause:.0f} s ({self._spent[count]} of {most})", pause)


def is_one_of(failure: BaseException, wanted: tuple[type[BaseException] | str, ...]) -> bool:
    """Whether an exception is of one of these types, which may be named: "ValueError", "requests.Timeout"."""
    types = tuple(kind for kind in wanted if isinstance(kind, type))
    return isinstance(failure, types) or not names_of(failure).isdisjoint(wanted)


def names_of(failure: BaseException) -> set[str]:
    """The names of an exception's types, and of the exception that it replaces where that could not travel."""
    kinds = type(failure).__mro__
    name = getattr(failure, STANDS_FOR, "")
    stood_for = {name, name.rpartition(".")[2]} - {""}
    return stood_for | {kind.__name__ for kind in kinds} | {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
