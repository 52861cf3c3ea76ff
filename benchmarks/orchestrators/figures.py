"""What the wall times of the peers come to: medians, percentiles, ratios, our two bounds, and the table. Measures nothing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Bounds of issue 3: our first run against kfp's bare runner, at most; our re-run against DVC's is to be below 1.
FIRST_BOUND = 1.2


class Round(NamedTuple):
    """Wall seconds of both commands, and how many steps the second one ran."""

    first: float
    again: float
    ran_again: int


def median_and_p95(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile (between neighbours, in a straight line) of some wall times."""
    if len(seconds) == 1:
        return {"median": seconds[0], "p95": seconds[0]}
    return {
        "median": statistics.median(seconds),
        "p95": statistics.quantiles(seconds, n=20, method="inclusive")[18],
    }


def summed_up(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Each peer's figures, their ratios to kfp's bare runner (first) and DVC (again), and our two bounds.

    A ratio or a bound whose other side was not run is None.
    """
    figures: dict[str, dict[str, Any]] = {
        name: {
            "first": median_and_p95([one.first for one in found]),
            "again": median_and_p95([one.again for one in found]),
            "ran_again": found[-1].ran_again,
        }
        for name, found in rounds.items()
    }

    def ratio(name: str, which: str, to: str) -> float | None:
        if name not in figures or to not in figures:
            return None
        return float(figures[name][which]["median"] / figures[to][which]["median"])

    for name, figure in figures.items():
        figure["first"]["to_kfp"] = ratio(name, "first", "kfp")
        figure["again"]["to_dvc"] = ratio(name, "again", "dvc")
    first, again = ratio("esteira", "first", "kfp"), ratio("esteira", "again", "dvc")
    return {
        "peers": figures,
        "bounds": {
            "first_to_kfp": {"value": first, "at_most": FIRST_BOUND, "held": None if first is None else first <= FIRST_BOUND},
            "again_to_dvc": {"value": again, "below": 1.0, "held": None if again is None else again < 1.0},
        },
    }  # fmt: skip


def table(figures: Mapping[str, Any], versions: Mapping[str, str], reuses: Mapping[str, str]) -> str:
    """The figures as a markdown table, seconds and ratios."""
    lines = [
        "| Runner | First run, s (p95) | to kfp | Unchanged again, s (p95) | to DVC | Steps run again | Reuse relies on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figure in figures.items():
        first, again = figure["first"], figure["again"]
        lines.append(
            f"| {name} {versions[name]} | {first['median']:.2f} ({first['p95']:.2f}) | {_ratio(first['to_kfp'])} "
            f"| {again['median']:.2f} ({again['p95']:.2f}) | {_ratio(again['to_dvc'])} | {figure['ran_again']} "
            f"| {reuses[name]} |"
        )
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
