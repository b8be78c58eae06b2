"""Findings: what a scan could not follow, said so that the reader knows what to do."""

# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH113, PTH118, PTH120

from __future__ import annotations

import os
from os.path import dirname, isfile, join, normpath
from pathlib import Path

from slurm_ray_flow.core.scan.extract import Note
from slurm_ray_flow.core.scan.finder import Module
from slurm_ray_flow.core.scan.model import Finding

_LONGEST_QUOTE = 120


class Report:
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
        """Report what `extract` noted in a file; a path only if there is such a file in the project."""
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
        """Return the findings, but for those of data files among `sent`."""
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
        there = isfile(path)
        if there:
            self._data.setdefault(path, []).append((file, line))
        return there

    def _add(self, file: str | None, line: int, kind: str, text: str, data: Path | None = None) -> None:
        self._findings[file or "", line, kind, text] = Finding(Path(file) if file else None, line, kind, text, data)


_INCLUDE = 'if it needs modules or files of the project, add include=["path/*.py"]'


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"`{line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + '…'}`"
