"""Rules of form that every source keeps, in one wording: column names, a row at least, limits; and how names are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from esteira.errors import DataError, SourceError

ROW_NUMBER = "__row__"
_NAMES_SHOWN = 8
FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}


def suffix(name: str) -> str:
    """The ending that tells the format, without `.gz`, in lower case."""
    return Path(name.lower().removesuffix(".gz")).suffix


def column_names(header: Sequence[str], where: str, notes: list[str]) -> list[str]:
    """Column names, trimmed; an unnamed one becomes `unnamed_<position>`.

    Raises:
        DataError: two columns have the same name, or one has a name that is ours.
    """
    names = [name.strip() for name in header]
    seen: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if not name:
            names[position - 1] = name = f"unnamed_{position}"
            notes.append(f"column {position} has no name; it is called {name!r}")
        if name in seen:
            raise DataError(
                f"column names are unique, but {clip(name)!r} is the name of columns {seen[name]} and {position}",
                code="duplicated_column",
                where=f"{where}, header",
                cure="rename or remove one of them",
            )
        if name == ROW_NUMBER:
            raise DataError(
                f"the column name {ROW_NUMBER!r} is Esteira's own, but column {position} has it",
                code="reserved_column",
                where=f"{where}, header",
                cure="rename the column",
            )
        seen[name] = position
    return names


def too_large(where: str, max_bytes: int) -> NoReturn:
    """Refuse a source of too many bytes."""
    raise DataError(
        f"a source may have {max_bytes:,} bytes at most (after decompression too), but this one has more",
        code="too_many_bytes",
        where=where,
        cure="raise the limit with --set ingest.max_bytes=N, or take fewer rows",
    )


def too_many(rows: int, max_rows: int, where: str) -> NoReturn:
    """Refuse a table of too many rows; max_rows + 1 means that reading stopped there."""
    raise DataError(
        f"a table may have {max_rows:,} rows at most, but this one has {'at least ' if rows == max_rows + 1 else ''}{rows:,}",
        code="too_many_rows",
        where=where,
        cure="raise the limit with --set ingest.max_rows=N, or take a sample",
    )


def clip(text: str, length: int = 60) -> str:
    """The text, cut to a length that a message can carry."""
    return text if len(text) <= length else text[: length - 3] + "..."


def listed(names: Sequence[str]) -> str:
    """Names for a message: quoted, eight at most."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(repr(clip(name)) for name in names[:_NAMES_SHOWN]) + more) if names else "nothing"


def no_rows(found: str, where: str) -> DataError:
    """The refusal of a table that has columns and no row."""
    return DataError(
        f"a table needs at least one row, but {found}",
        code="header_only",
        where=where,
        cure="check how it was written, or name another source",
    )


def not_utf8(data: bytes, where: str) -> SourceError:
    """The refusal of bytes that are no UTF-8, with the first one that is not."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        around = data[max(0, error.start - 12) : error.start + 12].decode("latin-1").strip()
        return SourceError(
            f"text must be UTF-8, but byte {error.start:,} is 0x{data[error.start]:02x} (read as Latin-1: {around!r})",
            code="not_utf8",
            where=f"{where}, line {line}",
            cure="convert the file, e.g. iconv -f ISO-8859-1 -t UTF-8",
        )
    return SourceError("the file must be a CSV in UTF-8", code="bad_csv", where=where, cure="check the file")
