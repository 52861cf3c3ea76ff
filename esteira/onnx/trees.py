"""Decision trees as plain arrays, and the one TreeEnsemble node (ai.onnx.ml 5) that adds them up exactly.

A node asks `x[feature] <= split` (or `<`), or whether a category's code is a member of a set; a missing value goes where
the node says. Sums run tree by tree from the first, in the trees' own precision, as the libraries do it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from esteira.onnx.graph import Graph

LESS_OR_EQUAL, LESS, MEMBER = 0, 1, 6  # codes of ai.onnx.ml TreeEnsemble 5


@dataclass(frozen=True)
class Trees:
    """Trees one after another; but for `roots`, arrays have one entry a node.

    Attributes:
        roots: where each tree begins, in the order of the sum.
        leaf: whether a node is a leaf; a leaf has only a value.
        value: what a leaf adds to its target.
        target: which output a leaf adds to: a class, or 0.
        feature, mode, split: the question; `split` counts unless the mode is MEMBER.
        yes, no: node to go to when the answer is yes, or no.
        missing_yes: whether NaN goes the way of yes.
        members: node -> codes of its set, for nodes of mode MEMBER.
    """

    roots: NDArray[np.int64]
    leaf: NDArray[np.bool_]
    value: NDArray[Any]
    target: NDArray[np.int64]
    feature: NDArray[np.int64]
    mode: NDArray[np.uint8]
    split: NDArray[Any]
    yes: NDArray[np.int64]
    no: NDArray[np.int64]
    missing_yes: NDArray[np.bool_]
    members: Mapping[int, NDArray[Any]]

    def weight(self, dtype: type[np.floating[Any]]) -> int:
        """Bytes that they take in a graph, nearly: what protobuf writes for a question, a leaf, and a set's member."""
        width = np.dtype(dtype).itemsize
        leaves = int(np.count_nonzero(self.leaf))
        members = sum(1 + len(codes) for codes in self.members.values())
        return (17 + width) * (len(self.leaf) - leaves) + (2 + width) * leaves + width * members


def stumps(values: Sequence[float]) -> Trees:
    """What a base score or class priors add: one tree a target, which is a leaf."""
    count = len(values)
    return Trees(
        roots=np.arange(count),
        leaf=np.ones(count, np.bool_),
        value=np.asarray(values),
        target=np.arange(count),
        feature=np.zeros(count, np.int64),
        mode=np.zeros(count, np.uint8),
        split=np.zeros(count),
        yes=np.zeros(count, np.int64),
        no=np.zeros(count, np.int64),
        missing_yes=np.zeros(count, np.bool_),
        members={},
    )


def join(parts: Sequence[Trees]) -> Trees:
    """The trees of all parts, in this order."""
    starts = np.cumsum([0, *(len(part.leaf) for part in parts)])[:-1]
    moved = [
        replace(part, roots=part.roots + start, yes=part.yes + start, no=part.no + start)
        for part, start in zip(parts, starts, strict=True)
    ]
    members = {
        int(node + start): codes
        for part, start in zip(parts, starts, strict=True)
        for node, codes in part.members.items()
    }
    names = ("roots", "leaf", "value", "target", "feature", "mode", "split", "yes", "no", "missing_yes")
    return Trees(**{name: np.concatenate([getattr(part, name) for part in moved]) for name in names}, members=members)


def tree_sum(graph: Graph, x: str, trees: Trees, *, targets: int, dtype: type[np.floating[Any]]) -> str:
    """Add the node that sums the trees over x, a value of the given dtype; the result has shape (rows, targets).

    Leaf values and splits must be representable in dtype: float64 as scikit-learn computes, float32 as XGBoost does.
    """
    trees = _questioned(trees)
    inner, leaf = np.flatnonzero(~trees.leaf), np.flatnonzero(trees.leaf)
    place = np.where(trees.leaf, np.cumsum(trees.leaf), np.cumsum(~trees.leaf)) - 1
    asks = trees.mode[inner] == MEMBER
    tensors: dict[str, NDArray[Any]] = {
        "leaf_weights": trees.value[leaf].astype(dtype),
        "nodes_splits": np.where(asks, 0.0, trees.split[inner]).astype(dtype),
        "nodes_modes": trees.mode[inner].astype(np.uint8),
    }
    if asks.any():
        # Sets stand one after another in the order of their nodes, a NaN behind each.
        sets = [np.append(trees.members[node], np.nan) for node in inner[asks].tolist()]
        tensors["membership_values"] = np.concatenate(sets).astype(dtype)
    numbers = {
        "tree_roots": place[trees.roots],
        "leaf_targetids": trees.target[leaf],
        "nodes_featureids": trees.feature[inner],
        "nodes_truenodeids": place[trees.yes[inner]],
        "nodes_falsenodeids": place[trees.no[inner]],
        "nodes_trueleafs": trees.leaf[trees.yes[inner]],
        "nodes_falseleafs": trees.leaf[trees.no[inner]],
        "nodes_missing_value_tracks_true": trees.missing_yes[inner],
    }
    return graph.add(
        "TreeEnsemble",
        x,
        domain="ai.onnx.ml",
        aggregate_function=1,  # SUM
        post_transform=0,  # NONE
        n_targets=targets,
        **{name: numpy_helper.from_array(values) for name, values in tensors.items()},
        **{name: values.astype(np.int64).tolist() for name, values in numbers.items()},
    )


def table_sum(graph: Graph, x: str, trees: Trees, table: NDArray[np.floating[Any]]) -> str:
    """Add nodes that sum whole rows of a table: each tree ends at one; the result has shape (rows, columns), the table's type.

    Args:
        x: a float32 value; splits must be representable in float32.
        trees: the value of a leaf is its row's number, exact in float32 below 2**24; targets count for nothing.
        table: its sums may be made in any order.
    """
    count = len(trees.roots)
    sizes = np.diff(trees.roots, append=len(trees.leaf))
    apart = replace(trees, target=np.repeat(np.arange(count), sizes))
    found = graph.add("Cast", tree_sum(graph, x, apart, targets=count, dtype=np.float32), to=7)
    rows = graph.add("Gather", graph.constant(table), found, axis=0)
    return graph.add("ReduceSum", rows, graph.constant([1], np.int64), keepdims=0)


def _questioned(trees: Trees) -> Trees:
    """The operator wants a question at every root: a lone leaf gets one, with itself on both sides."""
    lone = trees.roots[trees.leaf[trees.roots]]
    if not len(lone):
        return trees
    asking = replace(stumps(np.zeros(len(lone)).tolist()), leaf=np.zeros(len(lone), np.bool_))
    whole = join([trees, asking])
    new = len(trees.leaf) + np.arange(len(lone))
    roots, yes = trees.roots.copy(), whole.yes.copy()
    roots[trees.leaf[trees.roots]] = new
    yes[new] = lone
    return replace(whole, roots=roots, yes=yes, no=np.where(np.arange(len(yes)) < len(trees.leaf), whole.no, yes))
