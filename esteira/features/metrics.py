"""Named scores of predictions, their bootstrap intervals and their trivial baselines, with numpy alone.

Every score is a *statistic*: a function of row weights, so that the point value (all weights 1) and its resamples are
the same formula, and two models compared on the same resamples are paired by construction. Undefined is NaN inside and
None with a reason outside. Values equal scikit-learn's (proven in tests), which is not imported: it costs 3 s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esteira.family import Answer, Score

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""Weights `(resamples, rows)` in, one value a resample out; NaN where it is undefined."""

TaskName = Literal["binary", "multiclass", "regression"]

PRIMARY: Mapping[str, str] = {"binary": "roc_auc", "multiclass": "f1_macro", "regression": "r2"}
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "average_precision": True,
    "balanced_accuracy": True,
    "brier": False,
    "ece": False,
    "f1": True,
    "f1_macro": True,
    "log_loss": False,
    "mae": False,
    "mse": False,
    "precision": True,
    "r2": True,
    "recall": True,
    "rmse": False,
    "roc_auc": True,
    "silhouette": True,
    "davies_bouldin": False,
}
_ELEMENTS = (
    400_000  # weights held at once: resamples are made in blocks of about this many numbers (3 MB, stays in cache)
)


@dataclass(frozen=True)
class Classified:
    """Truths and answers of a classifier.

    Attributes:
        truth: class codes `(rows,)`, 0..k-1; -1 for a label that the model does not know (always wrong).
        probabilities: `(rows, k)`, each row adds up to 1.
        predicted: class codes `(rows,)`; -1 for a class that is not among these.
        classes: the k labels as text, in code order.
    """

    truth: Codes
    probabilities: Floats
    predicted: Codes
    classes: tuple[str, ...]

    def take(self, index: NDArray[Any]) -> "Classified":
        """The rows of an index or mask."""
        return Classified(self.truth[index], self.probabilities[index], self.predicted[index], self.classes)

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Estimated:
    """Truths and answers of a regression, `(rows,)` in the label's unit; `low`, `high` when intervals were answered."""

    truth: Floats
    predicted: Floats
    low: Floats | None = None
    high: Floats | None = None

    def take(self, index: NDArray[Any]) -> "Estimated":
        """The rows of an index or mask."""
        low = None if self.low is None else self.low[index]
        high = None if self.high is None else self.high[index]
        return Estimated(self.truth[index], self.predicted[index], low, high)

    def __len__(self) -> int:
        return len(self.truth)


Predictions = Classified | Estimated


# ---------------------------------------------------------------------------------------------- answers


def label_text(label: Any) -> str:
    """The text that names a class in `probabilities`: booleans as JSON writes them, whole numbers without a point."""
    if isinstance(label, (bool, np.bool_)):
        return "true" if label else "false"
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        return str(int(label))
    return str(label)


def predictions(
    truths: Sequence[Any], answers: Sequence[Answer], *, classes: Sequence[str] | None = None
) -> Predictions:
    """Truths and answers as arrays. Answers with `probabilities` are a classifier's.

    Args:
        truths: labels in their own type, or values; one an answer.
        classes: order of the classes; by default that of the first answer's probabilities.

    Raises:
        ValueError: there are not as many answers as truths, or answers of both kinds.
    """
    if len(truths) != len(answers):
        raise ValueError(f"every truth needs its answer, but there are {len(truths)} truths and {len(answers)} answers")
    shared: Mapping[str, float] | None = answers[0].get("probabilities") if len(answers) else None
    if shared is None:
        return _estimated(truths, answers)
    names = tuple(classes if classes is not None else shared)
    keys = tuple(shared)
    code = {label_text(name): index for index, name in enumerate(names)}
    probabilities = np.zeros((len(answers), len(names)))
    where = [code[label_text(key)] for key in keys if label_text(key) in code]
    known = [key for key in keys if label_text(key) in code]
    probabilities[:, where] = np.array([[answer["probabilities"][key] for key in known] for answer in answers])
    truth = np.array([code.get(label_text(label), -1) for label in truths], dtype=np.int64)
    predicted = np.array([code.get(label_text(answer["prediction"]), -1) for answer in answers], dtype=np.int64)
    return Classified(truth, probabilities, predicted, names)


