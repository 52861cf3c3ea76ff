"""A table's features: thin over the typed decoder, so that a batch step and the service run the same code."""

from typing import TYPE_CHECKING, Any

from esteira.features.decode import Decoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def decode(rows: Any, decoder: Decoder) -> "NDArray[np.float32]":
    """Features of shape (rows, len(decoder.names)) of a sequence of rows or a DataFrame, bit for bit the same."""
    if hasattr(rows, "columns"):
        return decoder.frame(rows)
    return decoder.rows(rows)
