"""The mean label of the nearest rows of the fit, which the graph carries with it: for small tables only.

Scaled columns lie on a grid on which squared distances are exact in double, so that native and drawn answers find the same
neighbours, ties included: of equally near rows the earlier one.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds import design
from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held, Space
from esteira.onnx.graph import Graph

MOST_ROWS = 3000
MOST_CELLS = 200_000  # doubles that the graph would carry and one answer would multiply
NEAREST = 1.0 / design.GRID  # a smaller distance counts as this one


class NearestNeighbours(Base):
    """The k nearest rows by Euclidean distance of scaled columns.

    `weights` is "uniform" or "distance" (1 / distance); `relevance` is the power of each column's correlation with the label
    by which the column is scaled: 0 counts all columns alike, 1 lets those that say nothing hardly count.
    """

    parameters: ClassVar[dict[str, Any]] = {"k": 15, "weights": "distance", "relevance": 0.5}

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """All of them."""
        return {
            "k": ("log_int", 2, max(3, min(60, rows // 10))),
            "weights": ("choice", ["uniform", "distance"]),
            "relevance": ("float", 0.0, 1.5),
        }

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """Large tables: every row would go into the graph."""
        if rows > MOST_ROWS:
            return f"the graph would carry every row, at most {MOST_ROWS}, and there are {rows}"
        if rows * features > MOST_CELLS:
            return f"the graph would carry every cell, at most {MOST_CELLS}, and there are {rows * features}"
        return ""

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Keep the rows; the labels' table."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.features = x.shape[1]
        if self.classes is None:
            values = np.asarray(y, np.float64)[:, None]
        else:
            values = np.eye(self.classes)[np.asarray(y, np.int64)]
        self.prior = values.mean(axis=0)
        self.labels = values
        self.k = min(int(self.params["k"]), len(x))
        self.design = design.fit(x, self.categorical, levels=16, columns=128, rarest=2)
        with threadpool_limits(1):
            made = self.design.apply(x)
            self.emphasis = _relevance(made, values) ** float(self.params["relevance"])
            self.kept = design.to_grid(made * self.emphasis)
        self.squares = (self.kept**2).sum(axis=1)

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        return design.by_blocks(x, self._answer)

    def _answer(self, x: Features) -> Floats:
        place = design.to_grid(self.design.apply(x) * self.emphasis)
        squared = (place @ (-2.0 * self.kept.T) + self.squares) + (place**2).sum(axis=1, keepdims=True)
        # Whole numbers whose last digits are the row: no two are equal, so that the order of a partition is settled.
        rank = (squared * design.GRID**2).astype(np.int64) * len(self.kept) + np.arange(len(self.kept))
        nearest = np.sort(np.partition(rank, self.k - 1, axis=1)[:, : self.k], axis=1) % len(self.kept)
        weights = self._weights(np.take_along_axis(squared, nearest, axis=1))
        found: Floats = (self.labels[nearest] * weights[:, :, None]).sum(axis=1)
        return found[:, 0] if self.classes is None else (found * self.k + self.prior) / (self.k + 1)

    def _weights(self, squared: Floats) -> Floats:
        """Shares of the neighbours, which add up to 1."""
        if self.params["weights"] == "uniform":
            return np.full(squared.shape, 1.0 / self.k)
        close = 1.0 / np.maximum(np.sqrt(squared), NEAREST)
        shares: Floats = close / close.sum(axis=1, keepdims=True)
        return shares

    def draw(self, graph: Graph, x: str) -> str:
        """The same; a class's probability leans on its share in the fit as if that were one more neighbour."""
        scaled = graph.add("Mul", self.design.draw_whole(graph, x), graph.constant(self.emphasis, np.float64))
        place = design.draw_to_grid(graph, scaled)
        product = graph.add("MatMul", place, graph.constant(-2.0 * self.kept.T, np.float64))
        partial = graph.add("Add", product, graph.constant(self.squares, np.float64))
        least, nearest = graph.add_all(
            "TopK", partial, graph.constant([self.k], np.int64), outputs=2, largest=0, sorted=1
        )
        labels = graph.add("Gather", graph.constant(self.labels, np.float64), nearest, axis=0)
        axis = graph.constant([1], np.int64)
        if self.params["weights"] == "uniform":
            found = graph.add("ReduceMean", labels, axis, keepdims=0)
        else:
            own = graph.add("ReduceSumSquare", place, axis, keepdims=1)
            distance = graph.add("Sqrt", graph.add("Add", least, own))
            close = graph.add("Reciprocal", graph.add("Max", distance, graph.scalar(NEAREST, np.float64)))
            shares = graph.add("Div", close, graph.add("ReduceSum", close, axis, keepdims=1))
            weighted = graph.add("Mul", labels, graph.add("Unsqueeze", shares, graph.constant([2], np.int64)))
            found = graph.add("ReduceSum", weighted, axis, keepdims=0)
        if self.classes is None:
            return graph.values(found)
        counted = graph.add("Mul", found, graph.scalar(float(self.k), np.float64))
        leaned = graph.add("Add", counted, graph.constant(self.prior, np.float64))
        return graph.add("Div", leaned, graph.scalar(self.k + 1.0, np.float64))

    def cost(self) -> Cost:
        """A product with every kept row."""
        graph = Graph(self.features)
        self.draw(graph, "x")
        return Cost(macs=self.kept.size, bytes=graph.bytes, nodes=graph.nodes)


def _relevance(made: Floats, values: Floats) -> Floats:
    """How far each column goes with the label, 1 for the one that does most: (columns,) in (0, 1].

    The correlation ratio over ten bands of equal counts, so that it need not be a straight line.

    Args:
        made: (rows, columns).
        values: the label, or one column a class (rows, targets).
    """
    total = ((values - values.mean(axis=0)) ** 2).sum()
    if total <= 0:
        return np.ones(made.shape[1])
    found = np.empty(made.shape[1])
    for at, column in enumerate(made.T):
        edges = np.unique(np.quantile(column, np.arange(1, 10) / 10))
        # Of a column of few values, such as one of 0 and 1, the bands are the values.
        band = np.searchsorted(edges, column, side="left")
        count = np.bincount(band, minlength=len(edges) + 1)[:, None]
        sums = np.column_stack([np.bincount(band, weights=v, minlength=len(edges) + 1) for v in values.T])
        between = (sums**2 / np.maximum(count, 1)).sum() - (values.sum(axis=0) ** 2).sum() / len(values)
        # What bands of a column without meaning would tell by chance is taken off.
        chance = (np.count_nonzero(count) - 1) / max(1, len(values) - 1)
        found[at] = max(0.0, between / total - chance)
    best = found.max()
    return np.sqrt(np.maximum(found / best, 1e-4)) if best > 0 else np.ones(len(found))
