"""A worker says once that it serves, whenever its first model comes; one that cannot start says why without a secret and leaves nothing."""

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esteira.errors import OutsideError
from esteira.settings import load_settings
from esteira.store import Store
from serving.beginning import MASTER, Beginning, give_up
from serving.lifeline import STATE, has_served, note_served
from tests.serving_fakes import LINE
from tests.serving_lines import add_version, point_champion
from tests.serving_process import KEY, ROOT
from tests.small_bundle import make_bundle

SECRET = "s3cret"


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(["requests", "model", "model"]))))
def test_a_worker_serves_once_it_takes_requests_and_has_a_model_whichever_comes_last(order: tuple[str, ...]) -> None:
    noted: list[int] = []
    beginning = Beginning(lambda: noted.append(len(said)))
    said: list[str] = []
    for what in order:
        said.append(what)
        (beginning.takes_requests if what == "requests" else beginning.has_model)()

    assert [max(order.index("requests"), order.index("model")) + 1] == noted


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the workers' counters, of a worker whose state somebody waits for."""
    folder = tmp_path / "counters"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setenv(STATE, str(tmp_path / "state.json"))
    monkeypatch.delenv(MASTER, raising=False)
    return folder


def away() -> OutsideError:
    address = f"postgresql://ana:{SECRET}@db/platform"
    return OutsideError(f"the store at {address} answers, but it does not", code="store_away", where=address)


def test_why_a_worker_cannot_start_is_said_without_a_secret(counters: Path, caplog: pytest.LogCaptureFixture) -> None:
    give_up(away())

    state = (counters.parent / "state.json").read_text()
    assert ("failed", "store_away", 2) == (
        json.loads(state)["state"], json.loads(state)["error"]["code"], json.loads(state)["exit_code"]
    )  # fmt: skip
    assert "a worker cannot start: the store at postgresql://ana:***@db/platform" in caplog.text
    assert SECRET not in state + caplog.text


def test_a_fault_that_nobody_expected_is_said_by_type_and_place_and_tried_again(
    counters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give_up(RuntimeError(SECRET))

    assert "a worker cannot start: RuntimeError" in caplog.text
    assert SECRET not in caplog.text
    assert not (counters.parent / "state.json").exists()


def test_a_worker_that_cannot_start_where_others_served_ends_alone(
    counters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note_served()
    with caplog.at_level(logging.ERROR):
        give_up(away())

    assert has_served()
    assert "a worker cannot start" in caplog.text
    assert not (counters.parent / "state.json").exists()


def test_a_worker_that_cannot_start_takes_its_own_counters_with_it(counters: Path) -> None:
    """Bento starts it again and again; each page of metrics reads the files of all workers, also of those that ended."""
    others = {f"counter_1{os.getpid()}.db", "counter_1.db", "served"}
    for name in (*others, f"counter_{os.getpid()}.db", f"gauge_livesum_{os.getpid()}.db"):
        (counters / name).touch()

    give_up(away())

    assert others == {path.name for path in counters.iterdir()}


def test_these_are_the_files_that_the_counters_of_a_worker_lie_in(counters: Path) -> None:
    script = (
        "from serving.beginning import give_up; from serving.metrics import Metrics; "
        "metrics = Metrics(together=True); metrics.answered('predict', 500, 'tabular', 'linear', 2, 0.001); metrics.flush(); "
        "import os; print(len(os.listdir(os.environ['PROMETHEUS_MULTIPROC_DIR']))); give_up(RuntimeError())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert int(ended.stdout) > 0
    assert [] == list(counters.iterdir())


# What Bento starts, around an application that stands for Bento's


WORKER = """
import asyncio, os, sys
from serving import service
from serving.lifeline import has_served

async def inner(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

async def main():
    over = asyncio.Event()
    begun = asyncio.Event()

    async def receive():
        if begun.is_set():
            await over.wait()
            return {"type": "lifespan.shutdown"}
        begun.set()
        return {"type": "lifespan.startup"}

    async def send(message):
        if message["type"] == "lifespan.startup.complete":
            print("started", flush=True)

    async def look():
        print(has_served(), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # a champion was released
        while not has_served():
            await asyncio.sleep(0.02)
        print(has_served(), flush=True)
        over.set()

    api = service._front(inner)
    serving = asyncio.create_task(api({"type": "lifespan"}, receive, send))
    while not api._alive:
        await asyncio.sleep(0.02)
    await asyncio.gather(serving, look())

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_service_whose_first_champion_comes_later_counts_as_one_that_served(counters: Path, tmp_path: Path) -> None:
    """So that a worker that is started again while the store is away does not stop the others; and who waits hears of it."""
    settings = load_settings({"ESTEIRA_HOME": str(tmp_path / "home")}, file=None)
    store = Store.open(settings.database_url)
    bundle_id = make_bundle(tmp_path / "bundle")
    add_version(store, settings, tmp_path / "bundle", 1, bundle_id)
    env = {
        **os.environ, "ESTEIRA_HOME": str(settings.home), "ESTEIRA_LINES": LINE, "ESTEIRA_API_KEY": KEY,
        "ESTEIRA_FOLLOW_SECONDS": "0.05",
    }  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    try:
        assert worker.stdout is not None
        assert ["started\n", "False\n"] == [worker.stdout.readline() for _ in range(2)]
        assert not (tmp_path / "state.json").exists()
        point_champion(store, 1, bundle_id)
        said, _ = worker.communicate("released\n", timeout=60)
    finally:
        worker.kill()
        worker.wait()

    assert ("True\n", 0) == (said, worker.returncode)
    assert "ready" == json.loads((tmp_path / "state.json").read_text())["state"]
