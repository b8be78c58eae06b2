"""Projects on disk, and what a scan finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from slurm_ray_flow.core.scan import FunctionSource, ParsedFile, Scan, scan

Make = Callable[..., Path]


def scanned(folder: Path, *path: Path, parsed: dict[str, ParsedFile] | None = None, module: str = "main") -> Scan:
    """Scan module `main` of a folder with only the given folders on sys.path."""
    target = FunctionSource(module, folder.joinpath(*module.split(".")).with_suffix(".py"), None, "main.f", 1, ())
    search = [str(entry) for entry in path or (folder, folder / "site-packages")]
    return scan(target, search_path=search, project=folder, parsed={} if parsed is None else parsed)


def modules(found: Scan) -> set[str]:
    return {file.module for file in found.files}


def kinds(found: Scan) -> list[tuple[str, int]]:
    return [(finding.kind, finding.line) for finding in found.findings]


def install(write: Make, name: str, files: dict[str, str], metadata: str = "", direct: object = None) -> None:
    folder = f"site-packages/{name.replace('-', '_')}-1.5.dist-info"
    write(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{metadata}\n\nName: not this\n")
    for file, text in files.items():
        write(f"site-packages/{file}", text)
    write(f"{folder}/RECORD", "".join(f"{file},sha256=x,1\n" for file in files) + f"{folder[14:]}/RECORD,,\n")
    if direct is not None:
        write(f"{folder}/direct_url.json", json.dumps(direct))
