"""The user's files as they are at launch: which ones, where they go in the snapshot, and its digest."""

from slurm_ray_flow.core.snapshot.build import LocalFile, manifest, refreshed
from slurm_ray_flow.core.snapshot.entries import Entry, Manifest
from slurm_ray_flow.core.snapshot.fingerprint import Hashes

__all__ = ["Entry", "Hashes", "LocalFile", "Manifest", "manifest", "refreshed"]
