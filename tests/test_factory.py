"""Every pair of a kind and a task that is offered trains and exports; every other pair is refused with what is valid."""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from esteira.automl.kinds import KINDS, LIBRARIES, TASKS, kind, make
from esteira.automl.kinds.base import Estimator
from esteira.errors import ConfigError
from esteira.onnx.graph import Graph

SUPERVISED = ("random_forest", "lightgbm", "xgboost", "gradient_boosting", "neural_network", "linear")
# What K-49 asks for; classification is both of two classes and of more.
MATRIX = {*itertools.product(SUPERVISED, ("binary", "multiclass", "regression")), ("kmeans", "clustering")}
OFFERED = sorted((name, task) for name in KINDS for task in kind(name).tasks)
CLASSES: dict[str, int | None] = {"binary": 2, "multiclass": 3, "regression": None, "clustering": None}
QUICK: dict[str, dict[str, Any]] = {
    "lightgbm": {"n_estimators": 20, "min_data_in_leaf": 5},
    "xgboost": {"n_estimators": 20},
    "gradient_boosting": {"max_iter": 20},
    "random_forest": {"n_estimators": 20},
    "extra_trees": {"n_estimators": 20},
    "neural_network": {"epochs": 30, "width": 16, "rate": 0.02},
}


def fixture(task: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Three numbers and a category, some missing; the label follows the first number."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(240, 4)).astype(np.float32)
    x[:, 3] = rng.integers(1, 4, len(x))
    signal = x[:, 0].astype(np.float64) + 0.2 * rng.normal(size=len(x))
    x[rng.random(x.shape) < 0.03] = np.nan
    label = {
        "binary": lambda: (signal > 0).astype(np.int64),
        "multiclass": lambda: np.digitize(signal, [-0.5, 0.5]),
        "regression": lambda: 100.0 + 7.25 * signal,
        "clustering": lambda: None,
    }
    return x, label[task]()


def trained(name: str, task: str) -> tuple[Estimator, NDArray[np.float32], NDArray[Any]]:
    x, y = fixture(task)
    made = make(name, QUICK.get(name, {}), task=task, classes=CLASSES[task], categorical=[3], seed=2)
    made.fit(x, y)
    return made, x, y


def test_what_the_requirement_lists_is_offered() -> None:
    assert set(OFFERED) >= MATRIX


@pytest.mark.requirement("K-49")
@pytest.mark.parametrize(("name", "task"), OFFERED, ids=[f"{name}-{task}" for name, task in OFFERED])
def test_every_pair_offered_trains_on_a_fixture_and_a_regression_request_never_gets_a_classifier(
    name: str, task: str
) -> None:
    """K-49 Done when: every pair offered by the UI trains on a fixture; a regression request never gets a classifier."""
    made, x, y = trained(name, task)
    graph = Graph(4)
    content = graph.finish(made.draw(graph, "x"), classes=CLASSES[task])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several threads add up the trees of a float32 forest in another order
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    said, drawn = made.predict(x), session.run(None, {"x": x})[0]

    assert np.abs(said - drawn).max() <= 1e-9 * max(1.0, float(np.abs(said).max()))
    if task == "clustering":
        assert (len(x),) == said.shape
        assert len(np.unique(said)) >= 2
    elif task == "regression":
        assert (len(x),) == said.shape  # values, and no probabilities of values
        error = np.mean((said - y) ** 2)
        assert error == pytest.approx(np.var(y)) if name == "constant" else error < 0.5 * np.var(y)
        # A classifier could only repeat labels that it was shown.
        assert not np.isin(said, y).all()
    else:
        assert (len(x), CLASSES[task]) == said.shape
        assert np.abs(said.sum(axis=1) - 1.0).max() < 1e-6
        hits = np.mean(said.argmax(axis=1) == y)
        assert hits == np.bincount(y).max() / len(y) if name == "constant" else hits > 0.75


@pytest.mark.parametrize(
    ("name", "task"),
    [pair for pair in itertools.product(KINDS, TASKS) if pair not in OFFERED],
    ids=lambda part: str(part),
)
def test_a_pair_that_is_not_offered_is_refused_and_the_valid_ones_are_listed(name: str, task: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make(name, {}, task=task, classes=CLASSES[task], categorical=[], seed=0)

    assert "wrong_kind" == refused.value.code
    valid = [other for other, its in OFFERED if its == task]
    assert all(other in str(refused.value) for other in valid)
    assert f"but got {name!r}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "task", "classes", "params", "code", "told"),
    [
        ("svm", "binary", 2, {}, "unknown_kind", "one of lightgbm, xgboost"),
        ("linear", "ranking", None, {}, "unknown_task", "binary, multiclass, regression, clustering"),
        ("linear", "regression", 2, {}, "wrong_task", "regression has no classes, but got classes=2"),
        ("linear", "binary", None, {}, "wrong_task", "binary has classes, but got classes=None"),
        ("linear", "binary", 2, {"depth": 3}, "unknown_parameter", "alpha, knots, crosses, log"),
        ("kmeans", "clustering", None, {"k": 3}, "unknown_parameter", "clusters"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    name: str, task: str, classes: int | None, params: dict[str, Any], code: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        make(name, params, task=task, classes=classes, categorical=[], seed=0)

    assert code == refused.value.code


@pytest.mark.parametrize("library", ["lightgbm", "xgboost", "sklearn"])
def test_a_missing_library_is_named_when_its_kind_is_asked_for_and_harms_no_other(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what Python itself takes for a module that cannot be imported
    name = next(name for name, needed in LIBRARIES.items() if needed == library)

    with pytest.raises(ConfigError, match=f"needs the library '{library}', which is not installed") as refused:
        make(name, {}, task="regression", classes=None, categorical=[], seed=0)
    assert "missing_library" == refused.value.code
    assert make("constant", {}, task="regression", classes=None, categorical=[], seed=0)
    if library != "sklearn":  # the list of what is valid does not need the libraries either
        with pytest.raises(ConfigError, match="is one of lightgbm, xgboost, gradient_boosting"):
            make("kmeans", {}, task="regression", classes=None, categorical=[], seed=0)


def test_every_library_that_a_kind_imports_is_listed() -> None:
    for name, cls in KINDS.items():
        text = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
        for library in ("lightgbm", "xgboost", "sklearn"):
            if f"from {library}" in text or f"        import {library}" in text:
                assert library == LIBRARIES[name]
