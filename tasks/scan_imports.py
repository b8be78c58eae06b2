"""The step that scans a function's sources for its own modules and the distributions they import."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import load_cache, save_cache
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.launch_events import Note, Warned, publish
from slurm_ray_flow.core.project import project_of
from slurm_ray_flow.core.scan import RULES, Finding, FunctionSource, Scan, scan
from slurm_ray_flow.remote.shared.pickling import importable
from slurm_ray_flow.tasks.retry import step
from slurm_ray_flow.tasks.run import Call

NAMED = 3
"""The most packages that are named in the terminal."""


@dataclasses.dataclass(frozen=True)
class ScannedCode:
    """The summary of a scan; the whole scan is in the store at home.

    Attributes:
        digest: the digest of the scan's JSON in the store.
        project: the project's folder.
        files, distributions: the numbers of modules and of packages.
        uses_ray: whether a module imports Ray.
        script: the file of the function, if its module can't be imported by name; else "".
    """

    digest: str
    project: str
    files: int
    distributions: int
    uses_ray: bool
    script: str = ""

    def scan(self) -> Scan:
        """The whole scan."""
        return store.get_scan(self.digest)


@step()
def scan_imports(call: Call) -> ScannedCode:
    """Follow the imports of the function's source, without running any code.

    Raises:
        ScanError: the source can't be read.
    """
    code, scanned = code_of(call.target)
    for finding in scanned.findings:
        if finding.data is None:  # `sync_files` warns of data that is not sent
            warn_of(finding, Path(code.project), call.label)
    publish(Note(_summary(scanned)))
    return code


def code_of(target: FunctionSource) -> tuple[ScannedCode, Scan]:
    """The scan of a function, as summary and as a whole.

    Raises:
        ScanError: the source can't be read.
    """
    project = project_of(target.file, Path.cwd())
    cache = home() / "cache" / "scan" / f"{store.short_digest(str(project))}.{RULES}.pickle"
    parsed = load_cache(cache)
    cached = dict(parsed)
    scanned = scan(target, search_path=sys.path, project=project, parsed=parsed)
    if parsed != cached:
        save_cache(cache, parsed)
    digest = store.put_scan(scanned)
    script = "" if target.file is None or importable(target.module or "__main__") else str(target.file)
    code = ScannedCode(digest, str(project), len(scanned.files), len(scanned.distributions), scanned.uses_ray, script)
    return code, scanned


def warn_of(finding: Finding, project: Path, label: str = "the function") -> None:
    """Publish a finding as a warning."""
    file = finding.file or Path(label)
    text = f"{file.relative_to(project) if file.is_relative_to(project) else file}:{finding.line}: {finding.text}"
    publish(Warned(text))


def _summary(scanned: Scan) -> str:
    """The function's modules and packages in a few words."""
    modules = "1 module" if len(scanned.files) == 1 else f"{len(scanned.files) or 'no'} modules"
    names = [distribution.name for distribution in scanned.distributions]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{modules} of yours" + (f"; {', '.join(names[:NAMED])}{more}" if names else "")
