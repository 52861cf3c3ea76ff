"""Microseconds of one answer, estimated from what the graph has in it: the same on every machine, so that a search may go by it.

The coefficients were measured by `benchmarks/automl/row_cost.py`.
"""

import math

from esteira.automl.kinds.base import Cost


def microseconds(cost: Cost) -> float:
    """What one row costs in ONNX Runtime on one thread."""
    root = math.sqrt(cost.bytes / 1e6)
    return 3.3 + 0.0029 * cost.visits + 0.0053 * cost.visits * root + 0.0004 * cost.macs
