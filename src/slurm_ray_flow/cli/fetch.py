"""`srf fetch`: files that a run's function has written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from slurm_ray_flow.cli.names import A_RUN
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_table, print_text, tell
from slurm_ray_flow.core.outputs import printable_name


def fetch(
    run: Annotated[str, A_RUN],
    *patterns: str,
    to: Path | None = None,
    overwrite: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Bring files home that a run's function has written; without a pattern, list them.

    Examples:
        srf fetch 3f2a

        srf fetch 3f2a "results/*.csv" model.pt

        srf fetch 3f2a log --to /tmp/log

    Args:
        run: The run's id, or the start of it.
        patterns: Paths, folders and globs, from the function's working directory.
        to: The folder to bring them to; by default where the run's outputs go, beside the script.
        overwrite: Also over files that were changed here since the launch.
    """
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.blocks.clusters import cluster_of
    from slurm_ray_flow.core.quantities import format_memory
    from slurm_ray_flow.tasks.run_files import bring, files_of

    record = store.find_record(run)
    cluster = cluster_of(record)
    if patterns:
        brought = bring(record, cluster, patterns, to, overwrite, tell)
        names = [str(path) for path in brought.paths]
        if json:
            print_json({"run_id": record.run_id, "files": names, "left": brought.left})
        else:
            print_text("\n".join(map(printable_name, names)) or "No files.")
        return
    _, files = files_of(record, cluster, tell)
    if json:
        print_json([{"path": file.path, "bytes": file.size, "changed": file.changed.isoformat()} for file in files])
    elif files:
        rows = [
            [printable_name(file.path), format_memory(file.size), f"{file.changed:%Y-%m-%d %H:%M:%S}"] for file in files
        ]
        print_table(["FILE", "SIZE", "CHANGED"], rows)
    else:
        print_text("The run has written no files in its working directory.")
