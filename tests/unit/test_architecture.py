"""The pages for those who change the code name files and functions that are there."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
DOCS, PACKAGE = TOP / "docs", TOP / "src" / "slurm_ray_flow"
HOPS, WORDS = 25, 46


def defined(file):
    """The functions, classes and constants of a module, methods as `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names.update(f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef))
    return names


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_each_named_function_is_in_its_file(page):
    text = (DOCS / page).read_text()
    links = re.findall(r"`((?!tests/)[a-z_/]+\.py)` `([\w.]+)`", text)
    assert links
    missing = [f"{file} {name}" for file, name in links if name not in defined(PACKAGE / file)]
    assert missing == []
    assert {
        file
        for file in re.findall(r"`([a-z_/]+\.py)`", text)
        if not any((top / file).is_file() for top in (PACKAGE, TOP))
    } == set()


def test_a_launch_has_few_hops():
    launch = (DOCS / "architecture.md").read_text().partition("## The way of a launch")[2].partition("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. `[a-z_/]+\.py` `", launch, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 0 < len(numbers) <= HOPS


def test_the_glossary_is_short_and_has_each_word_once():
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) <= WORDS


def test_the_table_of_folders_has_each_folder():
    table = (DOCS / "architecture.md").read_text().partition("## The folders")[2].partition("## Three walks")[0]
    named = set(re.findall(r"^\| `([a-z]+)/` \|", table, re.MULTILINE))
    assert named == {folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
