"""Every kind of trees answers in its graph as it does natively, in batch and row by row, whatever table it was fitted on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.cost import microseconds
from esteira.automl.kinds import kind, make
from esteira.automl.kinds.base import Estimator, Held
from esteira.automl.kinds.trees import TreeKind
from esteira.onnx.graph import Graph

SMALL: dict[str, dict[str, Any]] = {
    "lightgbm": {
        "n_estimators": 12,
        "num_leaves": 12,
        "min_data_in_leaf": 3,
        "min_data_per_group": 3,
        "learning_rate": 0.2,
    },
    "xgboost": {"n_estimators": 12, "max_depth": 4, "learning_rate": 0.2},
    "gradient_boosting": {"max_iter": 12, "max_leaf_nodes": 12, "min_samples_leaf": 3, "learning_rate": 0.2},
    "random_forest": {"n_estimators": 12, "max_leaf_nodes": 40},
    "extra_trees": {"n_estimators": 12, "max_leaf_nodes": 40},
}
BOOSTERS = ["lightgbm", "xgboost", "gradient_boosting"]
CLASSES: dict[str, int | None] = {"binary": 2, "multiclass": 4, "regression": None}


@dataclass(frozen=True)
class Table:
    """Random rows: numbers on coarse grids (so that values sit on splits), codes, gaps, and a label that depends on them."""

    x: NDArray[np.float32]
    y: NDArray[Any]
    unseen: NDArray[np.float32]
    categorical: tuple[int, ...] = (0, 4)


def table(
    seed: int,
    task: str,
    *,
    rows: int = 240,
    levels: int = 6,
    gaps: float = 0.1,
    scale: float = 1.0,
    empty: bool = False,
) -> Table:
    rng = np.random.default_rng(seed)

    def draw(n: int) -> NDArray[np.float32]:
        x = np.empty((n, 6), np.float32)
        x[:, 0] = rng.integers(1, levels + 1, n)
        x[:, 1] = rng.normal(size=n) * scale
        x[:, 2] = np.round(rng.normal(size=n), 1)
        x[:, 3] = rng.integers(0, 2, n)
        x[:, 4] = rng.integers(1, 3, n)
        x[:, 5] = 7.0
        x[rng.random(x.shape) < gaps] = np.nan
        return x

    x = draw(rows)
    if empty:
        x[:, [3, 4]] = np.nan
    effect = rng.normal(size=levels + 1)
    z = effect[np.nan_to_num(x[:, 0]).astype(int)] + np.nan_to_num(x[:, 2]) + np.isnan(x[:, 1]) * 0.5
    z += rng.normal(size=rows) * 0.2
    k = CLASSES[task]
    y = z * 250.0 + 1e4 if k is None else np.digitize(z, np.quantile(z, np.linspace(0, 1, k + 1)[1:-1]))
    # What training never saw: unknown and far codes, empty rows, huge numbers, and every value that occurred, mixed anew.
    fresh = np.vstack([draw(80), np.column_stack([rng.permutation(column) for column in x.T])])
    fresh[:10, 0], fresh[10:20, 0], fresh[20:25, 4] = 0, levels + 50, 9
    fresh[25], fresh[26], fresh[27], fresh[28] = np.nan, 3e38, -3e38, 0.0
    return Table(x, y, fresh)


def session(model: Estimator, features: int, classes: int | None) -> onnxruntime.InferenceSession:
    graph = Graph(features)
    return started(graph.finish(model.draw(graph, "x"), classes=classes))


def started(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def fitted(name: str, task: str, data: Table, held: Held | None = None, **params: Any) -> Estimator:
    model = make(
        name, {**SMALL[name], **params}, task=task, classes=CLASSES[task], categorical=data.categorical, seed=7
    )
    model.fit(data.x, data.y, held=held)
    return model


def settings_of(name: str, rounds: int) -> dict[str, Any]:
    return {str(kind(name).rounds_name): rounds}


def assert_same(model: Estimator, x: NDArray[np.float32], task: str, alone: int = 5) -> None:
    classes = CLASSES[task]
    run = session(model, x.shape[1], classes)
    native, drawn = model.predict(x), run.run(["y"], {"x": x})[0]
    single = np.concatenate([run.run(["y"], {"x": x[i : i + 1]})[0] for i in range(alone)])
    assert np.float64 == native.dtype == drawn.dtype
    assert ((len(x), classes) if classes else (len(x),)) == native.shape == drawn.shape
    assert np.isfinite(native).all()
    np.testing.assert_allclose(native, drawn, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(drawn[:alone], single, rtol=1e-12, atol=1e-14)
    if classes:
        np.testing.assert_array_equal(native.argmax(axis=1), drawn.argmax(axis=1))
        np.testing.assert_allclose(1.0, drawn.sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", SMALL)
def test_a_graph_answers_seen_and_unseen_rows_as_the_native_model(name: str, task: str) -> None:
    data = table(3, task)

    assert_same(fitted(name, task, data), np.vstack([data.unseen, data.x]), task, alone=60)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SMALL)),
    task=st.sampled_from(sorted(CLASSES)),
    seed=st.integers(0, 2**16),
    rows=st.sampled_from([2, 3, 7, 40, 150, 300]),
    levels=st.sampled_from([1, 2, 6, 31, 33, 64, 65, 120]),
    gaps=st.sampled_from([0.0, 0.05, 0.5, 0.95]),
    scale=st.sampled_from([1e-38, 1e-20, 1.0, 1e6, 1e30]),
    empty=st.booleans(),
)
def test_graphs_are_exact_for_random_tables(
    name: str, task: str, seed: int, rows: int, levels: int, gaps: float, scale: float, empty: bool
) -> None:
    data = table(seed, task, rows=rows, levels=levels, gaps=gaps, scale=scale, empty=empty)

    assert_same(fitted(name, task, data), np.vstack([data.unseen, data.x]), task)


def params_of(name: str, task: str) -> st.SearchStrategy[dict[str, Any]]:
    """Anything that the kind's own space may propose for small and for large tables."""
    made: dict[str, Callable[..., st.SearchStrategy[Any]]] = {
        "int": lambda low, high: st.integers(low, high),
        "log_int": lambda low, high: st.integers(low, high),
        "float": lambda low, high: st.floats(low, high),
        "log": lambda low, high: st.floats(low, high),
        "choice": lambda values: st.sampled_from(values),
    }
    spaces = [kind(name).space(task, rows, 10) for rows in (500, 50_000)]
    return st.one_of(
        *(st.fixed_dictionaries({key: made[form](*rest) for key, (form, *rest) in space.items()}) for space in spaces)
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=st.tuples(st.sampled_from(sorted(SMALL)), st.sampled_from(sorted(CLASSES))).flatmap(
        lambda both: st.tuples(st.just(both), params_of(*both))
    ),
    seed=st.integers(0, 2**16),
)
def test_graphs_are_exact_for_any_parameters_of_the_space(
    asked: tuple[tuple[str, str], dict[str, Any]], seed: int
) -> None:
    (name, task), params = asked
    data = table(seed, task, rows=200, levels=20)

    assert_same(fitted(name, task, data, **params), data.unseen, task)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        (
            "lightgbm",
            {"path_smooth": 2.0, "extra_trees": True, "feature_fraction_bynode": 0.5, "max_cat_to_onehot": 64},
        ),
        (
            "lightgbm",
            {"max_depth": 3, "lambda_l1": 0.5, "min_gain_to_split": 0.1, "max_cat_to_onehot": 1, "cat_l2": 0.1},
        ),
        ("xgboost", {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0, "reg_alpha": 0.5, "gamma": 0.1}),
        ("xgboost", {"multi_strategy": "multi_output_tree"}),
        ("gradient_boosting", {"max_depth": 3, "max_bins": 16}),
        ("random_forest", {"max_depth": 3, "max_features": None}),
        ("extra_trees", {"max_leaf_nodes": None, "max_features": "log2"}),
    ],
)
@pytest.mark.parametrize("task", CLASSES)
def test_graphs_are_exact_for_parameters_that_only_a_portfolio_sets(
    name: str, params: dict[str, Any], task: str
) -> None:
    data = table(11, task, levels=30)

    assert_same(fitted(name, task, data, **params), data.unseen, task)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", SMALL)
