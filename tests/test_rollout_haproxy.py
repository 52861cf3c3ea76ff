"""Two services behind HAProxy's weights: whole percents exactly, steps that never overshoot, and the real proxy with two real Bentos."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import ConfigError, OutsideError
from esteira.registry import Registry
from esteira.rollout import split as splits
from esteira.rollout.router import bucket, to_candidate
from esteira.rollout.split import Split
from esteira.rollout.state import Side
from esteira.rollout.targets import make
from esteira.rollout.targets.haproxy import MOST, NEAR, HAProxy, Server, Weights, order, servers, weights
from esteira.settings import load_settings
from esteira.store.rollouts import Rollouts
from tests.serving_process import KEY, ROOT, Service, descendants
from tests.small_bundle import ROW, make_bundle
from tests.test_haproxy import Behind, free_port, make_certificate
from tests.test_split_served import LINE, home, made

__all__ = ["home", "made"]

FILES = [ROOT / "manifests" / "haproxy" / name for name in ("haproxy.cfg", "rollout.cfg")]
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None or shutil.which("openssl") is None, reason="needs haproxy and openssl on PATH"
)


def split(percent: float) -> Split:
    return Split("test-1", "salt", percent, 0, Side(1, "a" * 64), Side(2, "b" * 64))


# Weights: values in, values out


@pytest.mark.parametrize("percent", range(101))
def test_a_whole_percent_is_expressed_exactly(percent: int) -> None:
    pair = weights(percent)

    assert percent == pair.percent
    assert 100 == pair.champion + pair.challenger


@given(st.floats(0.4, 99.6))
def test_any_percent_between_is_met_within_a_tenth_of_a_point_and_is_neither_none_nor_all(percent: float) -> None:
    pair = weights(percent)

    assert abs(pair.percent - percent) <= NEAR
    assert 1 <= pair.champion <= MOST
    assert 1 <= pair.challenger <= MOST


@pytest.mark.parametrize("percent", [-1, 100.5, 0.1, 99.95, float("nan"), float("inf")])
def test_a_percent_that_no_weights_express_is_refused(percent: float) -> None:
    with pytest.raises(ConfigError) as refused:
        weights(percent)
    assert "bad_percent" == refused.value.code


pairs = st.builds(Weights, st.integers(0, MOST), st.integers(0, MOST)).filter(
    lambda pair: pair.champion + pair.challenger
)


@given(pairs, pairs)
def test_on_the_way_somebody_always_answers_and_the_steps_end_where_they_should(now: Weights, wanted: Weights) -> None:
    standing = {"champion": now.champion, "challenger": now.challenger}
    steps = order(now, wanted)

    for server, weight in steps:
        standing[server] = weight
        assert sum(standing.values()) > 0
    assert {"champion": wanted.champion, "challenger": wanted.challenger} == standing
    assert len(steps) == len({server for server, _ in steps}) <= 2


@given(st.integers(0, 100), st.integers(0, 100))
def test_between_two_whole_percents_the_share_never_leaves_them(before: int, after: int) -> None:
    now, wanted = weights(before), weights(after)
    standing = {"champion": now.champion, "challenger": now.challenger}
    for server, weight in order(now, wanted):
        standing[server] = weight
        share = 100 * standing["challenger"] / sum(standing.values())
        assert min(before, after) <= share <= max(before, after)


def test_the_state_of_servers_is_read_by_its_headings() -> None:
    text = (
        "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight\n"
        "3 rollout 1 champion 127.0.0.1 2 0 90 100\n3 rollout 2 challenger 127.0.0.1 0 0 10 0\n\n"
    )

    found = servers(text)

    assert {"champion": Server(90, 2, 0), "challenger": Server(10, 0, 0)} == found
    assert (True, False) == (found["champion"].up, found["challenger"].up)
    assert not replace(found["champion"], administration=8).up


@pytest.mark.parametrize(
    "text", ["", "Can't find backend.\n", "2\n# srv_name\n", "1\n# srv_name srv_uweight\nchampion 9\n"]
)
def test_an_answer_of_another_kind_is_no_state(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        servers(text)


# The setting


def target(text: str) -> Any:
    return make(load_settings({"ESTEIRA_TARGET": text}, None), "tabular@shop-buys")


def test_the_setting_names_the_target() -> None:
    assert "in-process" == make(load_settings({}, None), "tabular").name
    found = target("haproxy:/run/x.sock#rollout")
    assert ("haproxy", "/run/x.sock", "rollout") == (found.name, found._socket, found._backend)
    assert "of-tabular-shop-buys" == target("haproxy:127.0.0.1:9999#of-{line}")._backend
    assert ("gateway", "ns", "esteira-tabular-shop-buys") == (
        (found := target("gateway:ns/esteira-{line}")).name,
        found._namespace,
        found._route,
    )


@pytest.mark.parametrize(
    "text",
    ["nginx:x", "in-process:x", "haproxy:", "haproxy:/run/x.sock", "haproxy:#b", "haproxy:/x#a b", "haproxy:/x#a;b",
     "haproxy:/x#a\nb", "gateway:x", "gateway:a/b/c", "gateway:A/b", "gateway:a/"],
)  # fmt: skip
def test_a_setting_that_names_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        target(text)
    assert "bad_target" == refused.value.code
    assert refused.value.cure


# The real proxy, before stand-ins


class Front:
    """HAProxy with both files as they are, before two addresses."""

    def __init__(self, folder: Path, champion: str, challenger: str) -> None:
        folder.mkdir(exist_ok=True)
        self.certificate = make_certificate(folder)
        self.socket = folder / "admin.sock"
        self.log = folder / "haproxy.log"
        self.https = free_port()
        self.environment = {
            **os.environ,
            "ESTEIRA_PROXY_CERTIFICATE": str(self.certificate),
            "ESTEIRA_PROXY_HTTP": f"127.0.0.1:{free_port()}",
            "ESTEIRA_PROXY_HTTPS": f"127.0.0.1:{self.https}",
            "ESTEIRA_PROXY_BACKEND": "rollout",
            "ESTEIRA_PROXY_CHAMPION": champion,
            "ESTEIRA_PROXY_CHALLENGER": challenger,
            "ESTEIRA_PROXY_SOCKET": str(self.socket),
        }
        self.start()

    def start(self) -> None:
        with self.log.open("wb") as said:
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-dW", *(part for file in FILES for part in ("-f", str(file)))],
                env=self.environment, stdout=said, stderr=said,
            )  # fmt: skip
        wait(lambda: self.reachable(), f"HAProxy starts\n{self.log.read_text()}")
        self.context = ssl.create_default_context(cafile=str(self.certificate))

    def reachable(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.https), 1):
            # Its runtime socket too, whose file may be left from the process before.
            return self.target().share() is not None
        return False

    def target(self, patience: float = 2.0) -> HAProxy:
        return HAProxy(str(self.socket), "rollout", patience=patience)

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.https, timeout=20, context=self.context)

    def wait_up(self, server: str, up: bool = True) -> None:
        wait(lambda: self.target()._servers()[server].up == up, f"{server} is {'up' if up else 'down'}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def wait(what: Any, words: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, words
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Behind, Behind]]:
    services = Behind(), Behind()
    yield services
    for service in services:
        service.stop()


@pytest.fixture
def front(two: tuple[Behind, Behind], tmp_path: Path) -> Iterator[Front]:
    running = Front(tmp_path / "front", two[0].address, two[1].address)
    for name in ("champion", "challenger"):
        running.wait_up(name)
    yield running
    running.stop()


def asked(front: Front, two: Sequence[Behind], count: int) -> tuple[int, int]:
    """How many of so many requests each of the two got."""
    before = [len(one.seen) for one in two]
    with contextlib.closing(front.connect()) as connection:
        for _ in range(count):
            connection.request("POST", "/api/ml/v1/predict", b"{}", {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            assert 200 == response.status
    champion, challenger = (len(one.seen) - at for one, at in zip(two, before, strict=True))
    return champion, challenger


@needs_haproxy
def test_haproxy_takes_both_files_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-dW", *(part for file in FILES for part in ("-f", str(file)))],
        env={
            **os.environ,
            "ESTEIRA_PROXY_CERTIFICATE": str(make_certificate(tmp_path)),
            "ESTEIRA_PROXY_SOCKET": str(tmp_path / "socket"),
            "ESTEIRA_PROXY_BACKEND": "rollout",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout + done.stderr


@needs_haproxy
def test_the_champion_gets_all_until_a_share_is_shifted_and_each_share_is_exact(
    front: Front, two: tuple[Behind, Behind]
) -> None:
    proxy = front.target()

    assert 0.0 == proxy.share()
    assert (50, 0) == asked(front, two, 50)
    for percent in (10, 25, 50, 100):
        proxy.shift(split(percent))
        assert percent == proxy.share()
        champion, challenger = asked(front, two, 200)
        assert abs(challenger - 2 * percent) <= 1, (percent, champion, challenger)
    proxy.shift(None)
    assert 0.0 == proxy.share()
    assert (50, 0) == asked(front, two, 50)


@needs_haproxy
def test_shifting_again_changes_nothing_and_a_fraction_of_a_percent_is_near(front: Front) -> None:
    proxy = front.target()
    for percent in (0.5, 0.5, 12.34, 12.34):
        proxy.shift(split(percent))
        share = proxy.share()
        assert share is not None
        assert abs(share - percent) <= NEAR
    with pytest.raises(ConfigError):
        proxy.shift(split(0.01))
    share = proxy.share()
    assert share is not None
    assert abs(share - 12.34) <= NEAR, "a refused shift leaves what is"


@needs_haproxy
def test_from_all_to_nothing_no_request_finds_nobody(front: Front, two: tuple[Behind, Behind]) -> None:
    """100 % and back, again and again, while requests come: not one fails."""
    proxy = front.target()
    stop = threading.Event()
    statuses: Counter[int] = Counter()

    def load() -> None:
        with contextlib.closing(front.connect()) as connection:
            while not stop.is_set():
                connection.request("POST", "/api/ml/v1/predict", b"{}")
                response = connection.getresponse()
                response.read()
                statuses[response.status] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        rounds = 0
        while rounds < 20 or (statuses[200] < 40 and thread.is_alive()):
            for percent in (100, 0):
                proxy.shift(split(percent))
            rounds += 1
    finally:
        stop.set()
        thread.join(20)
    assert {200} == set(statuses), statuses
    assert statuses[200] >= 40


@needs_haproxy
def test_what_a_candidate_that_is_not_ready_should_get_the_champion_answers_until_it_is(
    front: Front, two: tuple[Behind, Behind]
) -> None:
    """So a rollout may begin before the challenger's service has started; and all traffic is given only to one that has."""
    proxy = front.target()
    two[1].ready = False
    try:
        front.wait_up("challenger", up=False)
        for percent in (10, 25):
            proxy.shift(split(percent))
            assert percent == proxy.share()
            assert (40, 0) == asked(front, two, 40)
        with pytest.raises(OutsideError) as down:
            proxy.shift(split(100))
        assert "candidate_down" == down.value.code
        assert 25.0 == proxy.share()
        proxy.shift(None)
        assert 0.0 == proxy.share()
        proxy.shift(split(50))
    finally:
        two[1].ready = True
    front.wait_up("challenger")
    assert (20, 20) == asked(front, two, 40)
    proxy.shift(split(100))
    assert (0, 40) == asked(front, two, 40)


