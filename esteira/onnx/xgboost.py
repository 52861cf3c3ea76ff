"""The exact graph of a fitted XGBoost booster: float32 trees summed as XGBoost sums them, then double. Fits nothing."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.graph import Graph
from esteira.onnx.trees import LESS, MEMBER, Tree, stump, tree_sum

OBJECTIVES = frozenset({"reg:squarederror", "binary:logitraw", "multi:softprob"})


def graph(booster: Any, *, features: int, classes: int | None, scale: float = 1.0, offset: float = 0.0) -> bytes:
    """Export.

    Args:
        booster: an `xgboost.Booster` of trees (gbtree) with one of OBJECTIVES.
        features: width of x.
        classes: number of classes, or None for regression.
        scale, offset: of regression: the answer is `margin * scale + offset`.

    Raises:
        ValueError: another booster or objective, whose graph has not been tried.
    """
    learner = json.loads(booster.save_raw("json"))["learner"]
    objective, name = learner["objective"]["name"], learner["gradient_booster"]["name"]
    if objective not in OBJECTIVES or name != "gbtree":
        raise ValueError(
            f"exact export is proven for gbtree with {sorted(OBJECTIVES)}, but got {name} with {objective}"
        )
    targets = classes if classes is not None and classes > 2 else 1
    model = learner["gradient_booster"]["model"]
    trees = [stump(float(value), target) for target, value in enumerate(_base_margins(learner, targets))]
    trees += [_tree(tree, target) for tree, target in zip(model["trees"], model["tree_info"], strict=True)]
    built = Graph(features)
    margin = built.double(tree_sum(built, "x", trees, targets=targets, dtype=np.float32))
    output = built.values(margin, scale, offset) if classes is None else built.probabilities(margin, classes)
    return built.finish(output, classes=classes)


def _base_margins(learner: Mapping[str, Any], targets: int) -> NDArray[np.float32]:
    """Where the sum starts, one margin a target; `base_score` is a bracketed text, one value or one a class."""
    text = learner["learner_model_param"]["base_score"].strip("[]")
    scores = np.array([np.float32(float(part)) for part in text.split(",")], np.float32)
    return np.broadcast_to(scores, (targets,)).astype(np.float32)


def _tree(tree: Mapping[str, Any], target: int) -> Tree:
    left, right = np.array(tree["left_children"], np.int64), np.array(tree["right_children"], np.int64)
    split = np.array(tree["split_conditions"], np.float64).astype(np.float32)
    leaf = left == -1
    asks = np.array(tree["split_type"], np.int64) == 1
    missing_left = np.array(tree["default_left"], np.int64) == 1
    members: dict[int, NDArray[Any]] = {}
    codes = np.array(tree["categories"], np.float32)
    for node, start, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        members[int(node)] = codes[start : start + size]
    # The listed categories go right; any other code, known or not, goes left.
    return Tree(
        leaf=leaf,
        value=split,
        feature=np.array(tree["split_indices"], np.int64),
        mode=np.where(asks, MEMBER, LESS).astype(np.uint8),
        split=split,
        yes=np.where(asks, right, left),
        no=np.where(asks, left, right),
        missing_yes=missing_left ^ asks,
        members=members,
        target=int(target),
    )
