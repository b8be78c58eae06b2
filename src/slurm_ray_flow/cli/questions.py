"""Questions in a terminal: each has a proposal that Enter takes, and one that is not understood is asked again."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from slurm_ray_flow.cli.output import print_text
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError

T = TypeVar("T")


def somebody_is_there() -> bool:
    """Whether questions can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Questions:
    """Asks somebody, or takes each proposal.

    Args:
        yes: ask nobody.
    """

    def __init__(self, yes: bool = False) -> None:
        self.yes = yes

    def ask(self, question: str, proposal: str, read: Callable[[str], T]) -> T:
        """Ask until the answer can be read.

        Args:
            question: without a mark at its end.
            proposal: what Enter means; "" is no proposal.
            read: makes a value of the answer; raises one of our errors for one that can't be meant.

        Raises:
            KeyboardInterrupt: Ctrl-C, or the end of the input.
            SlurmRayFlowError: nobody is asked, and the proposal can't be read.
        """
        while True:
            answer = proposal if self.yes else _line(question, proposal)
            try:
                return read(answer)
            except SlurmRayFlowError as error:
                if self.yes:
                    raise
                print_text(f"  {error.what}" + (f"; {error.advice}" if error.advice else ""))

    def text(self, question: str, proposal: str = "") -> str:
        """Ask for any text."""
        return self.ask(question, proposal, str)

    def confirm(self, question: str, proposal: bool = True) -> bool:
        """Ask for yes or no."""
        return self.ask(f"{question} (yes or no)", "yes" if proposal else "no", _yes_or_no)

    def choose(
        self, question: str, names: Sequence[str], proposal: str = "", other: Callable[[str], str] | None = None
    ) -> str:
        """Ask for one of several, by its number or its name.

        Args:
            question: without a mark at its end.
            names: what there is.
            proposal: what Enter means; "" is no proposal.
            other: reads an answer that is none of them; None refuses it.
        """
        for number, name in enumerate([] if self.yes else names, 1):
            print_text(f"  {number:>2}  {name}")
        return self.ask(question, proposal, lambda answer: _chosen(answer, names, other))


def _chosen(answer: str, names: Sequence[str], other: Callable[[str], str] | None) -> str:
    if answer in names:
        return answer
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    near = difflib.get_close_matches(answer, names, n=1)
    if other and answer and not answer.isdecimal():
        return other(answer)
    advice = f"did you mean {near[0]!r}?" if near else "type the number or the name of one"
    raise OptionError(f"{answer!r} is none of them" if answer else "there is no answer", advice=advice)


def _yes_or_no(answer: str) -> bool:
    known = {"y": True, "yes": True, "n": False, "no": False}
    if answer.lower() in known:
        return known[answer.lower()]
    raise OptionError(f"{answer!r} is neither yes nor no")


def _line(question: str, proposal: str) -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys while one types

    try:
        return input(f"{question} [{proposal}]: " if proposal else f"{question}: ").strip() or proposal
    except EOFError:
        raise KeyboardInterrupt from None
