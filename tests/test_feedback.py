"""A truth that comes later counts once, for the arm and stage that answered, and anything else is refused by name."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from esteira.errors import DataError, OutsideError
from esteira.rollout.ab import AB
from esteira.rollout.outcomes import outcome_of
from esteira.rollout.sums import labelled
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from families.tabular import FAMILY
from serving import shapes
from serving.feedback import _asked
from serving.problems import Problem
from tests.rollout_fakes import TEST, Line, Model, load_models
from tests.rollout_states import after, rollout
from tests.serving_fakes import LINE, FakeSource, ask, make_api
from tests.stores import sqlite_store, sqlite_template
from tests.test_split import EARLY, LATE

__all__ = ["sqlite_store", "sqlite_template"]


@pytest.fixture
def models() -> dict[int, Model]:
    return {1: Model(), 2: Model()}


@pytest.fixture
def line(
    tmp_path: Path, sqlite_store: Store, models: dict[int, Model], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    load_models(monkeypatch, models)
    made = Line(tmp_path, sqlite_store, models=models)
    made.write(20, stage=1)
    yield made
    made.stop()


def test_a_truth_counts_for_the_arm_and_stage_that_answered(line: Line) -> None:
    """H-41: accuracy only on units with a later label, attributed to the serving arm and stage."""
    for unit in (EARLY, LATE):
        line.ask(unit=unit, headers={"x-request-id": f"request-of-{unit}"})
    line.write(50, stage=2, look=False)
    right = line.label(request_id=f"request-of-{EARLY}", truth="yes")
    wrong = line.label(request_id=f"request-of-{LATE}", truth="no")

    assert (200, "candidate", 2, 1, 1.0, True) == (
        right[0], *(right[1][name] for name in ("arm", "version", "stage", "outcome", "counted")),
    )  # fmt: skip
    assert (200, "control", 1, 1, 0.0) == (
        wrong[0], *(wrong[1][name] for name in ("arm", "version", "stage", "outcome")),
    )  # fmt: skip
    sums = line.sums()
    assert (1, 1.0) == (sums[1]["candidate"].labelled, sums[1]["candidate"].accuracy)
    assert (1, 0.0) == (sums[1]["control"].labelled, sums[1]["control"].accuracy)
    assert 2 not in sums, "the stage is that of the answer, not of the truth"
    assert f'esteira_rollout_labels_total{{arm="candidate",line="{LINE}"}} 1.0' in line.page()


def test_a_truth_that_comes_twice_counts_once(line: Line) -> None:
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    said = [line.label(request_id="r1", truth=truth)[1] for truth in ("yes", "no")]

    assert [(True, 1.0), (False, 1.0)] == [(found["counted"], found["outcome"]) for found in said]
    assert 1 == line.sums()[1]["candidate"].labelled


def test_a_truth_may_name_the_unit(line: Line) -> None:
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    status, found = line.label(unit=EARLY, truth="yes")

    assert (200, "r1", "candidate") == (status, found["request_id"], found["arm"])


def test_an_answer_that_is_written_while_it_is_looked_for_is_found(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    note, label = Rollouts.note_units, Rollouts.label

    def note_late(self: Rollouts, units: Any) -> None:
        assert looked.wait(10)
        note(self, units)

    def look_first(self: Rollouts, *args: Any, **options: Any) -> Any:
        found = label(self, *args, **options)
        if not looked.is_set():
            looked.set()
            line.arms.flush(10)
        return found

    monkeypatch.setattr(Rollouts, "note_units", note_late)
    monkeypatch.setattr(Rollouts, "label", look_first)
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})

    assert 200 == line.label(request_id="r1", truth="yes")[0]


def test_each_row_of_a_request_has_a_truth_of_its_own(line: Line) -> None:
    line.ask([{}, {}, {}], unit=EARLY, headers={"x-request-id": "r1"})
    for row, truth in enumerate(("yes", "no")):
        assert 200 == line.label(request_id="r1", row=row, truth=truth)[0]

    assert (2, 1.0) == (line.sums()[1]["candidate"].labelled, line.sums()[1]["candidate"].outcome)
    assert 404 == line.label(request_id="r1", row=3, truth="yes")[0]


def test_a_unit_that_the_champion_answered_for_the_candidate_has_no_truth(line: Line, models: dict[int, Model]) -> None:
    models[2].does = lambda _: 1 / 0
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})

    assert 404 == line.label(request_id="r1", truth="yes")[0]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "bad_json", None),
        (b'{"truth": NaN, "unit": "a"}', 400, "nan_token", None),
        (b"[]", 422, "wrong_type", None),
        (b"{}", 422, "missing_field", "request_id"),
        (b'{"request_id": "r1"}', 422, "missing_field", "truth"),
        (b'{"request_id": "r1", "truth": null}', 422, "missing_field", "truth"),
        (b'{"request_id": "r1", "unit": "a", "truth": 1}', 422, "missing_field", "request_id"),
        (b'{"request_id": null, "truth": 1}', 422, "wrong_type", "request_id"),
        (b'{"request_id": "", "truth": 1}', 422, "wrong_type", "request_id"),
        (b'{"unit": 7, "truth": 1}', 422, "wrong_type", "unit"),
        (b'{"request_id": "r1", "truth": 1, "row": -1}', 422, "wrong_type", "row"),
        (b'{"request_id": "r1", "truth": 1, "row": true}', 422, "wrong_type", "row"),
        (b'{"request_id": "r1", "truth": 1, "row": 1e99}', 422, "wrong_type", "row"),
        (b'{"request_id": "r1", "truth": 1, "rows": 0}', 422, "unknown_field", "rows"),
        (b'{"request_id": "nobody", "truth": "yes"}', 404, "unknown_answer", "request_id"),
        (b'{"unit": "nobody", "truth": "yes"}', 404, "unknown_answer", "unit"),
        (b'{"request_id": "r1", "truth": "perhaps"}', 422, "unknown_class", "truth"),
        (b'{"request_id": "r1", "truth": {"a": [1]}}', 422, "unknown_class", "truth"),
    ],
)
def test_what_is_no_truth_is_refused_by_name_and_counts_nothing(
    line: Line, body: bytes, status: int, code: str, field: str | None
) -> None:
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    found, document, _ = ask(line.api, "/v1/feedback", body)

    assert (status, code, field) == (found, document["error"]["code"], document["error"]["field"])
    assert 0 == line.sums()[1]["candidate"].labelled


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"key": "wrong"}, 401),
        ({"method": "GET"}, 405),
        ({"headers": {"content-type": "text/csv"}}, 415),
    ],
    ids=["no key", "method", "type"],
)
def test_a_truth_is_sent_as_rows_are(line: Line, options: dict[str, Any], status: int) -> None:
    assert status == ask(line.api, f"/v1/{LINE}/feedback", b'{"unit": "a", "truth": 1}', **options)[0]


def test_a_store_that_is_away_is_told_as_such(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OutsideError("the store answers", code="store_away")

    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    monkeypatch.setattr(line.rollouts, "label", away)
    status, document = line.label(request_id="r1", truth="yes")
    assert (503, "outside") == (status, document["error"]["code"])
    monkeypatch.undo()

    assert 200 == line.label(request_id="r1", truth="yes")[0]


def test_a_service_without_a_registry_takes_no_truths(monkeypatch: pytest.MonkeyPatch) -> None:
    load_models(monkeypatch, {1: Model()})
    api = make_api(FakeSource(LINE))

    assert 404 == ask(api, "/v1/feedback", b'{"unit": "a", "truth": 1}')[0]


# Experiments


PLAN = {"primaries": ["conversion", "satisfaction"]}


@pytest.mark.slow
def test_users_of_an_experiment_count_once_in_both_primaries(line: Line, models: dict[int, Model]) -> None:
    """S-37 in part, on the served path: sticky hash assignment by user, two primaries (conversion rate, user satisfaction), a
    sample-ratio check on users, and what the policy reads of it.

    What comes of requests and truths over HTTP is, user by user, what arithmetic says.
    """
    line.write(50, stage=0, options=PLAN)
    chance = random.Random(37)
    said: dict[str, dict[str, list[list[float]]]] = {"candidate": {}, "control": {}}
    satisfied: dict[str, list[float]] = {"candidate": [], "control": []}
    for number in range(30):
        user = f"user-{number}"
        for turn in range(chance.choice([1, 1, 2, 5])):
            request = {"x-request-id": f"{user}-{turn}"}
            _, _, headers = line.ask([{}] * chance.choice([1, 2]), unit=user, headers=request)
            arm = headers["x-esteira-arm"]
            asked = said[arm].setdefault(user, [])
            asked.append([])
            if chance.random() < 0.8:
                right = chance.random() < 0.3
                found = line.label(request_id=f"{user}-{turn}", truth="yes" if right else "no")
                assert (200, arm, float(right), True) == (
                    found[0], *(found[1][name] for name in ("arm", "outcome", "counted")),
                )  # fmt: skip
                asked[-1].append(float(right))
        value = chance.random()
        first = line.label(unit=user, metric="satisfaction", truth=value)
        again = line.label(request_id=f"{user}-0", metric="satisfaction", truth=1 - value)
        assert (200, "satisfaction", value, True) == (
            first[0], *(first[1][name] for name in ("metric", "outcome", "counted")),
        )  # fmt: skip
        assert (value, False) == (again[1]["outcome"], again[1]["counted"])
        satisfied[arm].append(value)
    assert Draft202012Validator(shapes.LABELLED).is_valid(first[1])

    sums = line.sums()
    for arm, users in said.items():
        means = [fmean(known) for asked in users.values() if (known := [one for each in asked for one in each])]
        found = sums[0][arm]
        assert (len(users), sum(len(asked) ** 2 for asked in users.values())) == (found.units, found.units_sq)
        assert sum(map(len, users.values())) == found.served
        assert len(means) == found.labelled
        assert sum(means) == pytest.approx(found.outcome)
        assert sum(mean**2 for mean in means) == pytest.approx(found.outcome_sq)
        assert len(satisfied[arm]) == sums[1][arm].labelled
        assert sum(satisfied[arm]) == pytest.approx(sums[1][arm].outcome)

    policy = AB(ratio_units=20)
    plan = policy.planned(
        {"primaries": [{"name": name, "baseline": 0.3, "minimum_effect": 0.5} for name in PLAN["primaries"]]}
    )
    state = rollout(0, sums=sums, policy="ab", percent=50.0, options={**plan, "planned_units": 5})
    done = {one.rule: one for one in policy.decide(state, after(336)).findings}
    assert {"primary_conversion", "primary_satisfaction"} <= set(done)
    assert 30 == done["sample_ratio"].n


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"unit": EARLY, "metric": "mood", "truth": 1}, 404, "unknown_metric", "metric"),
        ({"unit": EARLY, "metric": "", "truth": 1}, 422, "wrong_type", "metric"),
        ({"unit": EARLY, "metric": None, "truth": 1}, 422, "wrong_type", "metric"),
        ({"unit": EARLY, "metric": "satisfaction", "truth": 1.01}, 422, "bad_truth", "truth"),
        ({"unit": EARLY, "metric": "satisfaction", "truth": "yes"}, 422, "bad_truth", "truth"),
        ({"unit": EARLY, "metric": "satisfaction", "truth": True}, 422, "bad_truth", "truth"),
        ({"unit": "nobody", "metric": "satisfaction", "truth": 1}, 404, "unknown_answer", "unit"),
    ],
)
def test_what_no_experiment_measures_is_refused(
    line: Line, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    line.write(20, stage=0, options=PLAN)
    line.ask(unit=EARLY)
    found, document = line.label(**body)

    assert (status, code, field) == (found, document["error"]["code"], document["error"]["field"])
    assert {0} == set(line.sums())


@pytest.mark.parametrize("by_truth", [True, False], ids=["truth", "metric"])
@pytest.mark.parametrize("right_first", [True, False], ids=["right way first", "other way first"])
def test_the_first_primary_is_never_the_mean_of_truths_and_of_what_is_sent_by_its_name(
    line: Line, by_truth: bool, right_first: bool
) -> None:
    line.write(20, stage=0, options={**PLAN, "truths": by_truth})
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    ways: dict[bool, dict[str, Any]] = {
        True: {"request_id": "r1", "truth": "yes"},
        False: {"unit": EARLY, "metric": "conversion", "truth": 0.25},
    }
    found = {way: line.label(**ways[way]) for way in (by_truth, not by_truth)[:: 1 if right_first else -1]}

    assert (200, True) == (found[by_truth][0], found[by_truth][1]["counted"])
    status, document = found[not by_truth]
    assert (422, "by_truth" if by_truth else "by_metric") == (status, document["error"]["code"])
    counted = line.sums()[0]["candidate"]
    assert (1, 1.0 if by_truth else 0.25) == (counted.labelled, counted.outcome)
    assert 200 == line.label(unit=EARLY, metric="satisfaction", truth=0.5)[0]


def test_truths_of_a_rollout_before_are_counted_beside_an_experiment_that_takes_none(line: Line) -> None:
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    line.write(20, stage=0, test_id="shop-8", options={**PLAN, "truths": False})

    assert (200, True) == ((found := line.label(request_id="r1", truth="yes"))[0], found[1]["counted"])


def test_a_metric_of_a_line_without_an_experiment_is_refused(line: Line) -> None:
    line.ask(unit=EARLY)

    assert "unknown_metric" == line.label(unit=EARLY, metric="satisfaction", truth=1)[1]["error"]["code"]


def test_a_rollout_that_is_no_experiment_counts_each_answer(line: Line) -> None:
    """H-43 is exact: units in the stage, each labelled one."""
    for number in range(3):
        line.ask(unit=EARLY, headers={"x-request-id": f"r{number}"})
        line.label(request_id=f"r{number}", truth="yes")

    found = line.sums()[1]["candidate"]
    assert (3, 3, 0) == (found.served, found.labelled, found.units)


# Outcomes


CLASSES = {"post": {"classes": [False, True]}}
VALUES = {"post": {"interval_quantile": 10.0}}


@pytest.mark.parametrize(
    ("truth", "prediction", "manifest", "expected"),
    [
        (True, True, CLASSES, 1.0),
        ("true", True, CLASSES, 1.0),
        (False, True, CLASSES, 0.0),
        (100, 100, VALUES, 1.0),
        (100, 105, VALUES, 0.5),
        (100, 97.5, VALUES, 0.75),
        (100, 111, VALUES, 0.0),
        (0, 0.5, VALUES, 0.95),
        (100, 105, {"post": {"interval_quantile": None}}, 1.0),
        (100, 115, {"post": {}}, 0.5),
    ],
)
def test_outcomes_of_a_table(truth: Any, prediction: Any, manifest: dict[str, Any], expected: float) -> None:
    """A class is right or wrong; a value falls with its error, by the width that covers 90 % of the champion's own."""
    assert expected == pytest.approx(outcome_of(FAMILY, truth, {"prediction": prediction}, manifest))