@needs_haproxy
def test_a_restart_begins_with_all_traffic_at_the_champion_and_the_next_shift_mends_it(
    front: Front, two: tuple[Behind, Behind]
) -> None:
    proxy = front.target()
    proxy.shift(split(50))
    front.stop()
    assert proxy.share() is None
    with pytest.raises(OutsideError) as away:
        proxy.shift(split(50))
    assert "haproxy_away" == away.value.code
    assert away.value.cure

    front.start()
    assert 0.0 == proxy.share()
    for name in ("champion", "challenger"):
        front.wait_up(name)
    proxy.shift(split(50))
    assert 50.0 == proxy.share()


@needs_haproxy
def test_another_backend_and_servers_of_other_names_are_told(front: Front) -> None:
    for backend in ("nowhere", "service"):
        other = HAProxy(str(front.socket), backend)
        assert other.share() is None
        with pytest.raises(OutsideError) as refused:
            other.shift(split(10))
        assert "haproxy_refused" == refused.value.code
        assert backend in refused.value.where


@needs_haproxy
def test_a_socket_that_may_not_move_weights_is_told(two: tuple[Behind, Behind], tmp_path: Path) -> None:
    """Level `user` reads, and refuses `set server`; over TCP, which the target takes as well."""
    port = free_port()
    file = tmp_path / "user.cfg"
    file.write_text(
        f"global\n  stats socket 127.0.0.1:{port} level user\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n"
        f"backend rollout\n  server champion {two[0].address} weight 100\n  server challenger {two[1].address} weight 0\n"
    )
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        proxy = HAProxy(f"127.0.0.1:{port}", "rollout")
        wait(lambda: proxy.share() is not None, "HAProxy starts")
        with pytest.raises(OutsideError) as refused:
            proxy.shift(split(10))
        assert "haproxy_refused" == refused.value.code
        assert "level admin" in refused.value.cure
        assert 0.0 == proxy.share()
    finally:
        process.terminate()
        process.wait(10)


