"""Which rows a trial may not see: folds by class, at random, by group or in time order; pure functions of their arguments."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esteira.errors import DataError

Positions = NDArray[np.int64]

# Below these many rows the folds are dealt anew so many times: one dealing then says too little about a model.
REPEATS = ((500, 3), (1500, 2))
# From so many rows on a third of them says enough about a model, and a trial takes half the time of five folds.
MANY_ROWS = 10_000
FOLDS, FOLDS_OF_MANY = 5, 3


@dataclass(frozen=True)
class Fold:
    """Positions of rows, rising: those a model is fitted on, and those it is scored on."""

    fit: Positions
    held: Positions


@dataclass(frozen=True)
class Folds:
    """What every trial is scored on.

    Attributes:
        folds: in the order of evaluation; in time order the latest comes first.
        kind: how rows were dealt. In all but "time" every row is held exactly `repeats` times; in time order only
            later rows are held, once.
        repeats: how often all rows were dealt; the folds of one dealing follow each other.
    """

    folds: tuple[Fold, ...]
    kind: Literal["stratified", "random", "grouped", "time"]
    repeats: int


def plan_folds(
    y: NDArray[Any],
    *,
    task: str,
    seed: int,
    groups: NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
    together: NDArray[Any] | None = None,
    count: int | None = None,
    repeats: int | None = None,
) -> Folds:
    """Deal rows into folds.

    Args:
        y: class codes or values, shape (rows,).
        task: for binary and multiclass every fold gets its share of each class.
        groups: one value a row; rows of one group are never on both sides. In time order, rows of the past whose group
            is held are left out of the fit.
        times: a moment a row, in any unit; every fold is then fitted on strictly earlier rows, the first on about half
            of all.
        together: one value a row, as `groups`, for copies of one row; it changes neither the kind nor the repeats, and
            time order does without it.
        count: folds of one dealing, by default 5, from MANY_ROWS rows on 3; fewer where rows, groups, moments or the
            second class have less to give.
        repeats: 3 below 500 rows, 2 below 1,500, else 1, unless given.

    Raises:
        DataError: fewer than two rows, groups or moments, or a row without a moment.
    """
    rows = len(y)
    if rows < 2:
        raise _too_few(f"folds need 2 rows or more, but got {rows}", "too_few_rows", "give more rows")
    if count is None:
        count = FOLDS if rows < MANY_ROWS else FOLDS_OF_MANY
    if times is not None:
        return Folds(_rolling(times, groups, count), "time", 1)
    classes = task in {"binary", "multiclass"}
    codes = np.ravel(np.unique(y, return_inverse=True)[1]) if classes else np.zeros(rows, np.int64)
    blocks = _blocks(rows, groups, together)
    found = int(blocks.max()) + 1
    if groups is not None and found < 2:
        raise _too_few(
            "folds by group need 2 groups or more, but all rows are of one", "one_group", "choose another group column"
        )
    # Of copies of a single row nothing can be held back but a copy.
    if found < 2:
        blocks, found = np.arange(rows), rows
    count = min(count, found)
    if classes:
        # Every held part should have two classes, or a score such as ROC AUC is undefined there.
        sizes = np.sort(np.bincount(codes))
        if len(sizes) > 1 and sizes[-2] > 1:
            count = min(count, int(sizes[-2]))
    if repeats is None:
        repeats = next((times_dealt for below, times_dealt in REPEATS if rows < below), 1)
        # As many folds as groups: there is only one way to deal them.
        repeats = 1 if found == count else repeats
    folds: list[Fold] = []
    for repeat in range(repeats):
        number = _deal(codes, blocks, count, np.random.default_rng([seed, repeat]))
        folds += [Fold(np.flatnonzero(number != fold), np.flatnonzero(number == fold)) for fold in range(count)]
    return Folds(tuple(folds), "grouped" if groups is not None else "stratified" if classes else "random", repeats)


def _too_few(message: str, code: str, cure: str) -> DataError:
    return DataError(message, code=code, where="folds", cure=cure)


def _blocks(rows: int, groups: NDArray[Any] | None, together: NDArray[Any] | None) -> Positions:
    """Numbers 0.. of the sets of rows that must stay in one fold: shared group or shared copy, taken transitively."""
    given = [np.ravel(np.unique(part, return_inverse=True)[1]) for part in (groups, together) if part is not None]
    if not given:
        return np.arange(rows)
    if len(given) == 1:
        return given[0]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = given
    size = int(first.max()) + int(second.max()) + 2
    links = coo_array((np.ones(rows), (first, second + int(first.max()) + 1)), shape=(size, size))
    joined = connected_components(links, directed=False)[1][first]
    return np.ravel(np.unique(joined, return_inverse=True)[1]).astype(np.int64)


def _deal(codes: Positions, blocks: Positions, count: int, rng: np.random.Generator) -> Positions:
    """The fold of each row: sets of several rows first, largest first, then single rows class by class.

    A set goes where the folds' shares of its classes and of all rows stay most alike; single rows even out the rest.
    """
    sizes = np.bincount(blocks)
    totals = np.bincount(codes).astype(np.float64)
    load = np.zeros((count, len(totals)))
    number = np.full(len(codes), -1, np.int64)
    several = np.flatnonzero(sizes > 1)
    if len(several):
        several = rng.permutation(several)
        several = several[np.argsort(-sizes[several], kind="stable")]
        order = np.argsort(blocks, kind="stable")
        starts = np.cumsum(sizes) - sizes
        for block in several:
            members = order[starts[block] : starts[block] + sizes[block]]
            has = np.bincount(codes[members], minlength=len(totals))
            # What the sum of squared shares grows by, of each class and of all rows.
            grows = ((2 * load + has) * has / totals**2).sum(axis=1)
            grows += (2 * load.sum(axis=1) + sizes[block]) * sizes[block] / len(codes) ** 2
            fold = int(grows.argmin())
            number[members] = fold
            load[fold] += has
    single = rng.permutation(np.flatnonzero(sizes[blocks] == 1))
    # The rarest class first, so that the more frequent ones make the folds equally large.
    for code in np.argsort(totals, kind="stable"):
        members = single[codes[single] == code]
        number[members] = _level(load[:, code], load.sum(axis=1), len(members))
        load[:, code] += np.bincount(number[members], minlength=count)
    return number


def _level(load: NDArray[np.float64], whole: NDArray[np.float64], members: int) -> Positions:
    """A fold for each of so many rows, so that `load` (rows of their class a fold) becomes as level as it can.

    Args:
        whole: rows of all classes a fold: of equally loaded folds the smaller is filled first.
    """
    count = len(load)
    # Fold f offers places at the levels load[f], load[f] + 1, ...; the lowest places are taken.
    needed = members // count + 2 + int(np.ptp(load))
    levels = (load[:, None] + np.arange(min(needed, members))).ravel()
    fold = np.repeat(np.arange(count), min(needed, members))
    return fold[np.lexsort((fold, whole[fold], levels))[:members]]


def _rolling(times: NDArray[Any], groups: NDArray[Any] | None, count: int) -> tuple[Fold, ...]:
    """Rolling origin, the latest stretch first; rows of one moment are on one side."""
    if np.isnat(times).any() if times.dtype.kind in "mM" else times.dtype.kind == "f" and np.isnan(times).any():
        raise _too_few("every row must have a moment, but some have none", "missing_time", "fill the time column")
    rows = len(times)
    order = np.argsort(times, kind="stable")
    moments = times[order]
    # Where the stretches would begin by rank; each begins where its moment does, or the next where that is the first.
    wanted = moments[rows // 2 + np.arange(count) * (rows - rows // 2) // count]
    begins = np.searchsorted(moments, wanted, side="left")
    after = np.searchsorted(moments, moments[0], side="right")
    starts = np.unique(np.where(begins == 0, after, begins))
    starts = starts[starts < rows]
    if not len(starts):
        raise _too_few(
            "folds in time order need 2 moments or more, but all rows have one",
            "one_moment", "choose another time column",
        )  # fmt: skip
    folds = []
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        fit, held = order[:start], order[start:end]
        if groups is not None:
            fit = fit[~np.isin(groups[fit], groups[held])]
        if len(fit):
            folds.append(Fold(np.sort(fit), np.sort(held)))
    if not folds:
        raise _too_few(
            "a fold in time order must be fitted on other groups than it holds, but no earlier row is of another group",
            "groups_span_time", "give the time column or the group column, not both",
        )  # fmt: skip
    return tuple(folds[::-1])
