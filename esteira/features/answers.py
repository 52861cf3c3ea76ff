"""Rows in, answers out: make features, run, say it. The same for a native model and an exported one; it trains nothing.

The path of one request: no pydantic, no pandas, one small float32 array.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esteira.family import Answer, Finding, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from esteira.features.contract import ClassLabel, TableContract, Target

INTERVAL_LEVEL = 0.9
MIN_ERRORS = 20
"""Fewer out-of-fold errors give no interval."""
BAND_ROWS = 100
MOST_BANDS = 10


class FeatureAnswerer:
    """Answers rows of one line by features and a prediction on them. Safe to call from several threads.

    Args:
        features: rows to features (rows, features).
        check: findings of the line's contract.
        post: what `post_of` made: classes, or the interval's half widths.
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
            self._say = _regression(post)
        else:
            self._say = _classification(list(classes), post)

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        """Findings of the line's contract; an `error` finding means the row must be refused."""
        return self._check(rows)

    def answer(self, rows: Sequence[Row], findings: Sequence[Finding] | None = None) -> list[Answer]:
        """One answer a row, in order.

        `{"prediction", "probabilities" (class as text -> p) or "interval" [low, high], "confidence", "confidence_kind",
        "warnings": [{"rule", "column", "message"}]}`. The confidence of a class is its probability, that of a value the
        level of its interval.

        Args:
            findings: what `check` found of these very rows; None looks again. Warnings among them go into the answers.

        Raises:
            DataError: a value cannot be decoded (`check` names it beforehand).
        """
        if not rows:
            return []
        answers = [self._say(y) for y in self._predict(self._features(rows)).tolist()]
        for finding in self._check(rows) if findings is None else findings:
            if finding.severity == "warning" and finding.row is not None:
                note = {"rule": finding.rule, "column": finding.column, "message": finding.message}
                answers[finding.row]["warnings"].append(note)
        return answers


def _classification(classes: "list[ClassLabel]", post: Mapping[str, Any]) -> Callable[[list[float]], Answer]:
    keys = [class_key(label) for label in classes]
    kind = post.get("confidence_kind", "heuristic")
    threshold = post.get("threshold")

    def say(probabilities: list[float]) -> Answer:
        if threshold is None:
            said = probabilities.index(max(probabilities))
        else:
            said = int(probabilities[1] >= threshold)
        return {
            "prediction": classes[said],
            "probabilities": dict(zip(keys, probabilities, strict=True)),
            "confidence": probabilities[said],
            "confidence_kind": kind,
            "warnings": [],
        }

    return say


def said(probabilities: "NDArray[np.float64]", post: Mapping[str, Any]) -> "NDArray[np.int64]":
    """Codes of the classes that are said (rows,), of probabilities (rows, classes): what an answer's `prediction` names.

    The likeliest class, the first of equal ones; with a `threshold` the second of two from that probability on.
    """
    threshold = post.get("threshold")
    codes: NDArray[np.int64] = (
        probabilities.argmax(axis=1) if threshold is None else (probabilities[:, 1] >= threshold).astype("int64")
    )
    return codes


def _regression(post: Mapping[str, Any]) -> Callable[[float], Answer]:
    level = float(post.get("interval_level", INTERVAL_LEVEL))
    overall: float | None = post.get("interval_quantile")
    bands: Sequence[Mapping[str, Any]] = post.get("interval_bands") or ()
    ends = [band["upto"] for band in bands[:-1]]
    quantiles = [band["quantile"] for band in bands]
    known = bool(quantiles) or overall is not None
    kind = post.get("confidence_kind", "calibrated") if known else "heuristic"
    confidence = level if known else None

    def say(value: float) -> Answer:
        half = quantiles[bisect_left(ends, value)] if quantiles else overall
        return {
            "prediction": value,
            "interval": None if half is None else [value - half, value + half],
            "confidence": confidence,
            "confidence_kind": kind,
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
        `{"classes", "confidence_kind"}`, to which a search that calibrated or found a `threshold` (of two classes, the
        probability of the second from which it is said) adds; or for regression `{"interval_quantile", "interval_level",
        "confidence_kind"}`, the half width (unit of the label) that covers 90 % of the out-of-fold errors, None with fewer
        than 20 of them; and, where there are rows enough for more than one, `interval_bands`, `[{"upto", "quantile"}]`:
        the half width for predictions up to and including `upto`, which rises and is None in the last.
    """
    if target.classes is not None:
        return {"classes": list(target.classes), "confidence_kind": "heuristic"}
    errors = abs(truth - out_of_fold)
    finite = [
        (value, error)
        for value, error in zip(out_of_fold.tolist(), errors.tolist(), strict=True)
        if math.isfinite(error)
    ]
    quantile = _quantile([error for _, error in finite]) if len(finite) >= MIN_ERRORS else None
    bands = _bands(sorted(finite))
    return {
        "interval_quantile": quantile,
        "interval_level": INTERVAL_LEVEL,
        "confidence_kind": "calibrated",
        **({"interval_bands": bands} if len(bands) > 1 else {}),
    }


def _quantile(errors: list[float]) -> float:
    """The split-conformal half width (Lei et al. 2018): the ceil((n + 1) level)-th smallest error, at least 10 errors."""
    return sorted(errors)[math.ceil((len(errors) + 1) * INTERVAL_LEVEL) - 1]


def _bands(pairs: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Half widths by bands of equal rows of the predicted value (Mondrian conformal, Vovk et al. 2003).

    Errors often grow with the value, and one width for all is then too wide here and too narrow there.

    Args:
        pairs: (prediction, error) in order of the prediction.
    """
    wanted = min(MOST_BANDS, len(pairs) // BAND_ROWS)
    bands: list[dict[str, Any]] = []
    start = 0
    for number in range(1, wanted + 1):
        stop = len(pairs) * number // wanted
        while 0 < stop < len(pairs) and pairs[stop][0] == pairs[stop - 1][0]:
            stop += 1  # equal predictions lie in one band
        if stop - start < BAND_ROWS or 0 < len(pairs) - stop < BAND_ROWS:
            continue
        # Between two predictions: one that differs in the last bit stays in its band.
        upto = None if stop == len(pairs) else (pairs[stop - 1][0] + pairs[stop][0]) / 2
        bands.append({"upto": upto, "quantile": _quantile([error for _, error in pairs[start:stop]])})
        start = stop
    return bands


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
