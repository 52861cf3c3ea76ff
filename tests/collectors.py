"""Small servers that stand where an OpenTelemetry collector and Sentry would; they keep what they are sent."""

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector:
    """What came in: (path, body) pairs, unpacked."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.address = ""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A server on a free port of this machine that takes every POST."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            packed = self.headers.get("content-encoding", "")
            if packed == "gzip":
                body = gzip.decompress(body)
            elif packed == "deflate":
                body = zlib.decompress(body)
            elif packed:
                body = b"packed as " + packed.encode()
            collector.received.append((self.path, body))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def events(collector: Collector) -> list[dict[str, object]]:
    """The events in Sentry's envelopes: a line of JSON each, after the envelope's and the item's head."""
    found = []
    for _, body in collector.received:
        lines = body.split(b"\n")
        for head, payload in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(head).get("type") == "event":
                found.append(json.loads(payload))
    return found
