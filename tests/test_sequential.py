"""The sequential policy goes on when the evidence allows it, at any hourly look, and never without evidence."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.gate import Outcome
from esteira.rollout.sequential import KEY, Sequential
from esteira.rollout.state import Rollout
from esteira.rollout.sums import Sums
from tests.rollout_hours import Passing, at, begun, sums

POLICY = Sequential()


def actions(rollout: Passing) -> list[str]:
    return [decision.action for decision in rollout.decisions if decision.action != "hold"]


def test_a_good_candidate_takes_every_stage_and_none_sooner_than_a_day() -> None:
    rollout = Passing(POLICY, candidate={"accuracy": 0.78})
    rollout.until_it_ends()

    assert ["advance", "advance", "promote"] == actions(rollout)
    assert [25.0, 50.0, 100.0] == [entry["to"] for entry in rollout.state.history]
    assert "approved" == rollout.state.status
    assert 72 == rollout.hours


@pytest.mark.parametrize(("hours", "action"), [(23.98, "hold"), (24.0, "advance")])
def test_the_evidence_of_an_hour_is_not_enough_before_a_day_has_passed(hours: float, action: str) -> None:
    strong = {0: {"candidate": sums(4000, 0.78), "control": sums(36000, 0.75)}}

    assert action == POLICY.decide(begun(POLICY, sums=strong), at(hours)).action


def test_a_candidate_ten_points_worse_goes_back_within_a_day() -> None:
    rollout = Passing(POLICY, candidate={"accuracy": 0.65})
    last = rollout.until_it_ends()

    assert ["roll_back"] == actions(rollout)
    assert Outcome.FAIL is last.outcome
    assert rollout.hours < 24
    assert 0.0 == rollout.state.percent
    assert "accuracy" in last.reason
    assert rollout.state.cooldown_until == at(rollout.hours) + timedelta(hours=24)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [({"error_rate": 0.2}, "errors"), ({"seconds": 0.06}, "slow"), ({"confidence": 0.4}, "unsure")],
    ids=["errors", "slow", "unsure"],
)
def test_a_harm_that_is_not_accuracy_goes_back_too(kind: dict[str, float], rule: str) -> None:
    rollout = Passing(POLICY, candidate=kind)
    last = rollout.until_it_ends(most=24)

    assert ["roll_back"] == actions(rollout)
    assert [rule] == [found.rule for found in last.findings if found.outcome is Outcome.FAIL]


def test_what_is_a_little_slower_or_less_sure_waits_and_does_not_go_back() -> None:
    """H-43's stable condition is a point, not a test: it holds and is told."""
    rollout = Passing(POLICY, candidate={"seconds": 0.040, "accuracy": 0.78})
    last = rollout.until_it_ends(most=30)

    assert "hold" == last.action
    assert "p95" in last.reason


def test_without_traffic_it_never_advances_and_ends_as_inconclusive() -> None:
    rollout = Passing(POLICY, units=0)
    rollout.until_it_ends()

    assert ["inconclusive"] == actions(rollout)
    assert 96 == rollout.hours
    assert {Outcome.NO_DATA} == {decision.outcome for decision in rollout.decisions}
    assert any(decision.state.alert for decision in rollout.decisions[48:])


def test_when_traffic_stops_it_does_not_go_on() -> None:
    rollout = Passing(POLICY, candidate={"accuracy": 0.75})
    for _ in range(30):
        rollout.hour()
    stage = rollout.state.stage
    for _ in range(600):
        last = rollout.hour(units=0)

    assert stage == rollout.state.stage
    assert "inconclusive" == last.state.status


def test_without_labels_it_never_advances() -> None:
    rollout = Passing(POLICY, candidate={"labelled": 0}, control={"labelled": 0})
    rollout.until_it_ends()

    assert ["inconclusive"] == actions(rollout)


def test_a_paused_rollout_never_advances_and_its_pause_is_no_time_in_the_stage() -> None:
    strong = {0: {"candidate": sums(4000, 0.78), "control": sums(36000, 0.75)}}
    paused = begun(POLICY, sums=strong, status="paused", paused_at=at(20))

    assert paused == POLICY.decide(paused, at(500)).state
    resumed = replace(paused, status="running", paused_at=None, paused_seconds=480 * 3600.0)
    assert "hold" == POLICY.decide(resumed, at(503.9)).action
    assert "advance" == POLICY.decide(resumed, at(504)).action


