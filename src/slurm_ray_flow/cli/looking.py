"""What is known of runs: their clusters are asked side by side, and none that does not answer is waited for."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slurm_ray_flow.core.run import RunRecord
    from slurm_ray_flow.core.warm import Warm
    from slurm_ray_flow.tasks.asked import Asked

SECONDS = 8.0
"""How long all clusters together are waited for."""
SILENT_SECONDS = 60.0
"""For how long one that could not be asked is not asked again."""
NOT_KNOWN = "not known"
FINAL = ("succeeded", "failed", "cancelled", "lost")
Known = tuple[str, "float | None", str]
"""A run's state, how long it took or has been under way, and why that is not known."""
Place = tuple[str, str, str]
"""A cluster as runs know it: kind, name, root folder."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One line: a run, its state, how long it took or has been under way, and what it keeps warm.

    Attributes:
        why: why nothing is known of it; "" where something is.
    """

    record: RunRecord
    state: str
    seconds: float | None
    warm: Warm | None = None
    why: str = ""

    @property
    def word(self) -> str:
        """The state that is filtered by."""
        return "warm" if self.warm else self.state


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which runs are shown."""

    limit: int
    cluster: str | None
    states: tuple[str, ...]

    def takes(self, one: Shown) -> bool:
        """Whether a run's state is one that is wanted."""
        return not self.states or one.word in self.states or ("active" in self.states and one.word not in FINAL)


class _Question:
    """The runs of one cluster, looked at one after the other; what is known of them so far."""

    def __init__(self, records: Sequence[RunRecord], warm: Sequence[RunRecord]) -> None:
        from slurm_ray_flow.blocks.clusters import cluster_of
        from slurm_ray_flow.blocks.ssh import prompt
        from slurm_ray_flow.tasks.asked import Asked
        from slurm_ray_flow.tasks.release import warm_noted

        self._cluster_of, self._warm_noted, self._can_ask = cluster_of, warm_noted, prompt.terminal
        self.states: dict[str, Known] = {}
        self.warm: dict[str, Warm] = {}
        self._records, self._warm_records = records, warm
        self.asked: Asked[None] = Asked(self._ask)

    def wait(self, deadline: float) -> None:
        """Until then; longer only where the user is asked for what the cluster wants to know."""
        self.asked.wait(deadline)
        if self.asked.error is not None and self.asked.unasked.wanted and self._can_ask():
            self._ask_user()

    def _ask_user(self) -> None:
        self.asked.error = None
        try:
            self._ask()
        except Exception as error:  # as in the thread
            self.asked.error = error

    def _ask(self) -> None:
        for record in self._records:
            self.states[record.run_id] = _state(record)
        if self._warm_records:
            there = self._warm_noted(self._cluster_of(self._warm_records[0]), self._warm_records)
            self.warm = {one.run_id: one for one in there if one.idles}


class Looking:
    """Looks at runs, once or again and again.

    Attributes:
        silent: the names of the clusters that did not answer in the last round, and why.
    """

    def __init__(self) -> None:
        self.silent: dict[str, str] = {}
        self._questions: dict[Place, _Question] = {}
        self._warm_asked: set[Place] = set()
        self._warm: dict[str, Warm] = {}
        self._deadline = 0.0

    def found(self, wanted: Filter) -> list[Shown]:
        """The newest runs that are wanted, each looked at."""
        from slurm_ray_flow.blocks import store

        self.silent, self._warm_asked, self._warm = {}, set(), {}
        self._deadline = 0.0
        known = list(store.records())
        rest = (record for record in known if wanted.cluster in (None, record.cluster))
        found: list[Shown] = []
        while some := list(itertools.islice(rest, wanted.limit - len(found))):
            found += [one for one in self._looked_at(some, known) if wanted.takes(one)]
        return found

    def _looked_at(self, some: Sequence[RunRecord], known: Sequence[RunRecord]) -> Iterator[Shown]:
        fresh = [self._ask(place, some, known) for place in dict.fromkeys(map(_place, some))]
        self._deadline = self._deadline or time.monotonic() + SECONDS  # what is imported before takes its time
        for question in fresh:
            if question:
                question.wait(self._deadline)
                self._warm.update(question.warm)
        for record in some:
            yield self._shown(record)

    def _ask(self, place: Place, some: Sequence[RunRecord], known: Sequence[RunRecord]) -> _Question | None:
        """Ask a cluster about those of these runs that home does not know the end of; None where nothing is asked."""
        records = [record for record in some if _place(record) == place and not record.ended]
        of_warm = place not in self._warm_asked and any(record.warm for record in some if _place(record) == place)
        if not (records or of_warm) or self._is_silent(place):
            return None
        warm = [record for record in known if record.warm and _place(record) == place] if of_warm else []
        if of_warm:
            self._warm_asked.add(place)
        question = self._questions[place] = _Question(records, warm)
        return question

    def _is_silent(self, place: Place) -> bool:
        """Whether an earlier question to it has no answer yet, or failed a moment ago."""
        before = self._questions.get(place)
        if before is None or not before.asked.why:
            return False
        ended = before.asked.ended
        return ended is None or time.monotonic() - ended < SILENT_SECONDS

    def _shown(self, record: RunRecord) -> Shown:
        question = self._questions.get(_place(record))
        why = question.asked.why if question else ""
        if why and (record.warm or not record.ended):
            self.silent[record.cluster] = why
        states = question.states if question else {}
        state, seconds, why = _state(record) if record.ended else states.get(record.run_id, (NOT_KNOWN, None, why))
        return Shown(record, state, seconds, self._warm.get(record.run_id), why)


def _place(record: RunRecord) -> Place:
    return record.kind, record.cluster, record.root


def _state(record: RunRecord) -> Known:
    from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
    from slurm_ray_flow.interface.handle import Handle

    try:
        state, ended = Handle[Any](record.run_id).status_and_end()
    except ConnectionFailed:
        raise
    except SlurmRayFlowError as error:  # one run that can't be judged must not hide the others
        return NOT_KNOWN, None, error.what
    if ended is None and state.final:
        return state.value, None, ""
    return state.value, round((ended or time.time()) - record.created, 3), ""
