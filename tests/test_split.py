"""One Bento, two versions: units stay where they are, the candidate costs nobody an answer, and a share taken back is gone at once."""

import asyncio
import itertools
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import OutsideError, Refused
from esteira.rollout import split as splits
from esteira.rollout.router import bucket, to_candidate
from esteira.rollout.state import Side
from esteira.store import Store
from serving import splits as splits_module
from serving.answering import Pace
from serving.cache import AnswerCache
from serving.deployments import Deployment
from serving.split import THREADS, finite
from tests.rollout_fakes import CHALLENGER, TEST, Hangs, Line, Model, load_models, slow
from tests.serving_fakes import LINE, asked, until
from tests.stores import sqlite_store, sqlite_template

__all__ = ["sqlite_store", "sqlite_template"]

# Of test `shop-7` and salt `s`: a unit of the first percents, and one of the last.
EARLY = next(f"u{number}" for number in range(1000) if bucket("s", TEST, f"u{number}") < 500)
LATE = next(f"u{number}" for number in range(1000) if 8000 <= bucket("s", TEST, f"u{number}") < 9000)


@pytest.fixture
def models() -> dict[int, Model]:
    return {1: Model(), 2: Model(), 3: Model()}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, models: dict[int, Model]) -> list[int | None]:
    return load_models(monkeypatch, models)


@pytest.fixture
def line(tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None]) -> Iterator[Line]:
    made = Line(tmp_path, sqlite_store, models=models)
    yield made
    made.stop()


# Who answers


def test_without_a_split_the_champion_answers_and_nobody_is_counted(line: Line) -> None:
    line.splits.look()
    status, document, headers = line.ask(unit=EARLY)

    assert (200, 1) == (status, document["version"])
    assert "x-esteira-arm" not in headers
    assert {} == line.sums()


def test_a_unit_is_answered_by_the_version_that_it_belongs_to(line: Line) -> None:
    """H-40: deterministic; the answer names the version that computed it."""
    line.write(10)
    for number in range(60):
        _, document, headers = line.ask(unit=f"user-{number}")
        candidate = to_candidate(10, bucket("s", TEST, f"user-{number}"))

        assert (2 if candidate else 1) == document["version"]
        assert ("2" if candidate else "1") * 64 == document["bundle_id"]
        assert ("candidate" if candidate else "control") == headers["x-esteira-arm"]


def test_a_unit_of_the_candidate_stays_there_as_the_share_grows(line: Line) -> None:
    """H-40: a unit in the candidate stays there as the percent grows."""
    there: set[str] = set()
    units = [f"user-{number}" for number in range(40)]
    for stage, percent in enumerate((10, 25, 50, 100)):
        line.write(percent, stage=stage, look=stage == 0)
        now = {unit for unit in units if line.version(unit=unit) == 2}
        assert there <= now
        there = now
    assert set(units) == there


def test_a_request_without_a_unit_is_one_itself(line: Line) -> None:
    line.write(50)
    for number in range(20):
        asked_by = f"request-{number}"
        _, document, _ = line.ask(headers={"x-request-id": asked_by})
        assert (2 if to_candidate(50, bucket("s", TEST, asked_by)) else 1) == document["version"]


def test_the_family_says_what_a_unit_is(line: Line, monkeypatch: pytest.MonkeyPatch, models: dict[int, Model]) -> None:
    """H-40: unit = plan's intent id (fallback: plan id). A family has a word for it, and the header is heard first."""
    monkeypatch.setattr("serving.splits.load_family", lambda _: _Plans)
    line.write(20)

    assert (2, 1) == (line.version({"intent_id": EARLY}), line.version({"intent_id": LATE}))
    assert (2, 1) == (line.version({"plan_id": EARLY}), line.version({"plan_id": LATE}))
    assert 1 == line.version({"intent_id": EARLY}, unit=LATE)


class _Plans:
    @staticmethod
    def unit(row: Any) -> Any:
        return row.get("intent_id") or row["plan_id"]