def test_a_clock_that_goes_back_decides_nothing() -> None:
    strong = {0: {"candidate": sums(4000, 0.78), "control": sums(36000, 0.75)}}
    state = begun(POLICY, sums=strong, looked_at=at(30), judged_at=at(30))

    decision = POLICY.decide(state, at(29))

    assert "hold" == decision.action
    assert state.stage == decision.state.stage
    assert at(30) == decision.state.looked_at
    assert "clock" in decision.state.alert


def test_two_looks_within_an_hour_count_once() -> None:
    rollout = Passing(POLICY)
    rollout.hour()
    seen = rollout.state.options[KEY]
    rollout.state = rollout.state.with_sums({0: {"candidate": sums(4000, 0.9), "control": sums(36000, 0.5)}})

    assert seen == rollout.look(1.5).state.options[KEY]
    assert seen != rollout.look(2.0).state.options[KEY]


def test_missed_looks_cost_time_but_no_data() -> None:
    """One look after 40 hours of silence sees all that came, advances once, and not twice."""
    late = begun(POLICY, sums={0: {"candidate": sums(1600, 0.78), "control": sums(14400, 0.75)}})

    decision = POLICY.decide(late, at(40))

    assert "advance" == decision.action
    assert 1 == decision.state.stage
    assert "hold" == POLICY.decide(decision.state, at(40.01)).action


def test_a_base_rate_that_falls_between_two_shares_is_no_difference() -> None:
    """Pooled without regard to hours, 50 % of the candidate's units and 10 % of the control's would stand in the bad hours."""
    good, bad = {"accuracy": 0.9}, {"accuracy": 0.5}
    rollout = Passing(POLICY, candidate=good, control=good)
    while rollout.state.stage < 2:
        rollout.hour()
    rollout.kinds = {"candidate": bad, "control": bad}
    rollout.until_it_ends()

    pooled = {
        arm: sum((stage[arm] for stage in rollout.state.sums.values()), Sums()) for arm in ("candidate", "control")
    }
    assert pooled["candidate"].accuracy < pooled["control"].accuracy - 0.02  # type: ignore[operator]
    assert "approved" == rollout.state.status


def test_a_candidate_that_is_proven_worse_within_the_margin_is_not_tried_for_weeks() -> None:
    rollout = Passing(POLICY, units=4000, candidate={"accuracy": 0.732})
    last = rollout.until_it_ends()

    assert "inconclusive" == last.state.status
    assert rollout.hours < 96
    assert "worse than the control" in last.reason


def test_time_that_a_stage_did_not_need_is_left_to_the_next_and_the_whole_has_an_end() -> None:
    rollout = Passing(POLICY, units=400)
    while rollout.state.stage < 2:
        rollout.hour()
    rollout.kinds = {"candidate": {"seconds": 0.040}, "control": {}}
    rollout.until_it_ends()

    assert 48 == rollout.state.options[KEY]["spent"]
    assert "inconclusive" == rollout.state.status
    assert 576 == rollout.hours


def test_late_labels_of_a_former_stage_count_with_the_control_of_that_stage() -> None:
    rollout = Passing(POLICY, candidate={"accuracy": 0.75})
    while rollout.state.stage < 1:
        rollout.hour()
    first = rollout.state.sums[0]
    late = {
        "candidate": first["candidate"] + Sums(labelled=40, outcome=30, outcome_sq=30),
        "control": first["control"] + Sums(labelled=360, outcome=270, outcome_sq=270),
    }
    rollout.state = rollout.state.with_sums({**rollout.state.sums, 0: late})
    before = rollout.state.options[KEY]["weight"]
    rollout.hour(units=0)

    assert before + 36 == pytest.approx(rollout.state.options[KEY]["weight"])


