"""Every request is counted, and told of where a setting asks for it; nothing that is told holds a row, a key or a query."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from esteira.errors import ConfigError
from esteira.family import Answer, Finding, Row
from serving.deployments import Deployment
from serving.faults import Faults
from serving.gate import Gate
from serving.http import Api
from serving.metrics import Metrics
from serving.observe import AccessLog, Answered
from serving.predictor import Predictor
from serving.records import Recorder
from serving.traces import Traces
from tests.collectors import Collector, collecting, events
from tests.serving_fakes import GOOD, LINE, PREDICT, FakeSource, ask, fake_loading, kept_nowhere, make_api, until

ROOT = Path(__file__).resolve().parents[1]
CELL = "Joana-41.5"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    return fake_loading(monkeypatch)


def page_of(api: Api) -> str:
    return str(ask(api, "/metrics", method="GET")[1].decode())


# Counters


def test_every_http_request_is_counted_by_route_and_status(loads: list[Deployment]) -> None:
    """Whatever ended it: the key, the route, the method, the body, the gate, the model, a probe."""
    api = make_api(FakeSource(LINE))
    ask(api, PREDICT, GOOD)
    ask(api, PREDICT, GOOD, key="wrong")
    ask(api, PREDICT, GOOD, headers={"content-length": "1001"})
    ask(api, PREDICT, b"{")
    ask(api, PREDICT, b'{"rows": [{"bad": 1}]}')
    ask(api, PREDICT, b'{"rows": [{"boom": 1}]}')
    ask(api, PREDICT, b'{"rows": [{"a": 1}]}', headers={"content-type": "text/csv"})
    ask(api, PREDICT, method="GET")
    ask(api, "/v1/tabular@none/predict", GOOD)
    ask(api, f"/v1/{LINE}/model", method="GET")
    ask(api, "/docs.json", method="GET")
    ask(api, "/nothing/here", method="DELETE")
    ask(api, "/livez", method="GET")
    ask(api, "/readyz", method="GET")
    ask(api, "/livez", method="POST")
    ask(api, "/openapi.json", method="GET")
    ask(api, "/metrics", method="GET")
    full = Gate(1, 0, 1.0)
    full.try_enter()
    crowded = make_api(FakeSource(LINE), gate=full)
    ask(crowded, PREDICT, GOOD)

    page = page_of(api)
    for route, status in [
        ("predict", 200), ("predict", 401), ("predict", 413), ("predict", 400), ("predict", 422), ("predict", 500),
        ("predict", 415), ("predict", 405), ("none", 404), ("model", 200), ("bento", 200), ("bento", 404), ("livez", 200),
        ("readyz", 503), ("livez", 405), ("openapi", 200), ("metrics", 200),
    ]:  # fmt: skip
        assert f'esteira_http_requests_total{{route="{route}",status="{status}"}} 1.0' in page, (route, status)
    assert 'esteira_http_requests_total{route="predict",status="429"} 1.0' in page_of(crowded)
    assert f'esteira_rows_total{{line="{LINE}"}} 1.0' in page
    assert 'ml_predictions_total{model_type="none",status="error"} 1.0' in page, (
        "the one of another method asked no model"
    )
    assert "esteira_in_flight 1.0" in page, "the one that asks"


def test_who_has_no_key_moves_no_counter_of_a_line_and_leaves_no_record(loads: list[Deployment]) -> None:
    recorder = Recorder(lambda: kept_nowhere)
    api = make_api(FakeSource(LINE), recorder=recorder)
    ask(api, PREDICT, GOOD, key="wrong")

    assert 0 == recorder.waiting
    page = page_of(api)
    assert 'esteira_http_requests_total{route="predict",status="401"} 1.0' in page
    assert f'line="{LINE}"' not in page


def test_a_request_after_which_nothing_was_counted_yet_is_on_the_next_page(loads: list[Deployment]) -> None:
    api = make_api(FakeSource(LINE))
    for number in range(1, 4):
        ask(api, PREDICT, GOOD)
        page = page_of(api)
        assert f"ml_prediction_duration_seconds_count {number}.0" in page
        assert f'esteira_predictions_total{{line="{LINE}",outcome="success"}} {number}.0' in page
        assert f'ml_prediction_duration_seconds_bucket{{le="+Inf"}} {number}.0' in page


def test_the_histogram_says_what_one_says_that_was_told_each_request() -> None:
    """Many are passed on at once, by names that prometheus_client keeps to itself."""
    seconds = [0.0001, 0.0007, 0.0007, 0.003, 0.04, 0.3, 4.0, 40.0, 100.0]
    registry, plain = CollectorRegistry(), CollectorRegistry()
    metrics = Metrics(registry)
    edges = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    expected = Histogram(
        "ml_prediction_duration_seconds", "Seconds of prediction requests.", buckets=edges, registry=plain
    )
    for number, one in enumerate(seconds):
        metrics.answered("predict", 200, LINE, "linear", 1, one)
        expected.observe(one)
        if number % 3 == 0:
            metrics.flush()

    page = metrics.page()[1].decode()
    for line in generate_latest(plain).decode().splitlines():
        if line.startswith(("ml_prediction_duration_seconds_bucket", "ml_prediction_duration_seconds_count")):
            assert line in page
    told = [line for line in page.splitlines() if line.startswith("ml_prediction_duration_seconds_sum")]
    assert float(told[0].split()[1]) == pytest.approx(sum(seconds))
    assert f'esteira_latency_quantile_seconds{{quantile="0.5",route="/v1/{LINE}/predict"}}' in page
    assert f'esteira_latency_state{{route="/v1/{LINE}/predict"}} 2.0' in page


def test_what_was_refused_before_it_reached_a_route_is_counted_too() -> None:
    metrics = Metrics(CollectorRegistry())
    counts = {431: 2}
    metrics.watch_edge(counts)
    metrics.flush()
    counts |= {431: 3, 503: 1}
    page = metrics.page()[1].decode()

    assert 'esteira_http_requests_total{route="edge",status="431"} 3.0' in page
    assert 'esteira_http_requests_total{route="edge",status="503"} 1.0' in page


def test_what_could_not_be_written_is_told(loads: list[Deployment], tmp_path: Path) -> None:
    """Records that their store refuses, and lines of the access log that there was no room for."""
    recorder = Recorder(lambda: kept_nowhere)
    recorder.failures = 3
    api = make_api(FakeSource(LINE), recorder=recorder)
    log = AccessLog(str(tmp_path / "log"), capacity=1)
    api._metrics.ask(log.numbers)
    for _ in range(3):
        log(answered())

    page = page_of(api)
    assert "esteira_prediction_record_failures_total 3.0" in page
    assert "esteira_access_log_dropped_total 2.0" in page


def test_a_page_is_there_though_a_worker_takes_its_files_away_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(CollectorRegistry(), together=True)
    pages: list[Any] = [FileNotFoundError(), b"page"]

    def of_all() -> bytes:
        found = pages.pop(0)
        if isinstance(found, Exception):
            raise found
        return bytes(found)

    monkeypatch.setattr("serving.metrics._bury_dead", lambda: None)
    monkeypatch.setattr(metrics, "_of_all", of_all)

    assert b"page" == metrics.page()[1]


def test_a_page_tells_of_the_model_that_is_served_now_and_of_no_other() -> None:
    metrics = Metrics(CollectorRegistry())
    one, two = (Deployment(LINE, number, str(number) * 64) for number in (1, 2))
    metrics.moved(None, one, 0.9)
    metrics.moved(one, two, 0.95)
    page = metrics.page()[1].decode()

    assert f'esteira_model_info{{bundle_id="{"2" * 64}",line="{LINE}",version="2"}} 1.0' in page
    assert f'ml_model_accuracy{{model_id="{"2" * 64}"}} 0.95' in page
    assert "1" * 64 not in page

    metrics.moved(two, None)
    assert "2" * 64 not in metrics.page()[1].decode()


_WORKER = """
import os, signal, sys
from serving.deployments import Deployment
from serving.metrics import Metrics
metrics = Metrics(together=True)
metrics.ask(lambda: {"waiting": 5})
metrics.moved(None, Deployment("tabular", int(sys.argv[2]), sys.argv[2] * 64), 0.5)
for _ in range(3):
    metrics.answered("predict", 200, "tabular", "linear", 2, 0.001)
