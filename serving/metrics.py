"""Counters of the service for Prometheus; with several workers each page tells the sum of all. Labels are bounded.

A request adds to plain numbers of its process; twice a second, and before each page, they go to Prometheus' own. Those lie in
files where there are several workers, and six additions to files take as long as reading a small body.
Import only in a serving process: prometheus_client decides at import whether several processes count together.
"""

import contextlib
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from esteira.latency import BOUNDS, LEVELS, LatencyWindow
from serving.deployments import Deployment
from serving.lifeline import lives

PERIOD = 0.5
"""Seconds between two calls of `flush`; a worker that is killed takes with it what it counted since."""

_EDGES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# The bucket of the histograms that each fine one belongs to; every edge is among the bounds.
_COARSE = [bisect_left(_EDGES, bound) for bound in BOUNDS] + [len(_EDGES)]

Numbers = Callable[[], Mapping[str, float]]


class _Tally:
    """Requests of one kind in this process: how many, and how much of that was passed on."""

    __slots__ = ("buckets", "counters", "histograms", "number", "passed", "route", "row_counter", "rows", "seconds")

    def __init__(self, counters: list[Counter], row_counter: Counter | None, histograms: list[Histogram], route: str):
        self.number = self.rows = 0
        self.seconds = 0.0
        self.buckets = [0] * len(_COARSE)
        self.passed: tuple[int, int, float, list[int]] = (0, 0, 0.0, [0] * len(_COARSE))
        self.counters, self.row_counter, self.histograms = counters, row_counter, histograms
        self.route = route  # of the window of latencies, or empty

    def pass_on(self, window: LatencyWindow) -> None:
        number, rows, seconds, buckets = self.number, self.rows, self.seconds, self.buckets.copy()
        told = self.passed
        if number == told[0]:
            return
        self.passed = (number, rows, seconds, buckets)
        for counter in self.counters:
            counter.inc(number - told[0])
        if self.row_counter is not None and rows > told[1]:
            self.row_counter.inc(rows - told[1])
        if not self.histograms:
            return
        fresh = [count - before for count, before in zip(buckets, told[3], strict=True)]
        coarse = [0] * (len(_EDGES) + 1)
        for place, count in zip(_COARSE, fresh, strict=True):
            coarse[place] += count
        for histogram in self.histograms:
            # A histogram has no word for many observations at once; tests/test_serving_observe.py looks after these names.
            histogram._sum.inc(seconds - told[2])
            for bucket, count in zip(histogram._buckets, coarse, strict=True):
                if count:
                    bucket.inc(count)
        if self.route:
            window.add(self.route, fresh)


