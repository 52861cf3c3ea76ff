"""A block decoded a column at a time: the features of `Decoder.rows` and the findings of `Decoder.check`, some ten times as fast.

Each column is read by a decoder of that one column. A plain number is compared and copied by numpy; of everything else every
different cell is decoded once, by the decoder itself. So nothing is decided here that the decoder decides otherwise.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.family import Finding
from esteira.features.decode import ColumnDecoder, Decoder
from esteira.features.parse import LARGEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"  # what is a number to the decoder and to Arrow alike


@dataclass
class Seen:
    """What a block says.

    Attributes:
        x: features of every row, (rows, features); of a row with an error they mean nothing.
        errors: row -> what is wrong with it, in the order of the columns.
        warned: number of warnings of each row.
        warnings: column and rule -> the rows that have this warning.
    """

    x: "NDArray[np.float32]"
    errors: dict[int, list[Finding]]
    warned: "NDArray[np.int32]"
    warnings: "dict[tuple[str, str], NDArray[np.bool_]]" = field(default_factory=dict)

    def count(self, good: "NDArray[np.bool_]") -> Counter[tuple[str, str]]:
        """Column and rule -> how many of the good rows have this warning."""
        counted = {key: int(np.count_nonzero(mask & good)) for key, mask in self.warnings.items()}
        return Counter({key: number for key, number in counted.items() if number})


class Columns:
    """Reads tables by one decoder. Safe to use from several threads."""

    def __init__(self, decoder: Decoder) -> None:
        self._width = len(decoder.names)
        self._columns: list[tuple[ColumnDecoder, Decoder, int]] = []
        at = 0
        for column in decoder.columns:
            self._columns.append((column, Decoder((column,), decoder.label, declared=decoder.declared), at))
            at += len(column.names)

    def read(self, table: Any) -> Seen:
        """A pyarrow table that has the decoder's columns; an optional one may be absent."""
        rows = table.num_rows
        seen = Seen(np.empty((rows, self._width), dtype=np.float32), {}, np.zeros(rows, dtype=np.int32))
        for column, alone, at in self._columns:
            _Column(column, alone, seen, slice(at, at + len(column.names))).read(table)
        return seen


@dataclass
class _Column:
    """One column of one block, written into what is seen."""

    column: ColumnDecoder
    alone: Decoder
    seen: Seen
    at: slice

    def read(self, table: Any) -> None:
        name = self.column.name
        if name not in table.column_names:
            self._same(np.arange(table.num_rows), np.zeros(table.num_rows, dtype=np.int64), [{}])
            return
        cells = table.column(name).combine_chunks()
        if self.column.kind in {"number", "integer"} and self._numbers(cells):
            return
        self._each(cells, np.arange(len(cells)))

    def _numbers(self, cells: Any) -> bool:
        """Whether the cells, or most of them, could be read as numbers; the others are read one by one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        others = None
        if pa.types.is_string(cells.type):
            try:
                numbers = pc.cast(cells, pa.float64())
            except pa.ArrowInvalid:
                plain = pc.fill_null(pc.match_substring_regex(cells, _NUMBER), False)
                try:
                    numbers = pc.cast(pc.if_else(plain, cells, pa.scalar(None, cells.type)), pa.float64())
                except pa.ArrowInvalid:  # a number that no double holds
                    return False
                others = np.flatnonzero(_flags(pc.and_(pc.is_valid(cells), pc.invert(plain))))
        elif pa.types.is_floating(cells.type) or pa.types.is_integer(cells.type):
            numbers = cells
        else:
            return False
        values = numbers.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
        strange = np.isinf(values)
        if pa.types.is_string(cells.type):
            # The word "nan" is read as not a number, which an empty cell is too; "inf" is no number at all.
            strange |= np.isnan(values) & _flags(pc.is_valid(numbers))
        self._judge(values)
        if strange.any() or others is not None:
            rows = np.flatnonzero(strange) if others is None else np.union1d(np.flatnonzero(strange), others)
            self._forget(rows)
            self._each(cells.take(pa.array(rows)), rows)
        return True

    def _judge(self, values: "NDArray[np.float64]") -> None:
        """The rules of `Decoder.check` for numbers that are finite or missing."""
        column = self.column
        low = -LARGEST if column.minimum is None else column.minimum
        high = LARGEST if column.maximum is None else column.maximum
        good = (values >= low) & (values <= high)
        if column.kind == "integer":
            good &= values == np.floor(values)
        self.seen.x[:, self.at.start] = np.clip(values, -LARGEST, LARGEST)
        if good.all():
            return
        empty = np.isnan(values)
        outside = ~empty & ~((values >= low) & (values <= high))
        for rule, mask in (("empty", empty), ("range", outside), ("whole", ~(good | empty | outside))):
            self._warn(rule, mask)

    def _warn(self, rule: str, mask: "NDArray[np.bool_]") -> None:
        if mask.any():
            key = (self.column.name, rule)
            self.seen.warnings[key] = self.seen.warnings.get(key, np.False_) | mask
            self.seen.warned += mask

    def _forget(self, rows: "NDArray[np.int64]") -> None:
        """Take back what was said of some rows."""
        for (name, _), mask in self.seen.warnings.items():
            if name == self.column.name:
                self.seen.warned[rows] -= mask[rows]
                mask[rows] = False

    def _each(self, cells: Any, rows: "NDArray[np.int64]") -> None:
        """Read cells of these rows, each different one once."""
        import pyarrow.compute as pc

        coded = pc.dictionary_encode(cells)
        different = coded.dictionary.to_pylist()
        codes = pc.fill_null(coded.indices, len(different)).to_numpy(zero_copy_only=False).astype(np.int64)
        self._same(rows, codes, [{self.column.name: cell} for cell in [*different, None]])

    def _same(self, rows: "NDArray[np.int64]", codes: "NDArray[np.int64]", cells: Sequence[dict[str, Any]]) -> None:
        """Write what each of the different cells means into the rows that have it."""
        used = np.zeros(len(cells), dtype=bool)
        used[codes] = True
        found = {finding.row: finding for finding in self.alone.check(cells) if finding.row is not None}
        wrong = {number for number, finding in found.items() if finding.severity == "error"}
        features = np.full((len(cells), self.at.stop - self.at.start), np.nan, dtype=np.float32)
        right = [number for number in range(len(cells)) if number not in wrong]
        features[right] = self.alone.rows([cells[number] for number in right])
        self.seen.x[rows, self.at] = features[codes]
        masks: dict[str, NDArray[np.bool_]] = {}
        for number, finding in found.items():
            if not used[number]:
                continue
            here = rows[codes == number] if number in wrong else None
            if here is None:
                masks.setdefault(finding.rule, np.zeros(len(cells), dtype=bool))[number] = True
                continue
            for row in here.tolist():
                told = Finding(finding.rule, finding.column, row, finding.message)
                self.seen.errors.setdefault(row, []).append(told)
        for rule, mask in masks.items():
            whole = np.zeros(len(self.seen.warned), dtype=bool)
            whole[rows] = mask[codes]
            self._warn(rule, whole)


def _flags(column: Any) -> "NDArray[np.bool_]":
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)
