"""An alias that moves back is followed at once: what served before is still in memory, and a beacon says that it moved."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from esteira.errors import OutsideError
from esteira.registry import beacon
from serving import deployed as deployed_module
from serving.deployed import Deployed
from serving.deployments import Deployment
from serving.predictor import Predictor
from tests.serving_fakes import LINE, FakeSource, fake_loading, fake_predictor, until

ONE, TWO, THREE = (Deployment(LINE, number, str(number) * 64) for number in (1, 2, 3))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    return fake_loading(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(deployed_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def following(source: FakeSource, keep: float) -> Deployed:
    source.moves = False
    made = Deployed(source, keep=keep)
    made.start(period=1.0)
    source.moves = True
    return made


def move(source: FakeSource, deployed: Deployed, to: Deployment) -> None:
    source.champion[LINE] = to
    deployed._try_to_follow(LINE)


def test_the_way_back_loads_nothing(loads: list[Deployment], clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source, keep=600)
    first = deployed.loaded(LINE)
    for to in (TWO, ONE, TWO, ONE):
        move(source, deployed, to)
        assert 2 == deployed.models

    assert first is deployed.loaded(LINE)
    assert [ONE, TWO] == loads


def test_what_served_before_is_forgotten_after_a_while(loads: list[Deployment], clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source, keep=600)
    move(source, deployed, TWO)
    clock[0] += 599
    deployed._forget()
    assert 2 == deployed.models
    clock[0] += 2
    deployed._forget()

    assert 1 == deployed.models


def test_a_line_keeps_one_model_that_does_not_serve(loads: list[Deployment], clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source, keep=600)
    for to in (TWO, THREE):
        move(source, deployed, to)

    assert 2 == deployed.models
    move(source, deployed, TWO)
    assert [ONE, TWO, THREE] == loads


def test_what_is_kept_makes_room_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, loads: list[Deployment], clock: list[float]
) -> None:
    source = FakeSource(LINE)
    deployed = following(source, keep=600)
    move(source, deployed, TWO)

    def full(folder: Path, deployment: Deployment, device: str) -> Predictor:
        if deployed._kept:
            raise MemoryError
        return fake_predictor(deployment)

    monkeypatch.setattr("serving.predictor.load", full)
    move(source, deployed, THREE)
    assert deployed.serves(LINE, 2)
    clock[0] += 10
    deployed._try_to_follow(LINE)

    assert deployed.serves(LINE, 3)


def test_a_version_beside_the_one_that_serves_is_loaded_once_and_let_go(
    loads: list[Deployment], clock: list[float]
) -> None:
    source = FakeSource(LINE)
    deployed = following(source, keep=0)
    held = deployed.beside(LINE, 2, TWO.bundle_id)
    assert held is deployed.beside(LINE, 2, TWO.bundle_id)
    assert deployed.serves(LINE, 1)
    deployed.let_go(held)

    assert 1 == deployed.models
    move(source, deployed, TWO)
    serving = deployed.loaded(LINE)
    assert serving is not None
    deployed.let_go(serving)
    assert serving is deployed.loaded(LINE), "what serves stays"


def test_an_alias_is_followed_as_soon_as_the_beacon_says_so(loads: list[Deployment], tmp_path: Path) -> None:
    source = FakeSource(LINE)
    deployed = Deployed(source, beacon=lambda: beacon.stamp(tmp_path))
    deployed.start(period=3600)
    try:
        for to in (TWO, ONE, TWO):
            source.champion[LINE] = to
            beacon.touch(tmp_path)
            assert until(lambda: deployed.serves(LINE, to.version or 0), 3)  # noqa: B023 - asked within this turn
    finally:
        deployed.stop()


def test_without_a_beacon_s_word_the_alias_is_asked_for_every_period(loads: list[Deployment], tmp_path: Path) -> None:
    source = FakeSource(LINE)
    deployed = Deployed(source, beacon=lambda: beacon.stamp(tmp_path))
    deployed.start(period=0.1)
    try:
        source.champion[LINE] = TWO
        assert until(lambda: deployed.serves(LINE, 2), 5)
    finally:
        deployed.stop()


def test_a_beacon_that_did_not_move_asks_nobody(loads: list[Deployment]) -> None:
    asked = []
    source = FakeSource(LINE)
    real = source.current
    source.current = lambda line: asked.append(line) or real(line)  # type: ignore[func-returns-value, method-assign]
    looks = itertools.count()
    deployed = Deployed(source, beacon=lambda: next(looks) * 0)
    deployed.start(period=3600)
    try:
        assert until(lambda: next(looks) > 10)
        assert [LINE] == asked, "once, at the start"
    finally:
        deployed.stop()


def test_a_registry_that_is_away_at_the_beacon_s_word_is_asked_again(loads: list[Deployment], tmp_path: Path) -> None:
    source = FakeSource(LINE)
    deployed = Deployed(source, beacon=lambda: beacon.stamp(tmp_path))
    deployed.start(period=0.1)
    try:
        source.fail = OutsideError("the store answers", code="store_away")
        source.champion[LINE] = TWO
        beacon.touch(tmp_path)
        assert until(lambda: deployed.away)
        source.fail = None
        assert until(lambda: deployed.serves(LINE, 2))
    finally:
        deployed.stop()
