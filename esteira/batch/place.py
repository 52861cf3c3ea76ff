"""Where a batch goes: a folder here or a prefix of S3. A file appears there whole or not at all; a journal grows by whole notes."""

import base64
import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
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
_STATE = ".state"
_CHANGED = frozenset({404, 409, 412})  # S3 says: it is gone, is being written, is another one
# What is opened by its name; everything else is renamed into its place, which replaces a link and does not follow it.
_OPENED = (*sorted(_OURS), _STATE, f"{_STATE}/locks", f"{_STATE}/locks/batch.lock")


def errors_of(part: int) -> str:
    """Where the errors of a part are, in a place where nothing grows."""
    return f"errors/{part:05d}.jsonl"


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
            Refused: code `locked`, another one does, still after so many seconds; or other things lie here, or links.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file, or None."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None."""
        ...

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether there is a file of this name, and it is the one with so many bytes and this hash."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, over one of the same name.

        Raises:
            Refused: code `locked`; it is the journal, and another run has written it since this one read it.
        """
        ...

    def must_be_ours(self) -> None:
        """Before a part is written: the journal is still the one that this run knows.

        Raises:
            Refused: as `put`.
        """
        ...

    def note(self, line: bytes, at: int) -> None:
        """Let the journal go on at this offset with this line; what stood behind it was half a note.

        Raises:
            Refused: as `put`.
        """
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
            for name in _OPENED:
                if (self._path / name).is_symlink():
                    raise Refused(
                        f"a batch writes into its own folder, but {name} in it is a link to another place",
                        code="linked", where=self.where, cure="take the link away, or give another --out",
                    )  # fmt: skip
        with locks.hold(self._path / _STATE, "batch", what=f"a batch into {self._path.name}", wait=wait):
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

    def holds(self, name: str, size: int, sha256: str) -> bool:
        if self.size(name) != size:
            return False
        with (self._path / name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256

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

    def must_be_ours(self) -> None:
        """It is: a run has the folder for itself."""

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
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with self._writing(), open(os.open(self._path / name, flags, 0o666), "r+b") as stream:  # noqa: PTH123
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
    """A prefix of S3, where an object is written whole by itself and nothing can grow: the errors of each part are an object.

    The journal is written on condition that it is still the one that was read, so of two runs one goes on. Storage must know
    such conditions (`If-Match` and `If-None-Match` of a PUT).
    """

    grows = False

    def __init__(self, uri: str) -> None:
        self.where = uri.rstrip("/")
        self._bucket, prefix = s3.split(self.where)
        self._prefix = f"{prefix}/"
        self._journal = b""
        self._tag: str | None = None  # of the journal; None where there is none
        self._run = os.urandom(16).hex()

    @cached_property
    def _client(self) -> Any:
        return s3.connect()

    @contextlib.contextmanager
    def alone(self, wait: float = 0.0) -> Iterator[None]:
        with s3.failures(self.where):
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
            self._journal, self._tag = data, str(answer["ETag"])
        return data

    def size(self, name: str) -> int | None:
        head = self._head(name)
        return None if head is None else int(head["ContentLength"])

    def holds(self, name: str, size: int, sha256: str) -> bool:
        head = self._head(name, ChecksumMode="ENABLED")
        if head is None or head["ContentLength"] != size:
            return False
        if kept := head.get("ChecksumSHA256"):
            return str(kept) == base64.b64encode(bytes.fromhex(sha256)).decode()
        return hashlib.sha256(self.read(name) or b"").hexdigest() == sha256  # a storage that keeps no such sums

    def _head(self, name: str, **words: str) -> Any:
        """What is known of an object, or None."""
        try:
            with s3.failures(f"{self.where}/{name}"):
                return self._client.head_object(Bucket=self._bucket, Key=self._prefix + name, **words)
        except SourceError as error:
            if error.code != "missing_file":
                raise
            return None

    def put(self, name: str, data: bytes) -> None:
        if name == JOURNAL:
            self._put_journal(data)
            return
        with s3.failures(f"{self.where}/{name}"):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, ChecksumAlgorithm="SHA256")

    def must_be_ours(self) -> None:
        head = self._head(JOURNAL)
        if head is None or str(head["ETag"]) != self._tag:
            raise self._taken()

    def note(self, line: bytes, at: int) -> None:
        self._put_journal(self._journal[:at] + line)

    def add_errors(self, part: int, lines: bytes, at: int) -> None:
        if lines:
            self.put(errors_of(part), lines)

    def _put_journal(self, data: bytes) -> None:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if self._tag is None else {"IfMatch": self._tag}
        with s3.failures(f"{self.where}/{JOURNAL}"):
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + JOURNAL, Body=data, Metadata={"run": self._run}, **condition
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in _CHANGED:
                    raise
                # A request whose answer was lost is sent again by itself, and then meets what it wrote.
                answer = self._head(JOURNAL)
                if answer is None or answer["ETag"] == self._tag or answer["Metadata"].get("run") != self._run:
                    raise self._taken() from error
        self._journal, self._tag = data, str(answer["ETag"])

    def _taken(self) -> Refused:
        return Refused(
            "a batch may be under way once at a time, but another run writes its journal",
            code="locked", where=self.where, cure="wait until it ends; the same command goes on then",
        )  # fmt: skip
