"""One holder at a time, across processes of one machine: locked files below `home/locks`. A dead holder's lock is free."""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from esteira.errors import Refused


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
    """
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^A-Za-z0-9@._-]", "_", name) + ".lock")
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _held(path, name, what) from None
                time.sleep(0.02)
        # Who holds it is told for people; a disk that is full must not keep anybody from, say, a roll back.
        with contextlib.suppress(OSError):
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps({"pid": os.getpid(), "what": what}).encode())
        try:
            yield
        finally:
            # Explicit, because a forked child may still have the same open file.
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


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
