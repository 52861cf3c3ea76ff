"""From which probability on a row is said to be of the second class, for the metrics that look at labels."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.features.metrics import Classified, bootstrap, resample_count, statistic

Floats = NDArray[np.float64]

PARTS = 5
MOST_ROWS = 100_000
"""Rows looked at, evenly spread; the cut of more would be the same."""
MIN_CLASS_ROWS = 20
BAGS = 31
BAGGED_ROWS = 3_000_000
"""Resamples whose best cuts a cut is the median of, and their rows in all: of very many rows the best cut is stable."""
RESAMPLES = 400
SURE = 0.05
"""Share of resamples in which the cut may be no better than 0.5."""


def choose(metric: str, out_of_fold: Floats, codes: NDArray[np.int64]) -> float | None:
    """The probability of the second class from which saying it scores best, or None where 0.5 does as well.

    A gain counts when it is more than noise: cuts chosen without a fifth of the rows are scored on that fifth, and over
    all fifths the labels must beat those of 0.5 in 95 of 100 bootstrap resamples of the rows.

    Args:
        metric: a name of `esteira.features.metrics`; those that do not look at labels have no cut.
        out_of_fold: probabilities (rows, 2), calibrated if the answers are; rows with NaN are left out.
        codes: true class codes (rows,).
    """
    if metric not in _SCORES:
        return None
    seen = np.isfinite(out_of_fold).all(axis=1)
    rows = np.flatnonzero(seen)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)]
    p, y = out_of_fold[rows, 1], codes[rows]
    if np.bincount(y, minlength=2).min() < MIN_CLASS_ROWS:
        return None
    rng = np.random.default_rng(0)
    part = np.empty(len(y), np.int64)
    for code in (0, 1):
        mine = np.flatnonzero(y == code)
        part[mine] = rng.permutation(len(mine)) % PARTS
    said = np.empty(len(y), np.int64)
    for number in range(PARTS):
        held = part == number
        said[held] = p[held] >= _cut(metric, p[~held], y[~held])
    # Of equal probabilities the first class is said, as everywhere.
    plain = (p > 0.5).astype(np.int64)
    values = {
        name: statistic(metric, Classified(y, out_of_fold[rows], labels, ("0", "1")))
        for name, labels in (("cut", said), ("plain", plain))
    }
    drawn = bootstrap(values, len(y), count=resample_count(len(y), RESAMPLES), seed=0)
    if np.quantile(drawn["cut"] - drawn["plain"], SURE) <= 0:
        return None
    return _cut(metric, p, y)


def _cut(metric: str, p: Floats, y: NDArray[np.int64]) -> float:
    """The median of the best cuts of resamples: the best cut of the rows themselves hangs on a few of them."""
    order = np.argsort(-p, kind="stable")
    ordered, up = p[order], y[order]
    rng = np.random.default_rng(0)
    cuts = []
    for _ in range(min(BAGS, max(1, BAGGED_ROWS // len(y)))):
        weights = np.bincount(rng.integers(0, len(y), len(y)), minlength=len(y)).astype(np.float64)
        cuts.append(_best(metric, ordered, up, weights))
    return float(np.median(cuts))


def _best(metric: str, p: Floats, y: NDArray[np.int64], weights: Floats) -> float:
    """The best cut of weighted rows in falling order of p: of equally good ones that nearest to 0.5, between two of p."""
    last = np.flatnonzero(p[1:] != p[:-1])
    if not len(last):
        return 0.5
    tp = np.cumsum(weights * y)
    fp = np.cumsum(weights) - tp
    score = _SCORES[metric](tp[last], fp[last], tp[-1] - tp[last], fp[-1] - fp[last])
    cuts = (p[last] + p[last + 1]) / 2
    good = cuts[score >= score.max() - 1e-12]
    return float(good[np.abs(good - 0.5).argmin()])


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _precision(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return _ratio((tp + fn) * _ratio(tp, tp + fp) + (tn + fp) * _ratio(tn, tn + fn), tp + fp + fn + tn)


def _f1(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    up, down = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(2 * tn, 2 * tn + fp + fn)
    return _ratio((tp + fn) * up + (tn + fp) * down, tp + fp + fn + tn)


def _f1_macro(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return (_ratio(2 * tp, 2 * tp + fp + fn) + _ratio(2 * tn, 2 * tn + fp + fn)) / 2


def _balanced(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def _accuracy(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return _ratio(tp + tn, tp + fp + fn + tn)


_SCORES: dict[str, Callable[[Any, Any, Any, Any], Floats]] = {
    "accuracy": _accuracy,
    "recall": _accuracy,  # averaged by support, it is the share of right rows
    "precision": _precision,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "balanced_accuracy": _balanced,
}
"""The metrics that look at labels, of two classes, by counts; equal to `esteira.features.metrics` (proven in tests)."""
LABEL_METRICS = frozenset(_SCORES)
