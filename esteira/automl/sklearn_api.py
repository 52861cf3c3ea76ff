"""AutoML in scikit-learn's words: `AutoMLClassifier` and `AutoMLRegressor`, whose `fit(X, y)` is a search.

They import scikit-learn; the lighter `esteira.automl.fit` does not. What goes wrong is a ValueError, as scikit-learn has it.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, check_is_fitted, column_or_1d, validate_data

from esteira.automl import api
from esteira.automl.table import FEWEST, plain
from esteira.errors import EsteiraError
from esteira.features import parse
from esteira.features.contract import ColumnKind, Task
from esteira.features.metrics import label_text


class _Searching(BaseEstimator):  # type: ignore[misc]
    """What both have in common.

    Args:
        seconds, trials, metric, kinds, max_row_us, storage, seed: as for `esteira.automl.fit`.

    Attributes:
        automl_: the fitted `esteira.automl.api.AutoML`: its leaderboard, its warnings, and `export`.
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        trials: int | None = None,
        metric: str = "",
        kinds: Sequence[str] = (),
        max_row_us: float = api.MAX_ROW_US,
        storage: str = "",
        seed: int = 42,
    ) -> None:
        self.seconds = seconds
        self.trials = trials
        self.metric = metric
        self.kinds = kinds
        self.max_row_us = max_row_us
        self.storage = storage
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    @property
    def leaderboard_(self) -> list[dict[str, Any]]:
        """One dict a trial, best first."""
        check_is_fitted(self)
        return self.automl_.leaderboard

    def _rows(self, X: Any, *, reset: bool) -> pd.DataFrame:
        """Rows as a frame; an array's columns are called x0, x1, ..."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            frame = plain(X)
        else:
            fewest = FEWEST if reset else 1
            # Names and shape are judged by scikit-learn, the cells of an array of objects by the contract.
            array = validate_data(
                self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=fewest
            )
            frame = pd.DataFrame(array)
        frame.columns = pd.Index(self._names(X) if reset else self.names_)
        return frame

    def _names(self, X: Any) -> list[str]:
        if isinstance(X, pd.DataFrame):
            return [str(name) for name in X.columns]
        return [f"x{at}" for at in range(self.n_features_in_)]

    def _learn(self, X: Any, labels: Sequence[Any] | NDArray[Any], task: Task) -> None:
        """Search; the rows are `X`, the labels are put beside them under a name that is free."""
        frame = self._rows(X, reset=True)
        self.names_ = list(frame.columns)
        target = "target"
        while target in frame:
            target += "_"
        if len(labels) != len(frame):
            raise ValueError(f"each row has its label, but there are {len(frame)} rows and {len(labels)} labels")
        # An array of numbers is numbers: no column of it is a code or an identifier.
        known: list[str] = [] if isinstance(X, pd.DataFrame) else frame.select_dtypes("number").columns.tolist()
        kinds: dict[str, ColumnKind] = dict.fromkeys(known, "number")
        try:
            self.automl_ = api.fit(
                frame.assign(**{target: labels}), target, seconds=self.seconds, trials=self.trials, metric=self.metric,
                seed=self.seed, task=task, kinds=self.kinds, max_row_us=self.max_row_us, storage=self.storage,
                column_kinds=kinds,
            )  # fmt: skip
        except EsteiraError as error:
            raise ValueError(str(error)) from error

    def _ask(self, question: Any, X: Any) -> NDArray[Any]:
        frame = self._rows(X, reset=False)
        try:
            answer: NDArray[Any] = question(frame)
        except EsteiraError as error:
            raise ValueError(str(error)) from error
        return answer


class AutoMLClassifier(ClassifierMixin, _Searching):  # type: ignore[misc]
    """A classifier found by a search. `classes_` are the labels, sorted.

    >>> model = AutoMLClassifier(trials=1, kinds=("linear",)).fit([[0.0], [0.1], [0.9], [1.0]] * 5, ["no", "no", "yes", "yes"] * 5)
    >>> model.predict([[0.05], [0.95]]).tolist()
    ['no', 'yes']
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Search for the best model of rows X (rows, features), labels y (rows,).

        Raises:
            ValueError: the rows or the labels cannot be learned from.
        """
        if y is None:
            raise ValueError("This AutoMLClassifier estimator requires y to be passed, but the target y is None")
        y = _check_y(column_or_1d(y, warn=True), estimator=self)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present")
        told = _told_apart([label_text(label) for label in self.classes_])
        names = np.array([label if told else at for at, label in enumerate(map(_native, self.classes_))], dtype=object)
        self._learn(X, names[np.ravel(codes)].tolist(), "binary" if len(names) == 2 else "multiclass")
        learned = self.automl_.table.contract.target.classes
        place = {label_text(label): at for at, label in enumerate(names)}
        self._order = [place[label_text(label)] for label in learned or ()]
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (rows, classes) in the order of `classes_`."""
        check_is_fitted(self)
        found = self._ask(self.automl_.predict_proba, X)
        spread = np.zeros((len(found), len(self.classes_)))
        spread[:, self._order] = found
        return spread

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels (rows,)."""
        check_is_fitted(self)
        codes = self._ask(self.automl_.predict_codes, X)
        said: NDArray[Any] = self.classes_[np.array(self._order)[codes]]
        return said


class AutoMLRegressor(RegressorMixin, _Searching):  # type: ignore[misc]
    """A regression found by a search."""

    def fit(self, X: Any, y: Any) -> Self:
        """Search for the best model of rows X (rows, features), values y (rows,).

        Raises:
            ValueError: the rows or the values cannot be learned from.
        """
        if y is None:
            raise ValueError("This AutoMLRegressor estimator requires y to be passed, but the target y is None")
        self._learn(X, _check_y(column_or_1d(y, warn=True), y_numeric=True, estimator=self), "regression")
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Values (rows,)."""
        check_is_fitted(self)
        return self._ask(self.automl_.predict, X)


def _told_apart(labels: Sequence[str]) -> bool:
    """Whether a contract reads each as a class of its own; others, such as "1" and "1.0" or "nan", are learned as codes."""
    seen: set[Any] = set()
    for label in labels:
        word = label.strip().casefold()
        try:
            read: float | str = float(word)
        except ValueError:
            read = word
        if word in parse.MISSING_WORDS or read in (math.inf, -math.inf):
            return False
        seen.add(read)
    return len(seen) == len(labels)


def _native(label: Any) -> Any:
    """A label as a contract has it: a truth, a whole number or text."""
    if isinstance(label, bool | np.bool_):
        return bool(label)
    if isinstance(label, int | np.integer):
        return int(label)
    return int(label) if isinstance(label, float | np.floating) and float(label).is_integer() else str(label)
