"""What the start of a campaign would do, found out without doing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from slurm_ray_flow.core.artifacts import asked
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.campaign_start import (
    CampaignFunction,
    CampaignOptions,
    OnCluster,
    argument_values,
    found_clusters,
    pilot_settings,
    store_values,
    told,
)
from slurm_ray_flow.interface.settings import options_on


@dataclasses.dataclass(frozen=True)
class PilotPlan:
    """The pilots of a campaign on one cluster.

    Attributes:
        cluster: its name.
        asks_for: what each pilot asks for, in words; "" for the cluster's defaults.
        workers: the items that each pilot runs at a time.
        max_pilots: the most pilots at a time.
        scripts: which there are of "prologue" and "epilogue".
    """

    cluster: str
    asks_for: str
    workers: int
    max_pilots: int
    scripts: list[str]

    def __str__(self) -> str:
        scripts = f", with {' and '.join(self.scripts)}" if self.scripts else ""
        size = f"{self.workers} item{'s' if self.workers > 1 else ''} at a time"
        asks_for = self.asks_for or "by default"
        return f"on {self.cluster}: at most {self.max_pilots} pilots of {size}, each {asks_for}{scripts}"


@dataclasses.dataclass(frozen=True)
class CampaignPlan:
    """A campaign that could begin."""

    name: str
    items: int
    pilots: list[PilotPlan]

    def __str__(self) -> str:
        return "\n".join([f"Campaign {self.name} would have {self.items} items:", *(f"  {one}" for one in self.pilots)])


def plan_campaign(
    flow: CampaignFunction,
    values: Any,
    clusters: Sequence[Any],
    wanted: CampaignOptions,
    same: dict[str, Any],
    *,
    each: Mapping[str, OnCluster] | None = None,
) -> CampaignPlan:
    """Check all that `start_campaign` would: options, values, and by a question to each cluster what pilots ask for.

    Nothing is stored, sent or built.

    Raises:
        OptionError, PayloadError, TypeError: as for `start_campaign`.
        SlurmRayFlowError: a cluster does not answer, or would refuse the pilots.
    """
    wanted.check()
    count = store_values(_Nowhere(), argument_values(flow, values, wanted.spread, same, wanted.key))
    if not count:
        raise OptionError("a campaign needs values to go over", advice="write f.campaign(range(100))")
    plans = []
    with told():
        for name, cluster in found_clusters(clusters).items():
            here = (each or {}).get(name, OnCluster())
            options = options_on(cluster, flow.options.stating(**here.options).but(cluster=name))
            cluster.check(options)
            workers = int(pilot_settings(cluster, options, here.workers)["workers"])
            most = here.max_pilots or wanted.max_pilots
            plans.append(PilotPlan(name, asked(options), workers, most, sorted(here.scripts)))
    return CampaignPlan(wanted.name or flow.name, count, plans)


class _Nowhere:
    """Takes pickled arguments, and keeps none."""

    def add(self, data: bytes) -> None:
        pass