def _estimated(truths: Sequence[Any], answers: Sequence[Answer]) -> Estimated:
    truth = np.asarray(truths, dtype=np.float64)
    predicted = np.array([answer["prediction"] for answer in answers], dtype=np.float64)
    bounds = [_bounds(answer.get("interval")) for answer in answers]
    if not bounds or any(pair is None for pair in bounds):
        return Estimated(truth, predicted)
    ends = np.array(bounds, dtype=np.float64)
    return Estimated(truth, predicted, ends[:, 0], ends[:, 1])


def _bounds(interval: Any) -> tuple[float, float] | None:
    """Low and high end of an answered interval, which may be a pair or an object with `low` and `high`."""
    if interval is None:
        return None
    if isinstance(interval, Mapping):
        return float(interval["low"]), float(interval["high"])
    return float(interval[0]), float(interval[1])


# ---------------------------------------------------------------------------------------------- statistics


def accuracy(y: Classified) -> Statistic:
    """Share of rows whose predicted class is the true one."""
    return _mean(((y.predicted == y.truth) & (y.truth >= 0)).astype(np.float64))


def log_loss(y: Classified) -> Statistic:
    """Mean negative natural logarithm of the true class's probability, clipped to [eps, 1 - eps]."""
    eps = np.finfo(np.float64).eps
    known = y.truth >= 0
    p = np.where(known, y.probabilities[np.arange(len(y)), np.maximum(y.truth, 0)], 0.0)
    return _mean(-np.log(np.clip(p, eps, 1 - eps)))


def brier(y: Classified) -> Statistic:
    """Half the squared distance to the truth, summed over classes; with two, class 1's squared error."""
    hot = (y.truth[:, None] == np.arange(len(y.classes))[None, :]).astype(np.float64)
    return _mean(((y.probabilities - hot) ** 2).sum(axis=1) / 2)


def f1_like(
    y: Classified, which: Literal["precision", "recall", "f1"], average: Literal["weighted", "macro"]
) -> Statistic:
    """Precision, recall or F1, averaged by support or plainly, over the classes that occur in truth or prediction.

    A zero division counts as 0, for example the precision of a class that is never predicted.
    """
    k = len(y.classes)
    code = np.where(y.truth < 0, k, y.truth)  # a label that the model does not know is one more class, never predicted
    size = k + 1
    hot = np.arange(size)[None, :]
    true_hot = (code[:, None] == hot).astype(np.float64)
    predicted_hot = (np.where(y.predicted < 0, k + 1, y.predicted)[:, None] == hot).astype(np.float64)
    hit_hot = true_hot * predicted_hot
    stacked = np.hstack([true_hot, predicted_hot, hit_hot])

    def statistic(w: Floats) -> Floats:
        counts = w @ stacked
        support, predicted, hits = counts[:, :size], counts[:, size : 2 * size], counts[:, 2 * size :]
        if which == "precision":
            values = _divide(hits, predicted)
        elif which == "recall":
            values = _divide(hits, support)
        else:
            values = _divide(2 * hits, support + predicted)
        weight = support if average == "weighted" else ((support + predicted) > 0).astype(np.float64)
        return np.asarray((values * weight).sum(axis=1) / weight.sum(axis=1))

    return statistic


def balanced_accuracy(y: Classified) -> Statistic:
    """Mean recall over the classes that occur in the truth."""
    k = len(y.classes)
    code = np.where(y.truth < 0, k, y.truth)
    true_hot = (code[:, None] == np.arange(k + 1)[None, :]).astype(np.float64)
    stacked = np.hstack([true_hot, true_hot * ((y.predicted == y.truth) & (y.truth >= 0))[:, None]])

    def statistic(w: Floats) -> Floats:
        counts = w @ stacked
        support, hits = counts[:, : k + 1], counts[:, k + 1 :]
        return np.asarray(_divide(hits, support).sum(axis=1) / (support > 0).sum(axis=1))

    return statistic


def roc_auc(y: Classified) -> Statistic:
    """Area under the ROC curve: of class 1 when there are two, else the plain mean of one-versus-rest areas.

    NaN where a class does not occur, or nothing but it.
    """
    if len(y.classes) == 2:
        return _auc(y.truth == 1, y.probabilities[:, 1])
    parts = [_auc(y.truth == code, y.probabilities[:, code]) for code in range(len(y.classes))]
    return lambda w: np.mean([part(w) for part in parts], axis=0)


