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
from esteira.automl.evaluate import Data, Fits, Fitted
from esteira.automl.prepare import Recipe
from esteira.automl.scoring import Scorer
from esteira.automl.splits import Fold, Folds


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
) -> Look:
    """Fit the trial on growing parts of a fold, and shuffle the held rows of the largest fit.

    Args:
        scorer: higher is better.
        groups: source column -> positions of its features in `data.x`.
    """
    first = folds.folds[0]  # of folds in order of time, the one that has learned from most rows
    known: dict[int, Fitted] = {}

    def fit_score(rows: NDArray[np.int64], held: NDArray[np.int64]) -> float:
        part = Fits(data, Folds((Fold(rows, held),), folds.kind, 1))
        outcome = part.fold(recipe, kind, params, 0)
        if outcome.fitted is None:
            return float("nan")
        known[len(rows)] = outcome.fitted
        return scorer(data.y[held], outcome.predicted)

    learning = curve.learning(fit_score, [(first.fit, first.held)], fits=curve.SIZES, seed=data.seed)
    whole = known.get(len(first.fit))
    if whole is None:
        return Look(learning=learning, columns=[])
    columns = importance.permutation(
        whole.predict, data.x[first.held], data.y[first.held], scorer, groups, seed=data.seed
    )
    return Look(learning=learning, columns=columns)
