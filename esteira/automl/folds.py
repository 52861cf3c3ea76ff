"""Which rows a trial may not see: folds by class, at random, by group or in time order; pure functions of their arguments."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 3
SMALL = 3000  # rows; below, every trial is scored on all folds, above on the first only


@dataclass(frozen=True)
class Folds:
    """A partition of the training rows.

    Attributes:
        number: the fold of each row, 0..count-1; shape (rows,).
        scored: the folds on which every trial is scored; the winner is completed on the others.
    """

    number: NDArray[np.int64]
    scored: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.number.max()) + 1


def plan_folds(
    y: NDArray[Any],
    *,
    task: str,
    seed: int,
    groups: NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
) -> Folds:
    """Three folds.

    Args:
        y: class codes or values, shape (rows,).
        task: classification is dealt out class by class, so that every fold has its share of each.
        groups: one value a row; rows of one group stay in one fold.
        times: a moment a row, in any unit; folds are then stretches of time, and every trial is scored on the latest
            only, so that no score comes from predicting the past out of the future.
    """
    rows, count = len(y), min(COUNT, len(y))
    if times is not None:
        rank = np.empty(rows, np.int64)
        rank[np.argsort(times, kind="stable")] = np.arange(rows)
        return Folds(count - 1 - rank * count // rows, (0,))
    rng = np.random.default_rng(seed)
    number = np.empty(rows, np.int64)
    if groups is not None:
        number[:] = _deal_groups(groups, count, rng)
    elif task == "regression":
        number[rng.permutation(rows)] = np.arange(rows) % count
    else:
        dealt = 0
        labels, counts = np.unique(y, return_counts=True)
        # The rarest first, so that the first fold has some of it; each class goes on where the last one stopped.
        for label in labels[np.argsort(counts, kind="stable")]:
            members = rng.permutation(np.flatnonzero(y == label))
            number[members] = (dealt + np.arange(len(members))) % count
            dealt += len(members)
    return Folds(number, tuple(range(number.max() + 1)) if rows < SMALL else (0,))


def _deal_groups(groups: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Largest groups first, each into the fold that has the fewest rows."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(sizes))
    fold, load = np.empty(len(sizes), np.int64), np.zeros(min(count, len(sizes)), np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold[group] = int(load.argmin())
        load[fold[group]] += sizes[group]
    dealt: NDArray[np.int64] = fold[np.ravel(member)]
    return dealt
