"""The user's files as they are at launch: which ones, where they go in the snapshot, and its digest."""

from slurm_ray_flow.core.snapshot.build import ModuleFile, manifest, refreshed
from slurm_ray_flow.core.snapshot.entries import Entry, Hashes, Manifest

__all__ = ["Entry", "Hashes", "Manifest", "ModuleFile", "manifest", "refreshed"]
