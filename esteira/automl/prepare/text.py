"""Components of texts: TF-IDF of their known words, then SVD, so quantised that every order of summation gives the same bits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features, Floats
from esteira.onnx.graph import Graph

CHUNK = 8192  # rows; a table is never copied as a whole
# Weights are whole numbers in double: their sums are exact whatever the order, so that a tree may split on the result.
SCALE = 2.0**20


@dataclass(frozen=True)
class Text:
    """The components of one text column.

    Attributes:
        words: positions of the words in x.
        weights: whole numbers, (words, components): inverse document frequency times right singular vector.
        squares: whole numbers, (words, 1): squared inverse document frequency.
    """

    words: tuple[int, ...]
    weights: Floats
    squares: Floats

    @property
    def width(self) -> int:
        """How many features `apply` gives."""
        return int(self.weights.shape[1])

    def apply(self, x: Features, out: Features) -> None:
        """Write the components into out of shape (rows, width)."""
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            present = (x[rows][:, self.words] > 0.5).astype(np.float64)
            length = np.maximum(np.sqrt(present @ self.squares), 1.0)
            out[rows] = present @ self.weights / length / np.sqrt(SCALE)

    def draw(self, graph: Graph, x: str, features: int) -> str:
        """The same products: (rows, width) float32."""
        words = graph.columns(x, self.words, features)
        present = graph.double(graph.add("Greater", words, graph.scalar(0.5, np.float32)))
        squares = graph.add("Sqrt", graph.add("MatMul", present, graph.constant(self.squares)))
        length = graph.add("Max", squares, graph.scalar(1.0, np.float64))
        shares = graph.add("Div", graph.add("MatMul", present, graph.constant(self.weights)), length)
        return graph.add("Cast", graph.add("Div", shares, graph.scalar(np.sqrt(SCALE), np.float64)), to=1)

    def cost(self) -> Cost:
        """Two matrix products."""
        return Cost(bytes=self.weights.nbytes + self.squares.nbytes, macs=self.weights.size + len(self.words), nodes=10)


def fit(x: Features, words: tuple[int, ...], *, components: int) -> Text | None:
    """TF-IDF with smoothed document frequency and rows of length 1, projected on the leading right singular vectors.

    Returns:
        None where no row has a word.
    """
    gram, counts = np.zeros((len(words), len(words))), np.zeros(len(words))
    for start in range(0, len(x), CHUNK):
        counts += (x[start : start + CHUNK][:, words] > 0.5).sum(axis=0)
    if not counts.any():
        return None
    weight = np.log((1 + len(x)) / (1 + counts)) + 1
    for start in range(0, len(x), CHUNK):
        rows = (x[start : start + CHUNK][:, words] > 0.5) * weight
        rows /= np.maximum(np.sqrt((rows**2).sum(axis=1, keepdims=True)), 1.0)
        gram += rows.T @ rows
    vectors: NDArray[np.float64] = np.linalg.eigh(gram)[1][:, ::-1][:, : min(components, int((counts > 0).sum()))]
    # The sign of a singular vector is arbitrary: its largest weight is made positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return Text(words, np.rint(weight[:, None] * vectors * SCALE), np.rint(weight[:, None] ** 2 * SCALE))
