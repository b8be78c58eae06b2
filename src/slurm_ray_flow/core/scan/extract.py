"""The imports of one source text, from its syntax tree.

Parsing takes most of a scan's time, and building and walking the tree takes as much again. So a regular expression
first finds the lines of interest. Only statements that span such a line are visited. If all of them lie in the first
half of a text, as imports usually do, only that half becomes a tree. `symtable`, which builds no tree, checks the rest.
"""

from __future__ import annotations

import ast
import os
import re
import symtable
from bisect import bisect_left
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import NamedTuple, TypeAlias

from slurm_ray_flow.core.scan import literals

# `try: ... except*` has a class of its own from Python 3.11 on.
TRIES: tuple[type[ast.Try], ...] = (ast.Try, getattr(ast, "TryStar", ast.Try))

_FORGIVING = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_PLATFORM = frozenset({"version_info", "platform", "implementation", "hexversion"})


def known_outcome(test: ast.expr, aliases: Mapping[str, str]) -> bool | None:
    """Return the value of `test` at run time if it is certain (TYPE_CHECKING is False), else None.

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
        inner = known_outcome(test.operand, aliases)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        return _combined(test, aliases)
    return None


def _combined(test: ast.BoolOp, aliases: Mapping[str, str]) -> bool | None:
    deciding_value = isinstance(test.op, ast.Or)
    outcomes = [known_outcome(value, aliases) for value in test.values]
    if deciding_value in outcomes:
        return deciding_value
    return None if None in outcomes else not deciding_value


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


OPTIONAL = 1
MAIN_ONLY = 2

# (module, names after `from module import`, leading dots, line, OPTIONAL | MAIN_ONLY)
Imported: TypeAlias = tuple[str, tuple[str, ...], int, int, int]
# (kind, line, text): text is source code, an error message, or a path: for "open" as written, for "beside" from the
# folder of the file, and for ":lab" from that of the package lab
Note: TypeAlias = tuple[str, int, str]

_CALLS = (
    rb"__import__|import_module|exec|run_path|run_module|iter_modules|walk_packages|spec_from_file_location"
    rb"|open\w*|Path|genfromtxt|fromfile|imread|read\w*|load\w*"
    rb"|path\.join|(?:pkg_)?resources\.\w+|files|get_data|resource_\w+|PackageLoader"
)
_INTERESTING = re.compile(rb"\bimport\b|\b(?:" + _CALLS + rb")\s*\(|\b__file__\b")
_IMPORT = re.compile(rb"import\b")
# A search for fixed text is many times faster than the expression above, and enough for most files.
_HINTS = (
    *(b"open", b"read", b"load", b"Path", b"exec", b"__import__", b"import_module", b"__file__", b"run_path"),
    *(b"run_module", b"iter_modules", b"walk_packages", b"spec_from_file", b"fromfile", b"genfromtxt"),
    *(b"path.join", b"resource", b"get_data", b"PackageLoader"),
)
_RESOURCES = re.compile(rb"resource|get_data|PackageLoader")
_PATHS = re.compile(rb"__file__|Path|path\.join|resource|get_data")
_TOP_LEVEL = re.compile(rb"^[A-Za-z_@]", re.MULTILINE)
_ALIASED = re.compile((_CALLS + rb"|TYPE_CHECKING").decode())
_OPENERS = re.compile(r"open|Path|run_path|genfromtxt|fromfile|imread|read\w*|load\w*")
_WRITERS = frozenset({"write_text", "write_bytes", "mkdir", "touch", "unlink"})
_SAVERS = re.compile(r"(to_|save|write|dump|imwrite)\w*")
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


class Extract(NamedTuple):
    """The imports of one source text, and its notes about files."""

    imports: tuple[Imported, ...]
    notes: tuple[Note, ...]
    exports: tuple[str, ...]


def extract(data: bytes, *, exported: bool = False) -> Extract:
    """Return the imports and notes of a source text; text that is no Python yields a note of kind "syntax".

    Args:
        data: the bytes of the file; byte order mark and encoding cookie are followed.
        exported: whether to read `__all__` too.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    exported = exported and b"__all__" in data
    try:
        head_extract = None if exported else _extract_head(data)
        return head_extract or _extract_whole(data, exported)
    except _UNREADABLE as error:
        line = getattr(error, "lineno", None) or 1
        return Extract((), (("syntax", line, getattr(error, "msg", None) or str(error)),), ())


