"""Whatever breaks, and wherever: the caller gets the right status in one shape, and never a stack trace or a library's own words."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy.exc

from esteira.errors import DataError, OutsideError, Refused
from esteira.family import Answer, Finding, Row
from serving.deployments import Deployment
from serving.http import Api, Receive, Scope, Send
from serving.predictor import Predictor
from serving.records import Recorder
from tests.serving_fakes import GOOD, LINE, PREDICT, FakeSource, ask, make_api

SECRET = "secret words of postgresql://user:pass@db.internal in /srv/model.py"


def _driver() -> Exception:
    return sqlalchemy.exc.OperationalError(f"SELECT {SECRET}", {"x": SECRET}, sqlite3.OperationalError(SECRET))


def _ort() -> Exception:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    return InvalidArgument(f"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : {SECRET}")


class Planted:
    """A model that raises where it is told to."""

    def __init__(self, where: str, error: Exception | None) -> None:
        self.where, self.error = where, error

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        if self.where == "check" and self.error is not None:
            raise self.error
        return []

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        if self.where == "answer" and self.error is not None:
            raise self.error
        return [{"prediction": object() if self.where == "encode" else 1, "warnings": []} for _ in rows]


Build = Callable[..., Api]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    def make(where: str = "", error: Exception | None = None, source: FakeSource | None = None, **options: Any) -> Api:
        def load(folder: Any, deployment: Deployment, device: str) -> Predictor:
            if where == "load" and deployment.version != 1 and error is not None:
                raise error
            return Predictor(deployment, Planted(where, error), {}, "cpu")

        monkeypatch.setattr("serving.predictor.load", load)
        return make_api(source or FakeSource(LINE), **options)

    return make


class BrokenRegistry(FakeSource):
    """Serves what it served, and fails when it is asked for anything else."""

    def __init__(self, error: Exception) -> None:
        super().__init__(LINE)
        self.error = error

    def version(self, line: str, number: int) -> Deployment | None:
        raise self.error


class BrokenPart:
    """Jobs and Health at once; raises whatever it is asked."""

    ready = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def takes(self, path: str) -> bool:
        return path.startswith("/v1/batch-predictions/")

    async def handle(
        self, method: str, path: str, body: bytes, role: str, request_id: str = ""
    ) -> tuple[int, dict[str, Any]]:
        raise self.error

    def report(self) -> tuple[int, dict[str, Any]]:
        raise self.error


def _bento(how: str) -> Any:
    """Bento's application, broken: raises, or answers with its own words."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "raises":
            raise RuntimeError(SECRET)
        head = {"type": "http.response.start", "status": int(how), "headers": [(b"content-type", b"text/plain")]}
        await send(head)
        await send({"type": "http.response.body", "body": f"Traceback (most recent call last): {SECRET}".encode()})

    return app


def _check(found: tuple[int, Any, Mapping[str, str]], status: int, code: str) -> None:
    got, document, headers = found
    assert (status, code) == (got, document["error"]["code"])
    assert {"code", "message", "field", "row", "request_id"} == set(document["error"]) - {"details"}
    assert headers["x-request-id"] == document["error"]["request_id"]
    said = json.dumps(document) + json.dumps(dict(headers))
    words = (
        "secret",
        "Traceback",
        "postgresql",
        "/srv",
        "SELECT",
        "INVALID_ARGUMENT",
        "sqlalchemy",
        'File "',
        "Error:",
    )
    assert not [word for word in words if word in said]


@pytest.mark.requirement("K-39")
@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET), _ort()]
)
@pytest.mark.parametrize("where", ["check", "answer", "encode"])
def test_an_unexpected_fault_in_a_model_is_500_without_its_words(build: Build, where: str, error: Exception) -> None:
    """K-39. Done when: an unknown model id gives 404 and no response body contains a stack trace or driver message."""
    _check(ask(build(where, error), PREDICT, GOOD), 500, "internal")


