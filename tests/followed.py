"""A page of the documents, followed word by word: its files are written, its commands are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import prepared

TOP = Path(__file__).parents[1]
SECONDS = 300


class Page:
    """What a page says up to its first heading: the rest is for later, or for others.

    Attributes:
        files: the text of each file that the reader is to write, by its name.
        commands: the commands to run, in order, as words.
        values: what the files say that they print.
    """

    def __init__(self, name: str) -> None:
        text = (TOP / "docs" / name).read_text().partition("\n## ")[0]
        self.files = dict(re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```$', text, re.DOTALL | re.MULTILINE))
        self.commands = list(_commands(text))
        self.values = re.findall(r"^    print\(.*\)  # (.+)$", "".join(self.files.values()), re.MULTILINE)

    def follow(self, folder: Path, changed: Callable[[list[str]], list[str]] = lambda words: words) -> str:
        """Do what it says, in a folder; gives all that was written to the terminal.

        Args:
            changed: makes of a command what it is here: the page has names of nobody's hosts.
        """
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return "".join(_run(changed(words), folder) for words in self.commands)


def _commands(text: str) -> Iterator[list[str]]:
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^\$ (.+)$", block, re.MULTILINE):
            if not line.startswith("pip install "):  # it is installed
                yield shlex.split(line, comments=True)


def _run(words: list[str], folder: Path) -> str:
    program = Path(sys.executable).with_name(words[0])
    done = prepared.run([program, *words[1:]], cwd=folder, stdin=subprocess.DEVNULL, timeout=SECONDS)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return str(done.stdout + done.stderr)
