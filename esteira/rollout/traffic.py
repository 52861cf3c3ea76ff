"""Traffic of simulated rollouts: what a candidate of known quality and its control would answer, hour by hour, for each share.

Each hour is drawn in bands of the router's buckets, for either version, and a share takes the bands below it, as the sticky router of
H-40 does: all policies see the same traffic. It depends on seed, scenario and run alone.

100 units an hour in every other run and 400 in the rest, unless said otherwise; Poisson, with a day's rise and fall; base accuracy 0.75;
one error in 200; latency lognormal with a median of 30 ms. Every unit is labelled in the end, unless it was an error.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.latency import BOUNDS
from esteira.rollout.sums import ArmName, Sums

RATES = (100, 400)
"""Units an hour, all of them labelled in the end; run number n takes the one at n modulo their number."""
SHARES = (10.0, 25.0, 50.0, 100.0)
"""Percent that the stages of H-42 have; a policy with others is played on traffic that is drawn in finer bands."""

_BASE, _ERROR_RATE, _MEDIAN, _SIGMA = 0.75, 0.005, 0.030, 0.35
_CONFIDENCE, _CONFIDENCE_SPREAD = 0.80, 0.12
_CHUNK = 24  # hours that are drawn at once


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


class StageTraffic:
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
