"""Answers as they leave: JSON with a request id, and errors of one shape that carry no stack and no driver's words."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from serving.asgi import Send

Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"


class Problem(Exception):
    """An answer that is an error: one shape, no driver's words, no stack.

    Args:
        status: of HTTP.
        code: stable snake_case name that callers may match on.
        message: the rule and what to do, for a person.
        field: the column, header or parameter that is to blame.
        row: its position in the request, from 0.
        details: more of the same kind, each with code, message, field and row.
        where, cure: of a letter of ours (`esteira.errors`); left out where they are empty.
        headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        row: int | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        where: str = "",
        cure: str = "",
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.error: dict[str, Any] = {"code": code, "message": message, "field": field, "row": row}
        if details:
            self.error["details"] = list(details)
        self.error |= {name: text for name, text in (("where", where), ("cure", cure)) if text}


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None:
        raise NotImplementedError(f"{type(value).__name__} is not JSON")
    return item()


encode = msgspec.json.Encoder(enc_hook=_plain).encode
"""A value as JSON; numbers of numpy are numbers."""


async def send_json(
    send: Send, status: int, body: bytes, request_id: bytes, content_type: bytes = JSON, extra: Headers = ()
) -> None:
    """Send a whole answer; `extra` are more headers."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id),
        (b"cache-control", b"no-store"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem, request_id: bytes, extra: Headers = ()) -> int:
    """Send an error; returns the bytes of its body."""
    body = encode({"error": {**problem.error, "request_id": request_id.decode()}})
    # Both may want the connection closed; it is said once.
    more = [*problem.headers, *(header for header in extra if header not in problem.headers)]
    await send_json(send, problem.status, body, request_id, JSON, more)
    return len(body)
