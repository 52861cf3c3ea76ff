"""Cuts a test table into groups that people care about: the levels of a category, the quarters of a number. Pure.

A slice is named `COLUMN=VALUE` or `COLUMN in [LOW, HIGH]`; every row of a column lies in exactly one of its slices.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.features.contract import Column
from esteira.features.metrics import HIGHER_IS_BETTER, Predictions, bootstrap, statistic, undefined_reason

TOP_LEVELS = 5
MAX_COLUMNS = 30
WEAK_MARGIN = 0.02
"""A slice is weak when its whole interval is worse than the overall score by more than this (errors: by this share)."""


@dataclass(frozen=True)
class Slice:
    """Rows of one group: `index` are positions in the test table."""

    column: str
    name: str
    index: NDArray[np.int64]


def cut(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[Slice]:
    """Slices of the first MAX_COLUMNS columns that can be cut; texts and nested columns are not."""
    found: list[Slice] = []
    for column in [column for column in columns if column.kind not in {"text", "object"}][:MAX_COLUMNS]:
        values = [row.get(column.name) for row in rows]
        if column.kind in {"category", "boolean"}:
            parts = _levels(column.name, values)
        else:
            parts = _quarters(column.name, values, dates=column.kind == "date")
        found.extend(parts if len(parts) > 1 else [])
    return found


def _levels(name: str, values: Sequence[Any]) -> list[Slice]:
    counts = Counter(value for value in values if value is not None)
    top = [value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))][:TOP_LEVELS]
    place = {value: k for k, value in enumerate(top)}
    other, missing = len(top), len(top) + 1
    which = np.array([missing if value is None else place.get(value, other) for value in values], dtype=np.int64)
    names = [f"{name}={_shown(value)}" for value in top] + [f"{name}=(other)", f"{name}=(missing)"]
    return _by_code(name, names, which)


def _quarters(name: str, values: Sequence[Any], *, dates: bool) -> list[Slice]:
    numbers = np.array([np.nan if value is None else _number(value) for value in values], dtype=np.float64)
    present = numbers[np.isfinite(numbers)]
    if not len(present):
        return []
    inner = np.unique(np.quantile(present, [0.25, 0.5, 0.75], method="lower"))
    inner = inner[inner < present.max()]
    which = np.searchsorted(inner, numbers, side="left")
    which[~np.isfinite(numbers)] = len(inner) + 1
    names = []
    for k in range(len(inner) + 1):
        mine = present[np.searchsorted(inner, present, side="left") == k]
        low, high = (float(mine.min()), float(mine.max())) if len(mine) else (0.0, 0.0)
        ends = (_day(low), _day(high)) if dates else (f"{low:.6g}", f"{high:.6g}")
        names.append(f"{name}={ends[0]}" if ends[0] == ends[1] else f"{name} in [{ends[0]}, {ends[1]}]")
    return _by_code(name, [*names, f"{name}=(missing)"], which)


def _by_code(column: str, names: Sequence[str], which: NDArray[np.int64]) -> list[Slice]:
    parts = [(name, np.flatnonzero(which == code)) for code, name in enumerate(names)]
    return [Slice(column, name, index) for name, index in parts if len(index)]


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:39] + "\u2026"


def _number(value: Any) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        return datetime.fromisoformat(value).timestamp()
    return float(value)


def _day(seconds: float) -> str:
    from datetime import UTC

    return datetime.fromtimestamp(seconds, tz=UTC).date().isoformat()


def by_class(y: Predictions) -> list[Slice]:
    """One slice a true class, or a quarter of the truth's range: what is always there, whatever the columns are."""
    from esteira.features.metrics import Classified

    if isinstance(y, Classified):
        names = [f"true class={label}" for label in y.classes]
        return _by_code("true class", names, y.truth)
    return _quarters("truth", y.truth.tolist(), dates=False)


def score(
    parts: Sequence[Slice], y: Predictions, metric: str, overall: float | None, *, seed: int, min_n: int = 30
) -> list[dict[str, Any]]:
    """Score each slice.

    Returns:
        one dict a slice: `segment`, `column`, `n`, `metric`, `value` (None when undefined, with `reason`), `interval`
        (95 %, from the deviation of 200 resamples) and `weak`: it has `min_n` rows and its whole interval is worse than
        the overall score by more than WEAK_MARGIN.
    """
    better = HIGHER_IS_BETTER[metric]
    bounded = metric not in {"r2", "rmse", "mae", "mse", "log_loss"}
    table: list[dict[str, Any]] = []
    for part in parts:
        mine = y.take(part.index)
        compute = statistic(metric, mine)
        value = float(compute(np.ones((1, len(mine))))[0])
        entry: dict[str, Any] = {"segment": part.name, "column": part.column, "n": len(mine), "metric": metric}
        if not np.isfinite(value):
            entry |= {"value": None, "interval": None, "reason": undefined_reason(metric, mine), "weak": False}
            table.append(entry)
            continue
        drawn = bootstrap({metric: compute}, len(mine), count=200, seed=seed)[metric]
        drawn = drawn[np.isfinite(drawn)]
        span = None
        if len(drawn) >= 100 and len(mine) >= 10:
            half = 1.96 * float(drawn.std())
            low, high = value - half, value + half
            span = [max(0.0, low), min(1.0, high)] if bounded else [low, high]
        entry |= {"value": value, "interval": span, "reason": "", "weak": False}
        if span is not None and overall is not None and len(mine) >= min_n:
            margin = WEAK_MARGIN if better else WEAK_MARGIN * abs(overall)
            entry["weak"] = bool(span[1] < overall - margin) if better else bool(span[0] > overall + margin)
        table.append(entry)
    return table
