"""The client repeats what may end otherwise, waits as it is told, and turns every refusal into one kind of error."""

import json
import logging
import math
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.client import CallRefused, Client, Prediction, RowsRefused, ServiceAway, ServiceError
from esteira.errors import ConfigError, DataError, OutsideError

KEY = "a-very-secret-key"
ENVELOPE = {
    "line": "tabular@shop", "version": 3, "bundle_id": "b" * 64, "model_id": "b" * 64, "device": "cpu", "method": "linear",
    "simulated": False, "confidence_kind": "heuristic", "request_id": "r", "timestamp": "2026-01-01T00:00:00.000Z",
}  # fmt: skip

Reply = tuple[int, dict[str, str], bytes]


def answer(rows: int = 1) -> Reply:
    document = {
        **ENVELOPE,
        "rows": [{"prediction": number, "confidence": 0.5, "warnings": []} for number in range(rows)],
    }
    return 200, {"content-type": "application/json"}, json.dumps(document).encode()


def refusal(status: int, code: str, **more: Any) -> Reply:
    headers = {"content-type": "application/json", **more.pop("headers", {})}
    error = {
        "code": code,
        "message": f"why {code}",
        "field": None,
        "row": None,
        "request_id": "from-the-service",
        **more,
    }
    return status, headers, json.dumps({"error": error}).encode()


