"""The splits of a fitted scikit-learn forest, without what its nodes say, which the caller keeps. Fits nothing.

Splits are rounded down to float32: of float32 features the same ones are at most the split. A node takes 17 bytes here and
more than 80 in scikit-learn, whose own trees are made again, one at a time, where rows are led through them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.trees import LESS_OR_EQUAL, Trees


@dataclass(frozen=True)
class Forest:
    """The nodes of all trees, one after another.

    Attributes:
        sizes: nodes of each tree.
        left, right: children, counted within the tree; -1 of a leaf.
        feature, split: a row goes left where its feature is at most the split, or is missing and `missing_left`.
        depth: the sum over trees of the mean depth at which rows of the fit ended.
        features: how many a row has.
    """

    sizes: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    feature: NDArray[np.int32]
    split: NDArray[np.float32]
    missing_left: NDArray[np.bool_]
    depth: float
    features: int

    @classmethod
    def of(cls, tree: Any) -> "Forest":
        """A single one, `tree_` of a fitted scikit-learn estimator; of it nothing is held on to."""
        left = np.asarray(tree.children_left)
        counts, inner = tree.weighted_n_node_samples, left >= 0
        return cls(
            sizes=np.array([len(left)]),
            left=left.astype(np.int32),
            right=tree.children_right.astype(np.int32),
            feature=tree.feature.astype(np.int32),
            split=_down(np.asarray(tree.threshold)),
            missing_left=tree.missing_go_to_left.astype(np.bool_),
            depth=float(counts[inner].sum() / counts[0]),
            features=tree.n_features,
        )

    @classmethod
    def joined(cls, parts: "Sequence[Forest]") -> "Forest":
        """The trees of all, in order."""
        arrays = ("sizes", "left", "right", "feature", "split", "missing_left")
        together = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
        return cls(**together, depth=sum(part.depth for part in parts), features=parts[0].features)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        arrays = (self.left, self.right, self.feature, self.split, self.missing_left)
        return sum(array.nbytes for array in arrays)

    def read(self, values: NDArray[np.float64]) -> Trees:
        """The trees as the graph draws them.

        Args:
            values: what the nodes of all trees, one after another, add; only that of leaves counts.
        """
        roots = np.cumsum(self.sizes) - self.sizes
        start = np.repeat(roots, self.sizes)
        leaf = self.left < 0
        return Trees(
            roots=roots,
            leaf=leaf,
            value=values,
            target=np.zeros(len(leaf), np.int64),
            feature=np.where(leaf, 0, self.feature).astype(np.int64),
            mode=np.full(len(leaf), LESS_OR_EQUAL, np.uint8),
            split=self.split,
            yes=np.where(leaf, 0, self.left + start),
            no=np.where(leaf, 0, self.right + start),
            missing_yes=self.missing_left,
            members={},
        )

    def leaves(self, x: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
        """Of each tree in order, the nodes at which rows end, counted over all trees."""
        from sklearn.tree._tree import NODE_DTYPE, Tree

        start = 0
        for size in self.sizes.tolist():
            of = slice(start, start + size)
            nodes = np.zeros(size, NODE_DTYPE)
            nodes["left_child"], nodes["right_child"] = self.left[of], self.right[of]
            nodes["feature"], nodes["threshold"] = self.feature[of], self.split[of]
            nodes["missing_go_to_left"] = self.missing_left[of]
            tree = Tree(self.features, np.ones(1, np.intp), 1)
            tree.__setstate__({"max_depth": size, "node_count": size, "nodes": nodes, "values": np.zeros((size, 1, 1))})
            yield start + tree.apply(x)
            start += size


def _down(splits: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above."""
    near = splits.astype(np.float32)
    return np.where(near > splits, np.nextafter(near, np.float32(-np.inf)), near)
