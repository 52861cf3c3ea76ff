"""Counters of the service for Prometheus; with several workers each page tells the sum of all. Labels are bounded.

Import only in a serving process: prometheus_client decides at import whether several processes count together.
"""

import time
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from serving.predictor import Deployment
from serving.records import Recorder

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The service's counters.

    Args:
        registry: where they are registered; the process's own by default.
        together: several processes count into one page (`PROMETHEUS_MULTIPROC_DIR` is set).
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, together: bool = False) -> None:
        self._registry = registry
        self._together = together
        self._requests = Counter(
            "esteira_requests_total", "Requests about a line, by HTTP status.", ["line", "status"], registry=registry
        )
        self._predictions = Counter(
            "esteira_predictions_total",
            "Prediction requests, by outcome: success or error.",
            ["line", "outcome"],
            registry=registry,
        )
        self._rows = Counter("esteira_rows_total", "Rows that were answered.", ["line"], registry=registry)
        self._warnings = Counter("esteira_warnings_total", "Warnings on answered rows.", ["line"], registry=registry)
        self._seconds = Histogram(
            "esteira_request_seconds",
            "Seconds from the head of a request to its answer.",
            ["line"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._model = Gauge(
            "esteira_model_info", "1 for the version that a line serves.", ["line", "version", "bundle_id"],
            registry=registry, multiprocess_mode="max",
        )  # fmt: skip
        self._moved_at = Gauge(
            "esteira_model_since_seconds", "Unix time since when the line serves its version.", ["line"],
            registry=registry, multiprocess_mode="max",
        )  # fmt: skip
        self._troubles = Counter(
            "esteira_follow_errors_total", "Times that a line could not follow its alias.", ["line"], registry=registry
        )
        self._records = Gauge(
            "esteira_prediction_records", "Records of predictions, by state: written, waiting, dropped.", ["state"],
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._children: dict[tuple[str, int], Any] = {}

    def answered(self, line: str, status: int, rows: int, seconds: float, *, predicted: bool = True) -> None:
        """Count one request about a line.

        Args:
            line: a line that this service has, so that labels stay bounded.
            status: HTTP status; 499 when the caller hung up.
            rows: rows answered.
            seconds: from head to answer.
            predicted: it was a prediction, not a question about the model.
        """
        key = (line, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self._requests.labels(line, str(status)),
                self._predictions.labels(line, "success" if status == 200 else "error"),
                self._rows.labels(line),
                self._seconds.labels(line),
            )
        children[0].inc()
        if predicted:
            children[1].inc()
            children[3].observe(seconds)
            if rows:
                children[2].inc(rows)

    def warned(self, line: str, number: int) -> None:
        """Count warnings of an answer."""
        if number:
            self._warnings.labels(line).inc(number)

    def moved(self, old: Deployment | None, new: Deployment | None) -> None:
        """Tell which version a line serves."""
        if old is not None:
            self._model.labels(old.line, str(old.version), old.bundle_id).set(0)
        if new is not None:
            self._model.labels(new.line, str(new.version), new.bundle_id).set(1)
            self._moved_at.labels(new.line).set(time.time())

    def troubled(self, line: str) -> None:
        """Count a line that could not follow its alias."""
        self._troubles.labels(line).inc()

    def page(self, recorder: Recorder | None) -> tuple[bytes, bytes]:
        """Content type and text of the metrics page."""
        if recorder is not None:
            self._records.labels("written").set(recorder.written)
            self._records.labels("waiting").set(recorder.waiting)
            self._records.labels("dropped").set(recorder.dropped)
        registry = self._registry
        if self._together:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return CONTENT_TYPE_LATEST.encode(), generate_latest(registry)
