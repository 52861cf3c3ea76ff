"""Keeps the last requests of each line as they came, where ESTEIRA_REQUEST_LOG asks for it, so that a candidate is rehearsed with them.

The rows are the callers' own data: the file is the owner's alone, and nothing is kept unless somebody asked for it.
"""

import contextlib
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

_log = logging.getLogger("serving")
FOLDER = "requests"
"""Folder below `$ESTEIRA_HOME`; a line's requests lie in `LINE.jsonl`, `{"at", "request_id", "unit"?, "rows"}` a line, newest last."""
MOST_BODY = 50_000
"""Bytes of a body from which it is not kept."""

_Kept = tuple[float, bytes, bytes | None, bytes]
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


class RequestLog:
    """A ring of requests on disk, written by all workers of a service. `put` never blocks and never raises; a thread writes.

    Args:
        home: `$ESTEIRA_HOME`.
        most: requests of a line; the file holds up to twice as many a serving process.
        period: seconds between two writes.
    """

    def __init__(self, home: Path, most: int, *, period: float = 0.5) -> None:
        self._folder = home / FOLDER
        self._most = most
        self._period = period
        self._waiting: dict[str, deque[_Kept]] = {}
        self._held: dict[str, int] = {}  # lines of the files, as far as we know
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def put(self, line: str, request_id: bytes, unit: bytes | None, body: bytes) -> None:
        """Keep an answered request; one that is very large is not. Where they come faster than they are written, the oldest goes."""
        if len(body) > MOST_BODY:
            return
        waiting = self._waiting.get(line)
        if waiting is None:
            waiting = self._waiting[line] = deque(maxlen=min(self._most, 5000))
        waiting.append((datetime.now(UTC).timestamp(), request_id, unit, body))

    def start(self) -> None:
        """Start the thread; what a kill left half written goes first."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        told = last = False
        with contextlib.suppress(OSError):
            self.sweep()
        while not last:
            last = self._stop.wait(self._period)
            try:
                self.write()
                told = False
            except Exception as error:  # noqa: BLE001 - what is kept for a rehearsal must not stop because one write failed
                if not told:
                    told = True
                    why = error.strerror if isinstance(error, OSError) else type(error).__name__
                    _log.warning("requests are not kept for rehearsals: %s", why)

    def write(self) -> None:
        """Write what waits now. Not from two threads at once.

        Raises:
            OSError: it cannot be written; what waited is gone.
        """
        for line, waiting in list(self._waiting.items()):
            some = [waiting.popleft() for _ in range(len(waiting))]
            if some:
                self._append(line, [_line(one) for one in some])

    def sweep(self) -> None:
        """Remove what a kill left of shortening a file: it holds rows as the file does, and nobody would look for it.

        Raises:
            OSError: it cannot be removed.
        """
        for left in self._folder.glob(".*.tmp"):
            file = left.with_name(left.name[1:].partition(".jsonl")[0] + ".jsonl")
            # Without the file nobody is about to shorten it.
            with _locked(file) if file.exists() else contextlib.nullcontext():
                left.unlink(missing_ok=True)

    def _append(self, line: str, lines: Sequence[bytes]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{line}.jsonl"
        with _locked(file) as number:
            held = self._held.get(line)
            if held is None:
                held = _count(file)
            rest = b"".join(lines)
            while rest:
                rest = rest[os.write(number, rest) :]
            held += len(lines)
            self._held[line] = self._shorten(file) if held > 2 * self._most else held

    def _shorten(self, file: Path) -> int:
        """Leave the last ones; the file is locked."""
        with file.open("rb") as whole:
            kept = deque(whole, maxlen=self._most)
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            with os.fdopen(os.open(temporary, _FLAGS | os.O_TRUNC, 0o600), "wb") as shorter:
                os.fchmod(shorter.fileno(), 0o600)
                shorter.writelines(kept)
            temporary.replace(file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        return len(kept)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[int]:
    """The file, open to append, for nobody but its owner and for no other worker meanwhile.

    Raises:
        OSError: it cannot be had, or it is another user's, who could read what is written into it.
    """
    while True:
        number = os.open(file, _FLAGS | os.O_APPEND, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            # While this one waited, another may have put a shorter file in its place.
            if not _is(number, file):
                continue
            os.fchmod(number, 0o600)
            yield number
            return
        finally:
            os.close(number)


def _is(number: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), file.stat())
    except FileNotFoundError:
        return False


def _line(kept: _Kept) -> bytes:
    at, request_id, unit, body = kept
    said: dict[str, object] = {
        "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": request_id.decode("latin-1"),
    }
    if unit:
        said["unit"] = unit.decode("utf-8", "replace")
    # The rows as they came, on one line: the body was read strictly, so it has the one key `rows`.
    rows = msgspec.json.decode(body, type=_Body).rows
    return msgspec.json.encode(said | {"rows": msgspec.Raw(msgspec.json.format(rows, indent=-1))}) + b"\n"


class _Body(msgspec.Struct):
    rows: msgspec.Raw


def _count(file: Path) -> int:
    try:
        with file.open("rb") as whole:
            return sum(1 for _ in whole)
    except FileNotFoundError:
        return 0
