"""How far a launch is, in percent: by its steps, and then by what the function itself says. Pure."""

from __future__ import annotations

import re

from slurm_ray_flow.core.shown import Shown

STEPS = {
    "scan_imports": 0.0,
    "diff_dependencies": 1.0,
    "sync_files": 2.0,
    "install_environment": 3.0,
    "turn": 5.0,
    "start_ray": 6.0,
    "execute_call": 10.0,
    "fetch_outcome": 99.0,
    "fetch_outputs": 99.5,
}
"""Where each step begins. What comes before the function takes a tenth of the bar, however long it takes."""
_FROM, _TO = STEPS["execute_call"], STEPS["fetch_outcome"]
_PERCENT = re.compile(rb"(?:(\d{1,3}(?:\.\d+)?)%\||progress:\s*(\d{1,3}(?:\.\d+)?)\s*%)", re.IGNORECASE)
LONGEST_LINE = 4096


class Advance:
    """How far a launch is.

    Attributes:
        percent: from 0 to 100.
    """

    def __init__(self) -> None:
        self.percent, self._text, self._rest = 0.0, "", b""

    def step(self, name: str) -> None:
        """A step begins; after a failed try all begin anew."""
        self.percent, self._text = STEPS.get(name, self.percent), name

    def log(self, data: bytes) -> bool:
        """The function wrote this: tqdm's bar, or a line such as "progress: 45 %". Gives whether it says how far it is.

        Pieces may be cut anywhere.
        """
        found = _PERCENT.findall(self._rest + data)
        self._rest = (self._rest + data).rpartition(b"\n")[2].rpartition(b"\r")[2][-LONGEST_LINE:]
        share = float(found[-1][0] or found[-1][1]) if found else 101.0
        if share > 100:
            return False
        self.percent = _FROM + (_TO - _FROM) * share / 100
        self._text = f"execute_call: the function is at {share:g}%"
        return True

    def end(self, good: bool) -> None:
        """The launch is over."""
        if good:
            self.percent, self._text = 100.0, "done"
        else:
            self._text = (
                "the function failed" if self._text in {"fetch_outcome", "fetch_outputs"} else f"ended in {self._text}"
            )

    def shown(self) -> Shown:
        """The artifact as it is now."""
        return Shown("progress", "progress", round(self.percent, 1), self._text)
