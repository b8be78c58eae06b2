"""What a command's help says, made of its docstring: paragraphs for any width, and its examples, one a line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_SECTION = re.compile(r"^(Args|Examples|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE)


def described(command: Callable[..., Any]) -> dict[str, str]:
    """The texts for cyclopts: `help` and `help_epilogue`."""
    text = inspect.getdoc(command) or ""
    sections = {match[1]: inspect.cleandoc(match[2]) for match in _SECTION.finditer(text)}
    paragraphs = _SECTION.sub("", text).strip().split("\n\n")
    lines = [line for line in sections.get("Examples", "").splitlines() if line.strip()]
    return {
        "help": "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        "help_epilogue": "\n".join(["Examples:", *(f"  {line}" for line in lines)]),
    }
