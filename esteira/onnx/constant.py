"""The graph of a model that answers every row alike."""

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.graph import Graph


def graph(answer: NDArray[np.float64], *, features: int, classes: int | None) -> bytes:
    """Export; `answer` holds one probability a class, or one value."""
    built = Graph(features)
    rows = built.add("Shape", "x", start=0, end=1)
    shape = rows if classes is None else built.add("Concat", rows, built.constant([classes], np.int64), axis=0)
    return built.finish(built.add("Expand", built.constant(answer, np.float64), shape), classes=classes)
