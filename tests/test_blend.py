"""A blend is a weighted mean of members, chosen on rows they did not see; its graph says what its members say together."""

import numpy as np
import onnxruntime
import pytest

from esteira.automl.blend import LEAST_GAIN, Blend, choose, mean
from esteira.automl.estimators import make


def test_members_whose_errors_cancel_are_blended() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    members = [truth + 0.5, truth - 0.5, truth + 3.0]

    weights = choose(members, lambda chosen, shares: -float(np.abs(mean(chosen, shares) - truth).mean()))

    assert {0: 0.5, 1: 0.5} == weights


def test_a_gain_that_is_not_worth_a_second_model_is_left() -> None:
    assert {0: 1.0} == choose([0.0, 1.0], lambda chosen, _: LEAST_GAIN / 2 if len(chosen) > 1 else 0.0)


def test_a_member_alone_stays_alone() -> None:
    assert {0: 1.0} == choose(["only"], lambda _chosen, _shares: 1.0)


@pytest.mark.parametrize("classes", [2, 3, None])
def test_the_graph_of_a_blend_answers_as_its_members_do_in_batch_and_row_by_row(classes: int | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    x[::7, 1] = np.nan
    x[:, 3] = rng.integers(0, 5, 300)
    y = x[:, 0] * 2 if classes is None else rng.integers(0, classes, 300)
    kinds = [("xgboost", {"n_estimators": 20}), ("hist_gradient_boosting", {"max_iter": 20}), ("linear", {})]
    members = []
    for kind, params in kinds:
        member = make(kind, params, classes=classes, categorical=[3], seed=1)
        member.fit(x, y)
        members.append(member)
    blend = Blend(tuple(members), (0.5, 0.3, 0.2), 4, classes)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(blend.graph(), options)
    (batch,) = session.run(None, {"x": x})
    single = np.concatenate([session.run(None, {"x": x[row : row + 1]})[0] for row in range(40)])

    native = blend.predict(x)
    assert native.shape == batch.shape
    assert np.abs(native - batch).max() < 1e-12
    assert np.abs(native[:40] - single).max() < 1e-12
