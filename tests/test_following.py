"""A line follows its alias to what can be loaded: beside the old model, after growing pauses, and without keeping what went."""

import gc
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import OutsideError, Refused
from serving import deployed as deployed_module
from serving.deployed import Deployed, PredictorCache
from serving.deployments import Deployment
from serving.predictor import Predictor, load
from tests.serving_fakes import LINE, FakeSource, fake_predictor
from tests.small_bundle import ROW, make_bundle

OTHER_LINE = "tabular@other"
ONE, TWO, THREE = (Deployment(LINE, number, str(number) * 64) for number in (1, 2, 3))


class Loads:
    """Loads fakes at once; `broken` says what is raised instead, `before` is called first."""

    def __init__(self) -> None:
        self.made: list[Deployment] = []
        self.broken: dict[int | None, BaseException] = {}
        self.before: Callable[[Deployment], object] = lambda _: None

    def __call__(self, folder: Path, deployment: Deployment, device: str) -> Predictor:
        self.made.append(deployment)
        self.before(deployment)
        if deployment.version in self.broken:
            raise self.broken[deployment.version]
        return fake_predictor(deployment)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    made = Loads()
    monkeypatch.setattr("serving.predictor.load", made)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of what follows aliases: one number, moved by the test."""
    now = [1000.0]
    monkeypatch.setattr(deployed_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def following(source: FakeSource, **options: Any) -> Deployed:
    """Started, with a follower that the test moves by hand."""
    source.moves = False
    made = Deployed(source, **options)
    made.start(period=1.0)
    source.moves = True
    return made


def refusal(words: str = "it answers otherwise") -> Refused:
    return Refused(words, code="golden_mismatch", where=LINE)


def test_what_cannot_be_loaded_is_tried_again_after_growing_pauses_and_told_once(
    loads: Loads, clock: list[float]
) -> None:
    source, told = FakeSource(LINE), []
    deployed = following(source, report=lambda line, error: told.append((line, error.code)))
    loads.broken[2] = refusal()
    source.champion[LINE] = TWO
    tries = []
    for second in range(600):
        clock[0] = 2000.0 + second
        before = len(loads.made)
        deployed._try_to_follow(LINE)
        if len(loads.made) > before:
            tries.append(second)

    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert [2, 4, 8, 16, 32] == pauses[:5]
    assert {60} == set(pauses[5:])
    assert [(LINE, "golden_mismatch")] == told
    assert deployed.serves(LINE, 1)
    assert {"state": "failed", "version": 1, "why": "golden_mismatch"} == deployed.states()[LINE]

    loads.broken.clear()
    clock[0] += 61
    deployed._try_to_follow(LINE)
    assert {"state": "ready", "version": 2, "why": None} == deployed.states()[LINE]


def test_another_release_is_tried_at_once_whatever_failed_before(loads: Loads, clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source)
    loads.broken[2] = refusal()
    source.champion[LINE] = TWO
    deployed._try_to_follow(LINE)
    source.champion[LINE] = THREE
    deployed._try_to_follow(LINE)

    assert deployed.serves(LINE, 3)
    assert deployed.states()[LINE]["why"] is None


def test_a_registry_that_is_away_is_asked_again_within_seconds(loads: Loads, clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source)
    source.fail = OutsideError("the store answers", code="store_away")
    for _ in range(100):
        clock[0] += 1
        deployed._try_to_follow(LINE)
    assert deployed.away
    assert {"state": "ready", "version": 1, "why": "store_away"} == deployed.states()[LINE]

    source.fail = None
    source.champion[LINE] = TWO
    clock[0] += 5
    deployed._try_to_follow(LINE)
    assert (False, True) == (deployed.away, deployed.serves(LINE, 2))


def test_a_registry_that_does_not_answer_counts_as_away_while_it_is_asked(
    loads: Loads, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource(LINE)
    deployed = following(source)
    seen = []

    def slow(line: str) -> Deployment | None:
        seen.append(deployed.away)
        clock[0] += 6
        seen.append(deployed.away)
        return source.champion[line]

    monkeypatch.setattr(source, "current", slow)
    deployed._try_to_follow(LINE)

    assert ([False, True], False) == (seen, deployed.away)


def test_a_model_that_does_not_fit_into_memory_leaves_the_old_one(loads: Loads, clock: list[float]) -> None:
    source, told = FakeSource(LINE), []
    deployed = following(source, report=lambda _, error: told.append(error))
    loads.broken[2] = MemoryError()
    source.champion[LINE] = TWO
    deployed._try_to_follow(LINE)

    assert ["out_of_memory"] == [error.code for error in told]
    assert deployed.serves(LINE, 1)
    assert 1 == deployed.models


def test_a_bug_in_one_line_is_that_lines_alone(loads: Loads) -> None:
    source = FakeSource(LINE, OTHER_LINE)
    source.champion[OTHER_LINE] = Deployment(OTHER_LINE, 2, "2" * 64)
    loads.broken[2] = ZeroDivisionError("secret words")
    deployed = following(source)

    assert deployed.serves(LINE, 1)
    assert {"state": "failed", "version": None, "why": "internal"} == deployed.states()[OTHER_LINE]
    assert (True, False) == (deployed.ready, deployed.complete)


def test_the_old_model_is_freed_by_the_swap_itself(loads: Loads, clock: list[float]) -> None:
    """No collection is needed: a service freezes what it has at the start, and collects rarely."""
    source = FakeSource(LINE)
    deployed = following(source)
    old = weakref.ref(deployed.loaded(LINE))
    source.champion[LINE] = TWO
    gc.disable()
    try:
        deployed._try_to_follow(LINE)
        assert old() is None
    finally:
        gc.enable()


def test_a_real_model_is_freed_by_the_swap_itself(tmp_path: Path) -> None:
    make_bundle(tmp_path / "small")
    cache = PredictorCache(1, lambda deployment: load(tmp_path / "small", deployment, "cpu"))
    one = Deployment(LINE, 1, "")
    cache.get(one).answer([ROW])
    gc.disable()
    try:
        old = weakref.ref(cache.get(one))
        session = weakref.ref(cache.get(one)._answer.__self__)  # type: ignore[attr-defined]
        cache.drop(one)
        assert (None, None) == (old(), session())
    finally:
        gc.enable()


def test_a_request_that_holds_the_old_model_finishes_on_it(loads: Loads, clock: list[float]) -> None:
    source = FakeSource(LINE)
    deployed = following(source)
    held = deployed.loaded(LINE)
    source.champion[LINE] = TWO
    deployed._try_to_follow(LINE)

    assert held is not None
    assert "v1" == held.answer([{}])[0]["prediction"]
    assert 1 == held.envelope["version"]


def test_a_model_that_was_moved_away_while_it_was_loaded_does_not_come_back(loads: Loads) -> None:
    """Asked for just when its line moves, of a service with more lines than models in memory."""
    source = FakeSource(LINE, OTHER_LINE)
    deployed = following(source, capacity=1)
    assert deployed.loaded(LINE) is None

    def move(deployment: Deployment) -> None:
        if deployment == ONE:
            loads.before = lambda _: None
            source.champion[LINE] = TWO
            deployed._try_to_follow(LINE)

    loads.before = move
    found = deployed.predictor(LINE)

    assert found is not None
    assert 2 == found.deployment.version
    assert ONE not in deployed.cache.deployments()


def test_a_move_of_one_line_evicts_no_other(loads: Loads, clock: list[float]) -> None:
    lines = [f"tabular@a{number}" for number in range(3)]
    source = FakeSource(*lines)
    deployed = following(source, capacity=3)
    source.champion[lines[0]] = Deployment(lines[0], 2, "2" * 64)
    deployed._try_to_follow(lines[0])

    assert all(deployed.loaded(line) is not None for line in lines)
    assert 3 == deployed.models


@given(steps=st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.booleans(), st.booleans()), max_size=12))
def test_a_line_serves_its_alias_or_the_last_that_could_be_loaded(
    steps: list[tuple[int | None, bool, bool]],
) -> None:
    """Property: whatever moves and fails in whatever order; each step is (alias, its load fails, the registry is away)."""
    loads = Loads()
    source = FakeSource(LINE)
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.predictor.load", loads)
        patch.setattr(deployed_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        deployed = following(source)
        expected: int | None = 1
        for alias, fails, away in steps:
            now[0] += 1000
            source.champion[LINE] = None if alias is None else Deployment(LINE, alias, str(alias) * 64)
            source.fail = OSError("away") if away else None
            loads.broken = {alias: refusal()} if fails else {}
            deployed._try_to_follow(LINE)
            trouble = away or (fails and alias is not None and alias != expected)
            if not trouble:
                expected = alias
            state = deployed.states()[LINE]

            assert expected == state["version"]
            assert trouble == (state["why"] is not None)
            predictor = deployed.loaded(LINE)
            assert expected == (None if predictor is None else predictor.deployment.version)
            assert deployed.models == (expected is not None)


# An alias that cannot be read


def test_a_line_that_had_no_release_is_not_missing_because_its_alias_cannot_be_read(
    loads: Loads, clock: list[float]
) -> None:
    """Two lines, one of them empty, and the registry goes away: the service stays as ready as it was."""
    source = FakeSource(LINE, OTHER_LINE)
    source.champion[OTHER_LINE] = None
    deployed = following(source)
    source.fail = OutsideError("the store answers", code="store_away")
    for line in deployed.lines:
        deployed._try_to_follow(line)

    assert (True, True, True) == (deployed.ready, deployed.complete, deployed.away)
    assert {"state": "none", "version": None, "why": "store_away"} == deployed.states()[OTHER_LINE]
    assert {"state": "ready", "version": 1, "why": "store_away"} == deployed.states()[LINE]


def test_a_line_whose_alias_was_never_read_or_named_a_release_is_missing(loads: Loads, clock: list[float]) -> None:
    source = FakeSource(LINE, OTHER_LINE)
    source.champion[OTHER_LINE] = None
    deployed = following(source)
    loads.broken[2] = refusal()
    source.champion[OTHER_LINE] = Deployment(OTHER_LINE, 2, "2" * 64)
    deployed._try_to_follow(OTHER_LINE)
    assert not deployed.complete
    source.fail = OSError("away")
    clock[0] += 100
    deployed._try_to_follow(OTHER_LINE)
    assert (False, "failed") == (deployed.complete, deployed.states()[OTHER_LINE]["state"])

    class Away(FakeSource):
        def current(self, line: str) -> Deployment | None:
            if line == OTHER_LINE:
                raise OSError("away")
            return super().current(line)

    never = following(Away(LINE, OTHER_LINE))
    assert (False, "failed") == (never.complete, never.states()[OTHER_LINE]["state"])


# A version that is asked for by its number


class Moves(dict[str, Deployment]):
    """What lines serve; right after it was read once, it is another."""

    then: dict[str, Deployment]

    def get(self, line: str, default: Any = None) -> Any:
        found = super().get(line, default)
        self.update(self.then)
        return found


def test_a_version_that_is_asked_for_is_the_one_that_answers_though_the_line_moves_meanwhile(loads: Loads) -> None:
    source = FakeSource(LINE, OTHER_LINE)
    deployed = following(source, capacity=1)
    deployed.cache.drop(Deployment(OTHER_LINE, 1, "1" * 64))
    for number in (1, 2):
        moving = Moves({LINE: ONE})
        moving.then = {LINE: TWO}
        deployed._current = moving
        found = deployed.predictor(LINE, number)

        assert found is not None
        assert number == found.deployment.version


def test_the_version_that_serves_is_not_loaded_again_when_others_were_asked_for(loads: Loads) -> None:
    deployed = following(FakeSource(LINE), capacity=1)
    held = deployed.loaded(LINE)
    assert deployed.predictor(LINE, 2) is not None
    assert [ONE, TWO] == loads.made

    assert held is deployed.loaded(LINE, 1) is deployed.predictor(LINE, 1)
    assert deployed.loaded(LINE, 2) is None, "only what is deployed"
    assert [ONE, TWO] == loads.made
