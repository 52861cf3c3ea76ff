"""Probabilities that mean what they say: a map learned from out-of-fold predictions, kept only where it surely helps.

Three methods, the simpler first: temperature (Guo et al. 2017, arXiv:1706.04599), Platt's sigmoid with his targets (1999),
and isotonic regression (Zadrozny and Elkan 2002) drawn as lines between the means of its steps: a step would turn a
difference in the last bit into another answer, and would tie rows that the model ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost
from esteira.onnx import calibrate as drawn
from esteira.onnx.calibrate import FLOOR, slopes
from esteira.onnx.graph import Graph, sigmoid, softmax

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

PARTS = 5
MIN_ROWS = 100
"""Fewer out-of-fold rows are not calibrated: the interval of a mean log loss is no use there."""
MIN_CLASS_ROWS = 10
"""Platt's sigmoid needs so many rows of either class."""
ISOTONIC_ROWS = 1000
"""Isotonic regression needs so many rows with two classes, and so many of every class with more."""
ISOTONIC_CLASS_ROWS = 100
MOST_ROWS = 50_000
"""Rows that a map is fitted on, at most: more would hardly move it, and take memory."""
NEAREST = 1e-5
"""Knots of the isotonic map are at least so far apart, so that it enlarges no difference by more than its inverse."""
STEEPEST = 10.0
"""A slope or sharpness is at most this and at least its inverse."""
SURE = 1.96
"""Standard errors by which the mean log loss must fall."""


@dataclass(frozen=True)
class Calibration:
    """A map from probabilities to probabilities.

    Attributes:
        method: temperature, platt or isotonic.
        params: temperature `{"sharpness"}`, platt `{"slope", "offset"}`, isotonic `{"knots", "heights"}`: a list a map,
            one of the second class with two classes, else one a class.
        loss: mean log loss out of fold before and after; after by maps that did not see the rows.
        cross_fitted: the out-of-fold probabilities (rows, classes) through such maps; rows that were NaN are NaN.
    """

    method: str
    params: Mapping[str, Any]
    loss: tuple[float, float]
    cross_fitted: Floats = field(repr=False, compare=False)

    def apply(self, p: Floats) -> Floats:
        """Calibrated probabilities (rows, classes); each row adds up to 1."""
        return _apply(self.method, self.params, p)

    def draw(self, graph: Graph, value: str) -> str:
        """Add the same to the graph, of double probabilities (rows, classes)."""
        if self.method == "temperature":
            return drawn.temperature(graph, value, **self.params)
        if self.method == "platt":
            return drawn.platt(graph, value, **self.params)
        return drawn.isotonic(graph, value, **self.params)

    def cost(self) -> Cost:
        """What it adds to an answer."""
        if self.method != "isotonic":
            return Cost(nodes=4 if self.method == "temperature" else 9)
        knots = self.params["knots"]
        return Cost(bytes=4 * 8 * len(knots) * max(map(len, knots)), nodes=12)

    def named(self) -> dict[str, Any]:
        """For JSON."""
        return {"method": self.method, **self.params, "log_loss_before": self.loss[0], "log_loss_after": self.loss[1]}


def choose(out_of_fold: Floats, codes: Codes, *, seed: int, keeps_order: bool) -> Calibration | None:
    """The method that lowers the log loss of rows that its map did not see, or None where none surely does.

    A method takes the place of the one before it when the 95 % interval of the mean difference of their log losses, row
    by row, lies above zero.

    Args:
        out_of_fold: probabilities (rows, classes) by models that did not see the row; rows with NaN are left out.
        codes: true class codes (rows,).
        seed: of the parts that the maps are tried on.
        keeps_order: only maps that keep the order of rows by the probability of the second class, and with more than two
            classes the order of a row's classes.
    """
    seen = np.isfinite(out_of_fold).all(axis=1)
    p, y = out_of_fold[seen], codes[seen]
    part = _parts(y, out_of_fold.shape[1], seed)
    before = _losses(p, y)
    chosen: tuple[str, Floats] | None = None
    best = before
    for method in _methods(y, out_of_fold.shape[1], keeps_order=keeps_order):
        crossed = np.empty_like(p)
        for number in range(PARTS):
            rows = _some(np.flatnonzero(part != number))
            params = _fit(method, p[rows], y[rows])
            crossed[part == number] = _apply(method, params, p[part == number])
        losses = _losses(crossed, y)
        gain = best - losses
        if gain.mean() > SURE * gain.std(ddof=1) / np.sqrt(len(gain)):
            chosen, best = (method, crossed), losses
    if chosen is None:
        return None
    method, crossed = chosen
    whole = np.full(out_of_fold.shape, np.nan)
    whole[seen] = crossed
    rows = _some(np.arange(len(y)))
    return Calibration(method, _fit(method, p[rows], y[rows]), (float(before.mean()), float(best.mean())), whole)


