"""Rows from where they lie: CSV, JSON, Parquet (plain or gzip), a folder of these, S3, a database. It judges form only.

What comes back is one Arrow table with five column types (string, double, int64, bool, timestamp[us, UTC]) and the provenance
that names the bytes it was read from. Whether the values make sense is the step validate's business.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esteira.errors import ConfigError, DataError
from esteira.sources.blobs import blobs_of, content_hash_of
from esteira.sources.database import read_database
from esteira.sources.form import ROW_NUMBER, clip, listed, too_many
from esteira.sources.formats import format_of, parse
from esteira.sources.provenance import Bytes, Provenance, Table, name_of, redact, require_hash, scheme

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_BYTES", "MAX_ROWS", "ROW_NUMBER", "Bytes", "Provenance", "Table", "fingerprint", "read", "redact"]

MAX_ROWS = 2_000_000
MAX_BYTES = 2 << 30


def read(
    uri: str,
    *,
    delimiter: str = "",
    query: str = "",
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    expect_hash: str = "",
) -> Table:
    """Read a table.

    Args:
        uri: a path, `file://`, `s3://bucket/key`, or a SQLAlchemy URL, optionally `URL#select ...`.
        delimiter: of CSV; empty means a comma, and a tab for `.tsv`.
        query: SQL for a database, instead of the part after `#`.
        max_rows: the most rows a table may have.
        max_bytes: the most bytes a source may have, also after decompression.
        expect_hash: when given, the content hash that the source must have.

    Raises:
        SourceError: the source is missing or is not what it claims to be.
        DataError: it was read and breaks a rule of form: empty, ragged, duplicated names, mixed types, too many rows.
        Refused: the content hash is another one than expected.
        ConfigError: the URI, the query or the delimiter cannot be used.
        OutsideError: S3 or the database does not answer.
    """
    if delimiter and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigError(
            f"a delimiter is one character, no quote and no line end, but got {delimiter!r}",
            code="bad_delimiter",
            where="ingest.delimiter",
            cure="for a tab write --set ingest.delimiter=$'\\t'",
        )
    kind = scheme(uri)
    if kind == "sql":
        return read_database(uri, query, max_rows, expect_hash)
    if query:
        raise ConfigError(
            "a query goes with a database URL, but the source is a file",
            code="query_without_database",
            where="ingest.query",
            cure="leave ingest.query out, or give --source a SQLAlchemy URL",
        )
    blobs, whole, notes = blobs_of(uri, kind, max_bytes)
    files = tuple(blob.named for blob in blobs)
    content_hash = content_hash_of(files, whole)
    require_hash(content_hash, expect_hash, redact(uri))
    formats = {format_of(blob) for blob in blobs}
    if len(formats) > 1:
        raise DataError(
            f"the files of a folder have one format, but found {', '.join(sorted(formats))}",
            code="mixed_formats",
            where=redact(uri),
            cure="keep one format a folder, or name one file",
        )
    tables = []
    total = 0
    for blob in blobs:
        # In a folder every message names the file inside it.
        place = redact(uri) if not whole else f"{redact(uri)}/{blob.name}"
        table = parse(blob, delimiter, place, max_rows, max_bytes, notes)
        total += table.num_rows
        if total > max_rows:
            too_many(total, max_rows, redact(uri))
        tables.append((place, table))
    source = redact(uri)
    return Table(
        _stack(tables),
        Provenance(
            name=name_of(uri),
            source=source,
            data_format=formats.pop(),
            source_type="api" if kind == "s3" else "upload",
            content_hash=content_hash,
            file_size=sum(file.size for file in files),
            files=files,
            notes=tuple(dict.fromkeys(notes)),
        ),
    )


def fingerprint(uri: str, *, query: str = "", max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> str:
    """The content hash that `read` would give, without parsing files; a database is read whole.

    Raises:
        As `read` does for a source that is missing or cannot be reached.
    """
    kind = scheme(uri)
    if kind == "sql":
        return read_database(uri, query, max_rows, "").provenance.content_hash
    blobs, whole, _ = blobs_of(uri, kind, max_bytes)
    return content_hash_of(tuple(blob.named for blob in blobs), whole)


def _stack(tables: Sequence[tuple[str, "pa.Table"]]) -> "pa.Table":
    """The files of a folder as one table; columns in the first file's order.

    Raises:
        DataError: a file has other columns, or another type for one.
    """
    import pyarrow as pa

    first_place, first = tables[0]
    stacked = [first]
    for place, table in tables[1:]:
        missing = [name for name in first.column_names if name not in table.column_names]
        extra = [name for name in table.column_names if name not in first.column_names]
        if missing or extra:
            raise DataError(
                f"the files of a folder have the same columns, but {Path(place).name} lacks {listed(missing)} and adds"
                f" {listed(extra)} beside {Path(first_place).name}",
                code="different_columns",
                where=place,
                cure="take the odd file out, or give it the same header",
            )
        table = table.select(first.column_names)
        for name in first.column_names:
            if table.schema.field(name).type != first.schema.field(name).type:
                raise DataError(
                    f"a column has one type, but column {clip(name)!r} is {first.schema.field(name).type} in"
                    f" {Path(first_place).name} and {table.schema.field(name).type} here",
                    code="changes_type",
                    where=f"{place}, column {clip(name)!r}",
                    cure="write all values of the column with one type",
                )
        stacked.append(table)
    return pa.concat_tables(stacked).combine_chunks()