def test_rows_of_several_units_are_the_champion_s_and_count_for_nobody(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.splits.load_family", lambda _: _Plans)
    line.write(20)
    status, document, headers = line.ask([{"intent_id": EARLY}, {"intent_id": LATE}])

    assert (200, 1, 2) == (status, document["version"], len(document["rows"]))
    assert "x-esteira-arm" not in headers
    assert {} == line.sums()
    assert f'esteira_rollout_mixed_total{{line="{LINE}"}} 1.0' in line.page()


def test_a_row_that_the_family_cannot_name_is_named_by_its_request(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.splits.load_family", lambda _: _Plans)
    line.write(50)
    _, document, _ = line.ask({"neither": 1}, headers={"x-request-id": EARLY})

    assert 2 == document["version"]


def test_named_units_are_always_the_candidate_s(line: Line) -> None:
    """S-38: internal and beta users before everybody."""
    line.write(0, options={"units": [LATE]})

    assert (2, 1) == (line.version(unit=LATE), line.version(unit=EARLY))


def test_a_version_that_is_asked_for_by_number_is_no_part_of_a_rollout(line: Line) -> None:
    line.write(100)
    status, document, headers = line.ask(unit=EARLY, query="version=1", key="operator")

    assert (200, 1) == (status, document["version"])
    assert "x-esteira-arm" not in headers
    assert {} == line.sums()


def test_a_unit_that_is_named_twice_is_refused(line: Line) -> None:
    line.write(50)

    async def twice() -> int:
        sent: list[Any] = []
        headers = [(b"authorization", b"Bearer caller"), (b"x-unit-id", b"a"), (b"x-unit-id", b"b")]
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers}

        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"rows": [{}]}', "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await line.api(scope, receive, send)
        return int(sent[0]["status"])

    assert 400 == asyncio.run(twice())


# A share that was taken back


@pytest.mark.requirement("H-44")
@pytest.mark.requirement("S-38")
@pytest.mark.parametrize(
    "end",
    [
        lambda line: line.clear(),
        lambda line: line.write(0, look=False),
        lambda line: splits.path(line.home, LINE).write_bytes(b'{"schema": 1, "test_id": "shop'),
        lambda line: splits.path(line.home, LINE).write_bytes(b'{"schema": 99}'),
    ],
    ids=["cleared", "zero", "cut short", "unknown schema"],
)
def test_the_next_request_after_a_rollback_is_answered_by_the_champion(line: Line, end: Any) -> None:
    """H-44's Done when: next request after rollback is answered by the champion. S-38's: the switch acts within one request.

    Nobody told the service, and what follows splits did not look again.
    """
    line.write(100)
    assert 2 == line.version(unit=EARLY)
    end(line)

    assert 1 == line.version(unit=EARLY)


def test_a_share_that_grew_is_used_by_the_next_request(line: Line) -> None:
    line.write(1)
    assert 1 == line.version(unit=LATE)
    line.write(100, stage=3, look=False)

    assert 2 == line.version(unit=LATE)
    assert {3} == {stage for stage, arms in line.sums().items() if "candidate" in arms}


def test_another_rollout_waits_for_its_own_candidate(line: Line, loads: list[int | None]) -> None:
    line.write(100)
    line.write(100, look=False, test_id="shop-8", challenger=Side(3, "3" * 64))
    assert 1 == line.version(unit=EARLY)
    line.splits.look()

    assert 3 == line.version(unit=EARLY)
    assert [1, 2, 3] == loads


def test_a_split_of_another_champion_is_none(line: Line) -> None:
    """The alias says what serves; a split that was made for another version is of another time."""
    line.write(100, champion=Side(9, "9" * 64))
    _, document, headers = line.ask(unit=EARLY)

    assert 1 == document["version"]
    assert "x-esteira-arm" not in headers


def test_a_candidate_that_became_champion_answers_everybody_and_is_loaded_once(
    line: Line, loads: list[int | None]
) -> None:
    line.write(50)
    line.source.champion[LINE] = Deployment(LINE, 2, CHALLENGER.bundle_id)
    line.deployed._try_to_follow(LINE)
    assert {2} == {line.version(unit=unit) for unit in (EARLY, LATE)}
    line.clear()
    line.splits.look()

    assert {2} == {line.version(unit=unit) for unit in (EARLY, LATE)}
    assert [1, 2] == loads


