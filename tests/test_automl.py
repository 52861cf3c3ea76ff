"""The search is seeded, bounded by trials or by seconds, honest about what it held back, and clear about what it cannot do."""

import itertools
import json
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from esteira.automl import course, drive, finish
from esteira.automl.engine import Result, search
from esteira.automl.final import difference
from esteira.automl.kinds import kind
from esteira.automl.splits import Fold, Folds, plan_folds
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate, Searched
from esteira.features.metrics import PRIMARY

BOOSTED = Candidate(
    "lightgbm",
    space={"num_leaves": ("int", 3, 15), "learning_rate": ("log", 0.05, 0.5), "min_data_in_leaf": ("int", 2, 20)},
    defaults={"n_estimators": 20, "learning_rate": 0.2, "num_leaves": 7, "min_data_in_leaf": 5},
)
FOREST = Candidate("extra_trees", defaults={"n_estimators": 20, "min_samples_leaf": 3})
LINEAR = Candidate("linear")
CANDIDATES = [BOOSTED, FOREST, LINEAR, Candidate("constant")]


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
        "folds": plan_folds(y, task=task, seed=5, count=3, repeats=1),
    }  # fmt: skip
    return search(x, y, **{**wanted, **changed})


def without_time(found: Result) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "fit_seconds"} for row in found.leaderboard]


def tried(found: Result) -> list[dict[str, Any]]:
    """Trials in the order of their numbers."""
    board = [row for row in found.leaderboard if row["kind"] != "blend" and row["number"] is not None]
    return sorted(board, key=lambda row: row["number"])


@pytest.mark.parametrize("task", PRIMARY)
@pytest.mark.requirement("K-89")
def test_the_same_rows_seed_and_trials_give_the_same_search_to_the_last_bit(task: Any) -> None:
    """Done when: budget is respected within one trial's length; same seed gives the same best trial with serial execution."""
    first, second = find(task, trials=12), find(task, trials=12)

    assert without_time(first) == without_time(second)
    assert first.out_of_fold.tobytes() == second.out_of_fold.tobytes()
    assert first.graph() == second.graph()
    assert 12 == len(tried(first))


