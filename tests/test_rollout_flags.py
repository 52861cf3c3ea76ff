"""A flag opens for internal users, beta users, all; errors hold it or send it back; nobody loses what they had."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.errors import ConfigError
from esteira.gate import Outcome
from esteira.rollout import moves
from esteira.rollout.flags import MOST_UNITS, Flags, adoption, named, split_options
from esteira.rollout.policies import planned
from esteira.rollout.router import bucket, routed
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import Sums
from tests.rollout_states import after, arm, arms, rollout

POLICY = Flags()
UNITS = {"units": {"internal": ["ana", "rui"], "beta": ["eva"]}}


def flag(stage: int = 0, sums: Any = None, **fields: Any) -> Rollout:
    fields = {"policy": "flags", "percent": POLICY.stages[stage], **fields}
    return rollout(stage, sums=sums, **fields)


def decide(state: Rollout, hours: float = 24.0) -> Decision:
    return POLICY.decide(state, after(hours))


def test_internal_then_beta_then_all_each_for_a_day() -> None:
    state, path = flag(), []
    for hour in range(1, 73):
        step = decide(state, hour)
        state = replace(step.state, sums={place: arms() for place in range(step.state.stage + 1)})
        if step.action != "hold":
            path.append((hour, step.action, step.percent))

    assert [(24, "advance", 10.0), (48, "advance", 100.0), (72, "promote", 100.0)] == path


@pytest.mark.parametrize(
    ("candidate", "control", "action"),
    [(arm(1000, errors=25), arm(1000, errors=20), "advance"), (arm(1000, errors=26), arm(1000, errors=20), "hold"),
     (arm(499), arm(), "hold"), (arm(500), arm(), "advance"), (arm(), arm(499), "hold"), (arm(), Sums(), "hold"),
     (arm(accuracy=0.0), arm(), "advance")],
    ids=["half a point more errors", "a little more", "499 served", "500 served", "hardly a control", "no control",
         "only errors are asked for"],
)  # fmt: skip
def test_a_stage_ends_at_its_bounds(candidate: Sums, control: Sums, action: str) -> None:
    assert action == decide(flag(sums={0: arms(candidate, control)})).action


def test_errors_beyond_chance_go_back_at_the_next_hour() -> None:
    sums = {0: arms(arm(2000, errors=60), arm(2000, errors=20))}

    back = decide(flag(sums=sums), 1)
    assert ("roll_back", 0.0, "rolled_back") == (back.action, back.percent, back.state.status)
    assert Outcome.FAIL is back.findings[0].outcome

    by_chance = {0: arms(arm(300, errors=6), arm(300, errors=3))}
    assert "hold" == decide(flag(sums=by_chance), 1).action
    assert "roll_back" == decide(flag(sums={0: arms(arm(300, errors=200), arm())}), 0.05).action, "an outage"


def test_when_all_users_have_it_the_stages_before_are_what_it_is_held_against() -> None:
    before = {0: arms(), 1: arms(arm(), arm(errors=100))}

    assert "promote" == decide(flag(2, sums={**before, 2: {"candidate": arm(errors=140)}})).action
    assert "hold" == decide(flag(2, sums={**before, 2: {"candidate": arm(errors=160)}})).action
    assert "roll_back" == decide(flag(2, sums={**before, 2: {"candidate": arm(errors=400)}})).action


def test_without_traffic_it_holds_alerts_and_ends_without_a_word() -> None:
    state, actions = flag(sums={}), []
    for hour in range(1, 97):
        step = decide(state, hour)
        state = step.state
        actions.append((step.action, bool(state.alert)))

    assert {("hold", False)} == set(actions[:47])
    assert {("hold", True)} == set(actions[47:95])
    assert ("inconclusive", True) == actions[95]


def test_the_named_units_of_a_stage_keep_what_they_had() -> None:
    assert [{"ana", "rui"}, {"ana", "rui", "eva"}, {"ana", "rui", "eva"}] == [named(UNITS, stage) for stage in range(3)]
    assert {"units": ["ana", "rui"]} == split_options(flag(options=UNITS))
    assert {} == split_options(flag())
    assert {} == split_options(rollout(options=UNITS)), "of another policy"
    assert {} == split_options(rollout(options={"units": 3}, policy="ab")), "where units are a number"

    for unit in ("ana", "rui", "eva", *map(str, range(300))):
        has = [
            routed("s", "t", POLICY.stages[stage], unit, named=named(UNITS, stage))
            for stage in range(len(POLICY.stages))
        ]
        assert has == sorted(has), "once in, always in"
        assert has[-1]
    assert sum(bucket("s", "t", str(unit)) < 100 for unit in range(10_000)) == pytest.approx(100, abs=40)


@pytest.mark.parametrize(
    "said",
    [["ana"], {"vip": ["ana"]}, {"beta": "ana"}, {"beta": [1]}, {"beta": [""]}, {"beta": [str(n) for n in range(MOST_UNITS + 1)]}],
    ids=["no groups", "another group", "one text", "a number", "an empty text", "too many"],
)  # fmt: skip
def test_units_that_are_none_are_refused(said: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        planned("flags", {"units": said})
    assert "bad_units" == refused.value.code
    assert len(refused.value.message) <= 300


def test_units_are_kept_once_each() -> None:
    assert {"units": {"internal": ["ana", "rui"]}} == planned("flags", {"units": {"internal": ["rui", "ana", "rui"]}})
    assert {"units": {}} == planned("flags", {})


def test_adoption_is_users_who_used_of_those_who_were_shown() -> None:
    shown = Sums(served=400, labelled=60, outcome=60, outcome_sq=60)

    (found,) = adoption(shown)

    assert (0.15, 400) == (found.value, found.n)
    low, high = found.interval or (0.0, 0.0)
    assert 0.11 < low < 0.15 < high < 0.20
    assert [] == adoption(Sums(served=400)), "nobody's use is known"


def test_paused_ended_or_with_a_clock_gone_back_nothing_is_decided() -> None:
    assert "hold" == decide(moves.paused(flag(), after(2), "ana", ""), 500).action
    assert "hold" == decide(flag(status="rolled_back"), 500).action
    back = decide(flag(looked_at=after(30)), 24)
    assert "hold" == back.action
    assert back.state.alert.startswith(moves.CLOCK)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.integers(0, 60),
    st.floats(-5, 120),
    st.integers(0, 4),
)
def test_a_decision_is_pure(stage: int, n: int, m: int, errors: int, hours: float, looks: int) -> None:
    state = flag(stage, sums={stage: arms(arm(n, errors=min(n, errors)), arm(m))}, looks=looks)
    before = copy.deepcopy(state)

    done = decide(state, hours)

    assert done == decide(state, hours)
    assert before == state
    assert done.percent == done.state.percent
    if done.action in {"advance", "promote"}:
        assert hours >= 24
        assert min(n, m) >= 500
        assert {Outcome.PASS} == {one.outcome for one in done.findings}
