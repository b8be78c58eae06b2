"""How artifacts in Prefect are named."""

from __future__ import annotations

import re


def artifact_key(verb: str, cluster: str) -> str:
    """The key under which Prefect keeps the history of one verb on one cluster: lower-case letters, digits, dashes."""
    return f"{verb}-{re.sub(r'[^a-z0-9]+', '-', cluster.lower()).strip('-') or 'cluster'}"
