"""A weighted mean of fitted estimators, chosen greedily on rows they did not see; it fits nothing itself.

Greedy selection with replacement follows Caruana et al., "Ensemble selection from libraries of models" (2004): start from the
best, add whichever member helps most, stop when none does. A member's weight is how often it was chosen.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.estimators import Estimator

ROUNDS = 6
# What a further model must gain, in the metric's own unit: less is not worth its latency.
LEAST_GAIN = 1e-4

Floats = NDArray[np.float64]
Held = TypeVar("Held")


@dataclass(frozen=True)
class Blend:
    """Fitted estimators of the same rows and their weights, which add up to 1. Predicts and exports as an estimator does."""

    members: tuple[Estimator, ...]
    weights: tuple[float, ...]
    features: int
    classes: int | None

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        return mean([member.predict(x) for member in self.members], self.weights)

    def graph(self) -> bytes:
        """The same as an ONNX graph."""
        from esteira.onnx import blend

        members = [member.graph() for member in self.members]
        return blend.graph(members, self.weights, features=self.features, classes=self.classes)

    def cost(self) -> int:
        """What one answer costs: the sum of the members'."""
        return sum(member.cost() for member in self.members)


def mean(predictions: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The weighted sum, in this order, as the graph computes it."""
    total = predictions[0] * weights[0]
    for predicted, weight in zip(predictions[1:], weights[1:], strict=True):
        total = total + predicted * weight
    return total


def choose(members: Sequence[Held], score: Callable[[Sequence[Held], Sequence[float]], float]) -> dict[int, float]:
    """Which members to blend, and with what weights.

    Args:
        members: what can be blended, best first.
        score: of some members with weights, on rows that none of them saw; higher is better.

    Returns:
        Index of a member -> weight, in the order of `members`; one member when no blend gains LEAST_GAIN.
    """
    chosen: Counter[int] = Counter({0: 1})
    alone = reached = score([members[0]], [1.0])
    for _ in range(ROUNDS):
        scores = {}
        for index in range(len(members)):
            weights = _weights(chosen + Counter({index: 1}))
            scores[index] = score([members[i] for i in weights], list(weights.values()))
        index = max(scores, key=lambda i: (scores[i], -i))
        if not scores[index] > reached:
            break
        chosen[index] += 1
        reached = scores[index]
    return _weights(chosen) if len(chosen) > 1 and reached - alone >= LEAST_GAIN else {0: 1.0}


def _weights(counts: Counter[int]) -> dict[int, float]:
    total = counts.total()
    return {index: counts[index] / total for index in sorted(counts)}
