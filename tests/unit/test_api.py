"""What is asked of Prefect's API, against a small server of the test's own."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from slurm_ray_flow.blocks.server.api import BUSY_PAUSES, Api, status_of
from slurm_ray_flow.core.errors import ServerError


class Answering(http.server.ThreadingHTTPServer):
    """Answers with what it is told to, one after the other; the last one stays."""

    statuses: list[int]
    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Answering

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), Handler) as answering:
        threading.Thread(target=answering.serve_forever, args=(0.01,), daemon=True).start()
        yield answering
        answering.shutdown()


def api(server: Answering) -> Api:
    return Api(f"http://127.0.0.1:{server.server_address[1]}")


def test_a_database_that_is_locked_for_a_moment_is_asked_again(server: Answering) -> None:
    server.statuses = [503, 503, 200]
    assert api(server).post("/x", {"a": 1}) == {}
    assert server.asked == 3


@pytest.mark.parametrize(("status", "asked"), [(503, 1 + len(BUSY_PAUSES)), (423, 1), (500, 1)])
def test_any_other_no_is_an_error_that_has_its_status(server: Answering, status: int, asked: int) -> None:
    server.statuses = [status]
    with pytest.raises(ServerError) as caught:
        api(server).post("/x", {})
    assert (status_of(caught.value), server.asked) == (status, asked)
