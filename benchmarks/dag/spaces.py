"""What the plain script searches: three kinds with the spaces that a careful person gives them, and the constant."""

from typing import Any

from esteira.family import Candidate
from esteira.features.contract import Task


def candidates(task: Task, n_rows: int) -> list[Candidate]:
    """Kinds of estimators and their spaces, best first trial first.

    Args:
        task: binary, multiclass or regression.
        n_rows: training rows; small tables get more careful defaults and smaller leaves.
    """
    small = n_rows < 10_000
    leaf = 5 if small else 20
    boosting: dict[str, Any] = {"learning_rate": 0.05 if small else 0.1}
    return [
        Candidate(
            "xgboost",
            space={
                "n_estimators": ("int", 100, 400),
                "learning_rate": ("log", 0.02, 0.3),
                "max_depth": ("int", 3, 8),
                "min_child_weight": ("log", 0.5, 20.0),
                "subsample": ("float", 0.6, 1.0),
                "colsample_bytree": ("float", 0.5, 1.0),
                "reg_lambda": ("log", 0.1, 20.0),
            },
            defaults={
                "n_estimators": 200,
                "max_depth": 4 if small else 6,
                "min_child_weight": 1.0,
                "subsample": 0.9,
                "colsample_bytree": 0.8,
                "reg_lambda": 1.0,
                **boosting,
            },
        ),
        Candidate(
            "hist_gradient_boosting",
            space={
                "max_iter": ("int", 60, 300),
                "learning_rate": ("log", 0.02, 0.3),
                "max_leaf_nodes": ("int", 7, 63),
                "min_samples_leaf": ("int", 5, 60),
                "l2_regularization": ("log", 1e-3, 10.0),
            },
            defaults={
                "max_iter": 120,
                "max_leaf_nodes": 15 if small else 31,
                "min_samples_leaf": leaf,
                "l2_regularization": 0.1,
                **boosting,
            },
        ),
        Candidate(
            "linear",
            space={"alpha": ("log", 1e-3, 100.0)} if task == "regression" else {"C": ("log", 1e-3, 100.0)},
            defaults={"alpha": 1.0} if task == "regression" else {"C": 1.0},
        ),
        Candidate("constant"),
    ]
