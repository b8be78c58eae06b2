"""Literal arguments of calls: module names, and paths of files."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Sequence
from typing import TypeAlias

_LONGEST_PATH = 300
# Stands for the file itself while a path from `__file__` is followed; no file has this name.
_ITSELF = "\0"
# Begins the name of a package in whose folder a path starts.
PACKAGE = ":"
_SAME_PLACE = frozenset({"Path", "PurePath", "abspath", "realpath", "resolve", "absolute", "str", "fspath", "join"})
_OUR_PACKAGE = frozenset({"__package__", "__name__"})
# Of importlib.resources, pkgutil, pkg_resources and jinja2: a package's name comes first, then often a path in it.
_RESOURCES = re.compile(
    r"files|get_data|(read|open)_(text|binary)|path|contents|is_resource|resource_\w+|PackageLoader"
)
# Where a path starts ("beside" the file, "open" in the working directory, or a package), and the path from there.
Place: TypeAlias = tuple[str, str]


def callee(node: ast.Call) -> tuple[str, str]:
    """Return the last name of what is called and the name before it: `pd.read_csv()` is ("read_csv", "pd")."""
    function = node.func
    if isinstance(function, ast.Name):
        return function.id, ""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else "?"
    return "", ""


def text(node: ast.expr | None) -> str | None:
    """Return the value of a string literal, else None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def path_text(arguments: Sequence[ast.expr]) -> str | None:
    """Return the first argument if it is a literal that can be a path."""
    found = text(arguments[0]) if arguments else None
    return found if found and len(found) <= _LONGEST_PATH and "\n" not in found and "\0" not in found else None


def writes(name: str, node: ast.Call) -> bool:
    """Return whether the call is `open` for writing: the file is made there, not needed there."""
    if name != "open":
        return False
    mode = argument(node, 1, "mode")
    return any(letter in (text(mode) or "") for letter in "wx")


def argument(node: ast.Call, position: int, name: str) -> ast.expr | None:
    """Return an argument of a call by its position or its name."""
    if position < len(node.args):
        return node.args[position]
    return next((word.value for word in node.keywords if word.arg == name), None)


def import_module(node: ast.Call) -> tuple[str, tuple[str, ...], int] | None:
    """Return (module, names, leading dots) of `import_module("x", package)` or `run_module("x")`; None if computed."""
    name = _module_text(argument(node, 0, "name") or argument(node, 0, "mod_name"))
    if not name:
        return None
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    package = argument(node, 1, "package") if level else None
    if package is None or (isinstance(package, ast.Name) and package.id in _OUR_PACKAGE):
        return rest, (), level
    base = text(package)
    return None if base is None else (_below(base, rest, level), (), 0)


def _module_text(node: ast.expr | None) -> str | None:
    """Return a literal module name; `__package__ + ".x"` and `f"{__package__}.x"` are ".x"."""
    package: ast.expr | None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        package, rest = node.left, node.right
    elif isinstance(node, ast.JoinedStr) and len(node.values) == 2:
        package, rest = getattr(node.values[0], "value", None), node.values[1]
    else:
        return text(node)
    ending = text(rest)
    own = isinstance(package, ast.Name) and package.id in _OUR_PACKAGE
    return ending if own and ending is not None and ending.startswith(".") else None


def _below(package: str, rest: str, level: int) -> str:
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([rest] if rest else [])])


def builtin_import(node: ast.Call) -> tuple[str, tuple[str, ...], int] | None:
    """Return (module, names, leading dots) of `__import__("x", ..., fromlist, level)`; None if computed."""
    name = _module_text(argument(node, 0, "name"))
    if name is None:
        return None
    if name.startswith("."):
        return name[1:], (), 1
    names = getattr(argument(node, 3, "fromlist"), "elts", ())
    level = getattr(argument(node, 4, "level"), "value", 0)
    literal = tuple(each for each in map(text, names) if each is not None)
    return name, literal, level if isinstance(level, int) and level > 0 else 0


def resource_package(node: ast.Call) -> str | None:
    """Return the package that `files("lab")`, `pkgutil.get_data("lab", ...)` and the like import; None for others."""
    name, _ = callee(node)
    found = text(node.args[0]) if node.args and _RESOURCES.fullmatch(name) else None
    whole = found is not None and all(part.isidentifier() for part in found.split("."))
    return found if whole and (len(node.args) > 1 or name in {"files", "contents"}) else None


def located(node: ast.expr) -> Place | None:
    """Return the literal path that an expression builds, and from where; None when it builds none.

    `Path(__file__).parent / "data" / "x.csv"`, `os.path.join("data", "x.csv")`, `Path("data") / "x.csv"` and
    `files("lab").joinpath("x.csv")` are understood.
    """
    place = _place(node)
    return place if place and not place[1].endswith((_ITSELF, ".", "/")) else None


def _place(node: ast.expr) -> Place | None:
    if isinstance(node, ast.Name):
        return ("beside", _ITSELF) if node.id == "__file__" else None
    if isinstance(node, ast.Constant):
        return _joined(("open", ""), [node])
    if isinstance(node, ast.BinOp):
        return _joined(_place(node.left), [node.right]) if isinstance(node.op, ast.Div) else None
    if isinstance(node, ast.Attribute):
        return _up(_place(node.value)) if node.attr == "parent" else None
    if isinstance(node, ast.Subscript):
        return _ancestor(node)
    return _place_of_call(node) if isinstance(node, ast.Call) else None


def _place_of_call(node: ast.Call) -> Place | None:
    name, _ = callee(node)
    method = isinstance(node.func, ast.Attribute) and not node.args
    inner = node.func.value if method and isinstance(node.func, ast.Attribute) else node.args[0] if node.args else None
    if package := resource_package(node):
        return _joined((PACKAGE + package, ""), node.args[1:])
    if name == "files" and isinstance(inner, ast.Name | ast.Attribute):
        name = ast.unparse(inner)
        return ("beside", "") if name in _OUR_PACKAGE else (PACKAGE + name, "")
    if name in _SAME_PLACE and inner is not None:
        return _joined(_place(inner), [] if method else node.args[1:])
    if name == "dirname" and inner is not None:
        return _up(_place(inner))
    if name in {"joinpath", "with_name"} and isinstance(node.func, ast.Attribute):
        start = _place(node.func.value)
        return _joined(_up(start) if name == "with_name" else start, node.args)
    return None


def _ancestor(node: ast.Subscript) -> Place | None:
    if not (isinstance(node.value, ast.Attribute) and node.value.attr == "parents"):
        return None
    count = node.slice.value if isinstance(node.slice, ast.Constant) else None
    place = _place(node.value.value)
    for _ in range(count + 1 if isinstance(count, int) else 0):
        place = _up(place)
    return place if isinstance(count, int) else None


def _up(place: Place | None) -> Place | None:
    if place is None:
        return None
    return place[0], posixpath.normpath(posixpath.join(place[1], ".."))


def _joined(place: Place | None, rest: Sequence[ast.expr]) -> Place | None:
    names = [text(each) for each in rest]
    if place is None or None in names:
        return None
    return place[0], posixpath.normpath(posixpath.join(place[1], *(name for name in names if name is not None)))
