"""An exported graph answers as the native model does: every label, and probabilities far within 1e-6, row by row too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.estimators import Estimator, make
from esteira.onnx import xgboost as xgboost_export

SMALL: Mapping[str, Mapping[str, Any]] = {
    "xgboost": {"n_estimators": 12, "max_depth": 4},
    "hist_gradient_boosting": {"max_iter": 12, "max_leaf_nodes": 12, "min_samples_leaf": 3},
    "linear": {},
    "constant": {},
}
CLASSES = {"binary": 2, "multiclass": 4, "regression": None}


@dataclass(frozen=True)
class Table:
    """Random rows: numbers on coarse grids (so that values sit on splits), codes, gaps, and a label that depends on them."""

    x: NDArray[np.float32]
    y: NDArray[Any]
    unseen: NDArray[np.float32]
    categorical: tuple[int, ...]


def table(seed: int, task: str, *, rows: int = 240, levels: int = 6, gaps: float = 0.1, scale: float = 1.0) -> Table:
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
    effect = rng.normal(size=levels + 1)
    z = effect[np.nan_to_num(x[:, 0]).astype(int)] + np.nan_to_num(x[:, 2]) + np.isnan(x[:, 1]) * 0.5
    z += rng.normal(size=rows) * 0.2
    k = CLASSES[task]
    y = z * 250.0 + 1e4 if k is None else np.digitize(z, np.quantile(z, np.linspace(0, 1, k + 1)[1:-1]))
    # What training never saw: unknown and far codes, empty rows, huge numbers, and every value that occurred, mixed anew.
    fresh = np.vstack([draw(80), np.column_stack([rng.permutation(column) for column in x.T])])
    fresh[:10, 0], fresh[10:20, 0], fresh[20:25, 4] = 0, levels + 50, 9
    fresh[25], fresh[26], fresh[27] = np.nan, 3e38, -3e38
    return Table(x, y, fresh, (0, 4))


def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def fitted(kind: str, task: str, data: Table, **params: Any) -> Estimator:
    model = make(kind, {**SMALL[kind], **params}, classes=CLASSES[task], categorical=data.categorical, seed=7)
    model.fit(data.x, data.y)
    return model


def assert_same(model: Estimator, x: NDArray[np.float32], task: str, alone: int = 25) -> None:
    run = session(model.graph())
    native, exported = model.predict(x), run.run(["y"], {"x": x})[0]
    single = np.concatenate([run.run(["y"], {"x": x[i : i + 1]})[0] for i in range(alone)])
    assert np.float64 == exported.dtype
    assert native.shape == exported.shape
    np.testing.assert_allclose(native, exported, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(exported[:alone], single, rtol=1e-12, atol=1e-12)
    if task != "regression":
        np.testing.assert_array_equal(native.argmax(axis=1), exported.argmax(axis=1))
        np.testing.assert_allclose(1.0, exported.sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("kind", SMALL)
def test_a_graph_answers_seen_and_unseen_rows_as_the_native_model(kind: str, task: str) -> None:
    data = table(3, task)

    assert_same(fitted(kind, task, data), np.vstack([data.unseen, data.x]), task, alone=60)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["xgboost", "hist_gradient_boosting", "linear"]),
    task=st.sampled_from(sorted(CLASSES)),
    seed=st.integers(0, 2**16),
    rows=st.integers(30, 300),
    levels=st.sampled_from([1, 2, 6, 31, 33, 64, 65, 120]),
    gaps=st.sampled_from([0.0, 0.05, 0.5]),
    scale=st.sampled_from([1e-20, 1.0, 1e6, 1e30]),
)
def test_graphs_are_exact_for_random_tables(
    kind: str, task: str, seed: int, rows: int, levels: int, gaps: float, scale: float
) -> None:
    data = table(seed, task, rows=rows, levels=levels, gaps=gaps, scale=scale)

    assert_same(fitted(kind, task, data), np.vstack([data.unseen, data.x]), task, alone=5)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    depth=st.integers(1, 8),
    rate=st.floats(0.02, 1.0),
    weight=st.floats(0.5, 20.0),
    share=st.floats(0.3, 1.0),
    task=st.sampled_from(sorted(CLASSES)),
)
def test_xgboost_graphs_are_exact_for_random_parameters(
    depth: int, rate: float, weight: float, share: float, task: str
) -> None:
    data = table(depth, task)
    model = fitted(
        "xgboost", task, data,
        max_depth=depth, learning_rate=rate, min_child_weight=weight, subsample=share, colsample_bytree=share,
    )  # fmt: skip

    assert_same(model, data.unseen, task, alone=5)


@pytest.mark.parametrize("kind", ["xgboost", "hist_gradient_boosting", "linear", "constant"])
@pytest.mark.parametrize("present", [[0, 1], [0, 3], [1, 2, 3]], ids=str)
def test_a_class_that_training_lacks_gets_no_probability_to_speak_of(kind: str, present: list[int]) -> None:
    data = table(5, "multiclass")
    rows = np.isin(data.y, present)
    model = make(kind, SMALL[kind], classes=4, categorical=data.categorical, seed=7)
    model.fit(data.x[rows], data.y[rows])

    assert (len(data.unseen), 4) == model.predict(data.unseen).shape
    assert_same(model, data.unseen, "multiclass")
    absent = [code for code in range(4) if code not in present]
    assert model.predict(data.x)[:, absent].max() < 0.2


@pytest.mark.parametrize("kind", ["xgboost", "linear", "constant"])
def test_one_class_alone_is_exported_too(kind: str) -> None:
    data = table(5, "binary")
    model = make(kind, SMALL[kind], classes=2, categorical=data.categorical, seed=7)
    model.fit(data.x[data.y == 1], data.y[data.y == 1])

    assert_same(model, data.unseen, "binary")
    assert model.predict(data.x)[:, 1].min() > 0.5


def test_unknown_codes_follow_the_missing_values_way_in_histogram_boosting() -> None:
    data = table(9, "binary", gaps=0.3)
    model = fitted("hist_gradient_boosting", "binary", data)
    unknown, missing = data.x.copy(), data.x.copy()
    unknown[:, 0], missing[:, 0] = 0, np.nan
    run = session(model.graph())

    np.testing.assert_array_equal(run.run(["y"], {"x": missing})[0], run.run(["y"], {"x": unknown})[0])


def test_an_unknown_code_adds_nothing_to_a_linear_model() -> None:
    data = table(9, "regression")
    model = fitted("linear", "regression", data)
    run = session(model.graph())
    unknown, far = data.x.copy(), data.x.copy()
    unknown[:, 0], far[:, 0] = 0, 500

    np.testing.assert_array_equal(run.run(["y"], {"x": unknown})[0], run.run(["y"], {"x": far})[0])


def test_a_table_of_codes_only_and_one_of_numbers_only_are_exported() -> None:
    data = table(2, "binary")
    for columns, categorical in (([0, 4], [0, 1]), ([1, 2], [])):
        for kind in SMALL:
            model = make(kind, SMALL[kind], classes=2, categorical=categorical, seed=1)
            model.fit(data.x[:, columns], data.y)
            assert_same(model, data.unseen[:, columns], "binary")


def test_a_column_without_any_value_is_exported() -> None:
    data = table(2, "regression")
    x = data.x.copy()
    x[:, [1, 4]] = np.nan
    for kind in SMALL:
        model = make(kind, SMALL[kind], classes=None, categorical=data.categorical, seed=1)
        model.fit(x, data.y)
        assert_same(model, data.unseen, "regression")


@pytest.mark.parametrize("kind", SMALL)
def test_the_same_fit_gives_the_same_bytes_in_pinned_versions(kind: str) -> None:
    data = table(4, "multiclass")
    first, second = fitted(kind, "multiclass", data).graph(), fitted(kind, "multiclass", data).graph()

    model = onnx.load_from_string(first)
    assert first == second
    assert {"": 18, "ai.onnx.ml": 5} == {entry.domain: entry.version for entry in model.opset_import}
    assert (10, ["x"], ["y"]) == (
        model.ir_version,
        [i.name for i in model.graph.input],
        [o.name for o in model.graph.output],
    )


def test_a_booster_whose_graph_was_never_tried_is_refused() -> None:
    import xgboost

    data = table(4, "binary")
    for params in ({"objective": "count:poisson"}, {"objective": "reg:squarederror", "booster": "dart"}):
        booster = xgboost.train({**params, "verbosity": 0}, xgboost.DMatrix(data.x, data.y), 2)
        with pytest.raises(ValueError, match="exact export is proven"):
            xgboost_export.graph(booster, features=6, classes=None)
