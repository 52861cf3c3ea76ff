"""Health: what a service needs is looked at behind the requests' backs, and one look decides whether it is ready."""

import json
import logging
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esteira.errors import ConfigError, Refused
from esteira.settings import load_settings
from serving import health
from serving.deployed import Deployed
from serving.deployments import Deployment
from serving.health import Health, health_of
from serving.predictor import Predictor
from tests.serving_fakes import LINE, FakeSource, fake_predictor, until
from tests.serving_process import Service
from tests.small_bundle import ROW, make_bundle

OTHER_LINE = "tabular@other"


class Asked:
    """A dependency of the tests: `why` is raised when it is asked; `gate` holds an answer back."""

    def __init__(self) -> None:
        self.why: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.times = 0

    def ask(self) -> None:
        self.gate.wait(30)
        self.times += 1
        if self.why is not None:
            raise self.why

    def close(self) -> None:
        """Holds nothing."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Versions that cannot be loaded; all others load at once."""
    refused: set[int] = set()

    def load(folder: Path, deployment: Deployment, device: str) -> Predictor:
        if deployment.version in refused:
            raise Refused("a model answers its golden rows", code="golden_mismatch", where=deployment.line)
        return fake_predictor(deployment)

    monkeypatch.setattr("serving.predictor.load", load)
    return refused


@pytest.fixture
def deployed(broken: set[int]) -> Iterator[Deployed]:
    running = Deployed(FakeSource(LINE))
    running.start(period=3600)
    yield running
    running.stop()


def make(deployed: Deployed, *needs: str, **asked: Asked) -> Health:
    """A health that asks these instead of real servers; nothing was looked at yet."""
    made = Health(deployed, database_url="", redis_url="", needs=frozenset(needs), period=0.02)
    made._looks = {name: health._Look(name, one, 0.02) for name, one in asked.items()}
    return made


def look(made: Health) -> None:
    for one in made._looks.values():
        one.look()


# One look


def test_a_service_is_ready_after_the_first_good_look_and_not_after_one_failed_look(deployed: Deployed) -> None:
    database = Asked()
    made = make(deployed, "database", database=database)
    assert not made.ready

    look(made)
    assert made.ready
    database.why = OSError("away")
    look(made)
    assert (False, 2) == (made.ready, database.times)
    assert 503 == made.report()[0]
    database.why = None
    look(made)
    assert made.ready


def test_a_dependency_that_is_not_needed_degrades_and_does_not_stop(deployed: Deployed) -> None:
    redis = Asked()
    redis.why = OSError("away")
    made = make(deployed, "lines", redis=redis)
    look(made)

    status, document = made.report()
    assert made.ready
    assert (200, "degraded", "down", "unused") == (
        status, document["status"], document["services"]["redis"], document["services"]["database"]
    )  # fmt: skip


