"""scikit-learn's random forests and extremely randomised trees, bounded in leaves so that they may be exported.

What a leaf says is rounded to a grid so coarse that every sum over the trees is exact in float32, in whatever order: the graph
and the native prediction are equal bit for bit, ties between classes included, at two thirds of the size that double would
take. An answer differs from scikit-learn's by at most 2**-24 times the trees' number times their largest value: for 200 trees
by 8e-6 of a probability, on average by far less.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats, Space
from esteira.automl.kinds.trees import TreeKind, Watched
from esteira.onnx.forest import Forest
from esteira.onnx.graph import Graph

BITS = 24  # of a float32's fraction
MOST_CELLS = 5_000_000


class _Forest(TreeKind):
    bootstrap: ClassVar[bool]
    most_rows: ClassVar[int]
    parameters: ClassVar[Mapping[str, Any]] = {
        "n_estimators": 200,
        "max_leaf_nodes": 1024,
        "max_depth": None,
        "min_samples_leaf": 1,
        "max_features": "sqrt",
        "criterion": None,
    }

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """Trees are as many as the defaults say: what is worth searching is how deep, and how random."""
        return {
            "max_leaf_nodes": ("log_int", 32, 1024) if rows < 3000 else ("log_int", 256, 4096),
            "min_samples_leaf": ("log_int", 1, 20),
            "max_features": ("float", 0.2, 1.0),
            **({} if task == "regression" else {"criterion": ("choice", ["gini", "entropy"])}),
        }

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """Large tables: a fit sorts every feature at every node."""
        if rows > cls.most_rows or rows * features > MOST_CELLS:
            return f"sorts at every node: at most {cls.most_rows} rows and {MOST_CELLS} cells, here {rows} and {rows * features}"
        return ""

    def _grow(self, x: Features, label: NDArray[Any], watched: Watched | None) -> None:
        from sklearn import ensemble

        name = ("RandomForest" if self.bootstrap else "ExtraTrees") + (
            "Regressor" if self.classes is None else "Classifier"
        )
        params = dict(self.params)
        if params["criterion"] is None:
            params["criterion"] = "squared_error" if self.classes is None else "gini"
        if self.classes is None and params["max_features"] == "sqrt":
            # The library's own advice for regression: all features for a forest; extra trees are random enough.
            params["max_features"] = 1.0
        forest = getattr(ensemble, name)(
            **params, bootstrap=self.bootstrap, random_state=self.seed, n_jobs=self.threads
        ).fit(x, label)
        most = sum(float(np.abs(one.tree_.value).max()) for one in forest.estimators_)
        grid = 2.0 ** (np.ceil(np.log2(most)) - BITS) if most > 0 else 1.0
        parts, says = [], []
        # Tree by tree, each let go of: a distribution a node is most of what a forest of many classes weighs.
        while forest.estimators_:
            tree = forest.estimators_.pop(0).tree_
            whole = np.round(tree.value[:, 0, :] / grid) * grid
            if self._targets > 1:
                # What rounding takes or gives is settled with the likeliest class, so that a leaf still says 1 in all.
                whole[np.arange(len(whole)), whole.argmax(axis=1)] += 1.0 - whole.sum(axis=1)
            says.append((whole if self._targets > 1 else whole[:, -1]).astype(np.float32))
            parts.append(Forest.of(tree))
        self.says = np.concatenate(says)
        self.forest = Forest.joined(parts)

    @property
    def nbytes(self) -> int:
        """What the fitted model holds in memory."""
        return self.says.nbytes + self.forest.nbytes

    def _sums(self, x: Features) -> Floats:
        """Mean over trees."""
        total = np.zeros((len(x), *self.says.shape[1:]))
        for leaves in self.forest.leaves(np.ascontiguousarray(x, np.float32)):
            total += self.says[leaves]
        return total / len(self.forest.sizes)

    def _probabilities(self, sums: Floats) -> Floats:
        return np.column_stack([1.0 - sums, sums]) if self._targets == 1 else sums

    def _draw(self, graph: Graph, x: str) -> str:
        from esteira.onnx.trees import table_sum, tree_sum

        count = len(self.forest.sizes)
        if self._targets == 1:
            total = tree_sum(graph, x, self.forest.read(self.says.astype(np.float64)), targets=1, dtype=np.float32)
        else:
            # Leaves say a whole distribution: each tree gives the row of a table, where equal leaves share their row.
            trees = self.forest.read(np.zeros(len(self.says)))
            table, row = np.unique(self.says[trees.leaf], axis=0, return_inverse=True)
            trees.value[trees.leaf] = np.ravel(row)
            total = table_sum(graph, x, trees, table)
        return graph.add("Div", graph.double(total), graph.scalar(count, np.float64))

    def _draw_probabilities(self, graph: Graph, sums: str) -> str:
        assert self.classes is not None
        if self._targets == 1:
            rest = graph.add("Sub", graph.scalar(1.0, np.float64), sums)
            sums = graph.add("Concat", rest, sums, axis=1)
        return graph.scattered(sums, self.classes, self.present.tolist())

    def _cost(self) -> Cost:
        trees = self.forest.read(np.zeros(len(self.says)))
        visits, weight = self.forest.depth, trees.weight(np.float32)
        if self._targets == 1:
            return Cost(visits=visits, bytes=weight, nodes=6)
        table = 4 * self._targets * len(np.unique(self.says[trees.leaf], axis=0))
        # Each tree writes the number of a row, and the row is read: as dear as two more nodes.
        visits += 2 * len(self.forest.sizes)
        return Cost(visits=visits, bytes=weight + table, macs=self._targets * len(self.forest.sizes), nodes=6)


class RandomForest(_Forest):
    """Trees on bootstraps of the rows, best splits: a fit takes some eight times as long as one of extra trees."""

    bootstrap: ClassVar[bool] = True
    most_rows: ClassVar[int] = 30_000
    parameters: ClassVar[Mapping[str, Any]] = {**_Forest.parameters, "n_estimators": 100}


class ExtraTrees(_Forest):
    """Trees on all rows, random splits."""

    bootstrap: ClassVar[bool] = False
    most_rows: ClassVar[int] = 100_000
