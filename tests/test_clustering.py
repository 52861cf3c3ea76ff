"""Clusters are found where there are some, answered alike by the library and the graph, and scored as scikit-learn does."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.kinds import make
from esteira.automl.kinds.base import Estimator
from esteira.features import metrics
from esteira.onnx.graph import Graph


def blobs(k: int, n: int = 240, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """So many well separated clusters in a plane, and which is which."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, k, n)
    centres = 10 * np.column_stack([np.cos(2 * np.pi * np.arange(k) / k), np.sin(2 * np.pi * np.arange(k) / k)])
    return (centres[which] + rng.normal(size=(n, 2))).astype(np.float32), which


def fitted(x: NDArray[np.float32], categorical: tuple[int, ...] = (), **params: Any) -> Any:
    made = make("kmeans", params, task="clustering", classes=None, categorical=categorical, seed=5)
    made.fit(x, None)  # type: ignore[arg-type]
    return made


def session(estimator: Estimator, features: int) -> onnxruntime.InferenceSession:
    graph = Graph(features)
    content = graph.finish(estimator.draw(graph, "x"), classes=None)
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_number_of_clusters_is_found_and_so_are_they(k: int) -> None:
    from sklearn.metrics import adjusted_rand_score

    x, which = blobs(k)
    said = fitted(x).predict(x)

    assert k == len(np.unique(said))
    assert adjusted_rand_score(which, said) > 0.99


def test_a_given_number_of_clusters_is_kept_but_never_more_than_distinct_rows() -> None:
    x, _ = blobs(3)

    assert 6 == len(np.unique(fitted(x, clusters=6).predict(x)))
    assert 2 == len(np.unique(fitted(np.array([[1.0], [2.0], [2.0]], np.float32), clusters=6).predict(x[:, :1])))
    assert [0.0, 0.0] == fitted(np.ones((2, 1), np.float32)).predict(np.ones((2, 1), np.float32)).tolist()


def test_categories_alone_make_clusters() -> None:
    x = np.repeat(np.array([[1.0, 1.0], [2.0, 2.0]], np.float32), 20, axis=0)
    said = fitted(x, categorical=(0, 1)).predict(x)

    assert 1 == len(set(said[:20])) == len(set(said[20:]))
    assert said[0] != said[-1]


def test_the_same_rows_and_seed_give_the_same_clusters() -> None:
    x, _ = blobs(4)

    assert fitted(x).centres.tobytes() == fitted(x).centres.tobytes()


def test_a_row_between_two_centres_goes_to_the_first_in_both() -> None:
    x = np.array([[-1.0], [-1.0], [1.0], [1.0]], np.float32)
    made = fitted(x, clusters=2)
    middle = np.zeros((1, 1), np.float32)

    assert [0.0] == made.predict(middle).tolist() == session(made, 1).run(None, {"x": middle})[0].tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), whole=st.booleans(), clusters=st.integers(0, 4), n=st.integers(2, 60))
def test_library_and_graph_put_every_row_into_the_same_cluster(seed: int, whole: bool, clusters: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n + 30, 4)) * 10.0 ** rng.integers(-3, 5, 4)).astype(np.float32)
    x = np.round(x) if whole else x
    x[:, 3] = rng.integers(0, 4, len(x))
    x[n:, 3] += 3  # levels that the fit never saw
    x[rng.random(x.shape) < 0.1] = np.nan
    made = fitted(x[:n], categorical=(3,), clusters=clusters)
    run = session(made, 4).run
    native = made.predict(x)

    assert native.tolist() == run(None, {"x": x})[0].tolist()
    assert native.tolist() == [float(run(None, {"x": x[i : i + 1]})[0][0]) for i in range(len(x))]
    assert native.dtype == run(None, {"x": x})[0].dtype == np.float64
    assert made.cost().macs == made.centres.size


def test_scores_of_found_clusters_equal_scikit_learns() -> None:
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    x, _ = blobs(4)
    said = fitted(x, clusters=3).predict(x)
    found = metrics.clustering(x.astype(np.float64), said)

    assert silhouette_score(x.astype(np.float64), said) == pytest.approx(found["silhouette"].value, rel=1e-9)
    assert davies_bouldin_score(x.astype(np.float64), said) == pytest.approx(found["davies_bouldin"].value, rel=1e-9)
