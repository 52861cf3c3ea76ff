"""Puts load on a server with wrk, on a core of its own, and reads what wrk says of it."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.serving.model import Subject
from benchmarks.serving.peers import Peer
from benchmarks.serving.server import Failed, Server, cores, encode

SCRIPT = Path(__file__).with_name("wrk.lua")
MOST_BODIES = 600
MOST_BODY_ROWS = 3000
TIMEOUT = 60


class Scenario(NamedTuple):
    """What is asked: rows a request, over so many connections that are kept."""

    name: str
    rows: int
    connections: int


class Load(NamedTuple):
    """What wrk said. Latencies are milliseconds; it sends the next request of a connection when it has the last one's answer.

    Attributes:
        answers: requests that were answered.
        rps: so many a second.
        failed: answers that were not 200, connections that broke, and requests that took more than a minute.
        processor_us: microseconds of the processor that the server used for a request; 0 where it was not looked at. What
            else runs on the machine changes it less than the other figures.
    """

    answers: int
    rps: float
    p50: float
    p95: float
    p99: float
    failed: int
    processor_us: float = 0.0


def wrk() -> str | None:
    """The program, if it is installed."""
    return shutil.which("wrk")


def bodies(peer: Peer, subject: Subject, rows: int) -> list[bytes]:
    """Different requests of so many rows, enough to go once round the table where that is not too much."""
    count = min(MOST_BODIES, len(subject.rows), max(1, MOST_BODY_ROWS // rows))
    return [encode(peer, subject.some(at * rows, rows)[0]) for at in range(count)]


def command(server: Server, scenario: Scenario, seconds: float, file: Path) -> list[str]:
    """What wrk is told."""
    headers = {"Content-Type": "application/json", **server.peer.headers}
    return [
        wrk() or "wrk", "-t", "1", "-c", str(scenario.connections), "-d", f"{max(1, round(seconds))}s",
        "--timeout", f"{TIMEOUT}s", "-s", str(SCRIPT),
        *(word for name, value in headers.items() for word in ("-H", f"{name}: {value}")),
        f"http://127.0.0.1:{server.port}{server.peer.path}", "--", str(file),
    ]  # fmt: skip


def start(server: Server, scenario: Scenario, seconds: float, work: Path) -> "subprocess.Popen[str]":
    """Start wrk; it ends by itself."""
    file = work / f"bodies-{server.peer.project or 'esteira'}-{scenario.rows}.jsonl"
    if not file.exists():
        file.write_bytes(b"\n".join(bodies(server.peer, server.subject, scenario.rows)) + b"\n")
    _, own = cores()
    return subprocess.Popen(
        command(server, scenario, seconds, file), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )  # fmt: skip


def read(said: str) -> Load:
    """wrk's figures from the line that our script prints last.

    Raises:
        Failed: there is no such line.
    """
    found = [line.removeprefix("RESULT ") for line in said.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise Failed(f"wrk said no result:\n{said[-2000:]}")
    result: dict[str, Any] = json.loads(found[-1])
    failed = result["refused"] + result["broken"] + result["late"]
    answers = result["requests"] - result["refused"]  # a refusal is none
    return Load(
        answers=answers,
        rps=answers / (result["microseconds"] / 1e6),
        p50=result["p50"] / 1000,
        p95=result["p95"] / 1000,
        p99=result["p99"] / 1000,
        failed=failed,
    )


def run(server: Server, scenario: Scenario, seconds: float, work: Path) -> Load:
    """Put load on a server for so many seconds."""
    used = server.processor_seconds()
    said, _ = start(server, scenario, seconds, work).communicate()
    found = read(said)
    used = server.processor_seconds() - used
    return found._replace(processor_us=used * 1e6 / max(1, found.answers))


def compare_under_load(
    server: Server, scenario: Scenario, seconds: float, work: Path, counts: Sequence[int] = (1, 1, 1, 7)
) -> tuple[int, list[str]]:
    """Ask rows beside the load and compare each answer with the native model's.

    Args:
        counts: rows of one question after the other.

    Returns:
        How many answers were compared, and what was wrong with some of them, in words.
    """
    asked, wrong = 0, []
    load = start(server, scenario, seconds, work)
    drain = threading.Thread(target=load.communicate, daemon=True)
    drain.start()
    with closing(server.connect()) as connection:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            count = counts[asked % len(counts)]
            try:
                why = connection.wrong(asked * 17, count)
            except (Failed, OSError) as error:
                why = f"{type(error).__name__}: {error}"
            asked += 1
            if why:
                wrong.append(why)
    drain.join()
    return asked, wrong
