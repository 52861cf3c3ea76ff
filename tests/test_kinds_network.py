"""The small neural network: seeds, epochs, what stops it, bounds of memory, and gradients that are the loss's own."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from esteira.automl.kinds import make, network
from esteira.automl.kinds.base import Held
from tests.test_kinds_smooth import QUICK, TASKS, assert_alike, fitted, rows


def test_another_seed_is_another_network() -> None:
    x, y = rows("regression")
    answers = []
    for seed in (1, 2):
        made = make(
            "neural_network", QUICK["neural_network"], task="regression", classes=None, categorical=[4], seed=seed
        )
        made.fit(x, y)
        answers.append(made.predict(x))

    assert not np.allclose(*answers)


@pytest.mark.parametrize("task", TASKS)
def test_a_network_keeps_its_best_epoch_and_stops_when_it_is_told_or_out_of_patience(task: str) -> None:
    x, y = rows(task, 120, seed=4)
    seen: list[tuple[int, float]] = []
    watched = fitted(
        "neural_network", task, epochs=30, rate=0.02, held=Held(x, y, 50, lambda *at: seen.append(at) or True)
    )
    losses = [loss for _, loss in seen]
    assert list(range(1, 31)) == [epoch for epoch, _ in seen]
    assert 1 + int(np.argmin(losses)) == watched.rounds
    said = watched.predict(x)
    kept = (
        np.mean((said - y) ** 2)
        if task == "regression"
        else -np.log(said[np.arange(len(y)), y.astype(np.int64)]).mean()
    )
    # The label's range cuts off predictions that the loss still saw as they were.
    assert kept == pytest.approx(min(losses), rel=0.02)

    stopped = fitted("neural_network", task, epochs=30, held=Held(x, y, 50, lambda epoch, _: epoch < 4))
    assert stopped.rounds is not None
    assert stopped.rounds <= 4

    count = 0

    def counted(epoch: int, loss: float) -> bool:
        nonlocal count
        count = epoch
        return True

    impatient = fitted("neural_network", task, epochs=200, rate=0.1, held=Held(x, y, 3, counted))
    assert count == impatient.rounds + 3 < 200


def test_what_watches_a_network_may_raise() -> None:
    x, y = rows("binary", 60)

    def enough(epoch: int, loss: float) -> bool:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        fitted("neural_network", "binary", held=Held(x, y, 50, enough))


def test_held_rows_of_a_class_that_the_fit_lacks_do_not_stop_it() -> None:
    x, y = rows("multiclass", 150)
    made = make("neural_network", QUICK["neural_network"], task="multiclass", classes=4, categorical=[4], seed=0)
    made.fit(x[y < 2], y[y < 2], held=Held(x[y == 2], y[y == 2], 50))

    assert [0.0, 0.0] == made.predict(x)[:, 2:].max(axis=0).tolist()


def test_a_table_beyond_memory_is_fitted_on_some_of_its_rows_and_on_one_of_every_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esteira.automl.kinds.linear.CELLS", 4000)
    x, y = rows("binary", 2000)
    y[-1] = 2  # of one row
    made: Any = make("linear", {"knots": 0}, task="multiclass", classes=3, categorical=[4], seed=0)
    made.fit(x, y)
    said = made.predict(x)

    assert (2000, 3) == said.shape
    assert np.mean(said.argmax(axis=1) == y) > 0.7
    assert_alike(made, x[:50], 3)


class TestTheMathematicsOfTheNetwork:
    """Gradients by hand are the loss's own; torch, where it is there, goes the same way as numpy."""

    shape = network.Shape(numbers=3, others=2, waves=4, embedded=2, hidden=(5, 4), outputs=3, members=2)

    def data(self, n: int = 40) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng(0)
        numbers = rng.normal(size=(n, 3)).astype(np.float32)
        others = (rng.random((n, 2)) < 0.4).astype(np.float32)
        return numbers, others, np.eye(3, dtype=np.float32)[(numbers[:, 0] > 0).astype(int) + (others[:, 0] > 0)]

    def test_gradients_by_hand_are_the_slopes_of_the_loss(self) -> None:
        numbers, others, targets = (part.astype(np.float64) for part in self.data())
        flat = network.start(self.shape, np.random.default_rng(1)).astype(np.float64)
        masks = [np.random.default_rng(2).integers(0, 2, (2, len(numbers), width)) * 2.0 for width in self.shape.hidden]

        def loss(weights: NDArray[np.float64]) -> float:
            margins, _ = network.forward(np, self.shape, network.views(self.shape, weights), numbers, others, masks)
            return float(-(targets * np.log(network.softmax(np, margins))).sum())

        margins, kept = network.forward(np, self.shape, network.views(self.shape, flat), numbers, others, masks)
        gradient = np.full(len(flat), np.nan)
        network.backward(
            np, self.shape, network.views(self.shape, flat), network.views(self.shape, gradient),
            network.softmax(np, margins) - targets, kept,
        )  # fmt: skip
        step = 1e-6
        slopes = [(loss(flat + step * unit) - loss(flat - step * unit)) / (2 * step) for unit in np.eye(len(flat))]

        assert slopes == pytest.approx(gradient, abs=1e-6)
        assert np.abs(gradient).max() > 1.0

    def test_torch_trains_as_numpy_does(self) -> None:
        pytest.importorskip("torch", reason="torch is an optional extra and is not installed")
        plan = network.Plan(epochs=3, batch=8, rate=0.01, decay=0.1, dropout=0.2, smoothing=0.1, seed=1)
        found = []
        for name in ("cpu", "torch:cpu"):
            device, weights = network.Device(name), {}

            def after(epoch: int, w: Any, device: Any = device, weights: Any = weights) -> bool:
                weights.update({name: device.get(value) for name, value in w.items()})
                return True

            network.train(device, self.shape, plan, *self.data(), after=after)
            found.append(weights)

        for name, value in found[0].items():
            assert value == pytest.approx(found[1][name], abs=1e-4), name
