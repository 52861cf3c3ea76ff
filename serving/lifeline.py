"""Leaves nothing behind: ties a process to its parent's life (on Linux), and clears the folders of processes that were killed."""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Looked up once and early: a child between fork and exec should call nothing that allocates or locks.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send the signal when the thread that started this process ends; end now if it already did.

    Args:
        parent: process id that the parent must still have.
        number: the signal.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def sweep(prefix: str) -> None:
    """Remove folders `PREFIX PID -...` from the temporary folder whose process is gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
