"""Data of packages in real runs: read in every way, from every kind of package; and what is told of the rest."""

import subprocess
import textwrap

import pytest

from slurm_ray_flow.blocks.files import tracked

pytestmark = pytest.mark.server

READERS = """
    import importlib.resources, json, os, pkgutil
    from pathlib import Path

    HERE = Path(__file__).parent
    DEEP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "deep", "y.json")


    def read():
        name = "".join(["constants", ".json"])
        with importlib.resources.as_file(importlib.resources.files(__package__) / name) as file:
            by_file = file.read_text()
        return [
            by_file,
            importlib.resources.files("lab").joinpath("constants.json").read_text(),
            importlib.resources.read_text("lab", "constants.json"),
            pkgutil.get_data("lab", "constants.json").decode(),
            (HERE / name).read_text(),
            (Path("lab") / "constants.json").read_text(),
            importlib.resources.files("lab.deep").joinpath("y.json").read_text(),
            open(DEEP).read(),
            *sorted(path.name for path in HERE.glob("*.json")),
            str(os.access(HERE / "run.sh", os.X_OK)),
            str(sorted(os.listdir(os.fsencode(HERE / "odd")))),
        ]
"""
SCRIPT = """
    from slurm_ray_flow import slurm_ray_flow


    @slurm_ray_flow
    def there():
        from lab import load

        return load.read()


    if __name__ == "__main__":
        from lab import load

        print("same", there() == load.read())
"""


def written(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))


def test_a_package_finds_its_files_in_every_way(script, tmp_path):
    written(tmp_path, {"lab/__init__.py": "", "lab/load.py": READERS, "lab/constants.json": "1", "lab/run.sh": ""})
    written(tmp_path, {"lab/deep/y.json": "2", "lab/odd/latin-\udce9.csv": "", f"lab/odd/{'n' * 255}": ""})
    (tmp_path / "lab" / "run.sh").chmod(0o755)
    done = script(textwrap.dedent(SCRIPT))
    assert "same True" in done.stdout, done.stderr


def test_what_stays_at_home_is_told_once_by_the_line_that_reads_it(script, tmp_path, monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    monkeypatch.setenv("SRF_PACKAGE_DATA", "1K")
    load = """
        from pathlib import Path
        SMALL = Path(__file__).with_name("small.json")
        LARGE = Path(__file__).with_name("large.json")
        IGNORED = Path("lab") / "ignored.log"
        def read():
            return [path.exists() for path in (SMALL, LARGE, IGNORED)]
    """
    written(tmp_path, {"lab/__init__.py": "", "lab/load.py": load, ".gitignore": "*.log\n", "lab/ignored.log": ""})
    written(tmp_path, {"lab/small.json": "", "lab/large.json": "x" * 2000, "data.csv": ""})
    done = script(textwrap.dedent(SCRIPT).replace("print(", "open('data.csv').close(); print(there(), "))
    said = done.stdout + done.stderr
    assert "[True, False, False]" in said
    assert "load.py:4: uses the file 'lab/large.json'" in said
    assert "load.py:5: uses the file 'lab/ignored.log'" in said
    assert "uses the file 'data.csv'" in said
    assert "small.json" not in said
    assert "'lab/large.json' stays at home" in said


def test_git_s_own_word_counts(tmp_path):
    written(tmp_path, {"lab/__init__.py": "", "lab/kept.csv": "", "lab/other.csv": "", ".gitignore": "*.csv\n"})
    folders = [str(tmp_path / "lab"), str(tmp_path / "lab" / "deep"), str(tmp_path / "gone")]
    assert tracked(folders) == []
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", "lab/kept.csv", "lab/__init__.py"], check=True)
    assert tracked(folders) == [str(tmp_path / "lab" / "kept.csv")]
