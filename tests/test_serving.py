"""The service answers over HTTP by the bundle it was given, refuses in one shape, follows its line, and leaves nobody behind."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from esteira.errors import Refused
from esteira.family import Answer, Finding, Row
from esteira.settings import Settings, load_settings
from esteira.store import Store
from serving.body import BadBody, parse
from serving.http import Api, Asgi, Keys, Limits, Message, Receive, Scope, Send
from serving.metrics import Metrics
from serving.openapi import describe_api
from serving.predictor import Deployed, Deployment, Folder, Predictor, PredictorCache, load
from serving.records import Recorder
from tests.serving_process import KEY, ROOT, Service, gone
from tests.small_bundle import OTHER, ROW, answers, make_bundle

LINE = "tabular@shop-buys"


# Strict JSON


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        (b"", "bad_json", "JSON"),
        (b'{"rows": [', "bad_json", "JSON"),
        (b'{"rows": [{"a": NaN}]}', "nan_token", "NaN"),
        (b'{"rows": [{"a": -Infinity}]}', "nan_token", "Infinity"),
        (b'{"rows": [{"a": 1e999}]}', "bad_json", "range"),
        (b'{"rows": [{"a": 1, "b": 2, "a": 3}]}', "duplicate_key", "'a'"),
        (b'{"rows": [], "rows": [{"a": 1}]}', "duplicate_key", "'rows'"),
        (b'{"rows": [{"a": "x:y", "b": {"c": 1, "c": 2}}]}', "duplicate_key", "'c'"),
        (b'{"rows": [{"\\u0061": 1, "a": 2}]}', "duplicate_key", "'a'"),
        (b'{"rows": ["\xff"]}', "bad_json", "UTF-8"),
        (b"\xef\xbb\xbf{}", "bad_json", "JSON"),
        (b"[" * 100_000, "bad_json", "nested"),
        (b'{"a": "\\ud800"}', "bad_json", "JSON"),
    ],
)
def test_a_body_that_two_readers_could_read_differently_is_refused(body: bytes, code: str, word: str) -> None:
    with pytest.raises(BadBody, match=word) as caught:
        parse(body)

    assert code == caught.value.code


@pytest.mark.parametrize(
    "text", ['{"a:b": "c:d", "e": [{"f": ":"}, 1, null, true]}', "[]", '"x"', '{"a": {"b": {"c": []}}}']
)
def test_a_strict_body_reads_as_json_reads_it(text: str) -> None:
    assert json.loads(text) == parse(text.encode())


# Models in memory


class Fake:
    """Answers its own name; a row with `bad` is an error, one with `odd` a warning."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        found = []
        for number, row in enumerate(rows):
            if "bad" in row:
                found.append(Finding("type", "bad", number, "must be a number, but got text"))
            if "odd" in row:
                found.append(Finding("range", "odd", number, "was 1 to 2", "warning"))
        return found

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        if any("boom" in row for row in rows):
            raise RuntimeError("secret driver words at /srv/model.py")
        return [{"prediction": self.name, "confidence": 0.5, "warnings": []} for _ in rows]


def fake_predictor(deployment: Deployment) -> Predictor:
    return Predictor(deployment, Fake(f"v{deployment.version}"), {"schema": {"columns": []}}, "cpu")


class FakeSource:
    """A registry of the tests: `champion` is what lines serve, `fail` is raised instead."""

    moves = True

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.champion: dict[str, Deployment | None] = {line: Deployment(line, 1, "1" * 64) for line in lines}
        self.fail: Exception | None = None

    def current(self, line: str) -> Deployment | None:
        if self.fail is not None:
            raise self.fail
        return self.champion[line]

    def version(self, line: str, number: int) -> Deployment | None:
        return Deployment(line, number, str(number) * 64) if number < 4 else None

    def folder(self, deployment: Deployment) -> Path:
        return Path(deployment.bundle_id)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """What was loaded, in order; loading makes a fake and takes no time."""
    made: list[Deployment] = []

    def fake_load(folder: Path, deployment: Deployment, device: str) -> Predictor:
        made.append(deployment)
        return fake_predictor(deployment)

    monkeypatch.setattr("serving.predictor.load", fake_load)
    return made


