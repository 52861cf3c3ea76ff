"""How sure one may be that one arm does no worse than the other, and the intervals beside it. Pure; from running sums alone."""

import math
from functools import lru_cache
from statistics import NormalDist

from esteira.rollout.sums import Sums

EXACT_UP_TO = 200
"""Labelled units of the smaller arm up to which the posterior is integrated; above, it is taken as normal (H-43)."""
_ROOT_TWO = math.sqrt(2.0)
_TINY = 1e-300


def belief(sums: Sums) -> tuple[float, float]:
    """Mean and variance of what an arm's mean outcome may be, starting from Beta(1, 1).

    For outcomes 0 and 1 they are those of Beta(1 + right, 1 + wrong). Outcomes in between vary less than that, so their
    own variance is taken, the prior counted as one more 0 and one more 1: a regression is not held to a coin's noise.
    """
    units = sums.labelled + 2
    mean = (sums.outcome + 1.0) / units
    # A 0 and a 1 are among them, so that they spread by at least so much, whatever the last bits of the sums say.
    return mean, max(0.5 / units, (sums.outcome_sq + 1.0) / units - mean * mean) / (units + 1)


def not_worse(candidate: Sums, control: Sums, margin: float) -> float:
    """P(accuracy of the candidate > accuracy of the control - margin), independent Beta(1, 1) priors: the Q of H-43.

    Args:
        margin: in [0, 1), in outcomes.
    """
    mean, variance = belief(candidate)
    other, spread = belief(control)
    if min(candidate.labelled, control.labelled) > EXACT_UP_TO:
        return 0.5 * math.erfc((other - margin - mean) / (_ROOT_TWO * math.sqrt(variance + spread)))
    first, second = _beta(mean, variance), _beta(other, spread)
    # The density of the narrower one is integrated, so that the other's distribution is smooth between two nodes.
    if variance < spread:
        first, second = (second[1], second[0]), (first[1], first[0])
    return _exceeds(first, second, margin)


def wilson(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of n units (Wilson 1927), within [0, 1]; the whole of it without a unit."""
    if not n:
        return 0.0, 1.0
    z = two_sided(level)
    share, square = hits / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(max(0.0, share * (1 - share) / n + square / (4 * n * n)))
    # At the ends the formula is exact but for its last bit.
    return (0.0 if hits <= 0 else max(0.0, middle - half)), (1.0 if hits >= n else min(1.0, middle + half))


def interval(sums: Sums, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of an arm's mean outcome, within [0, 1]: Wilson's for outcomes 0 and 1, else normal; None without a label."""
    mean = sums.accuracy
    if mean is None:
        return None
    if _of_shares(sums):
        return wilson(sums.outcome, sums.labelled, level)
    half = two_sided(level) * math.sqrt(belief(sums)[1])
    return max(0.0, mean - half), min(1.0, mean + half)


def difference(candidate: Sums, control: Sums, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of the candidate's mean outcome less the control's; None before each arm has a labelled unit.

    Shares by Newcombe's hybrid score interval (1998, Statistics in Medicine 17, method 10), which keeps its level at few
    units and shares near 0 and 1; outcomes in between by the normal approximation with each arm's own variance.
    """
    a, b = candidate.accuracy, control.accuracy
    if a is None or b is None:
        return None
    if _of_shares(candidate) and _of_shares(control):
        (low, high), (low_b, high_b) = (wilson(arm.outcome, arm.labelled, level) for arm in (candidate, control))
        return a - b - math.hypot(a - low, high_b - b), a - b + math.hypot(high - a, b - low_b)
    half = two_sided(level) * math.sqrt(belief(candidate)[1] + belief(control)[1])
    return a - b - half, a - b + half


def p_value(candidate: Sums, control: Sums) -> float | None:
    """Two-sided p-value that the mean outcomes are the same, by the pooled z-test; None before each arm has a labelled unit."""
    a, b = candidate.accuracy, control.accuracy
    if a is None or b is None:
        return None
    units = candidate.labelled + control.labelled
    mean = (candidate.outcome + control.outcome) / units
    variance = (candidate.outcome_sq + control.outcome_sq) / units - mean * mean
    # All outcomes alike: what is left is the last bit of a sum.
    if variance <= 1e-12:
        return 1.0
    return math.erfc(abs(a - b) / math.sqrt(2 * variance * (1 / candidate.labelled + 1 / control.labelled)))


def error_excess(candidate: Sums, control: Sums) -> tuple[float, float]:
    """The candidate's error rate less the control's, and the standard error of that. Each arm must have served a unit.

    One more error and one more answer without are counted in each arm, so that an arm without errors has a spread, too. Requests
    of one user of an experiment count as what they weigh (`Sums.weight`).
    """
    n, m = candidate.served * candidate.weight, control.served * control.weight
    rate, base = (candidate.errors * candidate.weight + 1) / (n + 2), (control.errors * control.weight + 1) / (m + 2)
    return rate - base, math.sqrt(rate * (1 - rate) / n + base * (1 - base) / m)


@lru_cache
def two_sided(level: float) -> float:
    """Standard deviations of the normal distribution that hold this share of it on both sides: 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def _of_shares(sums: Sums) -> bool:
    """Whether every outcome was 0 or 1; only then is their sum that of their squares."""
    return abs(sums.outcome - sums.outcome_sq) <= 1e-9 * max(1.0, sums.outcome)


def _beta(mean: float, variance: float) -> tuple[float, float]:
    """The Beta distribution of this mean and variance."""
    size = max(2.0, mean * (1 - mean) / variance - 1)
    return mean * size, (1 - mean) * size


def _exceeds(first: tuple[float, float], second: tuple[float, float], margin: float) -> float:
    """P(X > Y - margin), X and Y independent Betas; Y the narrower one. Off by less than 1e-8."""
    a, b = second
    mean, deviation = a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b)
    low, high = max(0.0, mean - 25 * deviation), min(1.0, mean + 25 * deviation)
    # Where Y is below the margin, any X will do; the integrand has a kink there.
    sure = 0.0
    if margin > low:
        low, sure = margin, _beta_cdf(a, b, margin)
    if low >= high:
        return min(1.0, sure)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    total, half, middle = 0.0, (high - low) / 2, (high + low) / 2
    for node, weight in _nodes():
        y = middle + half * node
        density = math.exp(scale + (a - 1) * math.log(y) + (b - 1) * math.log1p(-y))
        total += weight * density * (1 - _beta_cdf(*first, y - margin))
    return min(1.0, sure + half * total)


@lru_cache(maxsize=1)
def _nodes() -> tuple[tuple[float, float], ...]:
    """Nodes and weights of Gauss and Legendre on [-1, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(128)
    return tuple(zip(nodes.tolist(), weights.tolist(), strict=True))


def _beta_cdf(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) evaluated as Lentz does."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if front < -700:
        return 0.0
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / _away_from_zero(1 + even * d), _away_from_zero(1 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _away_from_zero(1 + odd * d), _away_from_zero(1 + odd / c)
        value *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return math.exp(front) * value / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
