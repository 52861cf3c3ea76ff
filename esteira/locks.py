"""One holder at a time, across processes of one machine: locked files below `home/locks`. A dead holder's lock is free."""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from esteira.errors import OutsideError, Refused


@contextlib.contextmanager
def hold(home: Path, name: str, *, what: str = "", wait: float = 0.0) -> Iterator[None]:
    """Hold the lock `name` while the block runs.

    Args:
        home: folder of state; made when missing.
        name: of the lock; what cannot stand in a file name is replaced by `_`.
        what: what the holder is doing, in words, for whoever finds the lock held.
        wait: seconds to wait for another holder; 0 does not wait.

    Raises:
        Refused: code `locked`; another process (or thread) holds it. The message names its pid.
        OutsideError: code `no_lock`; the lock's file is not there and cannot be made.
    """
    path = home / "locks" / (re.sub(r"[^A-Za-z0-9@._-]", "_", name) + ".lock")
    file = _opened(path)
    try:
        _take(file, path, name, what, wait)
        # Who holds it is told for people; a disk that is full must not keep anybody from, say, a roll back.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"pid": os.getpid(), "what": what}).encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
            # Explicit, because a forked child may still have the same open file.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        # On a disk that is read only since, the file of an earlier holder locks as well.
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY)
        raise OutsideError(
            f"a lock is a file that can be made, but {error.strerror or error}",
            code="no_lock", where=str(path), cure="see who may write $ESTEIRA_HOME, then try again",
        ) from error  # fmt: skip


def _take(file: int, path: Path, name: str, what: str, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _held(path, name, what) from None
            time.sleep(0.02)


def _held(path: Path, name: str, what: str) -> Refused:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {int(holder['pid'])}"
    except (ValueError, KeyError, TypeError, OSError):  # just now taken or given back
        who = "another process"
    return Refused(
        f"{what or name} may be under way once at a time, but {who} holds it",
        code="locked",
        where=f"lock {path.name}",
        cure="wait until it ends, or end that process; the lock of a dead process is free by itself",
    )
