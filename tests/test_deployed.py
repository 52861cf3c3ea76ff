"""Models are loaded once, kept in a bounded cache, follow their alias, and a bundle that was touched is never one of them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esteira.errors import Refused
from serving.deployed import Deployed, PredictorCache
from serving.deployments import Deployment, Folder
from serving.predictor import Predictor, load
from tests.serving_fakes import LINE, FakeSource, fake_loading, fake_predictor, until
from tests.small_bundle import make_bundle


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    return fake_loading(monkeypatch)


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
