"""Many JSON rows a column at a time: which columns hold nothing odd, and what plain cells mean. Where it is not sure, it says so.

What a cell means is decided by `parse` and the decoder; this only recognises the cells on which nothing is left to decide.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.features.parse import LARGEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY = 32
"""Rows from which a column at a time is faster than a row at a time."""

_REALS = frozenset({float, int})
_INTEGERS = frozenset({int})
_BOOLEANS = frozenset({bool})
_TEXTS = frozenset({str})

Cells = Sequence[Any]


def cells_of(rows: Sequence[Any], names: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """The cells of each column; None when a row is no plain dictionary or lacks a column."""
    if len(names) < 2 or {dict}.symmetric_difference(map(type, rows)):
        return None
    try:
        return list(zip(*map(itemgetter(*names), rows), strict=True))
    except KeyError:
        return None


def _numbers(cells: Cells, kinds: "frozenset[type]") -> "NDArray[np.float64] | None":
    if not kinds.issuperset(map(type, cells)):
        return None
    try:
        return np.array(cells, dtype=np.float64)
    except OverflowError:  # a whole number that no double holds
        return None


def numbers_within(low: float, high: float, *, whole: bool) -> Callable[[Cells], bool]:
    """True of cells that all are numbers from low to high, and whole ones where that is asked."""
    kinds = _INTEGERS if whole else _REALS

    def plain(cells: Cells) -> bool:
        values = _numbers(cells, kinds)
        return values is not None and bool(((values >= low) & (values <= high)).all())

    return plain


def texts_of(levels: "frozenset[str]") -> Callable[[Cells], bool]:
    """True of cells that all are one of these."""

    def plain(cells: Cells) -> bool:
        try:
            return levels.issuperset(cells)
        except TypeError:  # a list or an object
            return False

    return plain


def texts(cells: Cells) -> bool:
    """True of texts that are not blank."""
    return _TEXTS.issuperset(map(type, cells)) and all(map(str.strip, cells))


def booleans(cells: Cells) -> bool:
    """True of true and false."""
    return _BOOLEANS.issuperset(map(type, cells))


def unsure(_: Cells) -> bool:
    """True of nothing."""
    return False


def read_numbers(cells: Cells) -> "NDArray[Any] | None":
    """Plain numbers that a float32 holds, shape (rows,); None when there is another cell."""
    values = _numbers(cells, _REALS)
    return values if values is not None and bool((np.abs(values) <= LARGEST).all()) else None


def read_booleans(cells: Cells) -> "NDArray[Any] | None":
    """1 and 0 of true and false, shape (rows,); None when there is another cell."""
    return np.array(cells, dtype=np.float32) if booleans(cells) else None


def read_codes(codes: Mapping[str, float]) -> "Callable[[Cells], NDArray[Any] | None]":
    """Codes of known categories, shape (rows,); None when there is another cell."""

    def read(cells: Cells) -> "NDArray[Any] | None":
        try:
            return np.array([codes[cell] for cell in cells], dtype=np.float32)
        except (KeyError, TypeError):
            return None

    return read


def read_nothing(_: Cells) -> None:
    """Leaves all cells to the decoder."""
    return
