"""What an operation says when it can't do what it was asked for."""

from __future__ import annotations


class OperationError(Exception):
    """Something went wrong that a person can do something about.

    Args:
        what: what went wrong, one sentence.
        where: the path or process it concerns.
        advice: what to try.
        cause: one of the causes of a run's end ("lock", "environment", ...), or "" where it has none.
    """

    def __init__(self, what: str, where: str = "", advice: str = "", cause: str = "") -> None:
        super().__init__(what, where, advice, cause)
        self.what, self.where, self.advice, self.cause = what, where, advice, cause
