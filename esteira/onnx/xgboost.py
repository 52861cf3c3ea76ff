"""Reads the trees of a fitted XGBoost booster, float32 as the library computes; fits nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.trees import LESS, MEMBER, Trees, join, stumps

OBJECTIVES = frozenset({"reg:squarederror", "binary:logitraw", "multi:softprob"})


@dataclass(frozen=True)
class Booster:
    """What a booster says.

    Attributes:
        trees: its base margins and trees; where leaves are whole rows of `table`, without the base margins.
        depth: the sum over trees of the mean depth at which rows ended. A row counts by its hessian, the only count that
            the library keeps.
        base: where the sums start, one margin a target.
        table: `(leaves, targets)` double, what each leaf adds to all targets; None where a tree adds to one target only.
    """

    trees: Trees
    depth: float
    base: NDArray[np.float64]
    table: NDArray[np.float64] | None = None


def read(booster: Any) -> Booster:
    """The trees of an `xgboost.Booster` of trees (gbtree) with one of OBJECTIVES; sums of them are float32.

    Raises:
        ValueError: another booster or objective, whose graph has not been tried.
    """
    learner = json.loads(booster.save_raw("json"))["learner"]
    objective, name = learner["objective"]["name"], learner["gradient_booster"]["name"]
    if objective not in OBJECTIVES or name != "gbtree":
        raise ValueError(
            f"exact export is proven for gbtree with {sorted(OBJECTIVES)}, but got {name} with {objective}"
        )
    model = learner["gradient_booster"]["model"]
    targets = max(1, int(learner["learner_model_param"]["num_class"]))
    base = _base_margins(learner, targets)
    trees, depths = _trees(model["trees"], np.array(model["tree_info"], np.int64))
    if "leaf_weights" in model["trees"][0]:
        return Booster(*_with_rows(trees, model["trees"], depths, base))
    return Booster(join([stumps(base.tolist()), trees]), depths, base.astype(np.float64))


def _with_rows(
    trees: Trees, found: Sequence[Mapping[str, Any]], depth: float, base: NDArray[np.float32]
) -> tuple[Trees, float, NDArray[np.float64], NDArray[np.float64]]:
    """Trees with vector leaves: the right child of a leaf is the number of its vector."""
    tables = [np.array(tree["leaf_weights"], np.float64).astype(np.float32).reshape(-1, len(base)) for tree in found]
    starts = np.cumsum([0, *(len(table) for table in tables)])
    row = [start + np.array(tree["right_children"]) for start, tree in zip(starts, found, strict=False)]
    rows = np.where(trees.leaf, np.concatenate(row), 0).astype(np.float64)
    return replace(trees, value=rows), depth, base.astype(np.float64), np.concatenate(tables).astype(np.float64)


def _base_margins(learner: Mapping[str, Any], targets: int) -> NDArray[np.float32]:
    """Where the sum starts, one margin a target; `base_score` is a bracketed text, one value or one a class."""
    text = learner["learner_model_param"]["base_score"].strip("[]")
    scores = np.array([np.float32(float(part)) for part in text.split(",")], np.float32)
    return np.broadcast_to(scores, (targets,)).astype(np.float32)


def _trees(found: Sequence[Mapping[str, Any]], targets: NDArray[np.int64]) -> tuple[Trees, float]:
    """The trees and the sum of their mean depths."""
    sizes = np.array([len(tree["left_children"]) for tree in found], np.int64)
    roots = np.cumsum(sizes) - sizes
    start = np.repeat(roots, sizes)

    def whole(name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.array([value for tree in found for value in tree[name]], kind)

    left, right = whole("left_children", np.int64), whole("right_children", np.int64)
    # The text of a number has enough digits for its float32 only, so it must be read as one.
    split = whole("split_conditions", np.float64).astype(np.float32)
    leaf = left == -1
    asks = whole("split_type", np.int64) == 1
    missing_left = whole("default_left", np.int64) == 1
    members: dict[int, NDArray[Any]] = {}
    for tree, root in zip(found, roots, strict=True):
        codes = np.array(tree["categories"], np.float32)
        for node, first, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        ):
            members[int(root + node)] = codes[first : first + size]
    hessians = np.where(leaf, 0.0, whole("sum_hessian", np.float64))
    passed = np.add.reduceat(hessians, roots) if len(roots) else np.zeros(0)
    grown = hessians[roots] > 0
    # The listed categories go right; any other code, known or not, goes left.
    return Trees(
        roots=roots,
        leaf=leaf,
        value=split,
        target=np.repeat(targets, sizes),
        feature=whole("split_indices", np.int64),
        mode=np.where(asks, MEMBER, LESS).astype(np.uint8),
        split=split,
        yes=np.where(leaf, 0, np.where(asks, right, left) + start),
        no=np.where(leaf, 0, np.where(asks, left, right) + start),
        missing_yes=missing_left ^ asks,
        members=members,
    ), float((passed[grown] / hessians[roots[grown]]).sum())
