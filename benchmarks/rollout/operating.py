"""How often each policy of a rollout is right, how soon, and what the mistakes cost, on the same traffic; see README.md beside it.

Prints markdown tables and, last, one JSON line; exits 0 whatever the figures are. The figures depend on seed and runs alone.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esteira.rollout.posterior import wilson
from esteira.rollout.rules import Rules
from esteira.rollout.sequential import Sequential
from esteira.rollout.simulate import Ending, Row, simulate
from esteira.rollout.state import Policy
from esteira.rollout.thresholds import Thresholds
from esteira.rollout.traffic import RATES, SCENARIOS, Scenario

MAIN: Mapping[str, Policy] = {"rules": Rules(), "sequential": Sequential(), "thresholds": Thresholds()}
"""What the first table holds."""
VARIANTS: Mapping[str, Policy] = {
    "sequential, 24/48/72 h": Sequential(least=(24.0, 48.0, 72.0)),
    "thresholds, failureLimit 30": Thresholds(failure_limit=30),
}
"""The sequential policy with H-42's least times in a stage, and the best of the fixed thresholds that `--limits` tries."""
LIMITS: Mapping[str, Policy] = {
    f"accuracy >= {accuracy:g}, failureLimit {most}": replace(Thresholds(), accuracy=accuracy, failure_limit=most)
    for accuracy in (0.50, 0.60, 0.65, 0.70, 0.73)
    for most in (0, 3, 10, 30)
}
"""Fixed thresholds from mild to strict; is there one that is right?"""


def table(rows: Mapping[str, Sequence[Row]], scenarios: Sequence[Scenario]) -> str:
    """Scenario by policy as markdown."""
    lines = [
        "| Scenario | Policy | Promoted | Rolled back | Inconclusive | Hours, median | at 100/h, at 400/h | Harm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at, scenario in enumerate(scenarios):
        for name, found in rows.items():
            row = found[at]
            ends: tuple[Ending, ...] = ("promoted", "rolled_back", "inconclusive")
            shares = " | ".join(_share(row.count(end), len(row.runs)) for end in ends)
            hours = ", ".join(_hours(row.of_rate(rate)) for rate in RATES)
            harm = sum(run.harm for run in row.runs) / len(row.runs)
            lines.append(f"| {scenario.name} | {name} | {shares} | {_hours(row)} | {hours} | {harm:,.0f} |")
    return "\n".join(lines)


def limits_table(rows: Mapping[str, Sequence[Row]], scenarios: Sequence[Scenario]) -> str:
    """Each setting's share of mistakes at each rate: good candidates not promoted, bad ones promoted."""
    lines = [
        "| Limits | Good, not promoted: " + ", ".join(f"{rate}/h" for rate in RATES)
        + " | Bad, promoted: " + ", ".join(f"{rate}/h" for rate in RATES) + " |",
        "|---|---|---|",
    ]  # fmt: skip
    for name, found in rows.items():
        good = [_mistakes(found, scenarios, rate, good=True) for rate in RATES]
        bad = [_mistakes(found, scenarios, rate, good=False) for rate in RATES]
        lines.append(
            f"| {name} | {', '.join(f'{100 * share:.1f} %' for share in good)} | {', '.join(f'{100 * share:.1f} %' for share in bad)} |"
        )
    return "\n".join(lines)


def _mistakes(found: Sequence[Row], scenarios: Sequence[Scenario], rate: int, *, good: bool) -> float:
    runs = [
        run
        for row, scenario in zip(found, scenarios, strict=True)
        if scenario.good is good
        for run in row.of_rate(rate).runs
    ]
    return sum((run.ending == "promoted") is not good for run in runs) / len(runs)


def _share(count: int, runs: int) -> str:
    low, high = wilson(count, runs)
    return f"{100 * count / runs:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _hours(row: Row) -> str:
    return "" if row.median_hours is None else f"{row.median_hours:g}"


def told(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """The bounds of H-43 and of the sequential policy, each met or missed."""
    by = {name: {row.scenario: row for row in found} for name, found in rows.items()}
    rules, ours = by["rules"], by["sequential"]

    def share(row: Row, ending: Ending) -> float:
        return row.count(ending) / len(row.runs)

    bounds = [
        ("rules: equal promoted, %", share(rules["equal"], "promoted"), ">=", 0.90),
        ("rules: equal falsely rolled back, %", share(rules["equal"], "rolled_back"), "<=", 0.05),
        ("rules: at the margin promoted, %", share(rules["at_margin"], "promoted"), "<=", 0.08),
        ("rules: ten points worse rolled back, %", share(rules["ten_points_worse"], "rolled_back"), ">=", 0.95),
        ("sequential: equal falsely rolled back, %", share(ours["equal"], "rolled_back"), "<=", 0.05),
        ("sequential: at the margin promoted, %", share(ours["at_margin"], "promoted"), "<=", 0.05),
    ]  # fmt: skip
    lines = []
    for name, value, op, bound in bounds:
        held = value >= bound if op == ">=" else value <= bound
        lines.append(f"- {'met' if held else 'MISSED'}: {name} {100 * value:.1f} ({op} {100 * bound:g})")
    for scenario in ("equal", "better"):
        for rate in RATES:
            mine, theirs = (each[scenario].of_rate(rate).median_hours for each in (ours, rules))
            held = mine is not None and (theirs is None or mine <= theirs)
            said = f"sequential: {scenario} at {rate} units an hour, median hours {mine:g} (rules {theirs:g})"
            lines.append(f"- {'met' if held else 'MISSED'}: {said}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print, and where asked write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout.operating", description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="rollouts of each scenario and policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument(
        "--alone", action="store_true", help="also time each policy alone, and the first three together"
    )
    parser.add_argument("--limits", action="store_true", help="also try fixed thresholds from mild to strict")
    parser.add_argument("--out", type=Path, help="write the tables into this file too")
    said = parser.parse_args(arguments)

    parts, document = [], {"runs": said.runs, "seed": said.seed}
    seconds: dict[str, float] = {}

    def play(policies: Mapping[str, Policy], called: str) -> dict[str, list[Row]]:
        started = time.monotonic()
        found = simulate(policies, runs=said.runs, seed=said.seed, workers=said.workers)
        seconds[called] = round(time.monotonic() - started, 1)
        return found

    rows = play({**MAIN, **VARIANTS}, "all five")
    if said.alone:
        for name, policy in MAIN.items():
            assert play({name: policy}, f"{name} alone")[name] == rows[name], "figures do not depend on the company"
        play(MAIN, "the first three")
    parts += [table(rows, SCENARIOS), "", *told(rows)]
    figures: dict[str, Any] = {name: [row.to_dict() for row in found] for name, found in rows.items()}
    if said.limits:
        limits = play(LIMITS, "limits")
        parts += ["", limits_table({**limits, **{name: rows[name] for name in ("rules", "sequential")}}, SCENARIOS)]
        figures |= {name: [row.to_dict() for row in found] for name, found in limits.items()}
    parts += [
        "",
        f"{said.runs} runs of each, seed {said.seed}; "
        + ", ".join(f"{name} {value:g} s" for name, value in seconds.items())
        + f" in {said.workers} processes.",
    ]
    text = "\n".join(parts)
    print(text)
    if said.out is not None:
        said.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({**document, "seconds": seconds, "policies": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
