"""Calls that a pilot carries out while a caller waits for each: an open campaign, in which each call is an item.

One thread adds the calls, all that have come meanwhile at a time, and reads their outcomes.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from slurm_ray_flow.core.errors import Cancelled, GridError, Rejected, SlurmRayFlowError, UnknownCampaignError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.interface.campaign_outcomes import OutcomeReader
from slurm_ray_flow.interface.campaign_start import (
    CampaignOptions,
    OnCluster,
    add_arguments,
    name_of_cluster,
    start_campaign,
)
from slurm_ray_flow.interface.campaign_values import Value
from slurm_ray_flow.interface.launch_flow import LaunchFlow
from slurm_ray_flow.interface.settings import options_of
from slurm_ray_flow.remote.shared.pickling import resolve_function

LOOK_SECONDS = 0.05
"""Seconds between two looks for new calls and new outcomes."""
ADD_SECONDS = 60.0
"""How long another process that adds calls to the same campaign is waited for."""


class _BodyRunner:
    """Runs calls in a pilot. At home it stands for a function of the user's, whose files and packages go along."""

    __signature__ = inspect.Signature([inspect.Parameter("call", inspect.Parameter.POSITIONAL_ONLY)])

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function

    def __call__(self, call: bytes) -> Any:
        raise NotImplementedError("it runs in a pilot alone")

    def reduce_for_run(self) -> tuple[Any, ...]:
        """The form for a run."""
        return resolve_function, ("slurm_ray_flow.remote.driver.task_call", "run")


