"""Runs one peer's server on a core of its own, and asks it over a kept connection. Linux only, for memory and cores."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.serving.environments import PROJECTS
from benchmarks.serving.model import Subject
from benchmarks.serving.peers import Peer, Row, Said

SILENT = {"DO_NOT_TRACK": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}
START_SECONDS = 120.0
CLOSE = 1e-6


class Failed(Exception):
    """A peer did not start, ended, or answered something else."""


def cores() -> tuple[set[int], set[int]]:
    """One core for the server and another for who asks; the same one where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[-1]}


class Server:
    """A peer's server, up between `with` and its end.

    Attributes:
        port: of loopback.
        seconds: from the start of its process to the first right answer.
    """

    def __init__(self, peer: Peer, commands: Path, subject: Subject, work: Path) -> None:
        self.peer = peer
        self.subject = subject
        self.port = 0
        self.seconds = 0.0
        self._work = work
        self._commands = commands
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        peer, work = self.peer, self._work
        if peer.project:
            shutil.copytree(
                PROJECTS / peer.project, work, ignore=shutil.ignore_patterns("requirements.*", "__pycache__")
            )
        else:
            work.mkdir()
        ports = _free_ports(3)
        self.port = ports[0]
        filled = {
            "port": str(ports[0]), "port2": str(ports[1]), "port3": str(ports[2]),
            "work": str(work), "model": str(self.subject.folder),
        }  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if name in {"LANG", "LC_ALL", "TMPDIR"}},
            **SILENT,
            **{name: value.format(**filled) for name, value in peer.environment.items()},
            "HOME": str(work),
            "PATH": os.pathsep.join([str(self._commands), os.environ.get("PATH", os.defpath)]),
        }

        def words(command: Sequence[str]) -> list[str]:
            made = [part.format(**filled) for part in command]
            return [shutil.which(made[0], path=environment["PATH"]) or made[0], *made[1:]]

        for command in peer.prepare:
            done = subprocess.run(
                words(command), cwd=work, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise Failed(f"{peer.name}: `{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-3000:]}")
        own, _ = cores()
        began = time.perf_counter()
        with (work / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                words(peer.command), cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, own),
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        self.seconds = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def connect(self) -> "Connection":
        """A connection that is kept."""
        return Connection(self.peer, self.port, self.subject)

    def megabytes(self) -> float:
        """What it and its children hold now, shared pages counted once."""
        assert self._process is not None
        return sum(_pss(pid) for pid in _family(self._process.pid)) / 1024

    def processor_seconds(self) -> float:
        """What it and its children have used of the processor so far."""
        assert self._process is not None
        return sum(_ticks(pid) for pid in _family(self._process.pid)) / os.sysconf("SC_CLK_TCK")

    @property
    def log(self) -> str:
        """The end of what it said."""
        return (self._work / "server.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_SECONDS
        why = "no answer"
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise Failed(f"{self.peer.name}: its server ended with {self._process.returncode}:\n{self.log}")
            try:
                with contextlib.closing(self.connect()) as connection:
                    wrong = connection.wrong(0, 1)
                if not wrong:
                    return
                raise Failed(f"{self.peer.name}: {wrong}")
            except (OSError, http.client.HTTPException, _NotYetError) as error:
                why = str(error)
            time.sleep(0.02)
        raise Failed(f"{self.peer.name}: {why} within {START_SECONDS:g} s:\n{self.log}")

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _NotYetError(Failed):
    """An answer that a server gives while its model loads."""


class Connection:
    """Asks rows over one connection and compares what is said with what the native model says."""

    def __init__(self, peer: Peer, port: int, subject: Subject) -> None:
        self._peer = peer
        self._subject = subject
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def ask(self, rows: Sequence[Row]) -> list[Said]:
        """What the server says of rows.

        Raises:
            OSError: no connection.
        """
        headers = {"Content-Type": "application/json", **self._peer.headers}
        self._connection.request("POST", self._peer.path, encode(self._peer, rows), headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise _NotYetError(f"status {response.status}: {content[:300].decode('utf-8', 'replace')}")
        return self._peer.said(json.loads(content), self._subject.classes)

    def wrong(self, start: int, count: int) -> str:
        """Why the answer of these rows of the table is wrong; empty when it is right."""
        rows, expected = self._subject.some(start, count)
        return differs(expected, self.ask(rows))


def differs(expected: Sequence[Said], said: Sequence[Said]) -> str:
    """The first difference in words; empty when labels are equal and probabilities within 1e-6."""
    if len(expected) != len(said):
        return f"{len(expected)} rows were asked, but {len(said)} answered"
    for at, (one, other) in enumerate(zip(expected, said, strict=True)):
        if one.label != other.label or not abs(one.probability - other.probability) <= CLOSE:
            return f"row {at} is {one.label} by {one.probability:.9g}, but {other.label} by {other.probability:.9g} was said"
    return ""


def encode(peer: Peer, rows: Sequence[Row]) -> bytes:
    """The body that asks a peer for rows, on one line."""
    return json.dumps(peer.body(rows), separators=(",", ":")).encode()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(each) for each in (task / "children").read_text(encoding="ascii").split()]
    return found


def _ticks(pid: int) -> int:
    """Clock ticks of a process, and of its children that have ended; 0 of one that has gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15])
    return 0


def _pss(pid: int) -> int:
    """Proportional set size in KiB; 0 of a process that has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
