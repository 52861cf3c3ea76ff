"""Parquet, with its many types brought to our five; nested columns are refused."""

import re
from typing import TYPE_CHECKING

from esteira.errors import DataError, SourceError
from esteira.sources.form import clip, column_names, listed, no_rows, too_many
from esteira.sources.values import without_nan

if TYPE_CHECKING:
    import pyarrow as pa


def read_parquet(data: bytes, where: str, max_rows: int, notes: list[str]) -> "pa.Table":
    """All columns in our types; the index that pandas writes is left out with a note.

    Raises:
        DataError: no row, too many rows, a nested column.
        SourceError: it is no whole Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if file.metadata.num_rows > max_rows:
            too_many(file.metadata.num_rows, max_rows, where)
        table = file.read()
        index = [name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)]
        if index:
            notes.append(f"left out, pandas' index: {listed(index)}")
            table = table.drop_columns(index)
        names = column_names(table.column_names, where, notes)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"the file must be Parquet, but: {clip(str(error).splitlines()[0], 200)}",
            code="bad_parquet",
            where=where,
            cure="copy the file again (it may be cut off), or give it its true ending",
        ) from error
    if table.num_rows == 0:
        raise no_rows(f"the file has only a schema of {len(names)} columns", where)
    columns = [typed(name, column, where) for name, column in zip(names, table.columns, strict=True)]
    return pa.table(columns, names=names)


def typed(name: str, column: "pa.ChunkedArray", where: str) -> "pa.ChunkedArray":
    """One of our five types; see the module's first lines.

    Raises:
        DataError: a nested column, or one that cannot be read as any of them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    try:
        if pa.types.is_null(kind):
            return column.cast(pa.string())
        if pa.types.is_boolean(kind):
            return column
        if pa.types.is_integer(kind):
            return column.cast(pa.float64() if kind == pa.uint64() else pa.int64(), safe=kind != pa.uint64())
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return without_nan(column.cast(pa.float64(), safe=False))
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return column.cast(pa.timestamp("us", tz="UTC"), safe=False)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_time(kind):
            column = column.cast(pa.string())
            kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
            return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    except pa.ArrowException as error:
        raise DataError(
            f"column {clip(name)!r} of type {kind} must be readable as a table column, but: {clip(str(error), 200)}",
            code="bad_column",
            where=f"{where}, column {clip(name)!r}",
            cure="write the column as text or numbers",
        ) from error
    raise DataError(
        f"a cell is a number, text, a boolean or a date, but column {clip(name)!r} has type {kind}",
        code="nested_column",
        where=f"{where}, column {clip(name)!r}",
        cure="flatten the column into several",
    )