class Fake:
    """A service of the tests: gives the replies in turn, the last one for ever; a reply None hangs up without a word."""

    def __init__(self) -> None:
        self.replies: list[Reply | None] = [answer()]
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.pause = 0.0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                fake.seen.append((self.command, self.path, headers, json.loads(body) if body else None))
                reply = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
                threading.Event().wait(fake.pause)
                if reply is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, more, content = reply
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that left while it was answered is what some tests want."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def fake() -> Iterator[Fake]:
    service = Fake()
    yield service
    service.stop()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited between attempts; no time passes."""
    waits: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=waits.append, time=time.time))
    return waits


# What is asked, what is answered


def test_a_prediction_names_its_model_and_has_one_answer_a_row(fake: Fake) -> None:
    fake.replies = [answer(2)]

    with Client(fake.url, KEY) as client:
        found = client.predict([{"age": 41}, {"age": None}], line="tabular@shop", version=3, request_id="order-17")

    assert isinstance(found, Prediction)
    assert ([0, 1], "tabular@shop", 3, "b" * 64) == (
        [row["prediction"] for row in found.rows], found.line, found.version, found.bundle_id,
    )  # fmt: skip
    method, path, headers, body = fake.seen[0]
    assert ("POST", "/v1/tabular@shop/predict?version=3") == (method, path)
    assert {"rows": [{"age": 41}, {"age": None}]} == body
    assert (f"Bearer {KEY}", "application/json", "order-17") == (
        headers["authorization"], headers["content-type"], headers["x-request-id"],
    )  # fmt: skip


def test_a_prefix_of_a_proxy_stays_before_every_path(fake: Fake) -> None:
    with Client(fake.url + "/api/ml/", KEY) as client:
        client.predict([{}])
        client.ready()

    assert ["/api/ml/v1/predict", "/api/ml/readyz"] == [path for _, path, _, _ in fake.seen]


def test_dates_and_numpys_scalars_are_sent_as_json_has_them(fake: Fake) -> None:
    with Client(fake.url, KEY) as client:
        client.predict([{"since": date(2024, 3, 1), "n": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True)}])

    assert {"rows": [{"since": "2024-03-01", "n": 3, "x": 0.5, "b": True}]} == fake.seen[0][3]


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), np.float32("inf"), {1, 2}, b"x", object()])
def test_a_value_without_a_json_form_is_refused_before_anything_is_sent(fake: Fake, value: Any) -> None:
    with Client(fake.url, KEY) as client, pytest.raises(DataError) as refused:
        client.predict([{"age": value}])

    assert "no_json" == refused.value.code
    assert [] == fake.seen


@pytest.mark.parametrize("rows", [{"age": 41}, "age", 7, ["age"], [7]])
def test_rows_that_are_no_list_of_mappings_are_refused_with_an_example(fake: Fake, rows: Any) -> None:
    with Client(fake.url, KEY) as client, pytest.raises(DataError) as refused:
        client.predict(rows)

    assert "wrong_type" == refused.value.code
    assert [] == fake.seen


def test_the_only_line_need_not_be_named_and_several_are_listed(fake: Fake) -> None:
    paths = {
        "/v1/predict": {},
        "/v1/tabular@shop/predict": {},
        "/v1/tabular@shop/model": {},
        "/v1/models/{id}/batch-predict": {},
    }
    model = {**ENVELOPE, "schema": {"columns": []}}
    fake.replies = [
        (200, {}, json.dumps({"paths": paths}).encode()),
        (200, {}, json.dumps(model).encode()),
    ]
    with Client(fake.url, KEY) as client:
        assert model == client.model()
        assert model == client.model("tabular@shop")
        assert ("tabular@shop",) == client.lines()
    assert ["/openapi.json", "/v1/tabular@shop/model", "/v1/tabular@shop/model"] == [
        path for _, path, _, _ in fake.seen
    ]

    fake.replies = [(200, {}, json.dumps({"paths": {"/v1/a/model": {}, "/v1/b/model": {}}}).encode())]
    with Client(fake.url, KEY) as client, pytest.raises(CallRefused, match="a, b") as refused:
        client.model()
    assert "which_line" == refused.value.code


# What is repeated


@pytest.mark.parametrize(("status", "code"), [(429, "busy"), (503, "no_model")])
def test_what_was_busy_or_not_ready_is_asked_again_after_as_long_as_it_said(
    fake: Fake, slept: list[float], status: int, code: str
) -> None:
    busy = refusal(status, code, headers={"retry-after": "2"})
    fake.replies = [busy, busy, answer()]

    with Client(fake.url, KEY) as client:
        found = client.predict([{"age": 41}])

    assert 0 == found.rows[0]["prediction"]
    assert [2, 2] == slept
    assert 3 == len(fake.seen)
    assert 1 == len({headers["x-request-id"] for _, _, headers, _ in fake.seen}), "all attempts carry one request id"
    assert 1 == len({json.dumps(body) for _, _, _, body in fake.seen})


def test_without_retry_after_the_pauses_grow(fake: Fake, slept: list[float]) -> None:
    fake.replies = [refusal(503, "overloaded")]

    with Client(fake.url, KEY, retries=4) as client, pytest.raises(ServiceAway):
        client.predict([{}])

    assert 5 == len(fake.seen)
    # At once, then 0.4, 0.8 and 1.6 seconds, each up to 0.2 more.
    assert [0.4, 0.8, 1.6] == pytest.approx([pause - 0.1 for pause in slept], abs=0.11)


def test_a_retry_after_of_hours_is_cut_and_the_last_refusal_is_told(fake: Fake, slept: list[float]) -> None:
    fake.replies = [refusal(503, "no_model", headers={"retry-after": "7200"})]

    with Client(fake.url, KEY, retries=2, longest_wait=5) as client, pytest.raises(ServiceAway) as away:
        client.predict([{}])

    assert [5, 5] == slept
    assert ("no_model", 503, "why no_model", "from-the-service") == (
        away.value.code, away.value.status, away.value.message, away.value.request_id,
    )  # fmt: skip


def test_a_service_that_hung_up_is_asked_again(fake: Fake, slept: list[float]) -> None:
    """A kept connection that the service closed meanwhile, a worker that was killed."""
    fake.replies = [None, None, answer()]

    with Client(fake.url, KEY) as client:
        assert 0 == client.predict([{}]).rows[0]["prediction"]
    assert 3 == len(fake.seen)


def test_a_service_that_cannot_be_reached_is_tried_again_and_then_told(slept: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, and nobody listens

        with Client(url, KEY, retries=3) as client:
            with pytest.raises(ServiceAway) as away:
                client.predict([{}], request_id="order-17")
            assert not client.ready()

    assert 2 == len(slept), "the first attempt again at once"
    assert ("not_reachable", None, "order-17") == (away.value.code, away.value.status, away.value.request_id)
    assert isinstance(away.value, OutsideError)


def test_a_request_that_took_too_long_is_not_sent_again(fake: Fake, slept: list[float]) -> None:
    fake.pause = 0.5

    with Client(fake.url, KEY, timeout=0.1) as client, pytest.raises(ServiceAway) as away:
        client.predict([{}])

    assert "no_answer" == away.value.code
    assert 1 == len(fake.seen)


@pytest.mark.parametrize(
    ("status", "kind", "base"),
    [
        (400, RowsRefused, DataError), (422, RowsRefused, DataError),
        (401, CallRefused, ConfigError), (403, CallRefused, ConfigError), (404, CallRefused, ConfigError),
        (405, CallRefused, ConfigError), (413, CallRefused, ConfigError), (415, CallRefused, ConfigError),
        (408, ServiceAway, OutsideError), (500, ServiceAway, OutsideError), (502, ServiceAway, OutsideError),
        (504, ServiceAway, OutsideError),
    ],
)  # fmt: skip
def test_other_refusals_are_told_at_once_by_their_kind(
    fake: Fake, slept: list[float], status: int, kind: type[ServiceError], base: type[Exception]
) -> None:
    fake.replies = [refusal(status, "some_code")]

    with Client(fake.url, KEY) as client, pytest.raises(base) as refused:
        client.predict([{}])

    assert isinstance(refused.value, kind)
    assert ("some_code", status, "why some_code") == (refused.value.code, refused.value.status, refused.value.message)
    assert refused.value.cure
    assert f"{fake.url}/v1/predict" == refused.value.where
    assert (1, []) == (len(fake.seen), slept)


def test_a_refused_row_names_field_row_and_all_that_is_wrong(fake: Fake) -> None:
    details = [
        {"code": "type", "message": "m", "field": "age", "row": 1},
        {"code": "unknown", "message": "n", "field": "x", "row": 2},
    ]
    fake.replies = [refusal(422, "type", field="age", row=1, details=details)]

    with Client(fake.url, KEY) as client, pytest.raises(RowsRefused) as refused:
        client.predict([{}, {}, {}])

    assert ("age", 1, tuple(details)) == (refused.value.field, refused.value.row, refused.value.details)


# What is not the service


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ((200, {"content-type": "text/html"}, b"<html>"), "bad_answer"),
        ((200, {}, b"[1]"), "bad_answer"),
        ((200, {}, b'{"rows": []}'), "bad_answer"),
        ((200, {}, json.dumps({**ENVELOPE, "rows": None}).encode()), "bad_answer"),
        (answer(2), "bad_answer"),
        ((404, {"content-type": "text/html"}, b"<html>nothing here"), "http_404"),
        ((502, {}, b""), "http_502"),
        ((500, {}, b'{"error": "words"}'), "http_500"),
        ((308, {"location": "https://elsewhere.example/v1/predict"}, b""), "redirected"),
        ((302, {"location": "/login"}, b""), "redirected"),
    ],
)
def test_an_answer_of_something_else_is_told_and_never_taken(fake: Fake, reply: Reply, code: str) -> None:
    fake.replies = [reply]

    with Client(fake.url, KEY) as client, pytest.raises(ServiceError) as refused:
        client.predict([{}])

    assert code == refused.value.code
    assert 1 == len(fake.seen), "and a redirect is not followed with the key"


@given(st.binary(max_size=200), st.sampled_from([200, 204, 400, 401, 404, 422, 500, 502, 504]))
def test_whatever_bytes_come_back_the_error_is_one_of_ours(body: bytes, status: int) -> None:
    class Answer:
        headers: dict[str, str] = {}  # noqa: RUF012 - as urllib3's answers have it
        data = body

    Answer.status = status  # type: ignore[attr-defined]
    client = Client("http://127.0.0.1:1", KEY)
    client._pool.request = lambda *_, **__: Answer  # type: ignore[method-assign,assignment]

    with pytest.raises(ServiceError):
        client.predict([{}])


# Secrets, addresses


def test_the_key_is_shown_nowhere(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake.replies = [refusal(401, "unauthorized")]

    with Client(fake.url, KEY) as client, pytest.raises(CallRefused) as refused:
        client.predict([{}])

    shown = f"{client!r} {refused.value!r} {refused.value} {refused.value.to_dict()} {caplog.text}"
    assert KEY not in shown
    assert "ESTEIRA_API_KEY" in refused.value.cure


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://a", "http://", "http://a/?x=1", "http://a/#b", "http://me:word@a"]
)
def test_what_is_no_address_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Client(url, KEY)

    assert "bad_address" == refused.value.code
    assert "word" not in str(refused.value).replace("password", "")


@pytest.mark.parametrize("key", ["", "a b", "a\n", "é"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Client("http://a", key)

    assert "bad_key" == refused.value.code


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "a\r\nb: c"])
def test_a_request_id_that_the_service_would_replace_is_refused(fake: Fake, request_id: str) -> None:
    with Client(fake.url, KEY) as client, pytest.raises(ConfigError) as refused:
        client.predict([{}], request_id=request_id)

    assert "bad_request_id" == refused.value.code
    assert [] == fake.seen


def test_a_line_cannot_leave_its_place_in_the_path(fake: Fake) -> None:
    with Client(fake.url, KEY) as client:
        client.predict([{}], line="../metrics?x=#y")

    assert "/v1/..%2Fmetrics%3Fx%3D%23y/predict" == fake.seen[0][1]


def test_threads_share_one_client(fake: Fake) -> None:
    failed: list[Exception] = []

    def ask(client: Client) -> None:
        try:
            for _ in range(20):
                client.predict([{}])
        except Exception as error:
            failed.append(error)

    with Client(fake.url, KEY, connections=4) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [] == failed
    assert 160 == len(fake.seen)


def test_without_urllib3_the_letter_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)

    with pytest.raises(ConfigError) as refused:
        Client("http://a", KEY)

    assert "no_urllib3" == refused.value.code


def test_importing_the_client_imports_no_library_of_models_or_of_http() -> None:
    import subprocess

    code = (
        "import sys, esteira.client; print(*sorted({'numpy', 'onnxruntime', 'urllib3', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "" == done.stdout.strip()


def test_a_certificate_that_nobody_vouches_for_is_not_tried_again(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refuse(*_: Any, **__: Any) -> Callable[..., Any]:
        tried.append(1)
        raise ssl.SSLCertVerificationError("certificate verify failed: self-signed certificate")

    monkeypatch.setattr("urllib3.connection.ssl_wrap_socket", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = Client(f"https://127.0.0.1:{listening.getsockname()[1]}", KEY)
        with pytest.raises(ServiceAway) as away:
            client.predict([{}])

    assert ("tls", 1, []) == (away.value.code, len(tried), slept)


@pytest.mark.slow
def test_a_restart_of_the_real_service_costs_its_callers_time_and_no_answer(tmp_path: Path) -> None:
    from tests.serving_process import KEY as SERVICE_KEY
    from tests.serving_process import Service
    from tests.small_bundle import ROW, make_bundle

    bundle_id = make_bundle(tmp_path / "bundle")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    arguments = ["--bundle", str(tmp_path / "bundle"), "--port", str(port)]
    env = {"ESTEIRA_HOME": str(tmp_path / "home"), "ESTEIRA_DRAIN_SECONDS": "0.5"}
    answered: list[str] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def ask(client: Client) -> None:
        while not stop.is_set():
            try:
                answered.append(client.predict([ROW]).bundle_id)
            except Exception as error:
                failed.append(error)

    service = Service(arguments, env=env, log=tmp_path / "log")
    try:
        service.wait_ready()
        with Client(f"http://127.0.0.1:{port}", SERVICE_KEY, retries=12) as client:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            service.stop()
            before = len(answered)
            service = Service(arguments, env=env, log=tmp_path / "log-again")
            service.wait_ready()
            end = time.monotonic() + 30
            while len(answered) <= before + 8 and time.monotonic() < end:
                time.sleep(0.1)
            stop.set()
            for thread in threads:
                thread.join(60)
    finally:
        stop.set()
        service.stop()

    assert [] == failed
    assert {bundle_id} == set(answered)
    assert len(answered) > before + 8 > 8
