"""Calibration and the cut of two classes: they help where they are kept, are not kept where they do not, and are exact."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.automl import calibrate, threshold
from esteira.automl.calibrate import Calibration
from esteira.features.metrics import Classified, names, statistic
from esteira.onnx.graph import Graph, softmax

BINARY_LABEL_METRICS = ("accuracy", "precision", "recall", "f1", "f1_macro", "balanced_accuracy")


def world(rows, classes, *, sharpness=1.0, offset=0.0, seed=0, spread=2.0):
    """Probabilities said and codes drawn by the true ones: what is said is sharper or shifted."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=(rows, classes)) * spread
    truth = softmax(margins)
    codes = np.minimum((truth.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1), classes - 1)
    said = margins * sharpness
    said[:, -1] += offset
    return softmax(said), codes


def loss(p, y):
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def exported(calibration: Calibration, p):
    """What the drawn graph answers, in batch and row by row."""
    import onnxruntime as ort

    graph = Graph(p.shape[1])
    content = graph.finish(calibration.draw(graph, graph.double("x")), classes=p.shape[1])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    single = np.vstack([session.run(None, {"x": p[at : at + 1]})[0] for at in range(min(20, len(p)))])
    return session.run(None, {"x": p})[0], single


def assert_exact(calibration: Calibration, p):
    """Native and drawn agree, add up to one and say the same class."""
    p = np.ascontiguousarray(p, dtype=np.float32)
    native = calibration.apply(p.astype(np.float64))
    batch, single = exported(calibration, p)
    np.testing.assert_allclose(batch, native, rtol=0, atol=1e-12)
    np.testing.assert_allclose(single, batch[: len(single)], rtol=0, atol=1e-12)
    np.testing.assert_allclose(native.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert (native > 0).all()


@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_that_are_too_sure_are_softened_to_the_truth(classes):
    p, y = world(4000, classes, sharpness=2.5)
    found = calibrate.choose(p, y, seed=1, keeps_order=False)
    assert found is not None
    assert "temperature" == found.method
    assert 0.4 == pytest.approx(found.params["sharpness"], abs=0.03)
    fresh, truth = world(20_000, classes, sharpness=2.5, seed=9)
    honest, _ = world(20_000, classes, seed=9)
    assert loss(found.apply(fresh), truth) < loss(honest, truth) + 0.002 < loss(fresh, truth) - 0.05
    assert_exact(found, fresh[:500])


def test_a_shift_of_two_classes_is_found_by_platt_and_keeps_the_order_of_rows():
    p, y = world(3000, 2, offset=2.0)
    found = calibrate.choose(p, y, seed=1, keeps_order=True)
    assert found is not None
    assert "platt" == found.method
    assert (1.0, -2.0) == pytest.approx((found.params["slope"], found.params["offset"]), abs=0.2)
    np.testing.assert_array_equal(np.argsort(p[:, 1]), np.argsort(found.apply(p)[:, 1]))
    assert_exact(found, p[:500])


def test_a_bend_of_two_classes_is_found_by_isotonic_which_still_ranks_every_row():
    p, y = world(6000, 2)
    bent = p[:, 1] ** 3 * 0.6 + 0.3 * (p[:, 1] > 0.5)
    said = np.column_stack([1 - bent, bent])
    found = calibrate.choose(said, y, seed=1, keeps_order=True)
    assert found is not None
    assert "isotonic" == found.method
    fresh = np.linspace(0, 1, 5001)
    mapped = found.apply(np.column_stack([1 - fresh, fresh]))[:, 1]
    assert (np.diff(mapped) > 0).all()
    truth, codes = world(20_000, 2, seed=5)
    bent = truth[:, 1] ** 3 * 0.6 + 0.3 * (truth[:, 1] > 0.5)
    assert loss(found.apply(np.column_stack([1 - bent, bent])), codes) < loss(truth, codes) + 0.01
    assert_exact(found, np.column_stack([1 - fresh, fresh]))


def test_one_map_a_class_needs_a_thousand_rows_of_each_and_leave_to_change_the_order():
    p, y = world(6000, 3)
    said = p ** np.array([0.3, 1.0, 2.0])
    said /= said.sum(axis=1, keepdims=True)
    found = calibrate.choose(said, y, seed=1, keeps_order=False)
    assert found is not None
    assert "isotonic" == found.method
    assert_exact(found, said[:1000])
    kept = calibrate.choose(said, y, seed=1, keeps_order=True)
    assert kept is None or "temperature" == kept.method
    few = calibrate.choose(said[:2000], y[:2000], seed=1, keeps_order=False)
    assert few is None or "temperature" == few.method


@pytest.mark.parametrize("classes", [2, 4])
def test_honest_probabilities_are_left_alone(classes):
    """At most one of twelve honest worlds is touched: the interval is of 95 %, and of that one side."""
    touched = [
        calibrate.choose(*world(800, classes, seed=seed), seed=1, keeps_order=False) is not None for seed in range(12)
    ]
    assert sum(touched) <= 1


def test_the_cross_fitted_probabilities_do_not_promise_what_new_rows_do_not_get():
    p, y = world(2000, 2, sharpness=3.0)
    found = calibrate.choose(p, y, seed=1, keeps_order=False)
    assert found is not None
    fresh, truth = world(40_000, 2, sharpness=3.0, seed=4)
    assert loss(found.cross_fitted, y) == pytest.approx(found.loss[1], abs=1e-9)
    assert loss(found.cross_fitted, y) == pytest.approx(loss(found.apply(fresh), truth), abs=0.04)
    np.testing.assert_allclose(found.cross_fitted.sum(axis=1), 1.0, rtol=0, atol=1e-12)


def test_rows_that_no_model_held_out_are_left_out_and_stay_unknown():
    p, y = world(3000, 2, sharpness=2.5)
    holed = p.copy()
    holed[:500] = np.nan
    found, without = (calibrate.choose(*pair, seed=1, keeps_order=False) for pair in ((holed, y), (p[500:], y[500:])))
    assert found is not None
    assert without is not None
    assert found.named() == without.named()
    assert np.isnan(found.cross_fitted[:500]).all()
    np.testing.assert_array_equal(found.cross_fitted[500:], without.cross_fitted)


@pytest.mark.parametrize("rows", [0, 2, 99])
def test_few_rows_are_not_calibrated(rows):
    p, y = world(200, 2, sharpness=5.0)
    assert calibrate.choose(p[:rows], y[:rows], seed=1, keeps_order=False) is None


@pytest.mark.parametrize(
    ("method", "classes"), [("temperature", 2), ("temperature", 3), ("platt", 2), ("isotonic", 2), ("isotonic", 3)]
)
def test_the_cost_counts_the_operators_and_the_tables_of_the_graph(method, classes):
    import onnx

    p, y = world(4000, classes, sharpness=3.0)
    found = Calibration(method, calibrate._fit(method, p, y), (0.0, 0.0), p)
    graph = Graph(classes)
    drawn = onnx.load_from_string(graph.finish(found.draw(graph, graph.double("x")), classes=classes)).graph
    cost = found.cost()
    assert len(drawn.node) - 2 == pytest.approx(cost.nodes, abs=2)  # without the cast before and the name of the result
    assert sum(len(tensor.raw_data) for tensor in drawn.initializer) == pytest.approx(cost.bytes, abs=200)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(2, 4),
    rows=st.integers(100, 1500),
    seed=st.integers(0, 10_000),
    method=st.sampled_from(["temperature", "platt", "isotonic"]),
    grid=st.sampled_from([0, 1, 2, 8]),
    only=st.booleans(),
)
def test_whatever_was_fitted_the_graph_gives_the_same(classes, rows, seed, method, grid, only):
    """Ties, probabilities of exactly 0 and 1 and near them, and classes that never occur included."""
    if method == "platt":
        classes = 2
    p, y = world(rows, classes, sharpness=4.0, seed=seed)
    if grid:
        p = np.round(p, grid)
        p /= p.sum(axis=1, keepdims=True)
    if only:
        y = np.zeros_like(y)
    params = calibrate._fit(method, p, y)
    found = Calibration(method, params, (0.0, 0.0), p)
    assert found.named() == json.loads(json.dumps(found.named()))
    edges = np.eye(classes)
    near = edges * (1 - 1e-7 * classes) + 1e-7
    assert_exact(found, np.vstack([p[:200], edges, near]))


