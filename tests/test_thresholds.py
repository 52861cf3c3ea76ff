"""Fixed limits do what the analysis of a canary tool does with them, and no more."""

import pytest

from esteira.gate import Outcome
from esteira.rollout.thresholds import KEY, Thresholds
from tests.rollout_hours import Passing, at, begun, sums

POLICY = Thresholds()


def actions(rollout: Passing) -> list[str]:
    return [decision.action for decision in rollout.decisions if decision.action != "hold"]


def test_a_candidate_within_the_limits_is_promoted_after_the_pauses() -> None:
    rollout = Passing(POLICY)
    rollout.until_it_ends()

    assert ["advance", "advance", "promote"] == actions(rollout)
    assert 24 + 48 + 72 == rollout.hours


@pytest.mark.parametrize(
    ("kind", "rule"),
    [({"accuracy": 0.5}, "accuracy"), ({"error_rate": 0.1}, "success_rate"), ({"seconds": 0.5}, "p95")],
    ids=["accuracy", "errors", "slow"],
)
def test_more_failed_measurements_than_the_limit_abort(kind: dict[str, float], rule: str) -> None:
    rollout = Passing(POLICY, candidate=kind)
    last = rollout.until_it_ends()

    assert ["roll_back"] == actions(rollout)
    assert POLICY.failure_limit + 1 == rollout.hours
    assert last.reason.startswith(rule)


def test_failed_measurements_count_in_a_row_or_not() -> None:
    rollout = Passing(POLICY, candidate={"accuracy": 0.5})
    while rollout.state.status == "running":
        rollout.hour()
        rollout.kinds["candidate"]["accuracy"] = 1.25 - rollout.kinds["candidate"]["accuracy"]

    assert 2 * POLICY.failure_limit + 1 == rollout.hours


def test_five_measurements_without_data_in_a_row_abort_and_four_do_not() -> None:
    rollout = Passing(POLICY)
    for _ in range(3):
        for units in (400, 0, 0, 0, 0):
            assert "hold" == rollout.hour(units=units).action
    assert "roll_back" == rollout.hour(units=0).action


def test_no_data_never_advances() -> None:
    rollout = Passing(POLICY)
    for _ in range(23):
        rollout.hour()
    decision = rollout.hour(units=0)

    assert "hold" == decision.action
    assert Outcome.NO_DATA is decision.outcome
    assert "advance" == rollout.hour().action


def test_without_a_label_the_accuracy_is_not_measured_yet() -> None:
    decision = POLICY.decide(begun(POLICY, sums={0: {"candidate": sums(40, labelled=0), "control": sums(360)}}), at(1))

    assert ["success_rate", "p95"] == [found.rule for found in decision.findings]


def test_each_interval_is_measured_alone() -> None:
    """A bad hour after many good ones fails, although the mean of all hours would pass."""
    rollout = Passing(POLICY)
    for _ in range(20):
        rollout.hour()
    rollout.kinds["candidate"] = {"accuracy": 0.4}
    rollout.hour()

    assert {"accuracy": 1} == rollout.state.options[KEY]["failed"]


def test_a_paused_one_is_left_alone_and_a_clock_that_goes_back_decides_nothing() -> None:
    paused = begun(POLICY, status="paused", paused_at=at(3))

    assert paused == POLICY.decide(paused, at(400)).state
    assert "hold" == POLICY.decide(begun(POLICY, looked_at=at(30), judged_at=at(30)), at(29)).action
