"""CSV as blocks of text cells, an empty one null. A row that cannot be read is a finding, not the end of the batch.

With pyarrow a piece is read at once; a piece that it refuses, and every piece where there is no pyarrow, row by row.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.batch.blocks import Block, Chunk
from esteira.batch.files import File
from esteira.batch.text import Text, open_text
from esteira.errors import DataError, SourceError
from esteira.family import Finding, Row
from esteira.sources.csv_table import read_header
from esteira.sources.form import column_names, suffix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUOTE, _LINE = ord('"'), ord("\n")


def names(file: File, where: str, delimiter: str) -> list[str]:
    """The columns of the header.

    Raises:
        DataError: there is no header, or a name stands twice.
        SourceError: it is no CSV of this delimiter.
    """
    with open_text(file, where) as text:
        return _header(text, where, delimiter or _usual(file))[0]


def chunks(file: File, where: str, at: int, columns: Sequence[str] | None, delimiter: str) -> Iterator[Chunk]:
    """The pieces from an offset on; 0 is the first row.

    Raises:
        DataError: a quote is never closed.
    """
    delimiter = delimiter or _usual(file)
    with open_text(file, where) as text:
        header, start = _header(text, where, delimiter)
        wanted = header if columns is None else [name for name in columns if name in header]
        for offset, data in text.pieces(max(at, start), partial(_last_row, delimiter=delimiter.encode())):
            block = _block(data, header, wanted, delimiter, where)
            if len(block):
                yield Chunk(offset, 0, block)


def _usual(file: File) -> str:
    return "\t" if suffix(file.name) == ".tsv" else ","


def _header(text: Text, where: str, delimiter: str) -> tuple[list[str], int]:
    if not text.head.strip():
        raise DataError(
            "a table needs a header and at least one row, but the file is empty",
            code="empty_file", where=where, cure="check how the file was written; name another source",
        )  # fmt: skip
    try:
        header, start = read_header(text.head, delimiter, where)
    except SourceError as error:
        if error.code == "wrong_delimiter":
            error.cure = "give the sign with --delimiter"
        raise
    return column_names(header, where, []), text.start + start


def _block(data: bytes, header: list[str], wanted: list[str], delimiter: str, where: str) -> Block:
    quotes = _quotes(data, delimiter.encode())
    if quotes is not None and len(quotes) % 2:
        raise _never_closed(data, int(quotes[-1]), where)
    if find_spec("pyarrow") is not None and (quotes is None or _plain(data, delimiter.encode())):
        table = _table(data, header, wanted, delimiter)
        if table is not None:
            return Block(table=table)
    return Block(rows=_rows(data, header, wanted, delimiter, where))


def _table(data: bytes, header: list[str], wanted: list[str], delimiter: str) -> Any:
    """The piece as text columns; None when a row of it cannot be read."""
    import pyarrow as pa
    import pyarrow.csv

    try:
        return pa.csv.read_csv(
            pa.BufferReader(data),
            read_options=pa.csv.ReadOptions(column_names=header, block_size=len(data) + 1, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), include_columns=wanted, null_values=[""],
                strings_can_be_null=True,
            ),
        )  # fmt: skip
    except pa.ArrowInvalid:
        return None


def _rows(data: bytes, header: list[str], wanted: list[str], delimiter: str, where: str) -> "list[Row | Finding]":
    # Bytes that are no UTF-8 survive as surrogates, so that only their row is lost.
    stream = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    reader = csv.reader(stream, delimiter=delimiter)
    picked = [(header.index(name), name) for name in wanted]
    rows: list[Row | Finding] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                message = f"every row has as many fields as the header ({len(header)}), but this one has {len(cells)}"
                rows.append(Finding("ragged", "", len(rows), message))
                continue
            row = {name: cells[at] or None for at, name in picked}
            strange = next((name for name, cell in row.items() if cell and not _is_text(cell)), None)
            if strange is None:
                rows.append(row)
            else:
                rows.append(Finding("not_utf8", strange, len(rows), "text must be UTF-8, but this cell is not"))
    except csv.Error as error:
        raise SourceError(
            f"the file must be a CSV, but: {error}",
            code="bad_csv", where=where, cure="check the file's quotes; a cell has 131,072 signs at most",
        ) from error  # fmt: skip
    return rows


def _is_text(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _last_row(data: bytes, delimiter: bytes) -> int:
    """Where the last whole row ends: at a line end that no cell holds. 0 when there is none."""
    quotes = _quotes(data, delimiter)
    if quotes is None:
        return data.rfind(b"\n") + 1
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _LINE)
    outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return int(outside[-1]) + 1 if len(outside) else 0


def _quotes(data: bytes, delimiter: bytes) -> "NDArray[np.int64] | None":
    """Offsets of the quotes that open and close cells, by turns, of bytes that begin with a row; None when there are none.

    A quote within a cell that does not begin with one is a sign like others.
    """
    if b'"' not in data:
        return None
    if _plain(data, delimiter):
        return np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _QUOTE)
    begins = frozenset(delimiter + b"\r\n")
    found: list[int] = []
    passed = -1
    for at in np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _QUOTE).tolist():
        if at == passed:
            continue
        if len(found) % 2 == 0:
            if at == 0 or data[at - 1] in begins:
                found.append(at)
        elif data[at + 1 : at + 2] == b'"':
            passed = at + 1
        else:
            found.append(at)
    return np.array(found, dtype=np.int64)


def _plain(data: bytes, delimiter: bytes) -> bool:
    """Whether each quote stands where a cell begins or ends, or is one of a pair within it: then counting them is enough."""
    signs = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(signs == _QUOTE)
    beside = np.zeros(256, dtype=bool)
    beside[list(delimiter + b'"\r\n')] = True
    opening, closing = quotes[0::2], quotes[1::2]
    before = signs[opening[opening > 0] - 1]
    after = signs[closing[closing < len(signs) - 1] + 1]
    return bool(beside[before].all() and beside[after].all())


def _never_closed(data: bytes, at: int, where: str) -> DataError:
    line = data[data.rfind(b"\n", 0, at) + 1 : at + 60].split(b"\n")[0].decode("utf-8", "replace").strip()
    return DataError(
        f"a quote that opens a cell must be closed, but one is open to the end of the file: {line!r}",
        code="open_quote", where=where, cure="close the quote, or double it where it is meant",
    )  # fmt: skip
