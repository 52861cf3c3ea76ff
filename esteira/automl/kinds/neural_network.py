"""A small neural network; trained in single precision, on a GPU where there is one, and answered in double, drawn alike.

Without a GPU the same fit gives the same bits; a GPU's sums are in another order, so it gives other bits than a processor.
"""

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds import design, network
from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held, Space
from esteira.automl.kinds.constant import Constant
from esteira.onnx.graph import Graph

WIDEST = 100  # numeric columns that get periodic embeddings; with more the first layer would be most of the work
WORK = 500_000  # rows that a training sees in all: more gain little on tables of this size, and cost as much again
CLIP = 3.0  # where the smooth clip of a robustly scaled number levels off


class NeuralNetwork(Base):
    """Layers of rectified units on robustly scaled numbers, their periodic embeddings, and one-hot categories.

    `epochs` None takes so many that about WORK rows are seen in all. `layers` times `width` units in each of `members` networks
    that are trained side by side and answer by their mean. `embedding` is how many columns are made of cosines of
    each number. `rate`, `decay`, `dropout` and `smoothing` (of class labels) are those of the training.
    """

    parameters: ClassVar[dict[str, Any]] = {
        "epochs": None,
        "layers": 2,
        "width": 128,
        "members": 2,
        "embedding": 3,
        "batch": 256,
        "rate": 0.004,
        "decay": 0.1,
        "dropout": 0.1,
        "smoothing": 0.0,
    }
    rounds_name: ClassVar[str | None] = "epochs"

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """All but the epochs and the batch, which the number of rows settles."""
        found: dict[str, tuple[Any, ...]] = {
            "layers": ("int", 1, 3),
            "width": ("choice", [32, 64, 128, 192, 256]),
            "members": ("choice", [1, 2, 4]),
            "embedding": ("choice", [0, 3, 6]),
            "rate": ("log", 5e-4, 2e-2),
            "decay": ("log", 1e-3, 1.0),
            "dropout": ("choice", [0.0, 0.05, 0.1, 0.2, 0.35]),
        }
        return found if task == "regression" else {**found, "smoothing": ("choice", [0.0, 0.05, 0.1])}

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """Tables that are too small to hold it, or too wide for its first layer."""
        if features > 600:
            return f"its first layer takes at most 600 features, and there are {features}"
        return f"it needs at least 50 rows, and there are {rows}" if rows < 50 else ""

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Train; with `held` the best epoch's weights are kept."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.features = x.shape[1]
        self.one: Constant | None = None
        self.offset, self.unit = 0.0, 1.0
        if self.classes is None:
            label = np.asarray(y, np.float64)
            self.offset, self.unit = float(label.mean()), float(label.std()) or 1.0
            self.low, self.high = float(label.min()), float(label.max())
            targets = ((label - self.offset) / self.unit)[:, None]
        else:
            codes = self._learn_classes(y)
            targets = np.eye(len(self.present))[codes]
            if len(self.present) == 1:  # nothing to tell apart
                self.one = Constant(classes=self.classes, categorical=(), seed=0)
                self.one.fit(x, y)
                return
        self.design = design.fit(x, self.categorical, robust=True, columns=384, rarest=3)
        numbers, others = self._singles(x)
        embedded = int(self.params["embedding"]) if numbers.shape[1] <= WIDEST else 0
        self.shape = network.Shape(
            numbers=numbers.shape[1],
            others=others.shape[1],
            waves=16 if embedded else 0,
            embedded=embedded,
            hidden=(int(self.params["width"]),) * int(self.params["layers"]),
            outputs=targets.shape[1],
            members=int(self.params["members"]),
        )
        batch = max(16, min(int(self.params["batch"]), 2 ** math.ceil(math.log2(max(1, len(x) / 16)))))
        plan = network.Plan(
            epochs=int(self.params["epochs"] or default_epochs(len(x))),
            batch=batch,
            rate=float(self.params["rate"]),
            decay=float(self.params["decay"]),
            dropout=float(self.params["dropout"]),
            smoothing=float(self.params["smoothing"]),
            seed=self.seed,
        )
        device = network.best_device()
        watch = _Watch(self, device, held)
        # One thread, because the order of a sum, and with it its last bit, depends on the number of them.
        with threadpool_limits(1):
            network.train(device, self.shape, plan, numbers, others, targets.astype(np.float32), after=watch.after)
        self.rounds = watch.epoch
        self.weights = {name: np.asarray(value, np.float64) for name, value in watch.weights.items()}

    def _inputs(self, x: Features, kind: type) -> tuple[NDArray[Any], NDArray[Any]]:
        """Softly clipped numbers, and the other columns."""
        made = self.design.apply(x)
        count = len(self.design.numeric)
        numbers = made[:, :count]
        return (numbers / np.sqrt(1.0 + (numbers / CLIP) ** 2)).astype(kind), made[:, count:].astype(kind)

    def _singles(self, x: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same in single precision, made some rows at a time."""
        numbers, others = zip(*(self._inputs(part, np.float32) for part in design.blocks(x)), strict=True)
        return np.concatenate(numbers), np.concatenate(others)

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        if self.one is not None:
            return self.one.predict(x)
        return design.by_blocks(x, self._answer)

    def _answer(self, x: Features) -> Floats:
        margins, _ = network.forward(np, self.shape, self.weights, *self._inputs(x, np.float64))
        if self.classes is not None:
            return self._spread(network.softmax(np, margins).mean(axis=0))
        values: Floats = np.clip(margins.mean(axis=0)[:, 0] * self.unit + self.offset, self.low, self.high)
        return values

    def draw(self, graph: Graph, x: str) -> str:
        """The same. The learned scale of the inputs is multiplied into the first layer."""
        if self.one is not None:
            return self.one.draw(graph, x)
        w = dict(self.weights)
        first = "hidden0" if self.shape.hidden else "out"
        w[first] = w["scale"].swapaxes(1, 2) * w[first]
        layer = self._draw_inputs(graph, x)
        if self.shape.members > 1:
            layer = graph.add("Unsqueeze", layer, graph.constant([0], np.int64))
        else:
            w = {name: value[0] if name.startswith(("hidden", "bias", "out")) else value for name, value in w.items()}
        for at in range(len(self.shape.hidden)):
            layer = graph.add("Relu", _affine(graph, layer, w[f"hidden{at}"], w[f"bias{at}"]))
        answer = _affine(graph, layer, w["out"], w["out_bias"])
        if self.classes is not None:
            answer = graph.add("Softmax", answer, axis=-1)
        if self.shape.members > 1:
            answer = graph.add("ReduceMean", answer, graph.constant([0], np.int64), keepdims=0)
        if self.classes is None:
            limits = graph.scalar(self.low, np.float64), graph.scalar(self.high, np.float64)
            return graph.add("Clip", graph.values(answer, self.unit, self.offset), *limits)
        if len(self.present) < self.classes:
            answer = graph.add("MatMul", answer, graph.constant(np.eye(self.classes)[self.present], np.float64))
        return answer

    def _draw_inputs(self, graph: Graph, x: str) -> str:
        numbers, others = self.design.draw(graph, x)
        parts = [others] if others else []
        if numbers:
            ratio = graph.add("Div", numbers, graph.scalar(CLIP, np.float64))
            square = graph.add("Add", graph.add("Mul", ratio, ratio), graph.scalar(1.0, np.float64))
            clipped = graph.add("Div", numbers, graph.add("Sqrt", square))
            parts = [clipped, *([self._draw_embedding(graph, clipped)] if self.shape.embedded else []), *parts]
        return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)

    def _draw_embedding(self, graph: Graph, numbers: str) -> str:
        w, count = self.weights, self.shape.numbers
        column = graph.add("Unsqueeze", graph.add("Transpose", numbers, perm=[1, 0]), graph.constant([2], np.int64))
        turned = graph.add("Mul", column, graph.constant(w["frequency"] * (2.0 * math.pi), np.float64))
        waves = graph.add("Cos", graph.add("Add", turned, graph.constant(w["phase"], np.float64)))
        mixed = graph.add("Transpose", _affine(graph, waves, w["mix"], w["mix_bias"]), perm=[1, 0, 2])
        return graph.add("Reshape", mixed, graph.constant([-1, count * self.shape.embedded], np.int64))

    def cost(self) -> Cost:
        """The matrix products of all members."""
        graph = Graph(self.features)
        self.draw(graph, "x")
        if self.one is not None:
            return Cost(bytes=graph.bytes, nodes=graph.nodes)
        matrices = sum(value.size for name, value in self.weights.items() if name in {"mix", "out"} or "hidden" in name)
        return Cost(macs=matrices, bytes=graph.bytes, nodes=graph.nodes)


def default_epochs(rows: int) -> int:
    """Passes over a table of that many rows."""
    return int(np.clip(WORK / rows, 10, 100))


def _affine(graph: Graph, value: str, weights: Floats, bias: Floats) -> str:
    product = graph.add("MatMul", value, graph.constant(weights, np.float64))
    return graph.add("Add", product, graph.constant(bias, np.float64))


class _Watch:
    """Keeps the weights of the best epoch on the held rows, or of the last one without them."""

    def __init__(self, kind: NeuralNetwork, device: network.Device, held: Held | None) -> None:
        self.kind, self.device, self.held = kind, device, held
        self.epoch, self.loss = 0, math.inf
        self.weights: dict[str, NDArray[np.float32]] = {}
        if held is not None:
            # Classes that the fit never saw have no output to be right about.
            rows = np.ones(len(held.y), bool) if kind.classes is None else np.isin(held.y, kind.present)
            self.inputs = [device.put(part) for part in kind._singles(held.x[rows])]
            self.wanted: NDArray[Any]
            if kind.classes is None:
                self.wanted = (np.asarray(held.y, np.float64) - kind.offset) / kind.unit
            else:
                self.wanted = np.searchsorted(kind.present, held.y[rows])

    def after(self, epoch: int, weights: network.Arrays) -> bool:
        """Called by the training after each epoch; False stops it."""
        if self.held is None or not len(self.wanted):
            self._keep(epoch, weights)
            return True
        margins, _ = network.forward(self.device.xp, self.kind.shape, weights, *self.inputs)
        margins = np.asarray(self.device.get(margins), np.float64)
        if self.kind.classes is None:
            loss = float(((margins.mean(axis=0)[:, 0] - self.wanted) ** 2).mean()) * self.kind.unit**2
        else:
            said = network.softmax(np, margins).mean(axis=0)[np.arange(len(self.wanted)), self.wanted]
            loss = float(-np.log(np.maximum(said, 1e-15)).mean())
        if loss < self.loss or not self.weights:
            self.loss = loss
            self._keep(epoch, weights)
        go = self.held.watch is None or self.held.watch(epoch, loss)
        return go and epoch - self.epoch < self.held.patience

    def _keep(self, epoch: int, weights: network.Arrays) -> None:
        self.epoch = epoch
        self.weights = {name: self.device.get(value) for name, value in weights.items()}
