"""What the loads come to: medians over rounds, ratios to FastAPI's, our bounds, the table. Measures nothing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Bounds of issue 5: requests a second of FastAPI's, at least; p99 of FastAPI's, at most; milliseconds at 100 connections; seconds.
RATE_BOUND, MOONSHOT = 2.0, 3.0
TAIL_BOUND = 1.0
P95_BOUND = 100.0
READY_BOUND = 4.0
ONE, MANY = "1 row, 16 connections", "1 row, 100 connections"
BASE = "fastapi"


class Round(NamedTuple):
    """One peer, up once.

    Attributes:
        loads: scenario -> `{"rps", "p50", "p95", "p99", "failed", "processor_us"}`.
        ready: seconds from its start to its first right answer.
        megabytes: the most that it held after a load.
        compared: answers that were compared under load.
        wrong: those that were wrong.
    """

    loads: Mapping[str, Mapping[str, float]]
    ready: float
    megabytes: float
    compared: int
    wrong: int


def summed_up(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Each peer's medians, their ratios to FastAPI's, and our bounds.

    Ratios are medians over the ratios of each round, whose two sides were measured within minutes of each other. One whose
    other side was not run is None.
    """
    peers: dict[str, Any] = {}
    for name, found in rounds.items():
        loads = {}
        for scenario in found[0].loads:
            figures: dict[str, float | None] = {
                key: statistics.median(one.loads[scenario][key] for one in found)
                for key in ("rps", "p50", "p95", "p99", "processor_us")
            }
            figures["failed"] = sum(one.loads[scenario]["failed"] for one in found)
            figures["to_fastapi"] = _ratio(rounds, name, scenario, "rps")
            figures["p99_to_fastapi"] = _ratio(rounds, name, scenario, "p99")
            loads[scenario] = figures
        peers[name] = {
            "loads": loads,
            "ready": statistics.median(one.ready for one in found),
            "megabytes": max(one.megabytes for one in found),
            "compared": sum(one.compared for one in found),
            "wrong": sum(one.wrong for one in found),
        }
    return {"peers": peers, "bounds": _bounds(peers.get("esteira"))}


def _ratio(rounds: Mapping[str, Sequence[Round]], name: str, scenario: str, key: str) -> float | None:
    if BASE not in rounds or name == BASE:
        return None
    pairs = zip(rounds[name], rounds[BASE], strict=True)
    return statistics.median(ours.loads[scenario][key] / base.loads[scenario][key] for ours, base in pairs)


def _bounds(ours: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    if ours is None:
        return {}
    one, many = ours["loads"].get(ONE, {}), ours["loads"].get(MANY, {})
    failed = sum(load["failed"] for load in ours["loads"].values())
    bounds = {
        "requests a second, to FastAPI's": (one.get("to_fastapi"), "at least", RATE_BOUND),
        "p99, to FastAPI's": (one.get("p99_to_fastapi"), "at most", TAIL_BOUND),
        "wrong answers": (ours["wrong"], "at most", 0),
        "failed requests": (failed, "at most", 0),
        "p95 at 100 connections, ms": (many.get("p95"), "below", P95_BOUND),
        "start to first answer, s": (ours["ready"], "below", READY_BOUND),
    }
    held = {
        "at least": lambda value, bound: value >= bound,
        "at most": lambda value, bound: value <= bound,
        "below": lambda value, bound: value < bound,
    }
    return {
        name: {"value": value, word: bound, "held": held[word](value, bound)}
        for name, (value, word, bound) in bounds.items()
        if value is not None
    }


def table(peers: Mapping[str, Any], versions: Mapping[str, str], checks: Mapping[str, str]) -> str:
    """The figures as markdown: the first scenario with all that is of a peer, then each further one."""
    scenarios = list(next(iter(peers.values()))["loads"])
    lines = [
        f"| {scenarios[0]} | Requests/s | to FastAPI | p50, ms | p95, ms | p99, ms | Processor, µs | Failed | Wrong of compared | Ready, s "
        "| Memory, MB | Does besides |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, peer in peers.items():
        own = (
            f"{peer['wrong']} of {peer['compared']:,} | {peer['ready']:.1f} | {peer['megabytes']:.0f} | {checks[name]}"
        )
        lines.append(f"| {name} {versions[name]} | {_load(peer['loads'][scenarios[0]])} | {own} |")
    for scenario in scenarios[1:]:
        lines += [
            "",
            f"| {scenario} | Requests/s | to FastAPI | p50, ms | p95, ms | p99, ms | Processor, µs | Failed |",
            "|---|---|---|---|---|---|---|---|",
            *(f"| {name} {versions[name]} | {_load(peer['loads'][scenario])} |" for name, peer in peers.items()),
        ]
    return "\n".join(lines)


def _load(load: Mapping[str, Any]) -> str:
    ratio = "" if load["to_fastapi"] is None else f"{load['to_fastapi']:.2f}"
    times = " | ".join(f"{load[name]:.2f}" for name in ("p50", "p95", "p99"))
    return f"{load['rps']:,.0f} | {ratio} | {times} | {load['processor_us']:,.0f} | {load['failed']:.0f}"


def told(bounds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a bound: held or missed, and by what."""
    lines = []
    for name, bound in bounds.items():
        word, limit = next((word, bound[word]) for word in ("at least", "at most", "below") if word in bound)
        lines.append(f"- {'met' if bound['held'] else 'MISSED'}: {name} {bound['value']:.3g} ({word} {limit:g})")
    return lines


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much the second grows for one of the first, by least squares; 0 of fewer than two points."""
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression([at for at, _ in points], [value for _, value in points]).slope
