"""`esteira simulate`: what a policy would do, on a synthetic clock; it reads and writes no state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say, show

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
@click.option(
    "--option",
    "given",
    multiple=True,
    metavar="KEY=JSON",
    help="Of the policy's plan, as when a rollout is started. Repeatable.",
)
@click.option(
    "--units-per-hour", "rate", type=click.IntRange(1, 1_000_000), help="By default 100 and 400, in every other run."
)
@click.option("--compare/--no-compare", default=None, help="Whether other policies are run on the same traffic.")
@click.option("--scenario", "only", multiple=True, metavar="NAME", help="This scenario alone; may be given again.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes; by default one a processor, at most 8. Up to 200 rollouts take one.",
)
@click.option("--html", type=click.Path(dir_okay=False), help="Write the figures as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rollout(
    runs: int, seed: int, policy: str | None, given: tuple[str, ...], rate: int | None, compare: bool | None,
    only: tuple[str, ...], workers: int | None, html: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Play rollouts of candidates whose quality is known, with hourly looks, and count how they end.

    The same seed gives the same figures. Each share of the runs stands with its 95 % interval. The traffic is Poisson with a day's rise
    and fall; the control is right in 75 % of its answers, one unit in 200 is an error, half the answers take up to 30 ms, and every
    answer is labelled, at once unless the scenario says otherwise. `ab` plans to see 3 points; no user is named for `flags`.

    \b
    Example:
      esteira simulate rollout --runs 500 --policy rules
      esteira simulate rollout --runs 500 --seed 7 --html operating.html
      esteira simulate rollout --policy rules --units-per-hour 40 --option 'rules={"served": 200}'
    """
    import os
    import time

    from esteira.cli.rollout import options_of
    from esteira.rollout import simulate as simulator
    from esteira.rollout.policies import make, planned, said_at
    from esteira.rollout.traffic import RATES

    name = policy or "rules"
    compared = (
        [other for other in COMPARED if other != name] if (policy is None if compare is None else compare) else []
    )
    # Before anything is played: an unknown name or a page that cannot be written must not cost minutes.
    asked = options_of(given)
    with said_at("--policy" if policy else "", {key: f"--option {key}" for key in asked}):
        policies = {each: make(each) for each in (name, *compared)}
        options = {
            each: planned(each, {**simulator.PLANS.get(each, {}), **(asked if each == name else {})})
            for each in policies
        }
    rates = RATES if rate is None else (rate,)
    scenarios = _chosen(only)
    if html:
        _check_place(Path(html))
    processes = workers or min(os.cpu_count() or 1, 8)
    started = time.monotonic()
    rows = simulator.simulate(
        policies, runs=runs, seed=seed, scenarios=scenarios, options=options, rates=rates,
        workers=processes if runs * len(scenarios) * len(policies) > 200 else 1, progress=_progress(),
    )  # fmt: skip
    say(f"{runs * len(scenarios) * len(policies):,} rollouts in {time.monotonic() - started:.1f} s")
    notes = simulator.undecided(rows, policies, scenarios, seed=seed, options=options, rates=rates)
    for note in notes:
        say(f"note: {note}")
    if html:
        from esteira import outputs
        from esteira.rollout import simulate_page

        place = Path(html)
        outputs.write(place.parent, {place.name: simulate_page.render(rows, scenarios, runs=runs, seed=seed).encode()})
        say(f"{place} shows them")
    if as_json:
        played = {"options": options[name], "runs": runs, "seed": seed, "units_per_hour": list(rates)}
        emit({**document(rows, name), **played, "notes": notes})
        return
    show(f"{runs} runs of each scenario and policy; beside each share of them its 95 % interval")
    for line in lines(rows):
        show(line)


def document(rows: "Mapping[str, Sequence[Row]]", policy: str) -> dict[str, Any]:
    """The figures as JSON values; the same for the same seed."""
    told = {name: [row.to_dict() for row in found] for name, found in rows.items()}
    compare = {name: found for name, found in told.items() if name != policy}
    return {"policy": policy, "scenarios": told[policy], "compare": compare}


def lines(rows: "Mapping[str, Sequence[Row]]") -> list[str]:
    """The figures as a table for people, one line a scenario and policy."""
    from esteira.rollout.simulate import ENDINGS

    still = any(row.count("running") for found in rows.values() for row in found)
    endings = ENDINGS if still else ENDINGS[:-1]
    width = max(len(name) for name in rows)
    heads = "".join(f"  {ending.replace('_', ' '):>23}" for ending in endings)
    found = [f"{'':<17}{'':<{width}}{heads}  median hours"]
    for per_scenario in zip(*rows.values(), strict=True):
        for at, (name, row) in enumerate(zip(rows, per_scenario, strict=True)):
            shares = (tuple(100 * part for part in row.share(ending)) for ending in endings)
            cells = "".join(f"  {f'{share:.1f} % ({low:.1f} to {high:.1f})':>23}" for share, low, high in shares)
            hours = "-" if row.median_hours is None else f"{row.median_hours:g}"
            label = row.scenario if at == 0 else ""
            found.append(f"{label:<17}{name:<{width}}{cells}  {hours:>12}")
    return found


def _chosen(only: "Sequence[str]") -> "list[Any]":
    from esteira.errors import ConfigError
    from esteira.rollout.traffic import SCENARIOS

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
