"""The door: what a connection may cost before a request exists. Heads, waits and numbers are bounded; a sane request passes unchanged.

It takes the place of uvicorn's own protocol in the process that `bentoml serve` starts. Of routes it knows the
probes only; keys and the bounds of bodies are the API's.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NoReturn, cast

import httptools
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from esteira.errors import ConfigError
from serving.asgi import Asgi, Receive, Scope, Send
from serving.cycle import Whole
from serving.problems import Problem, encode, send_problem

_log = logging.getLogger("serving")
_LOG_SECONDS = 10.0  # a flood is one line each
# Connections on top, which are being told that there is no room; what comes on top of these is cut.
_SPARE = 256
_SHED = 32
_SHED_SECONDS = 0.1
# A service that is full lives, and must not be restarted for it.
_PROBES = frozenset({b"/livez", b"/readyz"})
_UPGRADE = frozenset({b"upgrade", b"http2-settings"})


@dataclass(frozen=True)
class Bounds:
    """What one connection may take, and how many there may be.

    Attributes:
        connections: of one process; what comes on top is answered 503 and closed.
        url: bytes of a request's target.
        head: bytes of target and header fields together, and of what frames a body without being any of it.
        fields: header fields.
        pipelined: requests of one connection that wait for the answer to an earlier one.
        head_seconds: for a head to arrive, and for the rest of a body whose request is already answered.
        answer_seconds: for the caller to take an answer.
        linger_seconds: that a refused connection is still read, so that its caller sees why.
        grace_seconds: after which a connection without a request makes room for a new one when all are taken.
        look_seconds: between two looks at each of these.
    """

    connections: int = 1000
    url: int = 8 * 1024
    head: int = 32 * 1024
    fields: int = 100
    pipelined: int = 32
    head_seconds: float = 10.0
    answer_seconds: float = 30.0
    linger_seconds: float = 2.0
    grace_seconds: float = 1.0
    look_seconds: float = 1.0


@cache
def _set_bounds() -> Bounds:
    from esteira.settings import load_settings

    connections = load_settings(file=None).max_connections
    _allow_files(connections + _SPARE + 256)
    return Bounds(connections=connections)


def _allow_files(number: int) -> None:
    """Let this process open that many files, as far as it may: a soft limit of 1,024 is common and would be met first."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_BAD = Problem(400, "bad_http", "the request must be HTTP/1.1")
_TUNNEL = Problem(405, "method", "this service takes no CONNECT")
_SLOW = Problem(408, "slow_head", "a request's head must arrive within some seconds")
_LONG_URL = Problem(414, "url_too_long", "a request's target takes 8 KiB")
_LARGE_HEAD = Problem(431, "head_too_large", "a request's head takes 32 KiB and 100 fields")
_PIPELINED = Problem(429, "pipelined", "too many requests of one connection wait for their answers")
_FULL = Problem(
    503, "too_many_connections", "this service has as many connections as it takes", headers=[(b"retry-after", b"1")]
)


counts: Counter[int] = Counter()
"""HTTP status -> how often it was said here, before any route; of this process."""
_unsaid: Counter[str] = Counter()
_said: dict[str, float] = {}


def _note(problem: Problem, now: float) -> None:
    """Count a refusal; a flood of them is one line in the log every some seconds, with none of the caller's bytes."""
    counts[problem.status] += 1
    code = problem.error["code"]
    _unsaid[code] += 1
    if now - _said.get(code, -_LOG_SECONDS) >= _LOG_SECONDS:
        _log.warning("refused before any route: %s, %d times", code, _unsaid.pop(code))
        _said[code] = now


def install() -> None:
    """Put the door in: every server that uvicorn starts in this process from now on, unless it is told another protocol, has it.

    Raises:
        ConfigError: uvicorn would not take the protocol that this one is made from.
    """
    if auto.AutoHTTPProtocol is Edge:
        return
    if auto.AutoHTTPProtocol is not HttpToolsProtocol:
        raise ConfigError(
            f"the service's door is made from uvicorn's httptools protocol, but it takes {auto.AutoHTTPProtocol.__name__}",
            code="no_httptools", where="uvicorn", cure="install what requirements/serving.lock lists",
        )  # fmt: skip
    auto.AutoHTTPProtocol = Edge