def average_precision(y: Classified) -> Statistic:
    """Average precision of class 1, the step-wise area below the precision-recall curve; NaN without a positive row."""
    score = y.probabilities[:, 1]
    order = np.argsort(-score, kind="stable")
    starts = _group_starts(score[order])
    positive = (y.truth == 1)[order].astype(np.float64)

    def statistic(w: Floats) -> Floats:
        ordered = w[:, order]
        hits = np.add.reduceat(ordered * positive, starts, axis=1)
        shown = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
        total = hits.sum(axis=1)
        area = (hits * _divide(np.cumsum(hits, axis=1), shown)).sum(axis=1)
        return _divide(area, total, undefined=np.nan)

    return statistic


def mse(y: Estimated) -> Statistic:
    """Mean squared error, in squared units of the label."""
    return _mean((y.truth - y.predicted) ** 2)


def rmse(y: Estimated) -> Statistic:
    """Root of the mean squared error, in units of the label."""
    squared = mse(y)
    return lambda w: np.sqrt(squared(w))


def mae(y: Estimated) -> Statistic:
    """Mean absolute error, in units of the label."""
    return _mean(np.abs(y.truth - y.predicted))


def r2(y: Estimated) -> Statistic:
    """Share of the variance explained, at most 1; NaN with fewer than two rows or a truth that does not vary."""
    centred = y.truth - (y.truth.mean() if len(y) else 0.0)  # centred first: the sums below then lose no digits
    squared = (y.truth - y.predicted) ** 2
    stacked = np.column_stack([centred, centred**2, squared])
    varies = (
        len(y) > 0 and float(np.ptp(y.truth)) > 0
    )  # not by variance: the mean of equal numbers may be off by a last bit
    floor = 1e-14 * float(centred @ centred) if varies else np.inf

    def statistic(w: Floats) -> Floats:
        rows = w.sum(axis=1)
        first, second, residual = (w @ stacked).T
        variation = second - first**2 / np.maximum(rows, 1)
        variation = np.where((rows < 2) | (variation <= floor), np.nan, variation)
        return np.asarray(1 - residual / variation)

    return statistic


_CLASSIFICATION: Mapping[str, Callable[[Classified], Statistic]] = {
    "accuracy": accuracy,
    "precision": lambda y: f1_like(y, "precision", "weighted"),
    "recall": lambda y: f1_like(y, "recall", "weighted"),
    "f1": lambda y: f1_like(y, "f1", "weighted"),
    "f1_macro": lambda y: f1_like(y, "f1", "macro"),
    "balanced_accuracy": balanced_accuracy,
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "log_loss": log_loss,
    "brier": brier,
}
_REGRESSION: Mapping[str, Callable[[Estimated], Statistic]] = {"r2": r2, "rmse": rmse, "mae": mae, "mse": mse}


def names(y: Predictions) -> tuple[str, ...]:
    """Names of the scores that are computed for these predictions, the primary one first."""
    if isinstance(y, Estimated):
        return tuple(_REGRESSION)
    primary = PRIMARY["binary" if len(y.classes) == 2 else "multiclass"]
    only_binary = set() if len(y.classes) == 2 else {"average_precision"}
    return (primary, *(name for name in _CLASSIFICATION if name != primary and name not in only_binary))


def statistic(name: str, y: Predictions) -> Statistic:
    """The statistic of that name over these predictions.

    Raises:
        KeyError: there is no such score for this kind of prediction.
    """
    return _REGRESSION[name](y) if isinstance(y, Estimated) else _CLASSIFICATION[name](y)


# ---------------------------------------------------------------------------------------------- scores


def scores(y: Predictions) -> dict[str, Score]:
    """Every score of these predictions, the primary one first; None with a reason where it is undefined."""
    ones = np.ones((1, len(y)))
    found: dict[str, Score] = {}
    for name in names(y):
        value = float(statistic(name, y)(ones)[0]) if len(y) else float("nan")
        if np.isfinite(value):
            found[name] = Score(value, HIGHER_IS_BETTER[name], _zero_division(name, y))
        else:
            found[name] = Score(None, HIGHER_IS_BETTER[name], undefined_reason(name, y))
    return found


def undefined_reason(name: str, y: Predictions) -> str:
    """Why a score has no value for these predictions, in words."""
    if len(y) == 0:
        return "there are no rows"
    if isinstance(y, Estimated):
        if not (np.isfinite(y.truth).all() and np.isfinite(y.predicted).all()):
            return "a truth or a prediction is not a finite number"
        return "R2 needs at least two rows and a truth that varies"
    if name == "average_precision":
        return f"no row has the positive class {y.classes[1]!r}"
    absent = [label for code, label in enumerate(y.classes) if not (y.truth == code).any()]
    return f"every class must occur in the truth, but {_few(absent)} does not" if absent else "only one class occurs"