def test_the_candidate_s_model_goes_when_the_rollout_ends(line: Line) -> None:
    line.write(50)
    assert 2 == line.deployed.models
    line.clear()
    line.splits.look()

    assert 1 == line.deployed.models


# Candidates that fail


@pytest.mark.parametrize(
    ("does", "sure"),
    [
        (lambda _: 1 / 0, 0.75),
        (lambda _: math.nan, 0.75),
        (lambda _: {"scores": [1.0, -math.inf]}, 0.75),
        (slow(0.5), 0.75),
        (lambda _: "yes", "high"),
        (lambda _: "yes", [0.75]),
        (lambda _: "yes", True),
    ],
    ids=["raises", "nan", "infinite", "slow", "a word as confidence", "a list as confidence", "true as confidence"],
)
def test_a_candidate_that_fails_is_answered_for_by_the_champion_and_counted(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None], does: Any, sure: Any
) -> None:
    """H-40: candidate error -> answer by champion, counted as candidate error."""
    line = Line(tmp_path, sqlite_store, models=models, pace=Pace(seconds=0.5))
    try:
        line.write(100)
        models[2].does, models[2].sure = does, sure
        status, document, headers = line.ask(unit=EARLY)

        assert (200, 1, "yes") == (status, document["version"], document["rows"][0]["prediction"])
        assert "candidate" == headers["x-esteira-arm"], "the unit stays the candidate's"
        sums = line.sums()
        assert (1, 1, {}) == (
            sums[0]["candidate"].served,
            sums[0]["candidate"].errors,
            dict(sums[0]["candidate"].latency),
        )
        assert "control" not in sums[0], "what the champion did for another is not its own"
        assert [] == line.rollouts.units(TEST), "the champion's answer says nothing of the candidate"
        assert f'esteira_rollout_units_total{{arm="candidate",line="{LINE}",outcome="error"}} 1.0' in line.page()
    finally:
        line.stop()


def test_a_candidate_that_refuses_what_the_champion_takes_has_failed(line: Line, models: dict[int, Model]) -> None:
    models[2].finds = lambda _: True
    line.write(100)

    assert 1 == line.version(unit=EARLY)
    assert 1 == line.sums()[0]["candidate"].errors


def test_a_row_that_both_refuse_is_the_caller_s_fault_and_nobody_s_error(line: Line) -> None:
    line.write(20)
    for unit in (EARLY, LATE):
        status, document, _ = line.ask({"bad": 1}, unit=unit)
        assert (422, "type") == (status, document["error"]["code"])

    assert {} == line.sums()


def test_a_row_that_breaks_both_counts_against_whom_it_belongs_to(line: Line, models: dict[int, Model]) -> None:
    """Else an arm would look better for having somebody behind it."""
    models[1].does = models[2].does = lambda _: 1 / 0
    line.write(20)

    assert [500, 500] == [line.ask(unit=unit)[0] for unit in (EARLY, LATE)]
    sums = line.sums()[0]
    assert (1, 1) == (sums["candidate"].errors, sums["control"].errors)


def test_candidates_that_hang_take_no_more_threads_than_they_have(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None]
) -> None:
    line = Line(tmp_path, sqlite_store, models=models, pace=Pace(seconds=0.4))
    hangs = Hangs()
    models[2].does = hangs
    try:
        line.write(100)

        async def many(number: int) -> list[tuple[int, Any, dict[str, str]]]:
            body = json.dumps({"rows": [{}]}).encode()
            return await asyncio.gather(*(asked(line.api, "/v1/predict", body) for _ in range(number)))

        for _ in range(3):
            assert {(200, 1)} == {
                (status, document["version"]) for status, document, _ in asyncio.run(many(2 * THREADS))
            }
        assert THREADS == models[2].asked, "once all of them hang it is asked no more"
        assert 6 * THREADS == line.sums()[0]["candidate"].errors

        # It still hangs when it was rolled back and another one has its turn.
        line.write(100, test_id="shop-8", challenger=Side(3, "3" * 64), look=False)
        for _ in range(2):
            line.splits.look()
        assert {(200, 3)} == {(status, document["version"]) for status, document, _ in asyncio.run(many(2 * THREADS))}
        assert line.arms.flush(10)
        after = line.rollouts.sums("shop-8")[0]["candidate"]
        assert (2 * THREADS, 0) == (after.served, after.errors)
        assert 1 == len(line.api._split._lanes)  # type: ignore[union-attr]
    finally:
        hangs.free.set()
        line.stop()


