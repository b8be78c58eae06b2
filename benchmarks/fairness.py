"""How fair a cluster's shares are: a simulated week of 50 users on 40 workers, by the very ledger that the engine has.

Each bundle is charged at its lease, and corrected at its end. At each minute at which all workers were busy for a
window of ten rounds of bundles, Jain's index of what the users got by their weights is taken over those that had work
throughout. A newcomer's wait counts from the time at which its pilot could run.

    python -m benchmarks.fairness [--days 7] [--users 50] [--workers 40]
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import heapq
import random
import sys
import time

from slurm_ray_flow.core.grid.fairness import Claim, Ledger, jain

BUNDLE_SECONDS = 30.0
ROUNDS = 10
WINDOW_SECONDS = ROUNDS * BUNDLE_SECONDS
MINUTE = 60.0
MILLION = 1_000_000.0
"""Core-seconds of those who never have enough: a million items of a second."""
LEAST_JAIN = 0.95


@dataclasses.dataclass
class Backlog:
    """A campaign in the simulation: its core-seconds that nobody has, and those that are being worked on."""

    claim: Claim
    waiting: float
    leased: float = 0.0


@dataclasses.dataclass(frozen=True)
class Found:
    """What a simulation has shown.

    Attributes:
        jain: Jain's index at each minute of full load.
        waits: the seconds until the first bundle of each user that came anew.
        idle: worker-seconds that were idle while an item waited.
        longest_bundle: in seconds.
        grants: the bundles.
        lost: core-seconds that are neither waiting, nor leased, nor done.
    """

    jain: list[float]
    waits: list[float]
    idle: float
    longest_bundle: float
    grants: int
    lost: float


class Simulation:
    """Users with campaigns on workers, each of which takes the next bundle when it has ended one."""

    def __init__(self, users: int, workers: int, seconds: float, seed: int = 1) -> None:
        self.chance, self.seconds, self.workers = random.Random(seed), seconds, workers
        self.now, self.ledger = 0.0, Ledger()
        self.weights = {f"user-{number}": self.chance.choice([1.0, 1.0, 1.0, 2.0]) for number in range(users)}
        self.backlogs: dict[str, Backlog] = {}
        self.free = workers
        self.since: dict[str, float] = {}
        self.got = {user: collections.deque[tuple[float, float]]() for user in self.weights}
        self.unserved: dict[str, float] = {}
        self.full_since: float | None = None
        self.found = Found([], [], 0.0, 0.0, 0, 0.0)
        self.waits, self.indices = self.found.waits, self.found.jain
        self.idle = self.longest = self.added = self.done = 0.0
        self.grants = 0
        self._agenda: list[tuple[float, int, str, tuple[object, ...]]] = []
        self._count = 0
        for number, user in enumerate(self.weights):
            self._later(0.0 if number < 5 else self._pause(), "arrive", user, MILLION if number < 5 else 0.0)
        self._later(MINUTE, "look")

    def run(self) -> Found:
        """Run it to its end."""
        while self._agenda and self._agenda[0][0] <= self.seconds:
            moment, _, what, arguments = heapq.heappop(self._agenda)
            if self.free and any(backlog.waiting for backlog in self.backlogs.values()):
                self.idle += self.free * (moment - self.now)
            self.now = moment
            getattr(self, f"_{what}")(*arguments)
            self._fill()
        held = sum(backlog.waiting + backlog.leased for backlog in self.backlogs.values())
        lost = abs(self.added - self.done - held)
        return Found(self.indices, self.waits, self.idle, self.longest, self.grants, lost)

    def _pause(self) -> float:
        return self.chance.expovariate(1 / (6 * 3600.0))

    def _later(self, seconds: float, what: str, *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self.now + seconds, self._count, what, arguments))

    def _arrive(self, user: str, work: float) -> None:
        """A campaign begins; another one of the same user follows at some time."""
        self._count += 1
        is_new = not any(backlog.claim.user == user for backlog in self.backlogs.values())
        claim = Claim(user, f"c{self._count}", self.chance.choice([1.0, 3.0]), self.weights[user])
        size = work or min(self.chance.lognormvariate(8.6, 1.5), MILLION)
        self.backlogs[claim.campaign] = Backlog(claim, size)
        self.added += size
        if is_new:
            self.unserved[user] = self.now
        self.since.setdefault(user, self.now)
        self._later(self._pause(), "arrive", user, work)
        self._update()

    def _update(self) -> None:
        self.ledger.update([backlog.claim for backlog in self.backlogs.values()], self.now)

    def _fill(self) -> None:
        while self.free:
            waiting = [backlog.claim for backlog in self.backlogs.values() if backlog.waiting]
            claim = self.ledger.next_of(waiting)
            if claim is None:
                self.full_since = None
                return
            self._lease(self.backlogs[claim.campaign])
        if self.full_since is None:
            self.full_since = self.now

    def _lease(self, backlog: Backlog) -> None:
        user = backlog.claim.user
        estimate = min(backlog.waiting, BUNDLE_SECONDS * self.chance.uniform(0.6, 1.0))
        taken = min(estimate * self.chance.uniform(0.8, 1.2), BUNDLE_SECONDS)
        backlog.waiting -= estimate
        backlog.leased += estimate
        self.ledger.charge(backlog.claim, estimate, self.now)
        self.got[user].append((self.now, estimate))
        self.waits.extend([self.now - self.unserved.pop(user)] if user in self.unserved else [])
        self.free -= 1
        self.grants += 1
        self.longest = max(self.longest, taken)
        if not any(one.waiting for one in self.backlogs.values() if one.claim.user == user):
            del self.since[user]
        self._later(taken, "end", backlog, estimate, taken)

    def _end(self, backlog: Backlog, estimate: float, taken: float) -> None:
        self.free += 1
        backlog.leased -= estimate
        self.done += estimate
        self.ledger.correct(backlog.claim, taken - estimate)
        if backlog.waiting <= 0 and backlog.leased < 1e-6:
            del self.backlogs[backlog.claim.campaign]
            self.ledger.forget(backlog.claim.user, backlog.claim.campaign)
            self._update()

    def _look(self) -> None:
        self._later(MINUTE, "look")
        start = self.now - WINDOW_SECONDS
        services = []
        for user, got in self.got.items():
            while got and got[0][0] < start:
                got.popleft()
            if self.since.get(user, self.now) <= start:
                services.append(sum(cost for _, cost in got) / self.weights[user])
        if self.full_since is not None and self.full_since <= start and len(services) > 1:
            self.indices.append(jain(services))


def main() -> int:
    """Print what a week shows; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--workers", type=int, default=40)
    options = parser.parse_args()
    began = time.perf_counter()
    found = Simulation(options.users, options.workers, options.days * 86_400).run()
    least, wait = min(found.jain, default=1.0), max(found.waits, default=0.0)
    print(f"{options.days:g} days, {options.users} users, {options.workers} workers: {found.grants} bundles")
    print(f"Jain's index  {least:.3f} at least in {len(found.jain)} minutes of full load (at least {LEAST_JAIN})")
    print(f"newcomer      {wait:.1f} s at most, of {len(found.waits)} (at most a bundle: {found.longest_bundle:.1f} s)")
    print(f"idle workers  {found.idle:.1f} s while an item waited (none)")
    print(f"simulated in  {time.perf_counter() - began:.0f} s")
    return int(least < LEAST_JAIN or wait > found.longest_bundle or found.idle > 0 or not found.jain)


if __name__ == "__main__":
    sys.exit(main())
