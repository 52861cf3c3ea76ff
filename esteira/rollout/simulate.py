"""Rollouts on a synthetic clock: thousands of candidates of known quality under a policy, and how often each ended how.

Pure but for the processes it starts: the same seed gives the same figures, in any order and by any number of workers, since a
run's traffic depends on seed, scenario and run alone. All policies see the same traffic: each hour is drawn in bands of the router's
buckets, for either version, and a share takes the bands below it, as the sticky router of H-40 does.

Traffic: 100 units an hour in every other run and 400 in the rest, unless said otherwise; Poisson, with a day's rise and fall; base
accuracy 0.75; one error in 200; latency lognormal with a median of 30 ms. Looks are hourly. Every unit is labelled in the end, unless
it was an error.
"""

import ctypes
import functools
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

import numpy as np
from numpy.typing import NDArray

from esteira.errors import ConfigError, OutsideError
from esteira.latency import BOUNDS
from esteira.rollout.posterior import wilson
from esteira.rollout.state import Policy, Rollout, Side
from esteira.rollout.sums import ArmName, Sums

Ending = Literal["promoted", "rolled_back", "inconclusive", "running"]
ENDINGS: tuple[Ending, ...] = ("promoted", "rolled_back", "inconclusive", "running")
_ENDED: Mapping[str, Ending] = {"promote": "promoted", "roll_back": "rolled_back", "inconclusive": "inconclusive"}
RATES = (100, 400)
"""Units an hour, all of them labelled in the end; run number n takes the one at n modulo their number."""
MOST_HOURS = 600
"""Longer than the longest rollout of H-43, 4 times 144 h; one that lasts longer, or than its policy's `longest`, is told as `running`."""
SHARES = (10.0, 25.0, 50.0, 100.0)
"""Percent that the stages of H-42 have; a policy with others is played on traffic that is drawn in finer bands."""
START = datetime(2026, 1, 5, tzinfo=UTC)
PLANS: Mapping[str, Mapping[str, Any]] = {
    "ab": {"primaries": [{"name": "accuracy", "baseline": 0.75, "minimum_effect": 0.03}]},
}
"""Policy -> what `policies.planned` needs of a person, as it suits this traffic."""

_BASE, _ERROR_RATE, _MEDIAN, _SIGMA = 0.75, 0.005, 0.030, 0.35
_CONFIDENCE, _CONFIDENCE_SPREAD = 0.80, 0.12
_CHUNK = 24  # hours that are drawn at once
_BATCH = 20  # runs that a worker takes at once
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Scenario:
    """What the candidate is like, and the traffic.

    Attributes:
        good: whether its promotion would be right; None where nothing can be known of it.
        lift: its accuracy less the control's.
        errors: its error rate less the control's.
        slower: its latency over the control's.
        delays: (hours until a label arrives, share of the labels).
        shift: (hour, points) from when on the accuracy of both differs by that much.
        bursts: one hour in twelve has six times the traffic, of units that both get wrong more often.
        until: hour at which the traffic stops; None never.
    """

    name: str
    what: str
    good: bool | None
    lift: float = 0.0
    errors: float = 0.0
    slower: float = 1.0
    delays: tuple[tuple[int, float], ...] = ((0, 1.0),)
    shift: tuple[int, float] | None = None
    bursts: bool = False
    until: int | None = None


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("equal", "as good as the control", True),
    Scenario("better", "3 points better", True, lift=0.03),
    Scenario("at_margin", "2 points worse, which is the margin", False, lift=-0.02),
    Scenario("ten_points_worse", "10 points worse", False, lift=-0.10),
    Scenario(
        "delayed_labels", "as good; labels come after 12, 24 or 48 h", True, delays=((12, 0.3), (24, 0.4), (48, 0.3))
    ),
    Scenario("base_rate_shift", "as good; from hour 60 on both are 6 points worse", True, shift=(60, -0.06)),
    Scenario("bursts", "as good; bursts of six times the traffic, harder for both", True, bursts=True),
    Scenario("no_traffic", "no unit ever comes", None, until=0),
    Scenario("traffic_stops", "as good; no unit comes from hour 30 on", None, until=30),
    Scenario("slow", "as good, 1.5 times as slow", False, slower=1.5),
    Scenario("errors", "as good, 8 points more errors", False, errors=0.08),
)


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


