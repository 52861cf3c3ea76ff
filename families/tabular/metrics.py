"""How good answers about a table are: named scores, the primary first, and the one outcome that canaries compare."""

from collections.abc import Mapping, Sequence
from typing import Any

from esteira.errors import DataError
from esteira.family import Answer, Score
from esteira.features.metrics import label_text, predictions
from esteira.features.metrics import scores as scores_of

TOLERANCE = 0.1
"""The declared tolerance of a regression: an answer within a tenth of the truth's size is wholly good."""


def scores(truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
    """Every score of K-50: primary is roc_auc (two classes), f1_macro (more classes) or r2 (regression)."""
    return scores_of(predictions(truths, answers))


def outcome(
    truth: Any, answer: Answer, *, tolerance: float = TOLERANCE, manifest: Mapping[str, Any] | None = None
) -> float:
    """How good one answer was, in [0, 1].

    A class is right (1) or wrong (0). A value is 1 less its error, as a part of the half width of the interval that covers
    90 % of the model's own errors (`interval_quantile`), and 0 beyond that. Where a bundle knows no such width, or none is
    given, it is 1 within `tolerance` of the truth's size, and loses evenly until it is 0 at twice that distance; a truth of 0
    is held to `tolerance` itself.

    Args:
        truth: the label.
        answer: its `prediction`; with its `probabilities`, or else a manifest, a class is known from a value.
        tolerance: of a value, a part of the truth's size.
        manifest: of the bundle by which outcomes are measured; of two models that are compared the same for both.

    Raises:
        DataError: code `unknown_class`: by the manifest the truth is no class of the label.
    """
    post: Mapping[str, Any] = (manifest or {}).get("post") or {}
    classes = post.get("classes")
    if classes is not None and label_text(truth) not in {label_text(one) for one in classes}:
        raise DataError(
            f"a truth is a class of the label, but got {label_text(truth)[:80]!r}",
            code="unknown_class", where="truth", cure=f"send one of {', '.join(map(label_text, classes[:10]))}",
        )  # fmt: skip
    if classes is not None or answer.get("probabilities") is not None:
        return float(label_text(truth) == label_text(answer["prediction"]))
    width = post.get("interval_quantile")
    if width is not None and width > 0:
        return float(max(0.0, 1.0 - abs(float(answer["prediction"]) - float(truth)) / width))
    allowed = tolerance * (abs(float(truth)) or 1.0)
    error = abs(float(answer["prediction"]) - float(truth))
    return float(min(1.0, max(0.0, 2.0 - error / allowed)))
