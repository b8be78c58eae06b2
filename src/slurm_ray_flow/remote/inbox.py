"""Where an allocation's calls are announced: a folder with an entry for each, named by the call's run."""

from __future__ import annotations

import contextlib
import os
from typing import List

from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.protocol import TAKEN


class Inbox:
    """The inbox of an allocation, as its head sees it.

    Args:
        run: the allocation's run.
    """

    def __init__(self, run: Run) -> None:
        self._folder = run.inbox

    def entries(self) -> List[str]:
        """The calls that wait, in order of arrival."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as found:
            waiting = [entry for entry in found if not entry.name.endswith(TAKEN)]
            return [entry.name for entry in sorted(waiting, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]
        return []

    def take(self, name: str) -> bool:
        """Take a call. Its entry stays there under another name, and says "busy" until it has ended.

        Whoever put it there may take it back at the same moment: one of the two renamings fails.
        """
        entry = os.path.join(self._folder, name)
        try:
            os.rename(entry, entry + TAKEN)
        except OSError:
            return False
        return True

    def leave(self, run: Run) -> None:
        """Take away the entry of a call that has ended."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, run.id + TAKEN))
