"""Where a batch goes: a folder here or a prefix of S3. A file appears there whole or not at all; a journal grows by whole notes."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from esteira import crash, locks, outputs
from esteira.batch.files import inside
from esteira.errors import ConfigError, OutsideError, Refused, SourceError
from esteira.sources import redact, s3
from esteira.sources.provenance import scheme

JOURNAL = "journal.jsonl"
ERRORS = "errors.jsonl"
_OURS = frozenset({JOURNAL, ERRORS, "progress.json", "parts", "errors"})


class Place(Protocol):
    """A folder of results that one run writes at a time.

    Attributes:
        where: for messages.
        grows: whether the errors are one file that grows.
    """

    where: str
    grows: bool

    def alone(self, wait: float = 0.0) -> AbstractContextManager[None]:
        """While the block runs, no other run writes here.

        Raises:
            Refused: another one does, still after so many seconds; or other things lie here.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file, or None."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, over one of the same name."""
        ...

    def note(self, line: bytes, at: int) -> None:
        """Let the journal go on at this offset with this line; what stood behind it was half a note."""
        ...

    def add_errors(self, part: int, lines: bytes, at: int) -> None:
        """Let the errors go on at this offset with those of a part; what stood behind it was never noted."""
        ...


def place_of(uri: str, within: Sequence[str] = ()) -> Place:
    """The place of an address.

    Args:
        uri: a folder, which is made, or `s3://bucket/prefix`.
        within: as for `esteira.batch.files.opened`.

    Raises:
        Refused: it lies outside of `within`.
        ConfigError: it is another kind of address.
    """
    kind = scheme(uri)
    if kind == "sql":
        raise ConfigError(
            "a batch writes into a folder or below an S3 prefix, but got another kind of address",
            code="bad_out", where="--out", cure="name a folder, or s3://BUCKET/PREFIX",
        )  # fmt: skip
    path = inside(uri, within)
    return Folder(path) if kind == "file" else Bucket(uri)


class Folder:
    """A folder of this machine."""

    grows = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = redact(str(path))

    @contextlib.contextmanager
    def alone(self, wait: float = 0.0) -> Iterator[None]:
        with self._writing():
            self._path.mkdir(parents=True, exist_ok=True)
            others = sorted({entry.name for entry in self._path.iterdir() if entry.name[0] != "."} - _OURS)
            if others or ((self._path / "parts").exists() and not (self._path / JOURNAL).exists()):
                raise Refused(
                    f"a batch goes into a new folder or goes on in its own, but here lies {(others or ['parts'])[0]!r}",
                    code="out_not_empty", where=self.where, cure="give another --out",
                )  # fmt: skip
        with locks.hold(self._path / ".state", "batch", what=f"a batch into {self._path.name}", wait=wait):
            for left in (*self._path.glob(".*.tmp"), *self._path.glob("parts/.*.tmp")):  # of a run that was killed
                left.unlink(missing_ok=True)
            yield

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        try:
            return (self._path / name).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        path = self._path / name
        outputs.write(path.parent, {path.name: data})
        with self._writing():
            # The name itself must be on the disk before a journal speaks of it.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def note(self, line: bytes, at: int) -> None:
        half = len(line) // 2
        self._append(JOURNAL, line[:half], at, sync=False)
        crash.point("batch.note_half_written")
        self._append(JOURNAL, line[half:], at + half)

    def add_errors(self, part: int, lines: bytes, at: int) -> None:
        half = len(lines) // 2
        self._append(ERRORS, lines[:half], at, sync=False)
        crash.point("batch.errors_half_written")
        self._append(ERRORS, lines[half:], at + half)

    def _append(self, name: str, data: bytes, at: int, *, sync: bool = True) -> None:
        with self._writing(), open(os.open(self._path / name, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:  # noqa: PTH123
            stream.truncate(at)
            stream.seek(at)
            stream.write(data)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
            raise OutsideError(
                f"a batch must be able to write its results, but: {error.strerror or error}",
                code="disk_full" if full else "cannot_write", where=self.where,
                cure="make room or give the right to write there, then run the same command again: it goes on",
            ) from error  # fmt: skip


class Bucket:
    """A prefix of S3, where an object is written whole by itself and nothing can grow: the errors of each part are an object."""

    grows = False

    def __init__(self, uri: str) -> None:
        self.where = uri.rstrip("/")
        self._bucket, prefix = s3.split(self.where)
        self._prefix = f"{prefix}/"
        self._client: Any = None
        self._journal = b""

    @contextlib.contextmanager
    def alone(self, wait: float = 0.0) -> Iterator[None]:
        with s3.failures(self.where):
            self._client = s3.connect()
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        if found.get("KeyCount") and self.size(JOURNAL) is None:
            raise Refused(
                f"a batch goes below a new prefix or goes on in its own, but here lies {found['Contents'][0]['Key']!r}",
                code="out_not_empty", where=self.where, cure="give another --out",
            )  # fmt: skip
        yield

    def read(self, name: str) -> bytes | None:
        try:
            with s3.failures(f"{self.where}/{name}"):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                with answer["Body"] as stream:
                    data = bytes(stream.read())
        except SourceError as error:
            if error.code != "missing_file":
                raise
            return None
        if name == JOURNAL:
            self._journal = data
        return data

    def size(self, name: str) -> int | None:
        try:
            with s3.failures(f"{self.where}/{name}"):
                return int(self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)["ContentLength"])
        except SourceError as error:
            if error.code != "missing_file":
                raise
            return None

    def put(self, name: str, data: bytes) -> None:
        if name == JOURNAL:
            self._journal = data
        with s3.failures(f"{self.where}/{name}"):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def note(self, line: bytes, at: int) -> None:
        self.put(JOURNAL, self._journal[:at] + line)

    def add_errors(self, part: int, lines: bytes, at: int) -> None:
        if lines:
            self.put(f"errors/{part:05d}.jsonl", lines)
