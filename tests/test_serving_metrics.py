"""The counters of a real service: one prediction moves the right series, and what the registry says of a model is what is told."""

import json
import os
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from esteira.settings import Settings, load_settings
from esteira.store import Store
from tests.collectors import Collector, collecting, events
from tests.serving_fakes import LINE, until
from tests.serving_lines import add_version, point_champion
from tests.serving_process import KEY, Service, descendants
from tests.small_bundle import ROW, make_bundle


def release(store: Store, settings: Settings, folder: Path, metrics: Mapping[str, float]) -> str:
    """Make a bundle with these metrics and release it."""
    bundle_id = make_bundle(folder / "made", metrics=metrics)
    add_version(store, settings, folder / "made", 1, bundle_id, metrics)
    point_champion(store, 1, bundle_id)
    return bundle_id


def _statuses(collector: Collector) -> list[int]:
    """Of the spans of predictions."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for _, body in collector.received:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            spans = [span for scope in resource.scope_spans for span in scope.spans]
            for span in spans:
                told = {pair.key: pair.value for pair in span.attributes}
                found.append(told["http.response.status_code"].int_value)
    return found


def value(page: str, series: str) -> float:
    """The value of a series; 0 where it is not there."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
@pytest.mark.requirement("K-38")
def test_one_prediction_increments_the_right_series_and_the_gauge_is_the_registrys_accuracy(tmp_path: Path) -> None:
    """K-38. Done when: one prediction increments the right series; the gauge equals the registry's accuracy.

    And error reporting: an unexpected fault of the same service reaches a Sentry, with neither the key nor a cell.
    Traces and an access log, which Bento would have kept, are there where they are asked for.
    """
    settings = load_settings({"ESTEIRA_HOME": str(tmp_path / "home")}, file=None)
    store = Store.open(settings.database_url)
    bundle_id = release(store, settings, tmp_path, {"accuracy": 0.9375, "roc_auc": 0.9})
    log = tmp_path / "access.log"
    with collecting() as sentry, collecting() as traces:
        env = {
            "ESTEIRA_HOME": str(settings.home),
            "SENTRY_DSN": f"http://public@{sentry.address}/1",
            "ESTEIRA_ACCESS_LOG": str(log),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{traces.address}",
            "ESTEIRA_FOLLOW_SECONDS": "0.1",
        }
        service = Service(["--line", LINE, "--port", "0"], env=env, log=tmp_path / "log")
        try:
            service.wait_ready()
            counted = 'ml_predictions_total{model_type="linear",status="success"}'
            failed = 'ml_predictions_total{model_type="linear",status="error"}'
            before = service.ask("/metrics")[1].decode()
            assert 200 == service.predict(ROW)[0]
            after = service.ask("/metrics")[1].decode()

            assert value(before, counted) + 1 == value(after, counted)
            assert value(before, failed) == value(after, failed)
            seconds = "ml_prediction_duration_seconds_count"
            assert value(before, seconds) + 1 == value(after, seconds)
            assert value(after, "ml_prediction_duration_seconds_sum") > 0

            version = store.get_version(LINE, 1)
            assert version is not None
            assert version.metrics["accuracy"] == value(after, f'ml_model_accuracy{{model_id="{bundle_id}"}}') == 0.9375

            assert 422 == service.predict({**ROW, "visits": "three"})[0]
            last = service.ask("/metrics")[1].decode()
            assert value(after, failed) + 1 == value(last, failed)
            assert value(after, counted) == value(last, counted)

            # The next champion cannot be loaded.
            add_version(store, settings, tmp_path / "nowhere", 2, "0" * 64, {"accuracy": 0.99})
            point_champion(store, 2, "0" * 64)
            assert until(lambda: events(sentry), 20)
        finally:
            service.stop()

        assert [200, 422] == sorted(_statuses(traces))
        told = b"\n".join(body for _, body in sentry.received).decode()
        assert not [word for word in (KEY, "Porto", "call before noon") if word in told]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    predictions = [line for line in lines if line["route"] == "predict"]
    assert [(200, 1, 1), (422, 0, 1)] == [(line["status"], line["rows"], line["version"]) for line in predictions]


@pytest.mark.slow
def test_two_workers_are_counted_together_and_one_that_was_killed_leaves_no_gauge(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    env = {"ESTEIRA_HOME": str(tmp_path / "home"), "ESTEIRA_WORKERS": "2"}
    service = Service(["--bundle", str(tmp_path / "bundle"), "--port", "0"], env=env, log=tmp_path / "log")
    success = f'esteira_predictions_total{{line="{LINE}",outcome="success"}}'

    def page() -> str:
        return str(service.ask("/metrics")[1].decode())

    try:
        service.wait_ready()
        threads = [threading.Thread(target=lambda: [service.predict(ROW) for _ in range(10)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert until(lambda: value(page(), success) == 40), page()

        workers = descendants(service.process.pid)[2:]
        assert 2 == len(workers)
        os.kill(workers[0], signal.SIGKILL)
        assert until(lambda: service.ask("/readyz", key=None)[0] == 200, 20)
        assert until(lambda: value(page(), success) == 40)
        assert value(page(), "esteira_in_flight") <= 2
        assert 'version="None"' in page()
    finally:
        service.stop()
