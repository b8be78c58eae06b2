"""What calls say in literal text: module names, and paths of files."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Sequence

_LONGEST_PATH = 300
# Stands for the file itself while a path from `__file__` is followed; no file has this name.
_ITSELF = "\0"
_SAME_PLACE = frozenset({"Path", "PurePath", "abspath", "realpath", "resolve", "absolute", "str", "fspath"})
_OUR_PACKAGE = frozenset({"__package__", "__name__"})


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


def beside(node: ast.expr) -> str | None:
    """Return the path, from the folder of the file, of what is built from `__file__`; None when it is not.

    `Path(__file__).parent / "data" / "x.csv"` and `os.path.join(os.path.dirname(__file__), "x.csv")` are understood.
    """
    place = _place(node)
    return place if place and not place.endswith((_ITSELF, "..")) else None


def _place(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return _ITSELF if node.id == "__file__" else None
    if isinstance(node, ast.BinOp):
        return _joined(_place(node.left), [node.right]) if isinstance(node.op, ast.Div) else None
    if isinstance(node, ast.Attribute):
        return _up(_place(node.value)) if node.attr == "parent" else None
    if isinstance(node, ast.Subscript):
        return _ancestor(node)
    return _place_of_call(node) if isinstance(node, ast.Call) else None


def _place_of_call(node: ast.Call) -> str | None:
    name, _ = callee(node)
    method = isinstance(node.func, ast.Attribute) and not node.args
    inner = node.func.value if method and isinstance(node.func, ast.Attribute) else node.args[0] if node.args else None
    if name in _SAME_PLACE and inner is not None:
        return _place(inner)
    if name == "dirname" and inner is not None:
        return _up(_place(inner))
    if name == "join" and inner is not None:
        return _joined(_place(inner), node.args[1:])
    if name in {"joinpath", "with_name"} and isinstance(node.func, ast.Attribute):
        start = _place(node.func.value)
        return _joined(_up(start) if name == "with_name" else start, node.args)
    return None


def _ancestor(node: ast.Subscript) -> str | None:
    if not (isinstance(node.value, ast.Attribute) and node.value.attr == "parents"):
        return None
    count = node.slice.value if isinstance(node.slice, ast.Constant) else None
    place = _place(node.value.value)
    for _ in range(count + 1 if isinstance(count, int) else 0):
        place = _up(place)
    return place if isinstance(count, int) else None


def _up(place: str | None) -> str | None:
    if place is None:
        return None
    return posixpath.normpath(posixpath.join(place, ".."))


def _joined(place: str | None, rest: Sequence[ast.expr]) -> str | None:
    names = [text(each) for each in rest]
    if place is None or None in names:
        return None
    return posixpath.normpath(posixpath.join(place, *(name for name in names if name is not None)))
