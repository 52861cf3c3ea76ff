"""Reads a request's body, within limits and strictly: what two readers could take for two different things is refused."""

import asyncio
import json
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from serving.asgi import Message, Receive
from serving.problems import Problem
from serving.started import Resumed, begin

_decode = msgspec.json.Decoder().decode
_DRAINED = 5  # times the limit
_NESTED = frozenset({dict, list})


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


class GoneError(Exception):
    """The caller hung up."""


class BadBody(Exception):
    """The body is not strict JSON; `code` and the message say why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse(body: bytes) -> Any:
    """The JSON value of the bytes.

    Raises:
        BadBody: not UTF-8, not JSON, a NaN or Infinity token, a number out of range, nested too deeply, or an object that
            has a key twice.
    """
    try:
        value = _decode(body)
        keys = _keys(value)
    except UnicodeDecodeError as error:
        raise BadBody("bad_json", f"the body must be UTF-8, but byte {error.start} is not") from error
    except RecursionError as error:
        raise BadBody("bad_json", "the body is nested too deeply") from error
    except (msgspec.DecodeError, ValueError) as error:  # ValueError: a number of thousands of digits
        _explain(body, error)
    # Every key has one colon, and texts may hold more: as many colons as keys means that no key stood twice.
    if body.count(b":") != keys:
        _refuse_twice(body)
    return value


def _keys(value: Any) -> int:
    """How many keys the objects in it have; a flat object costs no loop of ours."""
    if type(value) is dict:
        number = len(value)
        if not _NESTED.isdisjoint(map(type, value.values())):
            number += sum(_keys(item) for item in value.values() if type(item) in _NESTED)
        return number
    if type(value) is list and not _NESTED.isdisjoint(map(type, value)):
        return sum(_keys(item) for item in value if type(item) in _NESTED)
    return 0


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadBody("duplicate_key", f"an object may have a key once, but {name[:80]!r} stands twice")
            seen.add(name)
    return read


def _constant(token: str) -> NoReturn:
    raise BadBody("nan_token", f"JSON has no {token}; send null for a missing value")


def _refuse_twice(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_pairs)
    except RecursionError as error:  # a little earlier than the first reader's
        raise BadBody("bad_json", "the body is nested too deeply") from error
    except ValueError as error:
        raise BadBody("bad_json", "the body must be JSON that every reader reads alike") from error


def _explain(body: bytes, error: Exception) -> NoReturn:
    try:
        json.loads(body, parse_constant=_constant, object_pairs_hook=_pairs)
    except BadBody as found:
        raise found from error
    except (ValueError, RecursionError):
        pass
    raise BadBody("bad_json", f"the body must be JSON: {error}") from error


def read(body: bytes) -> Any:
    """The JSON value of a request's body.

    Raises:
        Problem: 400, as `parse`.
    """
    try:
        return parse(body)
    except BadBody as error:
        raise Problem(400, error.code, str(error)) from error


def rows_of(body: bytes, most: int) -> list[dict[str, Any]]:
    """The rows of a prediction's body, `{"rows": [{...}, ...]}`, at least one and at most `most`.

    Raises:
        Problem: 400 when it is no strict JSON, 422 when it is anything else.
    """
    document = read(body)
    if not isinstance(document, dict):
        raise Problem(422, "wrong_type", 'the body is an object: {"rows": [...]}')
    for name in document:
        if name != "rows":
            raise Problem(422, "unknown_field", f"the body has only 'rows', but got {name[:80]!r}", field=name[:80])
    if "rows" not in document:
        raise Problem(422, "missing_field", "the body needs 'rows'", field="rows")
    rows = document["rows"]
    if not isinstance(rows, list):
        raise Problem(422, "wrong_type", f"'rows' is a list of objects, but got {_kind(rows)}", field="rows")
    if not rows:
        raise Problem(422, "empty", "'rows' needs at least one row", field="rows")
    if len(rows) > most:
        raise Problem(422, "too_many_rows", f"'rows' takes {most} rows, but got {len(rows)}", field="rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Problem(
                422, "wrong_type", f"a row is an object, but row {number} is {_kind(row)}", field="rows", row=number
            )
    return rows


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")


class Bodies:
    """Reads bodies within the limits, and keeps count of what all of them take.

    Attributes:
        bytes: of the bodies that are being read or answered. Whoever got a body gives its length back, by `-=` or by `hold`.
    """

    def __init__(self, limits: Limits) -> None:
        self.bytes = 0
        self._limits = limits

    async def read(self, receive: Receive, declared: int, *, asked: bool = False) -> bytes:
        """The whole body.

        Args:
            receive: of ASGI; what it gives must be a coroutine, as servers and tests have it.
            declared: Content-Length, 0 when it is not known.
            asked: the caller sends nothing before it is told to go on (`Expect: 100-continue`).

        Raises:
            Problem: 413 too large, 408 too slow, 503 no room for it now.
            GoneError: the caller hung up.
        """
        limits = self._limits
        if declared > limits.body:
            await self._refuse(receive, -1 if asked else 0, time.monotonic() + limits.seconds)
        # Mostly the server has read it all by now, and only a coroutine that has to wait costs a timer (a tenth of a small
        # request's time).
        message = begin(receive())
        if isinstance(message, Resumed):
            return await self._parts(receive, declared, None, message)
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) <= limits.body and self.bytes + len(body) <= limits.bodies:
                self.bytes += len(body)
                return body
        return await self._parts(receive, declared, message, None)

    def hold(self, size: int, call: "asyncio.Future[Any]") -> None:
        """Have that much given back when the call ends, which still has the rows of a body in its hands."""

        def give_back(_: "asyncio.Future[Any]") -> None:
            self.bytes -= size

        call.add_done_callback(give_back)

    async def _parts(
        self, receive: Receive, declared: int, message: Message | None, waiting: Awaitable[Message] | None
    ) -> bytes:
        until = time.monotonic() + self._limits.seconds
        parts: list[bytes] = []
        size, held, more = 0, 0, True
        try:
            # What comes is counted, not what is announced: ten slow callers must not take the room of all others.
            self._must_fit(declared)
            while more:
                if message is None:
                    message = await self._part(waiting if waiting is not None else receive(), until)
                if message["type"] == "http.disconnect":
                    raise GoneError
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                message = waiting = None
                size += len(part)
                if size > self._limits.body:
                    await self._refuse(receive, size if more else -1, until)
                self._must_fit(len(part))
                self.bytes += len(part)
                held += len(part)
                parts.append(part)
        except BaseException:
            self.bytes -= held
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _must_fit(self, size: int) -> None:
        if self.bytes + size > self._limits.bodies:
            raise Problem(
                503, "overloaded", "too many large requests at once; try again", headers=[(b"retry-after", b"1")]
            )

    async def _part(self, waiting: Awaitable[Message], until: float) -> Message:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await waiting
        except TimeoutError as error:
            raise Problem(408, "slow_body", f"the body must arrive within {self._limits.seconds:g} s") from error

    async def _refuse(self, receive: Receive, size: int, until: float) -> NoReturn:
        """Refuse a body that is too large; one that is not absurdly so is read and thrown away first.

        Most clients send all before they read; without this they would see a broken pipe instead of the answer.
        """
        while 0 <= size < _DRAINED * self._limits.body:
            try:
                message = await self._part(receive(), until)
            except Problem:  # too slow as well
                break
            if message["type"] == "http.disconnect":
                raise GoneError
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        raise Problem(
            413, "body_too_large", f"a body takes {self._limits.body} bytes", headers=[(b"connection", b"close")]
        )


def hung_up(receive: Receive) -> bool:
    """Whether the caller of a request that was read has gone; never waits."""
    looking = begin(receive())
    if isinstance(looking, Resumed):
        looking.close()
        return False
    return bool(looking["type"] == "http.disconnect")