def _methods(y: Codes, classes: int, *, keeps_order: bool) -> list[str]:
    """What there are rows enough for, the simpler first."""
    counts = np.bincount(y, minlength=classes)
    if len(y) < MIN_ROWS:
        return []
    methods = ["temperature"]
    if classes == 2:
        if counts.min() >= MIN_CLASS_ROWS:
            methods.append("platt")
        if len(y) >= ISOTONIC_ROWS and counts.min() >= ISOTONIC_CLASS_ROWS:
            methods.append("isotonic")
    elif counts.min() >= ISOTONIC_ROWS and not keeps_order:
        methods.append("isotonic")
    return methods


def _parts(y: Codes, classes: int, seed: int) -> NDArray[np.int64]:
    """A part's number a row, the rows of each class spread evenly over the parts."""
    rng = np.random.default_rng(seed)
    part = np.empty(len(y), np.int64)
    dealt = 0
    for code in range(classes):
        mine = rng.permutation(np.flatnonzero(y == code))
        part[mine] = (dealt + np.arange(len(mine))) % PARTS
        dealt += len(mine)
    return part


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MOST_ROWS of them, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)]


def _losses(p: Floats, y: Codes) -> Floats:
    """Log loss a row, clipped as `esteira.features.metrics` clips."""
    eps = np.finfo(np.float64).eps
    return -np.log(np.clip(p[np.arange(len(y)), y], eps, 1 - eps))


# ---------------------------------------------------------------------------------------------- the maps


def _apply(method: str, params: Mapping[str, Any], p: Floats) -> Floats:
    if method == "temperature":
        return softmax(np.log(p + FLOOR) * params["sharpness"])
    if method == "platt":
        return sigmoid(_logit(p) * params["slope"] + params["offset"])
    knots, heights = params["knots"], params["heights"]
    if len(knots) == 1:
        positive = _lines(p[:, 1], knots[0], heights[0])
        return np.column_stack([1.0 - positive, positive])
    mapped = np.column_stack([_lines(p[:, code], knots[code], heights[code]) for code in range(len(knots))])
    shares: Floats = mapped / mapped.sum(axis=1, keepdims=True)
    return shares


def _logit(p: Floats) -> Floats:
    logs = np.log(p + FLOOR)
    logit: Floats = logs[:, 1] - logs[:, 0]
    return logit


def _lines(column: Floats, knots: list[float], heights: list[float]) -> Floats:
    xs, ys = np.asarray(knots), np.asarray(heights)
    piece = np.searchsorted(xs[1:-1], column, side="right")
    lifted: Floats = ys[piece] + (column - xs[piece]) * slopes(xs, ys)[piece]
    return lifted


def _fit(method: str, p: Floats, y: Codes) -> dict[str, Any]:
    if method == "temperature":
        return {"sharpness": _sharpness(np.log(p + FLOOR), y)}
    if method == "platt":
        slope, offset = _sigmoid_fit(_logit(p), y == 1)
        return {"slope": slope, "offset": offset}
    codes = [1] if p.shape[1] == 2 else range(p.shape[1])
    maps = [_steps(p[:, code], y == code) for code in codes]
    return {"knots": [xs for xs, _ in maps], "heights": [ys for _, ys in maps]}


