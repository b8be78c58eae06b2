"""What the documents promise: their examples run, their links lead somewhere, their commands exist; and their site."""

import ast
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import slurm_ray_flow
from followed import Page
from slurm_ray_flow.cli.main import app

TOP = Path(__file__).parents[2]
DOCUMENTS = [TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").rglob("*.md"))]


def blocks(language):
    """Every code block of this language, by document and number, once; without those that have a title."""
    seen = set()
    for document in DOCUMENTS:
        found = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            if text in seen:
                continue
            seen.add(text)
            yield pytest.param(text, id=f"{document.relative_to(TOP)}-{number}")


@pytest.mark.server
@pytest.mark.ray
@pytest.mark.parametrize("text", list(blocks("python")))
def test_an_example_runs(script, text):
    done = script(text)
    assert done.returncode == 0, done.stderr
    for value in re.findall(r"^    print\(.*\)  # (\d+)$", text, re.MULTILINE):
        assert value in done.stdout.splitlines()


@pytest.mark.server
@pytest.mark.ray
def test_the_quick_start_on_this_machine(server, tmp_path):
    page = Page("start/laptop.md")
    assert [words[0] for words in page.commands] == ["python"]
    written = page.follow(tmp_path)
    assert page.values
    assert set(page.values) <= set(written.splitlines())


@pytest.mark.parametrize("text", list(blocks('python title="with slurm-ray-flow"')))
def test_an_example_beside_another_tools_is_one_that_the_decorator_takes(text):
    names = {"__name__": "example"}
    exec(compile(text, "example", "exec"), names)
    assert names["train"].options.cluster == "curnagl"


@pytest.mark.parametrize("text", [*blocks('python title="with SlurmRay"'), *blocks('python title="with submitit"')])
def test_an_example_of_another_tool_is_python(text):
    ast.parse(text)


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


def test_type_checkers_and_the_reference_see_all_options():
    from slurm_ray_flow.core.options import Options, is_option
    from slurm_ray_flow.interface import decorator

    source = ast.parse(Path(decorator.__file__).read_text())
    forms = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "slurm_ray_flow"]
    wanted = set(filter(is_option, vars(Options())))
    assert {option.arg for form in forms for option in form.args.kwonlyargs} == wanted
    explained = re.findall(r"^        ([a-z_]+):", ast.get_docstring(forms[-1], clean=False), re.MULTILINE)
    assert set(explained) == {"function", *wanted}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


PLACES = {"VERB": "runs", "SHELL": "bash"}
"""What a reader may put there. Other places, such as NAME and RUN, take any word."""


def commands():
    """Every `srf` command that a document shows, by document."""
    for document in DOCUMENTS:
        text = document.read_text()
        found = re.findall(r"`(srf [^`]+)`", text) + re.findall(r"^\$ (?:\.venv/bin/)?(srf .+)$", text, re.MULTILINE)
        for line in dict.fromkeys(found):
            words = [PLACES.get(word, word) for word in shlex.split(line, comments=True)[1:]]
            yield pytest.param(words, id=f"{document.name}-{line}")


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
    from slurm_ray_flow import SlurmRayFlowError

    text = (TOP / "docs" / "errors.md").read_text()
    for name in slurm_ray_flow.__all__:
        kind = getattr(slurm_ray_flow, name)
        if isinstance(kind, type) and issubclass(kind, SlurmRayFlowError):
            assert f"`{name}`" in text, name


class Assets(HTMLParser):
    """What a page has a browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in {"canonical", "prev", "next"}:
            self.found.add(given["href"])
        elif tag in {"script", "img", "iframe"} and given.get("src"):
            self.found.add(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documents as a site."""
    folder = tmp_path_factory.mktemp("site")
    mkdocs = [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(mkdocs, cwd=TOP, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_opens_from_disk_and_fetches_nothing_from_elsewhere(site):
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # that one a web server shows
    assert len(pages) > 20
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text())
        assert "```" not in page.read_text(), f"{page}: a block of code that is none"
        assert len(assets.found) > 3
        missing = [path for path in assets.found if not (page.parent / path.partition("?")[0]).is_file()]
        assert missing == [], page


def test_the_reference_has_every_public_name():
    text = "\n".join(page.read_text() for page in (TOP / "docs" / "reference").glob("*.md"))
    assert sorted(re.findall(r"^::: slurm_ray_flow\.(\w+)$", text, re.MULTILINE)) == sorted(slurm_ray_flow.__all__)
