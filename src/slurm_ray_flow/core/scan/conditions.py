"""Which statements run at all, and which may fail: conditions, try blocks and `__all__`, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

# `try: ... except*` has a class of its own from Python 3.11 on.
TRIES: tuple[type[ast.Try], ...] = (ast.Try, getattr(ast, "TryStar", ast.Try))

_FORGIVING = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_PLATFORM = frozenset({"version_info", "platform", "implementation", "hexversion"})


def verdict(test: ast.expr, aliases: Mapping[str, str]) -> bool | None:
    """Return what `test` is at run time where that is certain: TYPE_CHECKING is False; None when unknown.

    Args:
        test: the condition of an `if`.
        aliases: other names for TYPE_CHECKING in this file.
    """
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.Name):
        return False if aliases.get(test.id, test.id) == "TYPE_CHECKING" else None
    if isinstance(test, ast.Attribute):
        return False if test.attr == "TYPE_CHECKING" else None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = verdict(test.operand, aliases)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        return _combined(test, aliases)
    return None


def _combined(test: ast.BoolOp, aliases: Mapping[str, str]) -> bool | None:
    deciding = isinstance(test.op, ast.Or)
    verdicts = [verdict(value, aliases) for value in test.values]
    if deciding in verdicts:
        return deciding
    return None if None in verdicts else not deciding


def is_main(test: ast.expr) -> bool:
    """Return whether the condition is `__name__ == "__main__"`."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = (test.left, test.comparators[0])
    return any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides) and any(
        isinstance(side, ast.Constant) and side.value == "__main__" for side in sides
    )


def depends_on_platform(test: ast.expr) -> bool:
    """Return whether the condition asks for the Python version or the system: its imports may be missing here."""
    return any(
        isinstance(node, ast.Attribute) and (node.attr in _PLATFORM or (node.attr, _owner(node)) == ("name", "os"))
        for node in ast.walk(test)
    )


def _owner(node: ast.Attribute) -> str:
    return node.value.id if isinstance(node.value, ast.Name) else ""


def catches_import_errors(kind: ast.expr | None) -> bool:
    """Return whether an `except` clause, or an argument of `suppress`, catches a failed import."""
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(catches_import_errors(each) for each in kind.elts)
    return getattr(kind, "attr", getattr(kind, "id", None)) in _FORGIVING


def suppresses_import_errors(node: ast.With | ast.AsyncWith) -> bool:
    """Return whether it is `with contextlib.suppress(ImportError)`."""
    for item in node.items:
        call = item.context_expr
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == "suppress":
            return any(catches_import_errors(argument) for argument in call.args)
    return False


def exports(body: Iterable[ast.stmt]) -> tuple[str, ...]:
    """Return the names that `from package import *` brings, where `__all__` is written as literal lists."""
    names: list[str] = []
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            elements = getattr(getattr(statement, "value", None), "elts", ())
            names += [each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return tuple(names)
