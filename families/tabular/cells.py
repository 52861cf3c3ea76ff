"""A column's cells as their distinct values: what infers a contract looks at each value once, however many rows have it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.errors import DataError
from esteira.features import parse

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MOSTLY = 0.95  # share of cells that must parse for a column to be of a kind
FEW_LEVELS = 20
CODE_SHARE = 0.01  # of the cells, from which a word among a few numbers is a code of its own


@dataclass(frozen=True)
class Cells:
    """A column's cells as their distinct values.

    Attributes:
        values: distinct values that are not empty, in order of first appearance.
        codes: for each row the index into `values`, -1 for an empty cell.
        counts: rows of each distinct value.
    """

    values: list[Any]
    codes: "NDArray[np.int64]"
    counts: "NDArray[np.int64]"

    @classmethod
    def of(cls, series: "pd.Series[Any]") -> "Cells":
        import pandas as pd

        if series.dtype.kind == "O" and pd.api.types.infer_dtype(series, skipna=True) not in {"string", "empty"}:
            for row, value in enumerate(series):
                if isinstance(value, list | dict | tuple | set | np.ndarray):
                    raise DataError(
                        f"a cell holds one value, but column {series.name!r} holds {parse.shown(value)}",
                        code="nested_value",
                        where=f"column {series.name}, row {row + 1}",
                        cure="flatten the column before, or leave it out with the parameter `drop`",
                    )
            # 1 and True are one key of a dictionary; as text with their type they stay apart.
            keys = [
                None if parse.is_missing(v) else v.strip() if isinstance(v, str) else (type(v).__name__, str(v))
                for v in series
            ]
            codes, _ = pd.factorize(pd.Series(keys, dtype=object))
            present = np.flatnonzero(codes >= 0)
            first = np.unique(codes[present], return_index=True)[1]
            values = [series.iloc[int(present[i])] for i in first]
        else:
            codes, index = pd.factorize(series)
            values = index.tolist()
            if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":
                # Numbers have no blanks to strip, and no two of them are one text.
                return cls(values, codes, np.bincount(codes[codes >= 0], minlength=len(values)))
        values = [value.strip() if isinstance(value, str) else value for value in values]
        blank = np.array([parse.is_missing(value) for value in values], dtype=bool)
        if blank.any() or len(set(map(str, values))) < len(values):
            codes, values = _merge(np.asarray(codes, dtype=np.int64), values)
        codes = np.asarray(codes, dtype=np.int64)
        return cls(values, codes, np.bincount(codes[codes >= 0], minlength=len(values)))

    @property
    def n(self) -> int:
        """Rows whose cell is not empty."""
        return int(self.counts.sum())

    def without(self, empty: "NDArray[np.bool_]") -> "Cells":
        """The cells with some distinct values taken as empty."""
        kept = np.flatnonzero(~empty)
        codes = np.full(len(self.values) + 1, -1, dtype=np.int64)
        codes[kept] = np.arange(len(kept))
        return Cells([self.values[i] for i in kept], codes[self.codes], self.counts[kept])

    def share(self, mask: "NDArray[np.bool_]") -> float:
        """Share of the non-empty rows whose value is in the mask over `values`."""
        return float(self.counts[mask].sum()) / self.n if self.n else 0.0


def _merge(codes: "NDArray[np.int64]", values: list[Any]) -> tuple["NDArray[np.int64]", list[Any]]:
    """One code for values that are equal once stripped; -1 for blank ones."""
    kept: dict[str, int] = {}
    merged: list[Any] = []
    table = np.full(len(values) + 1, -1, dtype=np.int64)
    for code, value in enumerate(values):
        if parse.is_missing(value):
            continue
        key = f"{type(value).__name__} {value}"
        if key not in kept:
            kept[key] = len(merged)
            merged.append(value)
        table[code] = kept[key]
    return table[codes], merged


def parsed(cells: Cells, read: Callable[[Any], Any]) -> tuple[list[Any], "NDArray[np.bool_]", "NDArray[np.bool_]"]:
    """Each distinct value read; whether it can be read, and whether it is a word for an empty cell."""
    if read is parse.number and all(type(value) is float for value in cells.values):
        # A column of floats has nearly as many values as rows: looked at one by one they took most of a large table's time.
        values = np.array(cells.values, dtype=np.float64)
        return cells.values, ~np.isinf(values), np.isnan(values)
    found: list[Any] = []
    good = np.ones(len(cells.values), dtype=bool)
    empty = np.zeros(len(cells.values), dtype=bool)
    for index, value in enumerate(cells.values):
        try:
            result = read(value)
        except ValueError:
            good[index], result = False, None
        else:
            empty[index] = result is None or result != result
        found.append(result)
    return found, good, empty


def coded(cells: Cells, numeric: "NDArray[np.bool_]") -> bool:
    """True for a few codes of which some are numbers, like 1, 2, 3, U: the words repeat too much to be slips."""
    if len(cells.values) > FEW_LEVELS or numeric.all() or not numeric.any():
        return False
    return int(cells.counts[~numeric].min()) >= max(5, CODE_SHARE * cells.n)


def few(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
