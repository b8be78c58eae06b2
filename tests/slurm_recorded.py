"""What Slurm's commands printed, as tests/recorded/slurm has it."""

from __future__ import annotations

from pathlib import Path

RECORDED = Path(__file__).parent / "recorded" / "slurm"
REAL = "22.05.8"
COMPOSED = ("composed/20.11", "composed/21.08", "composed/23.02", "composed/23.11", "composed/24.05", "composed/25.05")
REALS = ("20.11.4", REAL, "24.11.5", "26.05.5")
ACCOUNTED = ("20.11.4", REAL, "24.11.5")
VERSIONS = (*REALS, *COMPOSED)


def recorded(name: str, version: str = REAL) -> str:
    """The text of one answer."""
    return (RECORDED / version / f"{name}.txt").read_text(encoding="utf-8")