class CallsInPilots:
    """The calls of one flow run, carried out on a cluster.

    Args:
        source: a function of the user's: its files and packages are what the pilots have.
        name: for people.
        options: options of the decorator.
        max_pilots: the most pilots.
        workers: how many calls a pilot carries out at a time; None as its CPUs and GPUs are.
        tell: gets a sentence about what keeps all calls waiting.
    """

    def __init__(
        self,
        source: Callable[..., Any],
        name: str,
        options: Options,
        max_pilots: int,
        workers: int | None,
        tell: Callable[[str], None],
    ) -> None:
        self._flow: LaunchFlow[..., Any] = LaunchFlow(_BodyRunner(source), options)
        self._flow.options = options_of(source, options)
        self._wanted = CampaignOptions(name=name, max_pilots=max_pilots, is_open=True)
        self._on_cluster, self._tell, self._told = OnCluster(workers=workers), tell, ""
        self._client, self.campaign_id = GridClient(), ""
        self._new: list[tuple[bytes, Future[Frame]]] = []
        self._waiting: dict[int, Future[Frame]] = {}
        self._reader: OutcomeReader | None = None
        self._held: int | None = None
        self._lock, self._woken = threading.Lock(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="srf-task-calls", daemon=True)
        self._thread.start()

    def submit(self, call: bytes) -> Future[Frame]:
        """Have a call carried out; gives its outcome later. An error of the future is one of the way there."""
        future: Future[Frame] = Future()
        with self._lock:
            if self._error is not None:
                future.set_exception(self._error)
            else:
                self._new.append((call, future))
        self._woken.set()
        return future

    def end(self, cancel: bool, keep_open: bool = False) -> None:
        """Take no more calls.

        Args:
            cancel: end those that are under way; else none is.
            keep_open: leave the pilots to a next flow run, until they have idled for long enough.
        """
        why = Cancelled("the flow run has ended before the task", advice="wait for its tasks in the flow")
        self._fail(why, finally_=True)
        self._thread.join()
        if self.campaign_id and (cancel or not keep_open):
            with contextlib.suppress(SlurmRayFlowError):  # one that has ended needs no end
                self._client.change(self.campaign_id, "cancel" if cancel else "close")
        self._let_go()

    def _fail(self, error: BaseException, *, finally_: bool = False) -> None:
        with self._lock:
            if finally_:
                self._error = error
            failed = [future for _, future in self._new] + list(self._waiting.values())
            self._new, self._waiting = [], {}
        self._woken.set()
        for future in failed:
            future.set_exception(error)

    def _work(self) -> None:
        while self._error is None:
            try:
                self._add()
                self._read()
            except BaseException as error:  # whoever waits gets it
                self._fail(error)
            if not self._waiting:
                self._woken.wait()
            self._woken.clear()
            time.sleep(LOOK_SECONDS)

    def log(self, number: int) -> str:
        """What an item printed, as far as it can be had."""
        with contextlib.suppress(SlurmRayFlowError, OSError):
            return str(self._client.log(self.campaign_id, number)["text"])
        return ""

    # ---- calls on their way

    def _add(self) -> None:
        with self._lock:
            new = list(self._new)
        if not new:
            return
        first = self._place([call for call, _ in new])
        with self._lock:
            if self._error is None:
                self._waiting.update((first + place, future) for place, (_, future) in enumerate(new))
                del self._new[: len(new)]

    def _place(self, calls: Sequence[bytes]) -> int:
        """Add calls to the campaign, or to a new one where there is none that takes them; gives the first number."""
        deadline = time.monotonic() + ADD_SECONDS
        while True:
            if not self.campaign_id and (wanted := uuid.uuid4().hex) == self._begin(calls, wanted):
                return 0
            try:
                values = [Value("a task", "", (call,), {}) for call in calls]
                return add_arguments(self.campaign_id, self._client, values)[0]
            except UnknownCampaignError:
                self._leave()
            except GridError:
                if self._client.campaign(self.campaign_id).state.final:
                    self._leave()
                elif time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)

    def _begin(self, calls: Sequence[bytes], wanted: str) -> str:
        cluster = self._flow.options.cluster
        name = name_of_cluster(cluster)
        found, self._client = start_campaign(
            self._flow, calls, [cluster], self._wanted, {}, each={name: self._on_cluster}, campaign_id=wanted,
            reuse=self._hold_one_like,
        )  # fmt: skip
        self.campaign_id, self._reader = found, OutcomeReader(found)
        return found

    def _hold_one_like(self, campaign: Campaign) -> str:
        """Hold an open campaign whose pilots run what those of a new one would run, and no other flow run has."""
        self._let_go()
        for other in self._client.campaigns():
            with contextlib.suppress(OSError):  # its folder is gone
                is_like = other.is_open and other.state is CampaignState.ACTIVE and _runs(other) == _runs(campaign)
                if is_like and (held := CampaignFolder(other.id).hold()) is not None:
                    self._held = held
                    return other.id
        self._held = CampaignFolder(campaign.id).hold()
        return ""

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
        self._held, self.campaign_id = None, ""

    def _leave(self) -> None:
        """Leave a campaign that has ended. What it still owes has been read, or will not come."""
        self._read()
        self._let_go()

    # ---- outcomes

    def _read(self) -> None:
        if not self._waiting or self._reader is None:
            return
        status = self._client.campaign(self.campaign_id)
        for _, frame in self._reader.new_frames(status):
            with self._lock:
                future = self._waiting.pop(frame.number, None)
            if future is not None:
                future.set_result(frame)
        if self._waiting and status.state is CampaignState.PAUSED:
            self._see_pause(status)
        if self._waiting and status.state.final:
            what = f"the campaign of the tasks has ended without this one: {status.state.value}"
            raise Cancelled(what, where=f"campaign {status.id[:8]}", advice=status.reason)

    def _see_pause(self, status: Campaign) -> None:
        """A campaign that the engine has paused will not go on by itself; a person may go on with one of theirs."""
        if any(share.state == "open" for share in status.clusters):
            if self._told != status.reason:
                self._tell(f"campaign {status.id[:8]} is paused: `srf grid resume {status.id[:8]}` goes on with it")
            self._told = status.reason
            return
        self._client.change(status.id, "cancel")
        what = f"no pilot can run the task: {status.reason}"
        raise Rejected(what, where=f"campaign {status.id[:8]}", advice=f"`srf grid events {status.id[:8]}` has more")


def _runs(campaign: Campaign) -> list[Any]:
    """What the pilots of a campaign run, and how many they may be."""
    launches = [CampaignFolder(campaign.id).launch_of(share.cluster) for share in campaign.clusters]
    shares = [(share.cluster, share.options) for share in campaign.clusters]
    return [campaign.name, campaign.function_digest, campaign.arguments_digest, campaign.max_pilots, shares, launches]
