"""Rows in the order of a source, in blocks small enough for memory, from any place that was noted before.

Text is read in pieces that are cut at the end of a row, and which pieces there are depends on the file alone: so a run that
goes on from a noted place meets the same blocks as one that came there by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from esteira.batch.files import File, Files
from esteira.errors import DataError
from esteira.family import Finding, Row
from esteira.sources.form import listed

ROWS = 8192
"""Rows of a block. A model's sums may differ in the last bit with the rows beside, so a batch keeps what it began with."""


class Place(NamedTuple):
    """Where in a source the next row stands.

    Attributes:
        file: number of the file, in the order of the names.
        at: offset in its unpacked text where reading starts again, or number of the row group.
        skip: rows behind that offset, or in that group, that were read already.
        row: rows of the whole source that were read.
    """

    file: int = 0
    at: int = 0
    skip: int = 0
    row: int = 0


@dataclass(frozen=True)
class Block:
    """Some rows of one file: a table, or rows one by one where a finding stands for one that could not be read."""

    table: Any = None
    rows: "Sequence[Row | Finding]" = ()

    def __len__(self) -> int:
        return len(self.rows) if self.table is None else int(self.table.num_rows)

    def part(self, start: int, stop: int) -> "Block":
        """Rows from `start` up to `stop`."""
        if self.table is not None:
            return Block(table=self.table.slice(start, stop - start))
        return Block(rows=self.rows[start:stop])


class Chunk(NamedTuple):
    """What is read of a file at once: its rows begin `skip` rows behind `at`."""

    at: int
    skip: int
    block: Block


class Reader:
    """Gives the rows of a source, block by block.

    Args:
        source: its files.
        place: where to begin.
        columns: which of a table are wanted; None for all.
        delimiter: of CSV; empty means a comma, and a tab for `.tsv`.
    """

    def __init__(self, source: Files, place: Place, *, columns: Sequence[str] | None, delimiter: str) -> None:
        self.place = place
        self._source, self._columns, self._delimiter = source, columns, delimiter
        self._chunks = self._all(place)
        self._file, self._chunk, self._used = place.file, Chunk(place.at, place.skip, Block()), 0

    @property
    def file(self) -> File:
        """The file that the last block is of."""
        return self._source.files[self._file]

    def take(self, most: int) -> Block | None:
        """The next rows, at most so many and of one file; None at the end."""
        while self._used == len(self._chunk.block):
            following = next(self._chunks, None)
            if following is None:
                return None
            self._file, self._chunk, self._used = *following, 0
        stop = min(self._used + most, len(self._chunk.block))
        taken = self._chunk.block.part(self._used, stop)
        self.place = Place(self._file, self._chunk.at, self._chunk.skip + stop, self.place.row + len(taken))
        self._used = stop
        return taken

    def _all(self, place: Place) -> Iterator[tuple[int, Chunk]]:
        for number, file in enumerate(self._source.files):
            if number < place.file:
                continue
            first = number == place.file
            for chunk in self._of(file, place.at if first else 0):
                # Only the piece, or group, that was read in part begins with rows that were read.
                seen = place.skip - chunk.skip if first and chunk.at == place.at else 0
                if seen < len(chunk.block):
                    seen = max(0, seen)
                    rest = chunk.block.part(seen, len(chunk.block)) if seen else chunk.block
                    yield number, Chunk(chunk.at, chunk.skip + seen, rest)

    def _of(self, file: File, at: int) -> Iterator[Chunk]:
        where = self._source.where if len(self._source.files) == 1 else f"{self._source.where}/{file.name}"
        if self._source.form == "parquet":
            from esteira.batch import parquet_rows

            return parquet_rows.chunks(file, where, at, self._columns)
        if self._source.form == "json":
            from esteira.batch import json_rows

            return json_rows.chunks(file, where, at)
        from esteira.batch import csv_rows

        return csv_rows.chunks(file, where, at, self._columns, self._delimiter)


def names_of(source: Files, delimiter: str) -> list[str] | None:
    """The columns that all files of a table have; None of JSON, where every row has its own.

    Raises:
        DataError: a file has other columns than the first one.
        SourceError: a file is not what its name says.
    """
    if source.form == "json":
        return None
    found: list[str] = []
    for file in source.files:
        where = source.where if len(source.files) == 1 else f"{source.where}/{file.name}"
        if source.form == "parquet":
            from esteira.batch import parquet_rows

            names = parquet_rows.names(file, where)
        else:
            from esteira.batch import csv_rows

            names = csv_rows.names(file, where, delimiter)
        if found and set(names) != set(found):
            raise DataError(
                f"the files of a folder have the same columns, but {file.name} lacks {listed(sorted(set(found) - set(names)))}"
                f" and adds {listed(sorted(set(names) - set(found)))} beside {source.files[0].name}",
                code="different_columns", where=where, cure="take the odd file out, or give it the same header",
            )  # fmt: skip
        found = found or names
    return found


def most_rows(source: Files) -> int | None:
    """A number of rows that the source does not exceed, exact for most; None where it cannot be told beforehand."""
    total = 0
    for file in source.files:
        if source.form == "parquet":
            from esteira.batch import parquet_rows

            total += parquet_rows.count(file)
        elif file.lines is None:
            return None
        else:
            total += file.lines - (source.form == "csv")
    return total