def test_a_socket_that_hangs_or_talks_without_end_is_given_up(tmp_path: Path) -> None:
    """Patience is seconds, not for ever; what is no HAProxy is told."""
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(place))
        listening.listen(8)
        hanging = HAProxy(str(place), "rollout", patience=0.2)
        assert hanging.share() is None
        with pytest.raises(OutsideError) as away:
            hanging.shift(split(10))
        assert "haproxy_away" == away.value.code

        def talk() -> None:
            with contextlib.suppress(OSError):
                for _ in range(2):
                    line, _ = listening.accept()
                    with line, contextlib.suppress(OSError):
                        while True:
                            line.sendall(b"x" * 65536)

        # What waits in the backlog is answered first.
        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        with pytest.raises(OutsideError):
            HAProxy(str(place), "rollout", patience=2).shift(split(10))
    thread.join(5)
    with pytest.raises(OutsideError):
        HAProxy(str(tmp_path / "nothing"), "rollout").shift(None)


@needs_haproxy
def test_a_unit_gets_the_answerer_that_the_router_gives_it_and_keeps_the_candidate_as_the_share_grows(
    front: Front, two: tuple[Behind, Behind]
) -> None:
    """H-40 in part, in the proxy: the same bucket as `esteira.rollout.router`, for every unit."""
    drawn = random.Random(7)
    units = [f"intent-{drawn.randrange(10**9)}" for _ in range(400)] + [
        "a b",
        "50%00",
        "+",
        "a,b;c",
        "é",
        '"',
        "0" * 200,
    ]
    proxy = front.target()

    def challengers() -> set[str]:
        before = len(two[1].seen)
        with contextlib.closing(front.connect()) as connection:
            for unit in units:
                connection.request("POST", "/api/ml/v1/predict", b"{}", {"x-unit-id": unit.encode()})
                response = connection.getresponse()
                response.read()
                assert 200 == response.status
        return {headers["x-unit-id"].encode("latin-1").decode() for _, _, headers, _ in two[1].seen[before:]}

    assert not challengers()
    former: set[str] = set()
    for percent in (10, 25, 12.5, 50, 100):
        proxy.shift(replace(split(percent), salt="salz; (1),"))
        share = proxy.share()
        assert share is not None
        wanted = {unit for unit in units if to_candidate(share, bucket("salz; (1),", "test-1", unit))}
        got = challengers()
        assert wanted == got
        if percent in (25, 50, 100):
            assert former <= got
        former = got
    proxy.shift(replace(split(25), salt="another"))
    assert {unit for unit in units if to_candidate(25, bucket("another", "test-1", unit))} == challengers()
    proxy.shift(None)
    assert not challengers()


