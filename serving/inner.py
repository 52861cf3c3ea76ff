"""Hands a request to Bento's own application: only to read, without a body, and with our words where it would use its own."""

from serving.asgi import Asgi, Message, Receive, Scope, Send
from serving.problems import Headers, Problem
from serving.routes import must_be

# What Bento answers; any other method on other paths is no route at all.
_ROUTES = frozenset({"/", "/docs.json", "/schema.json", "/healthz"})


class HalfSentError(RuntimeError):
    """Nothing can be said any more; the connection must end."""


async def ask_bento(
    inner: Asgi, scope: Scope, receive: Receive, send: Send, request_id: bytes, extra: Headers
) -> tuple[int, int]:
    """Status and bytes of what Bento answered.

    Raises:
        Problem: Bento has no such route, or said that it failed.
        HalfSentError: it failed in the middle of its answer.
    """
    if scope["path"] in _ROUTES:
        must_be(scope, "GET")
    elif scope["method"] not in ("GET", "HEAD"):
        raise _no_route()
    relay = _Relay(send, (b"x-request-id", request_id), extra)
    try:
        await inner(scope, _Empty(receive), relay)
    except Exception as error:
        if relay.status:
            raise HalfSentError from error
        raise
    if relay.refused == 404:
        raise _no_route()
    if relay.refused:
        raise Problem(relay.refused, "bento", "Bento's own part of this service could not answer")
    return relay.status, relay.size


def _no_route() -> Problem:
    return Problem(404, "no_route", "there is no such route; see /openapi.json")


class _Empty:
    """Says that the body is empty, whatever was sent; afterwards only that the caller hung up."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._said = False

    async def __call__(self) -> Message:
        if not self._said:
            self._said = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message


class _Relay:
    """Passes an answer on, with our request id; keeps one that is an error to itself."""

    def __init__(self, send: Send, request_id: tuple[bytes, bytes], extra: Headers) -> None:
        self.status = self.refused = self.size = 0
        self._send = send
        self._more = [request_id, *extra]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self.refused = message["status"]
                return
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._more]}
        elif self.refused:
            return
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)
