"""Decision trees as plain arrays, and the one TreeEnsemble node (ai.onnx.ml 5) that adds them up exactly.

A node asks `x[feature] <= split` (or `<`), or whether a category's code is a member of a set; a missing value goes where
the node says. Sums run tree by tree from the first, in the trees' own precision, as the libraries do it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from esteira.onnx.graph import Graph

LESS_OR_EQUAL, LESS, MEMBER = 0, 1, 6  # codes of ai.onnx.ml TreeEnsemble 5


@dataclass(frozen=True)
class Tree:
    """One tree; arrays have one entry a node, the root first.

    Attributes:
        leaf: whether a node is a leaf; a leaf has only a value.
        value: what a leaf adds to the target.
        feature, mode, split: the question; `split` counts unless the mode is MEMBER.
        yes, no: node to go to when the answer is yes, or no.
        missing_yes: whether NaN goes the way of yes.
        members: node -> codes of its set, for nodes of mode MEMBER.
        target: which output the tree adds to: a class, or 0.
    """

    leaf: NDArray[np.bool_]
    value: NDArray[Any]
    feature: NDArray[np.int64]
    mode: NDArray[np.uint8]
    split: NDArray[Any]
    yes: NDArray[np.int64]
    no: NDArray[np.int64]
    missing_yes: NDArray[np.bool_]
    members: dict[int, NDArray[Any]]
    target: int


def stump(value: float, target: int) -> Tree:
    """What a base score or a class prior adds: a leaf, written as a question with the same leaf on both sides."""
    ends = np.array([1, 1])
    return Tree(
        leaf=np.array([False, True]),
        value=np.array([0.0, value]),
        feature=np.zeros(2, np.int64),
        mode=np.zeros(2, np.uint8),
        split=np.zeros(2),
        yes=ends,
        no=ends,
        missing_yes=np.zeros(2, np.bool_),
        members={},
        target=target,
    )


def tree_sum(graph: Graph, x: str, trees: Sequence[Tree], *, targets: int, dtype: type[np.floating[Any]]) -> str:
    """Add the node that sums `trees` over x, a value of the given dtype; the result has shape (rows, targets).

    Tree values must be representable in dtype: float64 as scikit-learn computes, float32 as XGBoost does.
    """
    columns: dict[str, list[NDArray[Any]]] = defaultdict(list)
    members: list[NDArray[Any]] = []
    nodes = leaves = 0
    for tree in trees:
        if len(tree.leaf) == 1:
            tree = stump(float(tree.value[0]), tree.target)
        inner, leaf = np.flatnonzero(~tree.leaf), np.flatnonzero(tree.leaf)
        place = np.empty(len(tree.leaf), np.int64)
        place[inner] = nodes + np.arange(len(inner))
        place[leaf] = leaves + np.arange(len(leaf))
        columns["tree_roots"].append(np.array([nodes]))
        columns["leaf_weights"].append(tree.value[leaf])
        columns["leaf_targetids"].append(np.full(len(leaf), tree.target))
        columns["nodes_featureids"].append(tree.feature[inner])
        columns["nodes_modes"].append(tree.mode[inner])
        columns["nodes_splits"].append(np.where(tree.mode[inner] == MEMBER, 0.0, tree.split[inner]))
        columns["nodes_truenodeids"].append(place[tree.yes[inner]])
        columns["nodes_falsenodeids"].append(place[tree.no[inner]])
        columns["nodes_trueleafs"].append(tree.leaf[tree.yes[inner]])
        columns["nodes_falseleafs"].append(tree.leaf[tree.no[inner]])
        columns["nodes_missing_value_tracks_true"].append(tree.missing_yes[inner])
        # Sets stand one after another in the order of their nodes, a NaN behind each.
        asks = inner[tree.mode[inner] == MEMBER].tolist()
        members += [np.append(tree.members[node], np.nan) for node in asks]
        nodes, leaves = nodes + len(inner), leaves + len(leaf)
    tensors: dict[str, type[np.generic]] = {"leaf_weights": dtype, "nodes_splits": dtype, "nodes_modes": np.uint8}
    if members:
        columns["membership_values"], tensors["membership_values"] = members, dtype
    attributes: dict[str, Any] = {}
    for name, parts in columns.items():
        whole = np.concatenate(parts)
        attributes[name] = (
            numpy_helper.from_array(whole.astype(tensors[name])) if name in tensors else whole.astype(np.int64).tolist()
        )
    return graph.add(
        "TreeEnsemble",
        x,
        domain="ai.onnx.ml",
        aggregate_function=1,  # SUM
        post_transform=0,  # NONE
        n_targets=targets,
        **attributes,
    )
