"""What is sent to hurt the service does nothing: no pickle is read, no bad body answered, no storm loses a request, no log tells."""

import functools
import gzip
import hmac
import http.client
import json
import logging
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.body import BadBody, parse
from serving.deployments import Deployment
from serving.keys import Keys
from serving.predictor import Predictor, load
from tests.serving_fakes import LINE, PREDICT, FakeSource, ask, make_api
from tests.serving_process import KEY, Service
from tests.small_bundle import OTHER, ROW, answers, make_bundle
from tests.test_serving_edge import Caller, get, post, probe, until

OPERATOR = "an-operators-key"
# Words that no log may hold.
CELL, WRONG_KEY, QUERY = "zebra-crossing-7f3a", "wrong-key-5c1d", "in-the-query-91b2"
LIMIT, QUEUE = 2, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One real `bentoml serve` with narrow limits, an access log, and everything that it says in one file."""
    folder = tmp_path_factory.mktemp("secured")
    env = {
        "ESTEIRA_HOME": str(folder / "home"),
        "ESTEIRA_OPERATOR_KEY": OPERATOR,
        "ESTEIRA_MAX_CONNECTIONS": "200",
        "ESTEIRA_MAX_CONCURRENCY": str(LIMIT),
        "ESTEIRA_MAX_QUEUE": str(QUEUE),
        "ESTEIRA_MAX_BODY": "300KB",
        "ESTEIRA_ACCESS_LOG": "stdout",
        "ESTEIRA_DRAIN_SECONDS": "0",
    }
    running = Service(["--bundle", str(bundle), "--port", "0"], env=env, log=folder / "log")
    try:
        yield running.wait_ready()
    finally:
        running.stop()


@pytest.fixture
def sane(service: Service, bundle: Path) -> Iterator[None]:
    """After the test the service answers as the bundle does in process."""
    yield
    assert until(lambda: service.predict(ROW)[0] == 200)
    status, document = service.predict(ROW, OTHER)
    assert 200 == status
    assert [answer["prediction"] for answer in answers(bundle, [ROW, OTHER])] == [
        row["prediction"] for row in document["rows"]
    ]


def wire(service: Service, *data: bytes) -> Caller:
    host, port = service.address.split(":")
    caller = Caller(int(port), host)
    for piece in data:
        caller.send(piece)
    return caller


def predict(body: bytes, *lines: bytes, key: str = KEY) -> bytes:
    return post(body, b"Authorization: Bearer " + key.encode(), *lines, path=b"/v1/predict")


def worker(service: Service) -> int:
    """The process that answers: the only one that the service's sockets are read in."""
    return service.tree()[-1]


def megabytes(pid: int) -> float:
    pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors(pid: int) -> int:
    return len(list((Path("/proc") / str(pid) / "fd").iterdir()))


# The door


def test_the_door_is_in_the_process_that_bentoml_serve_started(service: Service) -> None:
    host, port = service.address.split(":")

    assert probe(int(port), host)
    page = service.ask("/metrics")[1].decode()
    assert re.search(r'esteira_http_requests_total\{route="edge",status="431"\} [1-9]', page), (
        "and what it refuses is counted"
    )


def test_an_upgrade_is_ignored_and_its_body_is_read(service: Service) -> None:
    """Java's client offers HTTP/2 on its first request; a WebSocket handshake is a `GET` like any other."""
    body = json.dumps({"rows": [ROW]}).encode()
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    with wire(service, predict(body, b"Content-Type: application/json", *offer)) as caller:
        assert 1 == len(caller.said()["rows"])

    handshake = get(
        b"/v1/predict", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    )
    with wire(service, handshake) as caller:
        assert 401 == caller.answer()[0]


# Pickles


PICKLES = ("application/vnd.bentoml+pickle", "application/octet-stream", "application/x-pickle", "multipart/form-data; boundary=b",
           "application/json", "application/x-www-form-urlencoded")  # fmt: skip
ROUTES = ("/", "/v1/predict", f"/v1/{LINE}/predict", f"/v1/{LINE}/model", "/v1/models/x/batch-predict", "/v1/batch-predictions/x",
          "/v1/models", "/v1/models/x", f"/v1/{LINE}/rollout", f"/v1/{LINE}/rollout/start",
          "/v1/batch-predictions/x/cancel", "/metrics", "/health", "/healthz", "/livez", "/readyz", "/openapi.json", "/docs.json",
          "/schema.json", "/static_content/index.css", "/predict", "/call", "/__main__", "/submit", "/v1/predict/submit")  # fmt: skip


