"""CSV, strictly: every row has the header's fields, text is UTF-8, quotes are closed; all cells stay text."""

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esteira.errors import DataError, EsteiraError, SourceError
from esteira.sources.form import clip, column_names, no_rows, not_utf8

if TYPE_CHECKING:
    import pyarrow as pa

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def read_csv(data: bytes, delimiter: str, where: str, notes: list[str]) -> "pa.Table":
    """All cells as text, trimmed; a blank one is null.

    Raises:
        DataError: no row, a ragged row, a name twice, a quote never closed; with line and data row.
        SourceError: another delimiter, no UTF-8, no CSV.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\n" not in data and b"\r" in data:  # line ends of old Macintosh files
        data = data.replace(b"\r", b"\n")
    header, start = read_header(data, delimiter, where)
    names = column_names(header, where, notes)
    if not data[start:].strip(b"\r\n"):
        raise no_rows(f"the file has only a header of {len(names)} columns", where)
    if data.count(b'"') % 2:
        _closed_quotes(data, delimiter, where)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(data).slice(start)),
            read_options=pa.csv.ReadOptions(column_names=names, block_size=64 << 20),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _csv_fault(data, delimiter, len(names), where, str(error)) from error
    columns = []
    for column in table.columns:
        trimmed = pc.utf8_trim_whitespace(column)
        columns.append(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed))
    return pa.table(columns, names=names)


def _records(data: bytes, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """The records of a CSV with the line each starts on, from 1, and the offset where the next one starts; slow and exact."""
    stream = io.BytesIO(data)
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        while text := stream.readline():
            line += 1
            yield text.decode("utf-8")

    reader = csv.reader(lines(), delimiter=delimiter, strict=False)
    started = 1
    for record in reader:
        if record:
            yield started, stream.tell(), record
        started = line + 1


def read_header(data: bytes, delimiter: str, where: str) -> tuple[list[str], int]:
    """The names as they stand in the first record, and the offset where the second one starts.

    Raises:
        SourceError: there is none, it is no UTF-8, or it is separated by another sign.
    """
    try:
        _, start, header = next(_records(data, delimiter))
    except UnicodeDecodeError as error:
        raise not_utf8(data, where) from error
    except (csv.Error, StopIteration) as error:
        raise SourceError(
            f"the first line must be a header of column names, but: {str(error) or 'there is none'}",
            code="bad_header",
            where=where,
            cure="check that the file is a CSV with a header",
        ) from error
    others = [sign for sign in _DELIMITERS if sign != delimiter and sign in header[0]]
    if len(header) == 1 and others:
        found = max(others, key=header[0].count)
        raise SourceError(
            f"columns are separated by {_DELIMITERS.get(delimiter, repr(delimiter))}, but the header has one field"
            f" that holds {header[0].count(found)} times {_DELIMITERS[found]}: {clip(header[0])!r}",
            code="wrong_delimiter",
            where=f"{where}, line 1",
            cure=f"--set ingest.delimiter={'$' + repr(found) if found == chr(9) else repr(found)}",
        )
    return header, start


def _closed_quotes(data: bytes, delimiter: str, where: str) -> None:
    """Refuse a quote that is opened and never closed: Arrow would swallow every row after it without a word."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="", errors="replace")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    number = -1  # the header is record 0
    start = 1
    try:
        for record in reader:
            number += bool(record)
            start = reader.line_num + 1
    except csv.Error as error:
        if "end of data" not in str(error):
            return
        opened = data.split(b"\n", start)[start - 1].decode("utf-8", "replace").strip()
        raise DataError(
            f"a quote that opens a cell must be closed, but one in data row {number + 1:,} is open to the end of the file:"
            f" {clip(opened)!r}",
            code="open_quote",
            where=f"{where}, line {start}",
            cure="close the quote, or double it where it is meant",
        ) from error


def _csv_fault(data: bytes, delimiter: str, expected: int, where: str, said: str) -> EsteiraError:
    """What is wrong with a CSV that Arrow refused, with its place."""
    try:
        for number, (line, _, record) in enumerate(_records(data, delimiter)):
            if len(record) != expected:
                return DataError(
                    f"every row has as many fields as the header ({expected}), but data row {number:,} has"
                    f" {len(record)}: {clip(delimiter.join(record))!r}",
                    code="ragged_row",
                    where=f"{where}, line {line}",
                    cure="correct the row, or quote the cell that holds the delimiter or a line end",
                )
    except UnicodeDecodeError:
        return not_utf8(data, where)
    except csv.Error as error:
        said = str(error)
    return SourceError(
        f"the file must be a CSV, but: {clip(said, 200)}", code="bad_csv", where=where, cure="check the file's quotes"
    )
