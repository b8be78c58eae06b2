"""The flow for a function over a list of values, also on a schedule: each value is a run of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from slurm_ray_flow.core.artifacts import artifact_key
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError
from slurm_ray_flow.tasks.campaign import as_table, call_for_each, call_in_pilots, find_function, line_about
from slurm_ray_flow.tasks.page import reported_once, run_page


@flow(name="campaign", flow_run_name="campaign of {function}")
def campaign(
    function: str,
    values: list[Any],
    max_parallel: int = 8,
    directory: str = "",
    options: dict[str, Any] | None = None,
    pilots: bool = False,
    key: str = "",
) -> list[Any]:
    """Call a decorated function for each value, at most `max_parallel` at a time, and show the results in a table.

    Args:
        function: the function's module and name, "train:train".
        values: the argument of each call.
        max_parallel: how many runs may be under way at a time.
        directory: the folder of the function's project on the machine of the worker.
        options: options of the decorator to change, such as {"cluster": "curnagl", "memory": "8G"}.
        pilots: run the values as items of one campaign in at most `max_parallel` pilots, and not as a run each.
        key: with pilots, the name of an argument: values for which an earlier campaign of the function has a value are
            not run again.

    Returns:
        The results, in the order of the values.

    Raises:
        OptionError: there is no such function, or it is not decorated, or an option is wrong.
        SlurmRayFlowError: some calls failed; the others have ended, and the table has all of them.
    """
    with reported_once():
        called = find_function(function, directory).with_options(**(options or {}))
        log = get_run_logger()
        log.info("%s: %d values, at most %d at a time", function, len(values), max_parallel)
        if key and not pilots:
            raise OptionError(f"key={key!r} is for pilots alone", where=function, advice="set pilots: true")
        if pilots:
            ended = call_in_pilots(called, values, max_parallel, key, log.info)
        else:
            ended = call_for_each(called, values, max_parallel, lambda call: log.log(*line_about(call)))
        failed = [call for call in ended if call.error]
        text = f"{len(ended) - len(failed)} of {len(ended)} done" + (f", {len(failed)} failed" if failed else "")
        log.info("%s: %s; the artifact has a table of them", function, text)
        key = artifact_key("campaign", function)
        create_markdown_artifact(markdown=as_table(ended, run_page), key=key, description=f"{function}: {text}")
        if failed:
            first = f"{failed[0].value!r}: {type(failed[0].error).__name__}: {failed[0].error}"
            raise SlurmRayFlowError(f"{text}; the first: {first}", where=function, advice="the artifact has them all")
        return [call.result for call in ended]
