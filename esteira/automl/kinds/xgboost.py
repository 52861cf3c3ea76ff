"""XGBoost's histogram trees, grown by its own train function: squared error, or log loss. Trees only: no dart, no linear."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats, Space
from esteira.automl.kinds.trees import TreeKind, Watched, Watcher, native_categories
from esteira.onnx.graph import Graph

if TYPE_CHECKING:
    from esteira.onnx.xgboost import Booster


class XGBoost(TreeKind):
    """XGBoost. `rounds` is best found with `held`: without it all of `n_estimators` are grown."""

    parameters: ClassVar[Mapping[str, Any]] = {
        "n_estimators": 1000,
        "learning_rate": 0.05,
        "max_depth": 6,
        "max_leaves": 0,
        "grow_policy": "depthwise",
        "min_child_weight": 1.0,
        "gamma": 0.0,
        "subsample": 1.0,
        "colsample_bytree": 1.0,
        "colsample_bynode": 1.0,
        "reg_lambda": 1.0,
        "reg_alpha": 0.0,
        "max_bin": 256,
        "multi_strategy": "one_output_per_tree",
    }
    rounds_name: ClassVar[str | None] = "n_estimators"

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """Small tables get shallower trees."""
        return {
            "learning_rate": ("log", 0.02, 0.3),
            "max_depth": ("int", 2, 7) if rows < 3000 else ("int", 3, 10),
            "min_child_weight": ("log", 0.5, 30.0),
            "subsample": ("float", 0.6, 1.0),
            "colsample_bytree": ("float", 0.4, 1.0),
            "colsample_bynode": ("float", 0.5, 1.0),
            "reg_lambda": ("log", 1e-2, 30.0),
            # One tree for all classes takes a fraction of the time of an answer where there are many.
            **(
                {"multi_strategy": ("choice", ["one_output_per_tree", "multi_output_tree"])}
                if task == "multiclass"
                else {}
            ),
        }

    def _grow(self, x: Features, label: NDArray[Any], watched: Watched | None) -> None:
        import xgboost

        self.__dict__.pop("_exported", None)
        # The library has no native categories where a leaf answers for all classes.
        native = set() if self._whole else set(native_categories(x, self.categorical))
        self.types = ["c" if i in native else "q" for i in range(self.features)]
        params = {"tree_method": "hist", "seed": self.seed, "nthread": self.threads, "verbosity": 0, **self.params}
        rounds = int(params.pop("n_estimators"))
        measure: dict[str, Any] = {}
        if self.classes is None:
            params |= {"objective": "reg:squarederror", "base_score": 0.0, "eval_metric": "rmse"}
        elif self._targets == 1:
            # With logitraw the base score is the margin itself, so its graph needs no float32 logarithm.
            share = (float(label.sum()) + 1.0) / (len(label) + 2.0)
            params |= {
                "objective": "binary:logitraw",
                "base_score": float(np.float32(np.log(share / (1.0 - share)))),
                "disable_default_eval_metric": True,
            }
            measure["custom_metric"] = _log_loss
        else:
            # Given and not left to the library, whose own sum over the rows depends on the number of threads.
            shares = np.log(np.bincount(label, minlength=self._targets) / len(label)).astype(np.float32)
            params |= {
                "objective": "multi:softprob",
                "num_class": self._targets,
                "base_score": shares.tolist(),
                "eval_metric": "mlogloss",
            }
        settings = {
            "feature_types": self.types, "enable_categorical": True, "nthread": self.threads, "max_bin": params["max_bin"],
        }  # fmt: skip
        data = xgboost.QuantileDMatrix(x, label, **settings)
        if watched is None:
            self.booster = xgboost.train(params, data, rounds)
            return
        held, truth, watcher = watched
        self.booster = xgboost.train(
            params,
            data,
            rounds,
            evals=[(xgboost.QuantileDMatrix(held, truth, ref=data, **settings), "held")],
            verbose_eval=False,
            callbacks=[_following(watcher, squared=self.classes is None)],
            **measure,
        )[: watcher.rounds]
        self.rounds = watcher.rounds

    @property
    def _whole(self) -> bool:
        """Whether a leaf answers for all classes at once: a tree a round, and not one a class."""
        return self._targets > 1 and self.params["multi_strategy"] == "multi_output_tree"

    def _sums(self, x: Features) -> Floats:
        import xgboost

        data = xgboost.DMatrix(x, feature_types=self.types, enable_categorical=True, nthread=self.threads)
        if self._whole:
            # Leaves are summed in double, so that the order of the sum does not matter.
            trees, base, table = self._exported.trees, self._exported.base, self._exported.table
            assert table is not None
            ends = self.booster.predict(data, pred_leaf=True).reshape(len(x), -1).astype(np.int64)
            total = np.zeros((len(x), self._targets))
            for root, end in zip(trees.roots, ends.T, strict=True):
                total += table[trees.value[root + end].astype(np.int64)]
            return base + total
        return np.asarray(self.booster.predict(data, output_margin=True), np.float64)

    @cached_property
    def _exported(self) -> "Booster":
        from esteira.onnx.xgboost import read

        return read(self.booster)

    def _draw(self, graph: Graph, x: str) -> str:
        from esteira.onnx.trees import table_sum, tree_sum

        if self._exported.table is not None:
            total = table_sum(graph, x, self._exported.trees, self._exported.table)
            return graph.add("Add", total, graph.constant(self._exported.base))
        return graph.double(tree_sum(graph, x, self._exported.trees, targets=self._targets, dtype=np.float32))

    def _cost(self) -> Cost:
        trees, table = self._exported.trees, self._exported.table
        if table is not None:
            weight = trees.weight(np.float32) + table.nbytes
            # Each tree writes the number of a row, and the row is read: as dear as two more nodes.
            visits = self._exported.depth + 2 * len(trees.roots)
            return Cost(visits=visits, bytes=weight, macs=self._targets * len(trees.roots), nodes=6)
        return Cost(visits=self._exported.depth, bytes=trees.weight(np.float32), nodes=5)


def _following(watcher: Watcher, *, squared: bool) -> Any:
    """A callback that stops the fit when the watcher says so."""
    import xgboost

    class Following(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            (history,) = evals_log["held"].values()
            loss = float(history[-1])
            return not watcher.goes_on(epoch + 1, loss * loss if squared else loss)

    return Following()


def _log_loss(margin: NDArray[np.float32], data: Any) -> tuple[str, float]:
    """The library's own would take the margins for probabilities."""
    signed = np.where(data.get_label() > 0.5, -1.0, 1.0) * margin.astype(np.float64)
    return "logloss", float(np.logaddexp(0.0, signed).mean())
