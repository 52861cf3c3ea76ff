"""Running sums say the same however the log is cut, ordered and added up, and a label counts for the arm that answered."""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esteira.latency import BOUNDS
from esteira.rollout.router import routed
from esteira.rollout.sums import ArmName, Sums, Tally, labelled
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from serving.arms import Arms
from serving.arms import Key as ArmKey
from tests.rollout_states import answered
from tests.stores import sqlite_store, sqlite_template

__all__ = ["sqlite_store", "sqlite_template"]

Key = tuple[int, ArmName]
PERCENTS = (10.0, 25.0, 50.0)

# Sixty-fourths add up without rounding, so that "the same" can be asked to the last bit.
PART = st.integers(0, 64).map(lambda value: value / 64)
ANSWER = st.fixed_dictionaries({
    "unit": st.integers(0, 400).map(str), "stage": st.integers(0, 2), "seconds": st.floats(0, 60),
    "confidence": st.none() | PART, "error": st.booleans(), "truth": st.none() | PART,
})  # fmt: skip


def replayed(log: Iterable[Mapping[str, Any]]) -> dict[Key, Sums]:
    """What a log of answers and, later, labels comes to: each unit in the arm and stage that answered it first."""
    tallies: dict[Key, Tally] = defaultdict(Tally)
    labels: dict[Key, Sums] = defaultdict(Sums)
    served: dict[str, Key] = {}
    for line in log:
        if "truth" in line:
            labels[served[line["unit"]]] += labelled(line["truth"])
            continue
        key = whose(line)
        served.setdefault(line["unit"], key)
        tallies[key].add(line["seconds"], [line["confidence"]], error=line["error"])
    return {key: tally.sums() + labels[key] for key, tally in tallies.items()}


def whose(line: Mapping[str, Any]) -> Key:
    return line["stage"], "candidate" if routed("salt", "t", PERCENTS[line["stage"]], line["unit"]) else "control"


def as_log(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers by stage, then one label for each unit that has a truth: late, as labels are."""
    answers = sorted(({k: v for k, v in one.items() if k != "truth"} for one in drawn), key=lambda one: one["stage"])
    truths = {one["unit"]: one["truth"] for one in drawn if one["truth"] is not None and not one["error"]}
    return [*answers, *({"unit": unit, "truth": truth} for unit, truth in truths.items())]


@pytest.mark.requirement("H-41")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANSWER, max_size=40), st.integers(1, 3))
def test_replaying_a_log_gives_the_same_aggregates(
    sqlite_store: Store, drawn: list[dict[str, Any]], workers: int
) -> None:
    """H-41. Done when: replaying a log gives the same aggregates.

    The service's own counters of several workers, a restart among them, write into the store, and truths come to whichever answer
    they are about; the log of what was served, written out, read back and replayed by one, comes to the same counts,
    sums, squares and histograms of each arm and stage.
    """
    log, test, rollouts = as_log(drawn), secrets.token_hex(8), Rollouts(sqlite_store)
    arms = [Arms(lambda: rollouts, source=f"worker-{number}") for number in range(workers)]
    first: dict[str, str] = {}
    for number, line in enumerate(log):
        if "truth" in line:
            continue
        if number == len(log) // 2:
            arms[0]._write(rollouts)
            arms[0] = Arms(lambda: rollouts, source="worker-0-again")
        (stage, arm), one, request = whose(line), arms[number % workers], f"{test}-{number}"
        key, answer = ArmKey(test, stage, arm), {"prediction": "yes", "confidence": line["confidence"]}
        one.count(key, [] if line["error"] else [answer], seconds=line["seconds"], error=line["error"])
        one.note(key, "tabular", 1, line["unit"], request, [answer])
        first.setdefault(line["unit"], request)
    for one in arms:
        one._write(rollouts)
        one._write(rollouts)  # twice is once
    for line in log:
        if "truth" in line:
            rollouts.label(outcome=lambda _, value=line["truth"]: value, request_id=first[line["unit"]])  # type: ignore[misc]

    live = {(stage, arm): sums for stage, found in rollouts.sums(test).items() for arm, sums in found.items()}
    again = replayed(json.loads(text) for text in [json.dumps(line) for line in log])

    assert live == again
    assert len(log) == sum(one.served + one.labelled for one in again.values())


@given(st.lists(ANSWER, min_size=1, max_size=40))
def test_sums_are_written_and_read_back_whole(drawn: list[dict[str, Any]]) -> None:
    for sums in replayed(as_log(drawn)).values():
        assert sums == Sums.from_dict(json.loads(json.dumps(sums.to_dict())))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {**Sums().to_dict(), "rows": [1, 2]},
        {**Sums().to_dict(), "latency": 3},
        {**Sums().to_dict(), "served": "many"},
    ],
    ids=["nothing", "a payload", "no histogram", "no number"],
)
def test_what_is_no_sums_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Sums.from_dict(broken)


def test_an_answer_that_failed_has_no_confidence_and_no_latency() -> None:
    failed = answered(0.5, confidence=0.9, error=True)

    assert (1, 1, 0, 0.0, {}) == (failed.served, failed.errors, failed.sure, failed.confidence, failed.latency)
    assert failed.error_rate == 1.0
    assert failed.mean_confidence is None
    assert failed.latency_at(0.95) is None


def test_a_label_late_by_two_stages_counts_for_the_stage_that_answered() -> None:
    unit = next(name for name in map(str, range(100)) if routed("salt", "t", 10, name))
    answer = {"unit": unit, "seconds": 0.01, "confidence": 0.75, "error": False}

    found = replayed([{**answer, "stage": 0}, {**answer, "stage": 2}, {"unit": unit, "truth": 1.0}])

    assert {(0, "candidate"): 1, (2, "candidate"): 0} == {key: sums.labelled for key, sums in found.items()}
    assert 1.0 == found[0, "candidate"].accuracy


@given(st.lists(st.floats(0.0001, 80), min_size=1, max_size=100), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_upper_bound_of_its_bucket(seconds: list[float], share: float) -> None:
    sums = reduce(add, (answered(one) for one in seconds))
    exact = sorted(seconds)[max(1, -int(-share * len(seconds) // 1)) - 1]
    found = sums.latency_at(share)

    assert found is not None
    assert exact < found
    assert found <= max(BOUNDS[0], exact * 1.15)