def test_a_candidate_that_hangs_keeps_no_slot(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None]
) -> None:
    line = Line(tmp_path, sqlite_store, models=models, pace=Pace(seconds=0.4))
    hangs = Hangs()
    models[2].does = hangs
    try:
        line.write(100)
        line.ask(unit=EARLY)
        assert (0, 0) == (line.api._answering.gate.inside, line.api.bodies)
    finally:
        hangs.free.set()
        line.stop()


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (Refused("it answers otherwise", code="golden_mismatch"), True),
        (RuntimeError("its graph is odd"), True),
        (OutsideError("the store answers", code="store_away"), False),
    ],
    ids=["refused", "broken", "away"],
)
def test_a_candidate_that_cannot_be_loaded_answers_nobody_and_fails_by_its_own_fault_only(
    line: Line, monkeypatch: pytest.MonkeyPatch, error: Exception, counts: bool
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(line.deployed, "beside", fail)
    line.write(100)
    line.splits.look()

    assert 1 == line.version(unit=EARLY)
    assert (1 if counts else 0) == sum(arms["candidate"].errors for arms in line.sums().values())
    assert [str(error)] == line.troubles, "told once"


def test_a_candidate_that_can_be_loaded_later_is(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1000.0]
    monkeypatch.setattr("serving.splits.time", SimpleNamespace(monotonic=lambda: times[0]))
    real, tries = line.deployed.beside, []

    def fail(*given: Any) -> Any:
        tries.append(times[0])
        if len(tries) < 4:
            raise Refused("not yet", code="golden_mismatch")
        return real(*given)

    monkeypatch.setattr(line.deployed, "beside", fail)
    line.write(100)
    for _ in range(200):
        times[0] += 0.1
        line.splits.look()

    assert [2, 4, 8] == [round(later - earlier) for earlier, later in itertools.pairwise(tries)]
    assert 2 == line.version(unit=EARLY)


def test_a_version_of_another_bundle_is_no_candidate(line: Line) -> None:
    line.write(100, challenger=Side(2, "7" * 64))

    assert 1 == line.version(unit=EARLY)
    assert "version 2 of 777777777777" in line.troubles[0]


def test_a_service_starts_though_its_candidate_cannot_be_loaded(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line.deployed, "beside", lambda *_: 1 / 0)
    line.write(100, look=False)
    line.splits.start()

    assert 1 == line.version(unit=EARLY)


def test_a_service_starts_though_its_candidate_takes_for_ever(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(splits_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(line.deployed, "beside", lambda *_: hangs.wait(30))
    line.write(100, look=False)
    try:
        line.splits.start()
        assert 1 == line.version(unit=EARLY)
    finally:
        hangs.set()


def test_a_split_that_appears_is_found_without_being_told(line: Line) -> None:
    line.splits.start()
    line.write(100, look=False)

    assert until(lambda: line.version(unit=EARLY) == 2)


def test_a_look_that_fails_does_not_end_the_looking(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.splits.load_family", lambda _: 1 / 0)
    line.splits.start()
    line.write(100, look=False)
    assert until(lambda: line.troubles)
    monkeypatch.undo()

    assert line.splits._thread.is_alive()


# What is counted


def test_each_arm_s_units_confidences_and_latencies_are_counted(line: Line) -> None:
    line.write(50, stage=1)
    for number in range(40):
        line.ask([{}, {}], unit=f"user-{number}")
    sums = line.sums()[1]
    expected = sum(to_candidate(50, bucket("s", TEST, f"user-{number}")) for number in range(40))

    assert (expected, 40 - expected) == (sums["candidate"].served, sums["control"].served)
    assert (2 * expected, 0.75) == (sums["candidate"].sure, sums["candidate"].mean_confidence)
    assert (0, 0) == (sums["candidate"].errors, sums["control"].errors)
    assert expected == sum(sums["candidate"].latency.values())


@pytest.mark.parametrize("percent", [10, 50])
def test_a_tenth_of_the_units_is_timed_of_the_champion_and_all_of_the_candidate(line: Line, percent: int) -> None:
    """By threads both, or the candidate's detour would look like its slowness."""
    line.write(percent)
    for number in range(150):
        line.ask(unit=f"user-{number}")
    sums = line.sums()[0]
    places = [bucket("s", TEST, f"user-{number}") for number in range(150)]

    assert sum(place < percent * 100 for place in places) == sum(sums["candidate"].latency.values())
    assert sum(place >= 9000 for place in places) == sum(sums["control"].latency.values())
    assert 150 == sums["candidate"].served + sums["control"].served


@pytest.mark.parametrize(("prediction", "sure"), [(math.nan, 0.75), ("yes", "high")], ids=["answer", "confidence"])
def test_an_answer_of_the_champion_s_that_is_no_number_is_its_error(
    line: Line, models: dict[int, Model], prediction: Any, sure: Any
) -> None:
    models[1].does, models[1].sure = lambda _: prediction, sure
    line.write(20)

    assert 200 == line.ask(unit=LATE)[0]
    assert 1 == line.sums()[0]["control"].errors


def test_large_requests_are_split_and_counted_too(line: Line) -> None:
    line.write(20)
    row = {"text": "x" * 60_000}

    assert (2, 1) == (line.version(row, unit=EARLY), line.version(row, unit=LATE))
    assert (1, 1) == (line.sums()[0]["candidate"].served, line.sums()[0]["control"].served)


def test_an_answer_that_was_kept_is_not_given_while_a_split_is_live(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None]
) -> None:
    """It would say nothing of either version's speed, and a row that comes again is asked again."""
    line = Line(tmp_path, sqlite_store, models=models, cache=AnswerCache(1_000_000))
    try:
        predictor = line.deployed.loaded(LINE)
        assert predictor is not None
        predictor.deterministic = True
        asked_so_far = []
        for percent in (None, None, 20, 20):
            if percent is not None:
                line.write(percent)
            line.ask(unit=LATE)
            asked_so_far.append(models[1].asked)

        assert [1, 1, 2, 3] == asked_so_far
    finally:
        line.stop()


def test_the_share_of_this_process_is_told(line: Line) -> None:
    line.write(25)
    assert f'esteira_rollout_percent{{line="{LINE}"}} 25.0' in line.page()
    line.clear()
    line.splits.look()

    assert "esteira_rollout_percent{" not in line.page()


# Two services behind a proxy


@pytest.mark.parametrize(("alias", "arm", "version"), [("champion", "control", 1), ("challenger", "candidate", 2)])
def test_a_service_behind_a_proxy_answers_with_its_own_version_and_counts_it(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None], alias: str, arm: str, version: int
) -> None:  # fmt: skip
    line = Line(tmp_path, sqlite_store, models=models, alias=alias)
    try:
        line.source.champion[LINE] = Deployment(LINE, version, str(version) * 64)
        line.deployed._try_to_follow(LINE)
        line.write(100, options={"outside": True}, stage=2)
        found = [line.ask(unit=unit) for unit in (EARLY, LATE)]

        assert {(200, version, arm)} == {
            (status, document["version"], headers["x-esteira-arm"]) for status, document, headers in found
        }
        sums = line.sums()
        assert {2: {arm}} == {stage: set(arms) for stage, arms in sums.items()}
        assert (2, 2) == (sums[2][arm].served, sum(sums[2][arm].latency.values()))
        assert (3 - version) not in loads[1:], "the other version is another service's"
    finally:
        line.stop()


@pytest.mark.parametrize(("alias", "version", "other"), [("champion", 1, "candidate"), ("challenger", 2, "control")])
def test_what_the_other_service_could_not_answer_is_counted_as_its_error_and_once(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None], alias: str, version: int, other: str
) -> None:  # fmt: skip
    """H-40: candidate error -> answer by champion, counted as candidate error; behind a proxy that asks again, too."""
    line = Line(tmp_path, sqlite_store, models=models, alias=alias)
    own = "candidate" if other == "control" else "control"
    try:
        line.source.champion[LINE] = Deployment(LINE, version, str(version) * 64)
        line.deployed._try_to_follow(LINE)
        line.write(50, options={"outside": True, "asks_again": True})
        for said, arm in ((other, other), (own, own), ("nobody", own)):
            status, document, headers = line.ask(unit=EARLY, headers={"x-esteira-arm": said})
            assert (200, version, arm) == (status, document["version"], headers["x-esteira-arm"])
        models[version].does = lambda _: 1 / 0
        for said in (own, "nobody", other):
            assert 500 == line.ask(unit=EARLY, headers={"x-esteira-arm": said})[0]

        sums = line.sums()[0]
        assert (2, 2, {}) == (sums[other].served, sums[other].errors, dict(sums[other].latency))
        assert (3, 1) == (sums[own].served, sums[own].errors), "the proxy asks the other where it says whose it is"
        assert {own} == {unit.arm for unit in line.rollouts.units(TEST)}
    finally:
        line.stop()


def test_a_caller_cannot_say_whose_its_request_is_where_the_service_splits(line: Line) -> None:
    line.write(20)
    line.ask(unit=LATE, headers={"x-esteira-arm": "candidate"})

    assert {"control": 0} == {arm: sums.errors for arm, sums in line.sums()[0].items()}


@pytest.mark.parametrize("options", [{"outside": True}, {"outside": True, "asks_again": False}, {"asks_again": True}])
def test_a_caller_cannot_say_whose_its_request_is_behind_what_does_not_ask_again(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None], options: dict[str, Any]
) -> None:
    """A gateway passes on what callers send: one of them could else end any rollout, or hide a candidate's faults."""
    line = Line(tmp_path, sqlite_store, models=models, alias="challenger")
    try:
        line.source.champion[LINE] = Deployment(LINE, 2, "2" * 64)
        line.deployed._try_to_follow(LINE)
        line.write(50, options=options)
        for does in (models[2].does, lambda _: 1 / 0):
            models[2].does = does
            for said in ("control", "candidate"):
                line.ask(unit=EARLY, headers={"x-esteira-arm": said})

        assert {"candidate": (4, 2)} == {arm: (sums.served, sums.errors) for arm, sums in line.sums()[0].items()}
    finally:
        line.stop()


