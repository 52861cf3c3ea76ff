"""Columns of Python values (from JSON, from a database) as Arrow; a column has one of five types and keeps it."""

import datetime
import decimal
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from esteira.errors import DataError
from esteira.sources.form import clip

if TYPE_CHECKING:
    import pyarrow as pa


def from_columns(
    names: Sequence[str], columns: Iterable[Sequence[Any]], places: Sequence[int], unit: str, where: str
) -> "pa.Table":
    """An Arrow table from columns of Python values.

    Args:
        names: column names.
        columns: the values of each column.
        places, unit: what a row is called in messages, e.g. `line` 17.
        where: the source.

    Raises:
        DataError: a column changes its type, or holds nested values.
    """
    import pyarrow as pa

    arrays = [_array(name, values, places, unit, where) for name, values in zip(names, columns, strict=True)]
    return pa.table(arrays, names=list(names))


def _kind_of(value: Any) -> str:

    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float | decimal.Decimal):
        return "number"
    if isinstance(value, str | bytes | uuid.UUID | datetime.time | datetime.timedelta):
        return "text"
    if isinstance(value, datetime.date):
        return "date"
    return "nested"


def _array(name: str, values: Sequence[Any], places: Sequence[int], unit: str, where: str) -> "pa.Array":
    """One of our five types from Python values.

    Raises:
        DataError: the column changes its type, or holds nested values.
    """
    import pyarrow as pa

    by_type = {
        kind: _kind_of(next(v for v in values if type(v) is kind)) for kind in set(map(type, values)) - {type(None)}
    }
    kinds = set(by_type.values())
    column = f"column {clip(name)!r}"
    if "nested" in kinds:
        index = next(i for i, v in enumerate(values) if by_type.get(type(v)) == "nested")
        raise DataError(
            f"a cell is a number, text, a boolean or a date, but {column} holds {clip(str(values[index]))}",
            code="nested_column",
            where=f"{where}, {unit} {places[index]}, {column}",
            cure="flatten the column into several",
        )
    if len(kinds) > 1:
        first = next(i for i, v in enumerate(values) if v is not None)
        kind = by_type[type(values[first])]
        index = next(i for i, v in enumerate(values) if v is not None and by_type[type(v)] != kind)
        raise DataError(
            f"a column has one type, but {column} changes from {kind} ({clip(str(values[first]))!r} in {unit}"
            f" {places[first]}) to {by_type[type(values[index])]} ({clip(str(values[index]))!r})",
            code="changes_type",
            where=f"{where}, {unit} {places[index]}, {column}",
            cure="write all values of the column with one type",
        )
    kind = kinds.pop() if kinds else "text"
    if kind == "boolean":
        return pa.array(values, pa.bool_())
    if kind == "number":
        whole = set(by_type) == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values)
        if whole:
            return pa.array(values, pa.int64())
        return without_nan(pa.array([_float(v) for v in values], pa.float64()))
    if kind == "date":
        return pa.array([_instant(v) for v in values], pa.timestamp("us", tz="UTC"))
    texts = [None if v is None else v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    return pa.array([None if text is None else text.strip() or None for text in texts], pa.string())


def without_nan(column: Any) -> Any:
    """Not-a-number is a missing cell; infinity stays and is judged by validate."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)


def _float(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _instant(value: Any) -> Any:

    if value is None:
        return None
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
