"""Fits the cost model of one answer: real models of many sizes, their measured microseconds in ONNX Runtime, and the formula.

python -m benchmarks.automl.row_cost            # table, coefficients for esteira/automl/cost.py, mean and worst error
python -m benchmarks.automl.row_cost --check    # the coefficients that are there, on these very models

Only scikit-learn's generators are used. A time is the least of many medians of 60 single rows on one thread, so that a busy machine
disturbs it little; it should be idle all the same.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl import cost as formula
from esteira.automl.kinds import make
from esteira.automl.kinds.base import Cost, Estimator
from esteira.errors import ConfigError
from esteira.onnx.graph import Graph

ROWS, CALLS, BLOCKS = 2500, 60, 30

Member = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """One graph to measure: its members (kind, parameters) are blended with equal weights."""

    task: str
    features: int
    members: tuple[Member, ...]

    def __str__(self) -> str:
        parts = (f"{kind} {' '.join(f'{k}={v}' for k, v in params.items())}".strip() for kind, params in self.members)
        return f"{self.task} x {self.features}: {' + '.join(parts)}"


@dataclass(frozen=True)
class Measured:
    """A graph's cost as its members tell it, and what one answer took in microseconds."""

    asked: Asked
    cost: Cost
    taken: float


def asked() -> Iterator[Asked]:
    """Every kind in several sizes, and blends of them."""

    def one(task: str, features: int, kind: str, **params: Any) -> Asked:
        return Asked(task, features, ((kind, params),))

    for rounds, leaves in ((30, 31), (150, 8), (300, 31), (500, 63)):
        yield one("binary", 20, "lightgbm", n_estimators=rounds, num_leaves=leaves)
    yield one("regression", 100, "lightgbm", n_estimators=400, num_leaves=31)
    yield one("multiclass", 12, "lightgbm", n_estimators=100, num_leaves=31)
    for rounds, depth in ((60, 4), (300, 6), (400, 8)):
        yield one("binary", 20, "xgboost", n_estimators=rounds, max_depth=depth)
    yield one("multiclass", 12, "xgboost", n_estimators=100, max_depth=6)
    yield one("multiclass", 12, "xgboost", n_estimators=200, multi_strategy="multi_output_tree")
    yield one("regression", 8, "gradient_boosting", max_iter=200)
    yield one("multiclass", 20, "gradient_boosting", max_iter=60)
    for kind in ("extra_trees", "random_forest"):
        for task in ("binary", "multiclass", "regression"):
            for leaves in (64, 800):
                yield one(task, 20, kind, max_leaf_nodes=leaves, n_estimators=150)
    yield one("binary", 20, "extra_trees", max_leaf_nodes=None, n_estimators=200)
    for task in ("binary", "multiclass", "regression"):
        for features in (10, 60):
            yield one(task, features, "linear")
            yield one(task, features, "nearest_neighbours", k=10 if features == 10 else 30)
            yield one(task, features, "neural_network", epochs=3, width=64 if features == 10 else 192)
    booster: Member = ("lightgbm", {"n_estimators": 200, "num_leaves": 31})
    forest: Member = ("extra_trees", {"n_estimators": 150, "max_leaf_nodes": 512})
    linear: Member = ("linear", {})
    other: Member = ("xgboost", {"n_estimators": 200, "max_depth": 6})
    blends: list[tuple[Member, ...]] = [(booster, other), (booster, forest), (booster, other, forest, linear)]
    for members in blends:
        for task in ("binary", "regression"):
            yield Asked(task, 20, members)


def table(task: str, features: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Rows of scikit-learn's generators: 5 classes for multiclass."""
    from sklearn.datasets import make_classification, make_regression

    if task == "regression":
        x, y = make_regression(ROWS, features, n_informative=min(8, features), noise=20.0, random_state=1)
        return x.astype(np.float32), y
    x, y = make_classification(
        ROWS,
        features,
        n_informative=min(8, features),
        n_classes=2 if task == "binary" else 5,
        flip_y=0.1,
        random_state=1,
    )
    return x.astype(np.float32), y


def measure(wanted: Asked) -> Measured:
    """Fit, draw, and time single rows.

    Raises:
        ConfigError: a kind that is not there.
    """
    import onnxruntime

    x, y = table(wanted.task, wanted.features)
    classes = {"binary": 2, "multiclass": 5, "regression": None}[wanted.task]
    graph, total, cost = Graph(wanted.features), "", Cost()
    for kind, params in wanted.members:
        model: Estimator = make(kind, params, task=wanted.task, classes=classes, categorical=(), seed=1)
        # A kind that is for small tables only gets one.
        few = slice(None) if not model.refuses(wanted.task, ROWS, wanted.features, classes) else slice(0, 1500)
        model.fit(x[few], y[few])
        part = graph.add("Mul", model.draw(graph, "x"), graph.scalar(1.0 / len(wanted.members), np.float64))
        total = graph.add("Add", total, part) if total else part
        cost += model.cost() + Cost(nodes=2)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.finish(total, classes=classes), options, providers=["CPUExecutionProvider"]
    )
    rows = [x[i : i + 1].copy() for i in range(CALLS)]
    medians = []
    for _ in range(BLOCKS):
        taken = []
        for row in rows:
            began = time.perf_counter_ns()
            session.run(["y"], {"x": row})
            taken.append(time.perf_counter_ns() - began)
        medians.append(statistics.median(taken) / 1e3)
    return Measured(wanted, cost, min(medians))


def fitted(found: Sequence[Measured]) -> NDArray[np.float64]:
    """Coefficients of `cost.terms`, none negative, that make the squares of the relative errors least."""
    from scipy.optimize import nnls

    terms = np.array([formula.terms(one.cost) for one in found])
    taken = np.array([one.taken for one in found])
    coefficients: NDArray[np.float64] = nnls(terms / taken[:, None], np.ones(len(taken)))[0]
    return coefficients


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="keep the coefficients of esteira/automl/cost.py")
    check = parser.parse_args().check
    found = []
    for wanted in asked():
        try:
            found.append(measure(wanted))
            print(f"measured: {wanted}: {found[-1].taken:.1f} us, {found[-1].cost}", file=sys.stderr, flush=True)
        except ConfigError as error:
            print(f"left out: {wanted}: {error}")
    coefficients = np.array(formula.COEFFICIENTS) if check else fitted(found)
    errors = []
    print(f"{'taken':>8} {'said':>8} {'error':>6}  {'visits':>7} {'MB':>7} {'macs':>8} {'nodes':>5}  model")
    for one in found:
        said = float(formula.terms(one.cost) @ coefficients)
        errors.append(abs(said / one.taken - 1.0))
        print(
            f"{one.taken:8.1f} {said:8.1f} {errors[-1]:6.0%}  {one.cost.visits:7.0f} {one.cost.bytes / 1e6:7.2f} "
            f"{one.cost.macs:8} {one.cost.nodes:5}  {one.asked}"
        )
    print(f"COEFFICIENTS = ({', '.join(f'{value:.3g}' for value in coefficients)})")
    print(f"{len(found)} models: mean error {np.mean(errors):.1%}, worst {np.max(errors):.0%}")


if __name__ == "__main__":
    main()