@pytest.mark.parametrize("truth", [None, float("nan"), float("inf"), "many", {"a": 1}, [1]])
def test_a_truth_that_is_none_of_the_label_s_is_refused(truth: Any) -> None:
    with pytest.raises(DataError) as caught:
        outcome_of(FAMILY, truth, {"prediction": 1.0}, VALUES)
    assert "bad_truth" == caught.value.code


def test_a_family_that_takes_no_manifest_is_asked_without_it() -> None:
    class Plain:
        def outcome(self, truth: Any, answer: Any) -> float:
            return float(truth - answer["prediction"])

    assert 0.25 == outcome_of(Plain(), 1.25, {"prediction": 1.0}, VALUES)
    for truth in (3.0, 0.0):
        with pytest.raises(DataError, match="outside"):
            outcome_of(Plain(), truth, {"prediction": 1.0}, VALUES)


def test_labels_are_sums_of_outcomes(line: Line) -> None:
    """H-41: running sums (count, sum, sum of squares), not raw payloads."""
    for number, truth in enumerate(("yes", "no", "yes")):
        line.ask(unit=LATE, headers={"x-request-id": f"r{number}"})
        line.label(request_id=f"r{number}", truth=truth)
    found = line.rollouts.sums(TEST)[1]["control"]

    expected = labelled(1.0) + labelled(0.0) + labelled(1.0)
    assert (expected.labelled, expected.outcome, expected.outcome_sq) == (
        found.labelled,
        found.outcome,
        found.outcome_sq,
    )


