"""Guarded ratios of two numbers, of the few pairs whose ratio tells of the label what neither part does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats
from esteira.onnx.graph import Graph

ROWS = 5000  # that pairs are screened on
PARTS = 40  # columns whose pairs are screened: 780 pairs
PART_BINS, RATIO_BINS = 32, 16  # parts the finer, so that a ratio does not win by detail that its part has too
MOST_CLASSES = 8
LEAST_GAIN = 0.005  # of the label's variance
LEAST_DEVIATIONS = 5.0  # of the gain of a ratio that tells nothing; hundreds of pairs are looked at
ALIKE = 0.95  # rank correlation above which a ratio says what a column or a better ratio says
GUARD = 1e-3  # of the median size of the denominator
LARGEST = np.float32(1e30)


@dataclass(frozen=True)
class Ratios:
    """Numbers over numbers.

    Attributes:
        over, under: positions in x, one pair a ratio.
        guard: the ratio is missing where the denominator is smaller than this.
    """

    over: tuple[int, ...]
    under: tuple[int, ...]
    guard: Features

    @property
    def width(self) -> int:
        """How many features `apply` gives."""
        return len(self.over)

    def apply(self, x: Features, out: Features) -> None:
        """Write the ratios into out of shape (rows, width)."""
        for place, (over, under) in enumerate(zip(self.over, self.under, strict=True)):
            out[:, place] = divided(x[:, over], x[:, under], self.guard[place])

    def draw(self, graph: Graph, x: str, features: int) -> str:
        """The same divisions: (rows, width) float32."""
        under = graph.columns(x, self.under, features)
        ratio = graph.add("Div", graph.columns(x, self.over, features), under)
        safe = graph.add("GreaterOrEqual", graph.add("Abs", under), graph.constant(self.guard))
        finite = graph.add("LessOrEqual", graph.add("Abs", ratio), graph.scalar(LARGEST, np.float32))
        return graph.add("Where", graph.add("And", safe, finite), ratio, graph.scalar(np.nan, np.float32))

    def cost(self) -> Cost:
        """Element by element."""
        return Cost(bytes=20 * self.width, nodes=9)


def divided(over: Features, under: Features, guard: np.float32) -> Features:
    """over / under in float32, NaN where the denominator is below the guard or the ratio is out of bounds."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        ratio = over / under
        kept = (np.abs(under) >= guard) & (np.abs(ratio) <= LARGEST)
    return np.where(kept, ratio, np.float32(np.nan))


def fit(
    x: Features, y: NDArray[Any] | None, numbers: Sequence[int], *, most: int, classes: int | None, seed: int
) -> Ratios | None:
    """At most so many ratios, the most telling first; None when no pair tells enough, or there is no label.

    What a ratio tells is the share of the label's variance between its bins, after what the bins of both parts explain
    by themselves is taken off, less what bins of noise would show.

    Args:
        numbers: positions of the columns that may be parts.
        y: class codes or values; values count by rank.
    """
    if y is None or most < 1 or len(numbers) < 2:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:ROWS])
    sample = x[np.ix_(chosen, np.asarray(numbers))]
    labels = _labels(y[chosen], classes)
    variance = float((labels**2).sum())
    if variance == 0:
        return None
    parts, codes, residuals = _parts(sample, labels)
    guards = {part: _guard(sample[:, part]) for part in parts}
    found: list[tuple[float, int, int, Features]] = []
    # Mean and deviation of the share that bins of noise explain of what both parts leave.
    # Classes deviate almost independently of each other, so the more of them the less does their sum.
    spreads = (labels**2).sum(axis=0)
    independent = max(1.0, float(spreads.sum() ** 2 / (spreads**2).sum()) - 1)
    chance = (RATIO_BINS - 1) / len(chosen)
    deviation = np.sqrt(2 * (RATIO_BINS - 1) / independent) / len(chosen)
    for place, first in enumerate(parts):
        for second in parts[place + 1 :]:
            over, under = _direction(sample, guards, first, second)
            ratio = divided(sample[:, over], sample[:, under], guards[under])
            left = residuals[first] - _explained(residuals[first], codes[second], PART_BINS + 1)
            left -= _explained(left, codes[first], PART_BINS + 1)
            told = _explained(left, _binned(ratio, RATIO_BINS), RATIO_BINS + 1)
            unexplained = float((left**2).sum()) / variance
            gain = float((told**2).sum()) / variance - chance * unexplained
            if gain >= max(LEAST_GAIN, LEAST_DEVIATIONS * deviation * unexplained):
                found.append((gain, over, under, ratio))
    if not found:
        return None
    # Equal gains in the order of the columns: sorted is stable.
    kept: list[tuple[int, int]] = []
    ranks = [_ranks(column) for column in sample.T]
    for _, over, under, ratio in sorted(found, key=lambda candidate: -candidate[0]):
        if len(kept) == most:
            break
        own = _ranks(ratio)
        if all(abs(float(own @ other)) <= ALIKE for other in ranks):
            ranks.append(own)
            kept.append((over, under))
    if not kept:
        return None
    return Ratios(
        tuple(numbers[over] for over, _ in kept),
        tuple(numbers[under] for _, under in kept),
        np.array([guards[under] for _, under in kept], np.float32),
    )