def until(condition: Callable[[], Any], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_the_cache_keeps_the_most_recently_used_models_and_no_more() -> None:
    made: list[int | None] = []

    def loader(deployment: Deployment) -> Predictor:
        made.append(deployment.version)
        return fake_predictor(deployment)

    cache = PredictorCache(2, loader)
    one, two, three = (Deployment(LINE, number, str(number) * 64) for number in (1, 2, 3))
    cache.get(one)
    cache.get(two)
    cache.peek(one)
    cache.get(three)

    assert 2 == len(cache)
    assert cache.peek(two) is None
    assert cache.peek(one) is not None
    assert [1, 2, 3] == made


def test_a_model_that_many_ask_for_at_once_is_loaded_once() -> None:
    made: list[int | None] = []

    def slow(deployment: Deployment) -> Predictor:
        made.append(deployment.version)
        time.sleep(0.1)
        return fake_predictor(deployment)

    cache = PredictorCache(2, slow)
    threads = [threading.Thread(target=cache.get, args=(Deployment(LINE, 1, "1" * 64),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [1] == made


def test_a_line_follows_its_alias_and_forgets_the_old_model(loads: list[Deployment]) -> None:
    source = FakeSource(LINE)
    deployed = Deployed(source)
    deployed.start(period=0.01)
    try:
        assert deployed.serves(LINE, 1)
        source.champion[LINE] = Deployment(LINE, 2, "2" * 64)

        assert until(lambda: deployed.serves(LINE, 2))
        assert until(lambda: len(deployed.cache) == 1)
        predictor = deployed.loaded(LINE)
        assert predictor is not None
        assert "v2" == predictor.answer([{}])[0]["prediction"]
    finally:
        deployed.stop()


def test_a_registry_that_is_away_leaves_the_last_good_model_and_is_told_once(loads: list[Deployment]) -> None:
    source, told = FakeSource(LINE), []
    deployed = Deployed(source, report=lambda line, error: told.append((line, str(error))))
    deployed.start(period=0.01)
    try:
        source.fail = OSError("database is away")
        assert until(lambda: told)
        time.sleep(0.1)

        assert deployed.serves(LINE, 1)
        assert [(LINE, "database is away")] == told
    finally:
        deployed.stop()


def test_a_line_whose_champion_is_taken_away_stops_answering(loads: list[Deployment]) -> None:
    source = FakeSource(LINE, "tabular@other")
    deployed = Deployed(source)
    deployed.start(period=0.01)
    try:
        source.champion[LINE] = None

        assert until(lambda: deployed.predictor(LINE) is None)
        assert deployed.predictor("tabular@other") is not None
        assert deployed.ready
    finally:
        deployed.stop()


def test_more_lines_than_the_cache_holds_are_loaded_again_when_asked_for(loads: list[Deployment]) -> None:
    lines = [f"tabular@a{number}" for number in range(5)]
    deployed = Deployed(FakeSource(*lines), capacity=2)
    deployed.start(period=60)
    try:
        assert deployed.loaded(lines[0]) is None
        assert deployed.predictor(lines[0]) is not None
        assert deployed.loaded(lines[0]) is not None
        assert 2 == len(deployed.cache)
    finally:
        deployed.stop()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (
            lambda folder: (folder / "graph.onnx").write_bytes((folder / "graph.onnx").read_bytes()[:-1] + b"!"),
            "bundle_changed",
        ),
        (lambda folder: (folder / "decoder.json").unlink(), "bundle_missing"),
        (lambda folder: (folder / "extra.json").write_text("{}"), "bundle_unlisted"),
    ],
    ids=["flipped", "missing", "unlisted"],
)
def test_a_tampered_bundle_is_refused_before_a_server_starts(
    tmp_path: Path, change: Callable[[Path], object], code: str
) -> None:
    make_bundle(tmp_path / "bundle")
    change(tmp_path / "bundle")

    with pytest.raises(Refused) as caught:
        Folder(tmp_path / "bundle")
    assert code == caught.value.code
    with pytest.raises(Refused):
        load(tmp_path / "bundle", Deployment("", None, ""))


# Records


def record(number: int) -> Mapping[str, Any]:
    return {"request_id": str(number)}


def kept_nowhere(records: Sequence[Mapping[str, Any]]) -> None:
    """A store that forgets."""


def test_records_wait_while_the_store_is_away_and_are_written_when_it_is_back() -> None:
    kept: list[Any] = []
    away = [True]

    def connect() -> Callable[[Sequence[Mapping[str, Any]]], None]:
        if away[0]:
            raise OSError("no store")
        return kept.extend

    recorder = Recorder(connect, period=0.01)
    recorder.start()
    for number in range(3):
        recorder.put(record(number))
    assert until(lambda: recorder.failures > 0)
    away[0] = False

    assert until(lambda: [record(number) for number in range(3)] == kept)
    recorder.stop()
    assert 0 == recorder.waiting


def test_the_queue_of_records_is_bounded_and_counts_what_it_drops() -> None:
    recorder = Recorder(lambda: kept_nowhere, capacity=5)
    for number in range(8):
        recorder.put(record(number))

    assert (5, 3) == (recorder.waiting, recorder.dropped)


def test_what_waits_is_written_when_the_service_stops() -> None:
    kept: list[Any] = []
    recorder = Recorder(lambda: kept.extend, period=60)
    recorder.start()
    recorder.put(record(1))
    recorder.stop()

    assert [record(1)] == kept


# The API in process


async def bento(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for Bento's own application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"bento"})


def ask(
    api: Asgi,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    key: str = "caller",
    query: str = "",
) -> tuple[int, Any, dict[str, str]]:
    """One request to an ASGI application; several bodies are sent as parts, and an endless wait follows the last."""
    sent: list[Message] = []
    parts = [body] if isinstance(body, bytes) else list(body)
    given = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }

    async def receive() -> Message:
        if not parts:
            await asyncio.sleep(3600)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": not isinstance(body, bytes) or bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(api(scope, receive, send))  # type: ignore[arg-type]
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    is_json = found.get("content-type", "").startswith("application/json") and answer
    return sent[0]["status"], json.loads(answer) if is_json else answer, found


def make_api(source: FakeSource, *, recorder: Recorder | None = None, limits: Limits | None = None) -> Api:
    deployed = Deployed(source)
    deployed.start(period=3600)
    return Api(
        deployed,
        Keys(b"caller", b"operator"),
        bento,
        metrics=Metrics(CollectorRegistry()),
        recorder=recorder,
        limits=limits or Limits(rows=3, body=1000, bodies=2000, seconds=0.2),
    )


@pytest.fixture
def api(loads: list[Deployment]) -> Api:
    return make_api(FakeSource(LINE))


PREDICT = "/v1/predict"
GOOD = b'{"rows": [{"a": 1}]}'


@pytest.mark.parametrize(
    ("path", "body", "options", "status", "code", "field", "row"),
    [
        (PREDICT, GOOD, {"key": "wrong"}, 401, "unauthorized", None, None),
        (PREDICT, GOOD, {"headers": {"authorization": "Basic caller"}}, 401, "unauthorized", None, None),
        ("/metrics", b"", {"method": "GET", "key": ""}, 401, "unauthorized", None, None),
        ("/anything/of/bento", b"", {"method": "GET", "key": "no"}, 401, "unauthorized", None, None),
        ("/v1/tabular@none/predict", GOOD, {}, 404, "unknown_line", "line", None),
        ("/v1/tabular@shop-buys/train", GOOD, {}, 404, "no_route", None, None),
        (PREDICT, b"", {"method": "GET"}, 405, "method", None, None),
        (f"/v1/{LINE}/model", GOOD, {}, 405, "method", None, None),
        (PREDICT, GOOD, {"headers": {"content-type": "text/csv"}}, 415, "not_json", "content-type", None),
        (PREDICT, GOOD, {"headers": {"content-encoding": "gzip"}}, 415, "encoded", "content-encoding", None),
        (PREDICT, GOOD, {"headers": {"content-length": "1001"}}, 413, "body_too_large", None, None),
        (PREDICT, [b" " * 600, b" " * 600], {}, 413, "body_too_large", None, None),
        (PREDICT, [b'{"rows":'], {}, 408, "slow_body", None, None),
        (PREDICT, b"{", {}, 400, "bad_json", None, None),
        (PREDICT, b'{"rows": [{"a": NaN}]}', {}, 400, "nan_token", None, None),
        (PREDICT, b'{"rows": [{"a": 1, "a": 2}]}', {}, 400, "duplicate_key", None, None),
        (PREDICT, b"[]", {}, 422, "wrong_type", None, None),
        (PREDICT, b"{}", {}, 422, "missing_field", "rows", None),
        (PREDICT, b'{"rows": null}', {}, 422, "wrong_type", "rows", None),
        (PREDICT, b'{"rows": []}', {}, 422, "empty", "rows", None),
        (PREDICT, b'{"rows": [{}], "model": "x"}', {}, 422, "unknown_field", "model", None),
        (PREDICT, b'{"rows": [{}, 7]}', {}, 422, "wrong_type", "rows", 1),
        (PREDICT, b'{"rows": [{},{},{},{}]}', {}, 422, "too_many_rows", "rows", None),
        (PREDICT, b'{"rows": [{}, {"bad": "x"}]}', {}, 422, "type", "bad", 1),
        (PREDICT, GOOD, {"query": "version=2"}, 403, "not_deployed", "version", None),
        (PREDICT, GOOD, {"query": "version=9", "key": "operator"}, 404, "unknown_version", "version", None),
        (PREDICT, GOOD, {"query": "version=x"}, 422, "wrong_type", "version", None),
        (PREDICT, GOOD, {"query": "v=1"}, 422, "unknown_field", "v", None),
        (PREDICT, b'{"rows": [{"boom": 1}]}', {}, 500, "internal", None, None),
    ],
)  # fmt: skip
def test_every_error_has_one_shape(
    api: Api,
    path: str,
    body: bytes,
    options: dict[str, Any],
    status: int,
    code: str,
    field: str | None,
    row: int | None,
) -> None:
    found, document, headers = ask(api, path, body, **options)

    assert (status, code) == (found, document["error"]["code"])
    assert (field, row) == (document["error"]["field"], document["error"]["row"])
    assert {"code", "message", "field", "row", "request_id"} <= set(document["error"])
    assert headers["x-request-id"] == document["error"]["request_id"]
    assert "Traceback" not in json.dumps(document)
    assert "secret driver words" not in json.dumps(document)


def test_an_answer_says_which_model_it_came_from(api: Api) -> None:
    status, document, headers = ask(api, PREDICT, GOOD, headers={"x-request-id": "order-17.a"})

    assert 200 == status
    assert {
        "line", "version", "bundle_id", "model_id", "device", "method", "simulated", "confidence_kind", "request_id", "timestamp",
        "rows",
    } == set(document)  # fmt: skip
    assert ("order-17.a", "order-17.a") == (document["request_id"], headers["x-request-id"])
    assert (LINE, 1, "1" * 64) == (document["line"], document["version"], document["bundle_id"])


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "né", "a\tb"])
def test_a_request_id_that_is_not_sane_is_replaced(api: Api, given: str) -> None:
    _, document, _ = ask(api, PREDICT, GOOD, headers={"x-request-id": given})

    assert given != document["request_id"]
    assert 32 == len(document["request_id"])


