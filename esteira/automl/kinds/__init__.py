"""The kinds of estimators by name. Their modules import no library that fits: each does so where it is used."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from esteira.automl.kinds.base import Estimator
from esteira.automl.kinds.constant import Constant
from esteira.automl.kinds.forest import ExtraTrees, RandomForest
from esteira.automl.kinds.gradient_boosting import GradientBoosting
from esteira.automl.kinds.kmeans import KMeans
from esteira.automl.kinds.lightgbm import LightGBM
from esteira.automl.kinds.linear import LinearModel
from esteira.automl.kinds.neighbours import NearestNeighbours
from esteira.automl.kinds.neural_network import NeuralNetwork
from esteira.automl.kinds.xgboost import XGBoost
from esteira.errors import ConfigError

KINDS: Mapping[str, Any] = {
    "lightgbm": LightGBM,
    "xgboost": XGBoost,
    "gradient_boosting": GradientBoosting,
    "random_forest": RandomForest,
    "extra_trees": ExtraTrees,
    "linear": LinearModel,
    "nearest_neighbours": NearestNeighbours,
    "neural_network": NeuralNetwork,
    "kmeans": KMeans,
    "constant": Constant,
}

TASKS: Mapping[str, bool] = {"binary": True, "multiclass": True, "regression": False, "clustering": False}
"""What can be asked for, and whether its answers are probabilities of classes."""

LIBRARIES: Mapping[str, str] = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    **dict.fromkeys(("gradient_boosting", "random_forest", "extra_trees", "linear", "kmeans"), "sklearn"),
    **dict.fromkeys(("nearest_neighbours", "neural_network"), "threadpoolctl"),
}
"""Name -> what its fit imports; a kind's module imports nothing heavy by itself, so this is looked for beforehand."""


def kind(name: str) -> type[Estimator]:
    """The class of a kind.

    Raises:
        ConfigError: there is no such kind, or the library it needs is not installed.
    """
    if name not in KINDS:
        raise ConfigError(
            f"a kind of estimator is one of {', '.join(KINDS)}, but got {name!r}",
            code="unknown_kind", where="train.kinds", cure="take one of these",
        )  # fmt: skip
    library = LIBRARIES.get(name)
    if library and importlib.util.find_spec(library) is None:
        raise ConfigError(
            f"the kind {name!r} needs the library {library!r}, which is not installed",
            code="missing_library", where="train.kinds", cure=f"install {library}, or leave the kind out",
        )  # fmt: skip
    found: type[Estimator] = KINDS[name]
    return found


def make(
    name: str,
    params: Mapping[str, Any],
    *,
    task: str,
    classes: int | None,
    categorical: Sequence[int],
    seed: int,
    threads: int = 1,
) -> Estimator:
    """An unfitted estimator.

    Raises:
        ConfigError: no such kind or task, one that is not for this task, or a parameter that the kind does not have.
    """
    if task not in TASKS:
        raise ConfigError(
            f"a task is one of {', '.join(TASKS)}, but got {task!r}",
            code="unknown_task", where="task", cure="take one of these",
        )  # fmt: skip
    if TASKS[task] != (classes is not None):
        raise ConfigError(
            f"{task} has {'classes' if TASKS[task] else 'no classes'}, but got classes={classes}",
            code="wrong_task", where="task", cure="correct the task, or the label",
        )  # fmt: skip
    found = kind(name)
    if task not in found.tasks:
        able = ", ".join(other for other in KINDS if task in KINDS[other].tasks)
        raise ConfigError(
            f"a kind for {task} is one of {able}, but got {name!r}",
            code="wrong_kind", where="train.kinds", cure="take one of these",
        )  # fmt: skip
    unknown = sorted(set(params) - set(found.parameters))
    if unknown:
        raise ConfigError(
            f"a parameter of {name} is one of {', '.join(found.parameters) or 'none'}, but got {unknown[0]!r}",
            code="unknown_parameter", where=f"candidate {name}", cure="correct its name, or leave it out",
        )  # fmt: skip
    return found(classes=classes, categorical=categorical, seed=seed, threads=threads, **params)
