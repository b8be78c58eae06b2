"""One text: what stands after its last import is checked without a tree, and that must never show."""

from __future__ import annotations

import pytest

from slurm_ray_flow.core.scan.extract import OPTIONAL, extract

FILLER = "def work(value):\n    return value + 1\n\n\n" * 20


def modules(text: str) -> list[tuple[str, int]]:
    return [(name, flags) for name, _, _, _, flags in extract(text.encode()).imports]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import json\n" + FILLER + "def broken(:\n    pass\n", 82),
        ("import json\n" + FILLER + "def twice(a, a):\n    pass\n", 82),
        (FILLER + "x = (\n", 81),
    ],
    ids=["after the imports", "seen only by the compiler", "no imports"],
)
def test_a_syntax_error_far_from_the_imports_is_found(text: str, line: int) -> None:
    assert [(kind, where) for kind, where, _ in extract(text.encode()).notes] == [("syntax", line)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("try:\n    import fast\nexcept ImportError:\n    fast = None\n", [("fast", OPTIONAL)]),
        ("from package import (\none,\ntwo,\n)\n", [("package", 0)]),
        ("@__import__('decorators').one\ndef decorated(): ...\n", [("decorators", 0)]),
        ('"""\nimport never\nText at the margin.\n"""\nimport really\n', [("really", 0)]),
        ("import one; import \\\ntwo\n", [("one", 0), ("two", 0)]),
        ("if True:\n    import yes\nelse:\n    import no\n", [("yes", 0)]),
        ("import only", [("only", 0)]),
    ],
    ids=["try", "names at the margin", "decorator", "docstring", "continued line", "else", "no end of line"],
)
def test_no_statement_is_cut_in_two(text: str, expected: list[tuple[str, int]]) -> None:
    assert modules(text) == expected
    assert modules(text + "\n" + FILLER) == expected


def test_a_function_under_another_name_is_found_far_below() -> None:
    text = "from builtins import open as get\n" + FILLER + "get('data.csv')\n"
    assert extract(text.encode()).notes == (("open", 82, "data.csv"),)


def test_an_encoding_cookie_counts_for_the_whole_text() -> None:
    text = "# -*- coding: latin-1 -*-\nimport json\n" + FILLER + "name = 'é'\n"
    assert extract(text.encode("latin-1")).notes == ()
