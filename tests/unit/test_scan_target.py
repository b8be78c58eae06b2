"""Where the source of a function is, for every kind of function a user may hand over."""

from __future__ import annotations

import code
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan import target_of

SOURCE = """
import functools

def plain(x):
    return x

def decorator(f):
    @functools.wraps(f)
    def inner(*args):
        return f(*args)
    return inner

@decorator
def decorated(x):
    return x

def maker(captured):
    def closure():
        return captured()
    return closure

short = lambda x: x

class Thing:
    def method(self): ...
    @classmethod
    def of_class(cls): ...
    @staticmethod
    def static(): ...
    def __call__(self): ...
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two importable modules of a user: `users_code` with every kind of function, and `users_other`."""
    (tmp_path / "users_code.py").write_text(SOURCE)
    (tmp_path / "users_other.py").write_text("def helper(): ...\nclass Other: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_code  # type: ignore[import-not-found]
    import users_other  # type: ignore[import-not-found]

    yield SimpleNamespace(code=users_code, other=users_other, file=tmp_path / "users_code.py")
    del sys.modules["users_code"], sys.modules["users_other"]


KINDS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda c: c.plain,
    "lambda": lambda c: c.short,
    "partial": lambda c: functools.partial(c.plain, 1),
    "partial of partial": lambda c: functools.partial(functools.partial(c.plain), 1),
    "decorated": lambda c: c.decorated,
    "method": lambda c: c.Thing().method,
    "class method": lambda c: c.Thing.of_class,
    "static method": lambda c: c.Thing.static,
    "callable object": lambda c: c.Thing(),
    "class": lambda c: c.Thing,
    "closure": lambda c: c.maker(c.plain),
    "partial of a method": lambda c: functools.partial(c.Thing().method),
}


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_a_module_lead_to_its_file(users: Any, kind: str) -> None:
    target = target_of(KINDS[kind](users.code))
    assert (target.module, target.file, target.source) == ("users_code", users.file, None)
    assert target.label.startswith("users_code.")


def test_the_decorated_function_is_the_one_that_is_named(users: Any) -> None:
    assert target_of(users.code.decorated).label == "users_code.decorated"
    assert target_of(users.code.decorated).first_line == SOURCE.splitlines().index("@decorator") + 1


def test_what_closures_partials_and_objects_hold_is_referred_to(users: Any) -> None:
    thing = users.code.Thing()
    thing.held = users.other.Other()
    for function in (
        users.code.maker(users.other.helper),
        functools.partial(users.code.plain, [users.other.Other()]),
        functools.partial(users.code.plain, users.other),
        thing,
        thing.method,
    ):
        assert "users_other" in target_of(function).imported


def test_what_arguments_are_made_of_is_referred_to(users: Any) -> None:
    other = users.other.Other()
    for value in (other, [{"key": (other,)}], users.other.Other, users.other):
        assert "users_other" in target_of(len, [value]).imported
    space: dict[str, Any] = {"__name__": "typed_in", "users_other": users.other, "Other": users.other.Other}
    code.InteractiveInterpreter(space).runcode(compile(NOTED, "<typed>", "exec"))
    space["box"].held = other
    assert "users_other" in target_of(len, [space["box"]]).imported
    for name in ("noted", "noted_inside", "noted_in_text"):
        assert "users_other" in target_of(space[name]).imported, name


NOTED = """
class Box: ...
box = Box()
def noted(x: users_other.Other): ...
def noted_inside() -> list[Other]: ...
def noted_in_text(x: "Other | None"): ...
"""


def test_builtin_functions_have_a_module_and_no_file() -> None:
    target = target_of(len)
    assert (target.module, target.file, target.source) == ("builtins", None, None)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ScanError, match="not callable"):
        target_of(3)  # type: ignore[arg-type]


CELLS = """
import json as j
import users_other
from users_other import helper
def inner():
    import importlib.util
    from xml import dom
    return helper()
class Base(users_other.Other): ...
class Local(Base):
    def go(self): return inner()
def train(): return Local().go()
"""


def test_a_function_typed_in_is_followed_through_all_it_refers_to(users: Any) -> None:
    space: dict[str, Any] = {"__name__": "typed_in"}
    code.InteractiveInterpreter(space).runcode(compile(CELLS, "<typed>", "exec"))
    target = target_of(space["train"])
    assert target.file is None and target.module is None
    assert {"users_other", "importlib.util", "xml", "xml.dom"} <= set(target.imported)
    assert "json" not in target.imported  # no function uses it


RUN = """
import json, sys
from slurm_ray_flow.core.scan import target_of
import users_other
def train():
    return users_other
t = target_of(train)
print(json.dumps([t.module, t.file and str(t.file), t.source, t.package, t.imported]))
"""


def _run(folder: Path, *arguments: str, text: str = "") -> list[Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_functions_of_a_script_a_module_run_by_name_and_standard_input(users: Any) -> None:
    folder = users.file.parent
    (folder / "pkg").mkdir()
    (folder / "pkg" / "job.py").write_text(RUN)
    script = str(folder / "pkg" / "job.py")
    assert _run(folder, script) == [None, script, None, None, ["users_other"]]
    assert _run(folder, "-m", "pkg.job") == [None, script, None, "pkg", ["users_other"]]
    assert _run(folder, "-", text=RUN) == [None, None, None, None, ["users_other"]]
