"""A server that means harm, or is broken: what it can do to home is bounded, and home never hangs."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import sys
import threading
import time
from pathlib import Path

import paramiko
import pytest

from pretended import LIMITS, endpoint, listening
from slurm_ray_flow.blocks.ssh.agent import Agent
from slurm_ray_flow.blocks.ssh.authentication import Secrets
from slurm_ray_flow.blocks.ssh.connection import Connection, check_host_key, connect_to
from slurm_ray_flow.blocks.ssh.open_connection import OpenConnectionError
from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError

ESCAPE = "\x1b]0;owned\x07"


def forever(*pieces):
    def serve(visitor):
        for piece in pieces[:-1]:
            visitor.sendall(piece)
        while True:
            visitor.sendall(pieces[-1])

    return serve


def then_silent(piece):
    def serve(visitor):
        visitor.sendall(piece)
        silent(visitor)

    return serve


def silent(visitor):
    visitor.recv(1)
    time.sleep(30)


BEFORE = {
    "says nothing": silent,
    "hangs up": lambda visitor: visitor.close(),
    "banner without an end": forever(b"x" * 4096),
    "banner of endless lines": forever(b"hello\r\n" * 500),
    "packet of four gigabytes": forever(b"SSH-2.0-hostile\r\n\xff\xff\xff\xff", bytes(65536)),
    "another protocol": then_silent(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_a_server_that_does_not_shake_hands_is_left_soon(kind):
    with listening(BEFORE[kind]) as port:
        server, began = endpoint(port), time.monotonic()
        with pytest.raises(OpenConnectionError):
            check_host_key(connect_to(server, [], [], LIMITS), server, [], "hostile")
        assert time.monotonic() - began < LIMITS.connect + 15


class Anybody(paramiko.ServerInterface):
    """Lets everybody in, and asks what `questions` says."""

    def __init__(self, questions=()):
        self.command, self.asked, self.forwarded, self._questions = threading.Event(), b"", False, questions

    def get_allowed_auths(self, username):
        return "keyboard-interactive"

    def check_auth_none(self, username):
        return paramiko.AUTH_FAILED if self._questions else paramiko.AUTH_SUCCESSFUL

    def check_auth_interactive(self, username, submethods):
        query = paramiko.InteractiveQuery("title" + ESCAPE, "words" + ESCAPE)
        query.prompts = self._questions
        return query

    def check_auth_interactive_response(self, responses):
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_forward_agent_request(self, channel):
        self.forwarded = True
        return True

    def check_channel_exec_request(self, channel, command):
        self.asked = command
        self.command.set()
        return True


def test_an_answer_that_comes_at_once_is_heard():
    """Paramiko waits for what has been there already, for ten minutes."""
    key, interval = paramiko.ECDSAKey.generate(), sys.getswitchinterval()

    def serve(visitor):
        with contextlib.closing(paramiko.Transport(visitor)) as transport:
            transport.add_server_key(key)
            transport.start_server(server=Anybody())
            transport.join(60)

    with listening(serve) as port:
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(10):
                with contextlib.closing(connect_to(endpoint(port), [], [], LIMITS)) as wire:
                    began = time.monotonic()
                    assert not wire.methods("alice")
                    assert time.monotonic() - began < 60
        finally:
            sys.setswitchinterval(interval)


@pytest.fixture
def hosted(tmp_path):
    """Serves each command of whoever logs in by a function (channel, word); gives an agent, and what was typed."""
    key = paramiko.ECDSAKey.generate()
    stack = contextlib.ExitStack()

    def host(answer, questions=()):
        def serve(visitor):
            with contextlib.closing(paramiko.Transport(visitor)) as transport:
                transport.add_server_key(key)
                interface = Anybody(questions)
                transport.start_server(server=interface)
                channel = transport.accept(60)
                if not interface.command.wait(60):
                    return  # whoever came has left
                script = base64.b64decode(re.search(rb"printf %s (\S+)", interface.asked)[1])
                answer(channel, re.search(rb"'%s%08x%016x%s' ([0-9a-f]{32})", script)[1])
                assert not interface.forwarded

        port = stack.enter_context(listening(serve))
        known = tmp_path / f"known-{port}"
        known.write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
        prompts = []

        def prompt(text, seen):
            prompts.append(text)
            return "typed"

        given = Connection(endpoint(port, (known,)), lambda _: Secrets("", prompt, "X_PASSWORD"), LIMITS, "hostile")
        stack.callback(given.close)
        return Agent(given, "/root-folder", "", "hostile"), prompts

    with stack:
        yield host


HELLO = {"root": "/r", "home": "/h", "user": "u", "host": "h", "python": "/p", "version": "3.11", "pid": 1}


def message(text, size=0):
    return b"%08x%016x%s" % (len(text), size, text)


def greeting(**changes):
    return message(json.dumps({"hello": {**HELLO, **changes}}).encode())


class Endless(list):
    """Says that it is as long as a message can say."""

    def __len__(self):
        return 2**32 - 1


def large_packet(channel, word):
    transport = channel.get_transport()
    transport.sock.sendall(b"\xff" * 16)
    transport.join(60)


def says(*pieces, endless=b""):
    def answer(channel, word):
        for piece in (word, *pieces):
            channel.sendall(piece)
        while endless:
            channel.sendall(endless)
        with contextlib.suppress(Exception):
            channel.settimeout(20)
            while channel.recv(65536):
                pass

    return answer


def noisy(channel, word):
    while True:
        channel.sendall(b"0123456789abcdef" * 2048)


def dripping(channel, word):
    while True:
        channel.sendall(b"x")
        time.sleep(0.05)


AFTER = {
    "noise without an end": noisy,
    "a drip without an end": dripping,
    "no message": says(b"x" * 24),
    "a negative length": says(b"-0000001" + b"0" * 16),
    "no JSON": says(message(b"{")),
    "a list": says(message(b"[1]")),
    "a hello of another shape": says(message(b'{"hello": 1}')),
    "a root that is no path": says(greeting(root="it's not")),
    "JSON of four gigabytes": says(b"ffffffff" + b"0" * 16, endless=b" " * 65536),
    "bytes of an exabyte": says(b"00000002" + b"f" * 16 + b"{}", endless=b" " * 65536),
    "a packet of four gigabytes": large_packet,
    "JSON that is deep": says(message(b"[" * 100_000)),
    "an answer to nobody": says(greeting(), message(b'{"tell": 1}')),
    "an answer to something that is no number": says(greeting(), message(b'{"id": [1], "results": []}')),
    "a number for a message": says(greeting(), message(b"7")),
    "too many results": says(greeting(), message(b'{"id": 1, "results": [{"value": 1}, {"value": 2}]}')),
    "an answer without its results": says(greeting(), message(b'{"id": 1}')),
    "results that are none": says(greeting(), message(b'{"id": 1, "results": [7]}')),
    "an error of another shape": says(greeting(), message(b'{"id": 1, "error": {"x": 2}}')),
}


@pytest.mark.parametrize("kind", AFTER)
def test_what_is_no_answer_of_ours_is_an_error_and_no_hang(hosted, kind):
    agent, _ = hosted(AFTER[kind])
    began = time.monotonic()
    with pytest.raises(SlurmRayFlowError) as caught:
        agent.ask_all([("files.names", {"path": "/"})])
    assert time.monotonic() - began < 60
    assert isinstance(caught.value, ConnectionFailed) or "hostile" in str(caught.value)


def test_what_a_server_says_moves_no_cursor(hosted):
    def answer(channel, word):
        channel.sendall_stderr(f"sorry{ESCAPE}\n".encode())
        channel.close()
        channel.get_transport().join(60)

    agent, prompts = hosted(answer, questions=[("Code" + ESCAPE, False)])
    with pytest.raises(SlurmRayFlowError, match="sorry") as caught:
        agent.hello  # noqa: B018
    assert len(prompts) == 1 and "title" in prompts[0]
    assert "\x1b" not in str(caught.value) + prompts[0]
    assert "\x07" not in str(caught.value) + prompts[0]


def test_questions_without_a_number_are_not_asked(hosted):
    agent, prompts = hosted(noisy, questions=Endless([("Code", False)]))
    with pytest.raises(ConnectionFailed, match="too many questions"):
        agent.hello  # noqa: B018
    assert not prompts


def test_what_openssh_has_given_up_is_not_spoken():
    def serve(visitor):
        with contextlib.closing(paramiko.Transport(visitor)) as transport:
            transport.add_server_key(paramiko.ECDSAKey.generate())
            transport.get_security_options().ciphers = ("3des-cbc", "aes128-cbc")
            transport.start_server(server=Anybody())
            transport.join(60)

    with listening(serve) as port, pytest.raises(OpenConnectionError, match="no common algorithm"):
        connect_to(endpoint(port), [], [], LIMITS)


def test_a_server_without_a_common_algorithm_is_asked_once():
    visits = []

    def serve(visitor):
        visits.append(visitor)
        with contextlib.closing(paramiko.Transport(visitor)) as transport:
            transport.add_server_key(paramiko.ECDSAKey.generate())
            transport.get_security_options().ciphers = ("aes128-cbc",)
            transport.start_server(server=Anybody())
            transport.join(60)

    with (
        listening(serve) as port,
        contextlib.closing(Connection(endpoint(port), lambda _: Secrets("", None, ""), LIMITS, "old")) as connection,
        pytest.raises(ConnectionFailed) as caught,
    ):
        Agent(connection, "/root-folder", "", "old").hello  # noqa: B018
    assert "Ciphers" in caught.value.advice
    assert len(visits) == 1


def test_a_host_that_is_an_option_is_refused(tmp_path):
    from slurm_ray_flow import OptionError, SshConnection

    for host in ("-oProxyCommand=touch /tmp/x", "-oProxyCommand=x", "a b", "a\nb"):
        with pytest.raises(OptionError):
            SshConnection(host=host).endpoint()
    for jump in ("-oProxyCommand=x", "u@-oProxyCommand=x"):
        with pytest.raises(OptionError):
            SshConnection(host="desi", proxy_jump=[jump], config_file=Path("/dev/null")).endpoint()
