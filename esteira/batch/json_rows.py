"""JSON lines as blocks of rows, as the service takes them. A line that is no object is a finding, not the end of the batch."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from esteira.batch.blocks import Block, Chunk
from esteira.batch.files import File
from esteira.batch.text import Text, last_line, open_text
from esteira.errors import DataError, SourceError
from esteira.family import Finding, Row

ARRAY_BYTES = 32 << 20
"""Bytes of a file that is one JSON array, which is read whole and takes many times that as objects."""

_decode = msgspec.json.Decoder().decode


def chunks(file: File, where: str, at: int) -> Iterator[Chunk]:
    """The pieces from an offset on; a file that is one array is one piece.

    Raises:
        DataError: there is no row, or an array is too large or no JSON.
    """
    with open_text(file, where) as text:
        if not text.head.strip():
            raise DataError(
                "a table needs at least one row, but the file is empty",
                code="empty_file", where=where, cure="check how the file was written; name another source",
            )  # fmt: skip
        if text.head.lstrip()[:1] == b"[":
            yield Chunk(0, 0, Block(rows=_array(text, where)))
            return
        for offset, data in text.pieces(max(at, text.start), last_line):
            rows: list[Row | Finding] = []
            for line in data.split(b"\n"):
                if line.strip():
                    rows.append(_row(line, len(rows)))
            if rows:
                yield Chunk(offset, 0, Block(rows=rows))


def _array(text: Text, where: str) -> "list[Row | Finding]":
    # No line end ends a piece, so that it is read to the file's end or up to the longest one.
    parts: list[bytes] = []
    for _, data in text.pieces(text.start, len):
        parts.append(data)
        if sum(map(len, parts)) > ARRAY_BYTES:
            raise DataError(
                f"a file that is one JSON array is read whole and has {ARRAY_BYTES:,} bytes at most, but this one has more",
                code="array_too_large", where=where,
                cure="write one object a line (`jq -c '.[]' rows.json > rows.jsonl`); such a file may have any size",
            )  # fmt: skip
    try:
        items = _unique(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"the file must be one JSON array of objects, or an object a line, but: {str(error)[:200]}",
            code="bad_json", where=where, cure="write one object a line",
        ) from error  # fmt: skip
    return [item if isinstance(item, dict) else _no_object(item, number) for number, item in enumerate(items)]


def _row(line: bytes, number: int) -> "Row | Finding":
    try:
        row = _decode(line)
        # Every key has one colon, and texts may hold more; so only a line with more colons than keys is read again.
        if isinstance(row, dict) and line.count(b":") != len(row):
            row = _unique(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return Finding("json", "", number, f"every line is one JSON object, but: {str(error)[:200]}")
    return row if isinstance(row, dict) else _no_object(row, number)


def _no_object(value: Any, number: int) -> Finding:
    return Finding("json", "", number, f"every row is a JSON object, but this one is of type {type(value).__name__}")


def _unique(text: bytes) -> Any:
    """The value, once no object in it has a key twice."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
        return found

    def constant(token: str) -> Any:
        raise ValueError(f"JSON has no {token}")

    return json.loads(text, object_pairs_hook=made, parse_constant=constant)
