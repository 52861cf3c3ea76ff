"""Numbers a matrix can work on, made of a table's features: imputed, scaled, flagged, one column a category.

Shared by the kinds that are smooth in their inputs. What `apply` gives natively, `draw` gives in the graph to the last bit:
only comparisons and single operations of IEEE arithmetic are used, in double.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Features, Floats
from esteira.onnx.graph import Graph

BLOCK = 4096  # rows that are answered at once, so that the doubles of a large table never stand in memory together
BEYOND = 16.0  # a number so many scales from the centre counts as that many: no answer runs off with a wild value
FAR = 1e6  # the same where a logarithm tames the tails anyway
GRID = 4096.0  # steps of a unit of a scaled number where a kind wants sums without rounding
ABSENT = -1.0  # code of a missing category; the decoder's codes start at 0


@dataclass(frozen=True)
class Design:
    """A fitted preparation.

    Attributes:
        features: width of what `apply` takes.
        numeric: columns that are numbers.
        filling, centre, scale: per numeric column; a missing number becomes `filling`, then `(value - centre) / scale`.
        flagged: positions among `numeric` that get a column which is 1 where the number is missing.
        beyond: how many scales from the centre a number may lie.
        category, level: per one-hot column the feature it is of, and its code; ABSENT for missing. Other codes are all 0.
    """

    features: int
    numeric: tuple[int, ...]
    filling: Floats
    centre: Floats
    scale: Floats
    flagged: tuple[int, ...]
    beyond: float
    category: tuple[int, ...]
    level: tuple[float, ...]

    @property
    def width(self) -> int:
        """Columns that `apply` gives: the numbers, then the rest."""
        return len(self.numeric) + self.others

    @property
    def others(self) -> int:
        """Columns that are 0 or 1: flags, then one-hot."""
        return len(self.flagged) + len(self.category)

    def apply(self, x: Features) -> Floats:
        """The design of x (rows, features): (rows, width), numbers within +-beyond."""
        made = np.empty((len(x), self.width))
        numbers = x[:, self.numeric].astype(np.float64)
        missing = np.isnan(numbers)
        plain, flags = len(self.numeric), len(self.numeric) + len(self.flagged)
        scaled = (np.where(missing, self.filling, numbers) - self.centre) / self.scale
        np.clip(scaled, -self.beyond, self.beyond, out=made[:, :plain])
        made[:, plain:flags] = missing[:, self.flagged]
        codes = x[:, self.category]
        made[:, flags:] = np.where(np.isnan(codes), np.float32(ABSENT), codes) == np.array(self.level, np.float32)
        return made

    def draw(self, graph: Graph, x: str) -> tuple[str, str]:
        """The same: names of the numbers and of the other columns, each of width at least 1, or empty where there are none."""
        numbers, parts = "", []
        if self.numeric:
            doubles = graph.double(graph.columns(x, self.numeric, self.features))
            missing = graph.add("IsNaN", doubles)
            filled = graph.add("Where", missing, graph.constant(self.filling, np.float64), doubles)
            centred = graph.add("Sub", filled, graph.constant(self.centre, np.float64))
            scaled = graph.add("Div", centred, graph.constant(self.scale, np.float64))
            limits = graph.scalar(-self.beyond, np.float64), graph.scalar(self.beyond, np.float64)
            numbers = graph.add("Clip", scaled, *limits)
            if self.flagged:
                parts.append(graph.double(graph.columns(missing, self.flagged, len(self.numeric))))
        if self.category:
            codes = graph.columns(x, self.category, self.features)
            known = graph.add("Where", graph.add("IsNaN", codes), graph.scalar(ABSENT, np.float32), codes)
            parts.append(graph.double(graph.add("Equal", known, graph.constant(self.level, np.float32))))
        return numbers, parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1) if parts else ""

    def draw_whole(self, graph: Graph, x: str) -> str:
        """All columns as one value (rows, width)."""
        parts = [part for part in self.draw(graph, x) if part]
        return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def fit(
    x: Features,
    categorical: Sequence[int],
    *,
    robust: bool = False,
    beyond: float = BEYOND,
    levels: int = 64,
    columns: int = 512,
    rarest: int = 1,
) -> Design:
    """Learn a design from the rows of a fit.

    Args:
        robust: centre and scale by the median and the quartiles, else by mean and standard deviation.
        beyond: how many scales from the centre a number may lie.
        levels: most one-hot columns a category gets. Codes are ranks by frequency, so it is the rare ones that get none and
            share the unknown's zeros.
        columns: most one-hot columns in all.
        rarest: rows that a code needs to get a column.
    """
    categories = sorted(set(categorical))
    numeric = tuple(i for i in range(x.shape[1]) if i not in set(categories))
    filling, centre, scale = np.zeros((3, len(numeric)))
    scale += 1.0
    flagged = []
    for at, column in enumerate(numeric):
        values = x[:, column].astype(np.float64)
        missing = np.isnan(values)
        if missing.any() and not missing.all():
            flagged.append(at)
        known = np.where(np.isfinite(values), values, np.nan)[~missing]
        known = known[~np.isnan(known)]
        if not len(known):
            continue
        filling[at] = np.median(known)
        if robust:
            centre[at] = filling[at]
            low, high = np.quantile(known, [0.25, 0.75])
            # Where half of the rows share a value the quartiles say nothing; how far the others lie from it does.
            away = np.abs(known - filling[at])
            scale[at] = high - low if high > low else np.median(away[away > 0]) if away.any() else 0.0
        else:
            filled = np.concatenate([known, np.full(len(values) - len(known), filling[at])])
            centre[at], scale[at] = filled.mean(), filled.std()
    # A column without spread must not blow up what differs from it later.
    scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(centre)), scale, 1.0)
    most = max(1, min(levels, columns // max(1, len(categories)) - 1))
    category, level = [], []
    for column in categories[: columns // 2]:
        codes = x[:, column]
        found, count = np.unique(codes[~np.isnan(codes)], return_counts=True)
        kept = [float(code) for code, n in zip(found, count, strict=True) if 1 <= code <= most and n >= rarest]
        if np.isnan(codes).any() and kept:
            kept.append(ABSENT)
        category += [column] * len(kept)
        level += kept
    if not numeric and not category:  # nothing but categories that tell nothing: one column, which is 0
        category, level = [0], [-2.0]
    return Design(
        x.shape[1], numeric, filling, centre, scale, tuple(flagged), beyond, tuple(category), tuple(level)
    )  # fmt: skip


def to_grid(values: Floats) -> Floats:
    """Rounded to multiples of 1 / GRID: with numbers within +-BEYOND, sums of products of them are exact in any order."""
    return np.round(values * GRID) / GRID


def draw_to_grid(graph: Graph, value: str) -> str:
    """The same."""
    steps = graph.scalar(GRID, np.float64)
    return graph.add("Div", graph.add("Round", graph.add("Mul", value, steps)), steps)


def by_blocks(x: Features, answer: Callable[[Features], Floats]) -> Floats:
    """Answers of x, some rows at a time, on one thread: the order of a sum, and with it its last bit, depends on them."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        return np.concatenate([answer(part) for part in blocks(x)])


def blocks(x: Features) -> Iterator[NDArray[np.float32]]:
    """Some rows at a time, at least one block."""
    yield from (x[start : start + BLOCK] for start in range(0, max(1, len(x)), BLOCK))