class _StopError(Exception):
    """Ends the parser from inside one of its callbacks."""


class Edge(HttpToolsProtocol):
    """One connection. Whatever it waits for has an end, and its refusals have the shape of all our errors.

    `_patience` is how long the caller may leave us waiting from `_since` on; None while the caller owes nothing.
    """

    bounds: ClassVar[Bounds | None] = None
    """None takes them from the settings when the first connection comes."""
    _shed_at: ClassVar[float] = 0.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False  # it spells the query out, and costs where nobody reads it
        if isinstance(self.app, ProxyHeadersMiddleware):
            self.app = self.app.app  # nothing here asks who called, so nobody's word on it is read
        self._bounds = self.bounds or _set_bounds()
        self._since = 0.0
        self._patience: float | None = None
        self._stalled: float | None = None  # since when the caller takes no answer
        self._surplus = False  # there is no room; only a probe is answered
        self._deaf = False  # refused; what still comes is thrown away
        self._why: Problem | None = None
        self._plain = b""  # a head without its upgrade
        self._in_head = self._in_body = False
        self._feed = 0  # bytes of what is being parsed
        self._bodiless = True  # and it brought no part of a body so far
        self._partial: int | None = None  # bytes of a head that came in pieces, but for its first
        self._framing = 0  # bytes between the parts of a body

    # The connection

    def connection_made(self, transport: Any) -> None:
        """Take a caller in; one too many is heard, so that it sees why it is refused, and so that probes are answered."""
        bounds, crowd = self._bounds, len(self.connections)
        super().connection_made(transport)
        self._wait(bounds.head_seconds)
        self._timer = self.loop.call_later(bounds.look_seconds, self._look)
        if crowd >= bounds.connections and not self._make_room():
            if crowd < bounds.connections + _SPARE:
                self._surplus = True
                self._wait(bounds.linger_seconds)
            else:
                _note(_FULL, self._since)
                self._deaf = True
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled = None
        super().resume_writing()

    def _make_room(self) -> bool:
        """End those that have held a connection without a request for longest; False when nobody has for long."""
        now = self._since
        if now - Edge._shed_at < _SHED_SECONDS:  # a flood must not make us look through all of them for each
            return False
        Edge._shed_at = now
        waiting = sorted(
            (
                other
                for other in cast("set[Edge]", self.connections)
                if other._patience is not None
                and not other._deaf
                and not other.transport.is_closing()
                and now - other._since >= self._bounds.grace_seconds
            ),
            key=lambda other: other._since,
        )[:_SHED]
        for other in waiting:
            other._end()
            self.connections.discard(other)
        return bool(waiting)

    # Time

    def _wait(self, seconds: float) -> None:
        self._since, self._patience = self.loop.time(), seconds

    def _look(self) -> None:
        """End what has kept us waiting too long. One timer a connection, not one a request."""
        bounds, now = self._bounds, self.loop.time()
        closing = self.transport.is_closing()
        if self._stalled is not None and now - self._stalled >= bounds.answer_seconds:
            self.transport.abort()
        elif self._patience is None:
            if closing:
                self._wait(bounds.answer_seconds)
        elif now - self._since >= self._patience:
            if closing:
                self.transport.abort()
            elif self._in_head and not self._deaf:
                self._refuse(_SLOW)
            else:
                self._end()
        self._timer = self.loop.call_later(bounds.look_seconds, self._look)

    def _end(self) -> None:
        self.transport.close()
        self._wait(self._bounds.answer_seconds)  # for what is not sent yet

    # The parser and its callbacks

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        began = self._in_head
        self._feed, self._bodiless = len(data), True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._start_again(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._why or _BAD)
        else:
            if self._in_head:
                self._head_goes_on(len(data) if began else 0)
            elif self._in_body and self._bodiless:
                self._framing += len(data)
                if self._framing > self._bounds.head:
                    self._refuse(_LARGE_HEAD)

    def _head_goes_on(self, size: int) -> None:
        if self._partial is None:
            self._partial = 0
            self._wait(self._bounds.linger_seconds if self._surplus else self._bounds.head_seconds)
        self._partial += size
        if self._partial > self._bounds.head:
            self._refuse(_LARGE_HEAD if self.headers else _LONG_URL)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        bounds = self._bounds
        if len(self.url) > bounds.url:
            self._stop(_LONG_URL)
        if len(self.headers) > bounds.fields:
            self._stop(_LARGE_HEAD)
        # Only a head of several pieces, or in a large one, can be too large.
        if (self._partial is not None or self._feed > bounds.head) and self._size() > bounds.head:
            self._stop(_LARGE_HEAD)
        if len(self.pipeline) >= bounds.pipelined:
            self._stop(_PIPELINED)
        if self._surplus and self.url not in _PROBES:
            self._stop(_FULL)
        if self.parser.should_upgrade():
            self._plain = self._without_upgrade()
            return
        super().on_headers_complete()
        self.cycle.__class__ = Whole
        if self._surplus:
            self.cycle.keep_alive = False
        self._in_head, self._in_body = False, True
        self._partial, self._framing, self._bodiless = None, 0, False
        self._patience = None
        self.headers = []  # fields that come after a body are no part of its head

    def on_body(self, body: bytes) -> None:
        self._bodiless = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain:
            return
        super().on_message_complete()
        self._in_body = False

    def on_response_complete(self) -> None:
        """Go on to the next request of this connection, or wait for it; by a stamp where uvicorn sets a timer a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._wait(self._bounds.answer_seconds)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_body or self._in_head:
            self._wait(self._bounds.head_seconds)
        else:
            self._wait(self.timeout_keep_alive)

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _stop(self, problem: Problem) -> NoReturn:
        self._why = problem
        raise _StopError

    # Upgrades

    def _without_upgrade(self) -> bytes:
        """The head as it would be of a caller that asks for no upgrade.

        The parser takes what follows an upgrade for another protocol; then the body of a `POST` whose caller only offers
        HTTP/2, as Java's client does, would be lost, or be read as the next request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._stop(_TUNNEL)
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(word for word in value.split(b",") if word.strip().lower() not in _UPGRADE)
            if name not in _UPGRADE:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"\r\n"])

    def _start_again(self, rest: bytes) -> None:
        plain, self._plain = self._plain, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._in_head, self._partial = False, None
        self.data_received(plain + rest)

    # Refusals

    def _refuse(self, problem: Problem) -> None:
        """Answer if it is this request's turn, close after what was asked before it, and read no more."""
        self._deaf = True
        _note(problem, self.loop.time())
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            self._patience = None
            if not self._in_body or cycle.response_started:
                cycle.keep_alive = False  # requests before this one are answered, then the connection ends
                return
            if self.pipeline:
                cycle.keep_alive = False
                self.pipeline[0] = (cycle, cast(Any, _refusing(problem)))
                return
            # Its application waits for the rest of the body: for it the caller is gone.
            cycle.disconnected = True
            cycle.message_event.set()
        elif self._in_body:  # this request has its answer
            self._end()
            return
        self.transport.write(_words(problem, self.server_state.default_headers))
        # Closed at once, what the caller still sends would be answered by a reset, and our words lost with it.
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(self._bounds.linger_seconds)


def _refusing(problem: Problem) -> Asgi:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_problem(send, problem, os.urandom(16).hex().encode())

    return answer


def _words(problem: Problem, headers: list[tuple[bytes, bytes]]) -> bytes:
    request_id = os.urandom(16).hex()
    body = encode({"error": {**problem.error, "request_id": request_id}})
    lines = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *problem.headers,
    ]
    return b"".join([STATUS_LINE[problem.status], *(b"%s: %s\r\n" % line for line in lines), b"\r\n", body])