class Failing(Behind):
    """A service that is ready and answers every other request with a status, or hangs up."""

    def __init__(self, status: int) -> None:
        super().__init__()
        handler: Any = self.server.RequestHandlerClass

        def reply(this: Any, code: int) -> None:
            if this.path == "/readyz":
                code = 200 if self.ready else 503
            elif status == 0:
                this.close_connection = True
                return
            else:
                code = status
            this.send_response(code)
            this.send_header("content-length", "0")
            this.end_headers()

        handler.reply = reply


@needs_haproxy
@pytest.mark.parametrize("status", [0, 500, 502, 503, 504], ids=["hangs-up", "500", "502", "503", "504"])
def test_what_a_candidate_cannot_answer_the_champion_does_and_only_predictions_are_asked_twice(
    two: tuple[Behind, Behind], tmp_path: Path, status: int
) -> None:
    failing = Failing(status)
    front = Front(tmp_path / "front", two[0].address, failing.address)
    try:
        for name in ("champion", "challenger"):
            front.wait_up(name)
        front.target().shift(split(50))

        def ask(path: str) -> list[int]:
            statuses = []
            with contextlib.closing(front.connect()) as connection:
                for _ in range(20):
                    connection.request("POST", f"/api/ml{path}", b"{}")
                    response = connection.getresponse()
                    response.read()
                    statuses.append(response.status)
            return statuses

        for path in ("/v1/predict", "/v1/tabular@shop/predict"):
            before = len(failing.seen)
            assert [200] * 20 == ask(path)
            # Asking again takes a turn of the champion's, so that it comes sooner to the candidate again.
            assert len(failing.seen) - before >= 10
        # Elsewhere an answer twice could be a deed twice.
        if status:
            assert {200, status} == set(ask("/v1/tabular@shop/feedback"))
    finally:
        front.stop()
        failing.stop()