def test_an_operator_may_ask_for_a_version_that_is_not_deployed_and_a_caller_for_the_one_that_is(api: Api) -> None:
    _, by_operator, _ = ask(api, PREDICT, GOOD, query="version=2", key="operator")
    _, by_caller, _ = ask(api, PREDICT, GOOD, query="version=1")

    assert (2, "v2") == (by_operator["version"], by_operator["rows"][0]["prediction"])
    assert 1 == by_caller["version"]


def test_a_body_in_parts_is_put_together(api: Api) -> None:
    async def receive() -> Message:
        return parts.pop(0)

    parts: list[Message] = [
        {"type": "http.request", "body": b'{"rows": [{"', "more_body": True},
        {"type": "http.request", "body": b'a": 1}]}', "more_body": False},
    ]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", b"bearer caller")]
    asyncio.run(api({"type": "http", "method": "POST", "path": PREDICT, "headers": headers}, receive, send))

    assert 200 == sent[0]["status"]


def test_bodies_share_a_bounded_room_that_is_given_back(loads: list[Deployment]) -> None:
    api = make_api(FakeSource(LINE), limits=Limits(rows=3, body=1000, bodies=10, seconds=0.2))

    status, document, headers = ask(api, PREDICT, GOOD)

    assert (503, "overloaded", "1") == (status, document["error"]["code"], headers["retry-after"])
    assert 0 == api.bodies


