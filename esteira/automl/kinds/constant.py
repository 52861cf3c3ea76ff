"""The trivial model: class shares, or the mean. Every claim stands beside it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held
from esteira.onnx.graph import Graph


class Constant(Base):
    """Class shares, or the mean."""

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Count the classes or take the mean; x is not looked at."""
        if self.classes is None:
            self.answer: Floats = np.array([np.mean(y, dtype=np.float64)])
        else:
            self.answer = np.bincount(y, minlength=self.classes).astype(np.float64) / len(y)

    def predict(self, x: Features) -> Floats:
        """The same answer for every row."""
        return np.repeat(self.answer, len(x)) if self.classes is None else np.tile(self.answer, (len(x), 1))

    def draw(self, graph: Graph, x: str) -> str:
        """As many copies of the constant as x has rows."""
        rows = graph.add("Shape", x, start=0, end=1)
        if self.classes is None:
            return graph.add("Expand", graph.constant(self.answer), rows)
        whole = graph.add("Concat", rows, graph.constant([self.classes], np.int64), axis=0)
        return graph.add("Expand", graph.constant(self.answer), whole)

    def cost(self) -> Cost:
        """Nothing is computed."""
        return Cost(bytes=self.answer.nbytes, nodes=3)