def test_what_trees_sum_to_is_equal_to_the_last_bit(name: str, task: str) -> None:
    data = table(8, task, rows=400)
    model = fitted(name, task, data)
    assert isinstance(model, TreeKind)
    graph = Graph(6)
    targets = 4 if task == "multiclass" else 1
    run = started(graph.finish(model._draw(graph, "x"), classes=targets))
    native = model._sums(data.unseen).reshape(-1, targets)

    np.testing.assert_array_equal(native, run.run(["y"], {"x": data.unseen})[0])
    np.testing.assert_array_equal(native[30:31], run.run(["y"], {"x": data.unseen[30:31]})[0])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("present", [[0, 1], [0, 3], [1, 2, 3], [2]], ids=str)
def test_a_class_that_the_fit_lacks_gets_no_probability(name: str, present: list[int]) -> None:
    data = table(5, "multiclass")
    rows = np.isin(data.y, present)
    model = make(name, SMALL[name], task="multiclass", classes=4, categorical=data.categorical, seed=7)
    model.fit(data.x[rows], data.y[rows], held=Held(data.x, data.y, patience=3))

    assert_same(model, data.unseen, "multiclass")
    assert 0.0 == model.predict(data.x)[:, [code for code in range(4) if code not in present]].max()
    assert model.cost().bytes > 0