def test_a_line_without_a_model_answers_503_and_other_lines_go_on(loads: list[Deployment]) -> None:
    source = FakeSource(LINE, "tabular@other")
    source.champion[LINE] = None
    api = make_api(source)

    assert 503 == ask(api, f"/v1/{LINE}/predict", GOOD)[0]
    assert 200 == ask(api, "/v1/tabular@other/predict", GOOD)[0]
    status, document, _ = ask(api, PREDICT, GOOD)
    assert (404, "which_line") == (status, document["error"]["code"])


def test_bentos_own_routes_answer_behind_the_key(api: Api) -> None:
    assert (200, b"bento") == ask(api, "/docs.json", method="GET")[:2]


def test_each_prediction_leaves_a_record_and_is_counted(loads: list[Deployment]) -> None:
    recorder = Recorder(lambda: kept_nowhere)
    api = make_api(FakeSource(LINE), recorder=recorder)
    ask(api, PREDICT, GOOD, headers={"x-request-id": "one"})
    ask(api, PREDICT, b'{"rows": [{"bad": 1}]}', headers={"x-request-id": "two"})
    ask(api, f"/v1/{LINE}/model", method="GET")

    records = list(recorder._queue)
    assert [("one", 1, 200), ("two", 0, 422)] == [
        (kept["request_id"], kept["rows"], kept["status"]) for kept in records
    ]
    assert all(kept["elapsed_ms"] > 0 and kept["version"] == 1 for kept in records)
    page = ask(api, "/metrics", method="GET")[1].decode()
    assert f'esteira_predictions_total{{line="{LINE}",outcome="success"}} 1.0' in page
    assert f'esteira_predictions_total{{line="{LINE}",outcome="error"}} 1.0' in page