# ------------------------------------------------------------------------------------------------------- traffic


class Stream:
    """The traffic of one run, drawn as far as it is asked for; the same however far, and by whomever.

    Each hour it draws the units of each band of buckets, and for either version what it would answer them: a share takes the bands
    below it from the candidate and the others from the control.

    Args:
        seed, run: 0 or more.
        shares: percent that stages may have, ascending; the last is 100.
        rates: units an hour, of which the run takes one; see RATES.
    """

    def __init__(
        self, scenario: Scenario, seed: int, run: int, shares: tuple[float, ...] = SHARES, rates: Sequence[int] = RATES
    ) -> None:
        self.scenario, self.rate, self.shares = scenario, rates[run % len(rates)], shares
        self.buckets, self._shape = _latencies(scenario.slower)
        self._widths = np.diff(np.array([0.0, *shares])) / 100
        # Lengths go first, so that no two of these are the same numbers in another grouping.
        self._entropy = (seed, len(scenario.name), *scenario.name.encode(), run)
        self.arm_fields = 3 + 2 * len(scenario.delays) + len(self.buckets)
        nothing = np.zeros((1, len(shares), 2, self.arm_fields), dtype=np.int64)
        self._last, self._last_sure = nothing[-1], np.zeros((len(shares), 2))
        self._counts: list[list[list[int]]] = nothing.reshape(1, len(shares), -1).tolist()
        self._sure: list[list[list[float]]] = [self._last_sure.tolist()]

    def totals(self, hours: int, share: int) -> tuple[list[int], list[float]]:
        """What came in the first so many hours, had the candidate had this share from the start.

        Args:
            hours: 0 or more.
            share: its place in `shares`.

        Returns:
            Counts of the candidate and then of the control, `arm_fields` each: served, errors, answered, then labelled and right for
            each delay of the scenario (as if labels came at once), then answers in each of `buckets`; and both sums of confidences.
        """
        while len(self._counts) <= hours:
            self._draw((len(self._counts) - 1) // _CHUNK)
        return self._counts[hours][share], self._sure[hours][share]

    def _draw(self, number: int) -> None:
        chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*self._entropy, number))))
        scenario = self.scenario
        hours = np.arange(number * _CHUNK, (number + 1) * _CHUNK)
        rates = self.rate * (1 + 0.5 * np.sin(2 * np.pi * hours / 24))
        base = np.full(_CHUNK, _BASE)
        if scenario.shift is not None:
            base[hours >= scenario.shift[0]] += scenario.shift[1]
        if scenario.bursts:
            burst = chance.random(_CHUNK) < 1 / 12
            rates = rates * np.where(burst, 6.0, 6 / 11)
            base[burst] -= 0.05
        if scenario.until is not None:
            rates = np.where(hours < scenario.until, rates, 0.0)
        # First index: hour; second: band of buckets; third: candidate, control.
        units = chance.multinomial(chance.poisson(rates), self._widths)[:, :, None]
        errors = chance.binomial(units, [min(1.0, _ERROR_RATE + scenario.errors), _ERROR_RATE])
        answered = units - errors
        spread = [share for _, share in scenario.delays]
        labelled = chance.multinomial(answered, spread) if len(spread) > 1 else answered[..., None]
        accuracy = np.clip(np.stack([base + scenario.lift, base], axis=1), 0.0, 1.0)
        right = chance.binomial(labelled, accuracy[:, None, :, None])
        sure = chance.normal(answered * _CONFIDENCE, np.sqrt(answered) * _CONFIDENCE_SPREAD)
        latency = chance.multinomial(answered, self._shape)
        drawn = np.concatenate(
            [
                np.broadcast_to(units, errors.shape)[..., None], errors[..., None], answered[..., None],
                np.stack([labelled, right], axis=-1).reshape(*errors.shape, -1), latency,
            ],
            axis=-1,
        )  # fmt: skip
        counts = self._last + np.cumsum(_by_share(drawn), axis=0)
        sums = self._last_sure + np.cumsum(_by_share(np.clip(sure, 0.0, answered)), axis=0)
        self._last, self._last_sure = counts[-1], sums[-1]
        self._counts += counts.reshape(_CHUNK, len(self.shares), -1).tolist()
        self._sure += sums.tolist()


