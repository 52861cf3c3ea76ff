"""The door lets sane requests pass unchanged, ends what costs without asking, and is really the one in use."""

import asyncio
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from esteira.errors import ConfigError
from serving import edge
from serving.asgi import Receive, Scope, Send
from serving.edge import Bounds, Edge

ROOT = Path(__file__).resolve().parents[1]
QUICK = Bounds(head_seconds=0.3, answer_seconds=0.3, linger_seconds=0.3, look_seconds=0.05, grace_seconds=60)
PATIENT = Bounds(head_seconds=60, answer_seconds=60, look_seconds=0.05, grace_seconds=60)

Answer = tuple[int, dict[str, str], bytes]


def until(condition: Callable[[], Any], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Asked:
    """An application that says what it was asked, and keeps it.

    `/early` answers before it reads, `/slow` when it is let go, `/big` more than any buffer takes.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.go: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, gone = b"", False
        seen = {
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "headers": sorted((name.decode(), value.decode("latin-1")) for name, value in scope["headers"]),
        }
        self.requests.append(seen)
        if scope["path"] == "/slow":
            self.go = self.go or asyncio.Event()
            await self.go.wait()
        while scope["path"] not in ("/early", "/slow"):
            message = await receive()
            gone = message["type"] == "http.disconnect"
            body += message.get("body", b"")
            if gone or not message.get("more_body", False):
                break
        seen |= {"body": body.decode("latin-1"), "gone": gone}
        answer = json.dumps(seen).encode() + b" " * (20_000_000 if scope["path"] == "/big" else 0)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Door:
    """A real uvicorn in a thread of this process, with the given bounds or another protocol."""

    def __init__(
        self,
        bounds: Bounds = QUICK,
        *,
        protocol: type[asyncio.Protocol] | None = None,
        keep_alive: float = 60,
        loop: str = "uvloop",
    ) -> None:
        bounded = type("BoundedEdge", (Edge,), {"bounds": bounds})
        self.app = Asked()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self.app, http=protocol or bounded, ws="none", lifespan="off", log_config=None, loop=loop,
            server_header=False, timeout_keep_alive=keep_alive,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> Self:
        self._thread.start()
        assert until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive()

    def let_go(self) -> None:
        """`/slow` answers."""
        if self.app.go is not None:
            self.app.go._loop.call_soon_threadsafe(self.app.go.set)  # type: ignore[attr-defined]

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def call(self, *data: bytes) -> "Caller":
        caller = Caller(self.port)
        for piece in data:
            caller.send(piece)
        return caller


class Caller:
    """A raw connection that reads answers one by one."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), timeout=20)
        self._got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _more(self) -> bool:
        try:
            part = self._socket.recv(65536)
        except ConnectionResetError:
            part = b""
        self._got += part
        return bool(part)

    def answer(self) -> Answer:
        """The next answer; it has a Content-Length."""
        while b"\r\n\r\n" not in self._got:
            assert self._more(), f"the connection ended with {self._got[-300:]!r}"
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [\w -]*", status)
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers["content-length"])
        while len(self._got) < size:
            assert self._more(), "the connection ended inside a body"
        body, self._got = self._got[:size], self._got[size:]
        return int(status.split()[1]), headers, body

    def said(self) -> Any:
        """The document of the next answer, which is 200."""
        status, _, body = self.answer()
        assert 200 == status, body
        return json.loads(body)

    def refusal(self) -> tuple[int, str]:
        """Status and code of the next answer, which has the shape of our errors and is the last."""
        status, headers, body = self.answer()
        error = json.loads(body)["error"]
        assert {"code", "message", "field", "row", "request_id"} == set(error)
        assert error["request_id"] == headers["x-request-id"]
        assert ("application/json", "close") == (headers["content-type"], headers["connection"])
        assert b"" == self.rest()
        return status, error["code"]

    def rest(self) -> bytes:
        """What still comes until the other side ends the connection; fails when it does not."""
        while self._more():
            pass
        return self._got


