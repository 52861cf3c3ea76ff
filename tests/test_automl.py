"""The search is seeded, bounded by trials, honest about what it held back, and clear about what it cannot do."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl import Folds, Result, plan_folds, search
from esteira.automl.estimators import make
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate, Searched
from esteira.features.metrics import PRIMARY
from esteira.onnx.graph import sigmoid, softmax

CANDIDATES = [
    Candidate(
        "xgboost",
        space={"n_estimators": ("int", 5, 30), "learning_rate": ("log", 0.05, 0.5), "subsample": ("float", 0.5, 1.0)},
        defaults={"n_estimators": 15, "learning_rate": 0.2, "subsample": 0.9, "max_depth": 3},
    ),
    Candidate(
        "hist_gradient_boosting",
        space={"max_iter": ("int", 5, 30), "max_leaf_nodes": ("choice", [4, 8, 16])},
        defaults={"max_iter": 15, "max_leaf_nodes": 8, "min_samples_leaf": 5},
    ),
    Candidate("linear", space={"C": ("log", 1e-3, 100.0)}, defaults={"C": 1.0}),
    Candidate("constant"),
]


def rows(task: str, n: int = 300, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[:, 3] = rng.integers(1, 5, n)
    x[rng.random(x.shape) < 0.05] = np.nan
    z = np.nan_to_num(x[:, 0]) + (np.nan_to_num(x[:, 3]) == 2) + rng.normal(size=n) * 0.3
    y = z * 10 if task == "regression" else np.digitize(z, [0.3] if task == "binary" else [-0.3, 0.7])
    return x, y


def find(task: str = "binary", n: int = 300, **changed: Any) -> Result:
    x, y = rows(task, n)
    wanted: dict[str, Any] = {
        "task": task, "categorical": [3], "candidates": CANDIDATES, "metric": PRIMARY[task], "trials": 7, "seed": 5,
    }  # fmt: skip
    return search(x, y, **{**wanted, **changed})


def without_time(found: Result) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "fit_seconds"} for row in found.leaderboard]


@pytest.mark.parametrize("task", PRIMARY)
def test_the_same_rows_seed_and_trials_give_the_same_search_to_the_last_bit(task: Any) -> None:
    first, second = find(task), find(task)

    assert without_time(first) == without_time(second)
    assert first.out_of_fold.tobytes() == second.out_of_fold.tobytes()
    assert first.graph() == second.graph()


@pytest.mark.parametrize("task", PRIMARY)
def test_the_search_is_the_same_however_many_cores_there_are(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found.append(find(task))

    assert without_time(found[0]) == without_time(found[1])
    assert found[0].out_of_fold.tobytes() == found[1].out_of_fold.tobytes()


def test_another_seed_gives_another_search() -> None:
    assert without_time(find()) != without_time(find(seed=6))


@pytest.mark.parametrize("task", PRIMARY)
def test_the_winner_leads_the_leaderboard_and_beats_the_constant(task: Any) -> None:
    found = find(task)

    assert isinstance(found, Searched)
    scores = [row["score"] for row in found.leaderboard]
    assert sorted(scores, reverse=True) == scores
    # What is blended of the trials is told beside them and is none itself.
    assert list(range(1, 8)) == sorted(row["number"] for row in found.leaderboard if row["kind"] != "blend")
    assert {"kind", "params", "score"} <= set(found.best)
    assert found.leaderboard[0]["params"] == found.best["params"]
    constant = next(row for row in found.leaderboard if row["kind"] == "constant")
    assert found.best["score"] > constant["score"] + 0.2


def test_every_kind_is_first_tried_with_its_defaults_then_two_of_three_trials_go_to_the_leader() -> None:
    seen: list[tuple[int, int, str, dict[str, Any]]] = []
    find(trials=10, progress=lambda done, of, row: seen.append((done, of, row["kind"], row["params"])))

    assert [(number, 10) for number in range(1, 11)] == [(done, of) for done, of, _, _ in seen]
    assert [(c.kind, dict(c.defaults)) for c in CANDIDATES] == [(kind, params) for _, _, kind, params in seen[:4]]
    later = [kind for _, _, kind, _ in seen[4:]]
    assert "constant" not in later
    assert 2 == len(set(later))


def test_proposals_stay_in_their_space_and_keep_the_fixed_parameters() -> None:
    found = find(trials=14, candidates=CANDIDATES[:1])

    for row in found.leaderboard:
        assert 5 <= row["params"]["n_estimators"] <= 30
        assert 0.05 <= row["params"]["learning_rate"] <= 0.5
        assert 0.5 <= row["params"]["subsample"] <= 1.0
        assert 3 == row["params"]["max_depth"]
    assert 14 == len({str(row["params"]) for row in found.leaderboard})


def test_defaults_outside_a_narrowed_space_are_still_the_first_trial() -> None:
    narrow = Candidate("linear", space={"C": ("log", 10.0, 100.0)}, defaults={"C": 1.0})
    found = find(candidates=[narrow], trials=4)

    assert {"C": 1.0} in [row["params"] for row in found.leaderboard]
    assert sum(10 <= row["params"]["C"] <= 100 for row in found.leaderboard) == 3


def test_fewer_trials_than_candidates_is_a_search_too() -> None:
    assert ["xgboost"] == [row["kind"] for row in find(trials=1).leaderboard]


@pytest.mark.parametrize("task", PRIMARY)
def test_no_row_is_predicted_by_a_model_that_saw_it(task: Any) -> None:
    """A label that is noise cannot be predicted out of fold, however well the winner learns it by heart."""
    x, _ = rows(task, 400)
    rng = np.random.default_rng(1)
    y = rng.normal(size=400) if task == "regression" else rng.integers(0, 2 if task == "binary" else 3, 400)
    deep = Candidate("xgboost", defaults={"n_estimators": 60, "max_depth": 8, "learning_rate": 0.3})
    found = search(x, y, task=task, categorical=[3], candidates=[deep], metric=PRIMARY[task], trials=1, seed=1)

    def right(predicted: NDArray[np.float64]) -> float:
        if task == "regression":
            return float(np.corrcoef(y, predicted)[0, 1])
        return float((predicted.argmax(axis=1) == y).mean())

    assert np.isfinite(found.out_of_fold).all()
    assert right(found.predict(x)) > 0.9
    assert right(found.out_of_fold) < 0.6


def test_above_3000_rows_trials_are_scored_on_one_fold_and_the_winner_is_completed() -> None:
    found = find(n=3200, trials=3, candidates=CANDIDATES[2:])

    assert all(row["deviation"] is None for row in found.leaderboard)
    assert (3200, 2) == found.out_of_fold.shape
    assert np.isfinite(found.out_of_fold).all()
    assert all(row["deviation"] is not None for row in find(candidates=CANDIDATES[2:]).leaderboard)


@pytest.mark.parametrize(
    ("task", "metric", "sign"),
    [("binary", "log_loss", 1), ("binary", "accuracy", -1), ("regression", "rmse", 1), ("regression", "mae", 1)],
)
def test_a_metric_is_reported_in_its_own_direction(task: str, metric: str, sign: int) -> None:
    found = find(task, metric=metric, trials=4)

    scores = [row["score"] for row in found.leaderboard]
    assert all(score > 0 for score in scores)
    assert sorted(scores, key=lambda score: sign * score) == scores
    assert "constant" != found.best["kind"]


def test_of_equal_scores_the_cheaper_model_wins() -> None:
    x = np.tile(np.array([[0.0], [1.0]], np.float32), (50, 1))
    y = x[:, 0].astype(np.int64)
    found = search(x, y, task="binary", categorical=[], candidates=CANDIDATES, metric="roc_auc", trials=4, seed=1)

    assert "linear" == found.best["kind"]
    assert {1.0} == {row["score"] for row in found.leaderboard if row["kind"] != "constant"}


def test_a_class_that_only_the_contract_knows_has_its_column() -> None:
    found = find("multiclass", classes=4, trials=4)

    assert (300, 4) == found.out_of_fold.shape
    assert (300, 4) == found.predict(rows("multiclass")[0]).shape


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"metric": "r2"}, "roc_auc, accuracy"),
        ({"metric": "nonsense"}, "a metric of binary is one of"),
        ({"trials": 0}, "needs a trial"),
        ({"candidates": []}, "needs a trial and a candidate"),
        ({"candidates": [Candidate("random_guess")]}, "kind of estimator is one of xgboost"),
        ({"candidates": [Candidate("linear", defaults={"depth": 3})]}, "linear has the parameters C, alpha"),
        ({"candidates": [Candidate("linear", space={"C": ("log", 1, 2)})]}, "has a default"),
        ({"candidates": [Candidate("linear", {"C": ("exp", 1, 2)}, {"C": 1})], "trials": 2}, "a space is"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_is_not_known_is_refused_with_what_is(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find(**changed)


def test_too_few_rows_and_a_score_without_meaning_are_data_errors() -> None:
    x = np.zeros((10, 2), np.float32)
    common: dict[str, Any] = {"task": "binary", "categorical": [], "candidates": CANDIDATES[2:], "trials": 2, "seed": 1}
    with pytest.raises(DataError, match="4 training rows"):
        search(x[:3], np.array([0, 1, 0]), metric="roc_auc", **common)
    with pytest.raises(DataError, match="must be defined on held-back rows"):
        search(x, np.zeros(10, np.int64), metric="roc_auc", **common)


# Folds.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=5).filter(lambda counts: sum(counts) >= 6),
    seed=st.integers(0, 99),
)
def test_every_fold_has_its_share_of_every_class(counts: list[int], seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = plan_folds(y, task="multiclass", seed=seed)

    assert (0, 1, 2) == folds.scored
    sizes = np.bincount(folds.number)
    assert sizes.max() - sizes.min() <= 1
    for code, count in enumerate(counts):
        shares = np.bincount(folds.number[y == code], minlength=3)
        assert shares.max() - shares.min() <= 1
        assert count == shares.sum()


def test_the_fold_that_is_scored_has_rows_of_a_class_of_two() -> None:
    y = np.zeros(5000, np.int64)
    y[[7, 4000]] = 1
    folds = plan_folds(y, task="binary", seed=3)

    assert (0,) == folds.scored
    assert [0, 1] == sorted(folds.number[y == 1])


def test_a_group_is_never_on_both_sides() -> None:
    groups = np.random.default_rng(0).integers(0, 20, 200)
    folds = plan_folds(np.zeros(200), task="regression", seed=1, groups=groups)

    assert all(1 == len(set(folds.number[groups == group])) for group in range(20))
    assert 3 == folds.count
    sizes = np.bincount(folds.number)
    assert sizes.max() - sizes.min() < 30


def test_two_groups_make_two_folds() -> None:
    folds = plan_folds(np.zeros(10), task="regression", seed=1, groups=np.repeat([0, 1], 5))

    assert (2, (0, 1)) == (folds.count, folds.scored)


def test_in_time_order_the_latest_rows_are_scored_by_models_of_the_past() -> None:
    times = np.random.default_rng(0).permutation(90)
    folds = plan_folds(np.zeros(90), task="regression", seed=1, times=times)

    assert (0,) == folds.scored
    assert times[folds.number == 0].min() > times[folds.number != 0].max()


def test_given_folds_are_kept_to() -> None:
    _, y = rows("regression")
    number = (np.arange(300) >= 150).astype(np.int64)
    found = find("regression", candidates=[Candidate("constant")], trials=1, folds=Folds(number, (0, 1)))

    np.testing.assert_allclose(np.where(number == 0, y[number == 1].mean(), y[number == 0].mean()), found.out_of_fold)


# Estimators.


def test_links_do_not_overflow() -> None:
    margins = np.array([-1e5, -40.0, 0.0, 40.0, 1e5])

    np.testing.assert_allclose([0, np.exp(-40.0), 0.5, 1, 1], sigmoid(margins)[:, 1], rtol=1e-14)
    np.testing.assert_allclose([[1.0, 0.0], [0.5, 0.5]], softmax(np.array([[1e5, -1e5], [3.0, 3.0]])))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_a_regression_label_may_have_any_unit(scale: float) -> None:
    x, y = rows("regression")
    model = make("xgboost", {"n_estimators": 40}, classes=None, categorical=[3], seed=0)
    model.fit(x, (y + 1000.0) * scale)

    assert np.corrcoef(model.predict(x), y)[0, 1] > 0.97


def test_c_and_alpha_are_the_same_knob() -> None:
    x, y = rows("binary")
    models = [make("linear", params, classes=2, categorical=[3], seed=0) for params in ({"C": 0.1}, {"alpha": 10.0})]
    for model in models:
        model.fit(x, y)

    np.testing.assert_array_equal(models[0].predict(x), models[1].predict(x))


def test_a_category_without_order_is_learned_natively() -> None:
    """Codes that alternate between the classes need a set, not a threshold."""
    codes = np.tile(np.arange(1, 21, dtype=np.float32), 30)[:, None]
    y = (codes[:, 0].astype(int) % 2).astype(np.int64)
    for kind, params in {
        "xgboost": {"n_estimators": 10, "max_depth": 1, "learning_rate": 1.0},
        "hist_gradient_boosting": {"max_iter": 5, "max_leaf_nodes": 2, "learning_rate": 1.0},
        "linear": {"C": 100.0},
    }.items():
        model = make(kind, params, classes=2, categorical=[0], seed=0)
        model.fit(codes, y)
        np.testing.assert_array_equal(y, model.predict(codes).argmax(axis=1), err_msg=kind)
