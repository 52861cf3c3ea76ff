"""The exact graphs of calibration maps, from probabilities to probabilities in double. Fits nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from esteira.onnx.graph import Graph

FLOOR = 1e-6
"""Added to a probability before its logarithm: two probabilities that differ in the last bit then stay within 1e-10
through any map here, and rows far below it keep their order, which a clip would not."""


def temperature(graph: Graph, value: str, sharpness: float) -> str:
    """softmax(sharpness * log(p + FLOOR)), of p (rows, classes)."""
    return graph.add("Softmax", graph.add("Mul", _logs(graph, value), graph.scalar(sharpness, np.float64)), axis=1)


def platt(graph: Graph, value: str, slope: float, offset: float) -> str:
    """sigmoid(slope * (log(p1 + FLOOR) - log(p0 + FLOOR)) + offset) as the second class's, of p (rows, 2)."""
    logs = _logs(graph, value)
    logit = graph.add("Sub", graph.columns(logs, [1], width=2), graph.columns(logs, [0], width=2))
    margin = graph.add("Mul", logit, graph.scalar(slope, np.float64))
    margin = graph.add("Add", margin, graph.scalar(offset, np.float64))
    return graph.probabilities(margin, 2)


def isotonic(graph: Graph, value: str, knots: Sequence[Sequence[float]], heights: Sequence[Sequence[float]]) -> str:
    """Lines through (knot, height), one map a class, divided by their sum; with two classes one map, of the second.

    Args:
        value: p (rows, classes).
        knots: of each map, strictly increasing, the first at or below every p and the last at or above.
        heights: as many, strictly increasing.
    """
    if len(knots) == 1:
        positive = _lines(graph, graph.columns(value, [1], width=2), knots, heights)
        return graph.add("Concat", graph.add("Sub", graph.scalar(1.0, np.float64), positive), positive, axis=1)
    whole = _lines(graph, value, knots, heights)
    total = graph.add("ReduceSum", whole, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", whole, total)


def _logs(graph: Graph, value: str) -> str:
    return graph.add("Log", graph.add("Add", value, graph.scalar(FLOOR, np.float64)))


def _lines(graph: Graph, value: str, knots: Sequence[Sequence[float]], heights: Sequence[Sequence[float]]) -> str:
    """(rows, maps) to the same: the piece of a map is the number of its inner knots at or below the value."""
    most = max(len(xs) for xs in knots) - 1
    inner = np.full((1, len(knots), most), np.inf)
    left, low, slope = (np.zeros((len(knots), most)) for _ in range(3))
    for at, (one, other) in enumerate(zip(knots, heights, strict=True)):
        xs, ys = np.asarray(one, np.float64), np.asarray(other, np.float64)
        inner[0, at, : len(xs) - 2] = xs[1:-1]
        left[at, : len(xs) - 1], low[at, : len(xs) - 1], slope[at, : len(xs) - 1] = xs[:-1], ys[:-1], slopes(xs, ys)
    column = graph.add("Unsqueeze", value, graph.constant([2], np.int64))
    counted = graph.add("Cast", graph.add("GreaterOrEqual", column, graph.constant(inner)), to=TensorProto.INT64)
    piece = graph.add("ReduceSum", counted, graph.constant([2], np.int64), keepdims=0)
    if len(knots) > 1:
        piece = graph.add("Add", piece, graph.constant(np.arange(len(knots))[None, :] * most, np.int64))
    base, lowest, rise = (
        graph.add("Gather", graph.constant(table.ravel()), piece, axis=0) for table in (left, low, slope)
    )
    return graph.add("Add", lowest, graph.add("Mul", graph.add("Sub", value, base), rise))


def slopes(knots: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rise over run of each piece; the graph and the native map must share it to the bit."""
    return np.diff(heights) / np.diff(knots)
