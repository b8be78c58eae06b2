"""What several tests use."""

import time


def wait_for(condition, seconds=30):
    """Wait until a condition holds; the bound is generous, for machines under load."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)
