"""What Prefect shows of a campaign: the state of its flow run, how far it is, and a page about it. Pure."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from slurm_ray_flow.core.artifacts import ArtifactContent, cell, short_name
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, GridEvent, Pilot
from slurm_ray_flow.core.lock import clock
from slurm_ray_flow.core.quantities import format_duration

TAG = "slurm-ray-flow-campaign"
"""The tag of the flow runs of campaigns. They do not have that of launches (`core/sweep.py` `TAG`), by which the
server's automation ends runs without heartbeats: a campaign goes on while its engine is down for a while."""
OURS = "the campaign "
"""So begins the message of each state that the engine sets; a state with another message is a person's."""
RUNNING, PAUSED, CANCELLING, CANCELLED = "RUNNING", "PAUSED", "CANCELLING", "CANCELLED"
_FAILURES = ("error", "crashed", "time_limit")
"""The codes of events that are failures of items."""
MOST_ROWS = 50
"""So many failures, events and pilots are listed."""


@dataclasses.dataclass(frozen=True)
class FlowState:
    """The state of a campaign's flow run; `type` as Prefect writes it."""

    type: str
    message: str

    @property
    def final(self) -> bool:
        """Whether nothing follows it."""
        return self.type not in {RUNNING, PAUSED, CANCELLING}


def name_of(campaign: Campaign) -> str:
    """The name of a campaign's flow run."""
    return f"campaign of {campaign.name}"


def tag_of(campaign: Campaign) -> str:
    """The tag that a campaign's flow run and those of its pilots have."""
    return f"campaign:{campaign.id[:8]}"


def tags_of_campaign(campaign: Campaign) -> list[str]:
    """The tags of a campaign's flow run."""
    clusters = (short_name(share.cluster) for share in campaign.clusters)
    return sorted({TAG, tag_of(campaign), campaign.function, *clusters})


def began(campaign: Campaign) -> str:
    """The message of a campaign that runs."""
    clusters = ", ".join(share.cluster for share in campaign.clusters)
    return f"{OURS}has {campaign.total} items on {clusters}"


def flow_state(campaign: Campaign, live_pilots: int) -> FlowState:
    """The state that the flow run of a campaign has to have."""
    reason = f": {campaign.reason}" if campaign.reason else ""
    match campaign.state:
        case CampaignState.ACTIVE:
            return FlowState(RUNNING, began(campaign))
        case CampaignState.PAUSED:
            return FlowState(PAUSED, f"{OURS}is paused{reason}; `srf grid resume {campaign.id[:8]}` goes on with it")
        case CampaignState.CANCELLED if live_pilots or campaign.ended < campaign.total:
            return FlowState(CANCELLING, f"{OURS}is cancelled{reason}; {live_pilots} pilots are to end")
        case CampaignState.CANCELLED:
            return FlowState(CANCELLED, f"{OURS}was cancelled{reason}; {counts(campaign)}")
        case CampaignState.SUCCEEDED:
            return FlowState("COMPLETED", f"{OURS}has ended: all {campaign.total} items succeeded")
        case CampaignState.FAILED:
            return FlowState("FAILED", f"{OURS}has ended{reason}")


def counts(campaign: Campaign) -> str:
    """How many items have ended, and how, in a line."""
    parts = [f"{campaign.ended} of {campaign.total} items have ended"]
    parts += [f"{campaign.failed} failed"] if campaign.failed else []
    parts += [f"{campaign.cancelled} cancelled"] if campaign.cancelled else []
    return ", ".join(parts)


def progress(campaign: Campaign) -> ArtifactContent:
    """How far a campaign is, in percent of its items."""
    percent = 100.0 * campaign.ended / campaign.total if campaign.total else 100.0
    return ArtifactContent("campaign-progress", "progress", round(percent, 1), counts(campaign))


@dataclasses.dataclass(frozen=True)
class PilotSize:
    """What a pilot has of its cluster."""

    cores: int
    gpus: int = 0


def page(
    campaign: Campaign,
    pilots: Sequence[Pilot],
    events: Sequence[GridEvent],
    sizes: Mapping[str, PilotSize],
    address: Callable[[str], str],
    now: float,
) -> ArtifactContent:
    """All that is known of a campaign, in markdown.

    Args:
        pilots, events: those of the campaign, also those that are over.
        sizes: what a pilot has on each cluster; a core for each worker where a cluster is not in it.
        address: gives the address of a run's page, "" for none.
        now: seconds since 1970.
    """
    until = now if campaign.ended_at is None else campaign.ended_at
    costs = {pilot.id: _Cost.of(pilot, sizes, until) for pilot in pilots}
    failures = [event for event in events if event.code in _FAILURES]
    others = [event for event in events if event.code not in _FAILURES]
    parts = [
        _summary(campaign, pilots, sum(costs.values(), _Cost()), until),
        _section("Failures by cause", _failures(failures)),
        _section("Where items ran", _clusters(campaign, pilots, costs)),
        _section("Pilots", _pilots(pilots, costs, address)),
        _section("What else happened", _others(others, now)),
    ]
    return ArtifactContent("campaign-of", "markdown", "\n".join(filter(None, parts)), counts(campaign))


