"""What the documents promise: their examples run, their links lead somewhere, their commands exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from slurm_ray_flow.cli.main import app

TOP = Path(__file__).parents[2]
DOCUMENTS = [TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").rglob("*.md"))]


def blocks(language):
    """Every code block of this language, by document and number."""
    for document in DOCUMENTS:
        found = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{document.relative_to(TOP)}-{number}")


@pytest.mark.server
@pytest.mark.ray
@pytest.mark.parametrize("text", list(blocks("python")))
def test_an_example_runs(script, text):
    done = script(text)
    assert done.returncode == 0, done.stderr
    for value in re.findall(r"^    print\(.*\)  # (\d+)$", text, re.MULTILINE):
        assert value in done.stdout.splitlines()


def test_the_example_of_all_options_has_all_options_and_their_defaults():
    from slurm_ray_flow.core.options import Options, is_option

    (call,) = [
        decorator
        for parameter in blocks("python")
        for node in ast.walk(ast.parse(parameter.values[0]))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and len(decorator.keywords) > 10
    ]
    shown = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert shown.keys() == set(filter(is_option, vars(Options())))
    assert Options().but(**shown) == Options()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def commands():
    """Every `srf` command that a document shows, by document."""
    for document in DOCUMENTS:
        text = document.read_text()
        found = re.findall(r"`(srf [^`]+)`", text) + re.findall(r"^\$ (?:\.venv/bin/)?(srf .+)$", text, re.MULTILINE)
        for line in dict.fromkeys(found):
            yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{document.name}-{line}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_exists_with_its_options(words):
    if len(words) == 1:  # the verb is named, and not shown in use
        assert words[0] in set(app)
    else:
        app.parse_args(words, print_error=False, exit_on_error=False)


def test_targets_exist():
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= targets


def test_every_error_is_explained():
    import slurm_ray_flow
    from slurm_ray_flow import SlurmRayFlowError

    text = (TOP / "docs" / "errors.md").read_text()
    for name in slurm_ray_flow.__all__:
        kind = getattr(slurm_ray_flow, name)
        if isinstance(kind, type) and issubclass(kind, SlurmRayFlowError):
            assert f"`{name}`" in text, name
