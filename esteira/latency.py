"""Says how a route's latency stands against its objectives, and how many instances a rate needs. Pure but for one clock.

The objectives (S-25): over five minutes half of a route's requests take less than 50 ms, 95 % less than 100 ms and 99 %
less than 200 ms.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "critical", "no_data"]

OBJECTIVES: Mapping[str, tuple[float, float]] = {"p50": (0.50, 0.050), "p95": (0.95, 0.100), "p99": (0.99, 0.200)}
"""Name -> (share of requests, seconds that this share stays below)."""
CRITICAL_SECONDS = 0.500
"""The 99th percentile from which a failed objective is no warning any more."""
LEVELS: Mapping[State, int] = {"ok": 0, "warning": 1, "critical": 2}
"""A state as a number, for a gauge; `no_data` has none."""

# Twenty-two steps a decade, at most 14 % apart, from 0.1 ms to 90 s. The objectives' limits are among them.
_STEPS = (1, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 2, 2.25, 2.5, 2.8, 3, 3.4, 3.8, 4.25, 4.75, 5, 5.6, 6.3, 7.1, 8, 9)
BOUNDS: tuple[float, ...] = tuple(float(f"{step}e{decade}") for decade in range(-4, 2) for step in _STEPS)
"""Seconds; bucket i counts `BOUNDS[i - 1] <= seconds < BOUNDS[i]`, bucket 0 what is less, the last one what is more."""

WINDOW_MINUTES = 5
MOST_ROUTES = 100
OTHER = "other"
"""The route that counts what came when MOST_ROUTES were known already."""


@dataclass(frozen=True)
class Latency:
    """How a route stands.

    Attributes:
        state: `ok` when all objectives hold; `warning` when one fails; `critical` when the 99th percentile is 500 ms or
            more; `no_data` without a request.
        count: requests of the window.
        p50, p95, p99: seconds; None without a request.
        fails: names of the objectives that fail, as in OBJECTIVES.
    """

    state: State
    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    fails: tuple[str, ...]


def of_samples(seconds: Sequence[float]) -> Latency:
    """The state of a window's requests, by exact percentiles (nearest rank).

    Args:
        seconds: how long each took, in any order.

    Raises:
        ValueError: a time is negative or no number.
    """
    ordered = sorted(seconds)
    if not all(value >= 0 for value in seconds):
        raise ValueError("a request takes 0 seconds or more")
    return _judge(len(ordered), lambda share: ordered[_rank(share, len(ordered)) - 1])


def of_counts(counts: Sequence[int]) -> Latency:
    """The state of a window by its histogram; each percentile lies in the bucket of the exact one.

    Since the objectives' limits are bounds of buckets, the state is that of `of_samples` of the same requests.

    Args:
        counts: requests a bucket of BOUNDS, len(BOUNDS) + 1 of them.

    Raises:
        ValueError: another number of buckets.
    """
    if len(counts) != len(BOUNDS) + 1:
        raise ValueError(f"a histogram has {len(BOUNDS) + 1} buckets, but got {len(counts)}")
    total = sum(counts)
    return _judge(total, lambda share: _within(counts, _rank(share, total)))


def _judge(count: int, quantile: Callable[[float], float]) -> Latency:
    if not count:
        return Latency("no_data", 0, None, None, None, ())
    found = {name: quantile(share) for name, (share, _) in OBJECTIVES.items()}
    fails = tuple(name for name, (_, limit) in OBJECTIVES.items() if not found[name] < limit)
    state: State = "critical" if found["p99"] >= CRITICAL_SECONDS else "warning" if fails else "ok"
    return Latency(state, count, found["p50"], found["p95"], found["p99"], fails)


def _rank(share: float, count: int) -> int:
    # Rounded first: 0.95 * 20 is 19.000000000000004 in some orders of arithmetic, and the 20th is another request.
    return max(1, math.ceil(round(share * count, 9)))


def _within(counts: Sequence[int], rank: int) -> float:
    """The time of the request of that rank, as if the requests of its bucket stood at equal distances in it."""
    before = 0
    for bucket, count in enumerate(counts):
        if before + count >= rank:
            low = BOUNDS[bucket - 1] if bucket else 0.0
            # The last bucket has no end; its start is what is known.
            high = BOUNDS[bucket] if bucket < len(BOUNDS) else low
            return low + (high - low) * (rank - before - 0.5) / count
        before += count
    raise AssertionError("a rank is at most the number of requests")


class _Minutes:
    """One route's histograms, a ring by minute."""

    __slots__ = ("counts", "minutes")

    def __init__(self) -> None:
        self.minutes = [-1] * WINDOW_MINUTES
        self.counts: list[list[int]] = [[] for _ in range(WINDOW_MINUTES)]