def test_sums_that_fall_and_come_back_are_counted_once() -> None:
    """A writer whose row cannot be read for an hour must not make its units evidence twice."""
    straight, gone = (Passing(POLICY, candidate={"accuracy": 0.5}) for _ in range(2))
    for rollout in (straight, gone):
        for _ in range(3):
            rollout.hour()
    whole = gone.state.sums
    gone.state = gone.state.with_sums({0: {"candidate": sums(10, 0.0), "control": sums(90, 1.0)}})
    gone.hours += 1
    before = straight.state.options[KEY]
    assert before == gone.look().state.options[KEY]
    gone.state = gone.state.with_sums(whole)

    assert before["steps"] == gone.look(gone.hours + 1).state.options[KEY]["steps"]


def test_a_regression_is_judged_by_its_own_variance() -> None:
    """Outcomes of 0.95 with a spread of 0.02 need fewer units than coins of 0.95."""
    calm = begun(POLICY, sums={0: {"candidate": _calm(100, 0.95), "control": _calm(900, 0.95)}})
    coins = begun(POLICY, sums={0: {"candidate": sums(100, 0.95), "control": sums(900, 0.95)}})
    evidence = {
        name: POLICY.decide(state, at(1)).state.options[KEY]["steps"][1][0]
        for name, state in (("calm", calm), ("coins", coins))
    }

    assert evidence["calm"] > evidence["coins"]


def _calm(units: int, mean: float) -> Sums:
    square = units * (mean**2 + 0.02**2)
    return Sums(served=units, labelled=units, outcome=units * mean, outcome_sq=square, latency={50: units})


def test_a_model_without_confidence_is_not_held_by_it() -> None:
    rollout = Passing(POLICY)
    rollout.kinds = {"candidate": {"accuracy": 0.78}, "control": {}}
    while rollout.state.status == "running" and rollout.hours < 100:
        rollout.hour()
        bare = {
            stage: {arm: replace(kept, sure=0, confidence=0.0, confidence_sq=0.0) for arm, kept in arms.items()}
            for stage, arms in rollout.state.sums.items()
        }
        rollout.state = rollout.state.with_sums(bare)

    assert "approved" == rollout.state.status


def test_what_it_keeps_is_json_and_reads_back_the_same() -> None:
    """A rollout that is saved and loaded after every look decides as one that was never saved."""
    kept, saved = Passing(POLICY, candidate={"accuracy": 0.76}), Passing(POLICY, candidate={"accuracy": 0.76})
    for _ in range(80):
        kept.hour()
        saved.state = replace(saved.state, options=json.loads(json.dumps(saved.state.options)))
        saved.hour()

    assert [d.reason for d in kept.decisions] == [d.reason for d in saved.decisions]
    assert "approved" == kept.state.status == saved.state.status


COUNTS = st.tuples(st.integers(0, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))


@settings(max_examples=60, deadline=None)
@given(hours=st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=40))
def test_any_traffic_gives_a_decision_that_is_pure_and_skips_no_stage(hours: list[tuple[tuple, tuple]]) -> None:
    state, before = begun(POLICY), 0
    totals = {"candidate": Sums(), "control": Sums()}
    stages: dict[int, dict] = {}
    for number, both in enumerate(hours, start=1):
        for arm, (units, accuracy, confidence, errors) in zip(totals, both, strict=True):
            more = sums(units, accuracy, errors=min(units, errors), confidence=confidence)
            stages.setdefault(state.stage, {"candidate": Sums(), "control": Sums()})
            stages[state.stage][arm] = stages[state.stage][arm] + more
        state = state.with_sums({stage: dict(arms) for stage, arms in stages.items()})
        decision = POLICY.decide(state, at(number))

        assert decision == POLICY.decide(state, at(number))
        assert decision.state.stage in (before, before + 1)
        assert decision.outcome is Outcome.PASS or decision.action not in ("advance", "promote")
        state, before = decision.state, decision.state.stage
        if state.status != "running":
            break


def test_the_reason_says_what_was_seen_and_what_it_takes() -> None:
    rollout = Passing(POLICY)
    reason = rollout.hour().reason

    assert "10 points" in reason
    assert "20 proves it at any look" in reason


def test_a_decision_changes_nothing_of_the_state_it_was_given() -> None:
    rollout = Passing(POLICY)
    rollout.hour()
    state: Rollout = rollout.state.with_sums({0: {"candidate": sums(80), "control": sums(720)}})
    before = json.dumps(state.options)
    POLICY.decide(state, at(2))

    assert before == json.dumps(state.options)
