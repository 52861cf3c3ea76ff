"""Evidence for a wrong claim is a fair game at best: on average it does not grow, and at any look it is rarely strong."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.rollout.evidence import Claim, Part, _won
from esteira.rollout.sequential import ERRORS, HOPELESS, SLOW, STEPS, UNSURE, WORSE

UP = Claim(-0.02, True, 0.05, ((0.02, 0.6), (0.05, 0.4)))
DOWN = Claim(-0.02, False, 0.05, ((0.03, 0.5), (0.2, 0.5)))
CHANCES = st.floats(0.0, 1.0)


def binary(n: int, right: int) -> Part:
    return Part(n, right, right)


def mass(n: int, k: int, chance: float) -> float:
    return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)


def expected(claim: Claim, n: int, k: int, p: float, q: float, mean: float, variance: float) -> float:
    """Expected evidence after one block of n candidate and k control units of these true shares: summed over all outcomes."""
    return sum(
        mass(n, i, p)
        * mass(k, j, q)
        * claim.strength(claim.bet(claim.first(), binary(n, i), binary(k, j), mean=mean, variance=variance))
        for i, j in itertools.product(range(n + 1), range(k + 1))
    )


@settings(max_examples=150, deadline=None)
@given(
    above=st.booleans(), bound=st.floats(-0.3, 0.3), n=st.integers(1, 6), k=st.integers(1, 6), q=CHANCES, less=CHANCES,
    mean=CHANCES, variance=st.floats(0.002, 0.25), gap=st.floats(0.001, 1.0),
)  # fmt: skip
def test_the_expected_evidence_for_a_wrong_claim_is_at_most_what_it_was(
    above: bool, bound: float, n: int, k: int, q: float, less: float, mean: float, variance: float, gap: float
) -> None:
    """Whatever the shares, the guessed mean and variance, the size of the bet and of the block, as long as the claim is wrong."""
    claim = Claim(bound, above, 0.05, ((gap, 0.5), (gap / 3, 0.5)))
    edge = min(1.0, max(0.0, q + bound))
    p = edge * less if above else edge + (1 - edge) * less
    if (above and p - q > bound) or (not above and p - q < bound):
        return  # the edge was cut off at 0 or 1, where the claim is true

    assert expected(claim, n, k, p, q, mean, variance) <= 1 + 1e-9


@settings(max_examples=200, deadline=None)
@given(
    outcomes=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12),
    centre=st.floats(0.01, 0.99),
    size=st.floats(-0.74, 0.74),
)
def test_what_is_told_of_outcomes_between_0_and_1_is_never_more_than_what_was_won(
    outcomes: list[float], centre: float, size: float
) -> None:
    won = sum(math.log1p(size * (value - centre)) for value in outcomes)
    part = Part(len(outcomes), sum(outcomes), sum(value * value for value in outcomes))

    assert _won(size, centre, part) <= won + 1e-7


def test_what_is_told_of_outcomes_0_and_1_is_what_was_won() -> None:
    won = 7 * math.log1p(0.5 * (1 - 0.7)) + 3 * math.log1p(-0.5 * 0.7)

    assert won == pytest.approx(_won(0.5, 0.7, binary(10, 7)))


def test_outcomes_that_vary_little_win_more_by_their_squares_than_by_their_sum() -> None:
    """A regression's outcomes are not held to a coin's noise."""
    calm = [0.9 + 0.01 * (-1) ** k for k in range(1000)]
    part = Part(1000, sum(calm), sum(value * value for value in calm))
    coin = Part(1000, part.total, part.total)

    assert _won(1.0, 0.85, part) > 3 * _won(1.0, 0.85, coin)


def test_one_arm_alone_teaches_nothing() -> None:
    winnings = [0.3, -0.2]

    assert winnings == UP.bet(winnings, binary(0, 0), binary(50, 40), mean=0.75, variance=0.19)
    assert winnings == UP.bet(winnings, binary(50, 40), binary(0, 0), mean=0.75, variance=0.19)


def test_the_evidence_is_one_before_the_first_unit_and_never_infinite() -> None:
    assert 1.0 == UP.strength(UP.first())
    assert math.isfinite(UP.strength([1e5, 0.0]))
    assert 0.0 <= UP.strength([-1e5, -1e5])


@pytest.mark.parametrize(
    ("claim", "candidate", "control"),
    [(UP, 0.80, 0.75), (UP, 0.75, 0.75), (DOWN, 0.65, 0.75), (ERRORS, 0.08, 0.005), (WORSE, 0.55, 0.75)],
    ids=["better", "equal", "worse", "errors", "much worse"],
)
def test_evidence_for_a_true_claim_grows_without_end(claim: Claim, candidate: float, control: float) -> None:
    winnings = claim.first()
    for _ in range(100):
        winnings = claim.bet(
            winnings, Part(100, 100 * candidate, 100 * candidate), Part(100, 100 * control, 100 * control),
            mean=control, variance=max(0.01, candidate * (1 - candidate)),
        )  # fmt: skip

    assert claim.strength(winnings) > claim.enough


# Claim, true mean of candidate and control (None: no control), at the very bound.
BOUNDARIES = {
    "not worse by 2 points": (STEPS[2], 0.73, 0.75),
    "not worse by 5 points": (STEPS[1], 0.70, 0.75),
    "not worse by 10 points": (STEPS[0], 0.65, 0.75),
    "worse": (WORSE, 0.73, 0.75),
    "worse, at high accuracy": (WORSE, 0.96, 0.98),
    "worse at all": (HOPELESS, 0.75, 0.75),
    "errors": (ERRORS, 0.015, 0.005),
    "errors, none by the control": (ERRORS, 0.01, 0.0),
    "slow": (SLOW, 0.05, None),
    "unsure": (UNSURE, 0.60, None),
}


@pytest.mark.parametrize(("claim", "candidate", "control"), BOUNDARIES.values(), ids=BOUNDARIES)
def test_a_wrong_claim_is_rarely_believed_at_any_of_200_looks(
    claim: Claim, candidate: float, control: float | None
) -> None:
    """At the bound itself, which is the hardest; with a guess of mean and variance that only knows the past."""
    chance, believed, rollouts = np.random.default_rng(5), 0, 600
    shares = [10] * 60 + [25] * 60 + [50] * 80
    for _ in range(rollouts):
        winnings, right, units = claim.first(), 0.5, 1.0
        for share in shares:
            n, k = share, 100 - share
            part = binary(n, int(chance.binomial(n, candidate)))
            guess = right / units
            if control is None:
                winnings = claim.bet(winnings, part, None, variance=max(0.01, guess * (1 - guess)))
                right, units = right + part.total, units + n
            else:
                other = binary(k, int(chance.binomial(k, control)))
                winnings = claim.bet(winnings, part, other, mean=guess, variance=max(0.01, guess * (1 - guess)))
                right, units = right + other.total, units + k
            if claim.strength(winnings) >= claim.enough:
                believed += 1
                break

    # Three standard deviations above what is promised.
    assert believed / rollouts <= claim.alpha + 3 * math.sqrt(claim.alpha * (1 - claim.alpha) / rollouts)
