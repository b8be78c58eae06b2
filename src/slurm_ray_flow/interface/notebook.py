"""The progress of a launch in a Jupyter notebook: one output of the cell, which changes in place."""

from __future__ import annotations

import contextvars
import io
import sys
import time
from typing import Any, ClassVar

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

from slurm_ray_flow.interface.screen import Screen, write_bytes

WIDTH = 110
CALM_AFTER = 60.0
"""Seconds of one step after which the moving line moves every five seconds only."""
STYLE = (
    "white-space:pre-wrap;margin:0;padding-left:var(--jp-code-padding,0);line-height:var(--jp-code-line-height,normal);"
    "font-size:var(--jp-code-font-size,inherit);"
    "font-family:var(--jp-code-font-family,Menlo,'DejaVu Sans Mono',consolas,monospace)"
)
"""JupyterLab's own style of a cell's output; the values after the commas are for other notebooks."""
_GREY = (128, 128, 128)
_COLOURS = [(60, 60, 60), (224, 60, 60), (30, 140, 60), (170, 115, 0), (50, 90, 200), (160, 60, 160), (0, 140, 150)]
THEME = TerminalTheme((255, 255, 255), (0, 0, 0), [*_COLOURS, _GREY], [*_COLOURS, _GREY])
"""Colours that are legible on a white and on a dark page."""


def ipython() -> Any:
    """The IPython of this process, or None."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return hasattr(ipython(), "kernel")


class NotebookScreen(Screen):
    """The lines of one launch or one map, in one output of the cell; the function's output is another one."""

    frame_seconds: ClassVar[float] = 1.0
    links: ClassVar[bool] = True

    def __init__(self) -> None:
        console = Console(file=io.StringIO(), width=WIDTH, highlight=False, force_jupyter=False)
        super().__init__(console, live=True)
        self._lines: list[RenderableType] = []
        self._display: Any = None
        self._context = contextvars.copy_context()
        self._updated = 0.0

    def line(self, text: RenderableType) -> None:
        with self._lock:
            self._lines.append(text)
            self._update("")

    def log(self, data: bytes) -> None:
        with self._lock:
            write_bytes(sys.stdout, data)

    def busy(self, text: str, since: float) -> None:
        with self._lock:
            super().busy(text, since)
            if text:
                self._update(self._moving("…"))
            elif self._drawn:
                self._update("")

    def _draw(self, frame: str) -> None:
        now = time.monotonic()
        calm = now - self._since > CALM_AFTER
        if now - self._updated >= (5 if calm else 1) * self.frame_seconds * 0.9:
            self._update(self._moving(frame))

    def _update(self, moving: str) -> None:
        self._updated, self._drawn = time.monotonic(), bool(moving)
        page = Console(file=io.StringIO(), record=True, width=WIDTH, highlight=False, force_jupyter=False)
        for line in [*self._lines, *([moving] if moving else [])]:
            page.print(line, soft_wrap=True, markup=False)
        text = page.export_text(clear=False)
        html = page.export_html(theme=THEME, inline_styles=True, code_format=f'<pre style="{STYLE}">{{code}}</pre>')
        self._context.run(self._publish, {"text/plain": text.rstrip("\n"), "text/html": html})

    def _publish(self, page: dict[str, str]) -> None:
        """Publish in the context of the cell, also from a thread: else the output would appear below another cell."""
        if self._display is None:
            from IPython.display import display

            self._display = display(page, raw=True, display_id=True)
        else:
            self._display.update(page, raw=True)
