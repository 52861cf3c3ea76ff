"""Fits on folds: one (recipe, kind, parameters) on the rows of a fold, scored on those it did not see; side by side on cores."""

import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds import kind, make
from esteira.automl.kinds.base import Cost, Estimator, Features, Floats, Held
from esteira.automl.prepare import Columns, Preparation, Recipe, fitted
from esteira.automl.splits import Folds
from esteira.onnx.graph import Graph

PATIENCE = 40  # boosting rounds or epochs without a better loss
CACHED = 150_000_000  # bytes of prepared features kept for the next trials
# Of the rounds that folds kept: all rows are a quarter more than a fold's, and bear a little more.
MORE_ROUNDS = 1.1

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Data:
    """One table, ready for a search.

    Attributes:
        x: (rows, features) float32; NaN is missing, category columns hold codes.
        y: class codes 0..k-1, or values.
        classes: how many; None for regression.
    """

    x: Features
    y: NDArray[Any]
    task: str
    classes: int | None
    columns: Columns
    seed: int

    def empty(self, rows: int) -> Floats:
        """Room for predictions of so many rows, all undefined."""
        return np.full((rows,) if self.classes is None else (rows, self.classes), np.nan)


@dataclass(frozen=True)
class Fitted:
    """A fitted pair of preparation and estimator; predicts and draws from the features as they are.

    Attributes:
        fold: the fold whose rows it did not see; -1 when it saw all.
    """

    preparation: Preparation
    estimator: Estimator
    fold: int

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        return self.estimator.predict(self.preparation.apply(x))

    def draw(self, graph: Graph, x: str) -> str:
        """The same in the graph."""
        return self.estimator.draw(graph, self.preparation.draw(graph, x))

    def cost(self) -> Cost:
        """What one answer costs."""
        return self.preparation.cost() + self.estimator.cost()

    @property
    def nbytes(self) -> int:
        """What it holds in memory, about: as much as it is drawn with, but for kinds that say otherwise."""
        return int(getattr(self.estimator, "nbytes", 0)) or self.cost().bytes


@dataclass(frozen=True)
class Outcome:
    """What one fit on a fold gave.

    Attributes:
        predicted: of the fold's held rows, in the order of `Fold.held`; empty when the fit did not finish.
        curve: (progress, loss) on the held rows while it was fitted; progress is rounds times learning rate.
        why: what went wrong, in words; empty when nothing did.
        pruned: whether the watch ended it, and not a fault.
    """

    fitted: Fitted | None
    predicted: Floats
    seconds: float
    curve: tuple[tuple[float, float], ...] = ()
    why: str = ""
    pruned: bool = False


class Pruned(Exception):
    """A fit that other trials have shown to be hopeless; raised through the estimator by what watches it."""


Watch = Callable[[float, float], bool]
"""(progress, loss) -> whether to go on; may raise Pruned."""


@dataclass(eq=False)
class Fits:
    """Fits on one table and its folds. Results come in the order of what was asked, and do not depend on the cores.

    Attributes:
        clock: seconds, by which fits are timed.
    """

    data: Data
    folds: Folds
    clock: Callable[[], float] = time.monotonic
    _prepared: "OrderedDict[tuple[Recipe, int, int], tuple[Preparation, Features]]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fold(
        self,
        recipe: Recipe,
        name: str,
        params: Mapping[str, Any],
        fold: int,
        *,
        most_rows: int | None = None,
        watch: Watch | None = None,
    ) -> Outcome:
        """Fit on a fold's rows, watch and predict its held ones.

        A fit that raises is an outcome with a reason, not an error: a library's refusal ends one trial, not the search.

        Args:
            most_rows: fit on so many of the fold's rows only, evenly spread over them.
        """
        began = self.clock()
        part = self.folds.folds[fold]
        rows = part.fit
        if most_rows is not None and most_rows < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, most_rows).astype(np.intp)]
        curve: list[tuple[float, float]] = []
        rate = float(params.get("learning_rate", 1.0) or 1.0)

        def watched(rounds: int, loss: float) -> bool:
            curve.append((rounds * rate, loss))
            return watch is None or watch(rounds * rate, loss)

        try:
            preparation, fit_x = self._prepare(recipe, fold, rows)
            held_x = preparation.apply(self.data.x[part.held])
            estimator = self._make(name, params, preparation)
            held = Held(held_x, self.data.y[part.held], PATIENCE, watched) if kind(name).rounds_name else None
            estimator.fit(fit_x, self.data.y[rows], held=held)
            model = Fitted(preparation, estimator, fold)
            predicted = estimator.predict(held_x)
        except Pruned as pruned:
            return Outcome(
                None, self.data.empty(0), self.clock() - began, tuple(curve), f"pruned: {pruned}", pruned=True
            )
        except Exception as error:  # noqa: BLE001  a library's refusal of these parameters is a result
            words = f"{type(error).__name__}: {str(error)[:200]}"
            return Outcome(None, self.data.empty(0), self.clock() - began, tuple(curve), words)
        why = "" if np.isfinite(predicted).all() else "predictions are not finite"
        return Outcome(None if why else model, predicted, self.clock() - began, tuple(curve), why)

    def whole(self, recipe: Recipe, name: str, params: Mapping[str, Any], rounds: Sequence[int | None]) -> Fitted:
        """Fit on all rows, with as many rounds as folds kept on the mean and a tenth more."""
        preparation, x = self._prepare(recipe, -1, None)
        kept = [count for count in rounds if count]
        rounds_name = kind(name).rounds_name
        if kept and rounds_name:
            params = {**params, rounds_name: max(1, round(float(np.mean(kept)) * MORE_ROUNDS))}
        estimator = self._make(name, params, preparation)
        estimator.fit(x, self.data.y)
        return Fitted(preparation, estimator, -1)

    def _make(self, name: str, params: Mapping[str, Any], preparation: Preparation) -> Estimator:
        return make(
            name,
            params,
            task=self.data.task,
            classes=self.data.classes,
            categorical=preparation.columns.categorical,
            seed=self.data.seed,
        )

    def _prepare(self, recipe: Recipe, fold: int, rows: NDArray[np.intp] | None) -> tuple[Preparation, Features]:
        key = (recipe, fold, len(self.data.y) if rows is None else len(rows))
        with self._lock:
            if key in self._prepared:
                self._prepared.move_to_end(key)
                return self._prepared[key]
        x, y = (self.data.x, self.data.y) if rows is None else (self.data.x[rows], self.data.y[rows])
        made: tuple[Preparation, Features] = fitted.fit(
            recipe, x, y, columns=self.data.columns, classes=self.data.classes, seed=self.data.seed + fold + 1
        )
        if recipe != Recipe():
            with self._lock:
                self._prepared[key] = made
                while sum(features.nbytes for _, features in self._prepared.values()) > CACHED:
                    self._prepared.popitem(last=False)
        return made


def side_by_side(run: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    """Results in the order of the jobs, as many at once as there are cores (libraries leave the interpreter while they fit)."""
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        return [run(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs))


@contextmanager
def quiet_and_alike() -> Iterator[None]:
    """One BLAS thread, so that sums do not depend on the machine's cores; no word of a solver that stopped early."""
    import scipy.linalg  # noqa: F401  brings a BLAS of its own, and only one that is there can be limited
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Both are of the whole process, so they are set here and not in the fits, which run side by side.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