def canary(place: Path, protocol: int) -> bytes:
    """A pickle that makes a file when it is read; written by hand, since nothing here writes pickles."""
    command = f"touch {place}".encode()
    if protocol == 0:
        return b"cposix\nsystem\n(S'" + command + b"'\ntR."
    return b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_canary_would_sing(tmp_path: Path, protocol: int) -> None:
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=canary(tmp_path / "sang", protocol), check=True, timeout=60)

    assert (tmp_path / "sang").exists()


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.usefixtures("sane")
def test_no_route_reads_a_pickle(service: Service, tmp_path: Path, kind: str) -> None:
    """What CVE-2025-27520 and CVE-2025-32375 sent to BentoML, to every route of ours and of Bento's own, with and without a key."""
    place = tmp_path / "sang"
    headers = {
        "Content-Type": kind,
        "Bento-Name": "esteira", "Bento-Version": "1", "Runner-Name": "esteira", "Args-Number": "1", "Batch-Size": "-1",
        "Payload-Container": "NdarrayContainer", "Payload-Meta": '{"format": "default"}', "Yatai-Bento-Deployment-Name": "x",
    }  # fmt: skip
    for protocol in (0, 2):
        content = canary(place, protocol)
        if kind.startswith("multipart"):
            part = b'Content-Disposition: form-data; name="rows"; filename="a"\r\nContent-Type: application/vnd.bentoml+pickle'
            content = b"--b\r\n" + part + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
        for route in ROUTES:
            for method, key in (("POST", KEY), ("PUT", KEY), ("POST", OPERATOR), ("POST", None)):
                lengths = {"buffer-lengths": f"{len(content)}"} if protocol else {}
                status, document, _ = service.ask(
                    route, content, method=method, key=key, headers={**headers, **lengths}
                )
                assert 400 <= status < 500, (route, method, document)
    assert not place.exists()


# Bad bodies on the wire


@functools.cache
def bomb(kind: str) -> bytes:
    zeros = b'{"rows": [' + b" " * 50_000_000
    if kind == "gzip":
        return gzip.compress(zeros, 9)
    return zlib.compress(zeros, 9)


