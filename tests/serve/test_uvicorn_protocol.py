"""Clients that hold connections open, or shut down their side early: raw sockets against the server."""

import contextlib
import json
import re
import socket
import time

import pytest
from running_server import RunningServer

pytestmark = pytest.mark.slow

HEAD_S, IDLE_S, UNREAD_S, BODY_S = 5, 3, 2, 2
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def server(tiny_teacher):
    module = "stillhouse.serve.uvicorn_protocol"
    constants = {f"{module}.HEAD_S": HEAD_S, f"{module}.IDLE_S": IDLE_S, f"{module}.UNREAD_S": UNREAD_S}
    constants["stillhouse.serve.security.BODY_TIMEOUT_S"] = BODY_S
    running = RunningServer(f"tiny={tiny_teacher}", options=["--queue", "8"], constants=constants)
    yield running
    running.client.close()
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "rror" not in log, log


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def posted(*, length=None, version="1.1", **asked):
    """A chat request's bytes."""
    body = json.dumps({"model": "tiny", "messages": HELLO, **asked}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def seconds_until_closed(connection, dribble=None):
    """How long the server keeps the connection, while ``dribble`` is sent one byte every 0.2 s."""
    started = time.monotonic()
    connection.settimeout(0.2)
    while time.monotonic() - started < 15:
        with contextlib.suppress(TimeoutError):
            try:
                if not connection.recv(65536):  # an error may arrive first
                    return time.monotonic() - started
            except ConnectionError:
                return time.monotonic() - started
        if dribble:
            with contextlib.suppress(ConnectionError):
                connection.sendall(dribble[:1])
            dribble = dribble[1:] + dribble[:1]
    raise AssertionError("the server keeps the connection open")


ENDLESS_HEADERS = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"b" * 1000


@pytest.mark.parametrize("dribble", [b"", b"\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 99], ids=str)
def test_headers_that_do_not_come_end_the_connection(server, dribble):
    with connected(server) as connection:
        assert HEAD_S - 0.5 < seconds_until_closed(connection, dribble) < HEAD_S + 8


def test_an_idle_connection_ends(server):
    with connected(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert IDLE_S - 0.5 < seconds_until_closed(connection) < IDLE_S + 8


@pytest.mark.parametrize("dribble", [b"x", b"\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 99], ids=str)
def test_what_follows_an_answer_must_become_a_request(server, dribble):
    with connected(server) as connection:
        length = "Content-Length: 1000\r\n" if dribble == b"x" else ""
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode())
        response = b""
        while b'"ok"' not in response:
            response += connection.recv(65536)
        assert seconds_until_closed(connection, dribble) < HEAD_S + 8


def test_a_body_that_does_not_arrive_is_reported_and_ends_the_connection(server):
    with connected(server) as connection:
        connection.sendall(posted(length=5000))
        connection.settimeout(0.2)
        response, started = b"", time.monotonic()
        while time.monotonic() - started < BODY_S + 9:
            try:
                response += (data := connection.recv(65536))
            except TimeoutError:
                data = None
            except ConnectionResetError:
                break  # by a byte of ours that arrived after the server had closed
            if data == b"":
                break
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")
        assert response.startswith(b"HTTP/1.1 408 ") and b"the body did not arrive within 2 s" in response
        assert BODY_S - 0.5 < time.monotonic() - started < BODY_S + 8


def test_a_hundred_hanging_clients_delay_no_other_request(server):
    with contextlib.ExitStack() as hanging:
        connections = [hanging.enter_context(connected(server)) for _ in range(100)]
        started = time.monotonic()
        for number, connection in enumerate(connections):
            connection.sendall([b"", ENDLESS_HEADERS, posted(length=5000)][number % 3])
        reply = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
        assert reply.choices[0].finish_reason in ("stop", "length")
        assert time.monotonic() - started < HEAD_S  # the hanging clients were still connected
        for connection in connections:  # the server closes each of them
            seconds_until_closed(connection)
    assert server.idle()


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions"])
@pytest.mark.parametrize("data", [b"X-A: " + b"b" * 1000 + b"\r\n", b"b" * 1000])
def test_headers_without_end_are_refused_before_they_fill_memory(server, data, path):
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: ".encode())
        for _ in range(1000):  # 1 MB: a connection's buffers hold more than the limit, but less than this
            connection.sendall(data)
        assert b" 400 " in connection.recv(1000)
    assert server.get("/health")["status"] == "ok"


@pytest.mark.parametrize("after", [b"", b"GET /health HTTP/1.1\r\n"])
def test_a_body_without_end_is_refused_before_it_fills_memory(server, after):
    chunk = b"1;" + b"x" * 2**16 + b"\r\n{\r\n"  # one byte of body each
    with connected(server) as connection:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(4000):  # 262 MB
                connection.sendall(chunk)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_ends_its_own_side_is_answered(server, stream):
    with connected(server) as connection:
        connection.sendall(posted(max_tokens=300, stream=stream, temperature=0))
        connection.shutdown(socket.SHUT_WR)
        response = connection.makefile("rb").read()
    head, _, body = re.sub(rb"^(HTTP/1.1 100 Continue\r\n\r\n)+", b"", response).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"finish_reason" in body
    if stream:
        assert b"data: [DONE]" in body
    assert server.idle()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_a_client_that_leaves_frees_its_place_at_once(server, stream, wait_s, version):
    with connected(server) as connection:
        connection.sendall(posted(max_tokens=400, n=8, stream=stream, version=version))
        time.sleep(wait_s)
    started = time.monotonic()
    assert server.idle()
    assert time.monotonic() - started < 3


def test_a_body_that_is_cut_off_frees_its_place(server):
    with connected(server) as connection:
        connection.sendall(posted(length=5000))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert server.idle()


def test_an_answer_that_nobody_reads_gives_its_place_back(server):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(posted(max_tokens=480, n=8, stream=True, logprobs=True, top_logprobs=20))
        time.sleep(1)
        assert server.get("/health")["answers"] == 8
        assert server.idle()
