"""Reads the trees of a fitted LightGBM booster from its model text, bit for bit; fits nothing.

A missing number counts as 0 where the fit saw none missing, as LightGBM does it. For categories the listed codes go left;
a missing, negative or unknown one goes right.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.trees import LESS_OR_EQUAL, MEMBER, Trees

OBJECTIVES = frozenset({"regression", "binary", "multiclass"})
_CATEGORICAL, _DEFAULT_LEFT = 1, 2  # bits of decision_type; the third and fourth tell what counts as missing
_NOTHING, _ZERO = 0, 1


@dataclass(frozen=True)
class Booster:
    """What a model text says: its trees, and the sum over them of the mean depth at which rows of the fit ended."""

    trees: Trees
    depth: float


def read(text: str) -> Booster:
    """The trees of `Booster.model_to_string()`.

    Raises:
        ValueError: another objective, linear leaves, averaged trees, or zeros as missing, whose graphs are not proven.
    """
    head, _, rest = text.partition("\nTree=")
    body = rest.partition("\nend of trees")[0]
    objective = re.findall(r"^objective=(\w+)", head, re.M)
    if not set(objective) <= OBJECTIVES or not objective or "average_output" in head or "is_linear=1" in body:
        raise ValueError(f"exact export is proven for plain trees with {sorted(OBJECTIVES)}, but got {objective}")
    per_round = int(re.findall(r"^num_tree_per_iteration=(\d+)", head, re.M)[0])

    lines: dict[str, list[str]] = defaultdict(list)
    for line in body.split("\n"):
        key, _, value = line.partition("=")
        lines[key].append(value)

    def numbers(name: str, kind: type[np.generic] = np.int64) -> NDArray[np.generic]:
        return np.fromstring(" ".join(lines[name]), kind, sep=" ")

    leaves = numbers("num_leaves").astype(np.int64)
    sizes = 2 * leaves - 1
    roots = np.cumsum(sizes) - sizes
    # Of each tree its questions come first, then its leaves.
    tree = np.repeat(np.arange(len(leaves)), sizes)
    within = np.arange(len(tree)) - roots[tree]
    leaf = within >= leaves[tree] - 1
    asks = np.flatnonzero(~leaf)
    decision = numbers("decision_type").astype(np.uint8)
    categorical, missing = (decision & _CATEGORICAL).astype(np.bool_), decision >> 2 & 3
    if (missing[~categorical] == _ZERO).any():
        raise ValueError("exact export is proven where zero is a number, but got zero_as_missing")

    def child(name: str) -> NDArray[np.int64]:
        found = numbers(name).astype(np.int64)
        return roots[tree[asks]] + np.where(found >= 0, found, leaves[tree[asks]] - 2 - found)

    split = numbers("threshold", np.float64).astype(np.float64)
    missing_left = np.where(missing == _NOTHING, split >= 0.0, decision & _DEFAULT_LEFT != 0)

    def spread(values: NDArray[np.generic], where: NDArray[np.int64]) -> NDArray[np.generic]:
        whole = np.zeros(len(tree), values.dtype)
        whole[where] = values
        return whole

    counts = spread(numbers("internal_count"), asks).astype(np.float64)
    grown = leaves > 1
    depth = np.bincount(tree, weights=counts, minlength=len(leaves))[grown] / counts[roots[grown]]
    return Booster(
        trees=Trees(
            roots=roots,
            leaf=leaf,
            value=spread(numbers("leaf_value", np.float64), np.flatnonzero(leaf)),
            target=tree % per_round,
            feature=spread(numbers("split_feature"), asks).astype(np.int64),
            mode=spread(np.where(categorical, MEMBER, LESS_OR_EQUAL), asks).astype(np.uint8),
            split=spread(split, asks),
            yes=spread(child("left_child"), asks).astype(np.int64),
            no=spread(child("right_child"), asks).astype(np.int64),
            missing_yes=spread(missing_left & ~categorical, asks).astype(np.bool_),
            members=_members(lines, asks, tree[asks], categorical, split),
        ),
        depth=float(depth.sum()),
    )


def _members(
    lines: Mapping[str, Sequence[str]],
    asks: NDArray[np.int64],
    tree: NDArray[np.int64],
    categorical: NDArray[np.bool_],
    split: NDArray[np.float64],
) -> dict[int, NDArray[np.int64]]:
    """Codes that go left, by node: a tree's sets are runs of 32-bit words, and a node's threshold is the number of its run."""
    sets = iter(
        (np.array(bounds.split(), np.int64), np.array(words.split(), np.uint64))
        for bounds, words in zip(lines["cat_boundaries"], lines["cat_threshold"], strict=True)
    )
    found: dict[int, NDArray[np.int64]] = {}
    current, bounds, words = -1, np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for at in np.flatnonzero(categorical):
        if tree[at] != current:  # trees without such a question have no lines
            current, (bounds, words) = tree[at], next(sets)
        number = int(split[at])
        run = words[bounds[number] : bounds[number + 1]]
        bits = (run[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
        found[int(asks[at])] = np.flatnonzero(bits.ravel())
    return found