def test_a_look_that_hangs_grows_too_old_to_be_true(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only its own: what hangs is asked in a thread of its own."""
    monkeypatch.setattr(health, "_LIMIT", 0.1)
    database, redis = Asked(), Asked()
    made = make(deployed, "database", database=database, redis=redis)
    made.start()
    try:
        assert until(lambda: made.ready)
        database.gate.clear()

        assert until(lambda: not made.ready)
        assert until(lambda: made._looks["redis"].good)
        database.gate.set()
        assert until(lambda: made.ready)
    finally:
        database.gate.set()
        made.stop()


@pytest.mark.parametrize("jump", [-40 * 365 * 86400.0, 86400.0, 40 * 365 * 86400.0])
def test_a_wall_clock_that_jumps_changes_nothing(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Ages and pauses are measured by the monotonic clock: of looks, and of tries to load what cannot be loaded."""
    real = time.time
    source = deployed._source
    assert isinstance(source, FakeSource)
    made = make(deployed, "lines", "database", "registry", database=Asked())
    look(made)
    assert made.ready

    monkeypatch.setattr(time, "time", lambda: real() + jump)
    deployed._try_to_follow(LINE)

    assert made.ready
    assert 200 == made.report()[0]
    source.champion[LINE] = Deployment(LINE, 2, "2" * 64)
    deployed._try_to_follow(LINE)
    assert deployed.serves(LINE, 2)


def test_no_answer_and_no_log_has_a_drivers_words(deployed: Deployed, caplog: pytest.LogCaptureFixture) -> None:
    database = Asked()
    database.why = OSError('connection to server at "10.0.0.7" failed: password authentication failed for user "ana"')
    made = make(deployed, "database", database=database)
    with caplog.at_level(logging.WARNING):
        look(made)
        look(made)

    said = json.dumps(made.report()[1]) + caplog.text
    assert not any(word in said for word in ("10.0.0.7", "password", "ana", "connection"))
    assert 1 == caplog.text.count("the database does not answer: OSError"), "told once, not at every look"


# What is needed


@pytest.mark.parametrize(
    ("env", "records", "needs"),
    [
        ({}, True, {"lines"}),
        ({"DATABASE_URL": "postgresql://h/d"}, True, {"lines", "database"}),
        ({"DATABASE_URL": "postgresql://h/d"}, False, {"lines"}),
        ({"DATABASE_URL": "postgresql://h/d", "ESTEIRA_READY_NEEDS": "none"}, True, set()),
        ({"ESTEIRA_READY_NEEDS": "database, registry"}, False, {"database", "registry"}),
        ({"ESTEIRA_READY_NEEDS": "redis", "REDIS_URL": "redis://h"}, False, {"redis"}),
    ],
    ids=["a file is nobody else's", "records on a server", "no records", "nothing", "named", "redis"],
)
def test_what_a_service_needs(deployed: Deployed, env: dict[str, str], records: bool, needs: set[str]) -> None:
    assert needs == health_of(load_settings(env, None), deployed, records=records)._needs


def test_a_need_without_an_address_and_an_unknown_need_are_refused(deployed: Deployed) -> None:
    with pytest.raises(ConfigError) as caught:
        health_of(load_settings({"ESTEIRA_READY_NEEDS": "redis"}, None), deployed, records=False)
    assert "no_redis_url" == caught.value.code
    with pytest.raises(ConfigError, match="ESTEIRA_READY_NEEDS"):
        load_settings({"ESTEIRA_READY_NEEDS": "database,moon"}, None)


def test_every_released_line_must_serve_before_the_service_is_ready(broken: set[int]) -> None:
    """A line without a release is no failure; one whose release cannot be loaded is, until it was loaded once."""
    source = FakeSource(LINE, OTHER_LINE)
    source.champion[LINE] = None
    source.champion[OTHER_LINE] = Deployment(OTHER_LINE, 2, "2" * 64)
    third = Deployment(LINE, 3, "3" * 64)
    broken.add(3)
    running = Deployed(source)
    running.start(period=3600)
    made = make(running, "lines")
    try:
        assert made.ready
        assert {"state": "none", "version": None, "why": None} == made.report()[1]["lines"][LINE]

        source.champion[LINE] = third
        running._try_to_follow(LINE)
        status, document = made.report()
        assert (503, "unhealthy") == (status, document["status"])
        assert {"state": "failed", "version": None, "why": "golden_mismatch"} == document["lines"][LINE]
        assert {"state": "ready", "version": 2, "why": None} == document["lines"][OTHER_LINE]
        assert make(running).ready, "a service that is told to need nothing serves the other line"

        broken.clear()
        source.champion[LINE] = Deployment(LINE, 1, "1" * 64)
        running._try_to_follow(LINE)
        broken.add(3)
        source.champion[LINE] = third
        running._try_to_follow(LINE)
        status, document = made.report()
        assert (True, 200, "degraded") == (made.ready, status, document["status"]), "the last good one goes on"
        assert {"state": "failed", "version": 1, "why": "golden_mismatch"} == document["lines"][LINE]
    finally:
        running.stop()


def test_a_registry_that_is_away_is_told_and_stops_only_who_needs_it(deployed: Deployed) -> None:
    source = deployed._source
    assert isinstance(source, FakeSource)
    needing, other = make(deployed, "registry"), make(deployed, "lines")
    assert needing.ready

    source.fail = OSError("away")
    deployed._try_to_follow(LINE)

    assert (False, True) == (needing.ready, other.ready)
    assert {"state": "ready", "version": 1, "why": "internal"} == other.report()[1]["lines"][LINE]
    assert "degraded" == other.report()[1]["status"]


# Real stores


def test_a_store_in_a_file_is_looked_at_and_never_made(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("not a folder")
    (tmp_path / "garbage.db").write_bytes(b"this is no database" * 100)

    def good(name: str) -> bool:
        one = health._Look("database", health._File(f"sqlite:///{tmp_path / name}"), 1.0)
        one.look()
        return one.good

    assert good("none-yet.db")
    assert good("no/folder/yet.db")
    assert not good("blocked/store.db")
    assert not good("garbage.db")
    assert {"blocked", "garbage.db"} == {path.name for path in tmp_path.iterdir()}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def test_a_real_redis_is_pinged(deployed: Deployed, tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server on PATH (Debian: redis-server)")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    made = Health(
        deployed, database_url="", redis_url=f"redis://127.0.0.1:{port}/0", needs=frozenset({"redis"}), period=0.05
    )
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    made.start()
    try:
        assert until(lambda: made.ready)
        assert "up" == made.report()[1]["services"]["redis"]
        running.terminate()
        running.wait(10)

        assert until(lambda: not made.ready)
        assert (503, "down") == (made.report()[0], made.report()[1]["services"]["redis"])
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        assert until(lambda: made.ready)
    finally:
        made.stop()
        running.terminate()
        running.wait(10)


@pytest.fixture
def postgres() -> Iterator[tuple[Callable[[], str], Callable[[], None]]]:
    """A real PostgreSQL of this test alone: start it (again) and get its address; stop it."""
    pgserver = pytest.importorskip("pgserver", reason="needs pgserver, which has no wheel for this Python")
    # Not in pytest's own folder, which every session that starts closes to other users: as root, PostgreSQL runs as one.
    folder = Path(tempfile.mkdtemp(prefix="esteira-health-"))
    running: list[Any] = []

    def start() -> str:
        running.append(pgserver.get_server(folder / "data", cleanup_mode="stop"))
        address: str = running[-1].get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
        return address

    def stop() -> None:
        running.pop().cleanup()

    yield start, stop
    while running:
        stop()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.requirement("K-37")
def test_a_database_that_is_stopped_makes_the_service_unready_within_one_probe(
    postgres: tuple[Callable[[], str], Callable[[], None]], tmp_path: Path
) -> None:
    """K-37. Done when: stopping the database turns the answer to 503 within one probe while liveness stays 200.

    And its decision: no exception text. Predictions go on meanwhile, and when the database is back so is the service.
    """
    import yaml

    root = Path(__file__).resolve().parents[1]
    deployment = yaml.safe_load((root / "manifests" / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["periodSeconds"]
    start, stop = postgres
    make_bundle(tmp_path / "bundle")
    env = {
        "ESTEIRA_HOME": str(tmp_path / "home"),
        "ESTEIRA_DATABASE_URL": start(),
        "ESTEIRA_HEALTH_SECONDS": "0.1",
    }
    service = Service(["--bundle", str(tmp_path / "bundle"), "--port", "0", "--record"], env=env, log=tmp_path / "log")
    try:
        service.wait_ready()
        status, document, _ = service.ask("/health")
        assert (200, "healthy") == (status, document["status"])
        assert {"database": "up", "redis": "unused", "models_loaded": 1} == document["services"]
        assert {LINE: {"state": "ready", "version": None, "why": None}} == document["lines"]
        assert document["timestamp"].endswith("Z")
        assert 401 == service.ask("/health", key=None)[0]

        stop()
        time.sleep(probe)
        status, document, _ = service.ask("/health")
        assert (503, "unhealthy", "down") == (status, document["status"], document["services"]["database"])
        assert 503 == service.ask("/readyz", key=None)[0]
        assert 200 == service.ask("/livez", key=None)[0]
        assert not any(word in json.dumps(document) for word in ("psycopg", "sqlalchemy", "socket", "Traceback"))
        assert 200 == service.predict(ROW)[0]

        start()
        assert until(lambda: service.ask("/readyz", key=None)[0] == 200)
        assert (200, "healthy") == (service.ask("/health")[0], service.ask("/health")[1]["status"])
    finally:
        service.stop()
