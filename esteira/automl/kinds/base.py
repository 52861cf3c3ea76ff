"""What every kind of estimator must do for the search: fit, predict natively, draw the same exactly, say what it costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from esteira.onnx.graph import Graph

Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Space = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Cost:
    """What one answer costs, deterministic; costs of members add up.

    Attributes:
        visits: nodes visited in trees: the sum over trees of the mean depth at which rows of the fit end.
        bytes: what the part of the graph weighs: constants and tree arrays.
        macs: multiplications in matrix products.
        nodes: operators in the graph.
    """

    visits: float = 0.0
    bytes: int = 0
    macs: int = 0
    nodes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.visits + other.visits, self.bytes + other.bytes, self.macs + other.macs, self.nodes + other.nodes
        )


@dataclass(frozen=True)
class Held:
    """Rows that the fit may watch and not learn from: they tell a kind that has rounds when to stop.

    Attributes:
        x, y: the rows, as for `fit`.
        patience: rounds, or epochs, without a better loss (log loss, squared error) after which a fit stops and keeps its best round.
        watch: called with (rounds done, loss on these rows) every few rounds; False stops the fit where it is, its best
            round kept. It may raise, and that passes through.
    """

    x: Features
    y: NDArray[Any]
    patience: int
    watch: Callable[[int, float], bool] | None = None


class Estimator(Protocol):
    """A kind of estimator. `classes` is None for regression and clustering.

    Attributes:
        tasks: of binary, multiclass, regression, clustering: what it can be fitted for.
        parameters: every parameter and its default; others are refused by `make`.
        rounds_name: the parameter that counts boosting rounds or epochs, None where there are none.
        rounds: how many of them the last fit kept; None before a fit and where there are none.
    """

    tasks: ClassVar[frozenset[str]]
    parameters: ClassVar[Mapping[str, Any]]
    rounds_name: ClassVar[str | None]
    rounds: int | None

    def __init__(
        self, *, classes: int | None, categorical: Sequence[int], seed: int, threads: int = 1, **params: Any
    ) -> None: ...

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """What of the parameters is worth searching: name -> ("int" | "log_int" | "float" | "log", low, high) or ("choice", values)."""

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """Why it should not be tried on such a table, in words for the leaderboard; empty when it may."""

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Fit on x (rows, features), NaN missing, codes in the `categorical` columns; y class codes, values, or None."""

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), values (rows,), or for clustering the cluster (rows,)."""

    def draw(self, graph: Graph, x: str) -> str:
        """Add the same to the graph, of a float32 value x (rows, features); returns the name of the double result."""

    def cost(self) -> Cost:
        """What one answer costs."""


class Base:
    """What the kinds share: their parameters, and classes that a fold lacks."""

    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "regression"})
    parameters: ClassVar[Mapping[str, Any]] = {}
    rounds_name: ClassVar[str | None] = None

    def __init__(
        self, *, classes: int | None, categorical: Sequence[int], seed: int, threads: int = 1, **params: Any
    ) -> None:
        self.classes = classes
        self.categorical = tuple(categorical)
        self.seed = seed
        self.threads = threads
        self.params = {**self.parameters, **params}
        self.features = 0
        self.rounds: int | None = None
        self.present: NDArray[np.int64] = np.zeros(0, np.int64)

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """Nothing to search."""
        return {}

    @classmethod
    def refuses(cls, task: str, rows: int, features: int, classes: int | None) -> str:
        """May be tried on any table."""
        return ""

    def _learn_classes(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Codes among the classes that occur, which are kept in `present`."""
        self.present, codes = np.unique(y, return_inverse=True)
        return np.ravel(codes)

    def _spread(self, probabilities: Floats) -> Floats:
        """Probabilities of the classes that occurred, as probabilities of all."""
        assert self.classes is not None
        if len(self.present) == self.classes:
            return probabilities
        spread = np.zeros((len(probabilities), self.classes))
        spread[:, self.present] = probabilities
        return spread
