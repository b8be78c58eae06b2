"""The listener that shows a page of a cluster to this machine's user."""

import http.client
import http.server
import socket
import threading
import urllib.error
import urllib.request

import pytest

from slurm_ray_flow.blocks.tunnel import Tunnel


class Page(http.server.BaseHTTPRequestHandler):
    """Says what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = f"{self.command} {self.path} {self.headers.get_all('Authorization')} {body.decode()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST  # noqa: N815 - the name that the server calls

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address
    server.shutdown()
    server.server_close()


@pytest.fixture
def tunnel(page):
    made = Tunnel(lambda host, port: socket.create_connection((host, port), 5), *page, "t0ken")
    yield made
    made.close()


def base(tunnel):
    return tunnel.url.partition("?")[0]


def opener(tunnel):
    """A browser that has opened the printed URL."""
    found = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    found.open(tunnel.url, timeout=60).close()
    return found


@pytest.mark.parametrize("path", ["", "?srf=", "?srf=wrong", "api/jobs/"])
def test_who_does_not_have_the_url_sees_nothing(tunnel, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(base(tunnel) + path, timeout=60)
    assert caught.value.code == 403


def test_the_token_is_added_and_the_key_does_not_travel(tunnel):
    with opener(tunnel).open(tunnel.url, timeout=60) as answer:
        told = answer.read().decode()
    assert told == "GET / ['Bearer t0ken'] "


def test_a_body_arrives_whole_and_each_request_has_the_token(tunnel):
    browser = opener(tunnel)
    body = b"x" * 300_000
    for _ in range(2):
        request = urllib.request.Request(f"{base(tunnel)}api/jobs?a=1", data=body, headers={"Authorization": "mine"})
        with browser.open(request, timeout=60) as answer:
            assert answer.read() == b"POST /api/jobs?a=1 ['Bearer t0ken'] " + body


def test_two_requests_of_one_connection_do_not_slip_past(tunnel, page):
    """The second one would go on without the token: its connection ends with the first."""
    cookie = f"srf-{base(tunnel).split(':')[2].strip('/')}={tunnel.url.partition('=')[2]}"
    connection = http.client.HTTPConnection("127.0.0.1", int(base(tunnel).split(":")[2].strip("/")), timeout=60)
    connection.request("GET", "/", headers={"Cookie": f"a=b; {cookie}"})
    answer = connection.getresponse()
    assert answer.status == 200
    answer.read()
    assert connection.sock.recv(1) == b""
    connection.close()


def test_a_cluster_that_cannot_be_reached_is_told_in_the_page(page):
    def reach(host, port):
        raise OSError("no way")

    tunnel = Tunnel(reach, *page, "t0ken")
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener(tunnel)
    tunnel.close()
    assert caught.value.code == 502
    assert "no way" in caught.value.read().decode()


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\0" * 70_000])
def test_nonsense_ends_its_own_connection_only(tunnel, sent):
    with socket.create_connection(("127.0.0.1", int(base(tunnel).split(":")[2].strip("/"))), 5) as other:
        other.sendall(sent)
        other.shutdown(socket.SHUT_WR)
        other.settimeout(10)
        assert other.recv(100)[:12] in (b"", b"HTTP/1.1 403")
    assert opener(tunnel)
