"""Importances name what an answer and a score depend on, with honest intervals; curves say what rows and trials gave."""

import itertools

import numpy as np
import pytest

from esteira.automl import curve, importance
from esteira.automl.evaluate import Data
from esteira.automl.look import look
from esteira.automl.prepare import Columns, Recipe
from esteira.automl.scoring import scorer
from esteira.automl.splits import plan_folds
from esteira.onnx.graph import sigmoid


def linear_world(rows=1500, seed=0):
    """y depends on column 0 thrice as much as on 1, by 2 and 3 together (a difference), and on 4 not at all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(np.float32)
    x[:, 3] = x[:, 2] + rng.normal(size=rows).astype(np.float32) * 0.1

    def predict(x):
        return 3.0 * x[:, 0].astype(np.float64) + x[:, 1] + 5 * (x[:, 3] - x[:, 2])

    return x, predict(x) + rng.normal(size=rows), predict


GROUPS = {"big": [0], "small": [1], "pair": [2, 3], "unused": [4]}


def test_columns_come_in_the_order_of_what_the_score_loses_and_an_unused_one_loses_nothing():
    x, y, predict = linear_world()
    found = importance.permutation(predict, x, y, scorer("rmse", "regression", None), GROUPS, seed=1)
    assert ["big", "small", "pair", "unused"] == [entry["column"] for entry in found]
    last = found[-1]
    assert (0.0, 0.0, 0.0) == (last["value"], last["low"], last["high"])
    assert all(entry["low"] < entry["value"] < entry["high"] for entry in found[:-1])
    assert {1500} == {entry["rows"] for entry in found}


def test_the_loss_of_a_shuffled_column_is_what_theory_says():
    """The squared error grows by twice the variance that the column brings (Fisher et al. 2019)."""
    x, y, predict = linear_world(2000)
    found = importance.permutation(predict, x, y, scorer("mse", "regression", None), GROUPS, seed=1, repeats=10)
    by_column = {entry["column"]: entry["value"] for entry in found}
    assert 2 * 9.0 == pytest.approx(by_column["big"], rel=0.1)
    assert 2 * 1.0 == pytest.approx(by_column["small"], rel=0.2)
    assert 2 * 25 * 0.01 == pytest.approx(by_column["pair"], rel=0.25)


def test_features_of_one_column_are_shuffled_together():
    """Apart, the nearly equal columns of a difference would look as important as nothing else."""
    x, y, predict = linear_world()
    score = scorer("rmse", "regression", None)
    together = importance.permutation(predict, x, y, score, {"pair": [2, 3]}, seed=1)
    apart = importance.permutation(predict, x, y, score, {"left": [2], "right": [3]}, seed=1)
    assert apart[0]["value"] > 5 * together[0]["value"]


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "accuracy"])
def test_intervals_hold_the_importance_among_very_many_rows_in_most_worlds(metric):
    def predict(x):
        return sigmoid(1.5 * x[:, 0].astype(np.float64) + 0.5 * x[:, 1])

    def world(rows, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(rows, 2)).astype(np.float32)
        return x, (rng.random(rows) < predict(x)[:, 1]).astype(np.int64)

    score = scorer(metric, "binary", 2)
    x, y = world(200_000, 99)
    rng = np.random.default_rng(0)
    shuffled = x.copy()
    shuffled[:, 0] = rng.permutation(x[:, 0])
    truth = score(y, predict(x)) - score(y, predict(shuffled))
    inside = 0
    for seed in range(20):
        (found,) = importance.permutation(predict, *world(400, seed), score, {"a": [0]}, seed=seed)
        inside += found["low"] <= truth <= found["high"]
    assert inside >= 17  # 19 are expected of 20


def test_equal_seeds_give_equal_importances_and_wide_tables_take_fewer_rows():
    x, y, predict = linear_world()
    score = scorer("r2", "regression", None)
    first, again = (importance.permutation(predict, x, y, score, GROUPS, seed=3) for _ in range(2))
    assert first == again
    many = {f"c{number}": [4] for number in range(700)}
    found = importance.permutation(predict, x, y, score, many, seed=3, repeats=2)
    assert {1_000_000 // 1400} == {entry["rows"] for entry in found}


def test_columns_of_few_rows_share_a_call():
    """1,000 calls for 1,000 columns took longer than the search that they were of."""
    x, y, predict = linear_world(200)
    wide = np.hstack([x, np.zeros((200, 395), np.float32)])
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return predict(rows)

    found = importance.permutation(
        counted, wide, y, scorer("rmse", "regression", None), {f"c{at}": [at] for at in range(400)}, seed=1
    )
    assert len(calls) <= 101
    assert sum(calls) == 200 + 400 * 5 * 200
    assert "c0" in [entry["column"] for entry in found[:4]]
    assert 0.0 == next(entry["value"] for entry in found if entry["column"] == "c9")


def test_a_score_that_is_undefined_gives_no_importances():
    x, _, _ = linear_world(50)
    predict = lambda rows: np.tile([0.5, 0.5], (len(rows), 1))  # noqa: E731
    assert [] == importance.permutation(
        predict, x, np.zeros(50, np.int64), scorer("roc_auc", "binary", 2), GROUPS, seed=1
    )
    assert [] == importance.permutation(
        predict, x[:0], np.zeros(0, np.int64), scorer("accuracy", "binary", 2), GROUPS, seed=1
    )


# ---------------------------------------------------------------------------------------------- parameters


def trials(count, kind="lightgbm", seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        params = {
            "learning_rate": float(np.exp(rng.uniform(np.log(0.01), np.log(0.5)))),
            "num_leaves": int(rng.integers(4, 255)),
            "extra_trees": bool(rng.random() < 0.5),
            "booster": "gbdt",
        }
        score = -abs(np.log(params["learning_rate"] / 0.05)) + 0.001 * rng.normal()
        made.append({"number": number, "kind": kind, "params": params, "score": float(score), "state": "complete"})
    return made


@pytest.mark.parametrize("higher", [True, False])
def test_the_parameter_that_made_the_score_is_named_first_whatever_the_metrics_direction(higher):
    board = [{**trial, "score": trial["score"] if higher else -trial["score"]} for trial in trials(80)]
    found = importance.parameters(board, higher_is_better=higher)["lightgbm"]
    assert found is not None
    assert "learning_rate" == found[0]["parameter"]
    assert found[0]["share"] > 0.6
    assert {"learning_rate", "num_leaves", "extra_trees"} == {entry["parameter"] for entry in found}
    assert 1.0 == pytest.approx(sum(entry["share"] for entry in found))


def test_few_trials_and_parameters_that_never_varied_say_nothing():
    few = trials(19)
    fixed = [{**trial, "kind": "linear", "params": {"C": 1.0}} for trial in trials(40)]
    cut = [{**trial, "kind": "xgboost", "state": "pruned"} for trial in trials(40)]
    unscored = [{**trial, "kind": "extra_trees", "score": None} for trial in trials(40)]
    found = importance.parameters([*few, *fixed, *cut, *unscored], higher_is_better=True)
    assert {"lightgbm": None, "linear": None, "xgboost": None, "extra_trees": None} == found
    assert {} == importance.parameters([], higher_is_better=True)


# ---------------------------------------------------------------------------------------------- curves


def folds_of(rows, count=3):
    number = np.arange(rows) % count
    return [(np.flatnonzero(number != fold), np.flatnonzero(number == fold)) for fold in range(count)]


def test_a_learning_curve_grows_its_rows_inside_each_fold_and_keeps_what_is_held():
    seen = []

    def fit_score(fit, held):
        seen.append((set(fit.tolist()), tuple(held.tolist())))
        return 1 - 1 / len(fit) ** 0.5

    points = curve.learning(fit_score, folds_of(900), fits=11, seed=2)
    assert 10 == len(seen)  # two folds are paid for, of five fits each
    assert [60, 107, 190, 337, 600] == [point["rows"] for point in points]
    assert [1 - 1 / point["rows"] ** 0.5 for point in points] == pytest.approx([point["score"] for point in points])
    for fold in range(2):
        held_rows = tuple(folds_of(900)[fold][1].tolist())
        mine = sorted((one for one in seen if one[1] == held_rows), key=lambda one: len(one[0]))
        assert 5 == len(mine)
        assert all(smaller[0] < larger[0] for smaller, larger in itertools.pairwise(mine))
        assert set(folds_of(900)[fold][0].tolist()) == mine[-1][0]


def test_a_learning_curve_of_few_rows_has_few_sizes_and_undefined_scores_stay_undefined():
    points = curve.learning(lambda fit, held: float("nan"), folds_of(30), fits=15, seed=0)  # noqa: ARG005
    assert [{"rows": 20, "score": None, "deviation": None, "folds": 0}] == points
    assert [] == curve.learning(lambda fit, held: 1.0, folds_of(30), fits=4, seed=0)  # noqa: ARG005


def test_the_best_so_far_never_falls_and_seconds_add_up_in_the_order_of_trials():
    board = [
        {"number": 3, "score": 0.4, "seconds": 3.0},
        {"number": 1, "score": None, "seconds": 1.0},
        {"number": 4, "score": 0.9, "seconds": None},
        {"number": 2, "score": 0.5, "seconds": 2.0},
    ]
    course = curve.best_so_far(board, higher_is_better=True)
    assert [1, 2, 3, 4] == [point["number"] for point in course]
    assert [None, 0.5, 0.5, 0.9] == [point["best"] for point in course]
    assert [1.0, 3.0, 6.0, 6.0] == [point["seconds"] for point in course]
    falling = curve.best_so_far(board, higher_is_better=False)
    assert [None, 0.5, 0.4, 0.4] == [point["best"] for point in falling]


# ---------------------------------------------------------------------------------------------- a look at a trial


@pytest.mark.parametrize("kind", ["lightgbm", "extra_trees"])
def test_where_only_a_ratio_tells_the_label_its_columns_lead_the_others(kind):
    rng = np.random.default_rng(4)
    x = rng.uniform(1, 10, (1200, 5)).astype(np.float32)
    share = x[:, 1] / x[:, 3]
    y = (share > np.median(share)).astype(np.int64)
    data = Data(x, y, "binary", 2, Columns(("a", "b", "c", "d", "e")), 1)
    folds = plan_folds(y, task="binary", seed=1)
    found = look(
        data, folds, scorer("roc_auc", "binary", 2), {name: [at] for at, name in enumerate("abcde")},
        recipe=Recipe(ratios=4), kind=kind, params={},
    )  # fmt: skip
    assert {"b", "d"} == {entry["column"] for entry in found.columns[:2]}
    assert found.columns[1]["low"] > found.columns[2]["high"]
    assert len(folds.folds[0].fit) == found.learning[-1]["rows"]
    assert {len(folds.folds[0].held)} == {entry["rows"] for entry in found.columns}


def test_a_look_in_time_order_learns_from_all_but_the_latest_rows():
    x, y, _ = linear_world(300)
    data = Data(x, y, "regression", None, Columns(("a", "b", "c", "d", "e")), 1)
    folds = plan_folds(y, task="regression", seed=1, times=np.arange(300))
    found = look(
        data, folds, scorer("rmse", "regression", None), GROUPS, recipe=Recipe(), kind="linear", params={}
    )  # fmt: skip
    assert 270 == found.learning[-1]["rows"]
