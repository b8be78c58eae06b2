"""The walk of a scan: from a function's imports through the user's own modules to installed packages."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from os.path import dirname, isfile, join, normpath, realpath
from pathlib import Path

from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan import installed, literals
from slurm_ray_flow.core.scan.extract import (
    MAIN_ONLY,
    OPTIONAL,
    Extract,
    Imported,
    Note,
    ParsedFile,
    extract,
    parsed_file,
)
from slurm_ray_flow.core.scan.finder import OURS, Finder, Module
from slurm_ray_flow.core.scan.model import Distribution, Finding, FunctionSource, LocalFile, LocalPackage, Scan
from slurm_ray_flow.core.scan.reach import reaches_ray


class DistributionCollector:
    """Gathers the distributions behind the imports of one scan.

    Attributes:
        ray: whether a module imports Ray itself, or a distribution that requires Ray.
    """

    def __init__(self, finder: Finder, ray_names: Collection[str]) -> None:
        self._finder, self._ray_names = finder, ray_names
        self._used: dict[str, tuple[installed.Metadata, set[str]]] = {}
        self._whole: set[str] = set()
        self._with_ray: set[str] = set()
        self.ray = False

    def note_import(self, module: Module) -> None:
        """Note an import; one of Ray counts even if Ray is missing here."""
        if module.kind in {"installed", "missing"} and module.name.partition(".")[0] in self._ray_names:
            self.ray = True

    def splits(self, module: Module) -> bool:
        """Return whether the submodules of an installed package may belong to different distributions."""
        top = module.name.partition(".")[0]
        return module.file is None or (top not in self._whole and installed.shared(module.root, top))

    def note_distribution(self, module: Module) -> bool:
        """Note the distribution of an installed module; False if there is none. A namespace package needs none."""
        top = module.name.partition(".")[0]
        if module.file is None or top in self._whole:
            return True
        owners = installed.owners(module.root, module.file)
        if not installed.shared(module.root, top):
            self._whole.add(top)
        for metadata in owners:
            self._add_distribution(metadata, top)
        return bool(owners)

    def means_ray(self, module: str) -> bool:
        """Whether a module that is not the user's own belongs to Ray, or to a distribution that requires Ray."""
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

    def _add_distribution(self, metadata: installed.Metadata, top: str) -> None:
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


# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH113, PTH118, PTH120


_LONGEST_QUOTE = 120


class FindingCollector:
    """Gathers the findings of one scan.

    Args:
        project: absolute path of the user's project.
    """

    def __init__(self, project: Path) -> None:
        self._project = str(project)
        self._findings: dict[tuple[str, int, str, str], Finding] = {}
        # data file -> where it is read
        self._data: dict[str, list[tuple[str | None, int]]] = {}

    def note(self, note: Note, file: str | None, offset: int) -> None:
        """Report a note of `extract` about a file; a path only if the project has such a file."""
        kind, line, text = note
        line += offset
        if kind in {"open", "beside"}:
            self._path(text, file, line, beside=kind == "beside")
        elif kind == "syntax":
            self._add(file, line, "syntax", f"syntax error: {text}. The file is sent, its imports are not followed")
        elif kind == "exec":
            self._add(file, line, "exec", f"{_quoted(text)} runs code that can't be read here; {_INCLUDE}")
        else:
            self._add(file, line, kind, f"{_quoted(text)} imports a module whose name is computed; {_INCLUDE}")

    def unresolved(self, file: str | None, line: int, name: str) -> None:
        """Report a module that is nowhere on the search path."""
        advice = (
            "install it, put its folder on sys.path, or import it inside try/except ImportError if it may be missing"
        )
        self._add(file, line, "unresolved", f"no module named {name!r} is found here; {advice}")

    def relative(self, file: str | None, line: int, text: str) -> None:
        """Report a relative import that leads above its package, or stands in a script."""
        advice = "import it by its whole name, or start the script with `python -m`"
        self._add(file, line, "unresolved", f"the relative import {text!r} leads out of any package; {advice}")

    def unreadable(self, file: str, error: OSError) -> None:
        """Report a module that can't be read."""
        self._add(file, 1, "unreadable", f"can't be read ({error.strerror}), so its imports are not followed")

    def compiled(self, file: str) -> None:
        """Report a compiled module without its source."""
        self._add(file, 1, "compiled", f"a compiled module, sent as it is: what it imports can't be seen; {_INCLUDE}")

    def unowned(self, module: Module) -> None:
        """Report a module in site-packages that no distribution brought."""
        advice = 'move it into the project or add include=["..."]'
        text = f"{module.name!r} lies in site-packages but belongs to no installed distribution; {advice}"
        self._add(module.file or module.root, 1, "unowned", text)

    def result(self, sent: set[str]) -> tuple[Finding, ...]:
        """Return the findings, except about data files among `sent`."""
        for path in sorted(set(self._data) - sent):
            shown = os.path.relpath(path, self._project) if self._is_inside(path) else path
            for file, line in self._data[path]:
                text = f"uses the file {shown!r}, which is not sent by itself; add include=[{shown!r}]"
                self._add(file, line, "open", text, Path(path))
        return tuple(self._findings[key] for key in sorted(self._findings))

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self._project + os.sep)

    def _path(self, text: str, file: str | None, line: int, *, beside: bool) -> None:
        starts = [dirname(file)] if file else []
        if not beside:
            starts.insert(0, self._project)
        for start in starts:
            path = normpath(join(start, text))
            if self._is_inside(path) and self.reads(path, file, line):
                return

    def reads(self, path: str, file: str | None, line: int) -> bool:
        """Report a file that is read, if it is there."""
        exists = isfile(path)
        if exists:
            self._data.setdefault(path, []).append((file, line))
        return exists

    def _add(self, file: str | None, line: int, kind: str, text: str, data: Path | None = None) -> None:
        self._findings[file or "", line, kind, text] = Finding(Path(file) if file else None, line, kind, text, data)