class LatencyWindow:
    """Keeps the last five minutes of each route, the present one among them, in bounded memory.

    One thread observes; any may read. A route takes 5 histograms, about 6 kB; after MOST_ROUTES routes, new ones are
    counted together as `other`.

    Args:
        clock: seconds that never go back; a changed wall clock must not empty the window.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._routes: dict[str, _Minutes] = {}

    def observe(self, route: str, seconds: float) -> None:
        """Count a request that took so many seconds and ended now."""
        self._slot(route, self._clock())[bisect_right(BOUNDS, seconds)] += 1

    def add(self, route: str, counts: Sequence[int], now: float | None = None) -> None:
        """Count many requests that ended just now, as a histogram of BOUNDS (`bisect_right(BOUNDS, seconds)` is the bucket)."""
        slot = self._slot(route, self._clock() if now is None else now)
        for bucket, count in enumerate(counts):
            if count:
                slot[bucket] += count

    def counts(self, now: float | None = None) -> dict[str, list[int]]:
        """Route -> histogram of the window, as `of_counts` takes it; those of several processes may be added up."""
        minute = int((self._clock() if now is None else now) // 60)
        found = {}
        for route, kept in list(self._routes.items()):
            total = [0] * (len(BOUNDS) + 1)
            for at, counts in zip(list(kept.minutes), list(kept.counts), strict=True):
                if counts and minute - WINDOW_MINUTES < at <= minute:
                    total = [a + b for a, b in zip(total, counts, strict=True)]
            found[route] = total
        return found

    def states(self, now: float | None = None) -> dict[str, Latency]:
        """Route -> how it stands now; a route that was asked before, but not in the window, has `no_data`."""
        return {route: of_counts(counts) for route, counts in self.counts(now).items()}

    def _slot(self, route: str, now: float) -> list[int]:
        """The present minute's histogram of a route."""
        kept = self._routes.get(route)
        if kept is None:
            kept = self._routes.setdefault(route if len(self._routes) < MOST_ROUTES else OTHER, _Minutes())
        minute = int(now // 60)
        slot = minute % WINDOW_MINUTES
        if kept.minutes[slot] != minute:
            # First the empty histogram: a reader in between sees an old minute without requests.
            kept.counts[slot] = [0] * (len(BOUNDS) + 1)
            kept.minutes[slot] = minute
        return kept.counts[slot]


def instances(rate: float, seconds: float, *, concurrency: int = 100, headroom: float = 0.0) -> int:
    """How many instances a rate needs, by Little's law: requests in flight are the rate times the mean latency.

    Args:
        rate: requests a second.
        seconds: mean latency.
        concurrency: requests that one instance answers at once.
        headroom: share of each instance that stays free, in [0, 1).

    Raises:
        ValueError: a number out of its range.
    """
    if not (rate >= 0 and seconds >= 0 and concurrency >= 1 and 0 <= headroom < 1) or math.isinf(rate * seconds):
        raise ValueError("rate and seconds are 0 or more, concurrency 1 or more, headroom in [0, 1)")
    return max(1, math.ceil(round(rate * seconds / (concurrency * (1 - headroom)), 9)))
