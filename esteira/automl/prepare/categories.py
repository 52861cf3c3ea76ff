"""Numbers for categories: the label's smoothed mean, and the level's share of the rows. A table a column, looked up by code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats
from esteira.onnx.graph import Graph

FOLDS = 5
# Above, a column would become one number a class, most of them of a handful of rows a level; trees that split categories
# natively do better with the codes themselves.
MAX_CLASSES = 8
# Bounds of how many rows a level's own mean is weighed against.
LEAST_SMOOTHING, MOST_SMOOTHING = 1.0, 1000.0


@dataclass(frozen=True)
class Categories:
    """Tables by code.

    Attributes:
        columns: positions of the codes in x.
        highest: per column the highest code with a row of its own; others count as unknown.
        table: the columns' tables one under the other, float32; of each column row 0 is unknown, then the codes, then
            missing: `(sum of highest + 2, width)`.
    """

    columns: tuple[int, ...]
    highest: tuple[int, ...]
    table: Features

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each column's table."""
        return np.cumsum([0, *self.highest])[:-1] + 2 * np.arange(len(self.highest))

    @property
    def width(self) -> int:
        """How many features `apply` gives."""
        return len(self.columns) * int(self.table.shape[1])

    def apply(self, x: Features, out: Features) -> None:
        """Write the features, column by column, into out of shape (rows, width)."""
        each = self.table.shape[1]
        for place, (column, highest, start) in enumerate(zip(self.columns, self.highest, self.starts, strict=True)):
            rows = index(x[:, column], highest) + start
            out[:, place * each : (place + 1) * each] = self.table[rows]

    def draw(self, graph: Graph, x: str, features: int) -> str:
        """The same gathered: (rows, width) float32."""
        codes = graph.columns(x, self.columns, features)
        last = graph.constant(self.highest, np.float32)
        zero = graph.scalar(0.0, np.float32)
        unknown = graph.add("Or", graph.add("Greater", codes, last), graph.add("Less", codes, zero))
        known = graph.add("Where", unknown, zero, codes)
        behind = graph.constant(np.array(self.highest) + 1, np.float32)
        place = graph.add("Where", graph.add("IsNaN", codes), behind, known)
        row = graph.add("Add", graph.add("Cast", place, to=7), graph.constant(self.starts, np.int64))
        found = graph.add("Gather", graph.constant(self.table), row, axis=0)
        return graph.add("Reshape", found, graph.constant([0, self.width], np.int64))

    def cost(self) -> Cost:
        """Lookups."""
        return Cost(bytes=self.table.nbytes, nodes=11)


def index(codes: Features, highest: int) -> NDArray[np.int64]:
    """Row of a column's table: 0 unknown, the code, or highest + 1 for a missing one."""
    missing = np.isnan(codes)
    # NaN compares false, so it must not reach the cast, whose result would be undefined.
    known = np.where((codes > highest) | (codes < 0) | missing, np.float32(0), codes).astype(np.int64)
    return np.where(missing, highest + 1, known)


def fit(
    x: Features,
    y: NDArray[Any] | None,
    columns: Sequence[int],
    *,
    classes: int | None,
    seed: int,
    target_encoding: bool,
    frequency: bool,
) -> tuple[Categories, Features] | None:
    """The fitted tables and the features of these rows, where each row's encoding comes from four fifths without it.

    Args:
        y: class codes or values; without them there is no target encoding, nor with more than MAX_CLASSES classes.

    Returns:
        Per column the encodings (of class 1 for two classes, of each class for more), then the share; None when
        nothing is asked for.
    """
    labels = None if y is None or not target_encoding else _labels(y, classes)
    targets = 0 if labels is None else labels.shape[1]
    each = targets + frequency
    if not columns or not each:
        return None
    rows = len(x)
    folds = min(FOLDS, rows)
    fold = np.random.default_rng(seed).permutation(rows) % folds
    out = np.empty((rows, len(columns) * each), np.float32)
    highest, tables = [], []
    for place, column in enumerate(columns):
        codes = x[:, column]
        top = max(0, int(np.nanmax(codes))) if not np.isnan(codes).all() else 0
        level = index(codes, top)
        table = np.empty((top + 2, each))
        own = out[:, place * each : (place + 1) * each]
        if labels is not None:
            table[:, :targets] = _means(level, labels, top + 2, fold, folds, own)
        if frequency:
            table[:, targets] = np.bincount(level, minlength=top + 2) / rows
            own[:, targets] = table[level, targets]
        highest.append(top)
        tables.append(table.astype(np.float32))
    return Categories(tuple(columns), tuple(highest), np.concatenate(tables)), out


def _labels(y: NDArray[Any], classes: int | None) -> Floats | None:
    """What is averaged, (rows, targets): values, membership of class 1, or membership of each class."""
    if classes is None:
        return np.asarray(y, np.float64)[:, None]
    if classes > MAX_CLASSES:
        return None
    wanted = np.arange(1, 2) if classes == 2 else np.arange(classes)
    members: Floats = np.equal(y[:, None], wanted).astype(np.float64)
    return members


def _means(
    level: NDArray[np.int64], labels: Floats, levels: int, fold: NDArray[np.int64], folds: int, own: Features
) -> Floats:
    """The table of all rows, (levels, targets); each row's mean over the other folds is written into `own`."""
    cell = fold * levels + level
    counts = np.bincount(cell, minlength=folds * levels).reshape(folds, levels).astype(np.float64)
    table = np.empty((levels, labels.shape[1]))
    for target, values in enumerate(labels.T):
        sums = np.bincount(cell, values, minlength=folds * levels).reshape(folds, levels)
        squares = np.bincount(fold, values**2, minlength=folds)
        # One fold at a time left out; sums over the others, not the whole less the fold, so that the fold's own labels
        # do not even reach the last bits.
        for out in range(folds):
            rest = np.arange(folds) != out
            means = _smoothed(counts[rest].sum(axis=0), sums[rest].sum(axis=0), squares[rest].sum())
            inside = fold == out
            own[inside, target] = means[level[inside]]
        table[:, target] = _smoothed(counts.sum(axis=0), sums.sum(axis=0), squares.sum())
    return table


def _smoothed(counts: Floats, sums: Floats, squares: float) -> Floats:
    """Means of levels drawn to the mean of all by an m-estimate; m is the variance within levels over that between.

    The variances are those of the one-way analysis of variance for groups of unequal size.
    """
    rows = float(counts.sum())
    if rows == 0:
        return np.zeros(len(counts))
    prior = float(sums.sum()) / rows
    seen = counts > 0
    groups = int(seen.sum())
    means = np.divide(sums, counts, out=np.full(len(counts), prior), where=seen)
    m = MOST_SMOOTHING
    if groups > 1 and rows > groups:
        between_squares = float((counts * (means - prior) ** 2).sum())
        within = max(0.0, squares - rows * prior**2 - between_squares) / (rows - groups)
        typical = (rows - float((counts**2).sum()) / rows) / (groups - 1)
        between = (between_squares / (groups - 1) - within) / typical
        if between > 0:
            m = min(max(within / between, LEAST_SMOOTHING), MOST_SMOOTHING)
    smoothed: Floats = (sums + m * prior) / (counts + m)
    return smoothed