def test_the_document_of_the_api_names_each_lines_columns() -> None:
    schema = {
        "columns": [
            {"name": "age", "kind": "number", "unit": "years"},
            {"name": "city", "kind": "category", "required": False},
        ]
    }
    document = describe_api({LINE: schema, "toy": None}, 1000)

    rows = document["paths"][f"/v1/{LINE}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    item = rows["properties"]["rows"]["items"]
    assert (["age"], ["number", "null"]) == (item["required"], item["properties"]["age"]["type"])
    assert "/v1/predict" not in document["paths"]
    assert "/v1/predict" in describe_api({LINE: schema}, 1000)["paths"]


# The real server on a real socket


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store's folder should be stands a file, until somebody removes it."""
    place = tmp_path_factory.mktemp("store") / "blocked"
    place.write_text("not a folder")
    return place


@pytest.fixture(scope="session")
def service(bundle: Path, blocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One real `bentoml serve` for this session; its store of predictions cannot be written at first."""
    folder = tmp_path_factory.mktemp("service")
    env = {"ESTEIRA_HOME": str(folder / "home"), "ESTEIRA_DATABASE_URL": f"sqlite:///{blocked}/store.db"}
    running = Service(["--bundle", str(bundle), "--port", "0", "--record"], env=env, log=folder / "log")
    try:
        yield running.wait_ready()
    finally:
        running.stop()


@pytest.mark.requirement("K-56")
def test_real_time_prediction_on_the_real_server(service: Service, bundle: Path, blocked: Path) -> None:
    """K-56. Done when: a 2-row request returns two predictions and two confidences; p95 for a cached tabular model < 100 ms.

    And its decision: input is checked against the schema (422 with field names), only what is deployed serves, and a store
    that cannot be written fails no prediction; the records come later.
    """
    status, document = service.predict(ROW, OTHER)

    expected = answers(bundle, [ROW, OTHER])
    assert 200 == status
    assert 2 == len(document["rows"])
    assert [answer["prediction"] for answer in expected] == [row["prediction"] for row in document["rows"]]
    assert [answer["confidence"] for answer in expected] == pytest.approx(
        [row["confidence"] for row in document["rows"]]
    )
    assert document["rows"][0]["confidence"] != document["rows"][1]["confidence"], "a confidence a row, not one a batch"
    assert document["bundle_id"] == document["model_id"]
    assert document["timestamp"].endswith("Z")

    connection = http.client.HTTPConnection(service.address, timeout=20)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    seconds = []
    for number in range(300):
        body = json.dumps({"rows": [{**ROW, "age": 18 + number % 60}]})
        begun = time.perf_counter()
        connection.request("POST", "/v1/predict", body, headers)
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - begun)
        assert 200 == response.status
    connection.close()
    p95 = statistics.quantiles(seconds, n=20)[18]
    assert p95 < 0.100, f"p95 is {p95 * 1000:.1f} ms"

    wrong = {**ROW, "visits": "three"}
    del wrong["city"]
    status, refused = service.predict(ROW, wrong)
    assert 422 == status
    assert {"city", "visits"} == {problem["field"] for problem in refused["error"]["details"]}
    assert {1} == {problem["row"] for problem in refused["error"]["details"]}

    status, other, _ = service.ask("/v1/predict?version=7", {"rows": [ROW]})
    assert (403, "not_deployed") == (status, other["error"]["code"])

    blocked.unlink()
    blocked.mkdir()
    store = None
    end = time.monotonic() + 20
    while time.monotonic() < end and not (store and len(store.list_predictions(LINE, limit=1000)) >= 303):
        time.sleep(0.1)
        if (blocked / "store.db").exists():
            store = Store.open(f"sqlite:///{blocked}/store.db")
    assert store is not None, "the records were never written"
    kept = store.list_predictions(LINE, limit=1000)
    assert 303 == len(kept)
    assert {200, 403, 422} == {entry.status for entry in kept}
    assert all(entry.elapsed_ms > 0 for entry in kept)


def test_only_livez_and_readyz_are_open_and_they_say_nothing(service: Service) -> None:
    for path in ("/livez", "/readyz"):
        assert (200, b"") == service.ask(path, key=None)[:2]
    for path in ("/metrics", "/openapi.json", "/healthz", "/", "/docs.json", "/schema.json", f"/v1/{LINE}/model"):
        assert 401 == service.ask(path, key=None)[0], path
        assert 401 == service.ask(path, key="not-the-key")[0], path
    for path in ("/metrics", "/openapi.json", "/healthz", "/docs.json", f"/v1/{LINE}/model"):
        assert 200 == service.ask(path)[0], path


def test_the_model_route_tells_contract_units_metrics_data_hash_and_device(service: Service) -> None:
    status, document, _ = service.ask(f"/v1/{LINE}/model")

    assert 200 == status
    assert ["age", "visits", "member", "city", "since", "note"] == [
        column["name"] for column in document["schema"]["columns"]
    ]
    assert ({"age": "years"}, {"roc_auc": 0.9}, "d" * 64) == (
        document["units"],
        document["metrics"],
        document["data_hash"],
    )
    assert ("cpu", "linear", False) == (document["device"], document["method"], document["simulated"])


def test_the_line_may_be_named_and_its_sign_may_be_escaped(service: Service) -> None:
    for path in (f"/v1/{LINE}/predict", f"/v1/{LINE.replace('@', '%40')}/predict"):
        assert 200 == service.predict(ROW, path=path)[0]


def test_the_label_is_ignored_and_an_odd_cell_is_a_warning_on_its_row(service: Service) -> None:
    status, document = service.predict({**ROW, "buys": "yes"}, {**ROW, "city": "Faro", "age": None, "visits": 99})

    assert 200 == status
    assert [] == document["rows"][0]["warnings"]
    assert {"city", "age", "visits"} == {warning["column"] for warning in document["rows"][1]["warnings"]}


def test_a_large_request_answers_in_order(service: Service) -> None:
    rows = [{**ROW, "age": 18 + number * 0.05} for number in range(1000)]
    status, document = service.predict(*rows)

    assert 200 == status
    sure = [row["probabilities"]["yes"] for row in document["rows"]]
    assert 1000 == len(sure)
    assert sorted(sure) == sure


def test_the_limits_hold_on_the_wire(service: Service) -> None:
    assert 422 == service.predict(*[ROW] * 1001)[0]
    status, document, _ = service.ask("/v1/predict", b" " * 10_000_001)
    assert (413, "body_too_large") == (status, document["error"]["code"])
    assert 400 == service.ask("/v1/predict", b'{"rows": [{"age": NaN}]}')[0]
    assert 415 == service.ask("/v1/predict", b"a,b", headers={"Content-Type": "text/csv"})[0]
    assert 200 == service.predict(ROW)[0]


def test_no_file_of_a_service_lies_outside_its_own_folder(service: Service) -> None:
    """Bento's stores, sockets and counters go away with the service, whatever BENTOML_HOME it has."""
    assert not (Path(os.environ["BENTOML_HOME"]) / "prometheus_multiproc_dir").exists()


# A line of the registry


def add_version(store: Store, settings: Settings, folder: Path, number: int, bundle_id: str) -> None:
    """Put a bundle into artefact storage and its row into the store, as a registration does, without MLflow."""
    place = Path(settings.artifacts) / "tabular--shop-buys" / f"run{number}" / "artifacts" / "model" / "bundle"
    shutil.copytree(folder, place)
    with store.begin() as connection:
        store.add_version(
            connection,
            {
                "line": LINE, "version": number, "bundle_id": bundle_id, "uri": place.as_uri(), "mlflow_run_id": f"run{number}",
                "run_id": f"run{number}", "data_hash": "d" * 64, "code_revision": "unknown", "params_hash": "p" * 64,
                "params": {}, "metrics": {}, "actor": "the tests", "state": "validated",
            },
        )  # fmt: skip


def point_champion(store: Store, number: int, bundle_id: str) -> None:
    with store.begin() as connection:
        store.put_alias(connection, line=LINE, alias="champion", version=number, bundle_id=bundle_id, ledger_seq=number)


def test_a_served_line_follows_its_champion_without_losing_a_request(tmp_path: Path) -> None:
    """And a champion that was tampered with is not taken: the last good one goes on."""
    settings = load_settings({"ESTEIRA_HOME": str(tmp_path / "home")}, file=None)
    store = Store.open(settings.database_url)
    ids = {}
    for number in (1, 2, 3):
        ids[number] = make_bundle(tmp_path / f"bundle{number}", weight=0.05 * number)
        add_version(store, settings, tmp_path / f"bundle{number}", number, ids[number])
        shutil.rmtree(tmp_path / f"bundle{number}")
    point_champion(store, 1, ids[1])
    service = Service(["--line", LINE, "--port", "0"], env={"ESTEIRA_HOME": str(settings.home)}, log=tmp_path / "log")
    seen: list[tuple[int, Any]] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            seen.append(service.predict(ROW))

    try:
        service.wait_ready()
        first = service.predict(ROW)[1]
        assert (1, ids[1]) == (first["version"], first["bundle_id"])
        hammering = threading.Thread(target=hammer)
        hammering.start()
        point_champion(store, 2, ids[2])
        followed = until(lambda: seen and seen[-1][1].get("version") == 2)
        stop.set()
        hammering.join()
        assert followed
        assert {200} == {status for status, _ in seen}
        assert {(1, ids[1]), (2, ids[2])} == {(answer["version"], answer["bundle_id"]) for _, answer in seen}
        assert first["rows"][0]["confidence"] < seen[-1][1]["rows"][0]["confidence"], "the other model really answers"

        graph = (
            Path(settings.artifacts) / "tabular--shop-buys" / "run3" / "artifacts" / "model" / "bundle" / "graph.onnx"
        )
        graph.write_bytes(graph.read_bytes()[::-1])
        point_champion(store, 3, ids[3])
        assert until(lambda: b"esteira_follow_errors_total{" in service.ask("/metrics")[1])
        assert 2 == service.predict(ROW)[1]["version"]
        assert until(lambda: len(store.list_predictions(LINE, limit=100_000)) >= len(seen) + 2)
    finally:
        stop.set()
        service.stop()


# How it starts and ends


def run_serving(*arguments: str, env: Mapping[str, str], timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False, env={**os.environ, **env},
    )  # fmt: skip


def test_serving_a_tampered_bundle_ends_with_1_and_a_letter(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "extra.json").write_text("{}")

    ended = run_serving(
        "serve", "--json", "--bundle", str(tmp_path / "bundle"), "--port", "0", env={"ESTEIRA_API_KEY": KEY}
    )

    assert 1 == ended.returncode
    assert "" == ended.stdout
    assert "bundle_unlisted" == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), "usage"), (("--bundle", "x", "--line", "tabular"), "usage"), (("--line", "tabular@nobody"), "no_champion")],
)
def test_serving_what_cannot_be_served_ends_at_once(tmp_path: Path, arguments: tuple[str, ...], code: str) -> None:
    env = {"ESTEIRA_API_KEY": KEY, "ESTEIRA_HOME": str(tmp_path)}
    ended = run_serving("serve", "--json", *arguments, "--port", "0", env=env)

    assert ended.returncode in (1, 2)
    assert code == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