class Metrics:
    """The service's counters.

    Args:
        registry: where they are registered; the process's own by default.
        together: several processes count into one page (`PROMETHEUS_MULTIPROC_DIR` is set).
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, together: bool = False) -> None:
        self._registry = registry
        self._together = together

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(name, says, labels, registry=registry)

        def gauge(name: str, says: str, *labels: str, mode: Any = "livesum") -> Gauge:
            return Gauge(name, says, labels, registry=registry, multiprocess_mode=mode)

        def histogram(name: str, says: str, *labels: str) -> Histogram:
            return Histogram(name, says, labels, buckets=_EDGES, registry=registry)

        self._http = counter(
            "esteira_http_requests_total", "HTTP requests of every kind, by route and status.", "route", "status"
        )
        self._requests = counter("esteira_requests_total", "Requests about a line, by HTTP status.", "line", "status")
        self._predictions = counter(
            "esteira_predictions_total", "Prediction requests, by outcome: success or error.", "line", "outcome"
        )
        self._rows = counter("esteira_rows_total", "Rows that were answered.", "line")
        self._warnings = counter("esteira_warnings_total", "Warnings on answered rows.", "line")
        self._troubles = counter("esteira_follow_errors_total", "Times that a line could not follow its alias.", "line")
        self._seconds = histogram(
            "esteira_request_seconds", "Seconds from the head of a request to its answer.", "line"
        )
        self._units = counter(
            "esteira_rollout_units_total", "Units of a rollout by arm: answered, or error.", "line", "arm", "outcome"
        )
        self._labels = counter("esteira_rollout_labels_total", "Answers of a rollout whose truth came.", "line", "arm")
        self._mixed = counter(
            "esteira_rollout_mixed_total",
            "Requests with rows of several units, which the champion answered and no arm counted.",
            "line",
        )
        # The names that dashboards of ML services ask for; the same requests.
        self._ml_predictions = counter(
            "ml_predictions_total", "Prediction requests, by kind of model and status.", "model_type", "status"
        )
        self._ml_seconds = histogram("ml_prediction_duration_seconds", "Seconds of prediction requests.")
        self._more_counters = {
            "cache_hits": counter("esteira_answer_cache_hits_total", "Rows answered from the cache."),
            "cache_misses": counter("esteira_answer_cache_misses_total", "Rows that the cache did not answer."),
            "batch_calls": counter("esteira_model_calls_total", "Calls of models by the batcher."),
            "batch_rows": counter("esteira_model_call_rows_total", "Rows of these calls."),
            "batch_requests": counter("esteira_model_call_requests_total", "Requests that these calls answered."),
            "record_failures": counter(
                "esteira_prediction_record_failures_total", "Times that records of predictions could not be written."
            ),
            "log_dropped": counter("esteira_access_log_dropped_total", "Lines of the access log that were dropped."),
            "arms_dropped": counter(
                "esteira_rollout_answers_dropped_total", "Answers of a rollout that no label will find."
            ),
            "arms_failures": counter(
                "esteira_rollout_write_failures_total", "Times that what the arms did could not be written."
            ),
        }
        records = gauge("esteira_prediction_records", "Records of predictions: written, waiting, dropped.", "state")
        self._more_gauges = {
            "in_flight": gauge("esteira_in_flight", "HTTP requests that are being answered."),
            "slots": gauge("esteira_slots_taken", "Slots of answers that are taken."),
            "waiting": gauge("esteira_waiting", "Requests that wait for a slot."),
            "cache_bytes": gauge("esteira_answer_cache_bytes", "Bytes of the answers that are kept."),
            "cache_entries": gauge("esteira_answer_cache_entries", "Answers that are kept."),
            **{f"records_{state}": records.labels(state) for state in ("written", "waiting", "dropped")},
        }
        self._window = LatencyWindow()
        self._tallies: dict[tuple[str, int, str, str], _Tally] = {}
        self._numbers: list[Numbers] = []
        self._edge: Mapping[int, int] = {}
        self._edge_told: dict[int, int] = {}
        self._told: dict[str, float] = {}
        self._here = _Here(self._window)
        self._lock = threading.Lock()
        if not together:
            registry.register(self._here)

    def answered(self, route: str, status: int, line: str, kind: str, rows: int, seconds: float) -> None:
        """Count one HTTP request.

        Args:
            route: of a fixed list; `predict` and `model` are about a line.
            status: HTTP status; 499 when the caller hung up.
            line: a line that this service has, so that labels stay bounded; empty when none is meant.
            kind: of the model that was asked; empty when none was.
            rows: rows answered.
            seconds: from head to answer.
        """
        key = (route, status, line, kind)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = self._tally(*key)
        tally.number += 1
        tally.rows += rows
        tally.seconds += seconds
        tally.buckets[bisect_right(BOUNDS, seconds)] += 1

    def _tally(self, route: str, status: int, line: str, kind: str) -> _Tally:
        counters = [self._http.labels(route, str(status))]
        if not line:
            return _Tally(counters, None, [], "")
        counters.append(self._requests.labels(line, str(status)))
        if route != "predict":
            return _Tally(counters, None, [], "")
        outcome = "success" if status == 200 else "error"
        counters.append(self._predictions.labels(line, outcome))
        counters.append(self._ml_predictions.labels(kind or "none", outcome))
        # Refusals are quick, and would make the latency of answers look good.
        watched = f"/v1/{line}/predict" if status == 200 else ""
        return _Tally(counters, self._rows.labels(line), [self._seconds.labels(line), self._ml_seconds], watched)

    def warned(self, line: str, number: int) -> None:
        """Count warnings of an answer."""
        if number:
            self._warnings.labels(line).inc(number)

    def troubled(self, line: str) -> None:
        """Count a line that could not follow its alias, or its split."""
        self._troubles.labels(line).inc()

    def rollout(self, line: str, arm: str, *, error: bool = False) -> None:
        """Count a unit of an arm."""
        self._units.labels(line, arm, "error" if error else "answered").inc()

    def mixed(self, line: str) -> None:
        """Count a request whose rows are of several units."""
        self._mixed.labels(line).inc()

    def labelled(self, line: str, arm: str) -> None:
        """Count a truth that came."""
        self._labels.labels(line, arm).inc()

    def watch_splits(self, percents: Callable[[], Mapping[str, float]]) -> None:
        """Tell these too: line -> percent that the candidate takes."""
        self._here.percents = percents

    def watch_edge(self, counts: Mapping[int, int]) -> None:
        """Tell these too: how often each status was answered before a request reached a route."""
        self._edge = counts

    def moved(self, old: Deployment | None, new: Deployment | None, accuracy: float | None = None) -> None:
        """Tell which version a line serves, and the accuracy that its evaluation measured."""
        self._here.moved(old, new, accuracy)

    def ask(self, numbers: Numbers) -> None:
        """Have these numbers told too: called at each `flush`, gives totals and states by the names that stand above."""
        self._numbers.append(numbers)

    def flush(self) -> None:
        """Pass on what was counted. Quick; safe from any thread."""
        with self._lock:
            for tally in list(self._tallies.values()):
                tally.pass_on(self._window)
            for status, number in list(self._edge.items()):
                self._http.labels("edge", str(status)).inc(number - self._edge_told.get(status, 0))
                self._edge_told[status] = number
            for numbers in self._numbers:
                for name, value in numbers().items():
                    gauge = self._more_gauges.get(name)
                    if gauge is not None:
                        gauge.set(value)
                    elif value > self._told.get(name, 0.0):
                        self._more_counters[name].inc(value - self._told.get(name, 0.0))
                        self._told[name] = value

    def page(self) -> tuple[bytes, bytes]:
        """Content type and text of the metrics page."""
        self.flush()
        if not self._together:
            return CONTENT_TYPE_LATEST.encode(), generate_latest(self._registry)
        _bury_dead()
        try:
            text = self._of_all()
        except FileNotFoundError:  # a worker that could not start took its files with it meanwhile
            text = self._of_all()
        return CONTENT_TYPE_LATEST.encode(), text

    def _of_all(self) -> bytes:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(self._here)
        return generate_latest(registry)


class _Here(Collector):
    """What is true of this process: the models it serves and how long its answers take. No file is asked, least a dead worker's.

    Every worker follows the same aliases, and gets its share of the same requests.
    """

    def __init__(self, window: LatencyWindow) -> None:
        self._window = window
        self._lines: dict[str, tuple[Deployment, float, float | None]] = {}
        self.percents: Callable[[], Mapping[str, float]] = dict

    def moved(self, old: Deployment | None, new: Deployment | None, accuracy: float | None) -> None:
        lines = dict(self._lines)
        if old is not None:
            lines.pop(old.line, None)
        if new is not None:
            lines[new.line] = (new, time.time(), accuracy)
        self._lines = lines

    def collect(self) -> Iterator[Metric]:
        model = GaugeMetricFamily(
            "esteira_model_info", "1 for the version that a line serves.", labels=["line", "version", "bundle_id"]
        )
        since = GaugeMetricFamily(
            "esteira_model_since_seconds", "Unix time since when the line serves its version.", labels=["line"]
        )
        exact = GaugeMetricFamily(
            "ml_model_accuracy", "Accuracy of a served model by its evaluation.", labels=["model_id"]
        )
        for line, (deployment, at, accuracy) in self._lines.items():
            model.add_metric([line, str(deployment.version), deployment.bundle_id], 1)
            since.add_metric([line], at)
            if accuracy is not None:
                exact.add_metric([deployment.bundle_id], accuracy)
        percent = GaugeMetricFamily(
            "esteira_rollout_percent",
            "Percent of a line's units that the candidate of a rollout takes.",
            labels=["line"],
        )
        for line, share in self.percents().items():
            percent.add_metric([line], share)
        quantiles = GaugeMetricFamily(
            "esteira_latency_quantile_seconds",
            "Latency of answers in the last five minutes.",
            labels=["route", "quantile"],
        )
        states = GaugeMetricFamily(
            "esteira_latency_state",
            "0 where the latency objectives hold, 1 for a warning, 2 where they fail.",
            labels=["route"],
        )
        for route, latency in self._window.states().items():
            for quantile, seconds in (("0.5", latency.p50), ("0.95", latency.p95), ("0.99", latency.p99)):
                if seconds is not None:
                    quantiles.add_metric([route, quantile], seconds)
            if latency.state in LEVELS:
                states.add_metric([route], LEVELS[latency.state])
        yield from (model, since, exact, percent, quantiles, states)


def _bury_dead() -> None:
    """Forget the living numbers of workers that were killed; those that end by themselves see to it."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not lives(int(pid)):
            with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                multiprocess.mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
