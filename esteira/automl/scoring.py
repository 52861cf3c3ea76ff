"""The score that a search goes by: a function of truth and prediction, higher is better whatever the metric's own direction."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.errors import ConfigError
from esteira.features.answers import said
from esteira.features.metrics import HIGHER_IS_BETTER, Classified, Estimated, names, statistic

Scorer = Callable[[NDArray[Any], NDArray[np.float64]], float]


def scorer(metric: str, task: str, classes: int | None, *, threshold: float | None = None) -> Scorer:
    """A function (truth, prediction) -> score, higher is better; NaN where undefined.

    Args:
        metric: a name of `esteira.features.metrics`; one that falls as models get better is negated.
        task: for words.
        classes: how many; None for regression.
        threshold: probability of the second class from which it is said; None says the likelier one.

    Raises:
        ConfigError: no such metric for the task; the message lists those there are.
    """
    labels = tuple(str(code) for code in range(classes or 0))
    probe = (
        Estimated(np.zeros(0), np.zeros(0))
        if classes is None
        else Classified(np.zeros(0, np.int64), np.zeros((0, classes)), np.zeros(0, np.int64), labels)
    )
    valid = names(probe)
    if metric not in valid:
        raise ConfigError(
            f"a metric of {task} is one of {', '.join(valid)}, but got {metric!r}",
            code="unknown_metric", where="train.metric", cure="take one of these, or leave it out",
        )  # fmt: skip
    post = {"threshold": threshold}
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def score(truth: NDArray[Any], predicted: NDArray[np.float64]) -> float:
        both = (
            Estimated(truth.astype(np.float64), predicted)
            if classes is None
            else Classified(truth.astype(np.int64), predicted, said(predicted, post), labels)
        )
        return sign * float(statistic(metric, both)(np.ones((1, len(truth))))[0])

    return score
