"""The bytes of a source before anyone looks into them: one file, or the tables of a folder, here or on S3."""

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esteira.errors import SourceError
from esteira.sources import s3
from esteira.sources.form import FORMATS, listed, suffix, too_large
from esteira.sources.provenance import Bytes, local_path, redact


@dataclass(frozen=True)
class Blob:
    """One file of a source: its name and its bytes."""

    name: str
    data: bytes = field(repr=False)

    @property
    def named(self) -> Bytes:
        """What provenance keeps of it."""
        return Bytes(self.name, hashlib.sha256(self.data).hexdigest(), len(self.data))


def blobs_of(uri: str, kind: str, max_bytes: int) -> tuple[list[Blob], bool, list[str]]:
    """The bytes of a source, whether it is a folder, and notes."""
    if kind == "s3":
        fetched, ignored = s3.fetch(uri, max_bytes)
        whole = uri.endswith("/")
        blobs = [Blob(name, data) for name, data in fetched]
        return _some(blobs, uri) if whole else blobs, whole, _left_out(ignored)
    path = local_path(uri)
    where = redact(uri)
    try:
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
            taken = [name for name in names if suffix(name) in FORMATS and (path / name).is_file()]
            blobs, budget = [], max_bytes
            for name in taken:
                blobs.append(_file_blob(path / name, name, budget, max_bytes, where))
                budget -= len(blobs[-1].data)
            return _some(blobs, where), True, _left_out([name for name in names if name not in taken])
        return [_file_blob(path, path.name, max_bytes, max_bytes, where)], False, []
    except FileNotFoundError as error:
        near = _near(path)
        raise SourceError(
            f"the source must exist, but there is no file or folder {path.name!r}",
            code="missing_file",
            where=where,
            cure=near or "check the path; it is taken from the working directory",
        ) from error
    except OSError as error:
        raise SourceError(
            f"the source must be readable, but: {error.strerror or error}",
            code="unreadable_file",
            where=where,
            cure="check the path and its permissions",
        ) from error


def _file_blob(path: Path, name: str, budget: int, max_bytes: int, where: str) -> Blob:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b"" if size > budget else stream.read(budget + 1)
    if size > budget or len(data) > budget:
        too_large(where, max_bytes)
    return Blob(name, data)


def _near(path: Path) -> str:

    if not path.parent.is_dir():
        return f"the folder {path.parent.name!r} does not exist either; the path is taken from the working directory"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""


def _left_out(names: Sequence[str]) -> list[str]:
    return [f"left out, no table: {listed(names)}"] if names else []


def _some(blobs: list[Blob], where: str) -> list[Blob]:
    if not blobs:
        raise SourceError(
            "a folder must hold at least one table, but found none",
            code="empty_folder",
            where=where,
            cure=f"put files ending in {', '.join(sorted(FORMATS))} (or these with .gz) there",
        )
    return blobs


def content_hash_of(files: Sequence[Bytes], whole: bool) -> str:
    """SHA-256 of the one file, or of the sorted lines "name sha256" of a folder."""
    if not whole:
        return files[0].sha256
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
