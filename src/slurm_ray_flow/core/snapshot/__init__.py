"""The manifest of a snapshot: the user's files at launch, their places in the snapshot, and its digest."""

from slurm_ray_flow.core.snapshot.build import ModuleFile, manifest, refreshed
from slurm_ray_flow.core.snapshot.entries import Entry, Hashes, Manifest

__all__ = ["Entry", "Hashes", "Manifest", "ModuleFile", "manifest", "refreshed"]
