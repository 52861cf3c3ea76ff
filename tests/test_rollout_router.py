"""A unit's arm is a function of salt, test and unit; whoever is with the candidate stays there as its share grows."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.rollout.router import BUCKETS, bucket, routed, to_candidate


@pytest.mark.requirement("H-40")
def test_at_10_percent_a_tenth_of_the_units_and_at_25_all_of_these_and_more() -> None:
    """H-40. Done when: at 10 % over 100,000 units the share is 10 ± 0.5 %, and raising to 25 % keeps all earlier candidate
    units.
    """
    buckets = {unit: bucket("salt", "test", unit) for unit in (f"intent-{number}" for number in range(100_000))}

    ten, twenty_five = ({unit for unit, at in buckets.items() if to_candidate(percent, at)} for percent in (10, 25))

    assert 9_500 <= len(ten) <= 10_500
    assert 24_500 <= len(twenty_five) <= 25_500
    assert ten < twenty_five


def test_a_bucket_is_eight_bytes_of_the_hash_of_the_three_with_zero_bytes_between() -> None:
    digest = hashlib.sha256(b"s\x00t\x00unit-7").digest()

    assert int.from_bytes(digest[:8], "big") % 10_000 == bucket("s", "t", "unit-7")
    assert KNOWN == {unit: bucket("salt", "t1", unit) for unit in KNOWN}, (
        "for good: a unit keeps its arm over releases of Esteira"
    )


KNOWN = {"": 6504, "ana": 1830, "rui": 2845, "São João": 1574, "\ud800": 3107}


def test_what_stands_where_matters() -> None:
    assert bucket("a", "bc", "d") != bucket("ab", "c", "d")
    assert bucket("a", "b", "c") != bucket("b", "a", "c")


@given(st.text(), st.text(), st.text())
def test_any_text_has_a_bucket_and_always_the_same(salt: str, test: str, unit: str) -> None:
    found = bucket(salt, test, unit)

    assert 0 <= found < BUCKETS
    assert found == bucket(salt, test, unit)


@given(st.integers(0, BUCKETS - 1), st.floats(0, 100), st.floats(0, 100))
def test_nobody_leaves_the_candidate_as_its_share_grows(place: int, one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert not to_candidate(low, place) or to_candidate(high, place)


def test_each_hundredth_of_a_percent_is_one_bucket_more() -> None:
    for share in (*range(0, BUCKETS, 7), BUCKETS):
        percent = share / 100
        assert share == 0 or to_candidate(percent, share - 1)
        assert not to_candidate(percent, share)


@pytest.mark.parametrize("percent", [0, -1, -0.0, float("nan"), float("-inf")])
def test_a_share_that_is_none_gives_the_candidate_nobody(percent: float) -> None:
    assert not any(to_candidate(percent, place) for place in range(BUCKETS))


def test_above_a_hundred_percent_everybody_is_there() -> None:
    assert all(to_candidate(percent, place) for percent in (100, 250.0, float("inf")) for place in (0, BUCKETS - 1))


def test_another_test_shuffles_the_units_anew() -> None:
    units = [f"user-{number}" for number in range(20_000)]
    first, second = ([to_candidate(50, bucket("salt", test, unit)) for unit in units] for test in ("one", "two"))

    both = sum(a and b for a, b in zip(first, second, strict=True))

    assert abs(both - 5_000) < 250, "of two halves drawn apart, a quarter of the units is in both"


def test_the_buckets_are_evenly_filled() -> None:
    chance = random.Random(3)
    counts = [0] * 100
    for _ in range(50_000):
        counts[bucket("s", "t", str(chance.random())) // 100] += 1

    # Chi-square, 99 degrees of freedom: above 149 once in a thousand seeds.
    assert sum((count - 500) ** 2 / 500 for count in counts) < 149


def test_named_units_get_the_candidate_at_any_share() -> None:
    named = frozenset({"ana"})

    assert routed("s", "t", 0, "ana", named=named)
    assert not routed("s", "t", 0, "rui", named=named)
    assert routed("s", "t", 100, "rui")
    assert routed("s", "t", 10, "rui") is to_candidate(10, bucket("s", "t", "rui"))