@needs_haproxy
@pytest.mark.parametrize("status", [0, 500], ids=["hangs-up", "500"])
def test_a_named_request_says_whose_it_is_so_that_the_other_service_counts_the_failure(
    two: tuple[Behind, Behind], tmp_path: Path, status: int
) -> None:
    """Of the candidate's units the champion learns that they are the candidate's; a caller's own word is not passed on."""
    failing = Failing(status)
    front = Front(tmp_path / "front", two[0].address, failing.address)
    units = [f"unit-{number}" for number in range(40)]
    try:
        for name in ("champion", "challenger"):
            front.wait_up(name)
        front.target().shift(split(50))

        def ask(path: str, body: bytes = b"{}", named: bool = True) -> dict[str, str | None]:
            before = len(two[0].seen)
            for unit in units:
                headers = {"x-esteira-arm": "control", **({"x-unit-id": unit} if named else {})}
                # The stand-in takes no large body, and breaks off.
                with contextlib.closing(front.connect()) as connection, contextlib.suppress(OSError):
                    connection.request("POST", f"/api/ml{path}", body, {**headers, "x-of": unit})
                    connection.getresponse().read()
            return {str(headers["x-of"]): headers.get("x-esteira-arm") for _, _, headers, _ in two[0].seen[before:]}

        theirs = {unit for unit in units if to_candidate(50, bucket("salt", "test-1", unit))}
        assert {unit: "candidate" if unit in theirs else "control" for unit in units} == ask("/v1/predict")
        assert {None} == set(ask("/v1/predict", b"x" * 15_000).values()), "nobody asks again what is large"
        assert {None} == set(ask("/v1/tabular@shop/feedback").values())
        assert {None} == set(ask("/v1/predict", named=False).values())
        failing.ready = False
        front.wait_up("challenger", up=False)
        assert {unit: None if unit in theirs else "control" for unit in units} == ask("/v1/predict")
    finally:
        front.stop()
        failing.stop()


