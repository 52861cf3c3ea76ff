"""What a table must have to be learned from: what is refused names the cure, what is only odd is said."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esteira.automl.api import fit
from esteira.errors import ConfigError, DataError
from tests.test_automl_api import QUICK, frame_of


@pytest.mark.parametrize(
    "budget", [{"seconds": 0}, {"seconds": -1}, {"seconds": math.nan}, {"seconds": math.inf}, {"trials": 0}],
    ids=["zero", "negative", "nan", "infinite", "no-trials"],
)  # fmt: skip
def test_a_budget_is_above_zero(budget: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a budget is a finite number above 0") as caught:
        fit(frame_of("binary", 20), "y", **budget)

    assert "bad_budget" == caught.value.code


def test_an_unknown_metric_or_kind_is_answered_with_the_valid_ones() -> None:
    frame = frame_of("binary", 60)

    with pytest.raises(ConfigError, match=r"roc_auc, .*log_loss.*but got 'auc'"):
        fit(frame, "y", metric="auc", **QUICK)
    with pytest.raises(ConfigError, match=r"one of .*linear.*, but got 'catboost'"):
        fit(frame, "y", trials=1, kinds=("catboost",))


def _changed(**columns: Any) -> pd.DataFrame:
    return frame_of("binary", 60).assign(**columns)


REFUSED: dict[str, tuple[pd.DataFrame, str, str]] = {
    "two rows": (frame_of("binary", 60).sort_values("y").iloc[[0, -1]], "y", "too_few_rows"),
    "a constant label": (_changed(y="yes"), "y", "one_class"),
    "an empty label": (_changed(y=None), "y", "empty_label"),
    "no such column": (_changed(), "Y", "missing_label"),
    "infinite labels": (_changed(y=[math.inf] * 10 + list(range(50))), "y", "infinite"),
    "missing labels": (_changed(y=[None] * 10 + ["a", "b"] * 25), "y", "too_many_bad_rows"),
    "nothing to learn from": (pd.DataFrame({"id": range(60), "one": 1, "y": [0, 1] * 30}), "y", "no_columns"),
    "a time column that holds none": (_changed(), "y", "undecodable"),
    "labels whose squares run over": (_changed(y=np.arange(60) * 1e200), "y", "label_too_large"),
    "a class a row": (_changed(y=[f"c{at}" for at in range(60)]), "y", "too_many_classes"),
    "no rows": (frame_of("binary", 60).iloc[:0], "y", "empty_label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_learned_from_is_refused_with_a_cure_that_is_there(case: str) -> None:
    frame, target, code = REFUSED[case]

    with pytest.raises(DataError) as caught:
        fit(frame, target, **QUICK, time_column="city" if code == "undecodable" else None)

    assert code == caught.value.code
    assert caught.value.cure
    for word in ("validate", "quarantine", "report.html", "ingest.", "parameter `", "`task"):
        assert word not in caught.value.cure


def test_a_score_needs_labels() -> None:
    frame = frame_of("binary", 60)
    model = fit(frame, "y", **QUICK)

    with pytest.raises(DataError, match="the label column must be in the table"):
        model.score(frame.drop(columns="y"))


def test_a_wrong_label_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(DataError) as caught:
        fit(frame_of("binary", 60).rename(columns={"y": "churned"}), "churn", **QUICK)

    assert "'churned'" in caught.value.cure


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (pd.DataFrame([[1, 2, 0]] * 9, columns=["a", "a", "y"]), "duplicated_column"),
        (pd.DataFrame({"a": [1j] * 9, "y": [0, 1, 0] * 3}), "complex_column"),
    ],
    ids=["two of one name", "complex"],
)
def test_a_frame_that_is_no_table_is_refused(frame: pd.DataFrame, code: str) -> None:
    with pytest.raises(DataError) as caught:
        fit(frame, "y", **QUICK)

    assert code == caught.value.code


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match="rows are a pandas DataFrame"):
        fit([{"a": 1, "y": 0}], "y", **QUICK)  # type: ignore[arg-type]


def test_a_few_bad_rows_are_left_out_and_said() -> None:
    frame = frame_of("regression")
    frame.loc[frame.index[:2], "y"] = [math.inf, math.nan]

    model = fit(frame, "y", **QUICK)

    assert (2, len(frame) - 2) == (model.table.left_out, len(model.table.y))
    assert any("left out" in warning and "'y'" in warning for warning in model.warnings)


def test_a_class_whose_rows_were_all_bad_is_no_class() -> None:
    """Otherwise the model would promise a probability for what it never saw."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"a": rng.normal(size=200), "y": rng.choice(["p", "q"], 200)})
    frame.loc[0, ["a", "y"]] = [math.inf, "r"]

    model = fit(frame, "y", **QUICK)

    assert ("binary", ["p", "q"]) == (model.task, list(model.classes if model.classes is not None else ()))


def test_a_leaked_label_is_said_first_and_learned_from() -> None:
    frame = frame_of("binary")
    frame["copy"] = np.where(frame["y"] == "yes", 1.0, 0.0)

    model = fit(frame, "y", **QUICK)

    assert "'copy'" in model.warnings[0]
    assert "copy" in model.table.featurizer.names


def test_an_empty_column_is_left_out_and_50000_levels_are_no_trouble(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    level = rng.integers(0, 50_000, 60_000)
    frame = pd.DataFrame({"code": [f"c{at:05d}" for at in level], "gone": None, "y": (level % 2).astype(int)})
    frame["x"] = rng.normal(size=len(frame))

    model = fit(frame, "y", column_kinds={"code": "category"}, **QUICK)

    assert ("code", "x") == tuple(column.name for column in model.table.contract.columns)
    assert 1000 == len(model.table.featurizer.columns[0].levels)  # type: ignore[attr-defined]
    model.export(tmp_path / "b")
    assert sum(path.stat().st_size for path in (tmp_path / "b").iterdir()) < 5_000_000


@pytest.mark.slow
def test_a_thousand_columns_are_learned_from() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(300, 1000)), columns=[f"c{at}" for at in range(1000)])
    frame["y"] = np.where(frame["c7"] > 0, "up", "down")

    model = fit(frame, "y", **QUICK)

    assert 1000 == model.table.x.shape[1]
