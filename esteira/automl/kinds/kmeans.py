"""Clusters by k-means on scaled numbers and one-hot categories; the number of them is given, or chosen by silhouette.

Rows and centres lie on a grid on which squared distances are exact in double, so that native and drawn answers agree on ties:
of equally near centres the first one.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds import design
from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held, Space
from esteira.features import metrics
from esteira.onnx.graph import Graph

SAMPLE = 1000  # rows that the number of clusters is chosen on: a silhouette takes the square of them
MOST = 10  # clusters that are tried


class KMeans(Base):
    """k-means; `clusters` 0 takes the number from 2 to MOST of the best silhouette on a sample of the rows."""

    tasks: ClassVar[frozenset[str]] = frozenset({"clustering"})
    parameters: ClassVar[dict[str, Any]] = {"clusters": 0}

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """The number of clusters."""
        return {"clusters": ("int", 2, max(2, min(12, rows - 1)))}

    def fit(self, x: Features, y: NDArray[Any] | None, *, held: Held | None = None) -> None:
        """Find the centres; there is no label to look at."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.features = x.shape[1]
        self.design = design.fit(x, self.categorical, levels=16, columns=128, rarest=2)
        # One thread, because the order of a sum, and with it its last bit, depends on the number of them.
        with threadpool_limits(1):
            made = self._place(x)
            count = int(self.params["clusters"]) or self._choose(made)
            self.centres = self._centres(made, count)
        self.squares = (self.centres**2).sum(axis=1)

    def _choose(self, made: Floats) -> int:
        sample = made[np.random.default_rng(self.seed).permutation(len(made))[:SAMPLE]]
        best, found = -np.inf, 1
        for count in range(2, min(MOST, len(sample) - 1) + 1):
            score = metrics.silhouette(sample, _nearest(sample, self._centres(sample, count))).value
            if score is not None and score > best:
                best, found = score, count
        return found

    def _centres(self, made: Floats, count: int) -> Floats:
        from sklearn.cluster import KMeans as Lloyd

        distinct = len(np.unique(made, axis=0))
        model = Lloyd(min(count, distinct), n_init=4, random_state=self.seed, algorithm="lloyd").fit(made)
        return design.to_grid(np.asarray(model.cluster_centers_, np.float64))

    def _place(self, x: Features) -> Floats:
        return design.to_grid(self.design.apply(x))

    def predict(self, x: Features) -> Floats:
        """The cluster of each row, from 0: (rows,)."""
        return design.by_blocks(x, lambda part: _nearest(self._place(part), self.centres).astype(np.float64))

    def draw(self, graph: Graph, x: str) -> str:
        """The same."""
        place = design.draw_to_grid(graph, self.design.draw_whole(graph, x))
        product = graph.add("MatMul", place, graph.constant(-2.0 * self.centres.T, np.float64))
        partial = graph.add("Add", product, graph.constant(self.squares, np.float64))
        return graph.double(graph.add("ArgMin", partial, axis=1, keepdims=0))

    def cost(self) -> Cost:
        """A product with every centre."""
        graph = Graph(self.features)
        self.draw(graph, "x")
        return Cost(macs=self.centres.size, bytes=graph.bytes, nodes=graph.nodes)


def _nearest(made: Floats, centres: Floats) -> NDArray[np.int64]:
    """The nearest centre of each row, the first of equally near ones."""
    found: NDArray[np.int64] = (made @ (-2.0 * centres.T) + (centres**2).sum(axis=1)).argmin(axis=1)
    return found
