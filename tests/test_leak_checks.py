"""What makes a score too good is said with its number: telling identifiers, labels that move in time, rows that occur twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.automl.splits import plan_folds
from esteira.features.contract import Column, TableContract, Target
from esteira.features.leaks import duplicates, find_leaks, find_suspicions
from families.tabular.contract import infer
from tests.test_infer import EXPECTED, read


def contract(kinds: dict[str, Any], classes: tuple[str, ...] | None = ("no", "yes"), **given: Any) -> TableContract:
    target = Target(name="y", task="binary" if classes else "regression", classes=classes)
    columns = tuple(Column(name=name, kind=kind) for name, kind in kinds.items())
    return TableContract(line="t", target=target, columns=columns, **given)


def ordered(rows: int = 600, seed: int = 0) -> tuple[np.random.Generator, Any, Any]:
    """Rows entered in stretches: the label is frequent early and rare late, which no honest column says."""
    rng = np.random.default_rng(seed)
    position = np.arange(rows)
    return rng, position, np.where(rng.random(rows) < np.where(position < rows / 2, 0.6, 0.2), "yes", "no")


def test_a_number_of_rows_that_orders_the_label_is_an_identifier() -> None:
    rng, position, y = ordered()
    frame = pd.DataFrame(
        {
            "record": 40_000 + 3 * position + rng.integers(0, 3, 600),
            "code": [f"K{number:05d}" for number in position * 7],
            "shuffled": rng.permutation(600) + 5,
            "measured": rng.normal(size=600).cumsum(),
            "note": [f"entered as {number}" for number in position],
            "y": y,
        }
    )
    kinds = {"record": "integer", "code": "text", "shuffled": "integer", "measured": "number", "note": "text"}
    findings = find_suspicions(frame, "y", contract(kinds))

    assert ["record", "code"] == [finding.column for finding in findings]
    assert {("identifier", "warning")} == {(finding.rule, finding.severity) for finding in findings}
    assert "'record' looks like an identifier, yet its order explains 1" in findings[0].message


@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
def test_a_copy_of_the_label_is_found_whatever_its_unit(unit: float) -> None:
    """Squares of 1e300 run over, those of 1e-300 are 0."""
    rng = np.random.default_rng(0)
    a, other = rng.normal(size=(2, 200))
    frame = pd.DataFrame({"a": a * unit, "other": other * unit, "y": a * unit + other * 0.01 * unit})

    found = find_leaks(frame, "y", contract({"a": "number", "other": "number"}, classes=None))

    assert ["a"] == [finding.column for finding in found]


def test_a_measured_whole_number_is_no_identifier() -> None:
    """Incomes are whole and nearly all distinct, and may tell the label."""
    rng = np.random.default_rng(0)
    income = np.rint(np.exp(rng.normal(11, 0.8, 2000)))
    frame = pd.DataFrame({"income": income, "y": np.where(income + rng.normal(0, 30_000, 2000) > 60_000, "yes", "no")})

    assert frame["income"].nunique() > 0.95 * len(frame)
    assert [] == find_suspicions(frame, "y", contract({"income": "integer"}))


def test_a_label_that_moves_with_a_date_is_said_until_the_date_is_the_time_column() -> None:
    _, position, y = ordered()
    frame = pd.DataFrame({"day": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(position, unit="D"), "y": y})
    findings = find_suspicions(frame, "y", contract({"day": "date"}))

    assert [("time_order", "day")] == [(finding.rule, finding.column) for finding in findings]
    assert "name it as the time column" in findings[0].message
    assert [] == find_suspicions(frame, "y", contract({"day": "date"}, time_column="day"))


def test_values_that_move_with_a_date_or_an_identifier_are_said_too() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"number": np.arange(500), "y": np.arange(500) / 200 + rng.normal(size=500)})

    assert ["identifier"] == [f.rule for f in find_suspicions(frame, "y", contract({"number": "integer"}, None))]


def test_chance_is_not_suspected() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(50, 1500))
        days = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 400, rows), unit="D")
        frame = pd.DataFrame({"number": np.arange(rows), "day": days, "y": rng.choice(["no", "yes"], rows)})
        assert [] == find_suspicions(frame, "y", contract({"number": "integer", "day": "date"}))


@pytest.mark.parametrize("name", EXPECTED)
def test_no_column_of_a_public_table_is_suspected(public_data: Path, name: str) -> None:
    target, _, _ = EXPECTED[name]
    frame = read(public_data, name)

    assert [] == find_suspicions(frame, target, infer(frame, target, f"tabular@{name}")[0])


# ---------------------------------------------------------------- rows that occur twice


@settings(deadline=None)
@given(rows=st.integers(1, 80), columns=st.integers(1, 4), seed=st.integers(0, 1000))
def test_equal_rows_are_those_that_are_equal_cell_by_cell(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([0.0, -0.0, 1.0, np.nan], np.float32), size=(rows, columns))
    y = rng.integers(0, 2, rows)
    found = duplicates(x, y)
    keys = [tuple("missing" if np.isnan(cell) else float(cell) + 0.0 for cell in row) for row in x]

    for first in range(rows):
        for second in range(first):
            assert (keys[first] == keys[second]) == (found.together[first] == found.together[second])
    assert rows - len(set(keys)) == found.copies
    contradicted = {key for key, label in zip(keys, y, strict=True) for k, o in zip(keys, y, strict=True)
                    if k == key and o != label}  # fmt: skip
    assert sum(key in contradicted for key in keys) == found.contradicting


def test_copies_and_contradictions_are_counted_in_words() -> None:
    x = np.array([[1, 2], [1, 2], [1, 2], [3, 4], [5, 6], [5, 6]], np.float32)
    findings = duplicates(x, np.array([0, 0, 0, 1, 0, 1])).findings()

    assert [("duplicate", "warning"), ("duplicate_label", "warning")] == [(f.rule, f.severity) for f in findings]
    assert "3 of 6 rows (50.0%) repeat the features of an earlier row" == findings[0].message
    assert "2 of 6 rows (33.3%) have the features of a row with another label" == findings[1].message
    assert [] == duplicates(x[2:5], np.zeros(3)).findings()


def test_folds_by_copies_hold_back_no_row_of_which_a_copy_is_fitted_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, size=(800, 3)).astype(np.float32)
    y = rng.integers(0, 2, 800)
    found = duplicates(x, y)
    folds = plan_folds(y, task="binary", seed=0, together=found.together)

    assert found.copies >= 800 - 6**3
    for fold in folds.folds:
        assert not {row.tobytes() for row in x[fold.fit]} & {row.tobytes() for row in x[fold.held]}


def test_records_that_came_in_twice_are_told_from_rows_that_are_alike() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 3)).astype(np.float32), rng.integers(0, 2, 300)
    alike = rng.integers(0, 3, size=(300, 3)).astype(np.float32)

    twice = duplicates(np.vstack([x, x]), np.concatenate([y, y]))

    assert twice.records is twice.together
    assert "held back together" in twice.findings()[0].message
    assert duplicates(x, y).records is None
    assert duplicates(np.vstack([x, x[:2]]), np.concatenate([y, y[:2]])).records is None
    assert duplicates(alike, y).records is None
    assert duplicates(np.zeros((0, 3), np.float32), y[:0]).records is None


def test_rows_of_many_are_compared_and_not_only_their_digests() -> None:
    x = np.random.default_rng(0).normal(size=(200_000, 30)).astype(np.float32)
    x[100_000:100_500] = x[:500]

    assert 500 == duplicates(x, np.zeros(len(x))).copies