def _zero_division(name: str, y: Predictions) -> str:
    """The warning of a score in which 0/0 was counted as 0, or an empty text."""
    if isinstance(y, Estimated) or name not in {"precision", "f1", "f1_macro", "recall", "balanced_accuracy"}:
        return ""
    shown = set(np.unique(y.predicted).tolist())
    occurs = set(np.unique(y.truth).tolist())
    if name == "precision":
        never = [label for code, label in enumerate(y.classes) if code in occurs and code not in shown]
        return f"never predicted, so a precision of 0/0 counts as 0: {_few(never)}" if never else ""
    if name == "recall":
        absent = [label for code, label in enumerate(y.classes) if code in shown and code not in occurs]
        return f"predicted but absent from the truth, so a recall of 0/0 counts as 0: {_few(absent)}" if absent else ""
    return ""


def confusion(y: Classified) -> Codes:
    """Counts `(k, k)`: row = true class, column = predicted class. Labels unknown to the model are left out."""
    k = len(y.classes)
    known = (y.truth >= 0) & (y.predicted >= 0)
    return np.bincount(y.truth[known] * k + y.predicted[known], minlength=k * k).reshape(k, k).astype(np.int64)


def per_class(y: Classified) -> list[dict[str, Any]]:
    """One row a class: `class`, `precision`, `recall`, `f1` in [0, 1], `support` and `predicted` in rows, `warning`."""
    k = len(y.classes)
    support = np.bincount(y.truth[y.truth >= 0], minlength=k)
    predicted = np.bincount(y.predicted[y.predicted >= 0], minlength=k)
    hits = np.bincount(y.truth[(y.truth == y.predicted) & (y.truth >= 0)], minlength=k)
    precision, recall = _divide(hits, predicted), _divide(hits, support)
    f1 = _divide(2 * hits, support + predicted)
    table: list[dict[str, Any]] = []
    for code, label in enumerate(y.classes):
        warning = ""
        if predicted[code] == 0:
            warning = "never predicted: precision is 0/0, counted as 0"
        elif support[code] == 0:
            warning = "absent from the truth: recall is 0/0, counted as 0"
        table.append(
            {
                "class": label,
                "precision": float(precision[code]),
                "recall": float(recall[code]),
                "f1": float(f1[code]),
                "support": int(support[code]),
                "predicted": int(predicted[code]),
                "warning": warning,
            }
        )
    return table


# ---------------------------------------------------------------------------------------------- baselines


def prior(y_train: NDArray[Any], y: Classified) -> Classified:
    """The trivial classifier on the rows of `y`: the training majority class, the training shares as probabilities."""
    counts = np.bincount(np.asarray(y_train, dtype=np.int64), minlength=len(y.classes))[: len(y.classes)].astype(
        np.float64
    )
    shares = counts / counts.sum()
    rows = len(y)
    return Classified(
        y.truth, np.tile(shares, (rows, 1)), np.full(rows, int(shares.argmax()), dtype=np.int64), y.classes
    )


def mean(y_train: NDArray[Any], y: Estimated) -> Estimated:
    """The trivial regression on the rows of `y`: the training mean."""
    return Estimated(y.truth, np.full(len(y), float(np.mean(np.asarray(y_train, dtype=np.float64)))))


def baseline(y_train: NDArray[Any], y: Predictions) -> Predictions:
    """The trivial answerer that a model must beat, on the rows of `y`, learned from training labels only."""
    return mean(y_train, y) if isinstance(y, Estimated) else prior(y_train, y)


# ---------------------------------------------------------------------------------------------- bootstrap


