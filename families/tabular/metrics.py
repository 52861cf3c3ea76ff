"""How good answers about a table are: named scores, the primary first, and the one outcome that canaries compare."""

from collections.abc import Sequence
from typing import Any

from esteira.family import Answer, Score
from esteira.features.metrics import label_text, predictions
from esteira.features.metrics import scores as scores_of

TOLERANCE = 0.1
"""The declared tolerance of a regression: an answer within a tenth of the truth's size is wholly good."""


def scores(truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
    """Every score of K-50: primary is roc_auc (two classes), f1_macro (more classes) or r2 (regression)."""
    return scores_of(predictions(truths, answers))


def outcome(truth: Any, answer: Answer, *, tolerance: float = TOLERANCE) -> float:
    """How good one answer was, in [0, 1].

    A class is right (1) or wrong (0). A value is 1 within `tolerance` of the truth's size, and loses evenly until it is
    0 at twice that distance; a truth of 0 is held to `tolerance` itself.
    """
    if answer.get("probabilities") is not None:
        return float(label_text(truth) == label_text(answer["prediction"]))
    allowed = tolerance * (abs(float(truth)) or 1.0)
    error = abs(float(answer["prediction"]) - float(truth))
    return float(min(1.0, max(0.0, 2.0 - error / allowed)))