def _labels(y: NDArray[Any], classes: int | None) -> Floats:
    """Centred, (rows, targets): ranks of values, or memberships of the most frequent classes."""
    if classes is None:
        labels = np.searchsorted(np.sort(y), y, side="left").astype(np.float64)[:, None]
    else:
        counts = np.bincount(y, minlength=classes)
        frequent = np.argsort(-counts, kind="stable")[: 1 if classes == 2 else MOST_CLASSES]
        labels = (y[:, None] == frequent).astype(np.float64)
    centred: Floats = labels - labels.mean(axis=0)
    return centred


def _parts(sample: Features, labels: Floats) -> tuple[list[int], dict[int, NDArray[np.int64]], dict[int, Floats]]:
    """The columns that explain most by themselves, in their order; their bins, and what of the label they leave."""
    told, codes, residuals = [], {}, {}
    for column, values in enumerate(sample.T):
        binned = _binned(values, PART_BINS)
        explained = _explained(labels, binned, PART_BINS + 1)
        if binned.min() == binned.max():
            continue
        told.append((-float((explained**2).sum()), column))
        codes[column], residuals[column] = binned, labels - explained
        if len(told) > 2 * PARTS:
            # Forget the worst, so that a wide table does not hold a residual a column.
            told.sort()
            for _, worst in told[PARTS:]:
                del codes[worst], residuals[worst]
            del told[PARTS:]
    return sorted(column for _, column in sorted(told)[:PARTS]), codes, residuals


def _guard(values: Features) -> np.float32:
    """The size below which a cell of the column is no denominator."""
    sizes = np.abs(values[values != 0])
    sizes = sizes[~np.isnan(sizes)]
    return np.float32(max(GUARD * np.median(sizes), 1e-30) if len(sizes) else LARGEST)


def _direction(sample: Features, guards: Mapping[int, np.float32], first: int, second: int) -> tuple[int, int]:
    """(over, under): below goes what is seldom too small; a ratio and its inverse tell much the same."""
    small = [int((np.abs(sample[:, part]) < guards[part]).sum()) for part in (first, second)]
    return (first, second) if small[1] <= small[0] else (second, first)


def _binned(values: Features, bins: int) -> NDArray[np.int64]:
    """Bins of equal counts, 0..bins-1, equal values in one; missing is `bins`."""
    present = np.sort(values[~np.isnan(values)])
    if not len(present):
        return np.full(len(values), bins)
    edges = present[(np.arange(1, bins) * len(present)) // bins]
    found = np.searchsorted(edges, values, side="right")
    found[np.isnan(values)] = bins
    return found


def _explained(labels: Floats, codes: NDArray[np.int64], bins: int) -> Floats:
    """Of each row the mean label of its bin, (rows, targets)."""
    counts = np.maximum(np.bincount(codes, minlength=bins), 1)
    means = np.stack([np.bincount(codes, target, minlength=bins) / counts for target in labels.T], axis=1)
    explained: Floats = means[codes]
    return explained


def _ranks(values: Features) -> Floats:
    """Ranks, missing ones in the middle, centred and of length 1, so that a product is Spearman's correlation."""
    ranks = np.searchsorted(np.sort(values), values, side="left").astype(np.float64)
    missing = np.isnan(values)
    ranks[missing] = ranks[~missing].mean() if not missing.all() else 0.0
    ranks -= ranks.mean()
    size = float(np.sqrt(ranks @ ranks))
    return ranks / size if size > 0 else ranks
