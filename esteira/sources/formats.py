"""From bytes to a table by the format that the name says; refuses what is another thing than it claims to be."""

import gzip
import io
import zlib
from typing import TYPE_CHECKING, NoReturn

from esteira.errors import DataError, SourceError
from esteira.sources.blobs import Blob
from esteira.sources.csv_table import read_csv
from esteira.sources.form import FORMATS, suffix, too_large
from esteira.sources.json_table import read_json
from esteira.sources.parquet_table import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa


def format_of(blob: Blob) -> str:
    """`csv`, `json` or `parquet`, by the ending, else by the first bytes.

    Raises:
        SourceError: neither tells.
    """
    known = FORMATS.get(suffix(blob.name))
    if known:
        return known
    head = blob.data[:4]
    if head == b"PAR1":
        return "parquet"
    raise SourceError(
        f"a file's name ends in {', '.join(sorted(FORMATS))} (or these with .gz), but got {blob.name!r}",
        code="unknown_format",
        where=blob.name,
        cure="rename the file, or convert it",
    )


def parse(blob: Blob, delimiter: str, where: str, max_rows: int, max_bytes: int, notes: list[str]) -> "pa.Table":
    """One file as a table; adds to the notes.

    Raises:
        DataError, SourceError: it is empty, too large, or not what it claims to be.
    """
    data = _gunzip(blob, where, max_bytes)
    kind = format_of(blob)
    if not data or data.isspace():
        raise DataError(
            f"a table needs a header and at least one row, but the file is empty ({len(data):,} bytes)",
            code="empty_file",
            where=where,
            cure="check how the file was written; name another source",
        )
    if kind == "parquet":
        return read_parquet(data, where, max_rows, notes)
    if data[:4] in {b"PAR1", b"PK\x03\x04"} or b"\x00" in data[:65536]:
        _not_text(data, where)
    if kind == "json":
        return read_json(data, where)
    return read_csv(data, delimiter or ("\t" if suffix(blob.name) == ".tsv" else ","), where, notes)


def _not_text(data: bytes, where: str) -> NoReturn:
    found = {b"PAR1": "Parquet", b"PK\x03\x04": "a ZIP archive or a spreadsheet"}.get(data[:4])
    if found is None:
        found = "UTF-16 text" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "binary (it has zero bytes)"
    raise SourceError(
        f"this file must be UTF-8 text as its name says, but it is {found}",
        code="not_text",
        where=where,
        cure="give the file its true ending, or convert it, e.g. iconv -f UTF-16 -t UTF-8",
    )


def _gunzip(blob: Blob, where: str, max_bytes: int) -> bytes:
    if not blob.name.lower().endswith(".gz"):
        return blob.data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob.data)) as stream:
            data = stream.read(max_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"a file that ends in .gz must be a whole gzip file, but: {error}",
            code="bad_gzip",
            where=where,
            cure="copy the file again (it may be cut off), or take .gz out of its name",
        ) from error
    if len(data) > max_bytes:
        too_large(where, max_bytes)
    return data
