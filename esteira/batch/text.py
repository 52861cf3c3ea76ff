"""Text in pieces that end where a row ends. The pieces follow from the bytes and the place where reading starts, nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from esteira.batch.files import File, must_be_unchanged, unpacked
from esteira.errors import DataError, SourceError

PIECE = 4 << 20
"""Bytes of a piece, before it is cut at the end of a row."""
LONGEST = 64 << 20
"""Bytes of a row at most."""
_BOM = b"\xef\xbb\xbf"


class Text:
    """An open text file. Offsets count unpacked bytes from the file's first.

    Attributes:
        head: its first bytes, up to PIECE of them, without the mark of UTF-8.
        start: where `head` begins.
    """

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream, self._where = stream, where
        head = _read(stream, PIECE)
        self.start = len(_BOM) if head.startswith(_BOM) else 0
        head = head[self.start :]
        _must_be_text(head, where)
        # Line ends of old Macintosh files.
        self._mac = b"\n" not in head and b"\r" in head
        self.head = head.replace(b"\r", b"\n") if self._mac else head

    def pieces(self, at: int, end: Callable[[bytes], int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the pieces from an offset on.

        Args:
            at: where a row starts.
            end: where the last whole row of some bytes ends; 0 when none does.

        Raises:
            DataError: a row is too long to be one.
        """
        self._stream.seek(at)
        kept, wanted = b"", PIECE
        while True:
            more = _read(self._stream, wanted - len(kept))
            data = kept + (more.replace(b"\r", b"\n") if self._mac else more)
            if not data:
                return
            last = len(data) < wanted
            cut = len(data) if last else end(data)
            if not cut:
                if wanted >= LONGEST:
                    raise DataError(
                        f"a row has {LONGEST:,} bytes at most, but one that starts at byte {at:,} has more",
                        code="row_too_long", where=self._where, cure="look there for a quote that is never closed",
                    )  # fmt: skip
                kept, wanted = data, wanted + PIECE
                continue
            yield at, data[:cut]
            if last:
                return
            at, kept, wanted = at + cut, data[cut:], PIECE


@contextmanager
def open_text(file: File, where: str) -> Iterator[Text]:
    """The file's text, unpacked.

    Raises:
        SourceError: it is another thing than text, or no whole gzip file.
        Refused: it is not the file that was hashed.
    """
    must_be_unchanged(file, where)
    with unpacked(file.path, file.name, where) as stream:
        yield Text(stream, where)


def last_line(data: bytes) -> int:
    """Where the last whole line ends; 0 when none does."""
    return data.rfind(b"\n") + 1


def _read(stream: IO[bytes], size: int) -> bytes:
    """So many bytes, fewer only at the end: what is packed gives less at a time."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _must_be_text(head: bytes, where: str) -> None:
    if head[:4] not in {b"PAR1", b"PK\x03\x04"} and b"\0" not in head[:65536]:
        return
    found = {b"PAR1": "Parquet", b"PK\x03\x04": "a ZIP archive or a spreadsheet"}.get(
        head[:4], "binary, or UTF-16 text"
    )
    raise SourceError(
        f"this file must be UTF-8 text as its name says, but it is {found}",
        code="not_text", where=where, cure="give the file its true ending, or convert it, e.g. iconv -f UTF-16 -t UTF-8",
    )  # fmt: skip
