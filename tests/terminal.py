"""A program in a real terminal: what it shows is read, and what a user types is written."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 180.0
TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A program whose terminal is ours.

    Attributes:
        shown: all that it has written so far, without what moves the cursor.
    """

    def __init__(self, *command: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40", **variables}
        # The child makes the terminal its own, and then becomes the program.
        started = [sys.executable, "-S", "-c", TAKE, *command]
        self._process = subprocess.Popen(
            started, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.raw = ""

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.raw)

    def until(self, text: str, seconds: float = SECONDS) -> str:
        """Wait until it has written this since the last wait; gives what came before it, too."""
        begin, deadline = getattr(self, "_seen", 0), time.monotonic() + seconds
        while text not in self.shown[begin:]:
            assert time.monotonic() < deadline, f"{text!r} was not shown within {seconds} s, but:\n{self.shown[begin:]}"
            assert self._read(1.0), f"it ended before it showed {text!r}, with:\n{self.shown[begin:]}"
        self._seen = self.shown.index(text, begin) + len(text)
        return self.shown[begin : self._seen]

    def answer(self, question: str, text: str = "") -> None:
        """Wait for a question, and type an answer and Enter."""
        self.until(question)
        self.until("]: " if "[" in self.shown[self._seen :] else ": ")
        self.type(f"{text}\n")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self, seconds: float = SECONDS) -> None:
        """Ctrl-C, as somebody presses it who has seen it wait.

        Python loses one between the showing of a question and the waiting for its answer, until a key is pressed.
        """
        deadline = time.monotonic() + seconds
        while Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, f"it did not come to rest within {seconds} s"
            time.sleep(0.01)
        self.type("\x03")

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; gives its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.5):
            assert time.monotonic() < deadline, f"it did not end within {seconds} s, and showed:\n{self.shown}"
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Whether there may be more."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # nobody holds the other side any more
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._ours)
