"""Rollouts on a synthetic clock: thousands of candidates of known quality under a policy, and how often each ended how.

Pure but for the processes it starts: the same seed gives the same figures, in any order and by any number of workers. The traffic is
that of `esteira.rollout.traffic`; looks are hourly.
"""

import ctypes
import math
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from esteira.errors import ConfigError, OutsideError
from esteira.rollout.posterior import wilson
from esteira.rollout.state import Policy, Rollout, Side
from esteira.rollout.traffic import RATES, SCENARIOS, SHARES, Scenario, StageTraffic, Stream

Ending = Literal["promoted", "rolled_back", "inconclusive", "running"]
ENDINGS: tuple[Ending, ...] = ("promoted", "rolled_back", "inconclusive", "running")
_ENDED: Mapping[str, Ending] = {"promote": "promoted", "roll_back": "rolled_back", "inconclusive": "inconclusive"}
MOST_HOURS = 600
"""Longer than the longest rollout of H-43, 4 times 144 h; one that lasts longer, or than its policy's `longest`, is told as `running`."""
START = datetime(2026, 1, 5, tzinfo=UTC)
PLANS: Mapping[str, Mapping[str, Any]] = {
    "ab": {"primaries": [{"name": "accuracy", "baseline": 0.75, "minimum_effect": 0.03}]},
}
"""Policy -> what `policies.planned` needs of a person, as it suits this traffic."""

_BATCH = 20  # runs that a worker takes at once
_PR_SET_PDEATHSIG = 1


class Run(NamedTuple):
    """How one rollout ended.

    Attributes:
        rate: units an hour.
        ending: how.
        hours: from its start to its end, or as far as it was played.
        harm: units that the candidate answered wrongly or not, and the control would have answered rightly (expected number).
    """

    rate: int
    ending: Ending
    hours: int
    harm: float


