"""What the kinds made of trees share: native categories, the label as they learn it, one class alone, when to stop.

Categories are given natively where a column has at most NATIVE_LEVELS of them; above that trees see the code, which is the
category's rank by frequency. A regression's label is standardised for the fit, because the libraries keep it, or its
gradients, in float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held
from esteira.onnx.graph import Graph, sigmoid, softmax

NATIVE_LEVELS = 64
EVERY = 10  # rounds between two words to a watcher

Watched = tuple[Features, NDArray[Any], "Watcher"]


def native_categories(x: Features, categorical: Sequence[int], most: int = NATIVE_LEVELS) -> list[int]:
    """Category columns with few enough codes, and at least one, for native splits."""
    counts = {i: len(np.unique(x[:, i][~np.isnan(x[:, i])])) for i in categorical}
    return [i for i, count in counts.items() if 0 < count <= min(most, NATIVE_LEVELS)]


@dataclass
class Watcher:
    """Follows the loss on held rows; `best` and `rounds` are the least loss so far and the rounds that gave it.

    Attributes:
        unit: what the library's loss is multiplied by to be that of the label itself.
    """

    held: Held
    unit: float
    best: float = float("inf")
    rounds: int = 1

    def goes_on(self, rounds: int, loss: float) -> bool:
        """Whether a fit should go on after so many rounds with this loss."""
        if loss < self.best:
            self.best, self.rounds = loss, rounds
        wanted = True
        if self.held.watch is not None and rounds % EVERY == 0:
            wanted = self.held.watch(rounds, loss * self.unit)
        return wanted and rounds - self.rounds < self.held.patience


class TreeKind(Base, ABC):
    """A kind made of trees: it says how they grow (`_grow`), what they sum to (`_sums`), and how that is drawn (`_draw`)."""

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Fit; rows of `held` whose class did not occur are not looked at."""
        self.features = x.shape[1]
        self.offset, self.scale = 0.0, 1.0
        self.rounds = None if self.rounds_name is None else int(self.params[self.rounds_name])
        if self.classes is None:
            label = np.asarray(y, np.float64)
            self.offset, self.scale = float(label.mean()), float(label.std()) or 1.0
            self._grow(x, self._standard(label), self._watched(held))
            return
        codes = self._learn_classes(y)
        if len(self.present) > 1:
            self._grow(x, codes, self._watched(held))

    def predict(self, x: Features) -> Floats:
        """Natively: the library's own raw sums; what is made of them is computed in double."""
        if self.classes is None:
            return self._sums(x) * self.scale + self.offset
        if len(self.present) == 1:
            return self._spread(np.ones((len(x), 1)))
        return self._spread(self._probabilities(self._sums(x)))

    def draw(self, graph: Graph, x: str) -> str:
        """The same in the graph."""
        if self.classes is None:
            return graph.values(self._draw(graph, x), self.scale, self.offset)
        if len(self.present) == 1:
            whole = graph.add(
                "Concat", graph.add("Shape", x, start=0, end=1), graph.constant([self.classes], np.int64), axis=0
            )
            return graph.add("Expand", graph.constant(self._spread(np.ones((1, 1)))), whole)
        return self._draw_probabilities(graph, self._draw(graph, x))

    def cost(self) -> Cost:
        """Visited nodes by the library's own counts of the rows of the fit."""
        if self.classes is not None and len(self.present) == 1:
            return Cost(bytes=8 * self.classes, nodes=3)
        return self._cost()

    def _standard(self, label: Floats) -> Floats:
        return (label - self.offset) / self.scale

    def _watched(self, held: Held | None) -> Watched | None:
        """The held rows with labels as the fit sees them."""
        if held is None:
            return None
        if self.classes is None:
            return held.x, self._standard(np.asarray(held.y, np.float64)), Watcher(held, self.scale**2)
        known = np.isin(held.y, self.present)
        if not known.any():
            return None
        return held.x[known], np.searchsorted(self.present, held.y[known]), Watcher(held, 1.0)

    def _probabilities(self, sums: Floats) -> Floats:
        """Of the classes that occurred; sums have shape (rows,) for two and (rows, k) for more."""
        return sigmoid(sums) if len(self.present) == 2 else softmax(sums)

    def _draw_probabilities(self, graph: Graph, sums: str) -> str:
        assert self.classes is not None
        return graph.probabilities(sums, self.classes, self.present.tolist())

    @property
    def _targets(self) -> int:
        """How many sums there are."""
        return 1 if self.classes is None or len(self.present) == 2 else len(self.present)

    @abstractmethod
    def _grow(self, x: Features, label: NDArray[Any], watched: Watched | None) -> None:
        """Fit on codes of the classes that occurred (two at least), or on standardised values."""

    @abstractmethod
    def _sums(self, x: Features) -> Floats:
        """(rows,), or (rows, k) for more than two classes."""

    @abstractmethod
    def _draw(self, graph: Graph, x: str) -> str:
        """The same as a double value of shape (rows, 1) or (rows, k)."""

    @abstractmethod
    def _cost(self) -> Cost:
        """What the sums of one answer cost."""
