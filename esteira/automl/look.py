"""A closer look at one trial: what more rows would give it, and on which columns it depends.

The final model has seen every row, so nothing of it can be asked on rows that it did not see; the trial is fitted again on
a fold's rows, and the fold's held rows are shuffled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl import curve, importance
from esteira.automl.evaluate import PATIENCE, Data, Fitted
from esteira.automl.kinds import make
from esteira.automl.kinds.base import Held
from esteira.automl.prepare import Recipe, fitted
from esteira.automl.scoring import Scorer
from esteira.automl.splits import Folds


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        learning: as `esteira.automl.curve.learning` gives it.
        columns: importance of each source column, as `esteira.automl.importance.permutation` gives it.
    """

    learning: Sequence[Mapping[str, Any]]
    columns: Sequence[Mapping[str, Any]]


def look(
    data: Data,
    folds: Folds,
    scorer: Scorer,
    groups: Mapping[str, Sequence[int]],
    *,
    recipe: Recipe,
    kind: str,
    params: Mapping[str, Any],
    fits: int = curve.SIZES,
) -> Look:
    """Fit the trial on growing parts of a fold, and shuffle the held rows of the largest fit.

    Args:
        scorer: higher is better.
        groups: source column -> positions of its features in `data.x`.
        fits: how many fits it may take, at least 1; fewer than `curve.SIZES` give no learning curve.
    """
    first = folds.folds[0]  # of folds in order of time, the one that has learned from most rows
    known: dict[int, Fitted] = {}

    def fit_score(rows: NDArray[np.int64], held: NDArray[np.int64]) -> float:
        model = _fit(data, rows, held, recipe, kind, params)
        known[len(rows)] = model
        return scorer(data.y[held], model.predict(data.x[held]))

    learning = curve.learning(fit_score, [(first.fit, first.held)], fits=fits, seed=data.seed)
    whole = known.get(len(first.fit)) or _fit(data, first.fit, first.held, recipe, kind, params)
    columns = importance.permutation(
        whole.predict, data.x[first.held], data.y[first.held], scorer, groups, seed=data.seed
    )
    return Look(learning=learning, columns=columns)


def _fit(
    data: Data,
    rows: NDArray[np.int64],
    held: NDArray[np.int64],
    recipe: Recipe,
    kind: str,
    params: Mapping[str, Any],
) -> Fitted:
    """As a trial of the search is fitted on a fold."""
    preparation, x = fitted.fit(
        recipe, data.x[rows], data.y[rows], columns=data.columns, classes=data.classes, seed=data.seed
    )
    estimator = make(
        kind, params, task=data.task, classes=data.classes, categorical=preparation.columns.categorical, seed=data.seed
    )
    watched = Held(preparation.apply(data.x[held]), data.y[held], PATIENCE) if estimator.rounds_name else None
    estimator.fit(x, data.y[rows], held=watched)
    return Fitted(preparation, estimator, -1)
