"""How artifacts in Prefect are named."""

from __future__ import annotations

import re


def short_name(cluster: str) -> str:
    """A cluster's name without its kind: the same thing is shown under the same name, whoever asks for it and how."""
    return cluster.rpartition("/")[2]


def artifact_key(verb: str, cluster: str) -> str:
    """The key under which Prefect keeps the history of one verb on one cluster: lower-case letters, digits, dashes."""
    return f"{verb}-{re.sub(r'[^a-z0-9]+', '-', cluster.lower()).strip('-') or 'cluster'}"
