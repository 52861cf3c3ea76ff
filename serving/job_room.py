"""The temporary folder of a batch prediction: its own, whoever else works on the same job, and gone when nobody works in it."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esteira.errors import OutsideError

_TRIES = 10
_ROOM = re.compile(r"esteira-batch-[0-9a-f]{32}-.+")


@contextlib.contextmanager
def room(job_id: str) -> Iterator[tuple[Path, int]]:
    """A new folder for the copies of a job's source; rooms that nobody holds any more, of any job, are removed first.

    Args:
        job_id: 32 hexadecimal digits.

    Yields:
        The folder, and the descriptor of the lock on it. A process that inherits the descriptor holds the room as long as it lives,
        also when whoever started it was killed.
    """
    _sweep(Path(tempfile.gettempdir()))
    folder, lock = _made(job_id)
    try:
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(job_id: str) -> tuple[Path, int]:
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f"esteira-batch-{job_id}-"))
        lock = _held(folder)
        if lock is not None and folder.exists():
            return folder, lock
        # Whoever sweeps just now took it for one that was left.
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
    raise OutsideError(
        "a batch prediction has a temporary folder that it can lock, but here it cannot",
        code="cannot_write", where="TMPDIR", cure="let TMPDIR name a folder of a file system that knows locks",
    )  # fmt: skip


def _sweep(place: Path) -> None:
    """Remove the rooms that nobody holds."""
    for left in place.iterdir():
        if _ROOM.fullmatch(left.name) is None:
            continue
        lock = _held(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _held(folder: Path) -> int | None:
    """The lock on a folder, which ends with the last process that has it open; None where another has it, or there is no folder of ours.

    A lock and not a number in the name: containers may share a temporary folder, but not their processes' numbers.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
