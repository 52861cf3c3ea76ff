"""The files of a batch: found, held against the folders that are allowed, named by their hash. No table is opened here.

Files of S3 are first copied to a temporary folder of this machine, so that a run sees one state of them from end to end.
"""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from esteira.errors import ConfigError, DataError, Refused, SourceError
from esteira.sources import redact, s3
from esteira.sources.blobs import Blob, content_hash_of
from esteira.sources.form import FORMATS, suffix
from esteira.sources.formats import format_of
from esteira.sources.provenance import Bytes, local_path, scheme

_BLOCK = 4 << 20
_BOM = b"\xef\xbb\xbf"

Watch = Callable[[], object]
"""Called now and then; what it raises ends the work."""


@dataclass(frozen=True)
class File:
    """One file of a source.

    Attributes:
        name: inside the source.
        path: where it lies on this machine.
        lines: of its text, unpacked, an unended last one too; its rows are no more. None where lines bound nothing: of Parquet, and
            of a JSON array, which may have all its objects in one.
        stamp: size and time of change when it was hashed; another one later means that it was changed.
    """

    name: str
    path: Path
    named: Bytes
    lines: int | None
    stamp: tuple[int, int]


@dataclass(frozen=True)
class Files:
    """A source of one format.

    Attributes:
        form: `csv`, `json` or `parquet`.
        where: its address for messages, without secrets and folders of this machine.
        content_hash: as `esteira.sources.fingerprint` gives it.
    """

    form: str
    where: str
    content_hash: str
    files: tuple[File, ...]


@contextmanager
def opened(uri: str, *, within: Sequence[str] = (), watch: Watch = lambda: None) -> Iterator[Files]:
    """The files of a source; copies of S3's are gone afterwards.

    Args:
        uri: a path, `file://` or `s3://bucket/key`; a folder's tables are taken in the order of their names.
        within: folders and `s3://bucket/prefix/` that it may lie in; empty for anywhere.
        watch: called while files are copied and hashed, which may take long; also from other threads.

    Raises:
        SourceError: it is missing, holds no table, or is not what it claims to be.
        DataError: its files have several formats.
        Refused: it lies outside of `within`, also by a link.
        ConfigError: it is no file, folder or S3 address.
        OutsideError: S3 does not answer.
        Exception: what `watch` raises.
    """
    kind = scheme(uri)
    if kind == "sql":
        raise ConfigError(
            "a batch reads files, but the source is a database",
            code="bad_source", where=redact(uri), cure="export the rows to Parquet, CSV or JSON lines first",
        )  # fmt: skip
    if kind == "file":
        path = inside(uri, within)
        yield _files(path, _listed(path, redact(uri), within), redact(uri), watch)
        return
    inside(uri, within)
    with tempfile.TemporaryDirectory(prefix="esteira-batch-") as folder:
        copies = _copied(uri, Path(folder), watch)
        yield _files(Path(folder), copies, uri, watch, whole=uri.endswith("/"))


def inside(uri: str, within: Sequence[str]) -> Path:
    """The real path of a local address (links followed), or the address of S3 as a path, once it is allowed.

    Raises:
        Refused: code `outside_roots`.
        ConfigError: an address of S3 with a segment `.` or `..`, which some storages take as a way up.
    """
    if scheme(uri) == "s3":
        if not {".", ".."}.isdisjoint(uri.split("/")):
            raise ConfigError(
                f"an S3 address names its key in full, but got {uri[:200]!r}",
                code="bad_source", where=uri[:200], cure="write it without the segments '.' and '..'",
            )  # fmt: skip
        roots = [f"{root.rstrip('/')}/" for root in within if root.startswith("s3://")]
        if within and not any(uri.startswith(root) for root in roots):
            raise _outside(uri)
        return Path(uri)
    path = Path(os.path.realpath(local_path(uri)))
    if within and not any(
        path.is_relative_to(os.path.realpath(root)) for root in within if not root.startswith("s3://")
    ):
        raise _outside(redact(uri))
    return path


def _outside(where: str) -> Refused:
    return Refused(
        "a batch reads and writes below the folders that it may use, but this address leaves them",
        code="outside_roots", where=where, cure="ESTEIRA_BATCH_ROOTS names the folders; links out of them do not count",
    )  # fmt: skip


def _listed(path: Path, where: str, within: Sequence[str]) -> list[tuple[str, Path]]:
    try:
        if not path.is_dir():
            path.stat()
            return [(path.name, path)]
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        taken = [(name, inside(str(path / name), within)) for name in names if suffix(name) in FORMATS]
    except FileNotFoundError as error:
        raise SourceError(
            f"the source must exist, but there is no file or folder {path.name!r}",
            code="missing_file", where=where, cure="check the path; it is taken from the working directory",
        ) from error  # fmt: skip
    except OSError as error:
        raise _unreadable(where, error) from error
    taken = [(name, found) for name, found in taken if found.is_file()]
    if not taken:
        raise SourceError(
            "a folder must hold at least one table, but found none",
            code="empty_folder", where=where, cure=f"put files ending in {', '.join(sorted(FORMATS))} (or these with .gz) there",
        )  # fmt: skip
    return taken


