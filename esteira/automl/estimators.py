"""The estimators that a search can fit: one class a kind, each with its native prediction and its exact graph.

Categories are given natively to trees where a column has at most NATIVE_LEVELS of them; above that trees see the code,
which is the category's rank by frequency. A kind that sees fewer classes than there are gives the others probability 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from esteira.errors import ConfigError

NATIVE_LEVELS = 64
# One thread a fit, and fits side by side: on two cores that others use too, two threads made the same fit of 700 to
# 43,000 rows 1.2 to 4 times slower, and up to twice as dear in processor time. Where a table is large threads pay; their
# number is fixed, so that sums come out alike on every machine.
LARGE = 2_000_000  # cells
MANY = 4

Floats = NDArray[np.float64]


class Estimator(Protocol):
    """A kind of estimator; `classes` is None for regression."""

    parameters: ClassVar[Mapping[str, Any]]

    def __init__(self, *, classes: int | None, categorical: Sequence[int], seed: int, **params: Any) -> None: ...

    def fit(self, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Fit on x (rows, features) and class codes or values."""

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""

    def graph(self) -> bytes:
        """The same as an ONNX graph."""

    def cost(self) -> int:
        """What one answer costs, deterministic: visited nodes of trees, or coefficients."""


class _Base:
    parameters: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *, classes: int | None, categorical: Sequence[int], seed: int, **params: Any) -> None:
        self.classes = classes
        self.categorical = tuple(categorical)
        self.seed = seed
        self.params = {**self.parameters, **params}
        self.features = 0
        self.present: NDArray[np.int64] = np.zeros(0, np.int64)

    def _learn_classes(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Codes among the classes that occur, which are kept in `present`."""
        self.present, codes = np.unique(y, return_inverse=True)
        return np.ravel(codes)

    def _spread(self, probabilities: Floats) -> Floats:
        """Probabilities of the classes that occurred, as probabilities of all."""
        assert self.classes is not None
        if len(self.present) == self.classes:
            return probabilities
        spread = np.zeros((len(probabilities), self.classes))
        spread[:, self.present] = probabilities
        return spread

    def _native(self, x: NDArray[np.float32]) -> list[int]:
        """Category columns with few enough codes for native splits."""
        return [i for i in self.categorical if len(_codes(x[:, i])) <= NATIVE_LEVELS and len(_codes(x[:, i])) > 0]


def threads(x: NDArray[np.float32]) -> int:
    """Threads for one fit on x."""
    return MANY if x.size >= LARGE else 1


def _codes(column: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.unique(column[~np.isnan(column)])


class Constant(_Base):
    """The trivial model: class shares, or the mean."""

    def fit(self, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Count the classes or take the mean; x is not looked at."""
        self.features = x.shape[1]
        if self.classes is None:
            self.answer: Floats = np.array([np.mean(y, dtype=np.float64)])
        else:
            self.answer = np.bincount(y, minlength=self.classes).astype(np.float64) / len(y)

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """The same answer for every row."""
        return np.repeat(self.answer, len(x)) if self.classes is None else np.tile(self.answer, (len(x), 1))

    def graph(self) -> bytes:
        """The same as an ONNX graph."""
        from esteira.onnx import constant

        return constant.graph(self.answer, features=self.features, classes=self.classes)

    def cost(self) -> int:
        """Nothing is computed."""
        return 0


class HistGradientBoosting(_Base):
    """scikit-learn's histogram gradient boosting; squared error, or log loss."""

    parameters: ClassVar[Mapping[str, Any]] = {
        "max_iter": 120,
        "learning_rate": 0.1,
        "max_leaf_nodes": 31,
        "max_depth": None,
        "min_samples_leaf": 20,
        "l2_regularization": 0.0,
        "max_features": 1.0,
    }

    def fit(self, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Fit without early stopping, which would hold rows back."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.features = x.shape[1]
        native = self._native(x)
        kind = HistGradientBoostingRegressor if self.classes is None else HistGradientBoostingClassifier
        self.model = kind(
            **self.params, categorical_features=native or None, early_stopping=False, random_state=self.seed
        )
        # Binning fails on a column without a value; a constant column is never split on, so what stands there is no matter.
        filled = np.where(np.isnan(x).all(axis=0), np.float32(0.0), x)
        with threadpool_limits(threads(x), user_api="openmp"):
            self.model.fit(filled, y if self.classes is None else self._learn_classes(y))

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """Natively."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(threads(x), user_api="openmp"):
            if self.classes is None:
                return np.asarray(self.model.predict(x), np.float64)
            return self._spread(np.asarray(self.model.predict_proba(x), np.float64))

    def graph(self) -> bytes:
        """The same as an ONNX graph."""
        from esteira.onnx import hist_gradient_boosting

        return hist_gradient_boosting.graph(
            self.model, features=self.features, classes=self.classes, present=self.present.tolist()
        )

    def cost(self) -> int:
        """Nodes visited: the depth of every tree."""
        return sum(int(tree.get_max_depth()) for step in self.model._predictors for tree in step)


class XGBoost(_Base):
    """XGBoost's histogram trees. A regression's label is standardised for the fit, because gradients are float32."""

    parameters: ClassVar[Mapping[str, Any]] = {
        "n_estimators": 200,
        "learning_rate": 0.1,
        "max_depth": 6,
        "min_child_weight": 1.0,
        "gamma": 0.0,
        "subsample": 1.0,
        "colsample_bytree": 1.0,
        "reg_lambda": 1.0,
        "reg_alpha": 0.0,
    }

    def fit(self, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Fit on XGBoost's own engine, without its scikit-learn wrapper."""
        import xgboost

        self.features = x.shape[1]
        native = self._native(x)
        self.types = ["c" if i in native else "q" for i in range(self.features)]
        self.offset, self.scale = 0.0, 1.0
        params = {"tree_method": "hist", "seed": self.seed, "nthread": threads(x), "verbosity": 0, **self.params}
        rounds = int(params.pop("n_estimators"))
        label = np.asarray(y, np.float64)
        if self.classes is None:
            self.offset, self.scale = float(label.mean()), float(label.std()) or 1.0
            label = (label - self.offset) / self.scale
            params |= {"objective": "reg:squarederror", "base_score": 0.0}
        elif self.classes == 2:
            # With logitraw the base score is the margin itself, so its graph needs no float32 logarithm.
            share = (float(label.sum()) + 1.0) / (len(label) + 2.0)
            params |= {"objective": "binary:logitraw", "base_score": float(np.float32(np.log(share / (1.0 - share))))}
        else:
            params |= {"objective": "multi:softprob", "num_class": self.classes}
        data = xgboost.QuantileDMatrix(
            x, label, feature_types=self.types, enable_categorical=True, nthread=threads(x), max_bin=256
        )
        self.booster = xgboost.train(params, data, num_boost_round=rounds)

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """XGBoost's own float32 margins; the link is applied in double."""
        import xgboost

        from esteira.onnx.graph import sigmoid, softmax

        data = xgboost.DMatrix(x, feature_types=self.types, enable_categorical=True, nthread=threads(x))
        margin = np.asarray(self.booster.predict(data, output_margin=True), np.float64)
        if self.classes is None:
            return margin * self.scale + self.offset
        return sigmoid(margin) if self.classes == 2 else softmax(margin)

    def graph(self) -> bytes:
        """The same as an ONNX graph."""
        from esteira.onnx import xgboost

        return xgboost.graph(
            self.booster, features=self.features, classes=self.classes, scale=self.scale, offset=self.offset
        )

    def cost(self) -> int:
        """Nodes visited at most: depth times trees."""
        trees = int(self.booster.num_boosted_rounds()) * (self.classes if self.classes and self.classes > 2 else 1)
        return trees * int(self.params["max_depth"])


class LinearModel(_Base):
    """Ridge, or logistic regression, on imputed, flagged, scaled numbers and one-hot categories.

    `C` and `alpha` are the same knob: the penalty is `alpha = 1 / C`.
    """

    parameters: ClassVar[Mapping[str, Any]] = {"C": None, "alpha": None}

    def fit(self, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Fit the preparation and the coefficients."""
        from sklearn.linear_model import LogisticRegression, Ridge

        self.features = x.shape[1]
        self._prepare(x)
        design = self._design(x)
        alpha = float(self.params["alpha"] or 1.0 / float(self.params["C"] or 1.0))
        if self.classes is None:
            self.model = Ridge(alpha=alpha, solver="cholesky").fit(design, y)
            self.weights, self.intercept = self.model.coef_[:, None], np.atleast_1d(self.model.intercept_)
            return
        codes = self._learn_classes(y)
        if len(self.present) == 1:  # nothing to tell apart
            self.weights, self.intercept = np.zeros((design.shape[1], 1)), np.zeros(1)
            self.model = None
            return
        # Newton steps are few but cost a Hessian of (columns x classes) squared.
        small = design.shape[1] * len(self.present) <= 400
        self.model = LogisticRegression(C=1.0 / alpha, solver="newton-cholesky" if small else "lbfgs", max_iter=200)
        self.model.fit(design, codes)
        self.weights, self.intercept = self.model.coef_.T, self.model.intercept_

    def _prepare(self, x: NDArray[np.float32]) -> None:
        self.numeric = tuple(i for i in range(self.features) if i not in self.categorical)
        numbers = x[:, self.numeric].astype(np.float64)
        missing = np.isnan(numbers)
        self.median = np.array(
            [np.median(c[~m]) if not m.all() else 0.0 for c, m in zip(numbers.T, missing.T, strict=True)]
        )
        filled = np.where(missing, self.median, numbers)
        self.mean, deviation = filled.mean(axis=0), filled.std(axis=0)
        self.scale = np.where(deviation > 0, deviation, 1.0)
        self.flagged = np.flatnonzero(missing.any(axis=0))
        # Codes are ranks by frequency, so the rare ones are the high ones, and these share the unknown's coefficient: 0.
        self.levels = tuple(int(min(_codes(x[:, i]).max(initial=0.0), NATIVE_LEVELS)) for i in self.categorical)

    def _design(self, x: NDArray[np.float32]) -> Floats:
        """Scaled numbers, flags, and per category column one column a code and one for the missing."""
        numbers = x[:, self.numeric].astype(np.float64)
        missing = np.isnan(numbers)
        scaled = (np.where(missing, self.median, numbers) - self.mean) / self.scale
        parts = [scaled, missing[:, self.flagged].astype(np.float64)]
        for column, top in zip(self.categorical, self.levels, strict=True):
            codes = x[:, column]
            parts.append((codes[:, None] == np.arange(1, top + 1, dtype=np.float32)).astype(np.float64))
            parts.append(np.isnan(codes)[:, None].astype(np.float64))
        return np.hstack(parts)

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """Natively, by scikit-learn on the one-hot design."""
        design = self._design(x)
        if self.classes is None:
            return np.asarray(self.model.predict(design), np.float64)
        if self.model is None:
            return self._spread(np.ones((len(x), 1)))
        return self._spread(np.asarray(self.model.predict_proba(design), np.float64))

    def graph(self) -> bytes:
        """The same as an ONNX graph."""
        from esteira.onnx import constant, linear

        if self.classes is not None and len(self.present) == 1:
            return constant.graph(self._spread(np.ones((1, 1)))[0], features=self.features, classes=self.classes)
        targets = self.weights.shape[1]
        plain, flags = len(self.numeric), len(self.flagged)
        missing_weights = np.zeros((plain, targets))
        missing_weights[self.flagged] = self.weights[plain : plain + flags]
        tables, at = [], plain + flags
        for top in self.levels:
            tables.append(np.vstack([np.zeros((1, targets)), self.weights[at : at + top + 1]]))
            at += top + 1
        arrays = linear.Linear(
            numeric=self.numeric,
            median=self.median,
            mean=self.mean,
            scale=self.scale,
            weights=self.weights[:plain],
            missing_weights=missing_weights,
            categorical=self.categorical,
            levels=self.levels,
            tables=tuple(tables),
            intercept=self.intercept,
        )
        return linear.graph(arrays, features=self.features, classes=self.classes, present=self.present.tolist())

    def cost(self) -> int:
        """Coefficients."""
        return int(self.weights.size)


KINDS: Mapping[str, type[Estimator]] = {
    "xgboost": XGBoost,
    "hist_gradient_boosting": HistGradientBoosting,
    "linear": LinearModel,
    "constant": Constant,
}


def make(
    kind: str, params: Mapping[str, Any], *, classes: int | None, categorical: Sequence[int], seed: int
) -> Estimator:
    """An unfitted estimator.

    Raises:
        ConfigError: no such kind, or a parameter that the kind does not have.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"a kind of estimator is one of {', '.join(KINDS)}, but got {kind!r}",
            code="unknown_kind", where="train.kinds", cure="take one of these",
        )  # fmt: skip
    known = KINDS[kind].parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ConfigError(
            f"{kind} has the parameters {', '.join(known) or '(none)'}, but got {unknown[0]!r}",
            code="unknown_parameter", where=f"train, kind {kind}", cure="take one of these",
        )  # fmt: skip
    return KINDS[kind](classes=classes, categorical=categorical, seed=seed, **params)