@dataclasses.dataclass(frozen=True)
class _Cost:
    """What pilots have cost: the seconds that they ran, and the hours of cores and GPUs that they held."""

    seconds: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0

    @classmethod
    def of(cls, pilot: Pilot, sizes: Mapping[str, PilotSize], until: float) -> _Cost:
        if pilot.started_at is None:
            return cls()
        seconds = max((until if pilot.ended_at is None else pilot.ended_at) - pilot.started_at, 0.0)
        size = sizes.get(pilot.cluster, PilotSize(pilot.workers))
        return cls(seconds, size.cores * seconds / 3600, size.gpus * seconds / 3600)

    def __add__(self, other: _Cost) -> _Cost:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return _Cost(*(one + another for one, another in pairs))

    @property
    def text(self) -> str:
        return ", ".join(
            [_hours(self.core_hours, "core"), *([_hours(self.gpu_hours, "GPU")] if self.gpu_hours else [])]
        )


def _hours(hours: float, what: str) -> str:
    return f"{hours:.2f} {what}-hours" if hours >= 0.1 else f"{3600 * hours:.0f} {what}-seconds"


def _summary(campaign: Campaign, pilots: Iterable[Pilot], cost: _Cost, until: float) -> str:
    starts = [pilot.started_at for pilot in pilots if pilot.started_at is not None]
    seconds = until - min(starts) if starts else 0.0
    ran = campaign.succeeded + campaign.failed
    rows = [
        ("campaign", f"`{campaign.id}`"),
        ("state", cell(f"{campaign.state.value}: {campaign.reason}" if campaign.reason else campaign.state.value)),
        ("items", f"{campaign.total}: {_item_counts(campaign)}"),
        ("throughput", _rate(ran, seconds)),
        ("time", f"{format_duration(seconds)} from the first pilot's beginning on" if starts else "no pilot has begun"),
        ("cost", cost.text),
    ]
    return _table(("", ""), rows)


def _item_counts(campaign: Campaign) -> str:
    named = {
        "succeeded": campaign.succeeded,
        "failed": campaign.failed,
        "cancelled": campaign.cancelled,
        "in hand": campaign.leased,
        "waiting": campaign.unleased,
    }
    if campaign.state.final:
        named = {name: named[name] for name in ("succeeded", "failed", "cancelled")}
    return ", ".join(f"{count} {name}" for name, count in named.items() if count or name == "succeeded")


def _rate(items: int, seconds: float) -> str:
    if not items or seconds <= 0:
        return "not known yet"
    a_second = items / seconds
    if a_second >= 1:
        return f"{a_second:.3g} items a second"
    return f"{60 * a_second:.3g} items a minute" if 60 * a_second >= 1 else f"{3600 * a_second:.3g} items an hour"


def _failures(events: Iterable[GridEvent]) -> str:
    groups: dict[tuple[str, str], list[GridEvent]] = collections.defaultdict(list)
    for event in events:
        groups[event.code, event.group].append(event)
    rows = [
        (
            str(sum(event.count for event in members)),
            "a worker died" if code == "crashed" else cell(group),
            cell(max(members, key=lambda event: event.last_at).message[:300]),
            cell(", ".join(sorted({event.cluster for event in members}))),
        )
        for (code, group), members in groups.items()
    ]
    rows.sort(key=lambda row: -int(row[0]))
    return _table(("attempts", "cause", "the last one", "clusters"), rows)


def _others(events: Iterable[GridEvent], now: float) -> str:
    rows = [
        (clock(event.last_at, now), event.level, cell(event.cluster), str(event.count), cell(event.message[:300]))
        for event in events
    ]
    return _table(("last", "level", "cluster", "times", "what"), rows)


def _clusters(campaign: Campaign, pilots: Sequence[Pilot], costs: Mapping[int, _Cost]) -> str:
    rows = []
    for share in campaign.clusters:
        here = [pilot for pilot in pilots if pilot.cluster == share.cluster]
        state = share.state if share.state == "open" else f"{share.state}: {share.reason}"
        rows.append((cell(share.cluster), cell(state), str(len(here)), *_work(here, costs)))
    return _table(("cluster", "state", "pilots", "succeeded", "failed attempts", "cost"), rows)


def _work(pilots: Collection[Pilot], costs: Mapping[int, _Cost]) -> tuple[str, str, str]:
    succeeded, failed = sum(pilot.succeeded for pilot in pilots), sum(pilot.failed for pilot in pilots)
    return str(succeeded), str(failed), sum((costs[pilot.id] for pilot in pilots), _Cost()).text


def _pilots(pilots: Iterable[Pilot], costs: Mapping[int, _Cost], address: Callable[[str], str]) -> str:
    rows = []
    for pilot in sorted(pilots, key=lambda pilot: -pilot.id):  # the newest ones may still run
        state = f"{pilot.state}: {pilot.cause}" if pilot.cause else pilot.state
        seconds = f"{costs[pilot.id].seconds:.0f}"
        link = _linked(pilot.run_id, address(pilot.run_id) if pilot.run_id else "")
        rows.append((link, cell(pilot.cluster), cell(state), seconds, *_work([pilot], costs)))
    return _table(("run", "cluster", "state", "seconds", "succeeded", "failed attempts", "cost"), rows)


def _linked(run_id: str, url: str) -> str:
    short = run_id[:8]
    return f"[{short}]({url})" if url else short


def _section(title: str, table: str) -> str:
    return f"### {title}\n\n{table}" if table else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in markdown; "" without rows."""
    if not rows:
        return ""
    more = [f"\nand {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
    lines = [head, tuple("---" for _ in head), *rows[:MOST_ROWS]]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), *more, ""])
