"""Finds what makes a score too good: near-copies of the label, telling identifiers, drift in time, rows that occur twice.

A finding is a suspicion with its number; people decide what is allowed.
"""

from dataclasses import dataclass
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
# What only orders the label is looked at in at most so many bins, on rows enough that chance explains little.
ORDER_BINS, ORDER_ROWS = 16, 100
UNIQUE = 0.95  # share of distinct cells from which a column may be an identifier
EVEN = (
    0.99  # correlation of numbers with their rank from which they look counted out, not measured (normal ones: 0.977)
)
TELLING_IDENTIFIER, TELLING_TIME = 0.02, 0.05  # of the label's variance, beyond what chance explains
DEVIATIONS = 6.0  # of what chance explains


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


def find_suspicions(frame: "pd.DataFrame", target: str, contract: "TableContract") -> list[Finding]:
    """Columns whose order tells the label though they should not, and dates with which the label moves.

    An identifier has nearly no value twice and is spread as evenly as a count (numbers) or is one word (texts); it tells
    the label when bins of it explain at least 2 % of the label's variance beyond chance. A label that moves with a date
    makes rows that are held back at random easier than rows to come, unless the contract splits by a time column.

    Args:
        frame, target, contract: as for `find_leaks`.

    Returns:
        One warning a column, of rule `identifier` or `time_order`, in the order of the contract.
    """
    truth, known = _truth(frame[target], contract.target)
    found = []
    for column in contract.columns:
        if column.name not in frame.columns or column.kind in {"boolean", "object"}:
            continue
        if column.kind == "date":
            if contract.time_column is None:
                told = _ordered(_values(frame, column)[known], truth[known], contract.target)
                if told >= TELLING_TIME:
                    found.append((column, "time_order", told))
        elif _identifies(order := _order(frame, column), column):
            told = _ordered(order[known], truth[known], contract.target)
            if told >= TELLING_IDENTIFIER:
                found.append((column, "identifier", told))
    words = {
        "identifier": "{name!r} looks like an identifier, yet its order explains {told:.1%} of {target!r}: leave it out"
        " unless new rows get theirs in the same way",
        "time_order": "{target!r} moves with {name!r}, which explains {told:.1%} of it: name it as the time column, or"
        " scores on rows held back at random say too much",
    }
    return [
        Finding(rule, c.name, None, words[rule].format(name=c.name, told=told, target=target), "warning")
        for c, rule, told in found
    ]


COPIES_SHARE, DISAGREEING = 0.01, 0.05


@dataclass(frozen=True)
class Duplicates:
    """Rows whose features are equal.

    Attributes:
        together: a number a row, the same for rows of equal features; shape (rows,). Folds dealt by it hold back no row
            of which a copy is fitted on.
        copies: rows that repeat an earlier one.
        contradicting: rows that have a copy with another label: no model of these features gets all of them right.
    """

    together: "NDArray[np.int64]"
    copies: int
    contradicting: int

    @property
    def records(self) -> "NDArray[np.int64] | None":
        """`together` where copies look like one record that came in twice, else None.

        Then they are not few, and agree in the label; rows that are only alike, by few columns of few values, often do not,
        and new rows will be alike in the same way.
        """
        if not self.copies or self.copies < COPIES_SHARE * len(self.together):
            return None
        copied = int((np.bincount(self.together)[self.together] > 1).sum())
        return None if self.contradicting > DISAGREEING * copied else self.together

    def findings(self) -> list[Finding]:
        """Warnings of rule `duplicate` and `duplicate_label`, where there are such rows."""
        rows = len(self.together)
        found = []
        if self.copies:
            message = (
                f"{self.copies:,} of {rows:,} rows ({self.copies / rows:.1%}) repeat the features of an earlier row"
                + ("; a row and its copies are held back together" if self.records is not None else "")
            )
            found.append(Finding("duplicate", "", None, message, "warning"))
        if self.contradicting:
            share = f"{self.contradicting:,} of {rows:,} rows ({self.contradicting / rows:.1%})"
            message = f"{share} have the features of a row with another label"
            found.append(Finding("duplicate_label", "", None, message, "warning"))
        return found