@dataclass(frozen=True)
class Row:
    """What the runs of a scenario came to."""

    scenario: str
    runs: tuple[Run, ...] = field(repr=False)

    def count(self, ending: Ending) -> int:
        """Runs that ended so."""
        return sum(run.ending == ending for run in self.runs)

    @property
    def median_hours(self) -> float | None:
        """Hours until the end of a run, median over those that ended; None if none did."""
        hours = [run.hours for run in self.runs if run.ending != "running"]
        return float(statistics.median(hours)) if hours else None

    @property
    def rates(self) -> list[int]:
        """Units an hour that its runs had, ascending."""
        return sorted({run.rate for run in self.runs})

    def share(self, ending: Ending) -> tuple[float, float, float]:
        """Of the runs, at least one, that ended so; and its 95 % interval (Wilson)."""
        count, runs = self.count(ending), len(self.runs)
        return (count / runs, *wilson(count, runs))

    def of_rate(self, rate: int) -> "Row":
        """The same of the runs at this many units an hour."""
        return Row(self.scenario, tuple(run for run in self.runs if run.rate == rate))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: counts, shares with their 95 % intervals (Wilson), hours, harm; `by_rate` the same a rate."""
        return {
            **self._told(),
            "by_rate": {str(rate): self.of_rate(rate)._told() for rate in self.rates},
        }

    def _told(self) -> dict[str, Any]:
        runs = len(self.runs)
        counts: dict[str, int] = {ending: self.count(ending) for ending in ENDINGS}
        intervals = {ending: [round(end, 4) for end in wilson(counts[ending], runs)] for ending in ENDINGS}
        return {
            "scenario": self.scenario, "runs": runs, **counts, "median_hours": self.median_hours,
            "shares": {ending: round(counts[ending] / runs, 4) if runs else None for ending in ENDINGS},
            "intervals": intervals,
            "mean_harm": round(statistics.fmean(run.harm for run in self.runs), 2) if runs else None,
        }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- one rollout


def play(policy: Policy, stream: Stream, options: Mapping[str, Any] | None = None) -> Run:
    """One rollout from its first unit to its end.

    Args:
        options: the plan that the policy needs, see `policies.planned`.

    Raises:
        ConfigError: a stage has a share that the stream does not have (`unknown_share`).
    """
    return _played(policy, stream, options)[0]


def _played(policy: Policy, stream: Stream, options: Mapping[str, Any] | None) -> tuple[Run, str]:
    """The run, and why it ended."""
    scenario = stream.scenario
    state = Rollout(
        test_id="simulated", line="simulated", policy=policy.name, champion=Side(1, "champion"),
        challenger=Side(2, "challenger"), salt="simulated", started_at=START, stage_at=START,
        percent=policy.stages[0], options=options or {},
    )  # fmt: skip
    stages = {state.stage: StageTraffic(stream, 0, _place(stream, state.percent))}
    loss = max(0.0, -scenario.lift) + scenario.errors
    ending: Ending = "running"
    reason = ""
    for hours in range(1, math.ceil(max(MOST_HOURS, getattr(policy, "longest", 0))) + 1):
        sums = {stage: passing.sums(hours) for stage, passing in stages.items()}
        decision = policy.decide(state.with_sums(sums), START + timedelta(hours=hours))
        if decision.action in _ENDED:
            ending, reason = _ENDED[decision.action], decision.reason
            break
        if decision.state.stage != state.stage:
            stages[state.stage].ended = hours
            stages[decision.state.stage] = StageTraffic(stream, hours, _place(stream, decision.percent))
        state = decision.state
    harm = loss * sum(passing.sums(hours)["candidate"].served for passing in stages.values())
    return Run(stream.rate, ending, hours, harm), reason


def _place(stream: Stream, percent: float) -> int:
    if percent not in stream.shares:
        raise ConfigError(
            f"a stage's share is one of {', '.join(f'{share:g}' for share in stream.shares)} %, but got {percent:g} %",
            code="unknown_share", where="a policy's stages", cure="name it when the traffic is drawn",
        )  # fmt: skip
    return stream.shares.index(percent)


def shares_of(policies: Iterable[Policy]) -> tuple[float, ...]:
    """The shares whose traffic must be drawn: SHARES, and those that a policy has besides."""
    return tuple(sorted({*SHARES, *(share for policy in policies for share in policy.stages)}))


# ------------------------------------------------------------------------------------------------------- many of them


def simulate(
    policies: Mapping[str, Policy], *, runs: int, seed: int = 0, scenarios: Sequence[Scenario] = SCENARIOS,
    options: Mapping[str, Mapping[str, Any]] | None = None, rates: Sequence[int] = RATES, workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Row]]:  # fmt: skip
    """Policy -> a row for each scenario, in their order.

    Args:
        policies: by the name that the result has for them; all see the same traffic.
        runs: of each scenario.
        options: policy -> the plan it needs.
        rates: units an hour, by turns.
        workers: processes; with one, everything happens in this one.
        progress: called with the rollouts done and all that there are.

    Raises:
        OutsideError: a worker died (`worker_died`).
    """
    plans = options or {}
    batches = [
        (scenario, range(first, min(first + _BATCH, runs)))
        for scenario in scenarios
        for first in range(0, runs, _BATCH)
    ]
    total, done = runs * len(scenarios) * len(policies), 0
    found: dict[tuple[str, int], dict[str, list[Run]]] = {}

    def keep(batch: tuple[Scenario, range], result: dict[str, list[Run]]) -> None:
        nonlocal done
        found[batch[0].name, batch[1].start] = result
        done += len(batch[1]) * len(policies)
        if progress is not None:
            progress(done, total)

    if workers <= 1:
        for batch in batches:
            keep(batch, _play_all(policies, plans, *batch, seed, rates))
    else:
        _in_processes(
            batches, lambda pool, batch: pool.submit(_play_all, policies, plans, *batch, seed, rates), keep, workers
        )
    return {
        name: [
            Row(
                scenario.name,
                tuple(run for first in range(0, runs, _BATCH) for run in found[scenario.name, first][name]),
            )
            for scenario in scenarios
        ]
        for name in policies
    }


def undecided(
    rows: Mapping[str, Sequence[Row]], policies: Mapping[str, Policy], scenarios: Sequence[Scenario], *, seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None, rates: Sequence[int] = RATES,
) -> list[str]:  # fmt: skip
    """Which policy told no good candidate from a bad one at which rate, and why: mostly it takes more units than come.

    Args:
        rows: what `simulate` gave for all the other arguments.
    """
    notes = []
    for name, policy in policies.items():
        good = [
            (scenario, row) for scenario, row in zip(scenarios, rows[name], strict=True)
            if scenario.good and scenario.until is None
        ]  # fmt: skip
        for rate in sorted(set(rates)):
            ends = [run.ending for _, row in good for run in row.of_rate(rate).runs]
            if not ends or set(ends) != {"inconclusive"}:
                continue
            # Reasons are not kept of every run; of the first it is asked again.
            stream = Stream(good[0][0], seed, rates.index(rate), shares_of(policies.values()), rates)
            reason = _played(policy, stream, (options or {}).get(name))[1]
            notes.append(
                f"{name} at {rate} units an hour: all {len(ends)} runs of candidates as good or better ended as inconclusive,"
                f" the first of {good[0][0].name} because {reason}"
            )
    return notes


def _play_all(
    policies: Mapping[str, Policy],
    plans: Mapping[str, Mapping[str, Any]],
    scenario: Scenario,
    numbers: range,
    seed: int,
    rates: Sequence[int],
) -> dict[str, list[Run]]:
    """The same runs under each policy; the traffic of a run is drawn once."""
    found: dict[str, list[Run]] = {name: [] for name in policies}
    shares = shares_of(policies.values())
    for number in numbers:
        stream = Stream(scenario, seed, number, shares, rates)
        for name, policy in policies.items():
            found[name].append(play(policy, stream, plans.get(name)))
    return found


def _in_processes(
    batches: Sequence[tuple[Scenario, range]],
    submit: Callable[[ProcessPoolExecutor, tuple[Scenario, range]], "Future[dict[str, list[Run]]]"],
    keep: Callable[[tuple[Scenario, range], dict[str, list[Run]]], None],
    workers: int,
) -> None:
    # Fresh processes: a fork of a process with threads may hang, and who calls this may have some.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(),))
    try:
        # A worker that is still starting must not be the one that Ctrl-C hits: it inherits what is blocked here.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            open_ones = {submit(pool, batch): batch for batch in batches}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        while open_ones:
            ready, _ = wait(open_ones, return_when=FIRST_COMPLETED)
            for future in ready:
                keep(open_ones.pop(future), future.result())
    except BrokenProcessPool as error:
        raise OutsideError(
            "a worker lives until its runs are played, but one died",
            code="worker_died", where="simulate", cure="is memory short? Run the same command again, with --workers 1",
        ) from error  # fmt: skip
    finally:
        # After Ctrl-C the batches that run, a second or less, are waited for; nothing outlives the command.
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    # Ctrl-C reaches the whole group; who started us ends us.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
