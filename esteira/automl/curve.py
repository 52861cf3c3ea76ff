"""Two curves of a search: the score by rows learned from, and the best score so far by trial and second."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.evaluate import side_by_side

SIZES = 5
SMALLEST_SHARE = 0.1
SMALLEST_ROWS = 50

FitScore = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
"""Fits on the first rows (positions), scores on the second; higher is better, NaN where undefined. Called by several threads."""


def learning(
    fit_score: FitScore, folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], *, fits: int, seed: int
) -> list[dict[str, Any]]:
    """The score at growing numbers of training rows: whether more rows would help.

    The rows of a smaller size are among those of a larger one, and every size is scored on the same held rows.

    Args:
        folds: (rows to fit on, held rows) of each; as many are used as `fits` pays for, in order.
        fits: at most so many calls of `fit_score`, of which SIZES make one fold.
        seed: of the order in which rows are taken.

    Returns:
        one dict a size, growing: `rows`, `score` (mean over folds, None where undefined), `deviation` (None with one
        fold) and `folds`; nothing when `fits` is fewer than SIZES.
    """
    used = folds[: fits // SIZES]
    if not used:
        return []
    least = min(len(fit) for fit, _ in used)
    start = min(least, max(SMALLEST_ROWS, round(least * SMALLEST_SHARE)))
    sizes = np.unique(np.geomspace(start, least, SIZES).round().astype(np.int64))
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(fit) for fit, _ in used]
    # The largest first, so that no core waits for it at the end.
    jobs = [
        (np.sort(order[:size]), held)
        for size in sizes[::-1].tolist()
        for order, (_, held) in zip(orders, used, strict=True)
    ]
    scored = np.reshape(side_by_side(lambda job: fit_score(*job), jobs), (len(sizes), len(used)))[::-1]
    points = []
    for size, scores in zip(sizes.tolist(), scored.tolist(), strict=True):
        defined = [score for score in scores if np.isfinite(score)]
        points.append(
            {
                "rows": size,
                "score": float(np.mean(defined)) if defined else None,
                "deviation": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
                "folds": len(defined),
            }
        )
    return points


def best_so_far(trials: Sequence[Mapping[str, Any]], *, higher_is_better: bool) -> list[dict[str, Any]]:
    """The course of a search.

    Args:
        trials: `number`, `score` (None: it has none) and `seconds`, what the trial took; in any order.

    Returns:
        one dict a trial in order of number: `number`, `score`, `best` (until then, None before the first score) and
        `seconds` (spent until then, added up over trials: with several workers more than a clock shows).
    """
    best: float | None = None
    spent = 0.0
    course = []
    for trial in sorted(trials, key=lambda trial: trial["number"]):
        score = trial["score"]
        spent += trial["seconds"] or 0.0
        if score is not None and (best is None or (score > best if higher_is_better else score < best)):
            best = score
        course.append({"number": trial["number"], "score": score, "best": best, "seconds": spent})
    return course
