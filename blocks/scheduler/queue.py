"""What is in the queue of a cluster: asked once for all runs of this process, and seldom."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Mapping, Sequence
from typing import cast

from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted, interruptible
from slurm_ray_flow.core.run import GONE, Event, Liveness, RunPaths, find_event
from slurm_ray_flow.core.scheduler import Dialect, Job, end_of_job, goes_on, run_of

SHORTEST_PACE, LONGEST_PACE = 2.0, 25.0
"""Seconds between two questions: growing while nothing changes, and short enough for a verdict within 30 s."""
PENDING_PACE = 30.0
CANCEL_SECONDS = 20.0
LAST_WORDS_SECONDS = 2.0
"""What a job wrote last may take so long from its node to the login node."""
DISAGREEING_SECONDS = 300.0
"""So long a job that the accounts have as running counts as such, although the queue does not name it."""
SIGN_PACE, SILENT_SECONDS = 10.0, 20.0
"""How often a job's program is looked for; it shows itself as often, and one that is silent so long may be gone."""
ABSENT_SECONDS = 8.0
"""A job that no answer has named for so long is gone: a controller that starts knows its jobs before it answers."""


class JobQueue:
    """The jobs of one user on one cluster.

    Args:
        machine: where the commands run.
        user: whose jobs.
        dialect: how the scheduler is spoken to.

    Attributes:
        answers: whether the scheduler answered the last question.
    """

    def __init__(self, machine: Machine, user: str, dialect: Dialect) -> None:
        self._machine, self._user, self.dialect = machine, user, dialect
        self._asking = threading.Lock()
        self._jobs: dict[str, Job] | None = None
        self._pace, self._due = SHORTEST_PACE, 0.0
        self._ahead: dict[str, tuple[float, Mapping[str, Job]]] = {}
        self._since: dict[str, float] = {}
        self._signs: dict[str, tuple[float | None, float, float]] = {}
        self._steps_are_seen: bool | None = None
        self._taken, self._failed = 0.0, cast(SlurmRayFlowError | None, None)
        self._asked_anew = 0.0
        self.answers, self._trouble, self._clock = True, "", 0.0

    # ---- one run

    def fresh(self, run_id: str) -> Job | None:
        """The job of a run, as the scheduler says now; one question serves all who want to know at the same time."""
        wanted = time.monotonic()
        with self._asking:
            if self._asked_anew < wanted:
                now = time.monotonic()
                self._ask(age=0.0)
                self._asked_anew = now
        return (self._jobs or {}).get(run_id)

    def submitted(self) -> None:
        """There is a new job: what was known is too old for it."""
        self._pace, self._due = SHORTEST_PACE, time.monotonic() + SHORTEST_PACE
        self._jobs = self._jobs or {}

    def cancel(self, job_id: str, name: str, gently: bool = False) -> None:
        """Have the scheduler end the job of this id and, unless "", of this name; `gently` tells its script only."""
        command = self.dialect.cancel_command(job_id, name, gently)
        self._machine.ask("commands.run", argv=command, timeout=CANCEL_SECONDS)

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        """Whether a run's head lives or may still begin; where it is gone without a word, the events get to say so."""
        if find_event(events, "released"):
            return GONE
        self._refresh()
        job = (self._jobs or {}).get(paths.run_id)
        if not self.answers:
            return Liveness(alive=True, waiting=self._silence)
        if job is not None and goes_on(self.dialect, job, events):
            self._since.pop(paths.run_id, None)
            if job.group == "running" and self._is_killed(paths, job):
                return self._judged(paths, events, job)
            return Liveness(alive=True, waiting=self._explained(job) if job.group == "waiting" else "")
        since = self._since.setdefault(paths.run_id, time.monotonic())
        if self._taken - since < _patience(job):
            self._due = min(self._due, time.monotonic() + SHORTEST_PACE)
            return Liveness(alive=True)
        return self._judged(paths, events, job)

    def _judged(self, paths: RunPaths, events: Sequence[Event], job: Job | None) -> Liveness:
        left = self._machine.ask("scheduler.words", root=str(paths.root), run_id=paths.run_id)
        accounted = {run_of(one.name): one for one in self._accounted()} if job is None else {}
        known = accounted.get(paths.run_id)
        absent = time.monotonic() - self._since.get(paths.run_id, time.monotonic())
        if known is not None and known.group != "ended" and absent < DISAGREEING_SECONDS:
            return Liveness(alive=True)
        cause, message = end_of_job(self.dialect, job, known, left, events)
        if job is not None and job.group != "ended":
            self.cancel(job.job_id, job.name)
        elif job is None and left["job"] and left["name"]:  # what the queue does not name may run all the same
            self.cancel(left["job"], left["name"])
        if job is None and known is None and not left["submitted"]:  # nor will it be
            self._machine.ask("scheduler.cancel", root=str(paths.root), run_id=paths.run_id)
        self._machine.ask("scheduler.close", root=str(paths.root), run_id=paths.run_id, cause=cause, message=message)
        return Liveness(alive=False, cause=cause, message=message)

    def _is_killed(self, paths: RunPaths, job: Job) -> bool:
        """Whether nothing of a job runs any more that counts as running: the scheduler's own was killed as well.

        Its program gives no sign of life, and its node knows no process of it; that is asked only then.
        """
        now = time.monotonic()
        sign, since, looked = self._signs.get(paths.run_id, (None, now, now - SIGN_PACE))
        if now - looked < SIGN_PACE:
            return False
        found = self._machine.ask("scheduler.sign_of_life", root=str(paths.root), run_id=paths.run_id)
        since = since if found == sign else now
        self._signs[paths.run_id] = found, since, now
        if found is None:
            return False
        if self._steps_are_seen is None:  # by a job that lives: not every site lets them be seen
            self._steps_are_seen = self._has_processes(job) is True
        return now - since > SILENT_SECONDS and self._steps_are_seen and self._has_processes(job) is False

    def _has_processes(self, job: Job) -> bool | None:
        """Whether a job's node knows processes of its script; None where it does not say."""
        if self.dialect.processes_command is None:
            return None
        with contextlib.suppress(SlurmRayFlowError):
            command = self.dialect.processes_command(job.job_id)
            done = self._machine.ask("commands.run", argv=command, timeout=CANCEL_SECONDS)
            return None if done["exit_code"] or done["stderr"].strip() else bool(done["stdout"].strip())
        return None

    @property
    def _silence(self) -> str:
        return f"{self.dialect.name} on {self._machine.label} does not answer ({self._trouble})"

    # ---- accounting

    def accounted(self, name: str) -> str | None:
        """The id of the job of this name, if accounting knows one; where there is none, nobody knows."""
        found = self._accounted(name)
        return found[-1].job_id if found else None

    def _accounted(self, *names: str) -> list[Job]:
        if self.dialect.accounting_command is None:
            return []
        command = self.dialect.accounting_command(self._user, names)
        answer = self._machine.ask("scheduler.query", root=self._root, name="accounting", command=command, age=0.0)
        return [] if answer["error"] else list(self.dialect.parse_accounting(answer["text"]).values())

    # ---- questions

    @property
    def _root(self) -> str:
        return str(self._machine.root_folder)

    def _refresh(self) -> None:
        """Ask if it is time, beside whoever waits for other news; only the very first answer is waited for."""
        while self._jobs is None:
            if self._asking.acquire(timeout=1.0):
                try:
                    if self._jobs is None:
                        self._ask(age=SHORTEST_PACE)
                finally:
                    self._asking.release()
            interrupted()
        if time.monotonic() >= self._due and self._asking.acquire(blocking=False):
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(self._ask_beside,), daemon=True).start()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _ask_beside(self) -> None:
        """What ends the wait of the run that happens to ask must not end another one's."""
        try:
            with interruptible(lambda: None):
                self._ask(age=SHORTEST_PACE)
        except SlurmRayFlowError as error:
            self._failed = error
        finally:
            self._asking.release()

    def _ask(self, age: float) -> None:
        command, began = self.dialect.queue_command(self._user), time.monotonic()
        answer = self._machine.ask("scheduler.query", root=self._root, name="queue", command=command, age=age)
        self.answers, self._trouble, self._clock = not answer["error"], answer["error"], answer["time"]
        if self.answers:
            listed = self.dialect.parse_queue(answer["text"]).values()
            jobs = {run_of(job.name): job for job in listed if job.cause != "rejected"}
            changed = self._jobs is None or _states(jobs) != _states(self._jobs)
            self._pace = SHORTEST_PACE if changed else min(1.5 * self._pace, LONGEST_PACE)
            self._jobs, self._taken = jobs, began
        elif self._jobs is None:
            self._jobs = {}
        self._due = time.monotonic() + self._pace

    def _explained(self, job: Job) -> str:
        return self.dialect.explain(job, self._pending(job.partition).values(), self._clock)

    def _pending(self, partition: str) -> Mapping[str, Job]:
        if self.dialect.pending_command is None:
            return {}
        asked, known = self._ahead.get(partition, (float("-inf"), {}))
        if time.monotonic() - asked < PENDING_PACE:
            return known
        self._ahead[partition] = time.monotonic(), known
        command, name = self.dialect.pending_command(partition), f"pending-{partition.replace('/', '-')}"
        try:
            answer = self._machine.ask("scheduler.query", root=self._root, name=name, command=command, age=PENDING_PACE)
        except SlurmRayFlowError:
            return known
        self._ahead[partition] = time.monotonic(), self.dialect.parse_queue(answer["text"])
        return self._ahead[partition][1]


def _patience(job: Job | None) -> float:
    """For how long no word of a job's end may come before it is judged."""
    if job is None or job.group == "waiting":
        return ABSENT_SECONDS
    return LAST_WORDS_SECONDS if job.nodelist else 0.0  # one that never had a node has nothing to say


def _states(jobs: dict[str, Job]) -> dict[str, str]:
    return {run_id: job.state for run_id, job in jobs.items()}