def post(body: bytes, *lines: bytes, path: bytes = b"/") -> bytes:
    return b"\r\n".join(
        [b"POST " + path + b" HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *lines, b"", body]
    )


def get(path: bytes = b"/", *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: a", *lines, b"", b""])


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as opened:
        yield opened


@pytest.fixture
def patient() -> Iterator[Door]:
    with Door(PATIENT) as opened:
        yield opened


# What is sane passes as if there were no door


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sane_requests_get_the_answers_that_uvicorn_alone_gives(loop: str) -> None:
    sane = [
        get(b"/a/b%40c?x=1&y=%20"),
        get(b"/", *[b"X-%d: v" % number for number in range(98)]),
        get(b"/" + b"u" * 8000, b"X-Long: " + b"v" * 20_000),
        post(b"abc"),
        post(b"x" * 300_000),
        CHUNKED + b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n",
        post(b"", path=b"/early"),
        b"OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: b\r\n\r\n",
        get(b"/", b"Accept: text/html", b"Accept: text/plain", b"accept-encoding: gzip"),
        b"\r\n\r\n" + get(),
    ]

    def ask(door: Door) -> list[Answer]:
        with door, door.call() as caller:
            answers = []
            for request in sane:
                caller.send(request)
                answers.append(caller.answer())
            return [(status, headers | {"date": ""}, body) for status, headers, body in answers]

    assert ask(Door(protocol=HttpToolsProtocol, loop=loop)) == ask(Door(loop=loop))


def test_a_head_request_is_answered_without_a_body(door: Door) -> None:
    with door.call(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as caller:
        whole = caller.rest()

    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole.endswith(b"\r\n\r\n")


def test_a_caller_that_waits_for_our_word_is_told_to_go_on(door: Door) -> None:
    with door.call(post(b"abc", b"Expect: 100-continue")[:-3]) as caller:
        assert until(lambda: door.app.requests)
        while b"\r\n\r\n" not in caller._got:
            assert caller._more()
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == caller._got
        caller._got = b""
        caller.send(b"abc")
        assert "abc" == caller.said()["body"]


def test_requests_of_one_connection_are_answered_in_their_order(door: Door) -> None:
    with door.call(b"".join(post(b"%d" % number, path=b"/%d" % number) for number in range(20))) as caller:
        answers = [caller.said() for _ in range(20)]

    assert [(f"/{number}", str(number)) for number in range(20)] == [(said["path"], said["body"]) for said in answers]


def test_an_old_client_gets_its_answer_and_the_end_of_the_connection(door: Door) -> None:
    with door.call(b"GET / HTTP/1.0\r\n\r\n") as caller:
        assert "/" == caller.said()["path"]
        assert b"" == caller.rest()


# The parser under every cut, and under every bend of the bytes, without a socket


class Wire(asyncio.Transport):
    """Stands for a socket: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = self.ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None:
        assert not self.ended, "nothing is written after the last word"
        self.sent += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """Tests send what they send."""

    def resume_reading(self) -> None:
        """Tests send what they send."""


async def feed(pieces: list[bytes]) -> tuple[list[dict[str, Any]], Wire]:
    """What the application was asked, and the wire, after the pieces came in."""
    app, wire = Asked(), Wire()
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    bounded = type("BoundedEdge", (Edge,), {"bounds": PATIENT})
    one = bounded(config, ServerState(), {}, asyncio.get_running_loop())
    one.connection_made(wire)
    for piece in pieces:
        if not wire.closed:
            one.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    one.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    return app.requests, wire


STREAM = (
    post(b'{"rows": [1]}', path=b"/one")
    + get(b"/two?x=1")
    + CHUNKED.replace(b"POST /", b"POST /three")
    + b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: no\r\nAuthorization: Bearer no\r\n\r\n"
    + post(b"GET /not HTTP/1.1\r\n\r\n", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", path=b"/four")
    + get(b"/five", b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x")
    + post(b"end", path=b"/six")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=30))
@example(cuts=list(range(len(STREAM))))
def test_however_the_bytes_come_in_the_same_requests_come_out(cuts: list[int]) -> None:
    edges = sorted({0, len(STREAM), *cuts})
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]

    asked, wire = asyncio.run(feed(pieces))

    assert [
        ("/one", '{"rows": [1]}'), ("/two", ""), ("/three", "abcde"), ("/four", "GET /not HTTP/1.1\r\n\r\n"), ("/five", ""),
        ("/six", "end"),
    ] == [(seen["path"], seen.get("body")) for seen in asked]  # fmt: skip
    assert 6 == wire.sent.count(b"HTTP/1.1 200 OK")
    names = {name for seen in asked for name, _ in seen["headers"]}
    assert {"host", "content-length", "transfer-encoding", "connection", "sec-websocket-key"} == names


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bends=st.lists(
        st.tuples(st.integers(0, len(STREAM)), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=4
    ),
    size=st.sampled_from([1, 7, 50, 10_000]),
)
def test_bent_bytes_are_answered_or_refused_and_never_break_the_door(
    bends: list[tuple[int, int, bytes]], size: int
) -> None:
    bent = STREAM
    for at, dropped, put in bends:
        bent = bent[:at] + put + bent[at + dropped :]

    asked, wire = asyncio.run(feed([bent[start : start + size] for start in range(0, len(bent), size)]))

    statuses = [int(found) for found in re.findall(rb"(?:^|[}\]])HTTP/1\.1 (\d{3}) ", wire.sent)]
    assert all(status in (200, 400, 405, 414, 431) for status in statuses)
    assert not [status for status in statuses[:-1] if status != 200], "a refusal is the last word"
    assert len([status for status in statuses if status == 200]) <= len(asked)


# The answer in one piece has the bytes that uvicorn writes


PLAIN, LENGTH = (b"content-type", b"text/plain"), (b"content-length", b"4")
WRITTEN: dict[str, tuple[int, list[tuple[bytes, bytes]], list[bytes]]] = {
    "/length": (200, [PLAIN, LENGTH], [b"abcd"]),
    "/error": (422, [PLAIN, LENGTH, (b"x-a", b"b")], [b"abcd"]),
    "/parts": (200, [PLAIN, LENGTH], [b"ab", b"cd"]),
    "/late-end": (200, [PLAIN, LENGTH], [b"abcd", b""]),
    "/chunked": (200, [PLAIN], [b"ab", b"cd"]),
    "/says-chunked": (200, [PLAIN, (b"transfer-encoding", b"chunked")], [b"abcd"]),
    "/closing": (200, [PLAIN, LENGTH, (b"connection", b"close")], [b"abcd"]),
    "/keeping": (200, [PLAIN, LENGTH, (b"connection", b"keep-alive")], [b"abcd"]),
    "/empty": (200, [(b"content-length", b"0")], [b""]),
    "/none": (204, [], [b""]),
    "/unchanged": (304, [(b"etag", b"a")], [b""]),
    "/upper": (200, [(b"Content-Type", b"text/plain"), (b"Content-Length", b"4")], [b"abcd"]),
    "/too-long": (200, [PLAIN, LENGTH], [b"abcde"]),
    "/too-short": (200, [PLAIN, LENGTH], [b"abc"]),
    "/injected": (200, [PLAIN, LENGTH, (b"x-a", b"b\r\nset-cookie: c=d")], [b"abcd"]),
    "/line-feed": (200, [PLAIN, LENGTH, (b"x-a", b"b\nset-cookie: c=d")], [b"abcd"]),
    "/return": (200, [PLAIN, LENGTH, (b"x-a", b"b\rset-cookie: c=d")], [b"abcd"]),
    "/zero": (200, [PLAIN, LENGTH, (b"x-a", b"b\x00c")], [b"abcd"]),
}


async def writes(scope: Scope, receive: Receive, send: Send) -> None:
    status, headers, parts = WRITTEN[scope["path"]]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for number, part in enumerate(parts):
        more = number < len(parts) - 1
        await send({"type": "http.response.body", "body": part, "more_body": more})


@pytest.mark.parametrize("how", [b"GET %b HTTP/1.1\r\nHost: a", b"HEAD %b HTTP/1.1\r\nHost: a", b"GET %b HTTP/1.0"])
@pytest.mark.parametrize("path", WRITTEN)
def test_an_answer_has_the_bytes_that_uvicorn_alone_writes(path: str, how: bytes) -> None:
    """Also one that uvicorn refuses to write: a header that holds the end of a line, a length that is not the body's."""

    def ask(protocol: type[Any]) -> tuple[bytes, bool]:
        async def one() -> tuple[bytes, bool]:
            config = uvicorn.Config(writes, ws="none", lifespan="off", log_config=None)
            config.load()
            wire = Wire()
            connection = protocol(config, ServerState(), {}, asyncio.get_running_loop())
            connection.connection_made(wire)
            connection.data_received(how % path.encode() + b"\r\n\r\n")
            for _ in range(20):
                await asyncio.sleep(0)
            closed = wire.closed
            connection.connection_lost(None)
            return wire.sent, closed

        return asyncio.run(one())

    alone = ask(HttpToolsProtocol)
    ours = ask(type("BoundedEdge", (Edge,), {"bounds": PATIENT}))

    assert alone[1] == ours[1]
    if path not in ("/too-long", "/too-short", "/injected", "/line-feed", "/return", "/zero"):
        assert alone[0] == ours[0]
    assert b"set-cookie" not in ours[0]


# What is not HTTP


MALFORMED = {
    "words": b"hello there\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "a method that is none": b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "a coding that is not the last": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n\x1f\x8b",
    "a negative length": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
    "a length beyond 64 bits": b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "a zero byte in a field": b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    "a field without a colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a folded field": b"GET / HTTP/1.1\r\nX-Request-ID: a\r\n Set-Cookie: b\r\n\r\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\nX-Request-ID: a\rSet-Cookie: b\r\n\r\n",
    "bare line ends": b"GET / HTTP/1.1\nHost: a\n\n",
    "a target without a slash": b"GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a blank": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_http_gets_400_in_our_shape_and_the_end(patient: Door, request_: bytes) -> None:
    with patient.call(request_) as caller:
        assert (400, "bad_http") == caller.refusal()

    # A coding that is not known shows after the head: its application may have begun, and hears that the caller is gone.
    assert until(lambda: all(seen.get("gone") for seen in patient.app.requests))


def test_a_tunnel_is_refused(patient: Door) -> None:
    with patient.call(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n") as caller:
        assert (405, "method") == caller.refusal()


def test_bytes_after_a_good_request_spoil_neither_it_nor_its_answer(patient: Door) -> None:
    with patient.call(get(b"/slow") + b"\x00\x01 garbage\r\n\r\n") as caller:
        assert until(lambda: patient.app.requests)
        patient.let_go()
        assert "/slow" == caller.said()["path"]
        assert b"" == caller.rest()


def test_a_body_that_breaks_is_refused_and_its_application_hears_that_the_caller_is_gone(patient: Door) -> None:
    with patient.call(CHUNKED + b"3\r\nabc\r\n", b"zz\r\n") as caller:
        assert (400, "bad_http") == caller.refusal()

    assert until(lambda: patient.app.requests and "gone" in patient.app.requests[0])
    assert patient.app.requests[0]["gone"]


def test_an_application_that_answers_after_its_caller_was_refused_says_nothing_more(
    patient: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with patient.call(CHUNKED.replace(b"POST /", b"POST /slow")) as caller:
        assert until(lambda: patient.app.requests)
        caller.send(b"zz\r\n")
        status, _, _ = caller.answer()
        patient.let_go()
        assert until(lambda: "gone" in patient.app.requests[0])
        assert b"" == caller.rest()

    assert 400 == status
    assert "Exception" not in caplog.text


def test_a_body_that_breaks_while_an_earlier_request_is_answered_is_refused_in_its_turn(patient: Door) -> None:
    with patient.call(get(b"/slow") + CHUNKED + b"zz\r\n") as caller:
        assert until(lambda: patient.app.requests)
        time.sleep(0.1)
        patient.let_go()
        assert "/slow" == caller.said()["path"]
        assert (400, "bad_http") == caller.refusal()

    assert ["/slow"] == [seen["path"] for seen in patient.app.requests]


def test_a_body_that_breaks_after_its_answer_ends_the_connection_without_a_second_answer(patient: Door) -> None:
    with patient.call(CHUNKED.replace(b"POST /", b"POST /early")) as caller:
        assert "/early" == caller.said()["path"]
        caller.send(b"zz\r\n")
        assert b"" == caller.rest()


# Too much


@pytest.mark.parametrize("pieces", [1, 5], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    ("head", "refusal"),
    [
        (get(b"/" + b"u" * 8192), (414, "url_too_long")),
        (get(b"/" + b"u" * 100_000), (414, "url_too_long")),
        (get(b"/", b"X-Long: " + b"v" * 32_768), (431, "head_too_large")),
        (get(b"/", b"X-Long: " + b"v" * 600_000), (431, "head_too_large")),
        (get(b"/", *[b"X-%d: v" % number for number in range(100)]), (431, "head_too_large")),
        (get(b"/", *[b"X-%d: v" % number for number in range(20_000)]), (431, "head_too_large")),
        (get() + get(b"/", b"X-Long: " + b"v" * 40_000), (431, "head_too_large")),
    ],
    ids=["target", "long target", "field", "huge field", "101 fields", "20,001 fields", "the second"],
)
def test_a_head_that_is_too_large_is_refused_and_its_caller_sees_why(
    patient: Door, head: bytes, refusal: tuple[int, str], pieces: int
) -> None:
    """Also a caller that sends all of it before it reads: it must not see a reset instead of the answer."""
    size = -(-len(head) // pieces)
    with patient.call() as caller:
        if head.startswith(get()):
            caller.send(get())
            caller.said()
            head = head.removeprefix(get())
        for start in range(0, len(head), size):
            with suppress(ConnectionError):
                caller.send(head[start : start + size])
            time.sleep(0.01)
        assert refusal == caller.refusal()


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", CHUNKED + b"1;", CHUNKED + b"0\r\nX-Long: "]
)
def test_what_never_ends_is_refused_long_before_it_is_large(patient: Door, start: bytes) -> None:
    """A target, a field, what stands beside the size of a chunk, and a field after a body."""
    with patient.call(start) as caller:
        with suppress(ConnectionError):
            for _ in range(2000):
                caller.send(b"a" * 1000)
                time.sleep(0.0002)
        status, _ = caller.refusal()

    assert status in (414, 431)


def test_fields_after_a_body_are_not_fields_of_the_request(patient: Door) -> None:
    with patient.call(CHUNKED + b"1\r\na\r\n0\r\nAuthorization: Bearer stolen\r\nX-Forwarded-For: b\r\n\r\n") as caller:
        said = caller.said()

    assert "a" == said["body"]
    assert {"host", "transfer-encoding"} == {name for name, _ in said["headers"]}


def test_a_caller_that_asks_and_asks_without_waiting_is_cut_off(door: Door) -> None:
    """The answers of what was taken in come in order; what came on top is not kept in memory."""
    bounds = Bounds(pipelined=5, look_seconds=0.05)
    with Door(bounds) as small, small.call(get(b"/slow") + get() * 5000) as caller:
        assert until(lambda: small.app.requests)
        time.sleep(0.1)
        small.let_go()
        paths = [caller.said()["path"] for _ in range(6)]
        assert b"" == caller.rest()

    assert ["/slow", *["/"] * 5] == paths
    assert 6 == len(small.app.requests)


# Too slow


def test_a_head_that_does_not_come_is_refused(door: Door) -> None:
    with door.call(b"GET / HTTP/1.1\r\nHos") as caller:
        assert (408, "slow_head") == caller.refusal()


def test_a_head_that_trickles_gains_no_time_by_it(door: Door) -> None:
    with door.call(b"GET / HTTP/1.1\r\n") as caller:
        with suppress(ConnectionError):
            for _ in range(200):
                caller.send(b"X-A: b\r\n")
                time.sleep(0.02)
        assert (408, "slow_head") == caller.refusal()


def test_a_second_head_that_does_not_come_is_refused_too(door: Door) -> None:
    with door.call(get() + b"GET /") as caller:
        assert "/" == caller.said()["path"]
        assert (408, "slow_head") == caller.refusal()


def test_connections_on_which_nothing_is_asked_end_without_a_word() -> None:
    with Door(QUICK, keep_alive=0.3) as door:
        callers = [door.call() for _ in range(50)]
        asked = door.call(get())
        asked.said()
        for caller in (*callers, asked):
            with caller:
                assert b"" == caller.rest()
        assert until(lambda: door.connections == 0)


def test_a_body_that_goes_on_after_its_answer_ends_with_its_connection(door: Door) -> None:
    """A caller without a key is answered at once, and then keeps sending."""
    with door.call(CHUNKED.replace(b"POST /", b"POST /early")) as caller:
        assert "/early" == caller.said()["path"]
        cut_off = False
        for _ in range(3000):
            try:
                caller.send(b"1000\r\n" + b"a" * 4096 + b"\r\n")
            except ConnectionError:
                cut_off = True
                break
            time.sleep(0.005)
        assert cut_off


def test_a_body_that_ends_after_its_answer_leaves_the_connection_in_use(patient: Door) -> None:
    with patient.call(CHUNKED.replace(b"POST /", b"POST /early")) as caller:
        assert "/early" == caller.said()["path"]
        caller.send(b"3\r\nabc\r\n0\r\n\r\n" + get(b"/next"))
        assert "/next" == caller.said()["path"]


def test_a_request_that_is_being_answered_is_not_slow(door: Door) -> None:
    with door.call(get(b"/slow")) as caller:
        assert until(lambda: door.app.requests)
        time.sleep(4 * QUICK.head_seconds)
        door.let_go()
        assert "/slow" == caller.said()["path"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_caller_that_does_not_take_its_answers_is_let_go(loop: str) -> None:
    with Door(QUICK, loop=loop) as door, door.call(get(b"/big") * 3):
        assert until(lambda: door.app.requests)
        assert until(lambda: door.connections == 0)


def test_a_caller_that_hangs_up_takes_its_connection_along(patient: Door) -> None:
    for _ in range(30):
        with patient.call(CHUNKED + b"3\r\nabc"):
            pass

    assert until(lambda: patient.connections == 0)
    assert until(lambda: all(seen.get("gone") for seen in patient.app.requests))


# Too many


def test_one_connection_too_many_is_told_to_come_back_and_may() -> None:
    with Door(Bounds(connections=3, grace_seconds=60, look_seconds=0.05)) as door:
        callers = [door.call(get()) for _ in range(3)]
        for caller in callers:
            caller.said()
        with door.call(get()) as late:
            status, headers, _ = late.answer()
            assert (503, "1", "close") == (status, headers["retry-after"], headers["connection"])
            assert b"" == late.rest()
        with door.call(get()) as late:
            assert (503, "too_many_connections") == late.refusal()
        for caller in callers:
            with caller:
                caller.send(get(b"/again"))
                assert "/again" == caller.said()["path"]
        assert until(lambda: door.connections == 0)
        with door.call(get()) as late:
            assert "/" == late.said()["path"]


def test_a_service_that_is_full_still_answers_its_probes() -> None:
    """Else it would be restarted for being busy. One a connection, and no other request."""
    with Door(Bounds(connections=2, grace_seconds=60, linger_seconds=0.3, look_seconds=0.05)) as door:
        busy = [door.call(get(b"/slow")) for _ in range(2)]
        assert until(lambda: len(door.app.requests) == 2)
        for path in ("/livez", "/readyz"):
            with door.call(get(path.encode()) + get(b"/more")) as probing:
                assert path == probing.said()["path"]
                assert b"" == probing.rest()
        with door.call(get(b"/livez/more")) as late:
            assert (503, "too_many_connections") == late.refusal()
        with door.call(b"GET /livez") as slow, door.call() as silent:
            assert (408, "slow_head") == slow.refusal()
            assert b"" == silent.rest()
        door.let_go()
        for caller in busy:
            with caller:
                assert "/slow" == caller.said()["path"]
        assert ["/slow", "/slow", "/livez", "/readyz"] == [seen["path"] for seen in door.app.requests]


def test_those_that_hold_connections_without_asking_make_room_for_those_that_ask() -> None:
    """Longest first; a request that is being answered is never given up."""
    with Door(Bounds(connections=10, head_seconds=60, grace_seconds=0.2, look_seconds=0.05)) as door:
        busy = door.call(get(b"/slow"))
        assert until(lambda: door.app.requests)
        holders = [door.call(b"GET / HTTP/1.1\r\n") for _ in range(9)]
        assert until(lambda: door.connections == 10)

        def answered() -> bool:
            with door.call(get(b"/served")) as caller:
                return caller.answer()[0] == 200

        time.sleep(0.4)
        assert answered()
        door.let_go()
        with busy:
            assert "/slow" == busy.said()["path"]
        for holder in holders:
            with holder:
                assert b"" == holder.rest()


def test_the_setting_is_taken_and_as_many_files_may_be_open() -> None:
    """A soft limit of 1,024 files, or less, is common, and would be met before the bound on connections."""
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (256, hard)); "
        "from serving import edge; print(edge._set_bounds().connections, r.getrlimit(r.RLIMIT_NOFILE)[0], hard)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "ESTEIRA_MAX_CONNECTIONS": "700"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    connections, soft, hard = map(int, done.stdout.split())

    assert 700 == connections
    assert soft >= min(700 + 256, hard if hard > 0 else 10**9)


def test_a_flood_of_connections_is_one_line_in_the_log_and_none_of_its_bytes(
    patient: Door, caplog: pytest.LogCaptureFixture
) -> None:
    before = edge.counts[400]
    with caplog.at_level(logging.DEBUG):
        for _ in range(40):
            with patient.call(b"secret-words\r\n\r\n") as caller:
                caller.refusal()

    assert 40 == edge.counts[400] - before
    assert len([record for record in caplog.records if record.name == "serving"]) <= 1
    assert "secret-words" not in caplog.text


# The seam: these fail when what the door is made from changes


def probe(port: int, host: str = "127.0.0.1") -> bool:
    """True when the door answers there: one field too many gets 431 in our shape, which nothing else says."""
    with Caller(port, host) as caller:
        caller.send(get(b"/livez", b"Connection: close", *[b"X-%d: v" % number for number in range(100)]))
        status, headers, body = caller.answer()
    return (
        status == 431
        and headers["content-type"] == "application/json"
        and json.loads(body)["error"]["code"] == "head_too_large"
    )


def test_the_probe_of_the_running_service_tells_the_door_from_uvicorn_alone() -> None:
    """tests/test_serving_security.py asks this of the process that `bentoml serve` starts."""
    with Door(PATIENT) as door, Door(protocol=HttpToolsProtocol) as alone:
        assert probe(door.port)
        assert not probe(alone.port)


def test_the_door_takes_the_place_of_the_protocol_that_uvicorn_takes_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", HttpToolsProtocol)

    edge.install()
    edge.install()

    config = uvicorn.Config(Asked(), ws="none", lifespan="off", log_config=None)
    config.load()
    assert Edge is config.http_protocol_class


def test_another_protocol_of_uvicorn_is_a_letter_and_not_a_service_without_a_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", asyncio.Protocol)

    with pytest.raises(ConfigError) as caught:
        edge.install()
    assert "no_httptools" == caught.value.code


def test_the_door_was_read_against_the_versions_that_are_installed_and_locked() -> None:
    """On a new version: read uvicorn's httptools_impl.py and Bento's worker/service.py again, then change these."""
    read = {"bentoml": "1.4.39", "uvicorn": "0.54.0", "httptools": "0.9.0"}
    lock = (ROOT / "requirements" / "serving.lock").read_text(encoding="utf-8")

    assert read == {name: importlib.metadata.version(name) for name in read}
    assert read == {name: re.findall(rf"^{name}==([\w.]+)", lock, re.MULTILINE)[0] for name in read}


def test_the_worker_of_bento_lets_uvicorn_choose_the_protocol() -> None:
    spec = importlib.util.find_spec("_bentoml_impl.worker.service")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")

    assert 1 == source.count("uvicorn.Config(")
    assert not re.search(r"\bhttp\s*=|\"http\"", source)
    assert source.index("service.to_asgi(") < source.index("uvicorn.Config("), "our module is loaded before"
    assert "uvicorn.protocols.http.auto:AutoHTTPProtocol" == HTTP_PROTOCOLS["auto"]
    assert "auto" == inspect.signature(uvicorn.Config.__init__).parameters["http"].default


def test_what_the_door_overrides_and_touches_is_there() -> None:
    overridden = [name for name, value in vars(Edge).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert [] == [name for name in overridden if not hasattr(HttpToolsProtocol, name)]
    connection = inspect.getsource(HttpToolsProtocol)
    for name in (
        "access_log", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "server_state",
        "timeout_keep_alive", "transport", "url",
    ):  # fmt: skip
        assert re.search(rf"self\.{name}\b.* = ", connection), name
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("disconnected", "keep_alive", "message_event", "response_complete", "response_started"):
        assert re.search(rf"self\.{name}\b.* = ", cycle), name
    assert "self.on_response()" in cycle
    assert hasattr(HttpToolsProtocol, "_start_asgi_task")