def test_cuda_without_a_gpu_fails_at_start(bundle: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    env = {"ESTEIRA_API_KEY": KEY, "ESTEIRA_DEVICE": "cuda", "ESTEIRA_HOME": str(tmp_path)}
    ended = run_serving("serve", "--json", "--bundle", str(bundle), "--port", "0", env=env)

    assert 2 == ended.returncode
    assert "no_gpu" == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


def test_a_key_is_made_once_and_kept_for_the_owner_only(bundle: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "ESTEIRA_API_KEY"}
    # A bundle that is refused: the key is made before, and nothing is served.
    ended = run_serving(
        "serve", "--bundle", str(tmp_path), "--port", "0", env={**env, "ESTEIRA_HOME": str(tmp_path / "home")}
    )

    key = (tmp_path / "home" / "api_key").read_text().strip()
    assert key in ended.stderr
    assert 0o600 == (tmp_path / "home" / "api_key").stat().st_mode & 0o777


@pytest.mark.slow
def test_no_process_is_left_however_the_service_ends(bundle: Path, tmp_path: Path) -> None:
    """SIGTERM; Ctrl-C; kill -9 of the supervisor, of Bento's master; the end of the process that started it."""
    env = {"ESTEIRA_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    arguments = ["--bundle", str(bundle), "--port", "0"]
    starter = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(300)"
    command = (sys.executable, "-c", starter, sys.executable, "-m", "serving", "serve")
    services = {
        name: Service(arguments, env=env, log=tmp_path / f"{name}.log", command=command if name == "starter" else ())
        for name in ("term", "interrupt", "supervisor", "master", "starter")
    }
    trees: dict[str, list[int]] = {}
    try:
        for name, service in services.items():
            service.wait_ready(120)
            trees[name] = service.tree()
            assert (4 if name == "starter" else 3) == len(trees[name]), "supervisor, master and worker"

        assert 0 == services["term"].stop(signal.SIGTERM)
        assert 0 == services["interrupt"].stop(signal.SIGINT)
        os.kill(services["supervisor"].process.pid, signal.SIGKILL)
        os.kill(trees["master"][1], signal.SIGKILL)
        os.kill(services["starter"].process.pid, signal.SIGKILL)

        for name, tree in trees.items():
            assert gone(tree, 20), (
                f"after the end of {name} some live on: {(tmp_path / f'{name}.log').read_text()[-800:]}"
            )
        services["supervisor"].process.wait(10)
        assert 2 == services["master"].process.wait(10), "a service that ended by itself is a failure"
        # What the killed supervisor could not remove goes with the next start.
        assert 1 == len(list(tmp_path.glob("esteira-serve-*")))
        run_serving("serve", "--bundle", str(tmp_path / "none"), "--port", "0", env=env)
        assert [] == list(tmp_path.glob("esteira-serve-*"))
    finally:
        for service in services.values():
            service.stop(signal.SIGKILL)
        for tree in trees.values():
            for pid in tree[1:]:
                if not gone([pid], 0):
                    os.kill(pid, signal.SIGKILL)