_INCLUDE = 'if it needs modules or files of the project, add include=["path/*.py"]'


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"`{line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + '…'}`"


# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH100, PTH113, PTH118, PTH119, PTH120


_lock = threading.Lock()


def scan(
    target: FunctionSource,
    *,
    search_path: Sequence[str],
    project: Path,
    parsed: MutableMapping[str, ParsedFile],
    ray_names: Collection[str] = ("ray",),
) -> Scan:
    """Return the files and packages that a function needs, by following the imports of its source.

    Args:
        target: the function, from `target_of`.
        search_path: sys.path as the user has it.
        project: the user's project; literal paths of files inside it are reported. Modules are searched in the project
            and its src/ folder after `search_path`.
        parsed: the cache of parsed files, by path, which the scan fills; keep it (pickled) for the next scan.
        ray_names: distributions and modules whose import means that a function needs Ray.

    Raises:
        ScanError: the file of the function can't be read.
    """
    project = Path(os.path.abspath(project))
    with _quiet_parsing():
        finder = _finder_for(target, search_path, project)
        walk = _Walk(finder, FindingCollector(project), DistributionCollector(finder, ray_names), parsed)
        walk.start(target)
        walk.finish()
        return walk.result(target)


@contextmanager
def _quiet_parsing() -> Iterator[None]:
    """Parse without warnings about the parsed code, and without collection of garbage, which would find none.

    Both settings belong to the whole process, hence the lock.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _finder_for(target: FunctionSource, search_path: Sequence[str], project: Path) -> Finder:
    folder = [str(target.file.parent)] if target.file is not None and target.module is None else []
    extra = [*folder, str(project), str(project / "src")]
    finder = Finder(search_path, extra)
    root = _root_of(target)
    if root is None or _same_file(finder.find(target.module or ""), target):
        return finder
    return Finder([root, *search_path], extra)


def _root_of(target: FunctionSource) -> str | None:
    """Return the folder from which a module's name leads to its file, None when no folder does."""
    if target.module is None or target.file is None:
        return None
    path = target.file.parent if target.file.stem == "__init__" else target.file.with_suffix("")
    parts = target.module.split(".")
    return str(path.parents[len(parts) - 1]) if list(path.parts[-len(parts) :]) == parts else None


def _same_file(module: Module, target: FunctionSource) -> bool:
    return module.file is not None and target.file is not None and realpath(module.file) == realpath(target.file)


