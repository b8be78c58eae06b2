"""Values of flow runs, for whoever asks Prefect for them later: `flow_run.state.result()`."""

from __future__ import annotations

import json
from typing import Any

from prefect.runtime import flow_run
from prefect.serializers import Serializer

from slurm_ray_flow.core.errors import ResultError
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.parameters import is_small_plain


class RunValue(Serializer):
    """Keeps small plain values as JSON, and of all others the run whose outcome holds them."""

    type: str = "slurm-ray-flow"

    def dumps(self, obj: Any) -> bytes:
        """The value as JSON, or the run's id."""
        if is_small_plain(obj):
            return json.dumps({"value": obj}).encode()
        return json.dumps({"run": str(flow_run.get_id() or "")}).encode()

    def loads(self, blob: bytes) -> Any:
        """The value.

        Raises:
            ResultError: the run had none.
        """
        kept = json.loads(blob)
        if "value" in kept:
            return kept["value"]
        if not kept["run"]:
            raise ResultError("this value was kept outside of a run", advice="start the function again")
        return Handle.attach(kept["run"]).result(0)
