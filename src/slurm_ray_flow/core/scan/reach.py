"""Whether a function may use Ray: by the names in its code, followed from definition to definition.

Names are followed, not objects: whoever mentions `g` reaches all that is called so in the user's own modules. So too
much is reached rather than too little. Where code may be found by other means (`eval`, a computed `getattr`, a
decorator that keeps what it gets), and where there is much code, all of it counts.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from slurm_ray_flow.core.scan import extract
from slurm_ray_flow.core.scan.model import FunctionSource, LocalFile

MOST_BYTES = 300_000
"""The most bytes of code that are read; reading them takes less time than a start of Ray."""
_DOUBTFUL = frozenset(
    ("", "eval", "exec", "globals", "locals", "vars", "import_module", "__import__", "run_path", "run_module")
)
"""Names after which the code that runs is not known; "" stands for a computed `getattr`."""
_HARMLESS = frozenset(
    (
        *("slurm_ray_flow", "flow", "task", "staticmethod", "classmethod", "property", "abstractmethod", "overload"),
        *("dataclass", "wraps", "cache", "lru_cache", "cached_property", "total_ordering", "contextmanager"),
    )
)
"""Decorators that give back the function, or an object that calls it."""
_WORD = re.compile(r"[^\W\d]\w{,80}")

IsRay = Callable[[str], bool]


class _Part(NamedTuple):
    """A statement of a module.

    Attributes:
        names: what it binds; of a class, its methods too.
        mentions: the names in it.
        ray: whether it imports Ray.
        runs: it runs when its module is imported.
        top: it is no definition.
    """

    names: frozenset[str]
    mentions: frozenset[str]
    ray: bool = False
    runs: bool = False
    top: bool = False


def reaches_ray(target: FunctionSource, files: Iterable[LocalFile], is_ray: IsRay) -> bool:
    """Say whether a function uses Ray, or may.

    Args:
        target: the function.
        files: the user's own modules that its file comes to.
        is_ray: whether a module that is not the user's own means Ray.
    """
    name = target.label.removeprefix(f"{target.module or '__main__'}.")
    if target.file is None or "<" in name or any(map(is_ray, target.imported)):
        return True
    paths = {file.path: _is_met(file.module, target.imported) for file in files}
    paths.setdefault(target.file, False)
    parts: list[_Part] = []
    try:
        if sum(path.stat().st_size for path in paths) > MOST_BYTES:
            return True
        for path, is_met in paths.items():
            # Of a script, only what the function names goes to the cluster; else a module is imported there.
            runs = path != target.file or target.module is not None
            found = _Parts(is_ray, runs).of(ast.parse(path.read_bytes()).body)  # a compiled module is no source
            parts += [part._replace(runs=True) for part in found] if is_met else found
    except (OSError, SyntaxError, ValueError, RecursionError):
        return True
    return _follow(parts, name.split("."))


def _is_met(module: str, imported: Sequence[str]) -> bool:
    """Whether the live function or its arguments refer to an object of a module."""
    return any(f"{name}.".startswith(f"{module}.") for name in imported)


def _follow(parts: Sequence[_Part], names: Sequence[str]) -> bool:
    bound = defaultdict(list)
    for part in parts:
        for name in part.names:
            bound[name].append(part)
    ray = {name for part in parts if part.ray and part.top for name in part.names}
    if names[0] not in bound or any(part.top and part.mentions & ray for part in parts):
        return True
    seen: set[str] = set()
    waiting = {*names}.union(*(part.mentions for part in parts if part.runs))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in _DOUBTFUL or any(part.ray for part in bound[name]):
            return True
        waiting.update(*(part.mentions for part in bound[name]))
    return False


class _Parts:
    """The parts of modules, read once each."""

    def __init__(self, is_ray: IsRay, runs: bool) -> None:
        self._is_ray, self._runs = is_ray, runs

    def of(self, body: Iterable[ast.stmt]) -> list[_Part]:
        return [part for statement in body for part in self._parts(statement)]

    def _parts(self, node: ast.stmt) -> Iterator[_Part]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from self._imported(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from self._defined(node)
        elif isinstance(node, ast.If) and extract.is_main(node.test):
            yield from self.of(node.orelse)
        else:
            yield from self.of(_inside(node))
            yield self._top([each for each in ast.iter_child_nodes(node) if isinstance(each, (ast.expr, ast.withitem))])

    def _top(self, nodes: Sequence[ast.AST]) -> _Part:
        names = [
            each.id
            for node in nodes
            for each in ast.walk(node)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        ]
        said = frozenset[str]().union(*map(_mentions, nodes))
        return _Part(frozenset(names), said - {*names}, runs=self._runs, top=True)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[_Part]:
        for alias in node.names:
            name = alias.name if isinstance(node, ast.Import) else node.module or ""
            ray = not getattr(node, "level", 0) and self._is_ray(name)
            bound = alias.asname or alias.name.partition(".")[0]
            said = frozenset([alias.name]) if bound == "*" or not ray else frozenset[str]()
            yield _Part(frozenset([bound]), said, ray, top=True)

    def _defined(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[_Part]:
        inner = [each for each in ast.walk(node) if isinstance(each, (ast.Import, ast.ImportFrom))]
        ray = any(part.ray for each in inner for part in self._imported(each))
        methods = [each.name for each in ast.walk(node) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
        names = frozenset([node.name, *(methods if isinstance(node, ast.ClassDef) else ())])
        kept = any(_plain_name(each) not in _HARMLESS for each in node.decorator_list) or node.name.startswith("__")
        yield _Part(names, _mentions(node), ray)
        # What runs with the definition: decorators, default values, a class's bases and all but its methods.
        beside = [each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.stmt)]
        if isinstance(node, ast.ClassDef):
            beside += [each for each in node.body if not isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
        said = frozenset[str]().union(*map(_mentions, beside)) | ({node.name} if kept else frozenset())
        yield _Part(frozenset(), said, runs=self._runs or bool(node.decorator_list))


def _inside(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements inside an `if`, a `try`, a loop."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif not isinstance(child, (ast.expr, ast.withitem)):
            yield from _inside(child)


def _mentions(node: ast.AST) -> frozenset[str]:
    """The names, attributes and words of texts in a piece of code; "" for a computed name."""
    found: set[str] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            found.add(each.id)
        elif isinstance(each, ast.Attribute):
            found.add(each.attr)
        elif isinstance(each, (ast.Import, ast.ImportFrom)):
            found.update(alias.name for alias in each.names)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and _WORD.fullmatch(each.value):
            found.add(each.value)
        elif isinstance(each, ast.Call) and _plain_name(each) == "getattr":
            found.update(() if len(each.args) > 1 and isinstance(each.args[1], ast.Constant) else ("",))
    return frozenset(found)


def _plain_name(node: ast.expr) -> str:
    """The last name of a decorator or a call: `b` of `a.b(1)`."""
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
