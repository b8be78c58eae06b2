"""What the graphics cards of a run do, as nvidia-smi tells it. Where there is none, nothing is known."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from typing import Any, Dict, List, Optional, Set, Tuple

LOOK_SECONDS = 5.0
PATIENCE = 10.0
"""A driver in trouble answers late, or never: then it is asked no more."""
_QUERY = ["--query-gpu=index,uuid,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


class CardMeter:
    """Asks now and then, and never waits for the answer."""

    def __init__(self) -> None:
        self._visible = _visible()
        self._program = shutil.which("nvidia-smi") if self._visible else None
        self._began = self._answered = time.monotonic()
        self._asked = 0.0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._text = b""
        self._busy, self._peak = 0.0, 0

    def look(self, now: float) -> None:
        """Take an answer that has come; ask, if it is time to."""
        if self._program is None:
            return
        if self._process is not None:
            self._take(now)
        elif now - self._asked >= LOOK_SECONDS:
            self._ask(now)

    def use(self) -> Dict[str, Any]:
        """Seconds that cards were busy, added up, and the most memory that one held; nothing where it is not known."""
        seen = self._answered - self._began
        if not seen:
            return {}
        busy = self._busy / seen * (time.monotonic() - self._began)
        return {"gpu_seconds": round(busy, 1), "gpu_memory_peak": self._peak}

    def _ask(self, now: float) -> None:
        assert self._program is not None
        self._asked, self._text = now, b""
        try:
            self._process = subprocess.Popen(
                [self._program, *_QUERY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._program = None
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _take(self, now: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    self._count(now)
                    self._let_go()
                    return
                self._text += piece
        if now - self._asked > PATIENCE:
            self._process.kill()
            self._let_go()
            self._program = None

    def _let_go(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.stdout.close()
        self._process.returncode, self._process = 0, None  # the head reaps all its children

    def _count(self, now: float) -> None:
        cards = [(busy, memory) for name, busy, memory in _parsed(self._text) if name & self._visible]
        if cards:
            self._busy += sum(busy for busy, _ in cards) / 100 * (now - self._answered)
            self._peak = max(self._peak, *(memory << 20 for _, memory in cards))
            self._answered = now


def _visible() -> Set[str]:
    return {name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()}


def _parsed(text: bytes) -> List[Tuple[Set[str], int, int]]:
    """Of each card: what it may be called, how many percent it is busy, how many MiB it holds."""
    found = []
    for line in text.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):  # a card that can't say answers "[N/A]"
            index, name, busy, memory = (field.strip() for field in line.split(","))
            found.append(({index, name}, int(busy), int(memory)))
    return found
