"""What a table that was read is called, and the words it is cited by: no secret, no wall time, no folder of this machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from esteira.errors import ConfigError, Refused

if TYPE_CHECKING:
    import pyarrow as pa

_SECRETS = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Bytes:
    """One file that was read: its name inside the source, its SHA-256 in hexadecimal and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Provenance:
    """Where a table came from, without secrets, wall times or absolute paths.

    Attributes:
        name: what people call the data set; the file's or folder's stem.
        source: redacted URI; a local path is relative to the working directory, else its last two parts.
        data_format: `csv`, `json` or `parquet`; rows of a database count as `json`, which is how they are hashed.
        source_type: `upload` (a file or folder), `api` (S3) or `database`.
        content_hash: SHA-256 of the bytes; of the sorted lines "name sha256" for a folder; of the rows as JSON lines for SQL.
        file_size: bytes read, before decompression.
        query: the SQL text, else empty.
        notes: what was decided while reading, for people.
    """

    name: str
    source: str
    data_format: str
    source_type: str
    content_hash: str
    file_size: int
    files: tuple[Bytes, ...] = ()
    query: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """An Arrow table in source order, and its provenance."""

    data: "pa.Table"
    provenance: Provenance


def redact(uri: str) -> str:
    """The URI without passwords and without the folders of this machine.

    >>> redact("postgresql+psycopg2://ana:s3cret@db:5432/shop?sslmode=require&password=x")
    'postgresql+psycopg2://ana:***@db:5432/shop?sslmode=require&password=***'
    >>> redact("/home/ana/project/tables/churn.csv")
    '.../tables/churn.csv'
    """
    kind = scheme(uri, checked=False)
    if kind == "s3":
        return uri
    if kind == "file":
        absolute = local_path(uri).absolute()
        try:
            return absolute.relative_to(Path.cwd()).as_posix()
        except ValueError:
            return f".../{'/'.join(absolute.parts[1:][-2:])}"
    parts = urlsplit(uri.partition("#")[0])
    if parts.scheme.startswith("sqlite"):
        return f"{parts.scheme}:///{redact(parts.path[1:]) if parts.path[1:] else ''}"
    login, at, host = parts.netloc.rpartition("@")
    login = f"{login.partition(':')[0]}:***" if ":" in login else login
    pairs = [(key, "***" if _SECRETS.search(key) else value) for key, value in parse_qsl(parts.query)]
    return urlunsplit((parts.scheme, login + at + host, parts.path, urlencode(pairs, safe="*/:"), ""))


def scheme(uri: str, *, checked: bool = True) -> str:
    """`file`, `s3` or `sql`.

    Raises:
        ConfigError: the URI is empty or of a scheme that is not read (only when checked).
    """
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", uri)
    if match is None:
        if checked and not uri.strip():
            raise ConfigError(
                "a source is a path or a URI, but got an empty text",
                code="bad_source",
                where="--source",
                cure="name a file, a folder, s3://bucket/key or a SQLAlchemy URL",
            )
        return "file"
    scheme = match[1].lower()
    if scheme in {"file", "s3"}:
        return scheme
    if checked and scheme in {"http", "https", "ftp", "gs", "abfs", "az", "hdfs"}:
        raise ConfigError(
            f"a source is a path, file://, s3:// or a SQLAlchemy URL, but got {scheme}://",
            code="bad_source",
            where="--source",
            cure="download the file first, then name it",
        )
    return "sql"


def local_path(uri: str) -> Path:
    """The path of a file URI or of a plain path."""
    return Path(unquote(urlsplit(uri).path) if uri.lower().startswith("file://") else uri).expanduser()


def name_of(uri: str) -> str:
    """What people call the data set: the file's stem, or its folder's where the file is just `data`."""
    path = local_path(uri) if scheme(uri) == "file" else Path(urlsplit(uri.partition("#")[0]).path)
    parts = [part.split(".")[0] for part in path.absolute().parts if part.split(".")[0]]
    stem = parts[-1] if parts else "data"
    return parts[-2] if stem == "data" and len(parts) > 1 else stem


def require_hash(found: str, expected: str, where: str) -> None:
    """Refuse bytes that are not those that were registered; an empty expectation takes any.

    Raises:
        Refused: the hashes differ.
    """
    if expected and found != expected.lower():
        raise Refused(
            f"the source must have content hash {expected}, but has {found}: its bytes have been changed",
            code="content_hash",
            where=where,
            cure="restore the file that was registered, or register this one as a new data set",
        )