BAD = {
    "nothing": (b"", 400),
    "an end that is missing": (b'{"rows": [{"age": 1', 400),
    "two documents": (b'{"rows": [{}]}{"rows": [{}]}', 400),
    "depth of lists": (b'{"rows": [{"age": ' + b"[" * 100_000, 400),
    "depth of closed lists": (b'{"rows": [{"age": ' + b"[" * 40_000 + b"]" * 40_000 + b"}]}", 400),
    "depth of objects": (b'{"rows": [{"age": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}]}", 400),
    "a key twice": (b'{"rows": [{"age": 1, "visits": 2, "age": 3}]}', 400),
    "rows twice": (b'{"rows": [{"age": 1}], "rows": [{"age": 2}]}', 400),
    "a key twice, once escaped": (b'{"rows": [{"age": 1, "\\u0061ge": 2}]}', 400),
    "a number beyond doubles": (b'{"rows": [{"age": 1e400}]}', 400),
    "a number of 5,000 digits": (b'{"rows": [{"age": ' + b"9" * 5000 + b"}]}", 400),
    "a number of 400 digits": (b'{"rows": [{"age": ' + b"9" * 400 + b"}]}", 422),
    "NaN": (b'{"rows": [{"age": NaN}]}', 400),
    "not UTF-8": (b'{"rows": [{"city": "\xc3\x28"}]}', 400),
    "half of a pair": (b'{"rows": [{"city": "\\ud83d"}]}', 400),
    "UTF-16": ('{"rows": [{}]}'.encode("utf-16"), 400),
    "a byte order mark": (b'\xef\xbb\xbf{"rows": [{}]}', 400),
    "a zero byte": (b'{"rows": [{"city": "a\x00b"}]}', 400),
    "a long name": (b'{"rows": [{"' + b"n" * 250_000 + b'": 1}]}', 422),
    "prototype": (b'{"rows": [{"__proto__": {"age": 1}, "constructor": 1}]}', 422),
    "rows in rows": (b'{"rows": [[{"age": 1}]]}', 422),
    "a list": (b"[]", 422),
    "null": (b"null", 422),
    "no rows": (b'{"rows": []}', 422),
    "a row of text": (b'{"rows": ["age"]}', 422),
}  # fmt: skip


@pytest.mark.usefixtures("sane")
@pytest.mark.parametrize(("body", "expected"), BAD.values(), ids=BAD)
def test_a_bad_body_is_refused_in_one_shape_and_its_answer_is_short(
    service: Service, body: bytes, expected: int
) -> None:
    status, document, headers = service.ask("/v1/predict", body)

    assert expected == status, document
    assert {"code", "message", "field", "row", "request_id"} <= set(document["error"])
    assert int(headers["content-length"]) < 20_000
    assert not re.search(r"Traceback|File \"|msgspec|onnxruntime|0x[0-9a-f]{6}", json.dumps(document))


@pytest.mark.parametrize("kind", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-gzip"])
@pytest.mark.usefixtures("sane")
def test_a_compressed_body_is_never_unpacked(service: Service, kind: str) -> None:
    before = megabytes(worker(service))
    body = bomb("gzip" if "gzip" in kind else kind)
    status, document, _ = service.ask("/v1/predict", body, headers={"Content-Encoding": kind})

    assert (415, "encoded") == (status, document["error"]["code"])
    assert megabytes(worker(service)) - before < 25
    with wire(service, predict(b"", b"Transfer-Encoding: gzip").replace(b"Content-Length: 0\r\n", b"")) as caller:
        assert (400, "bad_http") == caller.refusal()


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/csv", "application/xml", "application/x-ndjson", "application/jsonp", "", "json", "a" * 5000]
)  # fmt: skip
def test_another_content_type_is_refused(service: Service, kind: str) -> None:
    status, document, _ = service.ask("/v1/predict", {"rows": [ROW]}, headers={"Content-Type": kind})

    assert (415, "not_json") == (status, document["error"]["code"])


@pytest.mark.usefixtures("sane")
def test_a_fast_body_that_never_ends_is_refused_and_read_no_further(service: Service) -> None:
    before = megabytes(worker(service))
    head = predict(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    sent = 0
    with wire(service, head) as caller:
        with suppress(ConnectionError):
            while sent < 30_000_000:
                caller.send(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
                sent += 0x4000
        if sent < 30_000_000:
            assert b"" == caller.rest() or caller._got.startswith(b"HTTP/1.1 413")
    assert sent < 30_000_000, "the service read on and on"
    assert megabytes(worker(service)) - before < 25


@pytest.mark.usefixtures("sane")
def test_a_body_that_is_announced_too_large_is_not_asked_for(service: Service) -> None:
    lines = (b"Content-Type: application/json", b"Expect: 100-continue")
    request = predict(b"", *lines).replace(b"Content-Length: 0", b"Content-Length: 99999999")
    with wire(service, request) as caller:
        status, _, body = caller.answer()
        assert (413, "body_too_large") == (status, json.loads(body)["error"]["code"])
        assert b"" == caller.rest()


def test_bodies_that_never_end_hold_nobody_else_up(service: Service) -> None:
    """More of them than there are slots: a slow body takes none."""
    trickling = [wire(service, predict(b"x" * 999)[:-900]) for _ in range(5 * (LIMIT + QUEUE))]
    try:
        for _ in range(20):
            assert 200 == service.predict(ROW)[0]
            trickling[0].send(b" ")
    finally:
        for caller in trickling:
            caller.__exit__()
    assert until(lambda: service.predict(ROW)[0] == 200)


# Many at once


def hurl(address: str, body: bytes, requests: int, callers: int) -> list[tuple[int, Mapping[str, str], bytes]]:
    """That many requests by so many callers at once, each on a connection of its own that it keeps; all answers."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(requests):
        left.put(number)
    found: list[tuple[int, Mapping[str, str], bytes]] = []
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def call() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        with suppress(queue.Empty):
            while left.get_nowait() >= 0:
                connection.request("POST", "/v1/predict", body, headers)
                response = connection.getresponse()
                content = response.read()
                found.append((response.status, {n.lower(): v for n, v in response.getheaders()}, content))
        connection.close()

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.usefixtures("sane")
def test_a_storm_of_ten_times_the_limit_gets_answers_or_429_and_nobody_is_lost(service: Service, bundle: Path) -> None:
    rows = [{**ROW, "age": 20 + number / 20} for number in range(1000)]
    callers = 10 * (LIMIT + QUEUE)
    found = hurl(service.address, json.dumps({"rows": rows}).encode(), 5 * callers, callers)

    assert 5 * callers == len(found)
    assert {200, 429} == {status for status, _, _ in found}
    expected = [answer["probabilities"]["yes"] for answer in answers(bundle, rows)]
    for status, headers, content in found:
        document = json.loads(content)
        if status == 429:
            assert "busy" == document["error"]["code"]
            assert int(headers["retry-after"]) >= 1
        else:
            assert expected == pytest.approx([row["probabilities"]["yes"] for row in document["rows"]])


def flat(service: Service, seconds: float) -> None:
    """Load at the limit for that long; memory at its end is what it was after the first third."""
    pid = worker(service)
    bodies = [
        json.dumps({"rows": [{**ROW, "age": 20 + number}] * size}).encode() for number, size in ((1, 1), (2, 900))
    ]
    sizes = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(sizes) < 9:
        for body, requests in zip(bodies, (100, 6), strict=True):
            assert {200} >= {status for status, _, _ in hurl(service.address, body, requests, LIMIT)} - {429}
        sizes.append(megabytes(pid))
    third = len(sizes) // 3
    assert max(sizes[-third:]) - max(sizes[: 2 * third]) < 5, sizes
    assert descriptors(pid) < 100


@pytest.mark.usefixtures("sane")
def test_memory_is_flat_at_the_limit(service: Service) -> None:
    flat(service, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("sane")
def test_memory_is_flat_after_minutes_at_the_limit(service: Service) -> None:
    flat(service, 180)


@pytest.mark.usefixtures("sane")
def test_half_open_connections_lock_nobody_out_and_leave_nothing(service: Service) -> None:
    """More of them than the service takes: some said nothing, some half a head, some vanished without a word."""
    pid = worker(service)
    before = descriptors(pid)
    held = []
    for number in range(260):
        with suppress(ConnectionError):
            held.append(wire(service, *([b"POST /v1/predict HTTP/1.1\r\nHost: a\r\n"] if number % 2 else [])))
    assert until(lambda: served(service), 20), "no caller that asks gets through"
    for number, caller in enumerate(held):
        if number % 3 == 0:  # a reset instead of an end
            caller._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        caller.__exit__()
    assert until(lambda: descriptors(pid) <= before + 5, 20)


def served(service: Service) -> bool:
    try:
        return service.predict(ROW)[0] == 200
    except OSError:
        return False


# Keys


def test_every_wrong_key_is_compared_whole_and_with_every_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant time is hmac.compare_digest's; what can be seen here is that nothing else decides, and nothing ends early."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("hmac.compare_digest", spy)
    keys = Keys(b"caller-key", b"operator-key")
    cases = {
        b"caller-key": "caller", b"operator-key": "operator", b"c": None, b"caller-kez": None, b"xaller-key": None,
        b"caller-key2": None, b"": None, b"operator-kez": None, b"\xff\x00": None, b"a" * 8000: None,
    }  # fmt: skip
    for given_, role in cases.items():
        compared.clear()
        assert role == keys.role(b"Bearer " + given_)
        if given_:
            assert {b"caller-key", b"operator-key"} == {right for pair in compared for right in pair} - {given_} | (
                {given_} & {b"caller-key", b"operator-key"}
            )
    for header in (
        None,
        b"",
        b"Bearer",
        b"Basic caller-key",
        b"caller-key",
        b"Bearer caller-key extra",
        b"Token caller-key",
    ):
        assert keys.role(header) is None
    assert "caller" == keys.role(b"bearer caller-key")
    assert "caller-key" not in repr(keys)


def test_a_header_that_decides_and_stands_twice_is_refused(service: Service) -> None:
    """A proxy may have looked at the first and the service at the last."""
    body = json.dumps({"rows": [ROW]}).encode()
    for line in (
        b"Authorization: Bearer " + KEY.encode(),
        b"Content-Type: application/json",
        b"X-Request-ID: one",
    ):
        twice = predict(body, b"Content-Type: application/json", b"X-Request-ID: one", line)
        with wire(service, twice) as caller:
            status, _, answer = caller.answer()
        assert (400, "duplicate_header") == (status, json.loads(answer)["error"]["code"]), line
    with wire(service, predict(body, b"Content-Type: application/json", b"Accept: a/b", b"Accept: */*")) as caller:
        caller.said()


# What comes back, and what stays behind


@pytest.mark.parametrize(
    "given_",
    [b"a b", b"a\tb", b"a;b", b"\xe9", b"x" * 129, b"%0d%0aSet-Cookie:%20a=b", b'"quoted"', b"<script>", b"${jndi:ldap://a/b}", b"../../a"],
    ids=lambda given_: given_[:20].decode("latin-1"),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/predict", "/openapi.json", "/nowhere"])
def test_a_request_id_brings_nothing_into_the_answers_headers(service: Service, given_: bytes, path: str) -> None:
    request = get(path.encode(), b"Authorization: Bearer " + KEY.encode(), b"X-Request-ID: " + given_)
    with wire(service, request) as caller:
        _, headers, body = caller.answer()

    known = {
        "date", "content-type", "content-length", "x-request-id", "cache-control", "allow", "server", "connection",
        "x-content-type-options", "etag", "vary", "retry-after",
    }  # fmt: skip
    assert set(headers) <= known
    if "x-request-id" in headers:
        assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert given_ not in body or given_ in (b"a b",)


@pytest.mark.parametrize(
    "path", ["/static_content/../../etc/passwd", "/static_content/%2e%2e/%2e%2e/etc/passwd", "/static_content/..%2f..%2f..%2fetc/passwd",
             "//etc/passwd", "/v1/..%2f..%2fetc%2fpasswd/model", "/v1/models/..%2f..%2fetc/batch-predict", "/%00", "/v1/%ff%fe/predict"]
)  # fmt: skip
def test_a_path_leads_to_no_file(service: Service, path: str) -> None:
    for key in (KEY, None):
        request = get(path.encode(), *([b"Authorization: Bearer " + key.encode()] if key else []), b"Connection: close")
        with wire(service, request) as caller:
            whole = caller.rest()
        assert re.match(rb"HTTP/1\.1 4\d\d ", whole), whole[:200]
        assert b"root:" not in whole


def test_the_logs_of_a_session_hold_neither_key_nor_row(service: Service) -> None:
    """Good and bad requests of every kind, with words that are found again by grep; the access log is on."""
    row = {**ROW, "age": 47.13579, "note": CELL, "city": CELL}
    service.predict(row)
    service.predict({**row, "age": CELL, CELL: 1})
    service.predict(row, {"age": [CELL], "visits": {CELL: 1e300}})
    service.ask("/v1/predict", json.dumps({"rows": [row]}).encode()[:-3])
    service.ask("/v1/predict", f'{{"rows": [{{"{CELL}": 1, "{CELL}": 2}}]}}'.encode())
    service.ask("/v1/predict", CELL.encode(), headers={"Content-Type": CELL})
    service.ask("/v1/predict", {"rows": [row]}, key=WRONG_KEY)
    service.ask(f"/v1/{CELL}/predict", {"rows": [row]}, key=None)
    service.ask(f"/v1/predict?api_key={QUERY}&version={QUERY}", {"rows": [row]})
    service.ask(f"/metrics?token={QUERY}")
    service.ask("/docs.json", headers={"X-Request-ID": CELL + " " + CELL, "Cookie": f"session={CELL}"})
    service.ask("/v1/predict?version=7", {"rows": [row]}, key=OPERATOR)
    with wire(service, predict(CELL.encode()).replace(b"HTTP/1.1", b"HTTP/7.7")) as caller:
        caller.refusal()
    with wire(service, post(b"", b"X: " + (CELL.encode() * 4000))) as caller:
        caller.refusal()
    assert 200 == service.predict(row)[0]
    time.sleep(0.3)  # what a thread of the log still holds

    log = service.log.read_text(encoding="utf-8", errors="replace")
    assert '"route"' in log, "the access log is on"
    found = [
        word for word in (KEY, OPERATOR, WRONG_KEY, CELL, QUERY, "Porto", "47.13579", "call before noon") if word in log
    ]
    assert [] == [(word, re.findall(rf".*{re.escape(word)}.*", log)[:3]) for word in found]


class Breaks:
    """Fails as libraries do: with the cell in the message."""

    def check(self, rows: Any) -> list[Any]:
        return []

    def answer(self, rows: Any) -> list[Any]:
        try:
            float(CELL)
        except ValueError as error:
            raise RuntimeError(f"{CELL} from postgresql://user:{WRONG_KEY}@host") from error
        return []


def test_an_exception_that_holds_a_cell_or_a_key_is_logged_without_its_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells type and place of it, and of what caused it."""

    def breaks(folder: Path, deployment: Deployment, device: str) -> Predictor:
        return Predictor(deployment, Breaks(), {"schema": {"columns": []}}, "cpu")

    monkeypatch.setattr("serving.predictor.load", breaks)
    with caplog.at_level(logging.DEBUG):
        status, document, _ = ask(make_api(FakeSource(LINE)), PREDICT, json.dumps({"rows": [{"a": CELL}]}).encode())

    assert (500, "internal") == (status, document["error"]["code"])
    said = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert "RuntimeError" in said
    assert "ValueError" in said
    assert CELL not in said + json.dumps(document)
    assert WRONG_KEY not in said + json.dumps(document)


# The reader of bodies, by properties


def refused(body: bytes) -> str | None:
    """The code that the body is refused with; None when it is read."""
    try:
        parse(body)
    except BadBody as error:
        return error.code
    return None


JSON: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.lists(JSON, max_size=4),
        st.dictionaries(st.text(), JSON, max_size=4),
    )
)


@settings(max_examples=200, deadline=None)
@given(value=JSON, escaped=st.booleans())
def test_any_json_reads_as_json_reads_it(value: Any, escaped: bool) -> None:
    try:
        body = json.dumps(value, ensure_ascii=escaped).encode()
    except UnicodeEncodeError:  # half of a pair
        return
    if escaped and "\\ud" in body.decode() and refused(body):  # half of a pair, or none
        return
    assert json.loads(body) == parse(body)


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.text(alphabet='a:"\\{}[],é', max_size=4), min_size=1, max_size=6, unique=True), data=st.data())
def test_a_key_that_stands_twice_is_found_wherever_it_is(keys: list[str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(keys))
    pairs = data.draw(st.permutations([*keys, twice]))
    inner = "{" + ", ".join(f"{json.dumps(key)}: 1" for key in pairs) + "}"
    for body in (inner, f'{{"rows": [{{"b:c": ":", "d": {inner}}}]}}', f"[[{inner}]]"):
        with pytest.raises(BadBody) as caught:
            parse(body.encode())
        assert "duplicate_key" == caught.value.code


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=200) | st.text(alphabet='{}[]":,0123456789.eE-+ntf\\u\x00 ', max_size=80).map(str.encode)
)
@example(body=b'{"a": ' + b"9" * 5000 + b', "b": "x:y"}')
@example(body=b'{"a": ' + b"9" * 4301 + b"}")
@example(body=b'{"a": -' + b"9" * 4300 + b', "a": 1}')
def test_no_bytes_break_the_reader(body: bytes) -> None:
    assert refused(body) in (None, "bad_json", "nan_token", "duplicate_key")