def test_a_service_of_another_alias_takes_part_in_no_rollout(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], loads: list[int | None]
) -> None:
    line = Line(tmp_path, sqlite_store, models=models, alias="staging")
    try:
        line.write(100)
        _, document, headers = line.ask(unit=EARLY)

        assert (1, False) == (document["version"], "x-esteira-arm" in headers)
    finally:
        line.stop()


# Numbers


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.floats()),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=8,
    )
)
def test_an_answer_is_finite_when_json_without_nan_can_write_it(value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
        writable = True
    except ValueError:
        writable = False

    assert writable is finite(value)


def test_numbers_of_numpy_are_looked_at_too() -> None:
    import numpy as np

    good = [np.float32(1.5), np.float64(2), np.array([1.0, 2.0]), {"a": (np.int64(3),)}]
    bad = [np.float32("nan"), np.float64("inf"), np.array([[1.0, np.nan]]), [(np.float64("nan"),)]]
    assert [True] * 4 == [finite(value) for value in good]
    assert [False] * 4 == [finite(value) for value in bad]


def test_a_request_looks_at_the_split_s_file_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.write(50)
    looks = []
    real, file = os.stat, splits.path(line.home, LINE)

    def stat(path: Any, **more: Any) -> os.stat_result:
        looks.append(path)
        return real(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    line.ask(unit=EARLY)
    monkeypatch.undo()

    assert 1 == looks.count(file)
