"""JSON lines, or one JSON array, of objects; a key that a row lacks is a missing cell, a nested value stays JSON text.

A column of nested values has the Arrow type large_string, which no other source makes: whether a line can read such cells
is for its contract to say, in validate.
"""

import json
from typing import TYPE_CHECKING, Any

from esteira.errors import DataError, SourceError
from esteira.sources.form import clip, column_names, no_rows, not_utf8
from esteira.sources.values import from_columns

if TYPE_CHECKING:
    import pyarrow as pa


def read_json(data: bytes, where: str) -> "pa.Table":
    """Keys in the order they are first seen; a column has one type.

    Raises:
        DataError: no row, a row that is no object, a key twice, a column of two types, a nested number that is not finite;
            with its line.
        SourceError: it is no JSON, or no UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(data, where) from error
    places: list[int] = []
    rows: list[dict[str, Any]] = []
    if text.lstrip().startswith("["):
        items = _loads(text, where)
        places = list(range(1, len(items) + 1))
        unit = "item"
    else:
        unit, items = "line", []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                items.append(_loads(line, f"{where}, line {number}"))
                places.append(number)
    for place, item in zip(places, items, strict=True):
        if not isinstance(item, dict):
            raise DataError(
                f"every row is a JSON object, but got {clip(json.dumps(item))}",
                code="not_an_object",
                where=f"{where}, {unit} {place}",
                cure="write one object of column and value a line",
            )
        rows.append(item)
    if not rows:
        raise no_rows("there is none", where)
    keys = dict.fromkeys(key for row in rows for key in row)
    names = column_names(list(keys), where, [])
    columns = [[row.get(key) for row in rows] for key in keys]
    nested = {at for at, values in enumerate(columns) if any(isinstance(value, dict | list) for value in values)}
    flat = ([None] * len(rows) if at in nested else values for at, values in enumerate(columns))
    table = from_columns(names, flat, places, unit, where)
    for at in sorted(nested):
        table = table.set_column(at, names[at], _nested(names[at], columns[at], places, unit, where))
    return table


def _nested(name: str, values: list[Any], places: list[int], unit: str, where: str) -> "pa.Array":
    """A column of JSON objects and arrays as their text."""
    import pyarrow as pa

    texts: list[str | None] = []
    for value, place in zip(values, places, strict=True):
        here = f"{where}, {unit} {place}, column {clip(name)!r}"
        if value is not None and not isinstance(value, dict | list):
            raise DataError(
                f"a column has one type, but column {clip(name)!r} has objects or arrays, and here {clip(str(value))!r}",
                code="changes_type",
                where=here,
                cure="write all values of the column with one type",
            )
        try:
            texts.append(None if value is None else _dumped(value))
        except ValueError as error:
            raise DataError(
                f"a nested number is finite, but column {clip(name)!r} holds {clip(str(value))}",
                code="nested_infinite",
                where=here,
                cure="write null instead",
            ) from error
    return pa.array(texts, pa.large_string())


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _loads(text: str, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            keys = [key for key, _ in pairs]
            double = next(key for key in keys if keys.count(key) > 1)
            raise DataError(
                f"the keys of a row are unique, but {clip(double)!r} is there twice",
                code="duplicated_column",
                where=where,
                cure="rename or remove one of them",
            )
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(
            f"every line must be JSON, but: {error}: {clip(text)!r}",
            code="bad_json",
            where=where,
            cure="write one JSON object a line, or one JSON array of objects",
        ) from error