# ---------------------------------------------------------------------------------------------- the cut


def rare(rows, seed, share=0.08):
    """Honest probabilities of a rare class."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(size=rows) * 2 + np.log(share / (1 - share)) - 0.5
    up = 1 / (1 + np.exp(-margin))
    return np.column_stack([1 - up, up]), (rng.random(rows) < up).astype(np.int64)


def score(metric, p, y, cut):
    return float(
        statistic(metric, Classified(y, p, (p[:, 1] >= cut).astype(np.int64), ("0", "1")))(np.ones((1, len(y))))[0]
    )


@pytest.mark.parametrize("metric", ["f1_macro", "balanced_accuracy"])
def test_a_rare_class_is_said_from_a_lower_probability_on_and_new_rows_score_better(metric):
    p, y = rare(4000, 0)
    cut = threshold.choose(metric, p, y)
    assert cut is not None
    assert 0.02 < cut < 0.5
    fresh, truth = rare(40_000, 1)
    assert score(metric, fresh, truth, cut) > score(metric, fresh, truth, 0.5) + 0.01


@pytest.mark.parametrize("metric", BINARY_LABEL_METRICS)
@pytest.mark.parametrize("grid", [16, 1])
def test_the_best_cut_is_the_best_of_all_that_could_be_drawn(metric, grid):
    p, y = rare(150, 2, share=0.4)
    p = np.round(p, grid)
    order = np.argsort(-p[:, 1], kind="stable")
    found = threshold._best(metric, p[order, 1], y[order], np.ones(150))
    values = np.unique(p[:, 1])
    best = max(score(metric, p, y, cut) for cut in (values[1:] + values[:-1]) / 2)
    assert best == pytest.approx(score(metric, p, y, found), abs=1e-12)


def test_the_median_cut_of_resamples_does_better_on_new_rows_than_the_best_cut_of_few_rows():
    fresh, truth = rare(40_000, 999, share=0.3)
    cuts, best = [], []
    for seed in range(40):
        p, y = rare(400, seed, share=0.3)
        order = np.argsort(-p[:, 1], kind="stable")
        cuts.append(score("f1_macro", fresh, truth, threshold._cut("f1_macro", p[:, 1], y)))
        best.append(
            score("f1_macro", fresh, truth, threshold._best("f1_macro", p[order, 1], y[order], np.ones(len(y))))
        )
    assert np.mean(cuts) > np.mean(best) + 0.001


def test_where_half_is_best_there_is_no_cut():
    """Accuracy of honest probabilities: at most one of ten worlds finds one by chance."""
    found = [threshold.choose("accuracy", *world(1500, 2, seed=seed)) for seed in range(10)]
    assert sum(cut is not None for cut in found) <= 1


def test_metrics_that_do_not_look_at_labels_have_no_cut():
    """A metric looks at labels when it changes with them while the probabilities stay."""
    p, y = rare(4000, 0)
    looking = {
        name for name in names(Classified(y, p, y, ("0", "1"))) if score(name, p, y, 0.1) != score(name, p, y, 0.5)
    }
    assert set(BINARY_LABEL_METRICS) == looking
    assert [None] * 4 == [
        threshold.choose(name, p, y) for name in ("roc_auc", "log_loss", "brier", "average_precision")
    ]


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_few_rows_have_no_cut(rows):
    p, y = rare(4000, 0)
    assert threshold.choose("f1_macro", p[:rows], y[:rows]) is None


def test_rows_that_no_model_held_out_do_not_move_the_cut():
    p, y = rare(4000, 0)
    holed = np.vstack([np.full((300, 2), np.nan), p])
    assert threshold.choose("f1_macro", p, y) == threshold.choose(
        "f1_macro", holed, np.append(np.ones(300, np.int64), y)
    )
