"""Spans of predictions for a collector of OpenTelemetry, where one is named. No row, no key, no query is in them.

OpenTelemetry is imported when `Traces` is made, and not before.
"""

import os
import threading
import time

from serving.observe import Answered

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wanted() -> bool:
    """Whether a collector is named."""
    return any(os.environ.get(name) for name in _ENDPOINTS)


class Traces:
    """One span a prediction to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, below the caller's trace if it sent one.

    OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on) hold.
    """

    def __init__(self) -> None:
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "esteira"}
        # Set everywhere, so that Bento's own middlewares cost little; whoever names a collector wants our spans all the same.
        disabled = os.environ.pop("OTEL_SDK_DISABLED", None)
        try:
            self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            self._tracer = self._provider.get_tracer("esteira.serving")
        finally:
            if disabled is not None:
                os.environ["OTEL_SDK_DISABLED"] = disabled
        self._extract = TraceContextTextMapPropagator().extract
        self._nothing = Context()
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def __call__(self, answered: Answered) -> None:
        """Note one request; only predictions become spans."""
        if answered.route != "predict":
            return
        context = self._nothing
        parent = answered.headers.get(b"traceparent")
        if parent is not None:
            state = answered.headers.get(b"tracestate", b"")
            carrier = {"traceparent": parent.decode("latin-1"), "tracestate": state.decode("latin-1")}
            context = self._extract(carrier, context)
        end = time.time_ns()
        span = self._tracer.start_span(
            "POST /v1/{line}/predict",
            context=context,
            kind=self._server,
            start_time=end - int(answered.seconds * 1e9),
            attributes={
                "http.request.method": answered.method,
                "http.route": "/v1/{line}/predict",
                "http.response.status_code": answered.status,
                "http.response.body.size": answered.size,
                "esteira.request_id": answered.request_id.decode("latin-1"),
                "esteira.line": answered.line,
                "esteira.version": -1 if answered.version is None else answered.version,
                "esteira.bundle_id": answered.bundle_id or "",
                "esteira.rows": answered.rows,
            },
        )
        if answered.status >= 500:
            span.set_status(self._failed)
        span.end(end)

    def stop(self, timeout: float = 3.0) -> None:
        """Send what waits, for at most `timeout` seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(timeout)