def _extract_whole(data: bytes, exported: bool) -> Extract:
    reader, tree = _Reader(data), ast.parse(data)
    reader.statements(tree.body, 0)
    return reader.extract(exports(tree.body) if exported else ())


def _extract_head(data: bytes) -> Extract | None:
    """Read the statements up to the last line of interest; None where that would not help, or can't be done."""
    reader = _Reader(data)
    head = reader.head()
    if head is None:
        return None
    try:
        tree = ast.parse(head)
    except SyntaxError:  # the cut went through a statement (`try`, a decorator, brackets), or the text is wrong
        return None
    symtable.symtable(data, "<source>", "exec")  # type: ignore[arg-type]  # bytes are taken as `compile` takes them
    reader.statements(tree.body, 0)
    return None if reader.reads_all else reader.extract(())


class _Reader:
    """Visits the statements of one text, and gathers their imports and notes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.imports: list[Imported] = []
        self.notes: list[Note] = []
        self._aliases: dict[str, str] = {}
        self._end = 0
        self._lines: Sequence[int] | None = self._lines_of_interest()
        self._resources, self._paths = _RESOURCES.search(data), _PATHS.search(data)
        self._importlib = b"importlib" in data
        self._written_files: set[int] = set()

    @property
    def reads_all(self) -> bool:
        """Whether every line must be read, since this text gives another name to a function that opens or imports."""
        return self._lines is None

    def extract(self, exports: tuple[str, ...]) -> Extract:
        return Extract(tuple(self.imports), tuple(self.notes), exports)

    def head(self) -> bytes | None:
        """The text up to the first statement after the last line of interest; None if it is most of the text."""
        following = _TOP_LEVEL.search(self._data, self._end)
        if following is None or following.start() > len(self._data) // 2:
            return None
        return self._data[: following.start()]

    def statements(self, body: Iterable[ast.stmt], flags: int) -> None:
        for statement in body:
            if self._is_of_interest(statement):
                self._statement(statement, flags)

    def _is_of_interest(self, node: ast.stmt | ast.expr) -> bool:
        if self._lines is None:
            return True
        decorators = getattr(node, "decorator_list", None)
        position = bisect_left(self._lines, decorators[0].lineno if decorators else node.lineno)
        return position < len(self._lines) and self._lines[position] <= (node.end_lineno or node.lineno)

    def _statement(self, node: ast.stmt, flags: int) -> None:
        if isinstance(node, ast.Import):
            self.imports.extend((alias.name, (), 0, node.lineno, flags) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            self._import_from(node, flags)
        elif isinstance(node, ast.If):
            self._branches(node, flags)
        elif isinstance(node, TRIES):
            self._try_statement(node, flags)
        elif isinstance(node, (ast.With, ast.AsyncWith)) and suppresses_import_errors(node):
            self._child_nodes(node, flags | OPTIONAL)
        else:
            self._child_nodes(node, flags)

    def _import_from(self, node: ast.ImportFrom, flags: int) -> None:
        names = tuple([alias.name for alias in node.names])
        self.imports.append((node.module or "", names, node.level, node.lineno, flags))
        for alias in node.names:
            if alias.asname is not None and _ALIASED.fullmatch(alias.name):
                self._aliases[alias.asname] = alias.name
                self._lines = None  # its calls can stand on any line

    def _branches(self, node: ast.If, flags: int) -> None:
        self._expression(node.test, flags)
        outcome = known_outcome(node.test, self._aliases)
        inner = flags
        if depends_on_platform(node.test):
            inner |= OPTIONAL
        if outcome is not False:
            self.statements(node.body, inner | (MAIN_ONLY if is_main(node.test) else 0))
        if outcome is not True:
            self.statements(node.orelse, inner)

    def _try_statement(self, node: ast.Try, flags: int) -> None:
        forgiving = any(catches_import_errors(handler.type) for handler in node.handlers)
        inner = flags | OPTIONAL if forgiving else flags
        self.statements(node.body, inner)
        for handler in node.handlers:
            self.statements(handler.body, inner)
        self.statements(node.orelse, flags)
        self.statements(node.finalbody, flags)

    def _child_nodes(self, node: ast.AST, flags: int) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statements((child,), flags)
            elif isinstance(child, ast.expr):
                self._expression(child, flags)
            else:
                self._child_nodes(child, flags)

    def _expression(self, expression: ast.expr, flags: int) -> None:
        if not self._is_of_interest(expression):
            return
        for node in ast.walk(expression):
            if isinstance(node, ast.Call):
                self._call(node, flags)
            if self._paths and isinstance(node, (ast.Call, ast.BinOp)) and id(node) not in self._written_files:
                kind, path = literals.literal_path(node) or ("", None)
                self._note(kind, node, path)

    def _note(self, kind: str, node: ast.expr, text: str | None) -> None:
        if text is not None:
            self.notes.append((kind, node.lineno, text))

    def _call(self, node: ast.Call, flags: int) -> None:
        name, owner = literals.callee(node)
        name = self._aliases.get(name, name)
        if self._resources and (package := literals.resource_package(node)):
            self.imports.append((package, (), 0, node.lineno, flags | OPTIONAL))
        if literals.writes(name, node) or _SAVERS.fullmatch(name):
            self._written_files.update(id(each) for each in node.args if literals.literal_path(each))
            self._written_files.add(id(node))
        if name in {"import_module", "__import__", "run_module"}:
            if self._importlib or name != "import_module":
                self._dynamic_import(name, node, flags)
        elif name in {"iter_modules", "walk_packages"} and owner in {"pkgutil", ""}:
            self._note("computed_import", node, ast.unparse(node))
        elif name == "exec" and not owner:
            self._exec(node, flags)
        elif name == "spec_from_file_location":
            self._note("open", node, literals.path_text(node.args[1:]))
        elif _OPENERS.fullmatch(name) and id(node) not in self._written_files:
            self._note("open", node, literals.path_text(node.args or [word.value for word in node.keywords]))
        elif name in _WRITERS and isinstance(node.func, ast.Attribute):
            self._written_files.add(id(node.func.value))

    def _dynamic_import(self, name: str, node: ast.Call, flags: int) -> None:
        reader = literals.builtin_import if name == "__import__" else literals.import_module
        imported = reader(node)
        if imported is not None:
            self.imports.append((*imported, node.lineno, flags))
        elif node.args or node.keywords:
            self._note("computed_import", node, ast.unparse(node))

    def _exec(self, node: ast.Call, flags: int) -> None:
        text = literals.text(node.args[0]) if node.args else None
        inner = extract(text.encode()) if text is not None else None
        if inner is None or any(kind == "syntax" for kind, _, _ in inner.notes):
            self._note("exec", node, ast.unparse(node))
            return
        self.imports.extend((module, names, level, node.lineno, flags) for module, names, level, _, _ in inner.imports)
        self.notes.extend((kind, node.lineno, note_text) for kind, _, note_text in inner.notes)

    def _lines_of_interest(self) -> list[int]:
        data, lines = self._data, []
        line, position = 1, 0
        for match in (_INTERESTING if _has_hint(data) else _IMPORT).finditer(data):
            line += data.count(b"\n", position, match.start())
            position = match.start()
            lines.append(line)
            self._end = match.end()
        return lines


def _has_hint(data: bytes) -> bool:
    for hint in _HINTS:  # noqa: SIM110 - a generator takes three times as long
        if hint in data:
            return True
    return False


# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH116


RULES = 2
"""The version of the rules of `extract`: results that were cached under another version are not used."""
Stamp: TypeAlias = tuple[int, int, int]


class ParsedFile(NamedTuple):
    """The imports of one version of one file.

    Attributes:
        stamp: (mtime in ns, size, inode) of the version that was read.
        imports: see `extract.Imported`.
        notes: see `extract.Note`.
        exports: the literal `__all__` of a package's `__init__.py`.
    """

    stamp: Stamp
    imports: tuple[Imported, ...]
    notes: tuple[Note, ...]
    exports: tuple[str, ...]


def parsed_file(path: str, parsed: MutableMapping[str, ParsedFile]) -> ParsedFile:
    """Return the imports of `path`: from `parsed` if the file has not changed, else by parsing, which fills `parsed`.

    Raises:
        OSError: the file can't be read.
    """
    status = os.stat(path)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    cached = parsed.get(path)
    if cached is not None and tuple(cached[0]) == stamp:
        return cached
    with open(path, "rb") as file:
        content: Extract = extract(file.read(), exported=path.endswith("__init__.py"))
    fresh = parsed[path] = ParsedFile(stamp, *content)
    return fresh
