"""Literal arguments of calls: module names, and paths of files."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Sequence
from typing import TypeAlias

_LONGEST_PATH = 300
# The name of the file itself in a path from `__file__`; no file has this name.
_ITSELF = "\0"
# The prefix of a package's name, if a path starts in the folder of that package.
PACKAGE = ":"
_SAME_PATH = frozenset({"Path", "PurePath", "abspath", "realpath", "resolve", "absolute", "str", "fspath", "join"})
_OUR_PACKAGE = frozenset({"__package__", "__name__"})
# Of importlib.resources, pkgutil, pkg_resources and jinja2: a package's name comes first, then often a path in it.
_RESOURCES = re.compile(
    r"files|get_data|(read|open)_(text|binary)|path|contents|is_resource|resource_\w+|PackageLoader"
)
# The start of a path ("beside" the file, "open" in the working directory, or a package), and the path from there.
LiteralPath: TypeAlias = tuple[str, str]


def callee(node: ast.Call) -> tuple[str, str]:
    """Return the last name of a called function and the name before it: `pd.read_csv()` is ("read_csv", "pd")."""
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
    path = text(arguments[0]) if arguments else None
    return path if path and len(path) <= _LONGEST_PATH and "\n" not in path and "\0" not in path else None


def writes(name: str, node: ast.Call) -> bool:
    """Return whether the call is `open` for writing: the run makes that file, and does not need it."""
    if name != "open":
        return False
    mode = argument(node, 1, "mode")
    return any(letter in (text(mode) or "") for letter in "wx")


def argument(node: ast.Call, position: int, name: str) -> ast.expr | None:
    """Return an argument of a call by its position or its name."""
    if position < len(node.args):
        return node.args[position]
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def import_module(node: ast.Call) -> tuple[str, tuple[str, ...], int] | None:
    """Return (module, names, leading dots) of `import_module("x", package)` or `run_module("x")`; None if computed."""
    name = _module_text(argument(node, 0, "name") or argument(node, 0, "mod_name"))
    if not name:
        return None
    relative = name.lstrip(".")
    level = len(name) - len(relative)
    package = argument(node, 1, "package") if level else None
    if package is None or (isinstance(package, ast.Name) and package.id in _OUR_PACKAGE):
        return relative, (), level
    base = text(package)
    return None if base is None else (_absolute_name(base, relative, level), (), 0)


def _module_text(node: ast.expr | None) -> str | None:
    """Return a literal module name; `__package__ + ".x"` and `f"{__package__}.x"` are ".x"."""
    package: ast.expr | None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        package, tail = node.left, node.right
    elif isinstance(node, ast.JoinedStr) and len(node.values) == 2:
        package, tail = getattr(node.values[0], "value", None), node.values[1]
    else:
        return text(node)
    suffix = text(tail)
    is_own_package = isinstance(package, ast.Name) and package.id in _OUR_PACKAGE
    return suffix if is_own_package and suffix is not None and suffix.startswith(".") else None


def _absolute_name(package: str, name: str, level: int) -> str:
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


def builtin_import(node: ast.Call) -> tuple[str, tuple[str, ...], int] | None:
    """Return (module, names, leading dots) of `__import__("x", ..., fromlist, level)`; None if computed."""
    name = _module_text(argument(node, 0, "name"))
    if name is None:
        return None
    if name.startswith("."):
        return name[1:], (), 1
    names = getattr(argument(node, 3, "fromlist"), "elts", ())
    level = getattr(argument(node, 4, "level"), "value", 0)
    literal = tuple(text_name for text_name in map(text, names) if text_name is not None)
    return name, literal, level if isinstance(level, int) and level > 0 else 0


def resource_package(node: ast.Call) -> str | None:
    """Return the package that `files("lab")`, `pkgutil.get_data("lab", ...)` and the like import; None for others."""
    name, _ = callee(node)
    package = text(node.args[0]) if node.args and _RESOURCES.fullmatch(name) else None
    is_dotted_name = package is not None and all(part.isidentifier() for part in package.split("."))
    return package if is_dotted_name and (len(node.args) > 1 or name in {"files", "contents"}) else None


def literal_path(node: ast.expr) -> LiteralPath | None:
    """Return the literal path that an expression builds, with its start; None for an expression that builds none.

    Examples are `Path(__file__).parent / "data" / "x.csv"`, `os.path.join("data", "x.csv")`, `Path("data") / "x.csv"`
    and `files("lab").joinpath("x.csv")`.
    """
    path = _path_of(node)
    return path if path and not path[1].endswith((_ITSELF, ".", "/")) else None


def _path_of(node: ast.expr) -> LiteralPath | None:
    if isinstance(node, ast.Name):
        return ("beside", _ITSELF) if node.id == "__file__" else None
    if isinstance(node, ast.Constant):
        return _joined_path(("open", ""), [node])
    if isinstance(node, ast.BinOp):
        return _joined_path(_path_of(node.left), [node.right]) if isinstance(node.op, ast.Div) else None
    if isinstance(node, ast.Attribute):
        return _parent_of(_path_of(node.value)) if node.attr == "parent" else None
    if isinstance(node, ast.Subscript):
        return _path_of_ancestor(node)
    return _path_of_call(node) if isinstance(node, ast.Call) else None


def _path_of_call(node: ast.Call) -> LiteralPath | None:
    name, _ = callee(node)
    method = isinstance(node.func, ast.Attribute) and not node.args
    inner = node.func.value if method and isinstance(node.func, ast.Attribute) else node.args[0] if node.args else None
    if package := resource_package(node):
        return _joined_path((PACKAGE + package, ""), node.args[1:])
    if name == "files" and isinstance(inner, ast.Name | ast.Attribute):
        name = ast.unparse(inner)
        return ("beside", "") if name in _OUR_PACKAGE else (PACKAGE + name, "")
    if name in _SAME_PATH and inner is not None:
        return _joined_path(_path_of(inner), [] if method else node.args[1:])
    if name == "dirname" and inner is not None:
        return _parent_of(_path_of(inner))
    if name in {"joinpath", "with_name"} and isinstance(node.func, ast.Attribute):
        start = _path_of(node.func.value)
        return _joined_path(_parent_of(start) if name == "with_name" else start, node.args)
    return None


def _path_of_ancestor(node: ast.Subscript) -> LiteralPath | None:
    if not (isinstance(node.value, ast.Attribute) and node.value.attr == "parents"):
        return None
    count = node.slice.value if isinstance(node.slice, ast.Constant) else None
    path = _path_of(node.value.value)
    for _ in range(count + 1 if isinstance(count, int) else 0):
        path = _parent_of(path)
    return path if isinstance(count, int) else None


def _parent_of(path: LiteralPath | None) -> LiteralPath | None:
    if path is None:
        return None
    return path[0], posixpath.normpath(posixpath.join(path[1], ".."))


def _joined_path(path: LiteralPath | None, parts: Sequence[ast.expr]) -> LiteralPath | None:
    names = [text(part) for part in parts]
    if path is None or None in names:
        return None
    return path[0], posixpath.normpath(posixpath.join(path[1], *(name for name in names if name is not None)))