def _by_share(drawn: NDArray[Any]) -> NDArray[Any]:
    """What each arm gets at each share, in the place of what each version does in each band (index 1; index 2 is the arm)."""
    below = np.cumsum(drawn, axis=1)
    return np.stack([below[:, :, 0], below[:, -1:, 1] - below[:, :, 1]], axis=2)


@functools.cache
def _latencies(slower: float) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Buckets of `esteira.latency.BOUNDS`, and the share of the candidate's and the control's answers in each.

    Only those that a 95th percentile may lie in: what is below the control's median is put into the first, what is above
    the slower one's 99.9 % quantile into the last.
    """
    first = next(k for k, bound in enumerate(BOUNDS) if _below(bound, 1.0) > 0.5)
    last = next(k for k, bound in enumerate(BOUNDS) if _below(bound, max(1.0, slower)) > 0.999)
    shares = []
    for factor in (slower, 1.0):
        below = [0.0, *(_below(BOUNDS[k], factor) for k in range(first, last)), 1.0]
        shares.append(np.diff(below))
    return tuple(range(first, last + 1)), np.stack(shares)


def _below(seconds: float, factor: float) -> float:
    return 0.5 * math.erfc(-math.log(seconds / (_MEDIAN * factor)) / (_SIGMA * math.sqrt(2)))


# ----------------------------------------------------------------------------------------------------- one rollout


class _Stage:
    """A stage of a rollout: what its arms did by now, from the stream's totals.

    Args:
        since: hours that had passed when it began.
        share: place of its share.
    """

    def __init__(self, stream: Stream, since: int, share: int) -> None:
        self._stream, self._since, self._share = stream, since, share
        self._before, self._sure_before = stream.totals(since, share)
        self.ended: int | None = None
        self.settled: dict[ArmName, Sums] | None = None

    def sums(self, hours: int) -> dict[ArmName, Sums]:
        """Both arms after so many hours of the rollout, with the labels that have come by then."""
        if self.settled is not None:
            return self.settled
        stream, end = self._stream, hours if self.ended is None else self.ended
        now, sure = stream.totals(end, self._share)
        counts = [one - other for one, other in zip(now, self._before, strict=True)]
        width = stream.arm_fields
        for place, (delay, _) in enumerate(stream.scenario.delays):
            if delay:
                known = max(self._since, min(end, hours - delay))
                came = stream.totals(known, self._share)[0]
                for at in (3 + 2 * place, 4 + 2 * place, width + 3 + 2 * place, width + 4 + 2 * place):
                    counts[at] = came[at] - self._before[at]
        found: dict[ArmName, Sums] = {
            "candidate": _sums(stream, counts[:width], sure[0] - self._sure_before[0]),
            "control": _sums(stream, counts[width:], sure[1] - self._sure_before[1]),
        }
        if self.ended is not None and hours - max(delay for delay, _ in stream.scenario.delays) >= self.ended:
            self.settled = found
        return found


def _sums(stream: Stream, counts: list[int], confidence: float) -> Sums:
    served, errors, sure, labelled, right = counts[:5]
    first = 5
    for _ in stream.scenario.delays[1:]:
        labelled += counts[first]
        right += counts[first + 1]
        first += 2
    # The sum of squares that confidences of this mean and spread have; a unit's own are never drawn.
    square = min(confidence**2 / sure + sure * _CONFIDENCE_SPREAD**2, float(sure)) if sure else 0.0
    latency = {bucket: count for bucket, count in zip(stream.buckets, counts[first:], strict=True) if count}
    return Sums(served, errors, labelled, float(right), float(right), sure, confidence, square, latency)


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
    stages = {state.stage: _Stage(stream, 0, _place(stream, state.percent))}
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
            stages[decision.state.stage] = _Stage(stream, hours, _place(stream, decision.percent))
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
