"""Files of a small project."""

from __future__ import annotations

from pathlib import Path

import pytest

from scan_lab import Make


@pytest.fixture
def write(tmp_path: Path) -> Make:
    def write(name: str, text: str | bytes = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write