@pytest.mark.requirement("K-39")
@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/v1/tabular@none/predict", {}, 404, "unknown_line"),
        (PREDICT, {"query": "version=9", "key": "operator"}, 404, "unknown_version"),
        (f"/v1/{LINE}/model", {"query": "version=9", "key": "operator", "method": "GET"}, 404, "unknown_version"),
        ("/v1/none", {}, 404, "no_route"),
        ("/none", {"method": "GET"}, 200, ""),
        (PREDICT, {"body": b'{"rows": "x"}'}, 422, "wrong_type"),
        (PREDICT, {"body": b'{"rows": []}'}, 422, "empty"),
    ],
)
def test_an_unknown_model_is_404_and_bad_input_422(
    build: Build, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """K-39. Done when: an unknown model id gives 404 and no response body contains a stack trace or driver message."""
    found = ask(build(), path, **{"body": GOOD, **options})
    if status == 200:
        assert 200 == found[0], "a route of Bento's, as the stand-in answers"
    else:
        _check(found, status, code)


@pytest.mark.requirement("K-39")
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutsideError(SECRET, code="database_away"), 503, "database_away"),
        (Refused(SECRET, code="bundle_changed"), 503, "bundle_changed"),
        (_driver(), 503, "outside"),
        (ConnectionRefusedError(111, SECRET), 503, "outside"),
        (TimeoutError(110, SECRET), 503, "outside"),
        (PermissionError(13, SECRET), 500, "internal"),
        (OSError(28, SECRET), 500, "internal"),
        (RuntimeError(SECRET), 500, "internal"),
    ],
    ids=["our own letter", "a tampered bundle", "a driver's", "the network", "a time-out", "a file", "a disk", "a bug"],
)
@pytest.mark.parametrize("where", ["registry", "load", "jobs", "health"])
def test_a_dependency_that_is_away_is_503_and_a_bug_500(
    build: Build, where: str, error: Exception, status: int, code: str
) -> None:
    """K-39. Done when: an unknown model id gives 404 and no response body contains a stack trace or driver message."""
    if where == "registry":
        found = ask(build(source=BrokenRegistry(error)), PREDICT, GOOD, query="version=2", key="operator")
    elif where == "load":
        found = ask(build("load", error), PREDICT, GOOD, query="version=2", key="operator")
    elif where == "jobs":
        found = ask(build(jobs=BrokenPart(error)), "/v1/batch-predictions/1", method="GET")
    else:
        found = ask(build(health=BrokenPart(error)), "/health", method="GET")
    if where in ("jobs", "health") and code not in ("outside", "internal"):
        status, code = (503, "outside") if isinstance(error, OutsideError) else (500, "internal")
    _check(found, status, code)
    assert (status == 503) == ("retry-after" in found[2])


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [("raises", 500, "internal"), ("500", 500, "bento"), ("404", 404, "no_route"), ("503", 503, "bento")],
)
def test_bentos_own_words_for_a_failure_are_replaced(build: Build, how: str, status: int, code: str) -> None:
    api = build()
    api._inner = _bento(how)
    _check(ask(api, "/docs.json", method="GET"), status, code)


def test_a_page_of_metrics_that_fails_is_500_and_predictions_go_on(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = build()

    def fails() -> tuple[bytes, bytes]:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(api._metrics, "page", fails)
    _check(ask(api, "/metrics", method="GET"), 500, "internal")
    assert 200 == ask(api, PREDICT, GOOD)[0]


def test_a_recorder_whose_store_is_away_fails_no_prediction(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    def connect() -> Any:
        raise _driver()

    recorder = Recorder(connect, period=0.01)
    recorder.start()
    assert 200 == ask(build(recorder=recorder), PREDICT, GOOD)[0]
    recorder.stop()

    assert 1 == recorder.waiting
    assert SECRET not in caplog.text


def test_what_check_let_pass_and_the_model_cannot_read_is_422(build: Build) -> None:
    found = ask(build("answer", DataError("'a' is a number, but got text", code="type")), PREDICT, GOOD)

    _check(found, 422, "type")


def test_an_answer_that_was_half_sent_when_it_broke_is_not_followed_by_another(build: Build) -> None:
    """The server must end the connection; a second head in the same answer would be read as its body."""
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError(SECRET)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    api = build()
    api._inner = app
    scope = {
        "type": "http", "method": "GET", "path": "/docs.json", "headers": [(b"authorization", b"Bearer caller")],
    }  # fmt: skip
    with pytest.raises(RuntimeError):
        asyncio.run(api(scope, receive, send))
    assert 2 == len(sent)


def test_a_header_that_stands_twice_is_refused(build: Build) -> None:
    async def run() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": GOOD}

        key = (b"authorization", b"Bearer caller")
        await build()({"type": "http", "method": "POST", "path": PREDICT, "headers": [key, key]}, receive, send)
        return sent

    head, body = asyncio.run(run())
    assert (400, "duplicate_header") == (head["status"], json.loads(body["body"])["error"]["code"])


def test_a_line_whose_release_cannot_be_loaded_answers_503_by_its_name_and_other_lines_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """K-35 in part: with one model missing, other routes work and its own answer 503."""

    def load(folder: Any, deployment: Deployment, device: str) -> Predictor:
        if deployment.line != LINE:
            raise Refused(SECRET, code="golden_mismatch")
        return Predictor(deployment, Planted("", None), {}, "cpu")

    monkeypatch.setattr("serving.predictor.load", load)
    api = make_api(FakeSource(LINE, "tabular@other"))

    assert 200 == ask(api, f"/v1/{LINE}/predict", GOOD)[0]
    for path, method in (("/v1/tabular@other/predict", "POST"), ("/v1/tabular@other/model", "GET")):
        found = ask(api, path, GOOD, method=method)
        _check(found, 503, "golden_mismatch")
        assert "tabular@other" in found[1]["error"]["message"]
