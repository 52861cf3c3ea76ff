"""The exact graph of a fitted scikit-learn histogram gradient boosting model, native categories included.

An unknown code follows the missing value's way, as the library does it. Reads the fitted trees; fits nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.graph import Graph
from esteira.onnx.trees import LESS_OR_EQUAL, MEMBER, Tree, stump, tree_sum


def graph(model: Any, *, features: int, classes: int | None, present: Sequence[int] | None = None) -> bytes:
    """Export.

    Args:
        model: a fitted HistGradientBoostingClassifier, or a Regressor with squared error; `categorical_features` was a
            list of indexes, or None.
        features: width of x.
        classes: number of classes, or None for regression.
        present: the classes that occurred in the fit, when not all did.
    """
    order, codes = _columns(model, features)
    baseline = np.ravel(model._baseline_prediction).astype(np.float64)
    trees = [stump(float(value), target) for target, value in enumerate(baseline)]
    for iteration in model._predictors:
        trees += [_tree(predictor, order, codes, target) for target, predictor in enumerate(iteration)]
    built = Graph(features)
    raw = tree_sum(built, built.double("x"), trees, targets=len(baseline), dtype=np.float64)
    return built.finish(
        built.values(raw) if classes is None else built.probabilities(raw, classes, present), classes=classes
    )


def _columns(model: Any, features: int) -> tuple[NDArray[np.int64], dict[int, NDArray[np.float64]]]:
    """The model's own column order as indexes of x, and the codes behind its re-encoded categories by own column."""
    if model.is_categorical_ is None:
        return np.arange(features), {}
    original = np.flatnonzero(_mask(model.categorical_features, features))
    rest = np.setdiff1d(np.arange(features), original)
    encoder = model._preprocessor.named_transformers_["encoder"]
    known = [np.asarray(found, dtype=np.float64) for found in encoder.categories_]
    return np.concatenate([original, rest]), {column: found[~np.isnan(found)] for column, found in enumerate(known)}


def _mask(categorical: Sequence[int], features: int) -> NDArray[np.bool_]:
    mask = np.zeros(features, np.bool_)
    mask[list(categorical)] = True
    return mask


def _tree(predictor: Any, order: NDArray[np.int64], codes: dict[int, NDArray[np.float64]], target: int) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(np.bool_)
    asks = nodes["is_categorical"].astype(np.bool_) & ~leaf
    left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
    missing_left = nodes["missing_go_to_left"].astype(np.bool_)
    # For a set of categories NaN and unknown codes must go one way, and a code that is not a member goes to `no`:
    # so where the missing go left, ask for the known categories of the right side.
    swap = asks & missing_left
    members: dict[int, NDArray[Any]] = {}
    for node in np.flatnonzero(asks):
        column = int(nodes["feature_idx"][node])
        bits = predictor.raw_left_cat_bitsets[int(nodes["bitset_idx"][node])]
        encoded = np.arange(len(codes[column]))
        goes_left = (bits[encoded >> 5] >> (encoded & 31).astype(np.uint32)) & np.uint32(1) == 1
        members[int(node)] = codes[column][goes_left != missing_left[node]]
    return Tree(
        leaf=leaf,
        value=nodes["value"],
        feature=order[np.where(leaf, 0, nodes["feature_idx"])],
        mode=np.where(asks, MEMBER, LESS_OR_EQUAL).astype(np.uint8),
        split=nodes["num_threshold"],
        yes=np.where(swap, right, left),
        no=np.where(swap, left, right),
        missing_yes=missing_left & ~asks,
        members=members,
        target=target,
    )