# What the document of the API says of it


TRUTHS = st.fixed_dictionaries(
    {},
    optional={
        "request_id": st.one_of(st.none(), st.text(max_size=3), st.just("x" * 1001), st.integers()),
        "unit": st.one_of(st.none(), st.text(max_size=3), st.booleans()),
        "row": st.one_of(st.integers(-2, 3), st.just(1_000_000), st.just(2.0), st.booleans(), st.just(1.5), st.none()),
        "truth": st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.just([1])),
        "metric": st.one_of(st.none(), st.text(max_size=3), st.integers()),
        "rows": st.just(0),
    },
)


@given(TRUTHS)
def test_the_schema_of_a_truth_takes_what_the_service_reads(truth: dict[str, Any]) -> None:
    try:
        _asked(json.dumps(truth).encode())
        read = True
    except Problem:
        read = False

    assert read is Draft202012Validator(shapes.TRUTH).is_valid(truth), truth


def test_the_document_describes_truths_where_they_are_taken(line: Line) -> None:
    line.ask(unit=EARLY, headers={"x-request-id": "r1"})
    document = ask(line.api, "/openapi.json", method="GET")[1]
    validate(document)

    assert {"/v1/feedback", f"/v1/{LINE}/feedback"} <= set(document["paths"])
    answer = document["paths"]["/v1/predict"]["post"]["responses"]["200"]
    assert "X-Esteira-Arm" in answer["headers"]
    said = line.label(request_id="r1", truth="yes")[1]
    assert Draft202012Validator(shapes.LABELLED).is_valid(said)


def test_the_document_is_silent_of_truths_where_none_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    load_models(monkeypatch, {1: Model()})
    document = ask(make_api(FakeSource(LINE)), "/openapi.json", method="GET")[1]

    assert not [path for path in document["paths"] if "feedback" in path]
