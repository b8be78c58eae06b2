"""Which distributions a scan has met, and whether one of them means Ray."""

from __future__ import annotations

from collections.abc import Collection

from slurm_ray_flow.core.scan import installed
from slurm_ray_flow.core.scan.finder import OURS, Finder, Module
from slurm_ray_flow.core.scan.model import Distribution


class Usage:
    """Gathers the distributions behind the imports of one scan.

    Attributes:
        ray: whether something imported Ray itself, or a distribution that requires it.
    """

    def __init__(self, finder: Finder, ray_names: Collection[str]) -> None:
        self._finder, self._ray_names = finder, ray_names
        self._used: dict[str, tuple[installed.Metadata, set[str]]] = {}
        self._whole: set[str] = set()
        self._with_ray: set[str] = set()
        self.ray = False

    def seen(self, module: Module) -> None:
        """Note an import; one of Ray counts even if Ray is missing here."""
        if module.kind in {"installed", "missing"} and module.name.partition(".")[0] in self._ray_names:
            self.ray = True

    def splits(self, module: Module) -> bool:
        """Return whether the submodules of an installed package may belong to different distributions."""
        top = module.name.partition(".")[0]
        return module.file is None or (top not in self._whole and installed.shared(module.root, top))

    def install(self, module: Module) -> bool:
        """Take in the distribution that brought an installed module; False if there is none.

        The name of a namespace package alone needs none.
        """
        top = module.name.partition(".")[0]
        if module.file is None or top in self._whole:
            return True
        found = installed.owners(module.root, module.file)
        if not installed.shared(module.root, top):
            self._whole.add(top)
        for metadata in found:
            self._take(metadata, top)
        return bool(found)

    def means_ray(self, module: str) -> bool:
        """Whether a module that is not the user's own is Ray's, or that of a distribution which requires Ray."""
        top = module.partition(".")[0]
        return top in self._ray_names or top in self._with_ray

    def distributions(self) -> tuple[Distribution, ...]:
        """Return the distributions, sorted by name."""
        return tuple(
            sorted(
                Distribution(name, _version(metadata), tuple(sorted(tops)), installed.origin(metadata))
                for name, (metadata, tops) in self._used.items()
            )
        )

    def _take(self, metadata: installed.Metadata, top: str) -> None:
        name = next(iter(installed.header(metadata, "Name")), top)
        if installed.normalized(name) == installed.normalized(OURS):
            return
        if name not in self._used:
            self._used[name] = metadata, set()
            if installed.requires(metadata, self._ray_names, self._finder.sites):
                self.ray = True
                self._with_ray.add(top)
        self._used[name][1].add(top)


def _version(metadata: installed.Metadata) -> str:
    return next(iter(installed.header(metadata, "Version")), "")
