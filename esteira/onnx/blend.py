"""The exact graph of a weighted mean of other graphs over the same input. Fits nothing."""

from collections.abc import Sequence

import numpy as np

from esteira.onnx.graph import Graph


def graph(members: Sequence[bytes], weights: Sequence[float], *, features: int, classes: int | None) -> bytes:
    """Export: `weights[0] * y0 + weights[1] * y1 + ...` in double, in this order.

    Args:
        members: finished graphs with input `x` of this width and output `y` of the same shape, at least one.
        weights: one a member; they add up to 1.
        features: width of x.
        classes: number of classes, or None for regression.
    """
    built = Graph(features)
    total = ""
    for number, (member, weight) in enumerate(zip(members, weights, strict=True)):
        part = built.add("Mul", built.embed(member, f"m{number}_"), built.scalar(weight, np.float64))
        total = built.add("Add", total, part) if total else part
    return built.finish(total, classes=classes)
