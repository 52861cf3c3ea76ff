"""Answers of a table's line: the typed decoder before the prediction. It trains nothing."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from esteira.features.answers import FeatureAnswerer
from esteira.features.decode import Decoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STAGES = ("decode", "graph.onnx", "post")


class TableAnswerer(FeatureAnswerer):
    """Answers rows of one table's line.

    Args:
        decoder: rows to features.
        post: what `post_of` made: classes, or the interval's half width.
        predict: features (rows, features) to probabilities (rows, classes) or values (rows,).
    """

    def __init__(
        self, decoder: Decoder, post: Mapping[str, Any], predict: "Callable[[NDArray[np.float32]], NDArray[Any]]"
    ) -> None:
        super().__init__(decoder.rows, decoder.check, post, predict)
        self.decoder = decoder
