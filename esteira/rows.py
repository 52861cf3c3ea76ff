"""Reads a file of rows as dictionaries and has them answered: CSV, gzip CSV, JSON lines, Parquet. Trains nothing, drops nothing.

Needs nothing beyond the core (Parquet needs pyarrow), so that `predict` works where only the serving lock is installed.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esteira.errors import DataError, SourceError
from esteira.family import Answer, Answerer

BLOCK = 4096  # rows that are answered at once
_TRUE, _FALSE = frozenset({"true", "t", "1", "1.0"}), frozenset({"false", "f", "0", "0.0"})


def read_rows(path: Path, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of a file, in order.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (lines, or one array), also behind `.gz`; or `.parquet`, `.pq`.
            Another ending counts as CSV.
        kinds: column -> kind of the contract; text cells of CSV become numbers and booleans by it. A cell that does not
            parse stays text, for the contract's check to name.

    Raises:
        SourceError: missing file, or not what its name says.
        DataError: a ragged row, duplicated or missing header.
    """
    if not path.is_file():
        raise SourceError(
            f"rows are read from a file, but {str(path)!r} does not exist",
            code="missing_file",
            where="--data",
            cure="check the path",
        )
    name = path.name.lower()
    try:
        if name.endswith((".parquet", ".pq")):
            return _parquet(path)
        raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"text must be UTF-8, but byte {error.start} is 0x{error.object[error.start]:02x}",
            code="not_utf8", where=str(path), cure="convert it, for example with `iconv -t UTF-8`",
        ) from error  # fmt: skip
    except (gzip.BadGzipFile, EOFError) as error:
        raise SourceError(
            f"gzip must be whole: {error}", code="bad_gzip", where=str(path), cure="fetch it again"
        ) from error
    name = name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return list(_json_array(text, path) if text.lstrip().startswith("[") else _json_lines(text, path))
    return list(_csv(text, path, kinds, "\t" if name.endswith(".tsv") else ","))


def _json_array(text: str, path: Path) -> Iterator[dict[str, Any]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"rows are one JSON array of objects, or an object a line, but: {error}",
            code="bad_json", where=str(path), cure="write one object a line",
        ) from error  # fmt: skip
    for number, item in enumerate(items, 1):
        yield _object(item, "item", number, path)


def _json_lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines: a text may hold other characters that count as ends of lines there.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"each line is one JSON object, but line {number} is not: {error.msg}",
                code="bad_json", where=f"{path}, line {number}", cure="write one object a line",
            ) from error  # fmt: skip
        yield _object(row, "line", number, path)


def _object(value: Any, what: str, number: int, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"each {what} is one JSON object, but {what} {number} holds a {type(value).__name__}",
            code="bad_json", where=f"{path}, {what} {number}", cure=f"write one object {'an' if what == 'item' else 'a'} {what}",
        )  # fmt: skip
    return value


def _csv(text: str, path: Path, kinds: Mapping[str, str], delimiter: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = next(reader, None)
    if not header:
        raise DataError(
            "a CSV file starts with a header, but this one is empty", code="empty", where=str(path), cure="add rows"
        )
    # The names that training gave them.
    header = [name.strip() or f"unnamed_{position}" for position, name in enumerate(header, 1)]
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f"column names are unique, but {twice!r} stands twice",
            code="duplicate_column",
            where=str(path),
            cure="rename one",
        )
    parsers = [_PARSERS.get(kinds.get(name, ""), _as_text) for name in header]
    for number, cells in enumerate(reader, 1):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"every row has as many cells as the header ({len(header)}), but row {number} has {len(cells)}",
                code="ragged_row", where=f"{path}, row {number}", cure="quote cells that hold the delimiter",
            )  # fmt: skip
        yield {
            name: parse(cell.strip()) if cell.strip() else None
            for name, parse, cell in zip(header, parsers, cells, strict=True)
        }


def _as_text(cell: str) -> Any:
    return cell


def _as_number(cell: str) -> Any:
    try:
        # Python reads 1_000 as a number; no contract does.
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _as_boolean(cell: str) -> Any:
    word = cell.lower()
    return True if word in _TRUE else False if word in _FALSE else cell


def _as_nested(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


_PARSERS = {"number": _as_number, "integer": _as_number, "boolean": _as_boolean, "object": _as_nested}


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise SourceError(
            "Parquet needs pyarrow, which is not installed here",
            code="no_pyarrow", where=str(path), cure="pip install 'esteira[pipeline]', or give CSV or JSON lines",
        ) from error  # fmt: skip
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise SourceError(
            f"not a Parquet file: {error}", code="bad_parquet", where=str(path), cure="check the file"
        ) from error
    return rows


def answered(model: Answerer, rows: Sequence[Mapping[str, Any]], *, where: str) -> list[Answer]:
    """One answer a row, in order.

    Args:
        where: the file that the rows are of, for errors.

    Raises:
        DataError: a row breaks the contract; the first such cell is named.
    """
    answers: list[Answer] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        errors = [finding for finding in model.check(block) if finding.severity == "error"]
        if errors:
            first = errors[0]
            raise DataError(
                f"{first.message} ({len(errors)} such cells in rows {start + 1} to {start + len(block)})",
                code=f"row_{first.rule}",
                where=f"{where}, row {start + (first.row or 0) + 1}, column {first.column!r}",
                cure="mend the rows; nothing was written",
            )
        answers += model.answer(block)
    return answers
