"""The best model of a table, within trials or seconds: `fit` takes a frame, `search` takes arrays.

Bounded by trials, the same rows and seed give the same model to the last bit. Names are imported when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Before anything loads libgomp: threads that spin while they wait made the same fit take 2 or 100 s on shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from esteira.automl.api import AutoML, fit
    from esteira.automl.engine import Result, search
    from esteira.automl.sklearn_api import AutoMLClassifier, AutoMLRegressor
    from esteira.automl.splits import Fold, Folds, plan_folds

__all__ = [
    "AutoML",
    "AutoMLClassifier",
    "AutoMLRegressor",
    "Fold",
    "Folds",
    "Result",
    "fit",
    "plan_folds",
    "search",
]

_HOMES = {
    "AutoML": "api",
    "AutoMLClassifier": "sklearn_api",
    "AutoMLRegressor": "sklearn_api",
    "Fold": "splits",
    "Folds": "splits",
    "Result": "engine",
    "fit": "api",
    "plan_folds": "splits",
    "search": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
