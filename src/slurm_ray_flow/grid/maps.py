"""The maps of this home in the engine: each has a row beside those of campaigns, and calls that outlive its process.

The process that called `map` begins the calls. Where it is gone, a process that the engine starts begins those that
had not begun (`interface/take_over.py`). What has begun and ended, the map's record says (`blocks/map_record.py`).
"""

from __future__ import annotations

import dataclasses
import getpass
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from slurm_ray_flow.blocks import map_record, processes
from slurm_ray_flow.blocks.map_record import CANCELLED, DONE, FAILED, MapRecord, find_map
from slurm_ray_flow.blocks.processes import Process, alive, identify
from slurm_ray_flow.core.clean_up import DAY, KEPT_DAYS
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError, UnknownCampaignError, UnknownRunError
from slurm_ray_flow.core.grid.model import MAP, Campaign, CampaignState, ClusterShare, ItemRow
from slurm_ray_flow.grid.store import Store

LOOK_SECONDS = 2.0
"""Seconds between two looks at the maps."""
MOST_STARTS, LONGEST_PAUSE = 5, 60.0
"""So often a process is started for a map without anything that begins or ends by it, and the longest pause between."""
STATES = {DONE: "succeeded", FAILED: "failed", CANCELLED: "cancelled"}
log = logging.getLogger("slurm_ray_flow.grid")


@dataclasses.dataclass
class _Starts:
    """The processes that were started for a map: how many, what the record said then, and the last one."""

    count: int = 0
    noted: int = -1
    next_at: float = 0.0
    process: Process | None = None


class Maps(threading.Thread):
    """Follows the maps of this home.

    Args:
        store: the grid's tables.
        stopped: ends the thread.
        user: gives the user whose maps they are.
    """

    def __init__(self, store: Store, stopped: threading.Event, user: Callable[[], str] = getpass.getuser) -> None:
        super().__init__(name="srf-grid-maps", daemon=True)
        self._store, self._stopped, self._user = store, stopped, user
        self._starts: dict[str, _Starts] = {}
        self._shown: dict[str, Campaign] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Look at the maps until the engine stops."""
        next_clean_up = 0.0
        while True:
            try:
                self._step()
                if time.monotonic() >= next_clean_up:
                    next_clean_up = time.monotonic() + DAY
                    self._forget_old()
            except Exception:
                log.exception("maps can't be looked at for now")
            if self._stopped.wait(LOOK_SECONDS):
                return

    def _step(self) -> None:
        rows = self._rows([CampaignState.ACTIVE, CampaignState.CANCELLED])
        goes_on = {row.id: row for row in rows if row.ended_at is None}
        for map_id in {*goes_on, *map_record.kept_maps()}:
            try:
                self.look(map_id)
            except UnknownRunError:  # a clean-up has removed its record
                map_record.drop_kept(map_id)
                if map_id in goes_on:
                    state, reason = CampaignState.FAILED, "its record is gone"
                    row = dataclasses.replace(goes_on[map_id], state=state, reason=reason, ended_at=time.time())
                    self._store.show_map(row)
            except (SlurmRayFlowError, OSError):
                log.exception("map %s can't be looked at for now", map_id[:8])

    def _rows(self, states: list[CampaignState] | None = None) -> list[Campaign]:
        """The rows of this user's maps, all or those in some states."""
        user = self._user()
        return [one for one in self._store.campaigns(states) if one.kind == MAP and one.user == user]

    def _forget_old(self) -> None:
        """Remove the rows of maps whose records a clean-up has removed, or will."""
        for row in self._rows():
            if row.ended_at is not None and row.ended_at < time.time() - KEPT_DAYS * DAY:
                self._store.delete_campaign(row.id)

    def look(self, map_id: str) -> None:
        """Have a map's row say what the map is, and a process begin its calls where its own is gone.

        Raises:
            UnknownRunError: there is no such map.
        """
        with self._lock:
            if self._stopped.is_set():
                return
            record = find_map(map_id)
            row = _row(record, self._user())
            if self._shown.get(row.id) != row:
                self._store.show_map(row)
                self._shown[row.id] = row
            if row.ended_at is not None:
                map_record.drop_kept(record.map_id)
                self._starts.pop(record.map_id, None)
                self._shown.pop(record.map_id, None)
            elif not record.alive:
                self._take_over(record)

    def stop(self) -> None:
        """End the processes that begin calls; runs that have begun go on."""
        with self._lock:
            for starts in self._starts.values():
                if starts.process is not None:
                    processes.end(starts.process, patience=map_record.END_SECONDS)

    def cancel(self, map_id: str) -> None:
        """Have no more calls of a map begin, and those that run end."""
        map_record.note_cancelled(map_id)
        self.look(map_id)

    def purge(self, campaign: Campaign) -> None:
        """Remove a map that has ended.

        Raises:
            GridError: it goes on.
        """
        if campaign.ended_at is None:
            what = f"map {campaign.id[:8]} is {campaign.state.value}, and can't be removed"
            raise GridError(what, advice=f"cancel it first: `srf grid cancel {campaign.id[:8]}`")
        map_record.drop_kept(campaign.id)
        map_record.remove_record(campaign.id)
        self._store.delete_campaign(campaign.id)

    def _take_over(self, record: MapRecord) -> None:
        """Start a process for a map, again after a pause where the last one has ended without having done anything."""
        starts = self._starts.setdefault(record.map_id, _Starts())
        noted = len(record.runs) + len(record.ends) + len(record.failures)
        if noted != starts.noted:
            starts.noted, starts.count, starts.next_at = noted, 0, 0.0
        if (starts.process is not None and alive(starts.process)) or time.monotonic() < starts.next_at:
            return
        problem = f"{starts.count} processes ended before it had begun"
        try:
            if starts.count < MOST_STARTS:
                environ = processes.with_cluster_passwords("PREFECT__")
                starts.process = identify(map_record.start_process(record.map_id, environ))
        except SlurmRayFlowError as error:
            log.warning("no process can begin map %s: %s", record.map_id[:8], error)
            problem = str(error)
        starts.count += 1
        starts.next_at = time.monotonic() + min(2.0**starts.count, LONGEST_PAUSE)
        if starts.count > MOST_STARTS:
            where = str(map_record.take_over_log(record.map_id))
            for index in record.left():
                map_record.note_failed(record.map_id, index, GridError(f"{problem}; see {where}"))


