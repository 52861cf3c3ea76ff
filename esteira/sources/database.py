"""The rows of a query, by SQLAlchemy; it only reads, and never shows a password."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from esteira.errors import ConfigError, OutsideError, SourceError
from esteira.sources.form import clip, column_names, no_rows, too_many
from esteira.sources.provenance import Provenance, Table, name_of, redact, require_hash
from esteira.sources.values import from_columns


def read_database(uri: str, query: str, max_rows: int, expect_hash: str) -> Table:
    """The rows of `query`, or of what follows `#` in the URI.

    Raises:
        ConfigError: no query, one that writes, no such dialect or driver.
        SourceError: no such database file, or the query fails.
        DataError: no row, too many rows, a name twice, a column of two types.
        Refused: the rows have another content hash than expected.
        OutsideError: the database does not answer.
    """
    url, _, inline = uri.partition("#")
    where = redact(uri)
    query = (query or inline).strip().rstrip(";")
    if not query:
        raise ConfigError(
            "a database source needs a query, but got none",
            code="missing_query",
            where="ingest.query",
            cure=f'--set ingest.query="select ..." or --source "{where}#select ..."',
        )
    if not re.match(r"(select|with|values|table)\b", query, re.IGNORECASE):
        raise ConfigError(
            f"a query only reads (it starts with select, with, values or table), but got {clip(query)!r}",
            code="bad_query",
            where="ingest.query",
            cure="write the query as a select",
        )
    names, rows = _query(url, query, max_rows, where)
    if len(rows) > max_rows:
        too_many(len(rows), max_rows, where)
    notes: list[str] = []
    names = column_names(names, where, notes)
    if not rows:
        raise no_rows(f"the query gave {len(names)} columns and no row", where)
    if not re.search(r"\border\s+by\b", query, re.IGNORECASE):
        notes.append("the query has no ORDER BY: another run may see another order, and so another content hash")
    table = from_columns(names, zip(*rows, strict=True), range(1, len(rows) + 1), "row", where)
    digest, size = hashlib.sha256(), 0
    for row in ([*names], *rows):
        line = json.dumps(list(row), ensure_ascii=False, default=str, separators=(",", ":")).encode() + b"\n"
        digest.update(line)
        size += len(line)
    content_hash = digest.hexdigest()
    require_hash(content_hash, expect_hash, where)
    return Table(
        table,
        Provenance(
            name=name_of(uri),
            source=where,
            data_format="json",
            source_type="database",
            content_hash=content_hash,
            file_size=size,
            query=query,
            notes=tuple(notes),
        ),
    )


def _query(url: str, query: str, max_rows: int, where: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and at most max_rows + 1 rows."""
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    try:
        parsed = sa.make_url(url)
        file = Path((parsed.database or "").removeprefix("file:"))
        if parsed.get_backend_name() == "sqlite" and not file.is_file():  # SQLite would make a new, empty file
            raise SourceError(
                f"the database file must exist, but there is no {file.name!r}",
                code="missing_file",
                where=where,
                cure="check the path: three slashes start a relative one, four an absolute one",
            )
        engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise ConfigError(
            f"a source is a path, file://, s3:// or a SQLAlchemy URL with an installed driver, but: {_first_line(error)}",
            code="bad_source",
            where=where,
            cure="check the scheme, e.g. sqlite:///file.db or postgresql+psycopg2://user@host/database",
        ) from error
    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise OutsideError(
                f"the database must answer, but: {_first_line(error)}",
                code="database_unreachable",
                where=where,
                cure="check host, port, user and password, then run again",
            ) from error
        with connection:
            # The text goes to the driver as it is: neither ':' nor '%' mean anything to us.
            options = connection.execution_options(stream_results=True, no_parameters=True)
            result = options.exec_driver_sql(query)
            return list(result.keys()), [tuple(row) for row in result.fetchmany(max_rows + 1)]
    except DBAPIError as error:
        if error.connection_invalidated:
            raise OutsideError(
                f"the database must answer, but: {_first_line(error)}",
                code="database_unreachable",
                where=where,
                cure="run again",
            ) from error
        raise SourceError(
            f"the query must run, but: {_first_line(error)}",
            code="bad_query",
            where=f"{where}, query {clip(query)!r}",
            cure="check the names of tables and columns",
        ) from error
    finally:
        engine.dispose()


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip().splitlines()
    return clip(re.sub(r"://[^@\s]*@", "://***@", text[0] if text else type(error).__name__), 200)
