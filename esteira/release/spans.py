"""Takes the spans that servers export, by OTLP over HTTP, and gives them as a file of traces. A collector for one rehearsal.

The file is that of OpenTelemetry's file exporter: a line of OTLP JSON for every export, ids in hexadecimal digits.
"""

import base64
import contextlib
import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

_LIMIT = 32 << 20
"""Bytes of one export, and of all together as JSON; what is more is dropped, and then missing."""


def exporter() -> str:
    """Why a server of this installation could not export spans; empty when it can."""
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # the parent is not there either
        found = None
    return "" if found is not None else "OpenTelemetry's exporter is not installed (esteira[serving] brings it)"


class Spans:
    """A collector on a free port of this machine. Use as a context manager; what came in stays afterwards."""

    def __init__(self) -> None:
        self._exports: list[dict[str, Any]] = []
        self._traces: dict[str, int] = {}
        self._size = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def environment(self, service: str) -> dict[str, str | None]:
        """Variables that make a server export here whatever our own environment says; None takes one away.

        Args:
            service: the name that its spans carry.
        """
        free = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1")))
        return {
            **{name: None for name in os.environ if name.startswith("OTEL_")},
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_SERVICE_NAME": service,
            # The asker decides what is traced, by the flag of its traceparent.
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "NO_PROXY": free,
            "no_proxy": free,
        }

    def take(self, export: Mapping[str, Any]) -> None:
        """Keep an export, OTLP JSON with base64 ids as protobuf's own JSON has them."""
        document = _hexadecimal(dict(export))
        size = len(json.dumps(document))
        with self._lock:
            if self._size + size > _LIMIT:
                return
            self._size += size
            self._exports.append(document)
            for span in _each(document):
                self._traces[span["traceId"]] = self._traces.get(span["traceId"], 0) + 1

    def missing(self, traces: Collection[str], seconds: float = 0.0) -> list[str]:
        """Those of the trace ids (32 hexadecimal digits) of which no span came, waiting for them so many seconds."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                left = [trace for trace in traces if trace not in self._traces]
            if not left or time.monotonic() >= until:
                return left
            time.sleep(0.02)

    def count(self, traces: Collection[str]) -> int:
        """Spans that came of these traces."""
        with self._lock:
            return sum(self._traces.get(trace, 0) for trace in traces)

    def file(self) -> bytes:
        """All that came, a line of JSON an export, in the order of coming."""
        with self._lock:
            return "".join(json.dumps(export, separators=(",", ":")) + "\n" for export in self._exports).encode()


def _handler(spans: Spans) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length) if 0 < length <= _LIMIT else b""
            taken = self.path == "/v1/traces" and bool(body)
            if taken:
                try:
                    spans.take(_read(body, self.headers.get("content-encoding", "")))
                except ValueError:
                    taken = False
            self.send_response(200 if taken else 400)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler


def _read(body: bytes, packed: str) -> dict[str, Any]:
    """An export as protobuf's JSON.

    Raises:
        ValueError: it is none.
    """
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        if packed:
            body = gzip.decompress(body) if packed == "gzip" else zlib.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
    except (OSError, EOFError, zlib.error, DecodeError) as error:
        raise ValueError(str(error)) from error
    document: dict[str, Any] = MessageToDict(message, use_integers_for_enums=True)
    return document


def _each(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def _hexadecimal(document: dict[str, Any]) -> dict[str, Any]:
    """OTLP JSON has its ids in hexadecimal digits, where protobuf's JSON has base64."""
    for span in _each(document):
        for part in (span, *span.get("links", ())):
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in part:
                    with contextlib.suppress(ValueError):
                        part[name] = base64.b64decode(part[name], validate=True).hex()
    return document
