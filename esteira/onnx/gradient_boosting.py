"""Reads the trees of a fitted scikit-learn histogram gradient boosting model, native categories included; fits nothing.

An unknown code follows the missing value's way, as the library does it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.trees import LESS_OR_EQUAL, MEMBER, Trees, join, stumps


def read(model: Any, features: int) -> Trees:
    """The baseline and the trees; sums of them are double.

    Args:
        model: a fitted HistGradientBoostingClassifier, or a Regressor with squared error; `categorical_features` was a
            list of indexes, or None.
        features: width of x.
    """
    order, codes = _columns(model, features)
    parts = [stumps(np.ravel(model._baseline_prediction).astype(np.float64).tolist())]
    for iteration in model._predictors:
        parts += [_tree(predictor, order, codes, target) for target, predictor in enumerate(iteration)]
    return join(parts)


def depth(model: Any) -> float:
    """The sum over trees of the mean depth at which rows of the fit ended."""
    total = 0.0
    for iteration in model._predictors:
        for nodes in (predictor.nodes for predictor in iteration):
            total += float(nodes["count"][nodes["is_leaf"] == 0].sum() / nodes["count"][0])
    return total


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


def _tree(predictor: Any, order: NDArray[np.int64], codes: dict[int, NDArray[np.float64]], target: int) -> Trees:
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
    return Trees(
        roots=np.zeros(1, np.int64),
        leaf=leaf,
        value=nodes["value"],
        feature=order[np.where(leaf, 0, nodes["feature_idx"])],
        mode=np.where(asks, MEMBER, LESS_OR_EQUAL).astype(np.uint8),
        split=nodes["num_threshold"],
        yes=np.where(swap, right, left),
        no=np.where(swap, left, right),
        missing_yes=missing_left & ~asks,
        members=members,
        target=np.full(len(leaf), target),
    )