def _copied(uri: str, folder: Path, watch: Watch) -> list[tuple[str, Path]]:
    with s3.failures(uri):
        client = s3.connect()
        bucket, keys, _ = s3.find(client, uri)
        copies = []
        for number, (name, key) in enumerate(keys):
            # A key may be no name of a file here.
            copies.append((name, folder / f"{number:06d}"))
            client.download_file(bucket, key, str(copies[-1][1]), Callback=lambda _: watch())
    if not copies:
        raise SourceError(
            "a folder must hold at least one table, but found none",
            code="empty_folder", where=uri, cure=f"put files ending in {', '.join(sorted(FORMATS))} (or these with .gz) there",
        )  # fmt: skip
    return copies


def _files(
    path: Path, listed: Sequence[tuple[str, Path]], where: str, watch: Watch, *, whole: bool | None = None
) -> Files:
    whole = path.is_dir() if whole is None else whole
    try:
        forms = {name: _form(name, found) for name, found in listed}
        if len(set(forms.values())) > 1:
            raise DataError(
                f"the files of a folder have one format, but found {', '.join(sorted(set(forms.values())))}",
                code="mixed_formats", where=where, cure="keep one format a folder, or name one file",
            )  # fmt: skip
        files = tuple(_measured(name, found, forms[name], where, watch) for name, found in listed)
    except OSError as error:
        raise _unreadable(where, error) from error
    return Files(
        form=next(iter(forms.values())),
        where=where,
        content_hash=content_hash_of([file.named for file in files], whole),
        files=files,
    )


def _form(name: str, path: Path) -> str:
    with path.open("rb") as stream:
        return format_of(Blob(name, stream.read(4)))


def _measured(name: str, path: Path, form: str, where: str, watch: Watch) -> File:
    """The file with its hash, and the number of its lines, which bounds the number of its rows."""
    digest, size, stamp = hashlib.sha256(), 0, _stamp(path)
    with path.open("rb") as stream:
        count = _Lines()
        plain = form != "parquet" and not name.lower().endswith(".gz")
        while block := stream.read(_BLOCK):
            watch()
            digest.update(block)
            size += len(block)
            if plain:
                count.add(block)
    if form != "parquet" and not plain:
        with unpacked(path, name, f"{where}, {name}") as text:
            while block := text.read(_BLOCK):
                watch()
                count.add(block)
    lines = None if form == "parquet" or (form == "json" and count.begins == b"[") else count.found
    return File(name, path, Bytes(name, digest.hexdigest(), size), lines, stamp)


class _Lines:
    """Counts lines of text that comes in pieces, by the line ends of any machine.

    Attributes:
        begins: the first sign that is no blank.
    """

    def __init__(self) -> None:
        self.begins = b""
        self._ends = 0
        self._open = False

    def add(self, block: bytes) -> None:
        if not self.begins:
            self.begins = block.removeprefix(_BOM).lstrip()[:1]
        self._ends += block.count(b"\n")
        if b"\r" in block:
            # A pair that lies in two pieces counts twice: what is wanted is a number that the rows do not exceed.
            self._ends += block.count(b"\r") - block.count(b"\r\n")
        self._open = not block.endswith((b"\n", b"\r"))

    @property
    def found(self) -> int:
        return self._ends + self._open


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def must_be_unchanged(file: File, where: str) -> None:
    """Refuse a file that is not the one that was hashed.

    Raises:
        Refused: code `source_changed`.
        SourceError: it is gone.
    """
    try:
        stamp = _stamp(file.path)
    except OSError as error:
        raise _unreadable(where, error) from error
    if stamp != file.stamp:
        raise Refused(
            f"a source stays as it is while it is read, but {file.name!r} was changed",
            code="source_changed", where=where, cure="run again, into a new folder",
        )  # fmt: skip


@contextmanager
def unpacked(path: Path, name: str, where: str) -> Iterator[IO[bytes]]:
    """The file's bytes as a stream, unpacked where its name ends in `.gz`; memory stays small.

    Raises:
        SourceError: it is no whole gzip file.
    """
    with path.open("rb") as stream:
        try:
            if name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=stream) as packed:
                    yield packed  # type: ignore[misc]  # it is a stream of bytes in all but its declared type
            else:
                yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(
                f"a file that ends in .gz must be a whole gzip file, but: {error}",
                code="bad_gzip", where=where, cure="copy the file again (it may be cut off), or take .gz out of its name",
            ) from error  # fmt: skip


def _unreadable(where: str, error: OSError) -> SourceError:
    return SourceError(
        f"the source must be readable, but: {error.strerror or error}",
        code="unreadable_file", where=where, cure="check the path and its permissions",
    )  # fmt: skip
