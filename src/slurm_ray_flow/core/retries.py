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
from slurm_ray_flow.core.options import IncreaseRule, Options
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.remote.shared.failures import STANDS_FOR

LONGEST_PAUSE = 60.0
LONGEST_TEXT = 300


@dataclasses.dataclass(frozen=True)
class NextTry:
    """The next try of a run.

    Attributes:
        text: the failure, the change, and the number of this try; without the type of the failure.
        pause: seconds to wait before it.
        changed: whether it requests more resources than the try before.
    """

    text: str
    pause: float = 0.0
    changed: bool = False


class Retries:
    """The tries of one launch. Each cause has its own count.

    Args:
        options: the options of the first try.

    Attributes:
        options: the options of the next try.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._used: Counter[str] = Counter()
        self._resource_failure: SlurmRayFlowError | None = None

    def after(self, failure: BaseException | None) -> NextTry | None:
        """The next try after a failure, which may be the function's own exception; None for no further try.

        A try with more memory or time goes through all checks of a request again.
        """
        match failure:
            case OutOfMemory():
                return self._with_more(failure, self.options.on_out_of_memory, "out of memory")
            case TimeLimit():
                return self._with_more(failure, self.options.on_time_limit, "the time limit passed")
            case Preempted() | NodeFailed():
                return self._same_again(failure.what, "resubmit", self.options.resubmit)
            case SlurmRayFlowError(transient=True):
                return self._same_again(failure.what, "retries", self.options.retries)
        if failure is None or not is_one_of(failure, self.options.retry_on):
            return None
        return self._same_again(plain(str(failure).partition("\n")[0])[:LONGEST_TEXT], "retries", self.options.retries)

    def explanation(self, error: SlurmRayFlowError) -> SlurmRayFlowError | None:
        """The error in place of a refused larger request: the failure that led to that request, or None."""
        if self._resource_failure is None or not isinstance(error, Rejected):
            return None
        advice = f"one more try was refused: {error.what}; {error.advice}"
        return type(self._resource_failure)(
            self._resource_failure.what, where=self._resource_failure.where, advice=advice
        )

    def _with_more(self, error: SlurmRayFlowError, rule: IncreaseRule | None, failure_text: str) -> NextTry | None:
        value: float | None = None if rule is None else getattr(self.options, rule.option)
        if rule is None or value is None:
            return None
        increased = rule.after(value)
        if increased is None or self._used[rule.option] == rule.times:
            return None
        self._used[rule.option] += 1
        self.options = self.options.but(**{rule.option: int(increased) if rule.option == "memory" else increased})
        self._resource_failure = error
        change = f"{failure_text} at {rule.written(value)}; tries again with {rule.written(increased)}"
        return NextTry(f"{change} ({self._used[rule.option]} of {rule.times})", changed=True)

    def _same_again(self, failure: str, count: str, limit: int) -> NextTry | None:
        if self._used[count] == limit:
            return None
        # The spread keeps many launches that failed together from coming back together.
        pause = min(2.0 ** self._used[count], LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        self._used[count] += 1
        return NextTry(f"{failure.rstrip('.')}; tries again in {pause:.0f} s ({self._used[count]} of {limit})", pause)


def is_one_of(failure: BaseException, wanted: tuple[type[BaseException] | str, ...]) -> bool:
    """Whether an exception has one of these types, which may be names: "ValueError", "requests.Timeout"."""
    types = tuple(kind for kind in wanted if isinstance(kind, type))
    return isinstance(failure, types) or not names_of(failure).isdisjoint(wanted)


def names_of(failure: BaseException) -> set[str]:
    """The names of an exception's types, and of the exception that it replaces because that could not be pickled."""
    kinds = type(failure).__mro__
    name = getattr(failure, STANDS_FOR, "")
    stood_for = {name, name.rpartition(".")[2]} - {""}
    return stood_for | {kind.__name__ for kind in kinds} | {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
