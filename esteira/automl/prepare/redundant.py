"""Columns that say nothing: nearly one value, or what an earlier column says. Judged without the label."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Features, Floats

ROWS = 5000  # that correlations are taken on
ONE_VALUE = 0.999
ALIKE = 0.98


def redundant(x: Features, names: Sequence[str], categorical: Sequence[int], *, seed: int) -> dict[int, str]:
    """Position -> why it may be left out, in words.

    A column goes where at least 99.9 % of its cells are one value (missing is a value); a number also where an earlier
    one that stays is missing in the same rows and has absolute Pearson and Spearman correlations above 0.98 with it; a
    category where an earlier one is its copy. Correlations are of at most 5,000 rows.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:ROWS])
    sample = x[chosen]
    missing = np.isnan(sample)
    found: dict[int, str] = {}
    for column in range(x.shape[1]):
        # The most frequent value of the sample is that of a nearly constant column.
        values, counts = np.unique(sample[:, column], return_counts=True)
        if counts.max(initial=0) < 0.99 * len(sample):
            continue
        commonest = values[counts.argmax()]
        whole = x[:, column]
        share = float((np.isnan(whole) if np.isnan(commonest) else whole == commonest).mean())
        if share >= ONE_VALUE:
            found[column] = f"{share:.2%} of its cells are one value"
    codes = set(categorical)
    numbers = [column for column in range(x.shape[1]) if column not in codes and column not in found]
    linear = _standard(sample, missing, numbers)
    near = np.abs(linear.T @ linear) > ALIKE
    stay: list[int] = []
    for place, column in enumerate(numbers):
        for earlier in [other for other in stay if near[place, other]]:
            before = numbers[earlier]
            if not np.array_equal(missing[:, column], missing[:, before]):
                continue
            alike = float(_ranks(sample[:, column], missing[:, column]) @ _ranks(sample[:, before], missing[:, before]))
            if abs(alike) > ALIKE:
                found[column] = f"correlation {alike:.3f} with {names[before]}"
                break
        else:
            stay.append(place)
    copies: dict[bytes, int] = {}
    for column in categorical:
        if column not in found:
            same = copies.setdefault(np.nan_to_num(x[:, column], nan=-1.0).tobytes(), column)
            if same != column:
                found[column] = f"copy of {names[same]}"
    return dict(sorted(found.items()))


def _standard(sample: Features, missing: NDArray[np.bool_], columns: Sequence[int]) -> Features:
    """Columns centred and of length 1, missing cells in the middle, so that products are Pearson's correlations."""
    out = np.empty((len(sample), len(columns)), np.float32)
    for place, column in enumerate(columns):
        out[:, place] = _unit(sample[:, column].astype(np.float64), missing[:, column])
    return out


def _ranks(values: Features, missing: NDArray[np.bool_]) -> Floats:
    """As `_standard` of the values' ranks; equal values have one."""
    return _unit(np.searchsorted(np.sort(values), values, side="left").astype(np.float64), missing)


def _unit(values: Floats, missing: NDArray[np.bool_]) -> Floats:
    present = ~missing
    if not present.any():
        return np.zeros(len(values))
    centred = np.where(present, values - values[present].mean(), 0.0)
    size = float(np.sqrt(centred @ centred))
    return centred / size if size > 0 else centred