class _Walk:
    """One scan: the modules that are still to be read, and the results so far."""

    def __init__(
        self,
        finder: Finder,
        report: FindingCollector,
        usage: DistributionCollector,
        parsed: MutableMapping[str, ParsedFile],
    ) -> None:
        self._finder, self._findings_report, self._distributions, self._parsed = finder, report, usage, parsed
        self._done: dict[str, Module] = {}
        self._files: dict[tuple[str, str], LocalFile] = {}
        self._packages: set[LocalPackage] = set()
        self._roots: dict[str, Path] = {}
        self._waiting: list[Module] = []

    def start(self, target: FunctionSource) -> None:
        module = self._finder.find(target.module) if target.module else None
        if module is not None and (target.file is None or _same_file(module, target) or module.kind == "installed"):
            self._find_and_queue(module.name)
        elif target.file is not None:
            self._script(target, str(target.file))
        if target.source is not None:
            self._follow_all(extract(target.source.encode()), None, target.package, target.first_line - 1)
        for name in target.imported:
            self._note_reference(name, target)

    def finish(self) -> None:
        while self._waiting:
            module = self._waiting.pop()
            assert module.file is not None
            try:
                content = parsed_file(module.file, self._parsed)
            except OSError as error:
                self._findings_report.unreadable(module.file, error)
                continue
            package = module.name if module.places else module.name.rpartition(".")[0]
            self._follow_all(content, module.file, package, 0, skip=MAIN_ONLY)

    def result(self, target: FunctionSource) -> Scan:
        files = tuple(self._files[key] for key in sorted(self._files))
        findings = self._findings_report.result({path for path, _ in self._files})
        uses_ray = self._distributions.ray and reaches_ray(target, files, self._distributions.means_ray)
        return Scan(files, self._distributions.distributions(), findings, tuple(sorted(self._packages)), uses_ray)

    def _script(self, target: FunctionSource, file: str) -> None:
        try:
            content = parsed_file(file, self._parsed)
        except OSError as error:
            raise ScanError(
                f"The source of {target.label} can't be read: {error}", where=file, advice="Is the file still there?"
            ) from error
        package = target.package or (target.module or "").rpartition(".")[0]
        if target.package:
            self._find_and_queue(target.package)
        self._follow_all(content, file, package, 0)

    def _note_reference(self, name: str, target: FunctionSource) -> None:
        """Note a module that the live function refers to; the last part of the name may be an attribute."""
        module = self._find_and_queue(name)
        parent = name.rpartition(".")[0]
        if module.kind == "missing" and (not parent or self._find_and_queue(parent).kind == "missing"):
            self._findings_report.unresolved(None if target.file is None else str(target.file), target.first_line, name)

    def _follow_all(
        self, content: ParsedFile | Extract, file: str | None, package: str | None, offset: int, skip: int = 0
    ) -> None:
        for imported in content.imports:
            if not imported[4] & skip:
                self._follow(imported, file, package, offset)
        for note in content.notes:
            self._note(note, file, offset)

    def _note(self, note: Note, file: str | None, offset: int) -> None:
        # A cell's text that does not parse alone (a lambda's line) is followed through its code object instead.
        if note[0].startswith(literals.PACKAGE):
            for place in self._finder.find(note[0][1:]).places:
                if place.kind == "local":
                    self._findings_report.reads(os.path.join(place.folder, note[2]), file, note[1] + offset)
        elif file is not None or note[0] != "syntax":
            self._findings_report.note(note, file, offset)

    def _follow(self, imported: Imported, file: str | None, package: str | None, offset: int) -> None:
        name, names, level, line, flags = imported
        if level:
            base = _ancestor(package or "", level)
            if base is None:
                self._findings_report.relative(file, line + offset, "." * level + name)
                return
            name = f"{base}.{name}" if name else base
        module = self._done.get(name) or self._find_and_queue(name)
        if module.kind == "missing":
            if not flags & OPTIONAL:
                self._findings_report.unresolved(file, line + offset, name)
        elif names and module.places:
            self._follow_names(module, names, file, line + offset, flags)

    def _follow_names(self, module: Module, names: Sequence[str], file: str | None, line: int, flags: int) -> None:
        if names == ("*",):
            names = self._exports(module)
        for last in names:
            name = f"{module.name}.{last}"
            if module.kind == "installed" and not self._distributions.splits(module):
                continue
            submodule = self._done.get(name) or self._find_and_queue(name)
            if submodule.kind == "missing" and module.file is None and not flags & OPTIONAL:
                self._findings_report.unresolved(file, line, name)

    def _exports(self, module: Module) -> Sequence[str]:
        if module.kind != "local" or module.file is None or not module.file.endswith(".py"):
            return ()
        try:
            return parsed_file(module.file, self._parsed).exports
        except OSError:
            return ()

    def _find_and_queue(self, name: str) -> Module:
        """Find a module, queue it and its parent packages for reading, and return it."""
        module = self._finder.find(name)
        if name in self._done:
            return module
        self._done[name] = module
        parent = name.rpartition(".")[0]
        if parent:
            self._find_and_queue(parent)
        self._distributions.note_import(module)
        if module.kind == "local":
            self._add_files(module)
        elif module.kind == "installed" and not self._distributions.note_distribution(module):
            self._findings_report.unowned(module)
        return module

    def _add_files(self, module: Module) -> None:
        regular = module.file is not None
        self._packages.update((place.folder, place.root, regular) for place in module.places if place.kind == "local")
        if module.file is None:
            return
        self._add(module.file, module.root, module.name)
        if module.file.endswith(".py"):
            self._waiting.append(module)
        else:
            self._compiled(module, module.file)
        if module.places:
            for last, file in self._finder.extensions(dirname(module.file)):
                self._add(file, module.root, f"{module.name}.{last}" if last != "__init__" else module.name)

    def _compiled(self, module: Module, file: str) -> None:
        source = os.path.join(dirname(file), os.path.basename(file).partition(".")[0] + ".py")
        if os.path.isfile(source):
            self._add(source, module.root, module.name)
            self._waiting.append(module._replace(file=source))
        else:
            self._findings_report.compiled(file)

    def _add(self, file: str, root: str, name: str) -> None:
        if (file, name) not in self._files:
            folder = self._roots.setdefault(root, Path(root))
            self._files[file, name] = LocalFile(Path(file), folder, name)


def _ancestor(package: str, level: int) -> str | None:
    """Return the package that `level` leading dots mean inside `package`, None above the top."""
    parts = package.split(".") if package else []
    return ".".join(parts[: len(parts) - level + 1]) if level <= len(parts) else None
