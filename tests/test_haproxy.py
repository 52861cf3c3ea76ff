"""The proxy that ships: TLS 1.3 only, the prefix stripped, 100 MB and no more, and its own errors in the service's form."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from esteira.client import CallRefused, Client, ServiceAway
from tests.serving_process import KEY, ROOT, Service
from tests.small_bundle import ROW, make_bundle

FILE = ROOT / "manifests" / "haproxy" / "haproxy.cfg"
LIMIT = 100_000_000

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None or shutil.which("openssl") is None, reason="needs haproxy and openssl on PATH"
)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


class Behind:
    """Stands for the service: remembers what reaches it, and answers 200 to all, or 503 to /readyz when told to drain."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Mapping[str, str], bytes]] = []
        self.ready = True
        behind = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/readyz":
                    self.reply(200 if behind.ready else 503)
                    return
                if self.path == "/slow":
                    threading.Event().wait(1.0)
                self.keep(b"")

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                # A body of the full size is announced and never sent.
                body = self.rfile.read(length) if length < 1000 else b""
                self.close_connection = length >= 1000
                self.keep(body)

            def keep(self, body: bytes) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                behind.seen.append((self.command, self.path, headers, body))
                self.reply(200)

            def reply(self, status: int) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


class Proxy:
    """HAProxy with the file as it is; its addresses, service and certificate come from the environment."""

    def __init__(self, service: str, certificate: Path, log: Path, *, master: bool = False) -> None:
        self.http, self.https = free_port(), free_port()
        self.certificate = certificate
        environment = {
            **os.environ,
            "ESTEIRA_PROXY_SERVICE": service,
            "ESTEIRA_PROXY_CERTIFICATE": str(certificate),
            "ESTEIRA_PROXY_HTTP": f"127.0.0.1:{self.http}",
            "ESTEIRA_PROXY_HTTPS": f"127.0.0.1:{self.https}",
        }
        with log.open("wb") as said:
            # -db: in the foreground, one process. -dW: a warning is an error.
            self.process = subprocess.Popen(
                ["haproxy", *(["-W"] if master else []), "-db", "-dW", "-f", str(FILE)],
                env=environment,
                stdout=said,
                stderr=said,
            )
        end = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.https), 1):
                return
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def context(self, most: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.maximum_version = most
        return context

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPSConnection("localhost", self.https, timeout=20, context=self.context())
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
            return response.status, content, {name.lower(): value for name, value in response.getheaders()}


def make_certificate(folder: Path) -> Path:
    """A certificate of `localhost` and its key in one file, signed by itself, good for a day."""
    key, certificate, together = folder / "key.pem", folder / "certificate.pem", folder / "esteira.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    together.write_bytes(certificate.read_bytes() + key.read_bytes())
    return together


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    service = Behind()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def proxy(behind: Behind, certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = Proxy(behind.address, certificate, tmp_path_factory.mktemp("haproxy") / "log")
    yield running
    running.stop()


def error_of(content: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(content)["error"]
    assert {"code", "message", "field", "row", "request_id"} == set(error)
    return error


def test_haproxy_takes_the_file_without_a_warning(certificate: Path) -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-dW", "-f", str(FILE)],
        env={**os.environ, "ESTEIRA_PROXY_CERTIFICATE": str(certificate)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout + done.stderr


def test_tls_1_3_is_spoken_and_tls_1_2_is_refused(proxy: Proxy) -> None:
    with (
        socket.create_connection(("127.0.0.1", proxy.https), 5) as plain,
        proxy.context().wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert "TLSv1.3" == secure.version()
    with (
        socket.create_connection(("127.0.0.1", proxy.https), 5) as plain,
        pytest.raises(ssl.SSLError) as refused,
    ):
        proxy.context(ssl.TLSVersion.TLSv1_2).wrap_socket(plain, server_hostname="localhost")
    assert "version" in str(refused.value).lower(), "refused for its version, not for its certificate"


def test_without_tls_there_is_only_a_redirect_that_keeps_method_and_body(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.http, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/api/ml/v1/predict?version=3", b"{}", {"Host": "ml.example.org"})
        response = connection.getresponse()
        response.read()

    assert 308 == response.status
    assert "https://ml.example.org/api/ml/v1/predict?version=3" == response.getheader("location")


def test_the_prefix_is_stripped_and_the_rest_of_the_request_arrives_as_it_was(proxy: Proxy, behind: Behind) -> None:
    sent = {"Authorization": "Bearer secret", "Content-Type": "application/json", "X-Request-Id": "order-17"}

    assert 200 == proxy.ask("/api/ml/v1/tabular@shop/predict?version=3", b'{"rows": []}', sent)[0]

    method, path, headers, body = behind.seen[-1]
    assert ("POST", "/v1/tabular@shop/predict?version=3", b'{"rows": []}') == (method, path, body)
    assert sent.items() <= {name.title(): value for name, value in headers.items()}.items()


def test_forwarding_headers_are_the_proxys_own_whatever_the_caller_made_up(proxy: Proxy, behind: Behind) -> None:
    forged = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "http",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
    }

    proxy.ask("/api/ml/metrics", headers=forged)

    headers = behind.seen[-1][2]
    assert {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": f"localhost:{proxy.https}",
        "x-forwarded-port": str(proxy.https),
        "x-forwarded-prefix": "/api/ml",
        "x-real-ip": "127.0.0.1",
    }.items() <= headers.items()
    assert "forwarded" not in headers


@pytest.mark.parametrize("given", ['a"b', "a b", "x" * 129, "a,b"])
def test_a_request_id_that_is_not_sane_is_replaced(proxy: Proxy, behind: Behind, given: str) -> None:
    proxy.ask("/api/ml/metrics", headers={"X-Request-Id": given})
    made = behind.seen[-1][2]["x-request-id"]
    _, content, headers = proxy.ask("/elsewhere", headers={"X-Request-Id": given})

    assert given != made
    assert 36 == len(made)
    assert headers["x-request-id"] == error_of(content)["request_id"] != given


@pytest.mark.parametrize("path", ["/", "/v1/predict", "/api/ml", "/api/mlx/v1/predict"])
def test_other_paths_end_here(proxy: Proxy, behind: Behind, path: str) -> None:
    before = len(behind.seen)

    status, content, headers = proxy.ask(path, headers={"X-Request-Id": "order-17"})

    assert (404, "no_route", "order-17") == (status, error_of(content)["code"], error_of(content)["request_id"])
    assert "max-age=31536000" == headers["strict-transport-security"]
    assert before == len(behind.seen)


def test_an_upload_of_101_mb_gets_413_here_and_one_of_100_mb_passes(proxy: Proxy, behind: Behind) -> None:
    def announce(length: int) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("localhost", proxy.https, timeout=20, context=proxy.context())
        with contextlib.closing(connection):
            connection.putrequest("POST", "/api/ml/v1/predict")
            connection.putheader("Content-Length", str(length))
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read()

    before = len(behind.seen)
    status, content = announce(101_000_000)
    assert (413, "body_too_large") == (status, error_of(content)["code"])
    assert 413 == announce(LIMIT + 1)[0]
    assert before == len(behind.seen), "nothing of it reached the service"

    assert 200 == announce(LIMIT)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["--http1.1"], ["--http2"], ["--http1.1", "-H", "Expect:"]], ids=["1.1", "2", "all-at-once"]
)
def test_a_client_that_sends_all_101_mb_sees_the_413_and_not_a_broken_pipe(
    proxy: Proxy, certificate: Path, tmp_path: Path, how: list[str]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl on PATH")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(101_000_000)

    done = subprocess.run(
        ["curl", "-sS", *how, "--cacert", str(certificate), "--data-binary", f"@{large}", "-w", "\n%{http_code}",
         f"https://localhost:{proxy.https}/api/ml/upload/datasets"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    content, _, status = done.stdout.rpartition("\n")
    assert "413" == status, done.stderr
    assert "body_too_large" == error_of(content.encode())["code"]


def test_a_service_that_drains_is_left_alone_within_seconds(certificate: Path, tmp_path: Path) -> None:
    alone = Behind()
    proxy = Proxy(alone.address, certificate, tmp_path / "log")
    try:
        assert 200 == proxy.ask("/api/ml/v1/x")[0]
        alone.ready = False
        end = time.monotonic() + 10
        while proxy.ask("/api/ml/v1/x")[0] == 200 and time.monotonic() < end:
            time.sleep(0.1)

        status, content, headers = proxy.ask("/api/ml/v1/x")
        assert (503, "not_ready", "1") == (status, error_of(content)["code"], headers["retry-after"])

        client = Client(f"https://localhost:{proxy.https}/api/ml", KEY, certificates=str(certificate), retries=0)
        with client, pytest.raises(ServiceAway) as away:
            client.predict([{"a": 1}])
        assert ("not_ready", 503) == (away.value.code, away.value.status)

        alone.ready = True
        end = time.monotonic() + 10
        while proxy.ask("/api/ml/v1/x")[0] != 200:
            assert time.monotonic() < end, "it is asked again once it is ready"
            time.sleep(0.1)
    finally:
        proxy.stop()
        alone.stop()


def test_a_new_certificate_is_taken_while_requests_in_flight_are_answered(behind: Behind, tmp_path: Path) -> None:
    """As docs/serving.md says: the master process, SIGUSR2."""

    def serial(proxy: Proxy) -> str:
        with (
            socket.create_connection(("127.0.0.1", proxy.https), 5) as plain,
            proxy.context().wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return str((secure.getpeercert() or {})["serialNumber"])

    proxy = Proxy(behind.address, make_certificate(tmp_path), tmp_path / "log", master=True)
    answered: list[int] = []
    slow = threading.Thread(target=lambda: answered.append(proxy.ask("/api/ml/slow")[0]))
    try:
        before = serial(proxy)
        slow.start()
        time.sleep(0.2)
        make_certificate(tmp_path)
        proxy.process.send_signal(signal.SIGUSR2)

        after, end = before, time.monotonic() + 10
        while after == before and time.monotonic() < end:
            # The old certificate is in the file no more, so a connection to the old process is not trusted.
            with contextlib.suppress(ssl.SSLError):
                after = serial(proxy)
        assert before != after
        slow.join(10)
        assert [200] == answered
    finally:
        proxy.stop()


def test_the_client_refuses_a_certificate_that_nobody_vouches_for_and_a_redirect(proxy: Proxy) -> None:
    with Client(f"https://localhost:{proxy.https}/api/ml", KEY) as client, pytest.raises(ServiceAway) as untrusted:
        client.predict([{"a": 1}])
    assert "tls" == untrusted.value.code

    with Client(f"http://localhost:{proxy.http}/api/ml", KEY) as client, pytest.raises(CallRefused) as redirected:
        client.predict([{"a": 1}])
    assert "redirected" == redirected.value.code


@pytest.mark.slow
def test_the_real_service_answers_through_the_proxy(certificate: Path, tmp_path: Path) -> None:
    """K-109 in part: /api/ml/health answers 200 through the proxy; uploads of the other hosts are not built yet."""
    bundle_id = make_bundle(tmp_path / "bundle")
    service = Service(
        ["--bundle", str(tmp_path / "bundle"), "--port", "0"],
        env={"ESTEIRA_HOME": str(tmp_path / "home")},
        log=tmp_path / "log",
    )
    try:
        service.wait_ready()
        proxy = Proxy(service.address, certificate, tmp_path / "proxy.log")
        try:
            assert (200, b"") == proxy.ask("/api/ml/readyz")[:2]
            assert 200 == proxy.ask("/api/ml/health", headers={"Authorization": f"Bearer {KEY}"})[0]
            assert 401 == proxy.ask("/api/ml/health")[0]
            with Client(f"https://localhost:{proxy.https}/api/ml", KEY, certificates=str(certificate)) as client:
                assert client.ready()
                assert bundle_id == client.predict([ROW]).bundle_id
                assert "number" == client.model()["schema"]["columns"][0]["kind"]
        finally:
            proxy.stop()
    finally:
        service.stop()
