"""The scan: the files and packages that a function needs, found by reading its sources and never by running them.

`target_of` says which source belongs to a function, `scan` follows its imports:

    found = scan(target_of(train), search_path=sys.path, project=Path.cwd(), parsed={})
    found.files           the user's own modules, to be sent
    found.distributions   the installed packages, to be installed there
    found.findings        what could not be followed, with file and line
"""

from __future__ import annotations

from slurm_ray_flow.core.scan.extract import RULES, ParsedFile
from slurm_ray_flow.core.scan.model import Distribution, Finding, FunctionSource, LocalFile, Scan
from slurm_ray_flow.core.scan.target import modules_of, target_of
from slurm_ray_flow.core.scan.walk import scan

__all__ = [
    "RULES",
    "Distribution",
    "Finding",
    "FunctionSource",
    "LocalFile",
    "ParsedFile",
    "Scan",
    "modules_of",
    "scan",
    "target_of",
]
