"""The HTTP API as a small ASGI application around Bento's own: our routes are answered here, the rest is handed in with a key.

It stands outside Bento's middlewares (measured five to nine times the requests a second of an app mounted inside), so it does
itself what they would: limits, the key, metrics, one shape of errors. It loads no model and opens no database.
"""

import asyncio
import hmac
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import parse_qs

import msgspec

from esteira.errors import EsteiraError
from esteira.family import Finding
from serving.body import BadBody, parse
from serving.metrics import Metrics
from serving.openapi import describe_api
from serving.predictor import Deployed, Predictor
from serving.records import Recorder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("serving")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_JSON = (b"content-type", b"application/json")
# Besides JSON's own name: what `curl -d` says when it is told nothing. The body must be JSON all the same.
_TAKEN_AS_JSON = frozenset({b"application/json", b"application/x-www-form-urlencoded"})
_INLINE_ROWS = 8
_DETAILS = 20
_DRAINED = 5  # times the limit


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        rows: rows in one request.
        body: bytes of one body.
        bodies: bytes of all bodies that are being read or answered.
        seconds: for a body to arrive.
    """

    rows: int = 1000
    body: int = 10_000_000
    bodies: int = 100_000_000
    seconds: float = 30.0


@dataclass(frozen=True)
class Keys:
    """Who may call: `caller` predicts and reads; `operator` may also ask for a version that is not deployed."""

    caller: bytes = field(repr=False)
    operator: bytes | None = field(default=None, repr=False)

    def role(self, authorization: bytes | None) -> str | None:
        """`caller`, `operator` or None; takes the same time for every wrong key of a length."""
        kind, _, given = (authorization or b"").partition(b" ")
        if kind.lower() != b"bearer" or not given:
            return None
        given = given.strip()
        caller = hmac.compare_digest(given, self.caller)
        operator = self.operator is not None and hmac.compare_digest(given, self.operator)
        return "operator" if operator else "caller" if caller else None


class Problem(Exception):
    """An answer that is an error: one shape, no driver's words, no stack."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        row: int | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.error: dict[str, Any] = {"code": code, "message": message, "field": field, "row": row}
        if details:
            self.error["details"] = list(details)


