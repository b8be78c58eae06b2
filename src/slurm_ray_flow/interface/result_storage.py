"""The place and the form in which Prefect keeps the values of runs."""

from __future__ import annotations

import json
from typing import Any

from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem
from prefect.runtime import flow_run
from prefect.serializers import Serializer
from prefect.settings import get_current_settings

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.core.errors import ResultError
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.parameters import is_small_plain


def store_result_with_run(run_id: str) -> None:
    """Have Prefect keep the value of this flow run beside the run's record, private and removed with it.

    Where the user has said where values go (the flow's `result_storage`, a block, a setting), they go there.
    """
    context, settings = FlowRunContext.get(), get_current_settings().results
    storage = context.result_store.result_storage if context else None
    if not isinstance(storage, LocalFileSystem) or storage._block_document_id is not None:
        return
    if "local_storage_path" in settings.model_fields_set or str(storage.basepath) != str(settings.local_storage_path):
        return
    assert context is not None
    context.result_store.result_storage = LocalFileSystem(basepath=str(private_folder(store.result_folder(run_id))))


class RunValue(Serializer):
    """Keeps a small plain value as JSON, and for any other value the id of the run whose outcome holds it."""

    type: str = "slurm-ray-flow"

    def dumps(self, obj: Any) -> bytes:
        """The value as JSON, or the run's id."""
        if is_small_plain(obj):
            return json.dumps({"value": obj}).encode()
        return json.dumps({"run": str(flow_run.get_id() or "")}).encode()

    def loads(self, blob: bytes) -> Any:
        """The value.

        Raises:
            ResultError: the run had no value.
        """
        stored = json.loads(blob)
        if "value" in stored:
            return stored["value"]
        if not stored["run"]:
            raise ResultError("this value was kept outside of a run", advice="start the function again")
        return Handle.attach(stored["run"]).result(0)
