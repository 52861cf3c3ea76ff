"""What may be made of a table's columns (`Recipe`), what is known of them (`Columns`), and the fitted thing (`Preparation`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esteira.automl.kinds.base import Cost, Features
from esteira.onnx.graph import Graph


@dataclass(frozen=True)
class Columns:
    """What the decoder knows of the features of one table.

    Attributes:
        names: one a feature.
        categorical: positions of features that are codes of categories: 0 unknown, 1.. by falling frequency, NaN missing.
        texts: positions of the word features (1 or 0) of each text column.
    """

    names: tuple[str, ...]
    categorical: tuple[int, ...] = ()
    texts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Which made features a trial adds; every part is off by default, and all off means the features as they are.

    Attributes:
        target_encoding: of each category column, the label's smoothed mean, out of fold on the rows of the fit.
        frequency: of each category column, its level's share of the rows.
        ratios: at most so many guarded ratios of pairs of numbers, the most telling ones.
        text: so many components of TF-IDF and SVD of each text column.
        drop: leave out nearly constant columns and one of each pair with |correlation| above 0.98.
    """

    target_encoding: bool = False
    frequency: bool = False
    ratios: int = 0
    text: int = 0
    drop: bool = False

    def named(self) -> dict[str, Any]:
        """The parts that are on, as JSON."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> "Recipe":
        """What `named` gave."""
        return cls(**named)


class Preparation(Protocol):
    """A recipe, fitted. Made by `fit` of esteira.automl.prepare.fitted.

    Attributes:
        columns: what is known of the features that `apply` gives.
        catalogue: one dict a made feature: name, transformation, made_of, and statistics of the rows of the fit.
    """

    @property
    def recipe(self) -> Recipe: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def catalogue(self) -> Sequence[Mapping[str, Any]]: ...

    def apply(self, x: Features) -> Features:
        """The given features, then the made ones: (rows, len(columns.names)) float32; x itself when nothing is made."""

    def draw(self, graph: Graph, x: str) -> str:
        """Add the same to the graph, bit for bit for every feature that a tree may see."""

    def cost(self) -> Cost:
        """What one answer costs."""
