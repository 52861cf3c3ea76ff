"""One model behind our service and its peers, asked by wrk by turns; see README.md beside it.

Prints a markdown table and, last, one JSON line; exits 0 whatever the figures are, 1 when a peer failed. Without wrk it says
so and exits 0. With --minutes it instead keeps one server under load and prints what it holds in memory every 10 seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.orchestrators.compare import machine
from benchmarks.serving import environments, figures, load, model
from benchmarks.serving.figures import MANY, ONE, Round
from benchmarks.serving.load import Scenario
from benchmarks.serving.peers import DEFAULT, PEERS, Peer
from benchmarks.serving.server import Failed, Server

SCENARIOS = (
    Scenario(ONE, 1, 16),
    Scenario(MANY, 1, 100),
    Scenario("10 rows, 16 connections", 10, 16),
    Scenario("1,000 rows, 16 connections", 1000, 16),
)
LONE = Scenario("1 row, 1 connection", 1, 1)
WARM_SECONDS = 2.0
EVERY = 10.0


def once(
    peer: Peer, commands: Path, subject: model.Subject, work: Path, scenarios: Sequence[Scenario], seconds: float
) -> Round:
    """Start a peer, hold its answers against the native model's, put each load on it, and stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="esteira-serve-bench-", dir=work) as folder,
        Server(peer, commands, subject, Path(folder) / "work") as server,
    ):
        connection = server.connect()
        sizes = sorted({1, *(scenario.rows for scenario in scenarios)})
        for count in sizes:
            if why := connection.wrong(0, count):
                raise Failed(f"{peer.name}, {count} rows: {why}")
        connection.close()
        loads, held = {}, 0.0
        for scenario in scenarios:
            load.run(server, scenario, WARM_SECONDS, work)
            loads[scenario.name] = load.run(server, scenario, seconds, work)._asdict()
            held = max(held, server.megabytes())
        compared, wrong = load.compare_under_load(server, scenarios[0], seconds, work)
        for why in wrong[:3]:
            print(f"  WRONG {peer.name}: {why}", flush=True)
        return Round(loads, server.seconds, held, compared, len(wrong))


def version_of(peer: Peer) -> str:
    """What the peer's lock pins; ours with its commit."""
    if peer.project:
        lock = (environments.PROJECTS / peer.project / "requirements.lock").read_text(encoding="utf-8")
        wanted = f"{peer.package}=="
        return next(line.split()[0] for line in lock.splitlines() if line.startswith(wanted)).removeprefix(wanted)
    from esteira import __version__

    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=environments.ROOT, capture_output=True, text=True, check=False
    )
    return f"{__version__} {said.stdout.strip()}".strip()


def _commands(peers: Sequence[Peer]) -> dict[str, Path]:
    return {
        peer.name: environments.commands(peer.project) if peer.project else Path(sys.executable).parent
        for peer in peers
    }


def measure(peers: Sequence[Peer], scenarios: Sequence[Scenario], rounds: int, seconds: float) -> dict[str, Any]:
    """Make what is missing, then A B C A B C ...; each peer is up alone."""
    commands = _commands(peers)
    subject = model.make()
    subject.build_bento()
    before = machine()
    print(
        f"{before['cores']} cores of {before['cpu']}, {before['memory_gib']} GiB, Python {before['python']}, load "
        f"{before['load'][0]}; the graph takes {subject.row_us:.0f} us a row by the cost model",
        flush=True,
    )
    found: dict[str, list[Round]] = {peer.name: [] for peer in peers}
    with tempfile.TemporaryDirectory(prefix="esteira-bench-serving-") as folder:
        for number in range(1, rounds + 1):
            for peer in peers:
                one = once(peer, commands[peer.name], subject, Path(folder), scenarios, seconds)
                found[peer.name].append(one)
                said = "  ".join(
                    f"{found['rps']:9,.0f}/s p99 {found['p99']:7.2f} {found['processor_us']:6,.0f} us"
                    for found in one.loads.values()
                )
                print(f"  {number} {peer.name:<15} {said}  ready {one.ready:.1f} s, {one.megabytes:.0f} MB", flush=True)
    return {
        "machine": before,
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "rounds": rounds,
        "seconds": seconds,
        "row_us": subject.row_us,
        "versions": {peer.name: version_of(peer) for peer in peers},
        "each": {name: [one._asdict() for one in ones] for name, ones in found.items()},
        **figures.summed_up(found),
    }


def soak(peer: Peer, scenario: Scenario, minutes: float) -> dict[str, Any]:
    """Keep a server under load, and say every 10 seconds what it holds; growth is that of the last two thirds."""
    subject = model.make()
    subject.build_bento()
    points: list[tuple[float, float]] = []
    commands = _commands([peer])[peer.name]
    with (
        tempfile.TemporaryDirectory(prefix="esteira-bench-serving-") as folder,
        Server(peer, commands, subject, Path(folder) / "work") as server,
    ):
        load.run(server, scenario, WARM_SECONDS, Path(folder))
        wrk = load.start(server, scenario, minutes * 60, Path(folder))
        began = time.monotonic()
        try:
            while wrk.poll() is None:
                points.append((time.monotonic() - began, server.megabytes()))
                print(f"  {points[-1][0]:6.0f} s {points[-1][1]:8.1f} MB", flush=True)
                try:
                    wrk.wait(EVERY)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            wrk.kill()
            said, _ = wrk.communicate()
    late = [point for point in points if point[0] >= points[-1][0] / 3]
    return {
        "peer": peer.name,
        "minutes": minutes,
        "scenario": scenario.name,
        "load": load.read(said)._asdict(),
        "first_mb": points[0][1],
        "last_mb": points[-1][1],
        "mb_an_hour": figures.slope(late) * 3600,
    }


def main() -> None:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each peer is started and measured")
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"separated by commas, of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="only one row over 16 connections")
    parser.add_argument("--lone", action="store_true", help="besides, one row over one connection")
    parser.add_argument("--minutes", type=float, help="keep the first peer under load so long, and print its memory")
    options = parser.parse_args()
    asked = options.peers.split(",")
    if unknown := set(asked) - set(names):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    if load.wrk() is None:
        print("skipped: wrk puts the load on, and is not installed (Debian: apt-get install wrk)")
        return
    chosen = [peer for peer in PEERS if peer.name in asked]
    scenarios = [*SCENARIOS[: 1 if options.quick else None], *([LONE] if options.lone else [])]
    try:
        if options.minutes:
            print(json.dumps(soak(chosen[0], scenarios[0], options.minutes)))
            return
        found = measure(chosen, scenarios, options.rounds, options.seconds)
    except Failed as error:
        raise SystemExit(str(error)) from error
    print("\n" + figures.table(found["peers"], found["versions"], {peer.name: peer.checks for peer in chosen}) + "\n")
    print("\n".join(figures.told(found["bounds"])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