# The real proxy and two real Bentos


class Load:
    """Callers that ask for predictions without pause and count who answered, by bundle, and what failed."""

    def __init__(self, front: Front, callers: int = 4) -> None:
        self._front, self._callers = front, callers
        self.bundles: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self.arms: Counter[str | None] = Counter()
        self.failed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, count: int, during: Any = None) -> None:
        """So many requests by all callers together; `during` runs beside them."""
        threads = [threading.Thread(target=self._ask, args=(count // self._callers,)) for _ in range(self._callers)]
        for thread in threads:
            thread.start()
        if during is not None:
            during()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()

    def _ask(self, count: int) -> None:
        body = json.dumps({"rows": [ROW]}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection = self._front.connect()
        with contextlib.closing(connection):
            for _ in range(count):
                try:
                    connection.request("POST", "/api/ml/v1/predict", body, headers)
                    response = connection.getresponse()
                    content = response.read()
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    with self._lock:
                        self.failed[type(error).__name__] += 1
                    continue
                with self._lock:
                    if response.status == 200:
                        document = json.loads(content)
                        self.bundles[document["bundle_id"]] += 1
                        self.versions[document["version"]] += 1
                        self.arms[response.getheader("x-esteira-arm")] += 1
                    else:
                        self.failed[f"{response.status} {content[:200]!r}"] += 1


@pytest.fixture(scope="module")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """Two real services, each with a bundle of its own."""
    folder = tmp_path_factory.mktemp("bentos")
    started = {}
    for name, weight in (("champion", 0.05), ("challenger", 0.06)):
        bundle_id = make_bundle(folder / name, weight=weight)
        service = Service(
            ["--bundle", str(folder / name), "--port", "0"],
            env={"ESTEIRA_HOME": str(folder / f"{name}-home")},
            log=folder / f"{name}.log",
        )
        started[name] = (service, bundle_id)
    for service, _ in started.values():
        service.wait_ready()
    yield started
    for service, _ in started.values():
        service.stop()


@needs_haproxy
@pytest.mark.slow
def test_a_tenth_of_5000_requests_goes_to_the_challenger_then_more_then_none_and_not_one_fails(
    bentos: Mapping[str, Any], tmp_path: Path
) -> None:
    """Done when: real HAProxy and two real Bentos: a 10 % split measured within 1 point over 5,000 requests, raised, rolled
    back, 0 failed requests.
    """
    (champion, control), (challenger, candidate) = bentos["champion"], bentos["challenger"]
    front = Front(tmp_path / "front", champion.address, challenger.address)
    try:
        for name in bentos:
            front.wait_up(name)
        proxy = front.target()
        proxy.shift(split(10))
        tenth = Load(front)
        tenth.run(5000)
        assert not tenth.failed
        assert 5000 == tenth.bundles.total()
        assert abs(100 * tenth.bundles[candidate] / 5000 - 10) <= 1

        # Raised and rolled back while requests come: the shares change, and nobody is refused.
        moving = Load(front)

        def raise_then_roll_back() -> None:
            for percent in (25, 50, 100):
                proxy.shift(split(percent))
                time.sleep(0.3)
            proxy.shift(None)

        moving.run(4000, raise_then_roll_back)
        assert not moving.failed
        assert 4000 == moving.bundles.total()
        assert moving.bundles[candidate] > 0

        after = Load(front, callers=1)
        after.run(100)
        assert {control: 100} == dict(after.bundles), "from the next request on the champion answers all"
        assert not after.failed
    finally:
        front.stop()


@needs_haproxy
@pytest.mark.slow
def test_a_candidate_that_is_killed_in_the_midst_of_its_traffic_fails_no_request(
    bentos: Mapping[str, Any], tmp_path: Path
) -> None:
    """kill -9 of the whole candidate at 50 %: what it had begun is answered by the champion."""
    champion, control = bentos["champion"]
    bundle_id = make_bundle(tmp_path / "bundle", weight=0.07)
    victim = Service(
        ["--bundle", str(tmp_path / "bundle"), "--port", "0"],
        env={"ESTEIRA_HOME": str(tmp_path / "home")},
        log=tmp_path / "log",
    )
    try:
        victim.wait_ready()
        front = Front(tmp_path / "front", champion.address, victim.address)
        try:
            for name in bentos:
                front.wait_up(name)
            front.target().shift(split(50))
            load = Load(front)

            def kill() -> None:
                wait(lambda: load.bundles[bundle_id] > 100, "the candidate answers")
                for pid in descendants(victim.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

            load.run(3000, kill)
            assert not load.failed
            assert {control, bundle_id} == set(load.bundles)
            front.wait_up("challenger", up=False)
        finally:
            front.stop()
    finally:
        victim.stop(signal.SIGKILL)


@needs_haproxy
@pytest.mark.slow
def test_a_rollout_of_a_line_runs_over_two_services_by_alias_and_the_real_commands(home: Path, tmp_path: Path) -> None:
    """Start, serve the challenger, shares by arm, sums in the store, roll back; callers meet nothing but answers."""
    champion = Service(["--line", LINE, "--port", "0"], env={"ESTEIRA_HOME": str(home)}, log=tmp_path / "champion.log")
    place = f"127.0.0.1:{free_port()}"
    challenger: Service | None = None
    front: Front | None = None
    try:
        front = Front(tmp_path / "front", champion.wait_ready().address, place)
        front.wait_up("champion")
        outside = f"haproxy:{front.socket}#rollout"

        def esteira(*arguments: str) -> Any:
            done = subprocess.run(
                [sys.executable, "-m", "esteira.cli", *arguments, "--json"],
                cwd=ROOT, capture_output=True, text=True, timeout=120,
                env={**os.environ, "ESTEIRA_HOME": str(home), "ESTEIRA_TARGET": outside},
            )  # fmt: skip
            assert 0 == done.returncode, done.stdout + done.stderr
            return json.loads(done.stdout)

        # The challenger's service needs a challenger, which the start makes; until it is up the champion answers for it.
        started = esteira("rollout", "start", LINE, "--version", "2", "--reason", "released by the gate")
        assert 10 == started["percent"]
        assert 10.0 == front.target().share()
        early = Load(front, callers=1)
        early.run(50)
        assert {1: 50} == early.versions
        assert not early.failed
        challenger = Service(
            ["serve", LINE, "--alias", "challenger", "--port", place.rpartition(":")[2]],
            env={"ESTEIRA_HOME": str(home), "ESTEIRA_TARGET": outside},
            log=tmp_path / "challenger.log", command=[sys.executable, "-m", "esteira.cli"],
        ).wait_ready()  # fmt: skip
        front.wait_up("challenger")

        load = Load(front)
        load.run(1000)
        assert not load.failed
        assert abs(load.versions[2] - 100) <= 10
        assert load.versions == {1: load.arms["control"], 2: load.arms["candidate"]}
        test_id = splits.read(splits.path(home, LINE)).test_id  # type: ignore[union-attr]
        rollouts = Rollouts(Registry(load_settings({"ESTEIRA_HOME": str(home)}, None)).store)
        wait(lambda: sum(sums.served for sums in rollouts.sums(test_id).get(0, {}).values()) >= 1050, "all are counted")
        sums = rollouts.sums(test_id)[0]
        assert load.versions[2] == sums["candidate"].served
        assert load.versions[1] + 50 == sums["control"].served

        back = esteira("rollback", LINE, "--reason", "it was worse")
        assert (2, 1) == (back["from"], back["to"])
        assert 0.0 == front.target().share()
        after = Load(front, callers=1)
        after.run(100)
        assert {1: 100} == after.versions
        assert not after.failed
    finally:
        for service in (challenger, champion):
            if service is not None:
                service.stop()
        if front is not None:
            front.stop()