metrics.flush()
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
print(metrics.page()[1].decode())
"""


def test_the_page_sums_all_workers_and_forgets_the_gauges_of_one_that_was_killed(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def worker(how: str, version: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-c", _WORKER, how, version],
            env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode in (0, -9), ended.stderr
        return ended.stdout

    worker("die", "1")
    page = worker("live", "2")

    assert 'ml_predictions_total{model_type="linear",status="success"} 6.0' in page
    assert "ml_prediction_duration_seconds_count 6.0" in page
    assert 'esteira_rows_total{line="tabular"} 12.0' in page
    assert "esteira_waiting 5.0" in page, "not 10: the one who was killed waits for nobody"
    assert 'version="2"' in page
    assert 'version="1"' not in page, "what the killed one served is not served"


# The access log


def answered(**changes: Any) -> Answered:
    return Answered(
        b"r1", "POST", "predict", LINE, 3, "b" * 64, 200, 2, 0.00123, 321, {b"authorization": b"Bearer secret"}
    )._replace(**changes)


def test_a_line_of_the_access_log_says_who_asked_what_and_nothing_of_the_rows(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"), period=0.01)
    log.start()
    log(answered())
    log(answered(line="", version=None, bundle_id=None, route="metrics", method="GET"))
    log.stop()

    first, second = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert ["time", "request_id", "method", "route", "line", "version", "status", "rows", "ms", "bytes"] == list(first)
    assert ("r1", "POST", "predict", LINE, 3, 200, 2, 1.23, 321) == tuple(first.values())[1:]
    assert ("GET", "metrics", None, None) == (second["method"], second["route"], second["line"], second["version"])


def test_a_log_that_was_moved_away_is_opened_again_and_a_full_one_drops_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), period=0.01, capacity=2)
    for _ in range(5):
        log(answered())
    assert 3 == log.dropped
    log.start()
    assert until(lambda: len(path.read_text().splitlines()) == 2)
    path.rename(tmp_path / "access.log.1")
    log(answered(request_id=b"r2"))
    assert until(lambda: path.exists() and "r2" in path.read_text())
    log.stop()

    assert 2 == len((tmp_path / "access.log.1").read_text().splitlines())


def test_a_line_that_cannot_be_told_is_counted_and_the_log_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog(str(tmp_path / "log"), period=0.01)
    log.start()
    log(answered(seconds=CELL))
    assert until(lambda: log.dropped == 1)
    log(answered(request_id=b"r2"))
    log.stop()

    assert ["r2"] == [json.loads(line)["request_id"] for line in (tmp_path / "log").read_text().splitlines()]
    assert "the access log cannot be written: TypeError at" in caplog.text
    assert CELL not in caplog.text


def test_a_log_on_standard_output_is_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("stdout", period=0.01)
    log.start()
    for number in range(200):
        log(answered(rows=number))
    log.stop()

    assert list(range(200)) == [json.loads(line)["rows"] for line in capfd.readouterr().out.splitlines()]


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        AccessLog(str(tmp_path / "none" / "access.log")).start()
    assert ("access_log", "ESTEIRA_ACCESS_LOG") == (caught.value.code, caught.value.where)


def test_each_request_of_every_kind_is_a_line(loads: list[Deployment], tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), period=0.01)
    log.start()
    api = make_api(FakeSource(LINE), observers=[log])
    ask(api, PREDICT, json.dumps({"rows": [{"a": CELL}]}).encode(), headers={"x-request-id": "one"})
    ask(api, PREDICT, GOOD, key="wrong", query="version=77", headers={"x-request-id": "two"})
    ask(api, "/livez", method="GET")
    ask(api, "/docs.json", method="GET")
    log.stop()

    text = (tmp_path / "log").read_text()
    assert [("predict", 200, 1), ("predict", 401, 0), ("livez", 200, 0), ("bento", 200, 0)] == [
        (line["route"], line["status"], line["rows"]) for line in map(json.loads, text.splitlines())
    ]
    assert not [word for word in (CELL, "caller", "wrong", "version=77") if word in text]


def test_an_observer_that_fails_makes_no_request_fail(loads: list[Deployment]) -> None:
    def fails(answered: Answered) -> None:
        raise RuntimeError("no")

    assert 200 == ask(make_api(FakeSource(LINE), observers=[fails]), PREDICT, GOOD)[0]


# Traces


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def spans_of(collector: Collector) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for path, body in collector.received:
        assert "/v1/traces" == path
        request = ExportTraceServiceRequest.FromString(body)
        found += [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    return found


def test_a_prediction_is_a_span_below_the_callers_trace(
    loads: list[Deployment], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # as the images have it, for Bento's own middlewares
    traces = Traces()
    api = make_api(FakeSource(LINE), observers=[traces])
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    ask(api, PREDICT, GOOD, headers={"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "one"})
    ask(api, PREDICT, json.dumps({"rows": [{"boom": CELL}]}).encode(), headers={"traceparent": "nonsense"})
    ask(api, f"/v1/{LINE}/model", method="GET")
    traces.stop(20)

    first, second = sorted(spans_of(collector), key=lambda span: span.start_time_unix_nano)
    assert ("POST /v1/{line}/predict", trace, parent) == (first.name, first.trace_id.hex(), first.parent_span_id.hex())
    told = {pair.key: pair.value for pair in first.attributes}
    assert ("one", LINE, 1, 1, 200) == (
        told["esteira.request_id"].string_value, told["esteira.line"].string_value, told["esteira.version"].int_value,
        told["esteira.rows"].int_value, told["http.response.status_code"].int_value,
    )  # fmt: skip
    assert 0 < first.end_time_unix_nano - first.start_time_unix_nano < 60e9
    assert (b"", 2) == (second.parent_span_id, second.status.code)
    assert trace != second.trace_id.hex()
    everything = b"".join(body for _, body in collector.received)
    assert not [word for word in (CELL, "caller", "driver words") if word.encode() in everything]


def test_a_collector_that_is_away_delays_nothing(loads: list[Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    traces = Traces()

    assert 200 == ask(make_api(FakeSource(LINE), observers=[traces]), PREDICT, GOOD)[0]
    traces.stop(0.1)


def test_what_nobody_asked_for_is_not_imported() -> None:
    script = (
        "import sys, serving.http, serving.traces, serving.faults, serving.observe; "
        "print([name for name in ('opentelemetry', 'sentry_sdk', 'requests', 'urllib3') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "[]" == ended.stdout.strip()


# Faults


class Breaks:
    """A model whose exception, its cause and its variables hold a cell and the key."""

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return []

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        secret = f"Bearer caller and {CELL}"
        try:
            float(str(rows[0]["a"]))
        except ValueError as error:
            raise RuntimeError(f"it broke at {secret}") from error
        return [{"prediction": 1, "warnings": []} for _ in rows]


def test_an_unexpected_fault_is_told_to_sentry_once_without_a_word_of_it(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "serving.predictor.load",
        lambda _, deployment, __: Predictor(deployment, Breaks(), {}, "cpu", deterministic=True),
    )
    faults = Faults(f"http://public@{collector.address}/1")
    api = make_api(FakeSource(LINE), faults=faults)
    for number in range(3):
        body = json.dumps({"rows": [{"a": CELL}]}).encode()
        status, document, _ = ask(api, PREDICT, body, headers={"x-request-id": f"r{number}"})
        assert (500, "internal") == (status, document["error"]["code"])
    ask(api, PREDICT, b'{"rows": [{"a": 1}]}')
    faults.stop()

    (event,) = events(collector)
    values = event["exception"]["values"]  # type: ignore[index, call-overload]
    assert ["ValueError", "RuntimeError"] == [value["type"] for value in values]
    assert "answer" == values[-1]["stacktrace"]["frames"][-1]["function"]
    assert ("1" * 64, {"line": LINE, "request_id": "r0"}) == (event["release"], event["tags"])
    text = b"\n".join(body for _, body in collector.received).decode()
    assert not [word for word in (CELL, "caller", os.uname().nodename, '"vars"') if word in text]


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(28, CELL), 1), (PermissionError(13, CELL), 1), (ConnectionResetError(104, CELL), 0), (TimeoutError(), 0)],
    ids=["a full disk", "a file", "a connection", "a time-out"],
)
def test_only_what_is_away_is_no_fault(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, error: Exception, told: int
) -> None:
    def fails(*_: object) -> Any:
        raise error

    model = Breaks()
    monkeypatch.setattr(model, "answer", fails)
    monkeypatch.setattr("serving.predictor.load", lambda _, deployment, __: Predictor(deployment, model, {}, "cpu"))
    faults = Faults(f"http://public@{collector.address}/1")
    status, _, headers = ask(make_api(FakeSource(LINE), faults=faults), PREDICT, GOOD)
    faults.stop()

    assert told == len(events(collector))
    assert (500 if told else 503) == status
    assert bool(told) != ("retry-after" in headers)


def test_refusals_are_no_faults(collector: Collector, loads: list[Deployment]) -> None:
    faults = Faults(f"http://public@{collector.address}/1")
    api = make_api(FakeSource(LINE), faults=faults)
    ask(api, PREDICT, b"{")
    ask(api, PREDICT, GOOD, key="wrong")
    ask(api, PREDICT, b'{"rows": [{"bad": 1}]}')
    faults.stop()

    assert [] == events(collector)


def test_a_dsn_that_is_none_stops_the_start() -> None:
    with pytest.raises(ConfigError) as caught:
        Faults("not a dsn")
    assert "bad_dsn" == caught.value.code
    assert "not a dsn" not in str(caught.value)
