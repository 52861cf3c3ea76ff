"""Graphs whose answers a test knows beforehand: a linear model of given coefficients, and one that answers every row alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.graph import Graph


@dataclass(frozen=True)
class Linear:
    """What a prepared linear model is, as arrays; `t` targets (1, or one a class when there are more than two).

    Attributes:
        numeric: columns of x that are numbers.
        median, mean, scale: per numeric column; a missing number becomes the median, then `(value - mean) / scale`.
        weights: `(numeric, t)`.
        missing_weights: `(numeric, t)`: added where a number is missing; zero where none was missing in training.
        categorical: columns of x that are codes.
        levels: per categorical column the highest code that has a coefficient; other codes add nothing.
        tables: per categorical column `(levels + 2, t)`: row 0 unknown (zeros), then the codes, last the missing.
        intercept: `(t,)`.
    """

    numeric: tuple[int, ...]
    median: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    missing_weights: NDArray[np.float64]
    categorical: tuple[int, ...]
    levels: tuple[int, ...]
    tables: tuple[NDArray[np.float64], ...]
    intercept: NDArray[np.float64]


def graph(model: Linear, *, features: int, classes: int | None, present: Sequence[int] | None = None) -> bytes:
    """Export; `classes` is None for regression; `present` names the classes that occurred, when not all did."""
    built = Graph(features)
    parts = [built.constant(model.intercept[None, :], np.float64)]
    if model.numeric:
        numbers = built.double(built.columns("x", model.numeric))
        missing = built.add("IsNaN", numbers)
        filled = built.add("Where", missing, built.constant(model.median, np.float64), numbers)
        centred = built.add("Sub", filled, built.constant(model.mean, np.float64))
        scaled = built.add("Div", centred, built.constant(model.scale, np.float64))
        parts.append(built.add("MatMul", scaled, built.constant(model.weights, np.float64)))
        if model.missing_weights.any():
            flags = built.double(missing)
            parts.append(built.add("MatMul", flags, built.constant(model.missing_weights, np.float64)))
    if model.categorical:
        codes = built.columns("x", model.categorical)
        last = built.constant(np.array(model.levels), np.float32)
        unknown = built.add(
            "Or", built.add("Greater", codes, last), built.add("Less", codes, built.scalar(0.0, np.float32))
        )
        known = built.add("Where", unknown, built.scalar(0.0, np.float32), codes)
        behind = built.constant(np.array(model.levels) + 1, np.float32)
        index = built.add("Where", built.add("IsNaN", codes), behind, known)
        starts = np.cumsum([0] + [len(table) for table in model.tables[:-1]])
        row = built.add("Add", built.add("Cast", index, to=7), built.constant(starts, np.int64))
        looked_up = built.add("Gather", built.constant(np.concatenate(model.tables), np.float64), row, axis=0)
        parts.append(built.add("ReduceSum", looked_up, built.constant([1], np.int64), keepdims=0))
    margin = parts[0]
    for part in parts[1:]:
        margin = built.add("Add", margin, part)
    return built.finish(
        built.values(margin) if classes is None else built.probabilities(margin, classes, present), classes=classes
    )


def constant(answer: NDArray[np.float64], *, features: int, classes: int | None) -> bytes:
    """`answer` for every row: one probability a class, or one value."""
    built = Graph(features)
    rows = built.add("Shape", "x", start=0, end=1)
    shape = rows if classes is None else built.add("Concat", rows, built.constant([classes], np.int64), axis=0)
    return built.finish(built.add("Expand", built.constant(answer, np.float64), shape), classes=classes)