def duplicates(x: "NDArray[np.float32]", y: "NDArray[Any]") -> Duplicates:
    """Rows with equal features: missing equals missing, and zero its negative.

    Args:
        x: features, shape (rows, features).
        y: class codes or values, shape (rows,).
    """
    rows = len(x)
    if not rows:
        return Duplicates(np.zeros(0, np.int64), 0, 0)
    digests = _digests(x)
    order = np.argsort(digests, kind="stable")
    # Equal digests are only held to be equal rows where the rows are.
    near = digests[order][1:] == digests[order][:-1]
    near[near] = _equal(x[order[1:][near]], x[order[:-1][near]])
    number = np.empty(rows, np.int64)
    number[order] = np.concatenate([[0], np.cumsum(~near)])
    sets = int(number.max()) + 1
    codes = np.ravel(np.unique(y, return_inverse=True)[1])
    low, high = np.full(sets, rows), np.full(sets, -1)
    np.minimum.at(low, number, codes)
    np.maximum.at(high, number, codes)
    return Duplicates(number, rows - sets, int((low != high)[number].sum()))


def _digests(x: "NDArray[np.float32]") -> "NDArray[np.uint64]":
    """A number of 64 bits a row, equal for equal rows; mixed column by column, so that no copy of x is made."""
    digests = np.zeros(len(x), np.uint64)
    for column in range(x.shape[1]):
        cells = np.where(np.isnan(x[:, column]), np.float32(np.nan), x[:, column] + np.float32(0))
        # The finalising steps of splitmix64, multiplications modulo 2 ** 64.
        digests = (digests ^ cells.view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(column + 1)
        digests = (digests ^ (digests >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        digests ^= digests >> np.uint64(27)
    return digests


def _equal(a: "NDArray[np.float32]", b: "NDArray[np.float32]") -> "NDArray[np.bool_]":
    same: NDArray[np.bool_] = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return same


def _order(frame: "pd.DataFrame", column: "Column") -> "NDArray[np.float64]":
    """The column as numbers whose order is that of its values: texts by alphabet; NaN where it is empty."""
    if column.kind not in {"category", "text"}:
        return _values(frame, column)
    import pandas as pd

    series = frame[column.name]
    keys = series.astype(object).where(series.notna(), None).map(_key)
    codes = pd.factorize(keys, sort=True)[0].astype(np.float64)
    # Words in a row are prose, and no identifier.
    prose = keys.map(lambda key: isinstance(key, str) and " " in key).to_numpy(dtype=np.bool_)
    return np.where((codes < 0) | prose, np.nan, codes)


def _identifies(values: "NDArray[np.float64]", column: "Column") -> bool:
    """Whether the values are nearly all distinct and, when numbers, whole and evenly spread."""
    present = np.sort(values[~np.isnan(values)])
    if len(present) < max(ORDER_ROWS, MIN_SHARE * len(values)) or len(np.unique(present)) < UNIQUE * len(present):
        return False
    if column.kind in {"category", "text"}:
        return True
    return (
        bool((present == np.rint(present)).all())
        and _pearson(present, np.arange(len(present), dtype=np.float64)) >= EVEN
    )


def _ordered(values: "NDArray[np.float64]", truth: "NDArray[np.float64]", target: "Target") -> float:
    """Share of the label's variance that bins of equal counts explain, less chance; 0 where chance may explain it all.

    Numbers count by rank, classes by membership.
    """
    both = ~np.isnan(values)
    rows = int(both.sum())
    if rows < ORDER_ROWS:
        return 0.0
    ordered = np.sort(values[both])
    edges = np.unique(ordered[(np.arange(1, ORDER_BINS) * rows) // ORDER_BINS])
    bins = np.searchsorted(edges, values[both], side="right")
    counts = np.maximum(np.bincount(bins, minlength=len(edges) + 1), 1)
    kept = truth[both]
    labels = [_ranks(kept)] if target.classes is None else [(kept == code).astype(float) for code in np.unique(kept)]
    whole = between = 0.0
    for label in labels:
        means = np.bincount(bins, label - label.mean(), minlength=len(counts)) / counts
        whole += float(((label - label.mean()) ** 2).sum())
        between += float((counts * means**2).sum())
    spare = len(edges)
    told = between / whole - spare / rows if whole else 0.0
    return told if told > DEVIATIONS * np.sqrt(2 * spare) / rows else 0.0


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
    a, b = _unit(a), _unit(b)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return abs(float(a @ b)) / size if size > 0 else 0.0


def _unit(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Centred, after the largest became 1, so that no square runs over."""
    scaled = values / (np.abs(values).max(initial=0.0) or 1.0)
    return np.asarray(scaled - scaled.mean())


def _ranks(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Ranks from 0, the mean rank for equal values."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[groups])
