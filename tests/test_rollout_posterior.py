"""The chance that an arm is not worse, and the intervals, agree with the books and with a slower way to the same numbers."""

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esteira.rollout.posterior import (
    EXACT_UP_TO,
    belief,
    difference,
    error_excess,
    not_worse,
    p_value,
    two_sided,
    wilson,
)
from esteira.rollout.sums import Sums, labelled


def shares(right: int, n: int) -> Sums:
    return Sums(labelled=n, outcome=right, outcome_sq=right)


def integrated(c: tuple[int, int], b: tuple[int, int], margin: float) -> float:
    """P(C > B - margin) by a fine grid over B, by scipy."""
    import numpy as np
    from scipy.special import betainc

    grid = np.linspace(0, 1, 40_001)
    middle = (grid[1:] + grid[:-1]) / 2
    mass = np.diff(betainc(1 + b[0], 1 + b[1] - b[0], grid))
    return float(np.sum(mass * (1 - betainc(1 + c[0], 1 + c[1] - c[0], np.clip(middle - margin, 0, 1)))))


COUNTS = st.integers(0, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS, st.sampled_from([0.0, 0.02, 0.3]))
@example((0, 0), (0, 0), 0.02)
@example((200, 200), (0, 200), 0.02)
@example((0, 200), (0, 200), 0.02)
@example((3, 4), (150, 200), 0.02)
def test_with_few_units_the_chance_is_that_of_two_betas(
    candidate: tuple[int, int], control: tuple[int, int], margin: float
) -> None:
    found = not_worse(shares(*candidate), shares(*control), margin)

    assert integrated(candidate, control, margin) == pytest.approx(found, abs=2e-6)


def test_a_small_arm_beside_a_large_one_is_integrated_too() -> None:
    assert integrated((90, 120), (70_000, 100_000), 0.02) == pytest.approx(
        not_worse(shares(90, 120), shares(70_000, 100_000), 0.02), abs=2e-5
    )
    assert integrated((70_000, 100_000), (90, 120), 0.02) == pytest.approx(
        not_worse(shares(70_000, 100_000), shares(90, 120), 0.02), abs=2e-5
    )


@pytest.mark.parametrize("right", [20, 100, 150, 190])
@pytest.mark.parametrize("other", [15, 110, 160])
def test_where_the_normal_distribution_takes_over_hardly_anything_changes(right: int, other: int) -> None:
    n = EXACT_UP_TO
    exact = not_worse(shares(right, n), shares(other, n), 0.02)
    normal = not_worse(shares(right, n + 1), shares(other, n + 1), 0.02)

    assert exact == pytest.approx(normal, abs=0.006)


def test_nothing_known_of_either_is_a_coin() -> None:
    assert not_worse(Sums(), Sums(), 0.0) == pytest.approx(0.5, abs=1e-8)


@given(st.integers(20, 400), st.integers(0, 400), st.integers(400, 2000), st.integers(400, 2000))
def test_one_more_right_answer_never_makes_the_candidate_look_worse(a: int, b: int, n: int, m: int) -> None:
    assert not_worse(shares(a + 1, n + 1), shares(b, m), 0.02) >= not_worse(shares(a, n + 1), shares(b, m), 0.02)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_belief_of_zeros_and_ones_is_the_beta_of_the_requirement(right: int, wrong: int) -> None:
    mean, variance = belief(shares(right, right + wrong))

    a, b = 1 + right, 1 + wrong
    assert a / (a + b) == pytest.approx(mean)
    assert a * b / ((a + b) ** 2 * (a + b + 1)) == pytest.approx(variance)


def test_outcomes_in_between_are_judged_by_their_own_spread() -> None:
    chance = random.Random(1)
    sums = Sums()
    for _ in range(2000):
        sums = sums + labelled(min(1.0, max(0.0, chance.gauss(0.9, 0.05))))

    mean, variance = belief(sums)

    assert 0.9 == pytest.approx(mean, abs=0.005)
    assert 0.05 / math.sqrt(2000) == pytest.approx(math.sqrt(variance), rel=0.15)
    coin = math.sqrt(0.9 * 0.1 / 2000)
    assert math.sqrt(variance) < coin / 4, "a coin of that mean would need sixteen times the units"


def test_outcomes_that_are_all_alike_leave_a_little_doubt() -> None:
    alike = Sums(labelled=300, outcome=270.0, outcome_sq=243.0)

    assert 0.5 == pytest.approx(not_worse(alike, alike, 0.0))
    assert 0.99 < not_worse(alike, alike, 0.02) < 1


# Newcombe 1998, table II, the first row of method 10; Wilson's by R's prop.test(correct = FALSE).
def test_the_intervals_are_those_of_the_books() -> None:
    low, high = difference(shares(56, 70), shares(48, 80)) or (0.0, 0.0)
    assert (0.0524, 0.3339) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))

    low, high = wilson(8, 10)
    assert (0.4902, 0.9433) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (0.0, 1.0) == wilson(0, 0)
    assert 0.0 == wilson(0, 50)[0]
    assert 1.0 == wilson(50, 50)[1]
    assert 1.959964 == pytest.approx(two_sided(0.95), abs=1e-6)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500), st.integers(1, 500))
def test_an_interval_holds_what_was_seen(a: int, b: int, n: int, m: int) -> None:
    one, other = shares(min(a, n), n), shares(min(b, m), m)
    found = difference(one, other)

    assert found is not None
    assert found[0] <= min(a, n) / n - min(b, m) / m <= found[1]
    assert -1 <= found[0] <= found[1] <= 1
    assert wilson(one.outcome, n)[0] <= one.outcome / n <= wilson(one.outcome, n)[1]


def test_a_p_value_is_that_of_the_table_of_four() -> None:
    from scipy.special import chdtrc

    expected = [(300, 325), (700, 675), (350, 325), (650, 675)]

    assert chdtrc(1, sum((a - b) ** 2 / b for a, b in expected)) == pytest.approx(
        p_value(shares(300, 1000), shares(350, 1000))
    )
    assert 1.0 == p_value(shares(10, 10), shares(20, 20))
    assert p_value(shares(0, 0), shares(1, 2)) is None
    assert difference(Sums(), shares(1, 2)) is None


def test_the_interval_of_outcomes_in_between_covers_the_truth_about_19_times_of_20() -> None:
    import numpy as np

    chance = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        a, b = chance.beta(8, 2, 150), chance.beta(6, 2, 150)
        one, other = (Sums(labelled=150, outcome=x.sum(), outcome_sq=(x * x).sum()) for x in (a, b))
        low, high = difference(one, other) or (1.0, 0.0)
        covered += low <= 0.8 - 0.75 <= high

    assert 0.92 <= covered / 400 <= 0.98


def test_the_error_rates_of_two_arms_differ_by_so_much_and_are_known_so_well() -> None:
    excess, spread = error_excess(Sums(served=198, errors=9), Sums(served=398, errors=3))
    assert (0.04, math.sqrt(0.05 * 0.95 / 198 + 0.01 * 0.99 / 398)) == pytest.approx((excess, spread))
    assert error_excess(Sums(served=10), Sums(served=10))[1] > 0, "an arm without errors is not known for certain"
