"""A part's answers as the bytes of a file: Parquet, CSV or JSON lines. The same answers give the same bytes."""

import csv
import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

from esteira.batch.answering import Part
from esteira.errors import ConfigError, DataError

Form = Literal["parquet", "csv", "jsonl"]
FORMS: tuple[Form, ...] = get_args(Form)


def must_be_writable(form: Form) -> None:
    """Refuse a form that this installation cannot write.

    Raises:
        ConfigError: code `no_pyarrow`.
    """
    if form == "parquet" and find_spec("pyarrow") is None:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed here",
            code="no_pyarrow", where="--format", cure="take --format jsonl or csv, or use the pipeline image",
        )  # fmt: skip


def written(part: Part, form: Form, prediction: type, about: Mapping[str, str]) -> bytes:
    """The file of a part.

    Args:
        part: its answers.
        form: of the file.
        prediction: type of the column `prediction`.
        about: what Parquet's metadata say of the whole: names and texts.

    Raises:
        DataError: a column that is kept changes its type.
    """
    if form == "parquet":
        return _parquet(part, prediction, about)
    names = list(part.columns)
    rows = zip(*part.columns.values(), strict=True)
    if form == "jsonl":
        import msgspec

        encode = msgspec.json.Encoder(enc_hook=_iso).encode
        return b"".join(encode(dict(zip(names, row, strict=True))) + b"\n" for row in rows)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return buffer.getvalue().encode()


def _parquet(part: Part, prediction: type, about: Mapping[str, str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    answered = {"row": pa.int64(), "warnings": pa.int32(), "answer": pa.string(), "prediction": types[prediction]}
    columns = {}
    for name, values in part.columns.items():
        if name in part.kept:
            columns[name] = _kept(name, values, part.kinds.get(name))
        else:
            columns[name] = pa.array(values, answered.get(name, pa.float64()))
    table = pa.table(columns).replace_schema_metadata(dict(about))
    sink = io.BytesIO()
    words = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    pq.write_table(table, sink, use_dictionary=words)
    return sink.getvalue()


def _kept(name: str, values: list[Any], kind: Any) -> Any:
    """A column of the source, with its type there; of JSON, where a column has none, as text."""
    import pyarrow as pa

    if kind is None:
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    try:
        return pa.array(values, kind)
    except pa.ArrowException as error:
        raise DataError(
            f"a column that is kept has one type in all files, but {name!r} does not",
            code="changes_type", where=f"--keep {name}", cure="write all files with one type of the column",
        ) from error  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _iso(value: Any) -> Any:
    """A moment of a column that is kept."""
    return value.isoformat()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | float):
        return value if not isinstance(value, float) else repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    return _iso(value) if hasattr(value, "isoformat") else _text(value)