def _sharpness(logs: Floats, y: Codes) -> float:
    """The inverse temperature of least log loss: Newton's steps on a convex function of one number."""
    true = logs[np.arange(len(y)), y]
    found = 1.0
    for _ in range(50):
        shares = softmax(logs * found)
        mean = (shares * logs).sum(axis=1)
        slope = float((mean - true).mean())
        bend = float(((shares * logs**2).sum(axis=1) - mean**2).mean())
        # Twice or half at most: far from the best the function is not its parabola.
        next_ = float(np.clip(found - slope / max(bend, 1e-12), found / 2, found * 2))
        next_ = min(max(next_, 1 / STEEPEST), STEEPEST)
        if abs(next_ - found) < 1e-10:
            break
        found = next_
    return next_


def _sigmoid_fit(logit: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of least log loss against Platt's targets, which are a little inside 0 and 1."""
    ups = int(positive.sum())
    target = np.where(positive, (ups + 1) / (ups + 2), 1 / (len(positive) - ups + 2))
    slope, offset = 1.0, 0.0

    def loss(a: float, b: float) -> float:
        margin = a * logit + b
        return float((np.logaddexp(0.0, margin) - target * margin).mean())

    now = loss(slope, offset)
    for _ in range(50):
        p = sigmoid(slope * logit + offset)[:, 1]
        wrong, weight = p - target, p * (1 - p)
        g0, g1 = float((wrong * logit).mean()), float(wrong.mean())
        h00, h01, h11 = (float((weight * logit**k).mean()) for k in (2, 1, 0))
        det = (h00 + 1e-12) * (h11 + 1e-12) - h01**2
        step = ((h11 + 1e-12) * g0 - h01 * g1) / det, ((h00 + 1e-12) * g1 - h01 * g0) / det
        share = 1.0
        while share > 1e-6:
            a = min(max(slope - share * step[0], 1 / STEEPEST), STEEPEST)
            b = offset - share * step[1]
            then = loss(a, b)
            if then <= now:
                break
            share /= 2
        else:
            break
        moved = max(abs(a - slope), abs(b - offset))
        slope, offset, now = a, b, then
        if moved < 1e-10:
            break
    return slope, offset


def _steps(column: Floats, positive: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Knots and heights of the lines between the steps of an isotonic regression, from 0 to 1, strictly increasing."""
    from scipy.optimize import isotonic_regression

    values, index, counts = np.unique(column, return_inverse=True, return_counts=True)
    shares = np.bincount(index, weights=positive) / counts
    starts = isotonic_regression(shares, weights=counts).blocks[:-1]
    steps = np.column_stack([np.add.reduceat(part, starts) for part in (counts, values * counts, shares * counts)])
    rows, sums, ups = _merged(steps, at_least=max(20, len(column) // 64)).T
    knots, heights = sums / rows, ups / rows
    # A share of nobody or everybody is half a row inside, and below its neighbour.
    if heights[0] <= 0.0:
        heights[0] = min(0.5 / (rows[0] + 1), heights[1] / 2 if len(heights) > 1 else 0.5)
    if heights[-1] >= 1.0:
        heights[-1] = 1 - min(0.5 / (rows[-1] + 1), (1 - heights[-2]) / 2 if len(heights) > 1 else 0.5)
    if knots[0] < NEAREST:
        knots[0] = 0.0
    else:
        knots, heights = np.append(0.0, knots), np.append(heights[0] / 2, heights)
    if knots[-1] > 1 - NEAREST:
        knots[-1] = 1.0
    else:
        knots, heights = np.append(knots, 1.0), np.append(heights, (1 + heights[-1]) / 2)
    return knots.tolist(), heights.tolist()


def _merged(steps: Floats, at_least: int) -> Floats:
    """Steps (rows, sum of probabilities, sum of positives), neighbours put together where few or near; means increase."""
    merged: list[Floats] = []
    for step in steps:
        if merged and (merged[-1][0] < at_least or step[1] / step[0] - merged[-1][1] / merged[-1][0] < NEAREST):
            merged[-1] = merged[-1] + step
        else:
            merged.append(step)
    if len(merged) > 1 and merged[-1][0] < at_least:
        last = merged.pop()
        merged[-1] = merged[-1] + last
    return np.array(merged)
