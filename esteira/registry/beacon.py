"""A file whose time of change says that an alias moved: followers on this machine look at it instead of asking the store.

It is a hint, never the truth: whoever sees it asks the store what is so, and who misses it learns it at their next look.
"""

import logging
import os
import secrets
import time
from pathlib import Path

_log = logging.getLogger("esteira.registry")


def _path(home: Path) -> Path:
    return home / "beacon"


def touch(home: Path) -> None:
    """Say that something moved. Atomic, and never fails: what it tells of has happened."""
    temporary = home / f".beacon.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        # The clock of a file system has coarse ticks, and it may have gone back; two moves are two times all the same.
        at = max(time.time_ns(), stamp(home) + 1)
        temporary.touch(mode=0o644)
        os.utime(temporary, ns=(at, at))
        temporary.replace(_path(home))
    except OSError as error:
        _log.warning("followers hear of a move later, because the beacon cannot be written: %s", error)
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def stamp(home: Path) -> int:
    """When something moved last, in nanoseconds; grows with every move. 0 before the first; costs one os.stat."""
    try:
        return os.stat(_path(home)).st_mtime_ns  # noqa: PTH116 - Path.stat takes twice as long, and this is asked for often
    except OSError:
        return 0
