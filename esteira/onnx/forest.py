"""Reads the trees of a fitted scikit-learn forest; what a leaf adds is given by the caller. Fits nothing.

Splits are rounded down to float32: of float32 features the same ones are at most the split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.trees import LESS_OR_EQUAL, Trees


def read(estimators: Sequence[Any], values: NDArray[np.float64]) -> Trees:
    """The trees as arrays.

    Args:
        estimators: fitted decision trees.
        values: what the nodes of all trees, one after another, add; only that of leaves counts.
    """
    found = [one.tree_ for one in estimators]
    sizes = np.array([tree.node_count for tree in found])
    roots = np.cumsum(sizes) - sizes
    start = np.repeat(roots, sizes)
    left = np.concatenate([tree.children_left for tree in found])
    leaf = left < 0
    return Trees(
        roots=roots,
        leaf=leaf,
        value=values,
        target=np.zeros(len(leaf), np.int64),
        feature=np.where(leaf, 0, np.concatenate([tree.feature for tree in found])),
        mode=np.full(len(leaf), LESS_OR_EQUAL, np.uint8),
        split=_down(np.concatenate([tree.threshold for tree in found])),
        yes=np.where(leaf, 0, left + start),
        no=np.where(leaf, 0, np.concatenate([tree.children_right for tree in found]) + start),
        missing_yes=np.concatenate([tree.missing_go_to_left for tree in found]).astype(np.bool_),
        members={},
    )


def depth(estimators: Sequence[Any]) -> float:
    """The sum over trees of the mean depth at which rows of the fit ended."""
    total = 0.0
    for one in estimators:
        counts, inner = one.tree_.weighted_n_node_samples, one.tree_.children_left >= 0
        total += float(counts[inner].sum() / counts[0])
    return total


def _down(splits: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above."""
    near = splits.astype(np.float32)
    return np.where(near > splits, np.nextafter(near, np.float32(-np.inf)), near)
