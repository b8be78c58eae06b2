"""What becomes of whoever writes to a channel when its connection goes."""

import os

import pytest

from slurm_ray_flow.blocks.ssh.open_connection import send_all
from slurm_ray_flow.blocks.ssh.rsync_socket import _copy_stdin


class FakeLostChannel:
    """Stands for a channel of paramiko whose socket was just closed under it."""

    def send(self, data):
        raise EOFError


def test_a_lost_connection_is_an_operating_system_error_like_any_other():
    with pytest.raises(OSError, match="lost"):
        send_all(FakeLostChannel(), b"data")


def test_nobody_keeps_the_pipe_of_an_rsync_whose_connection_was_lost():
    reading, writing = os.pipe()
    os.write(writing, b"data")
    _copy_stdin(FakeLostChannel(), os.dup(reading))
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"more")
    os.close(writing)