class Api:
    """The ASGI application.

    Args:
        deployed: what each line serves.
        keys: who may call.
        inner: Bento's own application; gets the life span, and every other route once the key is right.
        metrics: counters.
        recorder: where records of predictions go; None keeps none.
        start, stop: called in a thread when the life span starts and ends; a `start` that raises ends the service.
    """

    def __init__(
        self,
        deployed: Deployed,
        keys: Keys,
        inner: Asgi,
        *,
        metrics: Metrics,
        recorder: Recorder | None = None,
        limits: Limits | None = None,
        start: Callable[[], None] = lambda: None,
        started: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._deployed = deployed
        self._keys = keys
        self._inner = inner
        self._metrics = metrics
        self._recorder = recorder
        self.limits = limits or Limits()
        self._start, self._started, self._stop = start, started, stop
        self._alive = False
        self.bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            raise RuntimeError(f"an ASGI scope is http, lifespan or websocket, but got {kind!r}")

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.to_thread(self._start)
        except Exception as error:  # noqa: BLE001 - uvicorn would serve on without a life span; it must not
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return

        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._alive = True
                await send(message)
                self._started()
                return
            await send(message)

        try:
            await self._inner(scope, receive, watched)
        finally:
            self._alive = False
            await asyncio.to_thread(self._stop)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path in ("/livez", "/readyz"):
            await self._health(path, scope["method"], send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()
        begun = time.perf_counter()
        status = 500
        route, line, rows = "", "", 0
        try:
            role = self._keys.role(headers.get(b"authorization"))
            if role is None:
                raise Problem(
                    401,
                    "unauthorized",
                    "send the key as 'Authorization: Bearer KEY'",
                    headers=[(b"www-authenticate", b"Bearer")],
                )
            route, line = self._route(path)
            if route == "predict":
                _method(scope, "POST")
                predictor = await self._predictor(line, scope, role)
                answer, rows = await self._predict(predictor, headers, receive, request_id)
                status = 200
                await _send(send, 200, answer, request_id)
            elif route == "inner":
                await self._inner(scope, receive, send)
                return
            else:
                _method(scope, "GET")
                content_type, body = await self._read(route, line, scope, role)
                status = 200
                await _send(send, 200, body, request_id, content_type)
        except Problem as problem:
            status = problem.status
            await _send_problem(send, problem, request_id)
        except _GoneError:
            status = 499
        except Exception:  # noqa: BLE001 - the caller gets an answer of our shape, the log gets the cause
            _log.exception("request %s failed", request_id.decode())
            await _send_problem(
                send, Problem(500, "internal", "this is our fault; the request id finds it in the log"), request_id
            )
        finally:
            if line:
                self._count(route == "predict", line, status, rows, time.perf_counter() - begun, request_id)

    def _count(self, predicted: bool, line: str, status: int, rows: int, seconds: float, request_id: bytes) -> None:
        self._metrics.answered(line, status, rows, seconds, predicted=predicted)
        if self._recorder is None or not predicted:
            return
        deployment = self._deployed.now.get(line)
        self._recorder.put(
            {
                "request_id": request_id.decode(),
                "line": line,
                "version": deployment.version if deployment else None,
                "bundle_id": deployment.bundle_id if deployment else None,
                "rows": rows,
                "elapsed_ms": round(seconds * 1000, 3),
                "status": status,
                "at": datetime.now(UTC),
            }
        )

    async def _health(self, path: str, method: str, send: Send) -> None:
        good = path == "/livez" or (self._alive and self._deployed.ready)
        status = 405 if method not in ("GET", "HEAD") else 200 if good else 503
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _route(self, path: str) -> tuple[str, str]:
        """(`predict`, line), (`model`, line), (name, ``) of a page of ours, or (`inner`, ``)."""
        if path == "/v1/predict":
            if len(self._deployed.lines) != 1:
                raise Problem(
                    404,
                    "which_line",
                    f"this service has several lines: POST /v1/LINE/predict, LINE one of {self._names()}",
                )
            return "predict", self._deployed.lines[0]
        if path.startswith("/v1/"):
            line, _, verb = path[4:].partition("/")
            if verb not in ("predict", "model"):
                raise Problem(404, "no_route", "there is POST /v1/LINE/predict and GET /v1/LINE/model")
            if line not in self._deployed.lines:
                raise Problem(404, "unknown_line", f"this service has the lines {self._names()}", field="line")
            return verb, line
        if path in ("/metrics", "/openapi.json"):
            return path[1:], ""
        return "inner", ""

    def _names(self) -> str:
        lines = self._deployed.lines
        return ", ".join(lines[:10]) + (" ..." if len(lines) > 10 else "")

    async def _predictor(self, line: str, scope: Scope, role: str) -> Predictor:
        query = scope.get("query_string", b"")
        number = _version(query) if query else None
        if number is None:
            predictor = self._deployed.loaded(line)
            if predictor is not None:
                return predictor
        elif role != "operator" and not self._deployed.serves(line, number):
            raise Problem(
                403,
                "not_deployed",
                f"version {number} is not deployed; only an operator may ask for it",
                field="version",
            )
        try:
            predictor = await asyncio.to_thread(self._deployed.predictor, line, number)
        except EsteiraError as error:
            _log.warning("line %s cannot answer: %s", line, error)
            raise Problem(503, error.code, f"line {line} has no model that can be loaded now") from error
        if predictor is None and number is not None:
            raise Problem(404, "unknown_version", f"line {line} has no version {number}", field="version")
        if predictor is None:
            raise Problem(503, "no_model", f"line {line} has no released model", headers=[(b"retry-after", b"5")])
        return predictor

    async def _read(self, route: str, line: str, scope: Scope, role: str) -> tuple[bytes, bytes]:
        if route == "model":
            predictor = await self._predictor(line, scope, role)
            return b"application/json", _encode(predictor.describe())
        if route == "openapi.json":
            predictors = {name: self._deployed.loaded(name) for name in self._deployed.lines}
            schemas = {name: (found.manifest.get("schema") if found else None) for name, found in predictors.items()}
            return b"application/json", _encode(describe_api(schemas, self.limits.rows))
        return await asyncio.to_thread(self._metrics.page, self._recorder)

    async def _predict(
        self, predictor: Predictor, headers: Mapping[bytes, bytes], receive: Receive, request_id: bytes
    ) -> tuple[bytes, int]:
        """The encoded answer and the number of rows."""
        content_type = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if content_type not in _TAKEN_AS_JSON:
            raise Problem(415, "not_json", "send Content-Type: application/json", field="content-type")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(415, "encoded", "send the body without Content-Encoding", field="content-encoding")
        with _Room(self) as room:
            body = await self._body(receive, _declared(headers.get(b"content-length")), room)
            rows = self._rows(body)
            if len(rows) <= _INLINE_ROWS:
                return self._answer(predictor, rows, request_id), len(rows)
            return await asyncio.to_thread(self._answer, predictor, rows, request_id), len(rows)

    async def _body(self, receive: Receive, declared: int, room: "_Room") -> bytes:
        until = time.monotonic() + self.limits.seconds
        if declared > self.limits.body:
            await self._refuse_body(receive, 0, until)
        room.take(declared)
        parts, size, more = [], 0, True
        while more:
            message = await self._part(receive, until - time.monotonic())
            part: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size > self.limits.body:
                await self._refuse_body(receive, size if more else -1, until)
            room.take(size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _refuse_body(self, receive: Receive, size: int, until: float) -> NoReturn:
        """Refuse a body that is too large; one that is not absurdly so is read and thrown away first.

        Most clients send all before they read; without this they would see a broken pipe instead of the answer.
        """
        while 0 <= size < _DRAINED * self.limits.body:
            try:
                message = await self._part(receive, until - time.monotonic())
            except Problem:  # too slow as well
                break
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        raise Problem(
            413, "body_too_large", f"a body takes {self.limits.body} bytes", headers=[(b"connection", b"close")]
        )

    async def _part(self, receive: Receive, seconds: float) -> Message:
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError as error:
            raise Problem(408, "slow_body", f"the body must arrive within {self.limits.seconds:g} s") from error
        if message["type"] == "http.disconnect":
            raise _GoneError
        return message

    def _rows(self, body: bytes) -> list[dict[str, Any]]:
        try:
            document = parse(body)
        except BadBody as error:
            raise Problem(400, error.code, str(error)) from error
        if not isinstance(document, dict):
            raise Problem(422, "wrong_type", 'the body is an object: {"rows": [...]}')
        for name in document:
            if name != "rows":
                raise Problem(422, "unknown_field", f"the body has only 'rows', but got {name[:80]!r}", field=name[:80])
        rows = document.get("rows")
        if "rows" not in document:
            raise Problem(422, "missing_field", "the body needs 'rows'", field="rows")
        if not isinstance(rows, list):
            raise Problem(422, "wrong_type", f"'rows' is a list of objects, but got {_kind(rows)}", field="rows")
        if not rows:
            raise Problem(422, "empty", "'rows' needs at least one row", field="rows")
        if len(rows) > self.limits.rows:
            raise Problem(
                422, "too_many_rows", f"'rows' takes {self.limits.rows} rows, but got {len(rows)}", field="rows"
            )
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise Problem(
                    422, "wrong_type", f"a row is an object, but row {number} is {_kind(row)}", field="rows", row=number
                )
        return rows

    def _answer(self, predictor: Predictor, rows: list[dict[str, Any]], request_id: bytes) -> bytes:
        findings = predictor.check(rows)
        if findings:
            errors = [finding for finding in findings if finding.severity == "error"]
            if errors:
                raise _refused(errors)
            self._metrics.warned(predictor.deployment.line, len(findings))
        answers = predictor.answer(rows)
        return _encode(
            {
                **predictor.envelope,
                "request_id": request_id.decode(),
                "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "rows": answers,
            }
        )


class _Room:
    """What one request's body takes of the room for all bodies; given back on leaving."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._held = 0

    def __enter__(self) -> "_Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._api.bodies -= self._held

    def take(self, size: int) -> None:
        """Hold at least `size` bytes.

        Raises:
            Problem: there is no room now.
        """
        more = size - self._held
        if more > 0:
            if self._api.bodies + more > self._api.limits.bodies:
                raise Problem(
                    503, "overloaded", "too many large requests at once; try again", headers=[(b"retry-after", b"1")]
                )
            self._api.bodies += more
            self._held = size


class _GoneError(Exception):
    """The caller hung up."""


def _method(scope: Scope, wanted: str) -> None:
    method = scope["method"]
    if method != wanted and not (wanted == "GET" and method == "HEAD"):
        raise Problem(
            405, "method", f"this route takes {wanted}, but got {method}", headers=[(b"allow", wanted.encode())]
        )


def _version(query: bytes) -> int | None:
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    for name in asked:
        if name != "version":
            raise Problem(422, "unknown_field", f"the query has only 'version', but got {name[:80]!r}", field=name[:80])
    text = asked.get("version", [""])[-1]
    if not asked:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Problem(422, "wrong_type", "'version' is a whole number", field="version")
    return int(text)


def _declared(length: bytes | None) -> int:
    return int(length) if length is not None and length.isdigit() else 0


def _refused(errors: Sequence[Finding]) -> Problem:
    first = errors[0]
    return Problem(
        422,
        first.rule,
        first.message,
        field=first.column,
        row=first.row,
        details=[
            {"code": found.rule, "message": found.message, "field": found.column, "row": found.row}
            for found in errors[:_DETAILS]
        ],
    )


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None:
        raise NotImplementedError(f"{type(value).__name__} is not JSON")
    return item()


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


async def _send(
    send: Send, status: int, body: bytes, request_id: bytes, content_type: bytes = b"application/json"
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_problem(send: Send, problem: Problem, request_id: bytes) -> None:
    body = _encode({"error": {**problem.error, "request_id": request_id.decode()}})
    headers = [_JSON, (b"content-length", str(len(body)).encode()), (b"x-request-id", request_id), *problem.headers]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
