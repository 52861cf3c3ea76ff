"""Rows in, answers out: make features, run, say it. The same for a native model and an exported one; it trains nothing.

The path of one request: no pydantic, no pandas, one small float32 array.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esteira.family import Answer, Finding, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from esteira.features.contract import ClassLabel, TableContract, Target

INTERVAL_LEVEL = 0.9


class FeatureAnswerer:
    """Answers rows of one line by features and a prediction on them. Safe to call from several threads.

    Args:
        features: rows to features (rows, features).
        check: findings of the line's contract.
        post: what `post_of` made: classes, or the interval's half width.
        predict: features to probabilities (rows, classes) or values (rows,).
    """

    def __init__(
        self,
        features: "Callable[[Sequence[Row]], NDArray[np.float32]]",
        check: Callable[[Sequence[Row]], list[Finding]],
        post: Mapping[str, Any],
        predict: "Callable[[NDArray[np.float32]], NDArray[Any]]",
    ) -> None:
        self.post = post
        self._features = features
        self._check = check
        self._predict = predict
        classes: Sequence[ClassLabel] | None = post.get("classes")
        self._say: Callable[[Any], Answer]
        if classes is None:
            level = float(post.get("interval_level", INTERVAL_LEVEL))
            quantile = post.get("interval_quantile")
            self._say = _regression(quantile, level, post.get("confidence_kind", "calibrated"))
        else:
            self._say = _classification(list(classes), post.get("confidence_kind", "heuristic"))

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        """Findings of the line's contract; an `error` finding means the row must be refused."""
        return self._check(rows)

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row, in order.

        `{"prediction", "probabilities" (class as text -> p) or "interval" [low, high], "confidence", "confidence_kind",
        "warnings": [{"rule", "column", "message"}]}`. The confidence of a class is its probability, that of a value the
        level of its interval.

        Raises:
            DataError: a value cannot be decoded (`check` names it beforehand).
        """
        if not rows:
            return []
        answers = [self._say(y) for y in self._predict(self._features(rows)).tolist()]
        for finding in self._check(rows):
            if finding.severity == "warning" and finding.row is not None:
                note = {"rule": finding.rule, "column": finding.column, "message": finding.message}
                answers[finding.row]["warnings"].append(note)
        return answers


def _classification(classes: "list[ClassLabel]", kind: str) -> Callable[[list[float]], Answer]:
    keys = [class_key(label) for label in classes]

    def say(probabilities: list[float]) -> Answer:
        top = max(probabilities)
        return {
            "prediction": classes[probabilities.index(top)],
            "probabilities": dict(zip(keys, probabilities, strict=True)),
            "confidence": top,
            "confidence_kind": kind,
            "warnings": [],
        }

    return say


def _regression(quantile: float | None, level: float, kind: str) -> Callable[[float], Answer]:
    def say(value: float) -> Answer:
        known = quantile is not None
        return {
            "prediction": value,
            "interval": [value - quantile, value + quantile] if quantile is not None else None,
            "confidence": level if known else None,
            "confidence_kind": kind if known else "heuristic",
            "warnings": [],
        }

    return say


def class_key(label: "ClassLabel") -> str:
    """The text that names a class in `probabilities`: true and false as JSON writes them."""
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(label)


def post_of(target: "Target", truth: "NDArray[Any]", out_of_fold: "NDArray[np.float64]") -> dict[str, Any]:
    """What turns the graph's output into an answer.

    Args:
        target: the contract's label.
        truth: class codes or values of the training rows.
        out_of_fold: predictions on them by models that did not see them, same order; rows with NaN are left out.

    Returns:
        `{"classes", "confidence_kind"}`, or for regression `{"interval_quantile", "interval_level", "confidence_kind"}`:
        the half width (unit of the label) that covers 90 % of the out-of-fold errors, None with fewer than 20 of them.
    """
    if target.classes is not None:
        return {"classes": list(target.classes), "confidence_kind": "heuristic"}
    errors = sorted(error for error in abs(truth - out_of_fold).tolist() if math.isfinite(error))
    rank = math.ceil((len(errors) + 1) * INTERVAL_LEVEL)
    quantile = errors[rank - 1] if len(errors) >= 20 else None
    return {"interval_quantile": quantile, "interval_level": INTERVAL_LEVEL, "confidence_kind": "calibrated"}


def manifest_of(contract: "TableContract", post: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """The manifest's part that a family owns, of a table's line: `task`, `schema`, `units`, `stages`, `post`."""
    units = {column.name: column.unit for column in contract.columns if column.unit}
    if contract.target.unit:
        units[contract.target.name] = contract.target.unit
    return {
        "task": contract.target.task,
        "schema": contract.model_dump(mode="json", exclude_defaults=True),
        "units": units,
        "stages": list(stages),
        "post": dict(post),
    }