def only_campaign(campaign: Campaign) -> Campaign:
    """A campaign that is no map.

    Raises:
        GridError: it is a map.
    """
    if campaign.kind != MAP:
        return campaign
    what = f"{campaign.id[:8]} is a map, each call of which is a run of its own: `srf grid` lists and cancels it alone"
    raise GridError(what, advice=f"write Handles.attach({campaign.id[:8]!r}), or see `srf runs`")


def calls_of(campaign: Campaign, first: int, count: int) -> list[dict[str, Any]]:
    """The calls of a map as `Store.items` gives the items of a campaign, with their runs.

    Raises:
        UnknownCampaignError: a clean-up has removed the map's record.
    """
    try:
        record = find_map(campaign.id)
    except UnknownRunError as error:
        raise UnknownCampaignError(f"the calls of map {campaign.id[:8]} are not known any more") from error
    rows = []
    for index in range(max(first, 0), min(first + count, len(record.values))):
        state = STATES.get(record.ended(index)) or ("running" if record.began(index) else "waiting")
        row = ItemRow(index, state, attempts=int(index in record.runs), error=record.failures.get(index, ""))
        rows.append({**dataclasses.asdict(row), "run": record.runs.get(index, "")})
    return rows


def _row(record: MapRecord, user: str) -> Campaign:
    """The row of a map."""
    total = len(record.values)
    ends = [record.ended(index) for index in range(total)]
    succeeded, failed, cancelled = map(ends.count, (DONE, FAILED, CANCELLED))
    is_lost = not record.alive and not record.is_kept and "" in ends
    is_over = "" not in ends or is_lost
    state, reason = CampaignState.ACTIVE, ""
    if record.is_cancelled:
        state, reason = CampaignState.CANCELLED, "a person cancelled it"
    elif is_lost:
        state, reason = CampaignState.FAILED, "the process that began its calls is gone"
    elif is_over:
        state = CampaignState.FAILED if failed or cancelled else CampaignState.SUCCEEDED
        reason = f"{failed} of {total} calls failed" if failed else ""
    return Campaign(
        id=record.map_id, name=record.function, user=user, function=record.function,
        options={"kind": MAP}, state=state, reason=reason, created=record.created,
        ended_at=map_record.change_time(record.map_id) if is_over else None, total=total,
        next_number=total - len(record.left()), succeeded=succeeded, failed=failed, cancelled=cancelled,
        clusters=(ClusterShare(record.cluster),),
    )  # fmt: skip
