"""The cost of an answer is told without a clock, adds up over members, and its coefficients are those that the benchmark finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.automl import row_cost
from esteira.automl.cost import COEFFICIENTS, microseconds, terms
from esteira.automl.kinds.base import Cost

COSTS = st.builds(
    Cost,
    visits=st.floats(0, 1e5),
    bytes=st.integers(0, 10**8),
    macs=st.integers(0, 10**7),
    nodes=st.integers(0, 1000),
)


@given(COSTS, COSTS)
def test_more_of_anything_never_costs_less(one: Cost, other: Cost) -> None:
    assert microseconds(one + other) >= max(microseconds(one), microseconds(other))


@given(COSTS)
def test_what_a_graph_without_trees_weighs_costs_nothing_by_itself(cost: Cost) -> None:
    bare = Cost(bytes=cost.bytes, macs=cost.macs, nodes=cost.nodes)

    assert microseconds(bare) == microseconds(Cost(macs=cost.macs, nodes=cost.nodes))


def test_an_empty_graph_costs_a_call() -> None:
    assert COEFFICIENTS[0] == microseconds(Cost())
    assert len(COEFFICIENTS) == len(terms(Cost()))
    assert min(COEFFICIENTS) > 0


def test_a_tenth_of_a_millisecond_holds_a_blend_and_not_a_wall_of_trees() -> None:
    booster = Cost(visits=300 * 6.5, bytes=318_000, nodes=5)

    assert microseconds(booster) < 40
    assert microseconds(booster + booster) < 75
    assert microseconds(Cost(visits=300 * 20, bytes=40_000_000, nodes=6)) > 100


def test_the_benchmark_finds_the_coefficients_that_made_the_times() -> None:
    true = np.array([3.0, 0.004, 0.007, 0.0005, 0.5])
    rng = np.random.default_rng(0)
    found = []
    for wanted in row_cost.asked():
        cost = Cost(
            visits=float(rng.uniform(0, 5000)),
            bytes=int(rng.integers(0, 8_000_000)),
            macs=int(rng.integers(0, 200_000)),
            nodes=int(rng.integers(3, 60)),
        )
        found.append(row_cost.Measured(wanted, cost, float(terms(cost) @ true)))

    np.testing.assert_allclose(true, row_cost.fitted(found), rtol=1e-6)


def test_a_real_model_is_measured_as_its_members_tell_it() -> None:
    small = ("lightgbm", {"n_estimators": 5, "num_leaves": 4})
    one = row_cost.measure(row_cost.Asked("binary", 20, (small,)))
    two = row_cost.measure(row_cost.Asked("binary", 20, (small, small)))

    assert two.cost == one.cost + one.cost
    assert 5 * 1 < one.cost.visits < 5 * 3
    assert 0.5 < one.taken < 2000
    assert "lightgbm n_estimators=5 num_leaves=4 + lightgbm" in str(two.asked)


def test_every_kind_of_every_task_is_measured() -> None:
    kinds = {(wanted.task, kind) for wanted in row_cost.asked() for kind, _ in wanted.members}

    for kind in ("extra_trees", "random_forest", "linear", "neural_network", "nearest_neighbours"):
        assert {(task, kind) for task in ("binary", "multiclass", "regression")} <= kinds
    assert pytest.approx(50, abs=15) == sum(1 for _ in row_cost.asked())
