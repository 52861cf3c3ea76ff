"""LightGBM's trees, grown by its own train function: squared error, or log loss. Linear leaves are not offered."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats, Space
from esteira.automl.kinds.trees import TreeKind, Watched, native_categories
from esteira.onnx.graph import Graph

if TYPE_CHECKING:
    from esteira.onnx.lightgbm import Booster


class LightGBM(TreeKind):
    """LightGBM. `rounds` is best found with `held`: without it all of `n_estimators` are grown."""

    parameters: ClassVar[Mapping[str, Any]] = {
        "n_estimators": 1000,
        "learning_rate": 0.05,
        "num_leaves": 31,
        "max_depth": -1,
        "min_data_in_leaf": 20,
        "min_sum_hessian_in_leaf": 1e-3,
        "feature_fraction": 1.0,
        "feature_fraction_bynode": 1.0,
        "bagging_fraction": 1.0,
        "lambda_l1": 0.0,
        "lambda_l2": 0.0,
        "min_gain_to_split": 0.0,
        "extra_trees": False,
        "path_smooth": 0.0,
        "cat_smooth": 10.0,
        "cat_l2": 10.0,
        "max_cat_to_onehot": 4,
        "min_data_per_group": 100,
        "max_bin": 255,
    }
    rounds_name: ClassVar[str | None] = "n_estimators"

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """Small tables get smaller trees and leaves."""
        small = rows < 3000
        return {
            "learning_rate": ("log", 0.02, 0.2),
            "num_leaves": ("log_int", 4, 63) if small else ("log_int", 8, 255),
            "min_data_in_leaf": ("log_int", 2, 50) if small else ("log_int", 3, 200),
            "feature_fraction": ("float", 0.4, 1.0),
            "bagging_fraction": ("float", 0.6, 1.0),
            "lambda_l2": ("log", 1e-3, 30.0),
            "extra_trees": ("choice", [False, True]),
            "cat_smooth": ("log", 1.0, 100.0),
        }

    def _grow(self, x: Features, label: NDArray[Any], watched: Watched | None) -> None:
        import lightgbm

        self.__dict__.pop("_exported", None)
        params = {
            **self.params,
            "bagging_freq": int(float(self.params["bagging_fraction"]) < 1.0),
            "seed": self.seed,
            "num_threads": self.threads,
            "deterministic": True,
            "force_col_wise": True,
            "feature_pre_filter": False,
            "verbosity": -1,
            "objective": "regression" if self.classes is None else "binary" if self._targets == 1 else "multiclass",
        }
        if self._targets > 1:
            params["num_class"] = self._targets
        rounds = int(params.pop("n_estimators"))
        native = native_categories(x, self.categorical)
        data = lightgbm.Dataset(x, label, categorical_feature=native, params=params)
        grown = 0

        def follow(state: Any) -> None:
            # A round that could split nothing adds no trees, so the model is asked for their number and not the loop; after
            # such a round there is nothing to wait for.
            nonlocal grown
            before, grown = grown, state.model.current_iteration()
            wanted = grown > before
            if watched is not None:
                wanted = watched[2].goes_on(grown, state.evaluation_result_list[0][2]) and wanted
            if not wanted:
                raise lightgbm.callback.EarlyStopException(grown, [])

        valid = [] if watched is None else [data.create_valid(watched[0], watched[1])]
        self.booster = lightgbm.train(params, data, rounds, valid_sets=valid, callbacks=[follow])
        self.rounds = watched[2].rounds if watched is not None else grown

    def _sums(self, x: Features) -> Floats:
        found = self.booster.predict(x, raw_score=True, num_iteration=self.rounds, num_threads=self.threads)
        return np.asarray(found, np.float64)

    @cached_property
    def _exported(self) -> "Booster":
        from esteira.onnx.lightgbm import read

        return read(self.booster.model_to_string(num_iteration=self.rounds))

    def _draw(self, graph: Graph, x: str) -> str:
        from esteira.onnx.trees import tree_sum

        return tree_sum(graph, graph.double(x), self._exported.trees, targets=self._targets, dtype=np.float64)

    def _cost(self) -> Cost:
        return Cost(visits=self._exported.depth, bytes=self._exported.trees.weight(np.float64), nodes=5)