@pytest.mark.parametrize("wrap", ['{"a":%s}', "[%s]", '[{"a": "x:y", "b":%s}]'])
def test_depth_is_refused_whoever_of_the_two_readers_meets_it_first(wrap: str) -> None:
    before, after = wrap.split("%s")
    for depth in range(1, 1300, 7):
        body = (before * depth + '"c:d"' + after * depth).encode()
        found = refused(body)
        assert found is None if depth <= 50 else found in (None, "bad_json")


def test_a_key_twice_among_very_many_is_found_in_one_pass() -> None:
    """By the square of their number this would take hours."""
    body = b"{" + b",".join(b'"k%d":1' % number for number in range(400_000)) + b',"k399999":2}'

    with pytest.raises(BadBody, match="stands twice"):
        parse(body)


ODD = (
    10**309, -(10**309), 2**63, 2**64, 1e308, -1e308, 5e-324, "9" * 400, "1e999", "-inf", "nan", "NaN", "٣", "2024-02-30",
    "0000-00-00", "9999-12-31T23:59:60Z", "\ud800", "\x00",
)  # fmt: skip
CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from(ODD),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)


@pytest.fixture(scope="module")
def answered(bundle: Path) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """Answers of the bundle for rows that its contract finds no error in; [] for others."""
    predictor = load(bundle, Deployment("", None, ""))

    def call(rows: list[dict[str, Any]]) -> list[Any]:
        findings = predictor.check(rows)
        if any(finding.severity == "error" for finding in findings):
            return []
        return predictor.answer(rows)

    return call


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from([*ROW, "buys", "else"]), CELLS, max_size=4))
def test_no_cell_breaks_a_model(answered: Callable[[list[dict[str, Any]]], list[Any]], changes: dict[str, Any]) -> None:
    """Whatever JSON a cell is, the row is refused or answered with a probability; nothing else comes out."""
    for answer in answered([{**ROW, **changes}, OTHER]):
        assert 0 <= answer["confidence"] <= 1
        json.dumps(answer, allow_nan=False)
