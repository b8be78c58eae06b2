"""Whether a function may use Ray: by the names in its code, followed from definition to definition.

Names are followed, not objects: whoever mentions `g` reaches all that is called so in the user's own modules. So too
much is reached rather than too little. Where code may be found by other means (`eval`, a computed `getattr`, a
decorator that keeps what it gets), and where there is much code, all of it counts.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from slurm_ray_flow.core.scan import extract
from slurm_ray_flow.core.scan.model import FunctionSource, LocalFile

MOST_BYTES = 300_000
"""The most bytes of code that are read; reading them takes less time than a start of Ray."""
RAY = "import ray"
"""Stands for Ray among the names."""
_DOUBTFUL = frozenset((RAY, "eval", "exec", "globals", "locals", "vars", "import_module", "__import__", "run_path"))
"""Mentioned where code may be found that nothing names; and Ray itself."""
_HARMLESS = frozenset(
    (
        *("slurm_ray_flow", "flow", "task", "staticmethod", "classmethod", "property", "abstractmethod", "overload"),
        *("dataclass", "wraps", "cache", "lru_cache", "cached_property", "total_ordering", "contextmanager"),
    )
)
"""Decorators that give back the function, or an object that calls it."""
_WORD = re.compile(r"[^\W\d]\w{,80}")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def reaches_ray(target: FunctionSource, files: Iterable[LocalFile], is_ray: Callable[[str], bool]) -> bool:
    """Say whether a function uses Ray, or may.

    Args:
        target: the function.
        files: the user's own modules that its file comes to.
        is_ray: whether a module that is not the user's own means Ray.
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
            # Of a script, only what the function names goes to the cluster; else a module is imported there.
            runs = path != target.file or target.module is not None
            is_met = bool(module) and any(f"{imported}.".startswith(f"{module}.") for imported in target.imported)
            for node in ast.parse(path.read_bytes()).body:
                names.read(node, runs)
                names.run |= names.mentions(node) if is_met else set()
    except (OSError, SyntaxError, ValueError, RecursionError):  # such as a compiled module, which is no source
        return True
    return names.lead_to_ray(name.split("."))


class _Names:
    """Which names lead to which; `run` are those of code that runs when its module is imported."""

    def __init__(self, is_ray: Callable[[str], bool]) -> None:
        self._is_ray = is_ray
        self._leads: dict[str, set[str]] = defaultdict(set)
        self.run: set[str] = set()

    def lead_to_ray(self, names: list[str]) -> bool:
        """Whether these names do, or what runs in any case; also where nothing binds the first of them."""
        reached, waiting = set[str](), {*names, *self.run}
        while waiting and not waiting & _DOUBTFUL:
            reached |= waiting
            waiting = set[str]().union(*(self._leads[name] for name in waiting if name in self._leads)) - reached
        return bool(waiting) or names[0] not in self._leads

    def read(self, node: ast.stmt, runs: bool) -> None:
        """Take in a statement of a module, which runs when the module is imported, or does not."""
        is_definition = isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        mentioned = set[str]() if is_definition else self.mentions(node, imports=False)
        for each in ast.walk(node):
            if isinstance(each, (*_FUNCTIONS, ast.ClassDef)):
                self._leads[each.name] |= self.mentions(each)
            elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                self._leads[each.id] |= mentioned
            for bound, name in self._imported(each):
                self._leads[bound].add(name)
                self.run |= {RAY} if (bound, name) == ("*", RAY) else set()
        running: list[ast.AST] = [*node.orelse] if isinstance(node, ast.If) and extract.is_main(node.test) else [node]
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            # Decorators, default values, a class's bases and all but its methods.
            is_class = isinstance(node, ast.ClassDef)
            running = [
                each for each in ast.iter_child_nodes(node)
                if not isinstance(each, _FUNCTIONS if is_class else ast.stmt)
            ]  # fmt: skip
            is_kept = any(_plain_name(each) not in _HARMLESS for each in node.decorator_list)
            self.run |= {node.name} if is_kept or node.name.startswith("__") else set()
            runs = runs or bool(node.decorator_list)
        if runs:
            self.run.update(*(self.mentions(each, imports=False) for each in running))

    def mentions(self, node: ast.AST, imports: bool = True) -> set[str]:
        """Names, attributes, and words of texts, which `getattr` and tables of functions go by."""
        found: set[str] = set()
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                found.add(each.id)
            elif isinstance(each, ast.Attribute):
                found.add(each.attr)
            elif isinstance(each, ast.Constant) and isinstance(each.value, str) and _WORD.fullmatch(each.value):
                found.add(each.value)
            elif isinstance(each, ast.Call) and _plain_name(each) == "getattr":
                found |= set() if len(each.args) > 1 and isinstance(each.args[1], ast.Constant) else {"eval"}
            elif imports:
                found |= {name for _, name in self._imported(each)}
        return found

    def _imported(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """What an import binds, each with what it stands for."""
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
