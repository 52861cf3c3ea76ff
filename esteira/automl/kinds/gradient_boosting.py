"""scikit-learn's histogram gradient boosting: squared error, or log loss."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats, Space
from esteira.automl.kinds.trees import TreeKind, Watched, Watcher, native_categories
from esteira.onnx.graph import Graph

if TYPE_CHECKING:
    from esteira.onnx.trees import Trees

MOST_CLASSES = 30


class GradientBoosting(TreeKind):
    """Histogram gradient boosting. `rounds` is best found with `held`: without it all of `max_iter` are grown."""

    parameters: ClassVar[Mapping[str, Any]] = {
        "max_iter": 500,
        "learning_rate": 0.06,
        "max_leaf_nodes": 31,
        "max_depth": None,
        "min_samples_leaf": 20,
        "l2_regularization": 0.0,
        "max_features": 1.0,
        "max_bins": 255,
    }
    rounds_name: ClassVar[str | None] = "max_iter"

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """Small tables get smaller trees and leaves."""
        small = rows < 3000
        return {
            "learning_rate": ("log", 0.02, 0.3),
            "max_leaf_nodes": ("log_int", 4, 63) if small else ("log_int", 8, 255),
            "min_samples_leaf": ("log_int", 2, 50) if small else ("log_int", 5, 200),
            "l2_regularization": ("log", 1e-4, 30.0),
            "max_features": ("float", 0.3, 1.0),
        }

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """Many classes: each round grows a tree for every one, and LightGBM does the same sooner."""
        if classes is not None and classes > MOST_CLASSES:
            return f"grows a tree a class a round: at most {MOST_CLASSES} classes, here {classes}"
        return ""

    def _grow(self, x: Features, label: NDArray[Any], watched: Watched | None) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.__dict__.pop("_trees", None)
        kind = HistGradientBoostingRegressor if self.classes is None else HistGradientBoostingClassifier
        rows: dict[str, Any] = {}
        # The library's mean loss of squares is half of it.
        unit = 2.0 if self.classes is None else 1.0
        if watched is not None:
            held, truth, watcher = watched
            kind, rows = _followed(kind, watcher, unit), {"X_val": held, "y_val": truth}
        self.model = kind(
            **self.params,
            categorical_features=native_categories(x, self.categorical, self.params["max_bins"]) or None,
            early_stopping=watched is not None,
            scoring="loss",
            random_state=self.seed,
        )
        # Binning fails on a column without a value; a constant column is never split on, so what stands there is no matter.
        empty = np.isnan(x).all(axis=0)
        filled = np.where(empty, np.float32(0.0), x) if empty.any() else x
        with threadpool_limits(self.threads, user_api="openmp"):
            self.model.fit(filled, label, **rows)
        if watched is not None:
            self.rounds = watched[2].rounds
            del self.model._predictors[self.rounds :]

    def _sums(self, x: Features) -> Floats:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self.threads, user_api="openmp"):
            if self.classes is None:
                return np.asarray(self.model.predict(x), np.float64)
            return np.asarray(self.model.decision_function(x), np.float64)

    @cached_property
    def _trees(self) -> "Trees":
        from esteira.onnx.gradient_boosting import read

        return read(self.model, self.features)

    def _draw(self, graph: Graph, x: str) -> str:
        from esteira.onnx.trees import tree_sum

        return tree_sum(graph, graph.double(x), self._trees, targets=self._targets, dtype=np.float64)

    def _cost(self) -> Cost:
        from esteira.onnx.gradient_boosting import depth

        return Cost(visits=depth(self.model), bytes=self._trees.weight(np.float64), nodes=5)


def _followed(kind: Any, watcher: Watcher, unit: float) -> Any:
    """The estimator, asking the watcher after every round whether to go on."""

    class Followed(kind):  # type: ignore[misc]
        def _should_stop(self, scores: list[float]) -> bool:
            # The first score is that of the baseline.
            return len(scores) > 1 and not watcher.goes_on(len(scores) - 1, -unit * float(scores[-1]))

    return Followed
