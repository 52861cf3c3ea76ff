"""Folds are a fair deal: every row is held as often as said, groups and copies are never on both sides, no fit sees the future."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.splits import Folds, plan_folds
from esteira.errors import DataError

tasks = st.sampled_from(["binary", "multiclass", "regression"])


def labels(task: str, rows: int, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if task == "regression":
        return rng.normal(size=rows)
    return rng.choice(2 if task == "binary" else 5, size=rows, p=[0.85, 0.15] if task == "binary" else None)


def held_counts(folds: Folds, rows: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate([fold.held for fold in folds.folds]), minlength=rows)


@settings(deadline=None)
@given(task=tasks, rows=st.integers(2, 400), seed=st.integers(0, 1000), count=st.integers(2, 8))
def test_every_row_is_held_as_often_as_said_and_fitted_on_otherwise(
    task: str, rows: int, seed: int, count: int
) -> None:
    y = labels(task, rows, seed)
    folds = plan_folds(y, task=task, seed=seed, count=count)

    assert (held_counts(folds, rows) == folds.repeats).all()
    for fold in folds.folds:
        assert min(len(fold.fit), len(fold.held)) > 0
        assert np.array_equal(np.arange(rows), np.sort(np.concatenate([fold.fit, fold.held])))
        assert (np.diff(fold.fit) > 0).all()
        assert (np.diff(fold.held) > 0).all()


@settings(deadline=None)
@given(task=st.sampled_from(["binary", "multiclass"]), rows=st.integers(10, 600), seed=st.integers(0, 1000))
def test_every_fold_has_its_share_of_each_class_and_of_all_rows(task: str, rows: int, seed: int) -> None:
    y = labels(task, rows, seed)
    folds = plan_folds(y, task=task, seed=seed, repeats=1)

    assert "stratified" == folds.kind
    assert np.ptp([len(fold.held) for fold in folds.folds]) <= 1
    for label in np.unique(y):
        assert np.ptp([int((y[fold.held] == label).sum()) for fold in folds.folds]) <= 1


@settings(deadline=None)
@given(task=tasks, rows=st.integers(4, 400), seed=st.integers(0, 1000), groups=st.integers(2, 60), copies=st.booleans())
def test_groups_and_copies_are_never_on_both_sides(task: str, rows: int, seed: int, groups: int, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, rows)
    group[:2] = [0, 1]
    together = rng.integers(0, rows * 20, rows) if copies else None
    if together is not None:
        together[group == 0] = -1  # so that two sets at least are not linked, whatever the copies
        together[group != 0] += 1
    folds = plan_folds(labels(task, rows, seed), task=task, seed=seed, groups=group, together=together)

    assert "grouped" == folds.kind
    assert (held_counts(folds, rows) == folds.repeats).all()
    for fold in folds.folds:
        assert min(len(fold.fit), len(fold.held)) > 0
        assert not set(group[fold.fit]) & set(group[fold.held])
        if together is not None:
            assert not set(together[fold.fit]) & set(together[fold.held])


def test_groups_are_dealt_so_that_folds_are_alike_in_size_and_classes() -> None:
    rng = np.random.default_rng(0)
    group = rng.geometric(0.03, 6000)
    y = rng.integers(0, 3, 6000)
    # Groups differ in their classes, so a deal by size alone would not do.
    y[group % 2 == 0] = np.where(rng.random((group % 2 == 0).sum()) < 0.8, 0, y[group % 2 == 0])
    folds = plan_folds(y, task="multiclass", seed=0, groups=group, count=3)
    shares = np.array([np.bincount(y[fold.held], minlength=3) for fold in folds.folds]) / np.bincount(y)

    assert np.abs(shares - 1 / 3).max() < 0.08


@settings(deadline=None)
@given(rows=st.integers(4, 400), seed=st.integers(0, 1000), moments=st.integers(2, 500), count=st.integers(1, 6))
def test_no_fit_sees_the_moment_it_is_scored_on_or_a_later_one(rows: int, seed: int, moments: int, count: int) -> None:
    times = np.random.default_rng(seed).integers(0, moments, rows)
    times[:2] = [0, 1]
    folds = plan_folds(np.zeros(rows), task="regression", seed=seed, times=times, count=count)

    assert "time" == folds.kind
    assert 1 <= len(folds.folds) <= count
    assert held_counts(folds, rows).max() == 1
    for fold in folds.folds:
        assert times[fold.fit].max() < times[fold.held].min()
        assert set(fold.fit) == set(np.flatnonzero(times < times[fold.held].min()))
    latest = [times[fold.held].max() for fold in folds.folds]
    assert latest == sorted(latest, reverse=True)
    assert times.max() == latest[0]


def test_distinct_moments_are_cut_into_even_stretches_after_the_first_half() -> None:
    times = np.random.default_rng(0).permutation(1000)
    folds = plan_folds(np.zeros(1000), task="regression", seed=0, times=times)

    assert [(900, 100), (800, 100), (700, 100), (600, 100), (500, 100)] == [
        (len(fold.fit), len(fold.held)) for fold in folds.folds
    ]


def test_dates_are_moments_too() -> None:
    days = np.datetime64("2026-01-01") + np.arange(20)

    assert 5 == len(plan_folds(np.zeros(20), task="regression", seed=0, times=days).folds)
    days[3] = np.datetime64("NaT")
    with pytest.raises(DataError, match="every row must have a moment") as refused:
        plan_folds(np.zeros(20), task="regression", seed=0, times=days)
    assert "missing_time" == refused.value.code


def test_in_time_order_no_group_that_is_held_is_fitted_on() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, 300)
    folds = plan_folds(np.zeros(300), task="regression", seed=0, times=np.arange(300), groups=group)

    for fold in folds.folds:
        assert fold.fit.max() < fold.held.min()
        assert not set(group[fold.fit]) & set(group[fold.held])


def test_few_rows_are_dealt_more_often() -> None:
    assert [3, 3, 2, 2, 1] == [
        plan_folds(np.zeros(rows), task="regression", seed=0).repeats for rows in (10, 499, 500, 1499, 1500)
    ]
    again = plan_folds(np.arange(100.0), task="regression", seed=0)
    first, second = ({tuple(fold.held) for fold in again.folds[start : start + 5]} for start in (0, 5))
    assert not first & second


def test_many_rows_are_dealt_into_fewer_folds_unless_somebody_says_otherwise() -> None:
    counts = [len(plan_folds(np.zeros(rows), task="regression", seed=0).folds) for rows in (9_999, 10_000)]
    assert [5, 3] == counts
    assert 4 == len(plan_folds(np.zeros(10_000), task="regression", seed=0, count=4).folds)


def test_as_many_folds_as_groups_are_dealt_once() -> None:
    group = np.repeat(np.arange(4), 5)
    folds = plan_folds(np.zeros(20), task="regression", seed=0, groups=group)

    assert (4, 1) == (len(folds.folds), folds.repeats)


def test_both_classes_are_in_every_held_part_where_the_smaller_has_two_rows_or_more() -> None:
    y = np.zeros(200, np.int64)
    y[:3] = 1
    folds = plan_folds(y, task="binary", seed=0, repeats=1)

    assert [1, 1, 1] == [int(y[fold.held].sum()) for fold in folds.folds]


def test_a_class_of_one_row_and_a_single_class_are_dealt() -> None:
    for y in (np.array([0] * 9 + [1]), np.zeros(10, np.int64)):
        folds = plan_folds(y, task="binary", seed=0)
        assert (held_counts(folds, 10) == folds.repeats).all()


def test_copies_of_a_row_stay_together_and_the_rest_is_dealt_evenly() -> None:
    y = labels("binary", 1000, 0)
    together = np.arange(1000)
    together[100:160] = 7
    together[200:230] = together[230:260]
    folds = plan_folds(y, task="binary", seed=0, together=together)

    assert "stratified" == folds.kind
    assert np.ptp([len(fold.held) for fold in folds.folds]) <= 3
    assert all(not set(together[fold.fit]) & set(together[fold.held]) for fold in folds.folds)


def test_a_table_of_copies_of_one_row_is_dealt_all_the_same() -> None:
    folds = plan_folds(np.zeros(10, np.int64), task="binary", seed=0, together=np.zeros(10))

    assert (held_counts(folds, 10) == folds.repeats).all()


def test_the_same_seed_gives_the_same_folds_and_another_seed_others() -> None:
    y = labels("multiclass", 300, 0)
    one, same, other = (plan_folds(y, task="multiclass", seed=seed, repeats=1) for seed in (1, 1, 2))

    assert all(np.array_equal(a.held, b.held) for a, b in zip(one.folds, same.folds, strict=True))
    assert not all(np.array_equal(a.held, b.held) for a, b in zip(one.folds, other.folds, strict=True))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"rows": 1}, "too_few_rows"),
        ({"rows": 9, "groups": np.zeros(9)}, "one_group"),
        ({"rows": 9, "times": np.ones(9)}, "one_moment"),
        ({"rows": 9, "times": np.array([1.0, np.nan] + [2.0] * 7)}, "missing_time"),
        ({"rows": 9, "times": np.arange(9), "groups": np.zeros(9)}, "groups_span_time"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_dealt_is_refused_with_a_cure(given: dict[str, Any], code: str) -> None:
    rows = given.pop("rows")
    with pytest.raises(DataError) as refused:
        plan_folds(np.zeros(rows), task="regression", seed=0, **given)

    assert code == refused.value.code
    assert refused.value.cure