@pytest.mark.parametrize("name", SMALL)
def test_one_of_two_classes_alone_is_certain(name: str) -> None:
    data = table(5, "binary")
    model = make(name, SMALL[name], task="binary", classes=2, categorical=data.categorical, seed=7)
    model.fit(data.x[data.y == 1], data.y[data.y == 1])

    assert_same(model, data.unseen, "binary")
    assert [1.0] == np.unique(model.predict(data.x)[:, 1])
    assert model.rounds == (SMALL[name].get(kind(name).rounds_name or ""))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", ["random_forest", "extra_trees"])
def test_a_forest_answers_as_scikit_learn_does_but_for_the_grid(name: str, task: str) -> None:
    from sklearn import ensemble

    data = table(4, task, rows=300)
    model = fitted(name, task, data, max_features=0.5)
    symbol = {"random_forest": "RandomForest", "extra_trees": "ExtraTrees"}[name]
    symbol += "Regressor" if task == "regression" else "Classifier"
    own = getattr(ensemble, symbol)(12, max_leaf_nodes=40, max_features=0.5, bootstrap=symbol[0] == "R", random_state=7)
    y = (data.y - data.y.mean()) / data.y.std() if task == "regression" else data.y
    own.fit(data.x, y)
    expected = own.predict(data.x) * data.y.std() + data.y.mean() if task == "regression" else own.predict_proba(data.x)

    np.testing.assert_allclose(
        expected, model.predict(data.x), atol=1e-5 * (data.y.std() if task == "regression" else 1.0)
    )


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", BOOSTERS)
def test_held_rows_stop_a_fit_and_only_the_best_rounds_answer(name: str, task: str) -> None:
    data, other = table(1, task), table(2, task)
    told: list[tuple[int, float]] = []

    def watch(rounds: int, loss: float) -> bool:
        told.append((rounds, loss))
        return True

    held = Held(other.x, other.y, patience=15, watch=watch)
    model = fitted(name, task, data, held=held, learning_rate=0.5, **settings_of(name, 400))
    assert model.rounds is not None
    assert 0 < model.rounds < 300
    assert [number for number, _ in told] == list(range(10, told[-1][0] + 1, 10))
    again = fitted(name, task, data, learning_rate=0.5, **settings_of(name, model.rounds))

    np.testing.assert_allclose(again.predict(other.x), model.predict(other.x), rtol=1e-6, atol=1e-9)
    assert_same(model, other.unseen, task)
    # The loss that is told is that of the label: squared error, or log loss.
    at_ten = fitted(name, task, data, learning_rate=0.5, **settings_of(name, 10)).predict(other.x)
    if task == "regression":
        expected = float(np.square(at_ten - other.y).mean())
    else:
        expected = float(-np.log(at_ten[np.arange(len(other.y)), other.y]).mean())
    assert told[0][1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", SMALL)
def test_a_table_on_which_nothing_can_be_split_gets_one_answer(name: str, task: str) -> None:
    data = table(1, task)
    x, unseen = np.full_like(data.x, 3.0), data.unseen
    model = make(name, SMALL[name], task=task, classes=CLASSES[task], categorical=(0,), seed=1)
    for held in (None, Held(x[:50], data.y[:50], patience=5)):
        model.fit(x, data.y, held=held)

        assert 1 == len(np.unique(model.predict(unseen), axis=0))
        assert_same(model, unseen, task)
        assert model.rounds is None or 1 <= model.rounds <= 12


@pytest.mark.parametrize("name", BOOSTERS)
def test_a_watcher_may_stop_a_fit_or_raise_through_it(name: str) -> None:
    data = table(1, "binary")
    stopped = fitted(
        name, "binary", data, held=Held(data.x, data.y, 50, watch=lambda done, _: done < 20), **settings_of(name, 400)
    )

    def refuse(done: int, loss: float) -> bool:
        raise KeyboardInterrupt(f"after {done}")

    assert 20 == stopped.rounds
    with pytest.raises(KeyboardInterrupt, match="after 10"):
        fitted(name, "binary", data, held=Held(data.x, data.y, 50, watch=refuse))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", SMALL)
def test_the_same_fit_gives_the_same_bytes_on_one_thread_and_on_two(name: str, task: str) -> None:
    # So many rows that the libraries do share them among threads.
    data = table(4, task, rows=20_000)
    few = {str(kind(name).rounds_name or "n_estimators"): 4}
    graphs: list[Any] = []
    for threads in (1, 1, 2):
        model = make(
            name,
            {**SMALL[name], **few},
            task=task,
            classes=CLASSES[task],
            categorical=data.categorical,
            seed=7,
            threads=threads,
        )
        model.fit(data.x, data.y)
        graph = Graph(6)
        graphs.append(graph.finish(model.draw(graph, "x"), classes=CLASSES[task]))

    assert graphs[0] == graphs[1]
    assert graphs[0] == graphs[2]


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", SMALL)
def test_the_cost_tells_the_weight_of_the_graph_and_the_depth_of_its_trees(name: str, task: str) -> None:
    data = table(4, task, rows=600)
    model = fitted(name, task, data)
    graph = Graph(6)
    content = graph.finish(model.draw(graph, "x"), classes=CLASSES[task])
    trees = 12 * (4 if task == "multiclass" and name in BOOSTERS else 1)
    cost = model.cost()

    assert cost.bytes == pytest.approx(len(content), rel=0.15, abs=700)
    assert trees < cost.visits < 14 * trees


def test_a_larger_table_allows_larger_trees_and_very_large_ones_no_forest() -> None:
    for name in SMALL:
        small, large = kind(name).space("binary", 500, 10), kind(name).space("binary", 50_000, 10)
        assert small.keys() == large.keys()
        assert ("multi_strategy" in kind(name).space("multiclass", 500, 10)) == (name == "xgboost")
        assert small != large
        assert set(small) <= set(kind(name).parameters)
        assert "" == kind(name).refuses("binary", 20_000, 20, 2)
    assert "at most 100000 rows" in kind("extra_trees").refuses("binary", 300_000, 5, 2)
    assert "at most 30 classes" in kind("gradient_boosting").refuses("multiclass", 500, 5, 31)


def test_unknown_codes_follow_the_missing_values_way_in_histogram_boosting() -> None:
    data = table(9, "binary", gaps=0.3)
    model = fitted("gradient_boosting", "binary", data)
    unknown, missing = data.x.copy(), data.x.copy()
    unknown[:, 0], missing[:, 0] = 0, np.nan
    run = session(model, 6, 2)

    np.testing.assert_array_equal(run.run(["y"], {"x": missing})[0], run.run(["y"], {"x": unknown})[0])


def test_an_xgboost_model_whose_graph_was_never_tried_is_refused() -> None:
    import xgboost

    from esteira.onnx.xgboost import read

    data = table(4, "binary")
    for params in ({"objective": "count:poisson"}, {"objective": "reg:squarederror", "booster": "dart"}):
        booster = xgboost.train({**params, "verbosity": 0}, xgboost.DMatrix(data.x, data.y), 2)
        with pytest.raises(ValueError, match="exact export is proven"):
            read(booster)


def test_one_tree_for_all_classes_answers_sooner_than_one_a_class() -> None:
    data = table(4, "multiclass", rows=600)
    whole = fitted("xgboost", "multiclass", data, n_estimators=60, multi_strategy="multi_output_tree")
    apart = fitted("xgboost", "multiclass", data, n_estimators=60)
    agree = (whole.predict(data.x).argmax(axis=1) == apart.predict(data.x).argmax(axis=1)).mean()

    assert microseconds(whole.cost()) < microseconds(apart.cost())
    assert agree > 0.8


@pytest.mark.parametrize("name", SMALL)
def test_tables_of_codes_only_and_of_one_number_only_are_drawn(name: str) -> None:
    data = table(2, "binary")
    for columns, categorical in (([0, 4], [0, 1]), ([1], [])):
        model = make(name, SMALL[name], task="binary", classes=2, categorical=categorical, seed=1)
        model.fit(data.x[:, columns], data.y)
        assert_same(model, data.unseen[:, columns], "binary")


def test_a_lightgbm_model_whose_graph_was_never_tried_is_refused() -> None:
    import lightgbm

    from esteira.onnx.lightgbm import read

    data = table(4, "regression", gaps=0.0)
    for params in (
        {"linear_tree": True},
        {"objective": "poisson"},
        {"zero_as_missing": True},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    ):
        booster = lightgbm.train(
            {"verbosity": -1, "objective": "regression", "min_data_in_leaf": 3, **params},
            lightgbm.Dataset(data.x, data.y),
            2,
        )
        with pytest.raises(ValueError, match="exact export is proven"):
            read(booster.model_to_string())
