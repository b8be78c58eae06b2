"""Whether a function may use Ray: by the names in its code, followed from definition to definition.

Code that mentions `g` reaches every definition of that name in the user's own modules, so rather too much is reached
than too little. All code counts where it may be found by other means than names (`eval`, a computed `getattr`, a
decorator that registers functions), and where there is too much code to follow.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from slurm_ray_flow.core.scan import extract
from slurm_ray_flow.core.scan.model import FunctionSource, LocalFile

MOST_BYTES = 300_000
"""The most bytes of code that are read; reading more would take longer than a start of Ray."""
RAY = "import ray"
"""The name of Ray among the names."""
_DOUBTFUL = frozenset((RAY, "eval", "exec", "globals", "locals", "vars", "import_module", "__import__", "run_path"))
"""Names by which code is found that no name leads to; and Ray itself."""
_HARMLESS = frozenset(
    (
        *("slurm_ray_flow", "flow", "task", "staticmethod", "classmethod", "property", "abstractmethod", "overload"),
        *("dataclass", "wraps", "cache", "lru_cache", "cached_property", "total_ordering", "contextmanager"),
    )
)
"""Decorators that return the function, or an object that calls it."""
_WORD = re.compile(r"[^\W\d]\w{,80}")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def reaches_ray(target: FunctionSource, files: Iterable[LocalFile], is_ray: Callable[[str], bool]) -> bool:
    """Say whether a function uses Ray, or may.

    Args:
        target: the function.
        files: the user's own modules that its file imports.
        is_ray: whether a module that is not the user's own needs Ray.
    """
    name = target.label.removeprefix(f"{target.module or '__main__'}.")
    if target.file is None or "<" in name or any(map(is_ray, target.imported)):
        return True
    names = _Names(is_ray)
    modules = {target.file: "", **{file.path: file.module for file in files}}
    try:
        if sum(path.stat().st_size for path in modules) > MOST_BYTES:
            return True
        for path, module in modules.items():
            # From a script only the definitions that the function names are sent; a module is imported as a whole.
            runs = path != target.file or target.module is not None
            is_met = bool(module) and any(f"{imported}.".startswith(f"{module}.") for imported in target.imported)
            for node in ast.parse(path.read_bytes()).body:
                names.read(node, runs)
                names.run |= names.mentions(node) if is_met else set()
    except (OSError, SyntaxError, ValueError, RecursionError):  # such as a compiled module, which is no source
        return True
    return names.lead_to_ray(name.split("."))


class _Names:
    """The graph of names: a definition leads to the names in it. `run` has the names in code that an import runs."""

    def __init__(self, is_ray: Callable[[str], bool]) -> None:
        self._is_ray = is_ray
        self._leads: dict[str, set[str]] = defaultdict(set)
        self.run: set[str] = set()

    def lead_to_ray(self, names: list[str]) -> bool:
        """Whether these names, or those in `run`, lead to Ray; True also if no definition has the first name."""
        reached, waiting = set[str](), {*names, *self.run}
        while waiting and not waiting & _DOUBTFUL:
            reached |= waiting
            waiting = set[str]().union(*(self._leads[name] for name in waiting if name in self._leads)) - reached
        return bool(waiting) or names[0] not in self._leads

    def read(self, node: ast.stmt, runs: bool) -> None:
        """Add a statement of a module; `runs` says whether an import of the module runs it."""
        is_definition = isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        mentioned = set[str]() if is_definition else self.mentions(node, imports=False)
        for inner in ast.walk(node):
            if isinstance(inner, (*_FUNCTIONS, ast.ClassDef)):
                self._leads[inner.name] |= self.mentions(inner)
            elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self._leads[inner.id] |= mentioned
            for bound, name in self._imported(inner):
                self._leads[bound].add(name)
                self.run |= {RAY} if (bound, name) == ("*", RAY) else set()
        running: list[ast.AST] = [*node.orelse] if isinstance(node, ast.If) and extract.is_main(node.test) else [node]
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            # Decorators, default values, a class's bases and all but its methods.
            is_class = isinstance(node, ast.ClassDef)
            running = [
                inner for inner in ast.iter_child_nodes(node)
                if not isinstance(inner, _FUNCTIONS if is_class else ast.stmt)
            ]  # fmt: skip
            is_kept = any(_plain_name(inner) not in _HARMLESS for inner in node.decorator_list)
            self.run |= {node.name} if is_kept or node.name.startswith("__") else set()
            runs = runs or bool(node.decorator_list)
        if runs:
            self.run.update(*(self.mentions(inner, imports=False) for inner in running))

    def mentions(self, node: ast.AST, imports: bool = True) -> set[str]:
        """The names, attributes and words of texts in a node; `getattr` and tables of functions use such words."""
        names: set[str] = set()
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                names.add(inner.id)
            elif isinstance(inner, ast.Attribute):
                names.add(inner.attr)
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and _WORD.fullmatch(inner.value):
                names.add(inner.value)
            elif isinstance(inner, ast.Call) and _plain_name(inner) == "getattr":
                names |= set() if len(inner.args) > 1 and isinstance(inner.args[1], ast.Constant) else {"eval"}
            elif imports:
                names |= {name for _, name in self._imported(inner)}
        return names

    def _imported(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """The names that an import binds, each with the name that it imports."""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else node.module or ""
                means_ray = not getattr(node, "level", 0) and self._is_ray(module)
                yield alias.asname or alias.name.partition(".")[0], RAY if means_ray else alias.name


def _plain_name(node: ast.expr) -> str:
    """The last name of a decorator or a call: `b` of `a.b(1)`."""
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
