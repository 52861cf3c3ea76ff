"""Reads the rows of a source and names the bytes they came from. Values are not judged here; that is validate's work."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from esteira import outputs, sources
from esteira.checks import require_target
from esteira.sources import Provenance, Table

if TYPE_CHECKING:
    import pyarrow as pa

_LOOKS = {
    # What a text column looks like, for the type report; the contract decides for itself.
    "integer": r"^[+-]?\d+$",
    "number": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$",
    "boolean": r"^(?i:true|false)$",
    "date": r"^\d{4}[-/.]\d\d[-/.]\d\d([T ].*)?$",
}
_MOSTLY = 0.95


class Params(BaseModel):
    """The section `ingest` of params.yaml.

    Attributes:
        delimiter: of CSV; empty means a comma, and a tab for `.tsv`.
        query: SQL for a database source.
        max_rows: the most rows a table may have.
        max_bytes: the most bytes a source may have, also after decompression.
        expect_hash: content hash that the source must have; empty takes any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiter: str = ""
    query: str = ""
    max_rows: int = Field(default=sources.MAX_ROWS, ge=1)
    max_bytes: int = Field(default=sources.MAX_BYTES, ge=1)
    expect_hash: str = Field(default="", pattern="^([0-9a-fA-F]{64})?$")


class Report(BaseModel):
    """What was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    content_hash: str
    row_count: int
    column_count: int
    notes: tuple[str, ...] = ()


def run(*, source: str, target: str, line: str, out: Path, params: Params) -> Report:
    """Read a source into `out/rows.parquet` and describe it in `out/dataset.json`.

    Args:
        source: a path, `file://`, `s3://` or a SQLAlchemy URL.
        target: name of the label column, which must be there.
        line: the line the rows are for; names the place in messages.
        out: folder of the outputs; created. Untouched when anything fails.
        params: how to read.

    Raises:
        SourceError, DataError, Refused, ConfigError, OutsideError: see `esteira.sources.read`; DataError when the label
            column is missing; OutsideError when the disk is full.
    """
    table = sources.read(
        source,
        delimiter=params.delimiter,
        query=params.query,
        max_rows=params.max_rows,
        max_bytes=params.max_bytes,
        expect_hash=params.expect_hash,
    )
    require_target(table.data.column_names, target, f"{line}, step ingest, {table.provenance.source}")
    rows = _parquet(table.data)
    document = describe(table, hashlib.sha256(rows).hexdigest())
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    outputs.write(out, {"rows.parquet": rows, "dataset.json": text.encode()})
    provenance = table.provenance
    return Report(
        name=provenance.name,
        source=provenance.source,
        content_hash=provenance.content_hash,
        row_count=table.data.num_rows,
        column_count=table.data.num_columns,
        notes=provenance.notes,
    )


def describe(table: Table, rows_hash: str) -> dict[str, Any]:
    """The document `dataset.json`: what K-08 keeps of a data set, a type report and the provenance; no wall times.

    Args:
        table: what was read.
        rows_hash: SHA-256 of `rows.parquet`, by which the next step knows that nobody changed it.
    """
    provenance = table.provenance
    return {
        "name": provenance.name,
        "source": provenance.source,
        "data_format": provenance.data_format,
        "source_type": provenance.source_type,
        "content_hash": provenance.content_hash,
        "file_size": provenance.file_size,
        "row_count": table.data.num_rows,
        "column_count": table.data.num_columns,
        "rows_hash": rows_hash,
        "columns": [_type_report(name, table.data.column(name)) for name in table.data.column_names],
        "provenance": _provenance(provenance),
    }


def _provenance(provenance: Provenance) -> dict[str, Any]:
    return {
        "files": [{"name": file.name, "sha256": file.sha256, "size": file.size} for file in provenance.files],
        "query": provenance.query,
        "notes": list(provenance.notes),
    }


def _type_report(name: str, column: "pa.ChunkedArray") -> dict[str, Any]:
    """Stored type, what text looks like (95 % of the cells), missing cells and distinct values of one column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    stored = "text"
    if pa.types.is_floating(kind):
        stored = "number"
    elif pa.types.is_integer(kind):
        stored = "integer"
    elif pa.types.is_boolean(kind):
        stored = "boolean"
    elif pa.types.is_timestamp(kind):
        stored = "date"
    values = pc.unique(column.drop_null())
    looks = stored
    present = len(column) - column.null_count
    if stored == "text" and present:
        counts = pc.value_counts(column.drop_null())
        words, times = counts.field("values"), counts.field("counts")
        for guess, pattern in _LOOKS.items():
            alike = pc.sum(pc.filter(times, pc.match_substring_regex(words, pattern))).as_py() or 0
            if alike / present >= _MOSTLY:
                looks = guess
                break
    return {"name": name, "type": stored, "looks_like": looks, "missing": column.null_count, "distinct": len(values)}


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


if __name__ == "__main__":
    from components.door import main

    main("ingest")
