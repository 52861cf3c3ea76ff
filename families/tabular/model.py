"""What AutoML may try on a table. It declares, and fits nothing."""

from esteira.family import Candidate
from esteira.features.contract import Task

PRIMARY: dict[Task, str] = {"binary": "roc_auc", "multiclass": "f1_macro", "regression": "r2"}

KINDS = (
    "lightgbm",
    "xgboost",
    "gradient_boosting",
    "extra_trees",
    "random_forest",
    "neural_network",
    "linear",
    "nearest_neighbours",
    "constant",
)


def candidates() -> list[Candidate]:
    """Every kind that is for a label; where to start and what suits so many rows is the engine's own knowledge of each."""
    return [Candidate(kind) for kind in KINDS]
