"""A job's name: the function for people, and the run by which the job is found again."""

from __future__ import annotations

import re

_LONGEST = 40


def job_name(function: str, run_id: str) -> str:
    """The name under which a run is in the queue: "train.6f1c..."."""
    plain = re.sub("[^A-Za-z0-9_-]+", "-", function.rpartition(":")[2].rpartition(".")[2]).strip("-")
    return f"{plain[:_LONGEST] or 'run'}.{run_id}"


def run_of(name: str) -> str:
    """The run that a job of this name belongs to; "" for a job that is none of ours."""
    return name.partition(".")[2]
