"""Times six no-op steps and their unchanged re-run, ours and the peers' by turns; see README.md beside it.

Prints a markdown table and, last, one JSON line; exits 0 whatever the figures are, 1 when a peer failed or a step did not run.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.orchestrators import environments
from benchmarks.orchestrators.figures import Round, summed_up, table
from benchmarks.orchestrators.peers import PEERS, PROJECTS, SILENT, Peer
from esteira import __version__

# What the log holds after six steps in a row: each step adds its number to what the step before wrote.
CHAIN = ["1", "1 2", "1 2 3", "1 2 3 4", "1 2 3 4 5", "1 2 3 4 5 6"]


class Failed(Exception):
    """A peer's command failed, or its steps did not do what they are for."""


def once(peer: Peer, commands: Path, work: Path, home: Path) -> Round:
    """Run a peer's six steps in a fresh folder, then again, and look at what they left.

    Args:
        commands: folder of the programs of its environment.
        work: removed afterwards.
        home: lasts over all rounds, as a user's does.
    """
    shutil.copytree(PROJECTS / peer.project, work, ignore=shutil.ignore_patterns("requirements.*", "__pycache__"))
    log = work / "ran.log"
    port = str(_free_port())
    filled = {"home": str(home), "work": str(work), "port": port}
    environment = {
        **{name: value for name, value in os.environ.items() if name in {"LANG", "LC_ALL", "TMPDIR"}},
        **SILENT,
        **{name: value.format(**filled) for name, value in peer.environment.items()},
        "HOME": str(home),
        "NOOP_LOG": str(log),
        "PATH": os.pathsep.join([str(commands), os.environ.get("PATH", os.defpath)]),
    }

    def call(command: Sequence[str], run: str = "") -> float:
        words = [part.format(**filled, run=run) for part in command]
        words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
        began = time.perf_counter()
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise Failed(f"{peer.name}: `{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return seconds

    def ran() -> list[str]:
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    try:
        for command in peer.prepare:
            call(command)
        with _server(peer, environment, filled, work):
            first = call(peer.first, "r1")
            if ran() != CHAIN:
                raise Failed(f"{peer.name}: six steps in a row leave {CHAIN}, but these ran: {ran()}")
            again = call(peer.again, "r2")
        more = ran()[len(CHAIN) :]
        if more not in ([], CHAIN):
            raise Failed(f"{peer.name}: unchanged, all steps run again or none, but these did: {more}")
        if not any(_holds(path, CHAIN[-1]) for path in work.rglob("*")):
            raise Failed(f"{peer.name}: the last step's file is gone")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Round(first, again, len(more))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text.encode()


@contextlib.contextmanager
def _server(peer: Peer, environment: Mapping[str, str], filled: Mapping[str, str], work: Path) -> Iterator[None]:
    """The server that a peer wants to be up, on loopback; stopped at the end with all it started."""
    if not peer.server:
        yield
        return
    words = [part.format(**filled) for part in peer.server]
    words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
    with (work / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            words, cwd=work, env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(f"{environment['PREFECT_API_URL']}/health", process)
            yield
        finally:
            # Its own group, so that workers of the server end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.2)
    ended = "" if process.poll() is None else f": the server ended with {process.returncode}"
    raise Failed(f"no answer at {address} within {seconds:.0f} s{ended}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": names[0] if names else platform.processor() or "unknown",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def version_of(peer: Peer) -> str:
    """What the peer's lock pins; ours is in the checkout."""
    if peer.lock is None:
        return __version__
    wanted = f"{peer.project}=="
    lines = peer.lock.read_text(encoding="utf-8").splitlines()
    return next(line.split()[0].removeprefix(wanted) for line in lines if line.startswith(wanted))


def measure(peers: Sequence[Peer], rounds: int) -> dict[str, Any]:
    """Install what is missing, run every peer once untimed, then A B C A B C ..."""
    commands = {
        peer.name: Path(sys.executable).parent if peer.lock is None else environments.ensure(peer.lock)
        for peer in peers
    }
    before = machine()
    print(
        f"{before['cores']} cores of {before['cpu']}, {before['memory_gib']} GiB, {before['system']}, "
        f"Python {before['python']}, load {before['load'][0]}",
        flush=True,
    )
    found: dict[str, list[Round]] = {peer.name: [] for peer in peers}
    with tempfile.TemporaryDirectory(prefix="esteira-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        # Round 0 is not timed: it fills file caches, byte code and what a peer makes once in a user's home.
        for number in range(rounds + 1):
            for peer in peers:
                one = once(peer, commands[peer.name], Path(folder) / "work", home)
                if number:
                    found[peer.name].append(one)
                    print(f"  {number:>2} {peer.name:<20} {one.first:6.2f} s {one.again:6.2f} s", flush=True)
    after = machine()
    return {
        "machine": before,
        "load_after": after["load"],
        "rounds": rounds,
        "versions": {peer.name: version_of(peer) for peer in peers},
        "seconds": {name: [[round(one.first, 3), round(one.again, 3)] for one in ones] for name, ones in found.items()},
        **summed_up(found),
    }


def main() -> None:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="times each peer runs, after one that is not timed")
    parser.add_argument("--peers", default=",".join(names), help="separated by commas; all: %(default)s")
    options = parser.parse_args()
    asked = options.peers.split(",")
    if unknown := set(asked) - set(names):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    chosen = [peer for peer in PEERS if peer.name in asked]
    try:
        found = measure(chosen, options.rounds)
    except Failed as error:
        raise SystemExit(str(error)) from error
    print("\n" + table(found["peers"], found["versions"], {peer.name: peer.reuses for peer in chosen}) + "\n")
    for name, bound in found["bounds"].items():
        if bound["held"] is not None:
            limit = f"at most {bound['at_most']}" if "at_most" in bound else f"below {bound['below']}"
            print(f"{name}: {bound['value']:.3f} ({limit}: {'held' if bound['held'] else 'BEYOND'})")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
