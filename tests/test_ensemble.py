"""Who is blended: greedy, with replacement, within what an answer may cost; and what is tried next."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl import schedule
from esteira.automl.cost import microseconds
from esteira.automl.ensemble import Limits, choose, mean
from esteira.automl.final import FLOOR, bags
from esteira.automl.kinds import KINDS, kind
from esteira.automl.kinds.base import Cost
from esteira.automl.prepare import Columns, Recipe
from esteira.family import Candidate

FREE = Limits(row_us=1e9, bytes=10**12)
NUMBERS = Columns(tuple(f"f{i}" for i in range(6)), (4, 5))


def error(truth: NDArray[Any]) -> Any:
    return lambda predicted: -float(np.mean((truth - predicted) ** 2))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_a_blend_is_never_worse_than_the_best_alone_and_its_weights_add_up(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=80)
    members = [truth + rng.normal(size=80) * rng.uniform(0.2, 2) for _ in range(count)]
    score = error(truth)
    members.sort(key=lambda member: -score(member))
    weights = choose(members, [Cost()] * count, score, FREE)

    assert 1.0 == pytest.approx(sum(weights.values()))
    blended = mean([members[i] for i in weights], list(weights.values()))
    assert score(blended) >= score(members[0]) - 1e-12


def test_members_that_err_apart_are_blended_and_copies_are_not() -> None:
    truth = np.linspace(0, 1, 100)
    noise = np.where(np.arange(100) % 2, 0.3, -0.3)
    apart = choose([truth + noise, truth - noise], [Cost(), Cost()], error(truth), FREE)
    copies = choose([truth + noise, truth + noise], [Cost(), Cost()], error(truth), FREE)

    assert {0: 0.5, 1: 0.5} == apart
    assert {0: 1.0} == copies


def test_nobody_enters_beyond_what_an_answer_may_cost() -> None:
    truth = np.linspace(0, 1, 100)
    noise = np.where(np.arange(100) % 2, 0.3, -0.3)
    one = Cost(visits=1000)
    limits = Limits(row_us=microseconds(one) * 1.2, bytes=10**9)

    assert {0: 1.0} == choose([truth + noise, truth - noise], [one, one], error(truth), limits)
    dear = Cost(visits=10**7)
    assert {1: 1.0} == choose([truth, truth + noise], [dear, one], error(truth), limits)
    assert {0: 1.0} == choose([truth, truth + noise], [dear, Cost(visits=2 * 10**7)], error(truth), limits)


def test_the_heaviest_members_become_bags_first_and_only_within_the_limits() -> None:
    one = Cost(visits=1000)
    costs, weights = {0: one, 1: one, 2: one}, {0: 0.2, 1: 0.5, 2: 0.3}

    def allowed(models: int, able: Collection[int] = (0, 1, 2)) -> set[int]:
        limits = Limits(microseconds(sum([one] * models, FLOOR)) + 1e-6, 10**9)
        return bags(costs, weights, 5, limits, able)

    assert set() == allowed(6)
    assert {1} == allowed(7)
    assert {1, 2} == allowed(11)
    assert {0, 1, 2} == allowed(15)
    assert {0, 2} == allowed(15, (0, 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(row_us=st.floats(20, 5000), leaves=st.integers(2, 255), classes=st.sampled_from([None, 2, 3, 26]))
def test_rounds_stay_within_their_share_of_a_row(row_us: float, leaves: int, classes: int | None) -> None:
    rounds = schedule.rounds_allowed(row_us, leaves, classes)
    assert 20 <= rounds <= 20_000
    assert rounds >= schedule.rounds_allowed(row_us / 2, leaves, classes)
    assert rounds <= schedule.rounds_allowed(row_us, max(2, leaves // 2), classes)


def test_what_a_row_may_cost_bounds_the_rounds_by_the_size_of_the_trees() -> None:
    def rounds(name: str, counts: str, **params: Any) -> int:
        return int(schedule.capped(name, {counts: 50_000, **params}, 100.0, 30_000, None)[counts])

    assert rounds("lightgbm", "n_estimators", num_leaves=255) < rounds("lightgbm", "n_estimators", num_leaves=15)
    assert rounds("xgboost", "n_estimators", max_depth=9) < rounds("xgboost", "n_estimators", max_depth=4) < 50_000
    assert rounds("gradient_boosting", "max_iter", max_leaf_nodes=31) < 50_000
    assert {"alpha": 1.0} == schedule.capped("linear", {"alpha": 1.0}, 100.0, 100, 2)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_entry_of_the_portfolio_is_known_to_its_kind(task: str) -> None:
    entries = schedule.portfolio(task)

    assert 8 <= len(entries)
    for name, params, _ in entries:
        assert task in kind(name).tasks
        assert set(params) <= set(kind(name).parameters)


def test_the_trivial_model_comes_first_then_one_that_is_quick_then_the_portfolio() -> None:
    candidates = [Candidate(name) for name in ("lightgbm", "linear", "extra_trees", "constant")]
    entries = schedule.first_entries(candidates, "binary", NUMBERS)

    assert ["constant", "linear"] == [name for name, _, _ in entries[:2]]
    assert {"lightgbm", "extra_trees"} == {name for name, _, _ in entries if name not in ("constant", "linear")}
    assert len(entries) == len({str(entry) for entry in entries})


@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 5), ("regression", None)])
def test_made_features_find_a_boosting_among_the_first_entries(task: str, classes: int | None) -> None:
    entries = schedule.first_entries([Candidate(name) for name in KINDS], task, NUMBERS, classes)

    assert set(schedule.BOOSTING) & {name for name, _, _ in entries[: schedule.FIRST_ENTRIES]}


def test_what_takes_long_comes_last_of_the_portfolio_where_rows_are_many() -> None:
    candidates = [Candidate(name) for name in KINDS]
    few, many = (schedule.first_entries(candidates, "binary", NUMBERS, rows=rows) for rows in (9_999, 10_000))

    assert "neural_network" in [name for name, _, _ in few[: schedule.FIRST_ENTRIES]]
    assert "neural_network" not in [name for name, _, _ in many[: schedule.FIRST_ENTRIES]]
    assert sorted(map(str, few)) == sorted(map(str, many))


def test_parts_of_a_recipe_that_have_nothing_to_work_on_are_left_out() -> None:
    whole = Recipe(target_encoding=True, frequency=True, ratios=8, text=16, drop=True)

    assert Recipe(target_encoding=True, frequency=True, ratios=8) == schedule.able(whole, NUMBERS)
    assert Recipe() == schedule.able(whole, Columns(("a",)))
    assert Recipe(target_encoding=True, ratios=4) == schedule.joined([Recipe(ratios=4), Recipe(target_encoding=True)])


def test_a_part_helps_only_beyond_one_standard_error() -> None:
    def helps(with_it: list[float], without: list[float]) -> bool:
        return schedule.helps(dict(enumerate(with_it)), dict(enumerate(without)))

    assert helps([0.82, 0.81, 0.83], [0.80, 0.79, 0.81])
    assert not helps([0.82, 0.78, 0.81], [0.80, 0.79, 0.81])
    assert not helps([0.8], [0.8])
    assert helps([0.9], [0.8])


def test_a_part_is_judged_fold_by_fold_where_both_have_a_score() -> None:
    """Under a clock folds end in any order; of a class that a fold lacks, it has no score."""
    assert schedule.helps({2: 0.91, 0: 0.11, 1: 0.51}, {0: 0.1, 1: 0.5, 2: 0.9})
    assert schedule.helps({0: 0.82, 1: float("nan"), 2: 0.84}, {0: 0.8, 1: float("nan"), 2: 0.82})
    assert not schedule.helps({0: float("nan")}, {0: 0.8})


def test_a_boosting_that_had_not_settled_is_tried_twice_as_fast_up_to_a_bound() -> None:
    assert {"learning_rate": 0.1, "num_leaves": 31} == schedule.faster({"learning_rate": 0.05, "num_leaves": 31})
    assert schedule.faster({"learning_rate": 0.2}) is None
