"""The kinds of estimators by name; each lives in a module of its own, imported when it is first wanted."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from esteira.automl.kinds.base import Estimator
from esteira.errors import ConfigError

KINDS: Mapping[str, str] = {
    "lightgbm": "lightgbm:LightGBM",
    "xgboost": "xgboost:XGBoost",
    "gradient_boosting": "gradient_boosting:GradientBoosting",
    "random_forest": "forest:RandomForest",
    "extra_trees": "forest:ExtraTrees",
    "linear": "linear:LinearModel",
    "nearest_neighbours": "neighbours:NearestNeighbours",
    "neural_network": "neural_network:NeuralNetwork",
    "kmeans": "kmeans:KMeans",
    "constant": "constant:Constant",
}
"""Name -> module and class below this package."""


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
    module, _, symbol = KINDS[name].partition(":")
    try:
        found: type[Estimator] = getattr(importlib.import_module(f"esteira.automl.kinds.{module}"), symbol)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("esteira"):
            raise
        raise ConfigError(
            f"the kind {name!r} needs the library {error.name!r}, which is not installed",
            code="missing_library", where="train.kinds", cure=f"install {error.name}, or leave the kind out",
        ) from error  # fmt: skip
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
        ConfigError: no such kind, one that is not for this task, or a parameter that the kind does not have.
    """
    found = kind(name)
    if task not in found.tasks:
        able = ", ".join(other for other in KINDS if task in kind(other).tasks)
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
