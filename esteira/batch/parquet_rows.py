"""Parquet as blocks of tables in our five types of columns, a row group after the other and never a whole one in memory."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from esteira.batch.blocks import Block, Chunk
from esteira.batch.files import File, must_be_unchanged
from esteira.errors import ConfigError, DataError, SourceError
from esteira.sources.form import column_names
from esteira.sources.parquet_table import typed

_BATCH = 65_536
_INDEX = re.compile(r"__index_level_\d+__")


def names(file: File, where: str) -> list[str]:
    """The columns, without the index that pandas writes.

    Raises:
        DataError: a name stands twice.
        SourceError: it is no whole Parquet file.
    """
    with _opened(file, where) as parquet:
        return column_names([name for name in parquet.schema_arrow.names if not _INDEX.fullmatch(name)], where, [])


def count(file: File) -> int:
    """Its rows."""
    with _opened(file, file.name) as parquet:
        return int(parquet.metadata.num_rows)


def chunks(file: File, where: str, at: int, columns: Sequence[str] | None) -> Iterator[Chunk]:
    """The pieces of each row group from that of number `at` on.

    Raises:
        DataError: a column that is wanted is nested.
        SourceError: it is no whole Parquet file.
    """
    import pyarrow as pa

    with _opened(file, where) as parquet:
        own = [name for name in parquet.schema_arrow.names if not _INDEX.fullmatch(name)]
        # A name may have been trimmed, or made for one that had none.
        given = dict(zip(column_names(own, where, []), own, strict=True))
        wanted = [name for name in (given if columns is None else columns) if name in given]
        for group in range(at, parquet.num_row_groups):
            skip = 0
            for batch in parquet.iter_batches(_BATCH, [group], [given[name] for name in wanted], use_threads=False):
                table = pa.Table.from_batches([batch])
                cells = [typed(name, table.column(given[name]), where) for name in wanted]
                yield Chunk(group, skip, Block(table=pa.table(cells, names=wanted)))
                skip += batch.num_rows


@contextmanager
def _opened(file: File, where: str) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed here",
            code="no_pyarrow", where=where, cure="use the pipeline image, or give CSV or JSON lines and --format jsonl",
        ) from error  # fmt: skip
    must_be_unchanged(file, where)
    try:
        with pq.ParquetFile(file.path) as parquet:
            yield parquet
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"the file must be Parquet, but: {str(error).splitlines()[0][:200]}",
            code="bad_parquet", where=where, cure="copy the file again (it may be cut off), or give it its true ending",
        ) from error  # fmt: skip
