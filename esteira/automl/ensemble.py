"""Which trials to blend, and with what weights: greedy selection on predictions of rows that none of them saw.

With replacement, after Caruana et al., "Ensemble selection from libraries of models" (2004): start from the best, add whichever
helps most, stop when none does; a member's weight is how often it was chosen. What an answer may cost bounds who may enter.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esteira.automl.cost import microseconds
from esteira.automl.kinds.base import Cost

ROUNDS = 25
# Of what the best alone has gained: less is noise, and not worth a member's latency.
LEAST_GAIN = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What one answer of the whole may cost.

    Attributes:
        row_us: microseconds by the cost model.
        bytes: of the graph.
    """

    row_us: float
    bytes: int

    def allow(self, cost: Cost) -> bool:
        """Whether so much may be spent."""
        return microseconds(cost) <= self.row_us and cost.bytes <= self.bytes


def mean(predictions: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The weighted sum, in this order, as the graph computes it."""
    total = predictions[0] * weights[0]
    for predicted, weight in zip(predictions[1:], weights[1:], strict=True):
        total = total + predicted * weight
    return total


def choose(
    predictions: Sequence[Floats], costs: Sequence[Cost], score: Callable[[Floats], float], limits: Limits
) -> Mapping[int, float]:
    """Which members to blend.

    Args:
        predictions: of each member on the same rows, best member first.
        costs: of each member.
        score: of a prediction of these rows; higher is better.
        limits: of the members together; a first member beyond them is passed over.

    Returns:
        Index of a member -> weight, weights adding up to 1, in the order of members. The cheapest alone when none fits.
    """
    able = [index for index, cost in enumerate(costs) if limits.allow(cost)]
    if not able:
        return {min(range(len(costs)), key=lambda index: (microseconds(costs[index]), index)): 1.0}
    chosen: Counter[int] = Counter({able[0]: 1})
    total, spent = predictions[able[0]].copy(), costs[able[0]]
    reached = score(predictions[able[0]])
    for size in range(2, ROUNDS + 2):
        scores = {
            index: score((total + predictions[index]) / size)
            for index in able
            if index in chosen or limits.allow(spent + costs[index])
        }
        best = max(scores, key=lambda index: (scores[index], -index))
        if not scores[best] > reached + LEAST_GAIN * abs(reached) * (best not in chosen):
            break
        if best not in chosen:
            spent = spent + costs[best]
        chosen[best] += 1
        total += predictions[best]
        reached = scores[best]
    count = chosen.total()
    return {index: chosen[index] / count for index in sorted(chosen)}
