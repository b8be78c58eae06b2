"""How long the scan of a project of 5,000 modules takes, cold and unchanged.

The peer is what no scan by syntax tree can do without: reading and parsing the same files. The unchanged scan counts
from the pickle of what was parsed before, as a new process finds it.

    python benchmarks/scan.py [--modules 5000]
"""

from __future__ import annotations

import argparse
import ast
import pickle
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slurm_ray_flow.core.scan import FunctionSource, ParsedFile, Scan, scan

FUNCTION = '''
def compute_{number}(values, scale={number}):
    """Return the values that count, scaled and in order."""
    total = 0.0
    kept = []
    for position, value in enumerate(values):
        if value is None or (position + {number}) % 7 == 0:
            continue
        total += value * scale
        kept.append({{"position": position, "value": value, "share": value / (total or 1.0)}})
    return sorted(kept, key=lambda item: (item["share"], -item["position"])), f"{{total:.3f}} of {number}"

'''


def make_project(folder: Path, modules: int, functions: int = 5) -> list[Path]:
    """Write packages of 50 modules; each imports the next one, three others, and the standard library."""
    chance = random.Random(7)
    names = [f"project.part_{number // 50:03}.module_{number:04}" for number in range(modules)]
    for package in {name.rpartition(".")[0] for name in names} | {"project"}:
        place = folder.joinpath(*package.split("."))
        place.mkdir(parents=True, exist_ok=True)
        (place / "__init__.py").write_text("")
    files = []
    for number, name in enumerate(names):
        wanted = [names[(number + 1) % modules], *chance.sample(names, 3)]
        lines = ["from __future__ import annotations", "import os, json", "from collections import defaultdict"]
        lines += [f"from {one.rpartition('.')[0]} import {one.rpartition('.')[2]}" for one in wanted[:2]]
        lines += [f"from {one} import compute_0 as other_{place}" for place, one in enumerate(wanted[2:])]
        body = "".join(FUNCTION.format(number=each) for each in range(functions))
        file = folder.joinpath(*name.split(".")).with_suffix(".py")
        file.write_text("\n".join(lines) + "\n" + body)
        files.append(file)
    return files


def unchanged(folder: Path) -> tuple[float, Scan]:
    """Scan as a later process does: load what is known, scan."""
    start = time.perf_counter()
    parsed = pickle.loads((folder / "parsed.pickle").read_bytes())
    found = scan(_target(folder), search_path=[str(folder), *sys.path], project=folder, parsed=parsed)
    return time.perf_counter() - start, found


def _target(folder: Path) -> FunctionSource:
    name = "project.part_000.module_0000"
    return FunctionSource(name, folder.joinpath(*name.split(".")).with_suffix(".py"), None, name, 1, ())


def _floor(files: list[Path]) -> float:
    start = time.perf_counter()
    for file in files:
        ast.parse(file.read_bytes())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, default=5000)
    parser.add_argument("--unchanged", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.unchanged:
        print(unchanged(options.unchanged)[0])
        return
    with tempfile.TemporaryDirectory() as name:
        _measure(Path(name), options.modules)


def _measure(folder: Path, modules: int) -> None:
    files = make_project(folder, modules)
    size = sum(file.stat().st_size for file in files)
    parsed: dict[str, ParsedFile] = {}
    start = time.perf_counter()
    found = scan(_target(folder), search_path=[str(folder), *sys.path], project=folder, parsed=parsed)
    cold = time.perf_counter() - start
    assert {file.path for file in found.files} >= set(files), "a module was not found"
    floor = _floor(files)
    (folder / "parsed.pickle").write_bytes(pickle.dumps(parsed, protocol=5))
    command = [sys.executable, __file__, "--unchanged", str(folder)]
    again = min(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3))
    assert unchanged(folder)[1] == found, "the unchanged scan differs"
    print(f"{modules} modules, {size / modules:.0f} bytes each, {(folder / 'parsed.pickle').stat().st_size} bytes kept")
    print(f"cold       {cold:6.2f} s   (at most 2.0)   {cold / floor:.2f} times reading and ast.parse: {floor:.2f} s")
    print(f"unchanged  {again:6.2f} s   (at most 0.3)   best of 3 new processes, loading included")


if __name__ == "__main__":
    main()
