"""A service that is told to end still answers while load balancers hear of it, and ends with 0 when all are answered."""

import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from serving.drain import SAME
from serving.process import _Child, _Signals
from tests.crowd import Crowd
from tests.serving_fakes import LINE, until
from tests.serving_process import KEY, ROOT, Service, alive
from tests.small_bundle import ROW, make_bundle
from tests.test_health import free_port

# A worker in little


SERVER = """
import asyncio, sys, uvicorn
from esteira.settings import Settings
from serving import drain

class App:
    in_flight = 0
    draining = False

    def drain(self):
        self.draining = True

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    drain.watch(self, Settings.model_validate({"drain_seconds": float(sys.argv[1])}))
                    await send({"type": "lifespan.startup.complete"})
                else:
                    print("stopped", flush=True)
                    return await send({"type": "lifespan.shutdown.complete"})
        self.in_flight += 1
        if scope["path"] == "/slow":
            print("slow", flush=True)
            await asyncio.sleep(float(sys.argv[2]))
        body = b"draining" if self.draining else b"serving"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self.in_flight -= 1

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

uvicorn.Server(uvicorn.Config(App(), port=0, log_config=None, loop=sys.argv[3])).run()
print("clean", flush=True)
"""


class Worker:
    """A worker in little: uvicorn, and an application that is drained."""

    def __init__(self, seconds: float, *, slow: float = 0, loop: str = "uvloop", env: Mapping[str, str] | None = None):
        source = SERVER.replace("uvicorn.Server(uvicorn", "Server(uvicorn")
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, str(seconds), str(slow), loop],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(env or {})},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.says = self.process.stdout
        self.port = int(self.says.readline())

    def ask(self, path: str = "/") -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def refuses(self) -> bool:
        try:
            self.ask()
        except OSError:
            return True
        return False

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said."""
        code = self.process.wait(30)
        said = self.says.read()
        self.says.close()
        return code, said

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.says.close()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_that_is_told_to_end_goes_on_taking_requests_then_ends_with_0(loop: str) -> None:
    """The seam to uvicorn: its handler is taken over, its sockets closed late, its own end is a clean one."""
    with Worker(1.0, loop=loop) as worker:
        assert "serving" == worker.ask()
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGTERM)  # a service manager's and the master's: one signal

        assert until(lambda: worker.ask() == "draining")
        assert until(worker.refuses)
        assert (0, "stopped\nclean\n") == worker.end()


def test_a_request_in_flight_is_answered_after_the_sockets_are_closed() -> None:
    with Worker(0.0, slow=1.5) as worker:
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(worker.ask("/slow")))
        asking.start()
        assert "slow\n" == worker.says.readline()
        worker.process.send_signal(signal.SIGTERM)
        assert until(worker.refuses)
        asking.join()

        assert ["draining"] == answers
        assert (0, "stopped\nclean\n") == worker.end()


def test_a_second_signal_ends_now() -> None:
    with Worker(600.0) as worker:
        worker.process.send_signal(signal.SIGTERM)
        assert until(lambda: worker.ask() == "draining")
        time.sleep(1.2)  # later than what counts as the same signal
        worker.process.send_signal(signal.SIGTERM)

        assert (143, "") == worker.end()


def test_whoever_is_in_a_hurry_waits_for_no_load_balancer(tmp_path: Path) -> None:
    (tmp_path / "hurry").touch()
    with Worker(600.0, env={"_SERVING_STATE": str(tmp_path / "state.json")}) as worker:
        worker.process.send_signal(signal.SIGTERM)

        assert (0, "stopped\nclean\n") == worker.end()


# The process that answers for it


class Master(_Child):
    """Stands for Bento's master: ends by itself, a while after it was told to."""

    def __init__(self) -> None:
        code = (
            "import signal, sys, time; "
            "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0))); "
            "print('up', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        with self._process.stdout as says:
            assert "up\n" == says.readline()


def signalled(signals: _Signals) -> None:
    """Send this process SIGTERM; it has come when this is over."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert select.select([signals.reader], [], [], 10)[0]


@pytest.mark.parametrize(("same", "code"), [(SAME, 0), (0.0, -signal.SIGKILL)], ids=["at once", "later"])
def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_it_now(
    monkeypatch: pytest.MonkeyPatch, same: float, code: int
) -> None:
    """A service manager signals a whole group, and the one who started it passes the signal on."""
    monkeypatch.setattr("serving.process.SAME", same)
    master = Master()
    with _Signals() as signals:
        signalled(signals)
        assert signal.SIGTERM == signals.read(), "the one that it stops for"
        signalled(signals)
        master.stop(30, signals)

    assert code == master._process.returncode


# The real server


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("life") / "bundle"
    make_bundle(folder)
    return folder


def half_sent(service: Service) -> tuple[http.client.HTTPConnection, bytes]:
    """A connection with a prediction of which half the body was sent, and the other half."""
    body = json.dumps({"rows": [ROW]}).encode()
    connection = http.client.HTTPConnection(service.address, timeout=30)
    connection.putrequest("POST", "/v1/predict")
    for name, value in (("Authorization", f"Bearer {KEY}"), ("Content-Length", str(len(body)))):
        connection.putheader(name, value)
    connection.putheader("Content-Type", "application/json")
    connection.endheaders(body[:10])
    return connection, body[10:]


def takes(service: Service) -> bool:
    """Whether a new connection gets an answer. The master keeps the socket open until its workers ended, so none is refused."""
    connection = http.client.HTTPConnection(service.address, timeout=1)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.slow
def test_sigterm_drains_the_service(bundle: Path, tmp_path: Path) -> None:
    """Not ready at once; in flight, kept alive and new all answered, each connection closed with its answer; then 0."""
    env = {"ESTEIRA_HOME": str(tmp_path), "ESTEIRA_DRAIN_SECONDS": "3"}
    service = Service(["--bundle", str(bundle), "--port", "0"], env=env, log=tmp_path / "log")
    try:
        service.wait_ready()
        kept = http.client.HTTPConnection(service.address, timeout=30)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        kept.request("POST", "/v1/predict", json.dumps({"rows": [ROW]}), headers)
        response = kept.getresponse()
        assert (200, None) == (response.status, response.getheader("connection"))
        response.read()
        early, rest = half_sent(service)
        late, other_rest = half_sent(service)

        service.process.send_signal(signal.SIGTERM)
        assert until(lambda: service.ask("/readyz", key=None)[0] == 503)
        assert 200 == service.ask("/livez", key=None)[0]
        kept.request("POST", "/v1/predict", json.dumps({"rows": [ROW]}), headers)
        response = kept.getresponse()
        assert (200, "close") == (response.status, response.getheader("connection"))
        response.read()
        assert kept.sock is None, "http.client closes what the server closes"
        early.send(rest)
        assert 200 == early.getresponse().status
        status, document, found = service.ask("/v1/predict", {"rows": [ROW]})
        assert (200, "close") == (status, found["connection"])
        assert LINE == document["line"]

        assert until(lambda: not takes(service), 20)
        late.send(other_rest)
        assert 200 == late.getresponse().status
        assert 0 == service.process.wait(30)
        early.close()
        late.close()
    finally:
        service.stop(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["Ctrl-C", "twice"])
def test_a_person_or_a_second_signal_waits_for_no_load_balancer(
    bundle: Path, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    env = {"ESTEIRA_HOME": str(tmp_path), "ESTEIRA_DRAIN_SECONDS": "600"}
    service = Service(["--bundle", str(bundle), "--port", "0"], env=env, log=tmp_path / "log")
    try:
        service.wait_ready()
        tree = service.tree()
        for number in numbers:
            service.process.send_signal(number)
            time.sleep(1.5)
        assert 0 == service.process.wait(30)
        assert until(lambda: not alive(tree), 20)
    finally:
        service.stop(signal.SIGKILL)


HAPROXY = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind 127.0.0.1:{front}
    default_backend all
backend all
    option httpchk
    http-check send meth GET uri /readyz
    default-server inter 200ms fall 1 rise 1
    server first 127.0.0.1:{first} check
    server second 127.0.0.1:{second} check
"""


@pytest.mark.slow
def test_a_rolling_restart_behind_a_load_balancer_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    """Two services behind HAProxy, which asks /readyz; each is ended and started again under load."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("needs haproxy on PATH (Debian: haproxy)")
    front, *ports = (free_port() for _ in range(3))
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(front=front, first=ports[0], second=ports[1]))
    env = {"ESTEIRA_HOME": str(tmp_path), "ESTEIRA_DRAIN_SECONDS": "2"}

    def service(port: int) -> Service:
        arguments = ["--bundle", str(bundle), "--port", str(port)]
        return Service(arguments, env=env, log=tmp_path / f"log{port}").wait_ready(120)

    running = [service(port) for port in ports]
    balancer = subprocess.Popen([program, "-db", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    try:
        through = f"127.0.0.1:{front}"
        running[0].address, own = through, running[0].address

        def up() -> bool:
            try:
                return running[0].predict(ROW)[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        assert until(up)
        running[0].address = own
        with Crowd(through, 8) as crowd:
            for place, port in enumerate(ports):
                count = len(crowd.seen)
                assert until(lambda: len(crowd.seen) > count + 100)  # noqa: B023 - asked within this turn
                assert 0 == running[place].stop()
                running[place] = service(port)
            count = len(crowd.seen)
            assert until(lambda: len(crowd.seen) > count + 100)

        assert [] == crowd.lost
        assert {200} == {status for status, *_ in crowd.seen}
    finally:
        balancer.terminate()
        balancer.wait(10)
        for one in running:
            one.stop()
