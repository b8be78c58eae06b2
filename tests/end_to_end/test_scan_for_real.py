"""Projects as people have them, launched through the decorator: what the function needs is there, and no more."""

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from uv import find_uv_bin

from slurm_ray_flow import ScanError
from slurm_ray_flow.blocks import store
from slurm_ray_flow.core.home import home
from support import wait_for

pytestmark = pytest.mark.server

HEAD = "from slurm_ray_flow import slurm_ray_flow\n"


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    """Writes files, and imports a module of them as a script in `working_directory` would."""
    before = set(sys.modules)

    def made(files, module, path=(".",), working_directory="."):
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        for entry in path:
            monkeypatch.syspath_prepend(str(tmp_path / entry))
        monkeypatch.chdir(tmp_path / working_directory)
        importlib.invalidate_caches()
        return importlib.import_module(module)

    made.folder = tmp_path
    yield made
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def task(body, options="", name="task"):
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return f"{HEAD}\n\n@slurm_ray_flow({options})\ndef {name}(*, given=None):\n{lines}\n"


LAYOUTS = {
    "src layout": (
        {
            "pyproject.toml": '[project]\nname = "mine"\nversion = "1"\n',
            "src/mine_a/__init__.py": "",
            "src/mine_a/inner.py": "VALUE = 'right'",
            "src/mine_a/main.py": "from mine_a import inner\n" + task("return inner.VALUE"),
        },
        "mine_a.main",
        ["src"],
    ),
    "namespace package": (
        {
            "space_b/part/inner.py": "VALUE = 'right'",
            "main_b.py": "import space_b.part.inner\n" + task("return space_b.part.inner.VALUE"),
        },
        "main_b",
        ["."],
    ),
    "relative imports": (
        {
            "pack_c/__init__.py": "",
            "pack_c/deep/__init__.py": "from ..inner import VALUE",
            "pack_c/inner.py": "VALUE = 'right'",
            "pack_c/main.py": "from . import deep\n" + task("return deep.VALUE"),
        },
        "pack_c.main",
        ["."],
    ),
    "import inside the function": (
        {"inner_d.py": "VALUE = 'right'", "main_d.py": task("from inner_d import VALUE\nreturn VALUE")},
        "main_d",
        ["."],
    ),
    "import_module of a literal": (
        {
            "inner_e.py": "VALUE = 'right'",
            "main_e.py": "import importlib\n" + task("return importlib.import_module('inner_e').VALUE"),
        },
        "main_e",
        ["."],
    ),
    "sibling folder on sys.path": (
        {
            "app/pyproject.toml": "",
            "app/main_f.py": "import shared_f\n" + task("return shared_f.VALUE"),
            "libraries/shared_f.py": "VALUE = 'right'",
        },
        "main_f",
        ["app", "libraries"],
    ),
    "module that shadows an installed one": (
        {"six.py": "VALUE = 'right'", "main_g.py": task("import six\nreturn six.VALUE")},
        "main_g",
        ["."],
    ),
    "missing module for type checking": (
        {
            "main_h.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import never_there\n"
            + task("return 'right'")
        },
        "main_h",
        ["."],
    ),
    "module that git ignores": (
        {
            ".git/HEAD": "ref: refs/heads/main\n",
            ".gitignore": "generated_i.py\n",
            "generated_i.py": "VALUE = 'right'",
            "main_i.py": "import generated_i\n" + task("return generated_i.VALUE"),
        },
        "main_i",
        ["."],
    ),
    "included file seen from the working directory": (
        {
            "pyproject.toml": "",
            "data/x.csv": "right",
            "main_j.py": task("return open('data/x.csv').read()", "include=['data/*.csv']"),
        },
        "main_j",
        ["."],
    ),
    "included file seen from the module": (
        {
            "pyproject.toml": "",
            "data/x.csv": "right",
            "main_k.py": "from pathlib import Path\n"
            + task("return (Path(__file__).parent / 'data' / 'x.csv').read_text()", "include=['data/*.csv']"),
        },
        "main_k",
        ["."],
    ),
    "optional import that is missing": (
        {
            "main_l.py": "try:\n    import never_there\nexcept ImportError:\n    never_there = None\n"
            + task("return 'right'")
        },
        "main_l",
        ["."],
    ),
    "package with data beside its modules": (
        {
            "pack_m/__init__.py": "",
            "pack_m/words.txt": "right",
            "pack_m/main.py": "from importlib.resources import files\n"
            + task("return files('pack_m').joinpath('words.txt').read_text()"),
        },
        "pack_m.main",
        ["."],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(project, layout):
    files, module, path = LAYOUTS[layout]
    assert project(files, module, path).task() == "right"


def test_a_working_directory_below_the_project(project):
    files = {
        "pyproject.toml": "",
        "code/main_n.py": task("return open('../data/x.csv').read()", "include=['data/*.csv']"),
        "data/x.csv": "right",
        "work/keep": "",
    }
    module = project(files, "main_n", ["code"], working_directory="work")
    assert module.task() == "right"


def test_an_edited_module_counts_from_the_next_call_on(project):
    wait = "import time, os\nopen(given, 'w').close()\nwhile os.path.exists(given): time.sleep(0.05)"
    files = {
        "inner_o.py": "VALUE = 1",
        "main_o.py": HEAD
        + "@slurm_ray_flow\ndef slow(given):\n"
        + textwrap.indent(f"{wait}\nimport inner_o\nreturn inner_o.VALUE\n", "    ")
        + "@slurm_ray_flow\ndef quick():\n    import inner_o\n    return inner_o.VALUE\n",
    }
    module = project(files, "main_o")
    assert module.quick() == 1
    mark = project.folder / "mark"
    under_way = module.slow.submit(str(mark))
    wait_for(mark.exists)
    (project.folder / "inner_o.py").write_text("VALUE = 2")
    assert module.quick() == 2
    mark.unlink()
    assert under_way.result(timeout=180) == 1


def test_an_imported_file_with_a_syntax_error_is_named(project):
    files = {"broken_p.py": "def f(:\n", "main_p.py": task("import broken_p\nreturn broken_p.VALUE")}
    module = project(files, "main_p")
    with pytest.raises((ScanError, SyntaxError), match=r"broken_p\.py"):
        module.task()


def test_a_package_that_is_installed_to_be_edited(server, tmp_path, script):
    """In a virtual environment of the user's own, that sees the packages of this one."""
    library = tmp_path / "library"
    (library / "src" / "edited_q").mkdir(parents=True)
    (library / "src" / "edited_q" / "__init__.py").write_text("VALUE = 'right'")
    (library / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "edited-q"\nversion = "1"\n'
    )
    venv = tmp_path / "app" / ".venv"
    subprocess.run([find_uv_bin(), "venv", "-q", "--python", sys.executable, venv], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    subprocess.run([find_uv_bin(), "pip", "install", "-q", "--python", python, "-e", library], check=True)
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "outer.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in ours))
    file = tmp_path / "app" / "main.py"
    file.write_text("import edited_q\n" + task("return edited_q.VALUE") + "\nprint('value', task())\n")
    done = subprocess.run(
        [python, file], check=False, cwd=file.parent, capture_output=True, text=True, env=dict(os.environ)
    )
    assert "value right" in done.stdout, done.stderr
    assert files_of_the_last_run() == {"__init__.py", "main.py"}


def files_of_the_last_run():
    record = next(iter(store.records()))
    spec = Path(record.paths.spec).read_text()
    digest = next(path for path in (home() / "snapshots").glob("*/*/") if str(path) in spec)
    return {path.name for path in digest.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.parametrize("place", ["home", "tmp", "worktree"])
def test_a_script_in_a_place_with_much_beside_it(server, tmp_path, place):
    """Only what is imported travels, and nothing else is looked at."""
    top = tmp_path / "user"
    for number in range(30):
        crowd = top / f"folder{number}" / "deep"
        crowd.mkdir(parents=True)
        for module in range(100):
            (crowd / f"module{module}.py").write_text("VALUE = 1")
    folder = top
    if place == "worktree":
        folder = top / "tree"
        (folder / ".venv" / "lib" / "python3.11" / "site-packages" / "thing").mkdir(parents=True)
        (folder / ".git").write_text("gitdir: /nowhere/.git/worktrees/tree\n")
    (folder / "helper_r.py").write_text("VALUE = 'right'")
    file = folder / "main.py"
    file.write_text(
        "import time, helper_r\n"
        + task("return helper_r.VALUE")
        + "\ntask()\nbegan = time.monotonic()\nprint('value', task(), 'in', time.monotonic() - began)\n"
    )
    variables = {**os.environ, "HOME": str(top if place == "home" else tmp_path / "elsewhere")}
    done = subprocess.run(
        [sys.executable, file], check=False, cwd=folder, capture_output=True, text=True, env=variables
    )
    assert "value right" in done.stdout, done.stderr
    assert float(done.stdout.split()[-1]) < 10
    assert files_of_the_last_run() == {"helper_r.py", "main.py"}  # child processes of the function run the script
