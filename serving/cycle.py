"""Writes an answer whose length is known in one piece: the bytes that uvicorn writes, for a third of its time.

uvicorn runs two expressions over each header and writes head and body apart. It still does so for every other answer.
"""

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from serving.asgi import Message

_UNUSUAL = frozenset({b"connection", b"transfer-encoding"})


class Whole(RequestResponseCycle):
    """One request and its answer. A cycle that uvicorn made becomes one by its `__class__`, so it has no state of its own to begin with."""

    _held: Message | None = None

    async def send(self, message: Any) -> None:
        """Hold the head back until the body comes, and write both."""
        held = self._held
        if held is None:
            if message["type"] != "http.response.start" or self.response_started or self.access_log:
                await super().send(message)
            else:
                self._held = message
                self.response_started = True
                self.waiting_for_100_continue = False
            return
        self._held = None
        whole = None if self.disconnected or self.flow.write_paused else self._whole(held, message)
        if whole is None:
            self.response_started = False
            await super().send(cast(Any, held))
            await super().send(message)
            return
        self.transport.write(whole)
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _whole(self, start: Message, last: Message) -> bytes | None:
        """Head and body; None where anything is not as it mostly is."""
        status: int = start["status"]
        if last["type"] != "http.response.body" or last.get("more_body", False) or status < 200 or status in (204, 304):
            return None
        body: bytes = last.get("body", b"")
        headers = [*self.default_headers, *start.get("headers", ())]
        length = None
        parts = [STATUS_LINE[status]]
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name in _UNUSUAL:
                return None
            parts += (name, b": ", value, b"\r\n")
        if length != b"%d" % len(body) or self.scope["method"] == "HEAD":
            return None
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        head = b"".join(parts)
        # A header that holds the end of a line would begin another; uvicorn says so in its own words.
        lines = len(headers) + (2 if self.keep_alive else 3)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            return None
        return head + body
