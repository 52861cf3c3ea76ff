"""A route's latency is judged by its last five minutes; a histogram says what the samples say; a rate needs so many instances."""

import math
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.latency import (
    BOUNDS,
    LEVELS,
    MOST_ROUTES,
    OBJECTIVES,
    OTHER,
    Latency,
    LatencyWindow,
    instances,
    of_counts,
    of_samples,
)

ROUTE = "/v1/tabular/predict"
SECONDS = st.floats(min_value=0.0, max_value=100.0, allow_nan=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def lognormal(median: float, p99: float, seed: int) -> list[float]:
    """10,000 times of a service whose median and 99th percentile are given, in seconds."""
    chance = random.Random(seed)
    sigma = math.log(p99 / median) / 2.326
    return [median * math.exp(sigma * chance.gauss(0, 1)) for _ in range(10_000)]


# Median and 99th percentile in seconds, the state they must give, and the objectives that fail.
DISTRIBUTIONS = {
    "fast": (0.004, 0.020, "ok", ()),
    "just within": (0.045, 0.090, "ok", ()),
    "slow tail": (0.007, 0.250, "warning", ("p99",)),
    "slow tail and shoulder": (0.040, 0.400, "warning", ("p95", "p99")),
    "slow everywhere, no tail": (0.070, 0.180, "warning", ("p50", "p95")),
    "slow everywhere": (0.120, 0.400, "warning", ("p50", "p95", "p99")),
    "long tail": (0.020, 0.900, "critical", ("p95", "p99")),
    "stuck": (2.0, 8.0, "critical", ("p50", "p95", "p99")),
}


@pytest.mark.requirement("S-25")
@pytest.mark.parametrize(("median", "p99", "state", "fails"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_synthetic_distribution_yields_the_right_state(
    median: float, p99: float, state: str, fails: tuple[str, ...]
) -> None:
    """S-25. Done when: a synthetic distribution yields the right state.

    Its decision: p50 < 50 ms, p95 < 100 ms, p99 < 200 ms over 5-minute windows per route; a p99 between 200 and 500 ms is a
    warning.
    """
    clock = Clock()
    window = LatencyWindow(clock)
    times = lognormal(median, p99, seed=42)
    for number, seconds in enumerate(times):
        clock.now = 1_000_020.0 + 279.0 * number / len(times)
        window.observe(ROUTE, seconds)
        window.observe("/v1/other/predict", 0.001)

    found = window.states()

    assert (state, fails, 10_000) == (found[ROUTE].state, found[ROUTE].fails, found[ROUTE].count)
    exact = of_samples(times)
    assert (exact.state, exact.fails) == (found[ROUTE].state, found[ROUTE].fails)
    assert "ok" == found["/v1/other/predict"].state, "each route for itself"


def test_a_route_without_a_request_has_no_data_rather_than_zeros() -> None:
    nothing = Latency("no_data", 0, None, None, None, ())

    assert nothing == of_samples([]) == of_counts([0] * (len(BOUNDS) + 1))
    assert "no_data" not in LEVELS


@pytest.mark.parametrize(
    ("milliseconds", "state", "fails"),
    [
        (49.999, "ok", ()),
        (50, "warning", ("p50",)),
        (99.999, "warning", ("p50",)),
        (100, "warning", ("p50", "p95")),
        (199.999, "warning", ("p50", "p95")),
        (200, "warning", ("p50", "p95", "p99")),
        (499.999, "warning", ("p50", "p95", "p99")),
        (500, "critical", ("p50", "p95", "p99")),
    ],
)
def test_at_its_limit_an_objective_fails(milliseconds: float, state: str, fails: tuple[str, ...]) -> None:
    times = [milliseconds / 1000] * 7
    counts = histogram(times)

    assert (state, fails) == (of_samples(times).state, of_samples(times).fails)
    assert (state, fails) == (of_counts(counts).state, of_counts(counts).fails)


def histogram(times: list[float]) -> list[int]:
    clock = Clock()
    window = LatencyWindow(clock)
    for seconds in times:
        window.observe(ROUTE, seconds)
    return window.counts()[ROUTE]


@given(st.lists(SECONDS, min_size=1, max_size=300))
def test_a_percentile_of_the_histogram_lies_in_the_bucket_of_the_exact_one_and_so_the_state_is_the_same(
    times: list[float],
) -> None:
    exact, binned = of_samples(times), of_counts(histogram(times))

    assert (exact.state, exact.fails, exact.count) == (binned.state, binned.fails, binned.count)
    edges = (0.0, *BOUNDS, math.inf)
    for name in OBJECTIVES:
        true, near = getattr(exact, name), getattr(binned, name)
        bucket = next(i for i in range(len(edges) - 1) if edges[i] <= true < edges[i + 1])
        assert edges[bucket] <= near < edges[bucket + 1]


@given(st.lists(SECONDS, min_size=1, max_size=100), st.floats(min_value=1.0, max_value=1000.0))
def test_what_takes_longer_never_stands_better(times: list[float], factor: float) -> None:
    before, after = of_samples(times), of_samples([seconds * factor for seconds in times])

    assert set(before.fails) <= set(after.fails)
    assert LEVELS[before.state] <= LEVELS[after.state]


@given(st.lists(SECONDS, min_size=1, max_size=100), st.lists(SECONDS, max_size=100))
def test_histograms_of_several_processes_add_up(ours: list[float], theirs: list[float]) -> None:
    together = [a + b for a, b in zip(histogram(ours), histogram([*theirs, 0.0]), strict=True)]

    assert of_counts(histogram([*ours, *theirs, 0.0])) == of_counts(together)


@pytest.mark.parametrize("count", range(1, 201))
def test_a_percentile_is_the_smallest_time_that_so_many_requests_do_not_exceed(count: int) -> None:
    times = [number / 1000 for number in range(1, count + 1)]
    random.Random(count).shuffle(times)
    found = of_samples(times)

    for name, (share, _) in OBJECTIVES.items():
        value = getattr(found, name)
        below = sum(seconds <= value for seconds in times)
        assert below * 100 >= round(share * 100) * count > (below - 1) * 100


def test_what_is_older_than_five_minutes_is_forgotten_minute_by_minute() -> None:
    clock = Clock()
    clock.now = 60.0 * 100
    window = LatencyWindow(clock)
    for minute in range(100, 110):
        clock.now = 60.0 * minute + 30
        for _ in range(minute):
            window.observe(ROUTE, 0.001)

    assert sum(range(105, 110)) == window.states()[ROUTE].count
    assert sum(range(107, 110)) == window.states(60.0 * 111)[ROUTE].count
    assert "no_data" == window.states(60.0 * 114)[ROUTE].state
    clock.now = 60.0 * 10_000
    assert "no_data" == window.states()[ROUTE].state
    window.observe(ROUTE, 0.001)
    assert 1 == window.states()[ROUTE].count, "an old minute in the same place of the ring is gone"


def test_many_requests_may_be_counted_at_once() -> None:
    window = LatencyWindow(Clock())
    window.add(ROUTE, histogram([0.001] * 3 + [0.3]))
    window.add(ROUTE, histogram([0.001]))

    assert histogram([0.001] * 4 + [0.3]) == window.counts()[ROUTE]


def test_memory_is_bounded_whatever_routes_are_named() -> None:
    window = LatencyWindow(Clock())
    for number in range(10 * MOST_ROUTES):
        window.observe(f"/{number}", 0.001)

    states = window.states()
    assert MOST_ROUTES + 1 == len(states)
    assert 9 * MOST_ROUTES == states[OTHER].count


def test_one_thread_may_read_while_another_counts() -> None:
    window = LatencyWindow()
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            window.observe(ROUTE, 0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(200):
            assert {"ok"} >= {state.state for state in window.states().values() if state.count}
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("times", [[-0.001], [math.nan], [0.1, math.nan]])
def test_what_is_no_time_is_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="0 seconds or more"):
        of_samples(times)


def test_a_histogram_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="buckets"):
        of_counts([1, 2, 3])


# Throughput (S-26 in part)


def test_instances_follow_littles_law() -> None:
    """5000 requests/s at 50 ms are 250 in flight: 3 instances of 100, 4 with headroom; at 100 ms 5."""
    assert 3 == instances(5000, 0.050)
    assert 4 == instances(5000, 0.050, headroom=0.25)
    assert 5 == instances(5000, 0.100)
    assert 1 == instances(1000, 0.050)
    assert 1 == instances(0, 0.050)


@given(
    st.floats(0, 1e5), st.floats(0, 10), st.integers(1, 1000), st.floats(0, 0.9), st.integers(1, 50)
)  # fmt: skip
def test_the_instances_are_enough_and_one_less_is_not(
    rate: float, seconds: float, concurrency: int, headroom: float, exact: int
) -> None:
    found = instances(rate, seconds, concurrency=concurrency, headroom=headroom)
    each = concurrency * (1 - headroom)

    assert found * each >= rate * seconds * (1 - 1e-6) - 1e-6
    assert found == 1 or (found - 1) * each < rate * seconds * (1 + 1e-6) + 1e-6
    # A whole number of instances is not rounded up to one more by the last bit of a product.
    assert exact == instances(exact * 100 / 0.07, 0.07)


@pytest.mark.parametrize(
    ("rate", "seconds", "options"),
    [
        (-1, 1, {}),
        (1, -1, {}),
        (1, 1, {"concurrency": 0}),
        (1, 1, {"headroom": 1}),
        (math.nan, 1, {}),
        (math.inf, 1, {}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(rate: float, seconds: float, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="headroom"):
        instances(rate, seconds, **options)  # type: ignore[arg-type]
