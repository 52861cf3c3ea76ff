"""Runs one command on two cores and says how long it took and how much memory it and its children held. Linux only for memory."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CORES = 2
EVERY = 0.2  # seconds between looks at memory


class Ran(NamedTuple):
    """What a command did.

    Attributes:
        seconds: wall time from before its process to after its end.
        peak_mb: the most that it and its children held at once (MB, shared pages counted once), or the largest
            resident size that any of them had, whichever is more.
        why: empty when it ended with 0 in time; else what went wrong, with the end of its standard error.
        said: its standard output.
    """

    seconds: float
    peak_mb: float
    why: str
    said: str


def run(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], limit: float) -> Ran:
    """Run it to its end, or to its limit of wall seconds.

    Args:
        cwd: also takes what it says; two files are left there.
    """
    usable = sorted(os.sched_getaffinity(0))[:CORES]
    said, complained = cwd / "stdout.txt", cwd / "stderr.txt"
    with said.open("wb") as out, complained.open("wb") as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(command), cwd=cwd, env=dict(environment), stdout=out, stderr=err, start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, usable),
        )  # fmt: skip
        watch = _Watch(process.pid)
        watch.start()
        late = threading.Timer(limit, _end, (process.pid,))
        late.start()
        try:
            _, status = os.waitpid(process.pid, 0)
        finally:
            # Also on Ctrl-C: nothing that was started here outlives this function.
            late.cancel()
            watch.done.set()
            _end(process.pid)
        seconds = time.perf_counter() - began
    process.returncode = code = os.waitstatus_to_exitcode(status)
    watch.join()
    tail = complained.read_text(encoding="utf-8", errors="replace")[-2000:]
    why = ""
    if seconds >= limit:
        why = f"was ended after {limit:.0f} s"
    elif code:
        why = f"ended with {code}: {tail}"
    return Ran(seconds, watch.peak, why, said.read_text(encoding="utf-8", errors="replace"))


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


class _Watch(threading.Thread):
    """Adds up the memory of a process and its descendants, again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.done = pid, 0.0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(EVERY):
            together = sum(_kib(pid, "smaps_rollup", "Pss:") for pid in _family(self.pid))
            # The kernel's own high-water mark misses nothing between two looks, but is of one process.
            self.peak = max(self.peak, together / 1024, _kib(self.pid, "status", "VmHWM:") / 1024)


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(each) for each in (task / "children").read_text(encoding="ascii").split()]
    return found


def _kib(pid: int, file: str, word: str) -> int:
    """A line of a file of /proc in KiB; 0 for a process that has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(word):
                return int(line.split()[1])
    return 0
