"""The API in process: every error has one shape, answers say where they come from, and lines are apart."""

import asyncio
import json
from typing import Any

import pytest

from serving.body import BadBody, parse
from serving.deployments import Deployment
from serving.http import Api, Limits, Message
from serving.openapi import describe_api
from serving.records import Recorder
from tests.serving_fakes import GOOD, LINE, PREDICT, FakeSource, ask, fake_loading, kept_nowhere, make_api


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    return fake_loading(monkeypatch)


@pytest.fixture
def api(loads: list[Deployment]) -> Api:
    return make_api(FakeSource(LINE))


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


# The API in process


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
        (PREDICT, GOOD, {"headers": {"content-length": "9" * 5000}}, 413, "body_too_large", None, None),
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
    assert (["age"], ["number", "string", "null"]) == (item["required"], item["properties"]["age"]["type"])
    assert "/v1/predict" not in document["paths"]
    assert "/v1/predict" in describe_api({LINE: schema}, 1000)["paths"]


# Life


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_stopped_before_the_server_hears_that_it_may_end(loads: list[Deployment], fails: bool) -> None:
    """Uvicorn waits for nobody after that word; records, spans and lines of the log would be lost."""
    heard: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        assert "lifespan.startup" == (await receive())["type"]
        await send({"type": "lifespan.startup.complete"})
        assert "lifespan.shutdown" == (await receive())["type"]
        if fails:
            raise RuntimeError("Bento's own end")
        await send({"type": "lifespan.shutdown.complete"})

    words = ["lifespan.startup", "lifespan.shutdown"]

    async def receive() -> Message:
        return {"type": words.pop(0)}

    async def send(message: Message) -> None:
        heard.append(message["type"])

    def note(word: str) -> Any:
        return lambda: heard.append(word)

    api = make_api(FakeSource(LINE), start=note("start"), started=note("started"), stop=note("stop"))
    api._inner = inner
    if fails:
        with pytest.raises(RuntimeError):
            asyncio.run(api({"type": "lifespan"}, receive, send))
    else:
        asyncio.run(api({"type": "lifespan"}, receive, send))

    expected = ["start", "lifespan.startup.complete", "started", "stop", "lifespan.shutdown.complete"]
    assert expected[: 4 if fails else 5] == heard
    assert not api.ready


def test_a_start_that_fails_ends_the_service(loads: list[Deployment]) -> None:
    heard: list[Message] = []

    def start() -> None:
        raise RuntimeError("secret words")

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        heard.append(message)

    asyncio.run(make_api(FakeSource(LINE), start=start)({"type": "lifespan"}, receive, send))

    assert ["lifespan.startup.failed"] == [message["type"] for message in heard]
    assert "secret words" not in heard[0]["message"]
