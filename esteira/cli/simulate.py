"""`esteira simulate`: what a policy would do, on a synthetic clock; it reads and writes no state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from esteira.rollout.simulate import Row

COMPARED = ("rules", "sequential", "thresholds")
"""Policies that roll out by stages and are told beside each other."""


@click.group()
def simulate() -> None:
    """Thousands of rollouts on a synthetic clock, and how often each policy was right.

    \b
    Example:
      esteira simulate rollout --runs 100
    """


@simulate.command()
@click.option(
    "--runs", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Rollouts of each scenario."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the traffic.")
@click.option("--policy", metavar="NAME", help="This policy alone; by default `rules`, with the others to compare.")
@click.option("--compare/--no-compare", default=None, help="Whether other policies are run on the same traffic.")
@click.option("--scenario", "only", multiple=True, metavar="NAME", help="This scenario alone; may be given again.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; by default as many as there are processors.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write the figures as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rollout(
    runs: int, seed: int, policy: str | None, compare: bool | None, only: tuple[str, ...], workers: int | None,
    html: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Play rollouts of candidates whose quality is known, with hourly looks, and count how they end.

    The same seed gives the same figures. `promoted`, `rolled_back` and `inconclusive` count runs; each share stands with its
    95 % interval.

    \b
    Example:
      esteira simulate rollout --runs 500 --policy rules
      esteira simulate rollout --runs 500 --seed 7 --html operating.html
    """
    import os
    import time

    from esteira.rollout import simulate as simulator
    from esteira.rollout.policies import make, planned

    name = policy or "rules"
    compared = (
        [other for other in COMPARED if other != name] if (policy is None if compare is None else compare) else []
    )
    # Before anything is played: an unknown name or a page that cannot be written must not cost minutes.
    policies = {each: make(each) for each in (name, *compared)}
    options = {each: planned(each, simulator.PLANS.get(each, {})) for each in policies}
    scenarios = _chosen(only)
    if html:
        _check_place(Path(html))
    processes = workers or min(os.cpu_count() or 1, 8)
    started = time.monotonic()
    rows = simulator.simulate(
        policies, runs=runs, seed=seed, scenarios=scenarios, options=options,
        workers=processes if runs * len(scenarios) * len(policies) > 200 else 1, progress=_progress(),
    )  # fmt: skip
    say(f"{runs * len(scenarios) * len(policies):,} rollouts in {time.monotonic() - started:.1f} s")
    if html:
        from esteira import outputs
        from esteira.rollout import simulate_page

        place = Path(html)
        outputs.write(place.parent, {place.name: simulate_page.render(rows, scenarios, runs=runs, seed=seed).encode()})
        say(f"{place} shows them")
    if as_json:
        emit(document(rows, name, runs=runs, seed=seed))
        return
    for line in lines(rows):
        say(line)


def document(rows: "Mapping[str, Sequence[Row]]", policy: str, *, runs: int, seed: int) -> dict[str, Any]:
    """The figures as JSON values; the same for the same seed."""
    told = {name: [row.to_dict() for row in found] for name, found in rows.items()}
    return {
        "policy": policy, "runs": runs, "seed": seed, "scenarios": told[policy],
        "compare": {name: found for name, found in told.items() if name != policy},
    }  # fmt: skip


def lines(rows: "Mapping[str, Sequence[Row]]") -> list[str]:
    """The figures as a table for people, one line a scenario and policy."""
    width = max(len(name) for name in rows)
    found = [f"{'':<17}{'':<{width}}  promoted  rolled back  inconclusive  median hours"]
    for per_scenario in zip(*rows.values(), strict=True):
        for at, (name, row) in enumerate(zip(rows, per_scenario, strict=True)):
            shares = [100 * row.count(ending) / len(row.runs) for ending in ("promoted", "rolled_back", "inconclusive")]
            hours = "-" if row.median_hours is None else f"{row.median_hours:g}"
            label = row.scenario if at == 0 else ""
            found.append(
                f"{label:<17}{name:<{width}}  {shares[0]:>6.1f} %  {shares[1]:>9.1f} %  {shares[2]:>10.1f} %  {hours:>12}"
            )
    return found


def _chosen(only: "Sequence[str]") -> "list[Any]":
    from esteira.errors import ConfigError
    from esteira.rollout.simulate import SCENARIOS

    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in only:
        if name not in known:
            raise ConfigError(
                f"a scenario is one of {', '.join(known)}, but got {name!r}",
                code="unknown_scenario", where="--scenario", cure="take one of these",
            )  # fmt: skip
    return [scenario for name, scenario in known.items() if not only or name in only]


def _check_place(place: Path) -> None:
    from esteira.errors import ConfigError

    if not place.parent.is_dir():
        raise ConfigError(
            "a page is written into a folder that is there",
            code="no_folder", where=str(place), cure=f"mkdir -p {place.parent}",
        )  # fmt: skip


def _progress() -> "Callable[[int, int], None]":
    """Tells each tenth of the way on standard error."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            say(f"{done:,} of {total:,} rollouts")

    return tell