@pytest.mark.parametrize("task", PRIMARY)
def test_the_search_is_the_same_however_many_cores_there_are(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found.append(find(task))

    assert without_time(found[0]) == without_time(found[1])
    assert found[0].graph() == found[1].graph()


def test_another_seed_gives_another_search() -> None:
    assert without_time(find()) != without_time(find(seed=6))


@pytest.mark.parametrize("task", PRIMARY)
def test_what_answers_leads_the_leaderboard_and_beats_the_constant(task: Any) -> None:
    found = find(task)

    assert isinstance(found, Searched)
    assert list(range(1, 8)) == [row["number"] for row in tried(found)]
    assert {"kind", "params", "score"} <= set(found.best)
    constant = next(row for row in found.leaderboard if row["kind"] == "constant")
    assert found.best["score"] > constant["score"] + 0.2
    assert 1.0 == pytest.approx(sum(row["weight"] for row in tried(found)))


def test_a_familys_defaults_come_first_and_proposals_stay_in_its_space() -> None:
    found = find(trials=14, candidates=[BOOSTED])

    assert dict(BOOSTED.defaults) == tried(found)[0]["params"]
    for row in tried(found):
        assert 3 <= row["params"]["num_leaves"] <= 15
        assert 0.05 <= row["params"]["learning_rate"] <= 0.5
        assert 20 == row["params"]["n_estimators"]
    assert 14 == len({str(row["params"]) for row in tried(found)})


def test_a_kind_that_is_only_named_starts_from_the_portfolio() -> None:
    found = find(trials=4, candidates=[Candidate("lightgbm"), Candidate("constant")])

    assert "constant" == tried(found)[0]["kind"]
    assert {"portfolio"} == {row["origin"] for row in tried(found)[:3]}
    assert 4 == len({(row["kind"], str(row["params"])) for row in tried(found)})


@pytest.mark.parametrize("task", PRIMARY)
def test_no_row_is_predicted_by_a_model_that_saw_it(task: Any) -> None:
    """A label that is noise cannot be predicted out of fold, however well the winner learns it by heart."""
    x, _ = rows(task, 400)
    rng = np.random.default_rng(1)
    y = rng.normal(size=400) if task == "regression" else rng.integers(0, 2 if task == "binary" else 3, 400)
    deep = Candidate("extra_trees", defaults={"n_estimators": 60, "min_samples_leaf": 1})
    found = search(x, y, task=task, categorical=[3], candidates=[deep], metric=PRIMARY[task], trials=1, seed=1)

    def right(predicted: NDArray[np.float64]) -> float:
        if task == "regression":
            return float(np.corrcoef(y, predicted)[0, 1])
        return float((predicted.argmax(axis=1) == y).mean())

    assert np.isfinite(found.out_of_fold).all()
    assert right(found.predict(x)) > 0.75
    assert right(found.out_of_fold) < 0.6


@pytest.mark.parametrize(
    ("task", "metric", "sign"),
    [("binary", "log_loss", 1), ("binary", "accuracy", -1), ("regression", "rmse", 1), ("regression", "mae", 1)],
)
def test_a_metric_is_reported_in_its_own_direction(task: str, metric: str, sign: int) -> None:
    found = find(task, metric=metric, trials=4)

    scores = [row["score"] for row in tried(found) if row["state"] == "complete"]
    assert all(score > 0 for score in scores)
    best = min(scores, key=lambda score: sign * score)
    assert sign * found.best["score"] <= sign * best + 0.02


def test_a_class_that_only_the_contract_knows_has_its_column() -> None:
    found = find("multiclass", classes=4, trials=4)

    assert (300, 4) == found.out_of_fold.shape
    assert (300, 4) == found.predict(rows("multiclass")[0]).shape


@pytest.mark.parametrize("task", PRIMARY)
def test_the_graph_answers_as_the_model_does(task: Any) -> None:
    found = find(task, trials=9)
    x, _ = rows(task, 500, seed=9)

    assert difference(found.graph(), found.predict, x) <= 1e-9


def test_what_one_answer_may_cost_bounds_the_blend() -> None:
    trees = [BOOSTED, FOREST, Candidate("constant")]
    wide = find(max_row_us=1000.0, trials=10, candidates=trees)
    narrow = find(max_row_us=11.0, trials=10, candidates=trees)

    assert narrow.record["row_us"] <= 11.0 < wide.record["row_us"]
    assert len(narrow.graph()) < len(wide.graph())


def test_a_graph_stays_below_its_size() -> None:
    trees = [BOOSTED, FOREST, Candidate("constant")]
    wide, narrow = (len(find(max_bytes=most, trials=6, candidates=trees).graph()) for most in (50_000_000, 20_000))
    assert narrow < 24_000 < wide


def test_where_only_the_trivial_model_is_cheap_enough_it_answers() -> None:
    found = find(max_row_us=7.0, trials=4, candidates=[FOREST, Candidate("constant")])

    assert "constant" == found.best["kind"]
    assert found.record["row_us"] <= 7.0


def test_limits_that_no_model_keeps_are_refused_with_what_the_cheapest_costs() -> None:
    with pytest.raises(ConfigError, match=r"must cost 5 us .* but the cheapest model found costs"):
        find(max_row_us=5.0, trials=2, candidates=[FOREST])


def test_a_forest_has_no_more_trees_on_all_rows_than_on_the_folds() -> None:
    forest = Candidate("extra_trees", defaults={"n_estimators": 3000, "min_samples_leaf": 5})
    found = find(max_row_us=40.0, trials=2, candidates=[forest, Candidate("constant")])

    assert "extra_trees" == found.best["kind"]
    assert "refit" in {row["form"] for row in tried(found)}
    assert found.record["row_us"] <= 40.0


def test_a_model_that_outgrows_the_limit_on_all_rows_is_answered_for_by_that_of_a_fold() -> None:
    near = Candidate("nearest_neighbours", defaults={})
    limits = [int(next(row["bytes"] for row in tried(find(trials=2, candidates=[near, Candidate("constant")]))
                  if row["kind"] == "nearest_neighbours") / 0.85)]  # fmt: skip
    found = find(trials=2, candidates=[near, Candidate("constant")], max_bytes=limits[0])

    assert "nearest_neighbours" == found.best["kind"]
    assert found.model.cost().bytes <= limits[0]


def test_what_cannot_be_fitted_on_all_rows_answers_with_a_folds_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = kind("extra_trees").fit

    def full(self: Any, x: Any, y: Any, **named: Any) -> None:
        if len(y) == 300:
            raise MemoryError("all rows are too many")
        fit(self, x, y, **named)

    monkeypatch.setattr(kind("extra_trees"), "fit", full)
    monkeypatch.setattr(finish, "bags", lambda *_: set())
    found = find(trials=2, candidates=[FOREST, Candidate("constant")])

    row = next(row for row in tried(found) if row["kind"] == "extra_trees")
    assert ("bag of 1", 1.0) == (row["form"], row["weight"])
    assert "not fitted on all rows: MemoryError" in row["why"]


def test_a_graph_that_answers_what_is_no_number_is_not_exact() -> None:
    found = find("regression", candidates=[LINEAR], trials=1)
    x, _ = rows("regression")

    assert float("inf") == difference(found.graph(), lambda part: np.full(len(part), np.nan), x)


def test_bags_answer_with_the_models_of_the_folds_where_that_is_allowed() -> None:
    forms = {row["form"] for row in find(max_row_us=1000.0, candidates=[BOOSTED], trials=2).leaderboard}
    assert "bag of 3" in forms
    assert "refit" in {row["form"] for row in find(max_row_us=8.0, candidates=[BOOSTED], trials=2).leaderboard}


def test_in_time_order_members_are_fitted_again_on_all_rows() -> None:
    folds = Folds((Fold(np.arange(200), np.arange(200, 300)), Fold(np.arange(100), np.arange(100, 200))), "time", 1)
    found = find(folds=folds, trials=3)

    assert not {row["form"] for row in tried(found)} - {"refit", ""}
    assert np.isnan(found.out_of_fold[:100]).all()
    assert np.isfinite(found.out_of_fold[100:]).all()


def test_given_folds_are_kept_to() -> None:
    _, y = rows("regression")
    halves = (np.arange(150), np.arange(150, 300))
    folds = Folds((Fold(*halves), Fold(*halves[::-1])), "random", 1)
    found = find("regression", candidates=[Candidate("constant")], trials=1, folds=folds)

    np.testing.assert_allclose(np.repeat([y[150:].mean(), y[:150].mean()], 150), found.out_of_fold)


@pytest.mark.requirement("K-89")
def test_a_budget_in_seconds_is_respected_within_one_trials_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Done when: budget is respected within one trial's length; same seed gives the same best trial with serial execution."""
    now, fit = [0.0], kind("linear").fit

    def slow(self: Any, *arguments: Any, **named: Any) -> None:
        fit(self, *arguments, **named)
        now[0] += 1.0

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(kind("linear"), "fit", slow)
    found = find(
        trials=10_000, seconds=30.0, clock=lambda: now[0], candidates=[Candidate("linear"), Candidate("constant")]
    )

    folds = len(tried(found)[0]["folds"])
    assert 20.0 <= now[0] <= 30.0 + folds
    assert 20 // folds <= len(tried(found)) <= 30
    assert found.best["score"] > 0.6


def test_a_budget_that_is_used_up_at_once_gives_at_least_the_trivial_model() -> None:
    ticking = itertools.count(0.0, 5.0)
    found = find(trials=100, seconds=6.0, clock=lambda: next(ticking))

    assert tried(found)
    assert found.graph()


def test_a_budget_that_is_used_up_before_a_large_table_is_searched_still_gives_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (course, drive):
        monkeypatch.setattr(module, "SAMPLE_ROWS", 100)
    ticking = itertools.count(0.0, 5.0)
    found = find(trials=100, seconds=6.0, clock=lambda: next(ticking))

    assert np.isfinite(found.best["score"])
    assert found.graph()


@pytest.mark.parametrize("seconds", [None, 600.0])
def test_on_a_large_table_samples_are_judged_beside_samples(
    seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model of whole folds scores is no measure of one that saw a sample of their rows."""
    for module in (course, drive):
        monkeypatch.setattr(module, "SAMPLE_ROWS", 60)
    nearly = [
        Candidate("lightgbm", {"min_data_in_leaf": ("int", 4, 6)}, {"min_data_in_leaf": 5, "n_estimators": 60}),
        Candidate("constant"),
    ]
    x, _ = rows("regression", 3000)
    y = np.sin(5 * np.nan_to_num(x[:, 0])) + np.nan_to_num(x[:, 1])
    found = search(
        x, y, task="regression", categorical=[3], candidates=nearly, metric="rmse", trials=4, seed=5, seconds=seconds,
        folds=plan_folds(y, task="regression", seed=5, count=3, repeats=1),
    )  # fmt: skip

    assert ["complete"] * 4 == [row["state"] for row in tried(found)]


def test_no_more_models_stay_in_memory_than_can_be_blended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "KEPT", 2)
    held: list[int] = []
    end = course.Course.tell

    def tell(self: Any, trial: Any) -> None:
        end(self, trial)
        held.append(sum(bool(one.fitted) for one in self.done))

    monkeypatch.setattr(course.Course, "tell", tell)
    find(trials=12, candidates=[BOOSTED, Candidate("constant")])

    assert 12 == len(held)
    assert max(held) <= 3


@pytest.mark.parametrize(("seconds", "tried_too"), [(1.5, False), (600.0, True)])
def test_a_forest_which_no_clock_can_stop_is_not_begun_before_it_is_known_how_long_fits_take(
    seconds: float, tried_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    line, trees = kind("linear").fit, kind("extra_trees").fit

    def slow(self: Any, *arguments: Any, **named: Any) -> None:
        time.sleep(0.3)
        line(self, *arguments, **named)
        events.append("linear")

    def forest(self: Any, *arguments: Any, **named: Any) -> None:
        events.append("forest")
        trees(self, *arguments, **named)

    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(kind("linear"), "fit", slow)
    monkeypatch.setattr(kind("extra_trees"), "fit", forest)
    find(trials=8, seconds=seconds, candidates=[Candidate("extra_trees"), LINEAR, Candidate("constant")])

    assert "linear" == events[0]
    assert tried_too == ("forest" in events)


def test_stop_keeps_the_best_so_far() -> None:
    seen: list[int] = []
    found = find(trials=500, progress=lambda done, _of, _row: seen.append(done), stop=lambda: len(seen) >= 6)

    assert 6 <= len(tried(found)) < 20
    assert found.best["score"] > 0.6


def test_progress_tells_the_best_so_far() -> None:
    told: list[dict[str, Any]] = []
    find(trials=6, progress=lambda done, _of, row: told.append({"done": done, "of": _of, **row}))

    assert [(number, 6) for number in range(1, 7)] == [(row["done"], row["of"]) for row in told]
    assert {"kind", "score", "best", "seconds", "left"} <= set(told[0])
    for row in told:
        scores = [other["score"] for other in told[: row["done"]] if other["state"] == "complete"]
        assert max(scores) == row["best"]


def test_a_trial_that_fails_is_recorded_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: Any, *arguments: Any, **named: Any) -> None:
        raise ValueError("no convergence")

    monkeypatch.setattr(kind("extra_trees"), "fit", fit)
    found = find(trials=6)

    failed = next(row for row in tried(found) if row["kind"] == "extra_trees")
    assert ("failed", "ValueError: no convergence") == (failed["state"], failed["why"])
    assert found.best["score"] > 0.8


def test_where_every_trial_fails_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: Any, *arguments: Any, **named: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(kind("extra_trees"), "fit", fit)
    with pytest.raises(DataError, match="must be fitted, but none of 1 was; MemoryError: no room"):
        find(trials=3, candidates=[FOREST])


def test_a_member_that_is_not_drawn_exactly_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = kind("lightgbm").draw

    def wrong(self: Any, graph: Any, x: str) -> str:
        return graph.add("Mul", draw(self, graph, x), graph.scalar(0.999999, np.float64))

    monkeypatch.setattr(kind("lightgbm"), "draw", wrong)
    found = find(trials=4, candidates=[BOOSTED, Candidate("constant")])

    assert "constant" == found.best["kind"]
    for row in tried(found)[1:]:
        assert (0.0, "failed") == (row["weight"], row["state"])
        assert "differs from the model" in row["why"]
    assert difference(found.graph(), found.predict, rows("binary")[0]) <= 1e-9


def test_a_kind_that_does_not_suit_the_table_is_told_of() -> None:
    found = find(n=4000, candidates=[LINEAR, Candidate("nearest_neighbours")], trials=3)

    refused = [row for row in found.leaderboard if row["state"] == "refused"]
    assert ["nearest_neighbours"] == [row["kind"] for row in refused]
    assert refused[0]["why"]


@pytest.mark.requirement("K-45")
def test_a_ratio_that_alone_tells_the_label_is_made_and_ranked_first() -> None:
    """Done when: on a dataset where only a ratio predicts the target, that ratio is created and ranked first."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(size=(600, 5)).astype(np.float32)
    y = (x[:, 1] / x[:, 3] > 1.1).astype(np.int64)
    found = search(
        x, y, task="binary", categorical=[], candidates=[Candidate("lightgbm"), Candidate("constant")],
        metric="log_loss", trials=12, seed=1, names=["a", "income", "b", "debt", "c"],
    )  # fmt: skip

    made = found.record["catalogue"]
    assert {"income", "debt"} == set(made[0]["made_of"])
    assert "ratio" in made[0]["transformation"]
    assert made[0]["importance"] == max(entry["importance"] for entry in made)
    told = {entry["column"]: entry["value"] for entry in found.record["importances"]}
    assert made[0]["importance"] > 10 * max(told[name] for name in ("a", "b", "c", "income", "debt"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"metric": "r2"}, "roc_auc, accuracy"),
        ({"metric": "nonsense"}, "a metric of binary is one of"),
        ({"trials": 0}, "needs a trial"),
        ({"seconds": 0}, "a budget is a number of seconds above 0"),
        ({"candidates": []}, "needs a trial and a candidate"),
        ({"candidates": [Candidate("random_guess")]}, "kind of estimator is one of lightgbm"),
        ({"candidates": [Candidate("linear", defaults={"depth": 3})]}, "a parameter of linear is one of"),
        ({"candidates": [Candidate("linear", {"knots": ("int", 1, 2)}, {"alpha": 1})]}, "has a default"),
        ({"candidates": [Candidate("linear", {"alpha": ("exp", 1, 2)}, {"alpha": 1})], "trials": 4}, "a space is"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_is_not_known_is_refused_with_what_is(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find(**changed)


@pytest.mark.parametrize("trials", [2, 6])
def test_a_class_of_one_row_is_scored_on_all_folds_together(trials: int) -> None:
    """No fold alone has two classes among its held rows, but the rows of all of them have."""
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = search(
        x, np.array([0, 0, 0, 0, 1]), task="binary", categorical=[], candidates=CANDIDATES, metric="roc_auc",
        trials=trials, seed=1,
    )  # fmt: skip

    assert np.isfinite(found.best["score"])
    assert (5, 2) == found.predict(x).shape
    json.dumps([found.leaderboard, found.record], allow_nan=False)


def test_too_few_rows_and_a_score_without_meaning_are_data_errors() -> None:
    x = np.zeros((10, 2), np.float32)
    common: dict[str, Any] = {"task": "binary", "categorical": [], "candidates": CANDIDATES[2:], "trials": 2, "seed": 1}
    with pytest.raises(DataError, match="4 training rows"):
        search(x[:3], np.array([0, 1, 0]), metric="roc_auc", **common)
    with pytest.raises(DataError, match="must be defined on held-back rows"):
        search(x, np.zeros(10, np.int64), metric="roc_auc", **common)
