"""Finds columns that nearly copy the label. A finding is a suspicion with its number; people decide what is allowed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.family import Finding
from esteira.features.decode import ColumnDecoder, Decoder
from esteira.features.parse import label as parse_label

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.features.contract import Column, TableContract, Target

# Of the rows that the most frequent class gets wrong. The best honest column of 18 public tables reaches 0.94 (iris,
# petal width), 0.79 and below otherwise; a copy with 1 % of its cells changed reaches 0.96 on adult.
EXPLAINED = 0.95
CORRELATED = 0.995  # the best honest one reaches 0.963 (diamonds, x)
MAX_BINS, ROWS_A_BIN, ROWS_A_LEVEL = 64, 10, 3
MIN_ROWS = 20
MIN_SHARE = 0.5  # of the rows must have a cell, or a correlation says little


def find_leaks(frame: "pd.DataFrame", target: str, contract: "TableContract") -> list[Finding]:
    """Columns that alone tell the label.

    For classes: guessing by the column (its values, at most 64 bins of equal counts, or one threshold) corrects at
    least 95 % of what the most frequent class gets wrong. For regression: absolute Pearson or Spearman correlation of
    at least 0.995.

    Args:
        frame: rows as validate types them, with the label.
        target: name of the label column.
        contract: says which columns are looked at and how they read.

    Returns:
        One error finding (rule `leak`) a column, worst first; cells are not counted as wrong where they do not parse.
    """
    truth, known = _truth(frame[target], contract.target)
    if int(known.sum()) < MIN_ROWS:
        return []
    found: list[tuple[float, Finding]] = []
    for column in contract.columns:
        if column.name not in frame.columns or column.kind == "object":
            continue
        values = _values(frame, column)[known]
        if contract.target.classes is None:
            score, words = _correlated(values, truth[known], column)
            limit = CORRELATED
        else:
            score, words = (
                _explained(values, truth[known].astype(np.int64), column),
                "guessing by it corrects {:.2%} of the errors",
            )
            limit = EXPLAINED
        if score >= limit:
            message = f"{column.name!r} nearly copies {target!r}: {words.format(score)} (limit {limit:g})"
            found.append((score, Finding("leak", column.name, None, message)))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]


def _truth(series: "pd.Series[Any]", target: "Target") -> tuple["NDArray[np.float64]", "NDArray[np.bool_]"]:
    """Class codes or values as float, and which rows have one."""
    memo: dict[Any, float] = {}
    out = np.full(len(series), np.nan)
    codes: dict[Any, int] = {(type(label), label): code for code, label in enumerate(target.classes or ())}
    for index, value in enumerate(series.astype(object).where(series.notna(), None).tolist()):
        key = (type(value), value)
        if key not in memo:
            try:
                label = parse_label(value, target)
            except ValueError:
                label = None
            memo[key] = (
                np.nan if label is None else float(codes[type(label), label]) if target.classes else float(label)
            )
        out[index] = memo[key]
    return out, ~np.isnan(out)


def _values(frame: "pd.DataFrame", column: "Column") -> "NDArray[np.float64]":
    """The column as numbers: itself, days of a date, or a code a text; NaN where it is empty."""
    import pandas as pd

    series = frame[column.name]
    if column.kind in {"category", "text"}:
        codes = pd.factorize(series.astype(object).where(series.notna(), None).map(_key))[0]
        return np.where(codes < 0, np.nan, codes).astype(np.float64)
    decoder = Decoder((ColumnDecoder(column.name, column.kind, parts=("days",)),), "")
    if series.dtype.kind in "iuf":
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return decoder.frame(frame[[column.name]])[:, 0].astype(np.float64)


def _key(value: Any) -> str | None:
    return None if value is None else str(value).strip().casefold() or None


def _explained(values: "NDArray[np.float64]", truth: "NDArray[np.int64]", column: "Column") -> float:
    """Share in [0, 1] of the majority's errors that guessing by the column's groups avoids."""
    present = ~np.isnan(values)
    distinct, groups = np.unique(values[present], return_inverse=True)
    levels = len(distinct)
    if column.kind in {"category", "text"}:
        if not levels or present.sum() / levels < ROWS_A_LEVEL:
            return 0.0
    elif levels > max(2, min(MAX_BINS, int(present.sum()) // ROWS_A_BIN)):
        bins = max(2, min(MAX_BINS, int(present.sum()) // ROWS_A_BIN))
        edges = np.unique(np.quantile(values[present], np.linspace(0, 1, bins + 1)[1:-1]))
        groups = np.searchsorted(edges, values[present], side="right")
        levels = len(edges) + 1
    group = np.full(len(values), levels)
    group[present] = groups
    classes = int(truth.max()) + 1
    table = np.bincount(group * classes + truth, minlength=(levels + 1) * classes).reshape(-1, classes)
    wrong_before = len(truth) - int(table.sum(axis=0).max())
    right = int(table.max(axis=1).sum())
    if column.kind not in {"category", "text"}:
        right = max(right, _right_by_threshold(values[present], truth[present], classes) + int(table[-1].max()))
    return 1 - (len(truth) - right) / wrong_before if wrong_before else 0.0


def _right_by_threshold(values: "NDArray[np.float64]", truth: "NDArray[np.int64]", classes: int) -> int:
    """Rows guessed rightly by the best single threshold; a bin that straddles it would hide a perfect one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    steps = np.zeros((len(values) + 1, classes), dtype=np.int64)
    steps[np.arange(1, len(values) + 1), truth[order]] = 1
    below = np.cumsum(steps, axis=0)
    right = below.max(axis=1) + (below[-1] - below).max(axis=1)
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    return int(right[np.append(0, ends)].max()) if len(values) else 0


def _correlated(values: "NDArray[np.float64]", truth: "NDArray[np.float64]", column: "Column") -> tuple[float, str]:
    if column.kind in {"category", "text", "boolean"}:
        return 0.0, ""
    both = np.isfinite(values)
    if both.sum() < max(MIN_ROWS, MIN_SHARE * len(values)):
        return 0.0, ""
    pearson = _pearson(values[both], truth[both])
    spearman = _pearson(_ranks(values[both]), _ranks(truth[both]))
    name = "Pearson" if pearson >= spearman else "Spearman"
    return max(pearson, spearman), name + " correlation {:.5f}"


def _pearson(a: "NDArray[np.float64]", b: "NDArray[np.float64]") -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return abs(float(a @ b)) / size if size > 0 else 0.0


def _ranks(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Ranks from 0, the mean rank for equal values."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[groups])