def resamples(
    rows: int, *, count: int = 1000, seed: int, groups: NDArray[Any] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Bootstrap weights in blocks `(b, rows)`: how often each row was drawn. The same seed gives the same draws.

    Args:
        count: resamples in all.
        groups: one value a row; rows of one group are then drawn together, because they are not independent.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        units, index = rows, None
    else:
        _, index = np.unique(groups, return_inverse=True)
        units = int(index.max()) + 1 if rows else 0
    block = max(1, _ELEMENTS // max(rows, units, 1))
    for start in range(0, count, block):
        b = min(block, count - start)
        drawn = rng.integers(0, max(units, 1), size=(b, units), dtype=np.int32 if b * units < 2**31 else np.int64)
        drawn += np.arange(b, dtype=drawn.dtype)[:, None] * units
        weights = np.bincount(drawn.ravel(), minlength=b * units).reshape(b, units).astype(np.float64)
        yield weights if index is None else weights[:, index]


def bootstrap(
    statistics: Mapping[str, Statistic],
    rows: int,
    *,
    count: int = 1000,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> dict[str, Floats]:
    """Each statistic on the same resamples: name -> `(count,)`. Subtract two of them for a paired difference."""
    found: dict[str, list[Floats]] = {name: [] for name in statistics}
    if rows:
        for weights in resamples(rows, count=count, seed=seed, groups=groups):
            for name, compute in statistics.items():
                found[name].append(compute(weights))
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in found.items()}


def resample_count(rows: int, wanted: int = 1000) -> int:
    """How many resamples a table of that many rows gets: `wanted`, fewer above 100,000 rows, never fewer than 200."""
    return max(min(wanted, 200), min(wanted, 100_000_000 // max(rows, 1)))


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """The central percentile interval of bootstrap values; None when more than one in twenty of them is undefined."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(20, 0.95 * len(values)):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def roc_curve(
    positive: NDArray[np.bool_], score: NDArray[Any], most: int = 200
) -> tuple[list[float], list[float], list[float]]:
    """The ROC curve, thinned to at most so many points, evenly through the rows; the first is (0, 0), the last (1, 1).

    Args:
        positive: which rows are of class 1 `(rows,)`.
        score: probability of class 1 `(rows,)`.

    Returns:
        false alarms, hits (both shares) and the threshold from which a row counts as positive, falling; empty lists where
        one of the two classes does not occur.
    """
    ups = int(positive.sum())
    if ups in (0, len(positive)):
        return [], [], []
    order = np.argsort(-score, kind="stable")
    ordered, hit = score[order], positive[order]
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    if len(last) > most - 1:
        last = last[np.unique(np.linspace(0, len(last) - 1, most - 1).astype(np.int64))]
    hits = np.cumsum(hit)[last]
    # Above every score nothing is positive; a finite number, because JSON has no infinity.
    above = max(1.0, float(np.nextafter(ordered[0], np.inf)))
    return (
        [0.0, *((last + 1 - hits) / (len(positive) - ups)).tolist()],
        [0.0, *(hits / ups).tolist()],
        [above, *ordered[last].tolist()],
    )


# ---------------------------------------------------------------------------------------------- calibration


def calibration(y: Classified, bins: int = 10) -> dict[str, Any]:
    """Whether probabilities mean what they say: of class 1 when there are two, else of the predicted class.

    Returns:
        `{"of", "ece", "bins": [{"low", "high", "mean", "share", "n"}]}`: in each bin of equal width the mean
        probability and the share that came true; `ece` is their mean distance weighted by rows, in [0, 1], or None.
    """
    if len(y.classes) == 2:
        p, came_true, of = y.probabilities[:, 1], y.truth == 1, y.classes[1]
    else:
        p, came_true, of = y.probabilities.max(axis=1), y.probabilities.argmax(axis=1) == y.truth, "the likeliest class"
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    n = np.bincount(which, minlength=bins)
    mean_p = _divide(np.bincount(which, weights=p, minlength=bins), n)
    share = _divide(np.bincount(which, weights=came_true.astype(np.float64), minlength=bins), n)
    table = [
        {"low": b / bins, "high": (b + 1) / bins, "mean": float(mean_p[b]), "share": float(share[b]), "n": int(n[b])}
        for b in range(bins)
        if n[b]
    ]
    return {"of": of, "ece": float((n * np.abs(mean_p - share)).sum() / len(y)) if len(y) else None, "bins": table}


def coverage(y: Estimated) -> dict[str, Any]:
    """`{"coverage", "mean_width", "n"}` of the intervals answered: share of truths inside; None where none were."""
    if y.low is None or y.high is None or not len(y):
        return {"coverage": None, "mean_width": None, "n": 0}
    inside = (y.low <= y.truth) & (y.truth <= y.high)
    return {"coverage": float(inside.mean()), "mean_width": float((y.high - y.low).mean()), "n": len(y)}


# ---------------------------------------------------------------------------------------------- clustering


def silhouette(x: Floats, labels: Sequence[Any] | NDArray[Any]) -> Score:
    """Mean silhouette of points x `(rows, features)` in [-1, 1], Euclidean; None unless 2 to rows - 1 clusters."""
    x, codes, k, undefined = _clusters(x, labels)
    if undefined:
        return Score(None, True, undefined)
    rows, sizes = len(x), np.bincount(codes)
    hot = (codes[:, None] == np.arange(k)[None, :]).astype(np.float64)
    total = 0.0
    block = max(1, 2_000_000 // (rows * max(1, x.shape[1])))
    for start in range(0, rows, block):
        part, mine = x[start : start + block], codes[start : start + block]
        sums = np.sqrt(((part[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)) @ hot
        here = np.arange(len(part))
        inside = _divide(sums[here, mine], sizes[mine] - 1)
        others = sums / sizes
        others[here, mine] = np.inf
        nearest = others.min(axis=1)
        value = _divide(nearest - inside, np.maximum(inside, nearest))
        total += float(np.where(sizes[mine] > 1, value, 0.0).sum())  # a cluster of one counts as 0
    return Score(total / rows, True)


def davies_bouldin(x: Floats, labels: Sequence[Any] | NDArray[Any]) -> Score:
    """Davies-Bouldin index of points x `(rows, features)`, 0 is best; None unless there are 2 to rows - 1 clusters."""
    x, codes, k, undefined = _clusters(x, labels)
    if undefined:
        return Score(None, False, undefined)
    centres = np.stack([x[codes == code].mean(axis=0) for code in range(k)])
    spread = np.array([np.sqrt(((x[codes == c] - centres[c]) ** 2).sum(axis=1)).mean() for c in range(k)])
    apart = np.sqrt(((centres[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2))
    if np.allclose(spread, 0) or np.allclose(apart, 0):
        return Score(0.0, False)
    apart[apart == 0] = np.inf
    return Score(float(((spread[:, None] + spread[None, :]) / apart).max(axis=1).mean()), False)


def clustering(x: Floats, labels: Sequence[Any] | NDArray[Any]) -> dict[str, Score]:
    """Both scores of a clustering, the primary one first."""
    return {"silhouette": silhouette(x, labels), "davies_bouldin": davies_bouldin(x, labels)}


def _clusters(x: Floats, labels: Sequence[Any] | NDArray[Any]) -> tuple[Floats, Codes, int, str]:
    points = np.asarray(x, dtype=np.float64)
    uniques, codes = np.unique(np.asarray(labels), return_inverse=True)
    k = len(uniques)
    bad = f"a clustering score needs 2 to rows - 1 clusters, but there are {k} for {len(points)} rows"
    return points, codes.astype(np.int64), k, "" if 2 <= k < len(points) else bad


# ---------------------------------------------------------------------------------------------- helpers


def _mean(values: Floats) -> Statistic:
    return lambda w: _divide(w @ values, w.sum(axis=1), undefined=np.nan)


def _auc(positive: NDArray[np.bool_], score: Floats) -> Statistic:
    """Chance that a positive row scores above a negative one, a tie counting one half (Mann-Whitney)."""
    ups = np.flatnonzero(positive)
    downs = np.flatnonzero(~positive)
    downs = downs[np.argsort(score[downs], kind="stable")]
    # Of each positive row: how many negative ones lie below it, and how many not above it.
    below = np.searchsorted(score[downs], score[ups], side="left")
    not_above = np.searchsorted(score[downs], score[ups], side="right")
    tied = bool((below != not_above).any())

    def statistic(w: Floats) -> Floats:
        up = w[:, ups]
        passed = np.zeros((len(w), len(downs) + 1))
        np.cumsum(w[:, downs], axis=1, out=passed[:, 1:])
        wins = np.einsum("ij,ij->i", up, passed[:, below])
        if tied:
            wins = (wins + np.einsum("ij,ij->i", up, passed[:, not_above])) / 2
        return _divide(wins, up.sum(axis=1) * passed[:, -1], undefined=np.nan)

    return statistic


def _group_starts(ordered: Floats) -> NDArray[np.int64]:
    """First positions of runs of equal values in an ordered array."""
    return (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, np.int64)
    )


def _divide(a: NDArray[Any], b: NDArray[Any], undefined: float = 0.0) -> Floats:
    """a / b, and `undefined` where b is 0."""
    top, bottom = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    zero = bottom == 0
    return np.where(zero, undefined, top / np.where(zero, 1.0, bottom))


def _few(labels: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(label) for label in labels[:limit])
    return shown + (f" and {len(labels) - limit} more" if len(labels) > limit else "")
