"""The input of a scan (the function's source) and its results (files, distributions, findings)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class FunctionSource:
    """The source of a function.

    Attributes:
        module: the module by which the cluster imports the function; None for a script, a notebook or a REPL.
        file: the function's file, which is scanned as a whole; None for none.
        source: the function's text, where there is no file (a notebook cell).
        label: the function's name in messages.
        first_line: the line of the function in `file`, or in its cell.
        imported: modules that the live function refers to (through globals, closures, bound objects), as dotted
            names; the last part of a name may be an attribute.
        package: the package of relative imports in a script that was started by `python -m`.
    """

    module: str | None
    file: Path | None
    source: str | None
    label: str
    first_line: int
    imported: tuple[str, ...]
    package: str | None = None


@dataclass(frozen=True, order=True)
class LocalFile:
    """A file of the user's own code.

    Attributes:
        path: the file.
        root: the folder that must be on sys.path, so that `import module` finds the file.
        module: its dotted name: the path below `root`, except for editable installs that rename a folder.
    """

    path: Path
    root: Path
    module: str


LocalPackage: TypeAlias = tuple[str, str, bool]
"""A folder of the user's own package, the entry of sys.path above it, and whether it has an `__init__`."""


@dataclass(frozen=True, order=True)
class Distribution:
    """An installed package that the code imports.

    Attributes:
        name: the name in its metadata (`scikit-learn`).
        version: the installed version.
        imports: the top-level names by which the code imports it (`sklearn`).
        origin: its source if that is no registry (PEP 610): `git+URL@COMMIT` or `file:///...`.
    """

    name: str
    version: str
    imports: tuple[str, ...]
    origin: str | None


@dataclass(frozen=True)
class Finding:
    """An import that could not be followed, or a file that is not sent by itself.

    Attributes:
        file: the file; None for a notebook cell or REPL input.
        line: the line in it, from 1.
        kind: "computed_import", "exec", "open", "syntax", "unresolved", "unreadable", "compiled" or "unowned".
        text: the finding, and advice about it.
        data: for the kind "open", the file that the code reads; there is no finding if the file is sent anyway.
    """

    file: Path | None
    line: int
    kind: str
    text: str
    data: Path | None = None

    def __str__(self) -> str:
        return f"{self.file or '<input>'}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Scan:
    """The result of a scan; every tuple is sorted.

    Attributes:
        files: the user's own modules and compiled extensions.
        distributions: the installed packages that these import.
        findings: imports that could not be followed, and files that are not sent.
        packages: the user's own packages that are imported.
        uses_ray: whether code that the function reaches, or a distribution that it imports, needs Ray.
    """

    files: tuple[LocalFile, ...]
    distributions: tuple[Distribution, ...]
    findings: tuple[Finding, ...]
    packages: tuple[LocalPackage, ...]
    uses_ray: bool

    def to_json(self) -> dict[str, Any]:
        """Return the scan as JSON-able lists and strings."""
        return {
            "files": [[str(file.path), str(file.root), file.module] for file in self.files],
            "distributions": [[d.name, d.version, list(d.imports), d.origin] for d in self.distributions],
            "findings": [
                [f.file and str(f.file), f.line, f.kind, f.text, f.data and str(f.data)] for f in self.findings
            ],
            "packages": self.packages,
            "uses_ray": self.uses_ray,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scan:
        """Return the scan that `to_json` wrote."""
        return cls(
            files=tuple(LocalFile(Path(path), Path(root), module) for path, root, module in data["files"]),
            distributions=tuple(
                Distribution(name, version, tuple(imports), origin)
                for name, version, imports, origin in data["distributions"]
            ),
            findings=tuple(
                Finding(file and Path(file), line, kind, text, used and Path(used))
                for file, line, kind, text, used in data["findings"]
            ),
            packages=tuple((folder, root, is_regular) for folder, root, is_regular in data["packages"]),
            uses_ray=data["uses_ray"],
        )
