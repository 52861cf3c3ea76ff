"""Linear models, neighbours and networks: fitted on anything a table may hold, answered alike by the library and the graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.kinds import make
from esteira.automl.kinds.base import Estimator, Held
from esteira.onnx.graph import Graph

TASKS = ["binary", "multiclass", "regression"]
KINDS = ["linear", "nearest_neighbours", "neural_network"]
QUICK: dict[str, dict[str, Any]] = {
    "linear": {},
    "nearest_neighbours": {"k": 5},
    "neural_network": {"epochs": 3, "width": 8},
}


def rows(task: str, n: int = 200, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Four numbers and a category (column 4), a twentieth of the cells missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    x[:, 4] = rng.integers(1, 5, n)
    z = x[:, 0] * x[:, 1] + x[:, 2] + (x[:, 4] == 2) + rng.normal(size=n) * 0.1
    x[rng.random(x.shape) < 0.05] = np.nan
    return x, z * 10 + 1000 if task == "regression" else np.digitize(z, [0.3] if task == "binary" else [-0.3, 0.7])


def fitted(kind: str, task: str, n: int = 200, held: Held | None = None, **params: Any) -> Estimator:
    x, y = rows(task, n)
    classes = {"binary": 2, "multiclass": 3, "regression": None}[task]
    made = make(kind, {**QUICK[kind], **params}, task=task, classes=classes, categorical=[4], seed=7)
    made.fit(x, y, held=held)
    return made


def drawn(estimator: Estimator, features: int, classes: int | None) -> onnxruntime.InferenceSession:
    graph = Graph(features)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = graph.finish(estimator.draw(graph, "x"), classes=classes)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def assert_alike(estimator: Estimator, x: NDArray[np.float32], classes: int | None) -> None:
    """The library and the graph say the same, in batch and row by row."""
    session = drawn(estimator, x.shape[1], classes)
    native = estimator.predict(x)
    batch = session.run(None, {"x": x})[0]
    single = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])
    alone = np.concatenate([estimator.predict(x[i : i + 1]) for i in range(6)])
    size = np.maximum(1.0, np.abs(native))
    assert native.dtype == batch.dtype == np.float64
    assert native.shape == batch.shape == ((len(x),) if classes is None else (len(x), classes))
    assert np.isfinite(native).all()
    assert (np.abs(native - batch) / size).max() <= 1e-9
    assert (np.abs(single - batch) / size).max() <= 1e-12
    assert (np.abs(native[:6] - alone) / size[:6]).max() <= 1e-12
    if classes is not None:
        assert native.argmax(axis=1).tolist() == batch.argmax(axis=1).tolist()
        assert np.abs(native.sum(axis=1) - 1).max() < 1e-12


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of a fit and other rows, as wild as a decoder may give them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, numbers, categories = draw(st.integers(4, 80)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    features = max(1, numbers + categories)
    categorical = sorted(rng.choice(features, categories, replace=False).tolist()) if categories < features else []
    categorical = list(range(features)) if numbers == 0 and categories else categorical

    def some(count: int, levels: int) -> NDArray[np.float32]:
        x = (rng.normal(size=(count, features)) * 10.0 ** rng.integers(-6, 7, features)).astype(np.float32)
        if draw(st.booleans()):
            x = np.round(x)  # many ties
        for column in categorical:
            x[:, column] = rng.integers(0, levels, count)
        x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.1, 0.5]))] = np.nan
        return x

    x, other = some(n, 6), some(20, 90)  # levels that the fit never saw
    if draw(st.booleans()):
        x[:, rng.integers(features)] = np.nan
    if draw(st.booleans()):
        x[:, rng.integers(features)] = 3.0
    if draw(st.booleans()):
        other[0], other[1], other[2] = np.nan, 3e38, -3e38
    classes = draw(st.sampled_from([None, 2, 3, 5]))
    if classes is None:
        y = rng.normal(size=n) * 10.0 ** float(rng.integers(-3, 7))
        y = np.full(n, 5.0) if draw(st.integers(0, 9)) == 0 else y
    else:  # classes that no row of the fit has
        y = rng.choice(rng.choice(classes, draw(st.integers(1, classes)), replace=False), n)
    return {"x": x, "y": y, "other": other, "classes": classes, "categorical": categorical}


def params_of(kind: str, draw: Any) -> dict[str, Any]:
    one = {
        "linear": {
            "alpha": st.sampled_from([1e-3, 1.0, 1e3]), "knots": st.integers(0, 4), "crosses": st.integers(0, 6),
            "log": st.booleans(),
        },
        "nearest_neighbours": {
            "k": st.integers(1, 12), "weights": st.sampled_from(["uniform", "distance"]),
            "relevance": st.sampled_from([0.0, 0.7, 1.5]),
        },
        "neural_network": {
            "epochs": st.just(2), "layers": st.integers(0, 3), "width": st.integers(1, 9), "members": st.integers(1, 3),
            "embedding": st.integers(0, 3), "dropout": st.sampled_from([0.0, 0.3]),
            "smoothing": st.sampled_from([0.0, 0.1]), "rate": st.sampled_from([0.001, 0.05]),
        },
    }  # fmt: skip
    return {name: draw(choices) for name, choices in one[kind].items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_library_and_graph_say_the_same_of_any_rows(kind: str, data: st.DataObject) -> None:
    table = data.draw(tables())
    params = params_of(kind, data.draw)
    task = "regression" if table["classes"] is None else "binary" if table["classes"] == 2 else "multiclass"
    made = make(kind, params, task=task, classes=table["classes"], categorical=table["categorical"], seed=3)
    made.fit(table["x"], table["y"])

    assert_alike(made, np.vstack([table["other"], table["x"][:20]]), table["classes"])
    cost = made.cost()
    assert cost.nodes > 0
    assert cost.bytes > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_and_seed_give_the_same_bits_and_another_order_of_calls_does_not_matter(
    kind: str, task: str
) -> None:
    x, _ = rows(task, 50, seed=9)
    first = fitted(kind, task)
    np.random.default_rng().random(3)
    second = fitted(kind, task)

    assert first.predict(x).tobytes() == second.predict(x).tobytes()
    assert first.cost() == second.cost()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_label_is_learned_where_the_columns_tell_it(kind: str, task: str) -> None:
    params = {
        "neural_network": {"epochs": 60, "width": 32, "rate": 0.01},
        "linear": {"crosses": 2},
        "nearest_neighbours": {"relevance": 0.0},
    }.get(kind, {})
    made = fitted(kind, task, 500, **params)
    x, y = rows(task, 300, seed=1)
    said = made.predict(x)

    if task == "regression":
        assert np.mean((said - y) ** 2) < 0.5 * np.var(y)
    else:
        assert np.mean(said.argmax(axis=1) == y) > np.bincount(y).max() / len(y) + 0.25


def test_a_hinge_at_knots_follows_a_bend_that_a_straight_line_cannot() -> None:
    x = np.linspace(-3, 3, 400, dtype=np.float32)[:, None]
    y = np.abs(x[:, 0].astype(np.float64))
    errors = []
    for knots in (0, 5):
        made = make("linear", {"knots": knots, "alpha": 0.01}, task="regression", classes=None, categorical=[], seed=0)
        made.fit(x, y)
        errors.append(float(np.mean((made.predict(x) - y) ** 2)))

    assert errors[0] == pytest.approx(np.var(y), rel=0.01)
    assert errors[1] < 0.01 * errors[0]


def test_the_product_that_tells_the_label_is_the_one_that_is_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    y = (x[:, 1] * x[:, 4]).astype(np.float64)
    made: Any = make("linear", {"crosses": 1}, task="regression", classes=None, categorical=[], seed=0)
    made.fit(x, y)

    assert ((1, 4),) == made.pairs
    assert np.corrcoef(made.predict(x), y)[0, 1] > 0.99


def test_linear_coefficients_are_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression, Ridge

    x, y = rows("regression")
    x = np.nan_to_num(x[:, :4])
    z = (x - x.astype(np.float64).mean(axis=0)) / x.astype(np.float64).std(axis=0)
    ridge = make("linear", {"alpha": 2.0, "knots": 0}, task="regression", classes=None, categorical=[], seed=0)
    ridge.fit(x, y)
    logistic = make("linear", {"alpha": 2.0, "knots": 0}, task="binary", classes=2, categorical=[], seed=0)
    logistic.fit(x, y > 1000)
    peer = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-3).fit(z, y > 1000)

    assert Ridge(alpha=2.0).fit(z, y).predict(z) == pytest.approx(ridge.predict(x), rel=1e-9)
    assert peer.predict_proba(z) == pytest.approx(logistic.predict(x), abs=1e-9)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_are_scikit_learns(weights: str) -> None:
    from sklearn.neighbors import KNeighborsRegressor

    x, y = rows("regression")
    x = np.nan_to_num(x[:, :4])
    z = (x - x.astype(np.float64).mean(axis=0)) / x.astype(np.float64).std(axis=0)
    made = make(
        "nearest_neighbours", {"k": 7, "weights": weights, "relevance": 0.0}, task="regression", classes=None,
        categorical=[], seed=0,
    )  # fmt: skip
    made.fit(x[:150], y[:150])
    peer = KNeighborsRegressor(7, weights=weights).fit(
        (x[:150] - x[:150].astype(np.float64).mean(axis=0)) / x[:150].astype(np.float64).std(axis=0), y[:150]
    )
    z = (x[150:] - x[:150].astype(np.float64).mean(axis=0)) / x[:150].astype(np.float64).std(axis=0)

    # The grid moves a distance by up to 1e-4.
    assert peer.predict(z) == pytest.approx(made.predict(x[150:]), rel=1e-4)


def test_of_equally_near_rows_the_earlier_ones_count_in_both() -> None:
    x = np.array([[0.0], [2.0], [2.0], [2.0], [4.0]], np.float32)
    y = np.array([5.0, 1.0, 2.0, 3.0, 9.0])
    made = make(
        "nearest_neighbours", {"k": 2, "weights": "uniform", "relevance": 0.0}, task="regression", classes=None,
        categorical=[], seed=0,
    )  # fmt: skip
    made.fit(x, y)
    query = np.array([[2.0], [3.0], [1.0]], np.float32)

    # Of three rows at 2 the first two; 3 lies between 2 and 4; 1 lies between 0 and 2.
    assert [1.5, 1.5, 3.0] == made.predict(query).tolist()
    assert [1.5, 1.5, 3.0] == drawn(made, 1, None).run(None, {"x": query})[0].tolist()


def test_a_column_of_noise_hardly_counts_among_neighbours_when_relevance_is_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 12)).astype(np.float32)
    y = np.sin(2 * x[:, 0].astype(np.float64))
    errors = []
    for relevance in (0.0, 1.0):
        made = make(
            "nearest_neighbours", {"relevance": relevance}, task="regression", classes=None, categorical=[], seed=0
        )
        made.fit(x[:400], y[:400])
        errors.append(float(np.mean((made.predict(x[400:]) - y[400:]) ** 2)))

    assert errors[1] < 0.3 * errors[0]


def test_a_large_table_is_refused_where_the_graph_would_carry_its_rows_and_a_small_one_is_not() -> None:
    from esteira.automl.kinds import kind

    assert "" == kind("nearest_neighbours").refuses("binary", 3000, 20, 2)
    assert "at most 3000, and there are 3001" in kind("nearest_neighbours").refuses("binary", 3001, 20, 2)
    assert "at most 200000" in kind("nearest_neighbours").refuses("binary", 2500, 100, 2)
    assert "at least 50 rows" in kind("neural_network").refuses("binary", 49, 4, 2)
    assert "at most 600 features" in kind("neural_network").refuses("binary", 500, 1000, 2)
    assert "" == kind("linear").refuses("regression", 5, 1000, None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_space_names_parameters_and_its_corners_can_be_fitted(kind: str) -> None:
    from esteira.automl.kinds import kind as kind_of

    for task in TASKS:
        space = kind_of(kind).space(task, 100, 5)
        assert set(space) <= set(kind_of(kind).parameters)
        for end in (0, -1):
            corner = {
                name: choice[1][end] if choice[0] == "choice" else choice[1 if end == 0 else 2]
                for name, choice in space.items()
            }
            made = fitted(kind, task, 100, **corner)
            assert np.isfinite(made.predict(rows(task, 20, seed=2)[0])).all()


def test_a_thousand_columns_are_fitted_in_seconds() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1000)).astype(np.float32)
    for kind, classes in (("linear", None), ("linear", 2)):
        made = make(
            kind, {"knots": 5, "crosses": 8}, task="binary" if classes else "regression", classes=classes,
            categorical=list(range(900, 1000)), seed=0,
        )  # fmt: skip
        made.fit(x, (x[:, 0] > 0).astype(np.int64))
        assert made.cost().macs <= 1300


@pytest.mark.parametrize("kind", KINDS)
def test_held_back_rows_of_a_real_table_are_answered_alike_and_far_better_than_by_class_shares(
    kind: str, public_data: Path
) -> None:
    import pandas as pd

    table = pd.read_csv(public_data / "tabular_vehicle" / "data.csv")
    y, labels = pd.factorize(table.pop("Class"), sort=True)
    order = np.random.default_rng(0).permutation(len(table))
    x = table.to_numpy(np.float32)[order]
    y = y[order]
    made = make(kind, {}, task="multiclass", classes=len(labels), categorical=[], seed=0)
    held = Held(x[550:650], y[550:650], 50) if kind == "neural_network" else None
    made.fit(x[:550], y[:550], held=held)
    rest = x[650:].copy()
    rest[::7, 3] = np.nan  # missing where training had every value
    rest[::11, 5] = 1e7

    assert_alike(made, rest, len(labels))
    loss = -np.log(made.predict(x[650:])[np.arange(len(x) - 650), y[650:]]).mean()
    assert loss < 0.6 * np.log(len(labels))
