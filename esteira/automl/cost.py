"""Microseconds of one answer, estimated from what the graph has in it: the same on every machine, so that a search may go by it.

The coefficients were measured by `benchmarks/automl/row_cost.py`: over 49 models their mean error was 4.6 %, the worst 18 %.
"""

import math

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost

COEFFICIENTS = (2.8, 0.00526, 0.00668, 0.000484, 0.679)
"""Microseconds of one of each of `terms`."""


def terms(cost: Cost) -> NDArray[np.float64]:
    """What the estimate adds up: a call, a visited node, one that the processor's caches lack, a multiplication, an operator.

    A node is the likelier to be missing from the caches the more there is of the model: the root of the megabytes.
    """
    missing = cost.visits * math.sqrt(cost.bytes / 1e6)
    return np.array([1.0, cost.visits, missing, cost.macs, cost.nodes], np.float64)


def microseconds(cost: Cost) -> float:
    """What one row costs in ONNX Runtime on one thread."""
    return float(terms(cost) @ np.array(COEFFICIENTS))
