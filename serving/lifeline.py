"""Ties the processes of a service together: a child ends with its parent, knows how it was told to end, and leaves no folder.

Linux only where it asks the kernel; elsewhere those calls do nothing.
"""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

STATE = "_SERVING_STATE"
"""The variable that names the file in which a worker tells its state to `python -m serving serve`."""

HURRY = "hurry"
"""A file beside it: whoever stops this service waits for no load balancer."""

_SERVED = "served"
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


def hurried() -> bool:
    """Whether this service was told to end without waiting for a load balancer, or who started it is gone with its folder."""
    state = os.environ.get(STATE)
    if not state:
        return False
    folder = Path(state).parent
    return (folder / HURRY).exists() or not folder.exists()


def note_served() -> None:
    """Remember, for the workers that come after this one, that the service was ready once."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder:
        Path(folder, _SERVED).touch()


def has_served() -> bool:
    """Whether a worker of this service was ready once: what stops a new worker now is no reason to stop the others.

    The note lies in the folder of the workers' counters, which Bento empties at each start of the service.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return bool(folder) and Path(str(folder), _SERVED).exists()


def forget_counters() -> None:
    """Remove this process's files from the folder of the workers' counters: of one that counted nothing.

    Bento starts it again every few seconds for as long as it cannot start, and each page of metrics reads all files.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder:
        for path in Path(folder).glob(f"*_{os.getpid()}.db"):
            path.unlink(missing_ok=True)


def sweep(prefix: str) -> None:
    """Remove folders `PREFIX PID -...` from the temporary folder whose process is gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def lives(pid: int) -> bool:
    """Whether a process of that number is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
