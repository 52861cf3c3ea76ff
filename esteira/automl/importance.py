"""What an answer depends on (columns, by shuffling them) and what a score depended on (parameters, by the trials)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.scoring import Scorer

MOST_ROWS = 2000
FEWEST_ROWS = 200
MOST_PREDICTIONS = 1_000_000
"""Rows predicted in all: wide tables are looked at on fewer rows, so that the seconds stay the same."""
CALL_ROWS = 4096
"""Rows of one call of a model, about."""
RESAMPLES = 100
MOST_SCORES = 20_000
"""Resamples of each column, and scores taken of all: of many columns the intervals are coarser."""
MIN_TRIALS = 20
"""Fewer trials of a kind say nothing about its parameters."""


def permutation(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    x: NDArray[np.float32],
    y: NDArray[Any],
    scorer: Scorer,
    groups: Mapping[str, Sequence[int]],
    *,
    seed: int,
    repeats: int = 5,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """What the score loses when a column is shuffled among the rows (Breiman 2001; Fisher et al. 2019, arXiv:1801.01489).

    The interval covers both chances, which rows these were and how they were shuffled: every repeat shuffles anew, and
    both scores are taken on the same bootstrap resamples of the rows.

    Args:
        x: features (rows, features) that `predict` was not fitted on; many rows are sampled down.
        y: class codes or values (rows,).
        scorer: higher is better, as `esteira.automl.scoring.scorer` makes it.
        groups: column -> positions of its features, which are shuffled together.
        repeats: shuffles of each column.

    Returns:
        one dict a column, the most important first: `column`, `value` (mean loss of score), `low`, `high` (ends of the
        central interval) and `rows`; nothing when the score is undefined on these rows.
    """
    rng = np.random.default_rng(seed)
    take = min(len(x), MOST_ROWS, max(FEWEST_ROWS, MOST_PREDICTIONS // max(1, len(groups) * repeats)))
    index = np.sort(rng.permutation(len(x))[:take])
    x, y = x[index], y[index]
    whole = predict(x)
    reached = scorer(y, whole) if take else math.nan
    if not math.isfinite(reached):
        return []
    wanted = min(RESAMPLES // repeats, MOST_SCORES // max(1, len(groups) * repeats))
    draws = [rng.integers(0, take, take) for _ in range(max(4, wanted))]
    before = [scorer(y[drawn], whole[drawn]) for drawn in draws]
    draws = [drawn for drawn, score in zip(draws, before, strict=True) if math.isfinite(score)]
    before = [score for score in before if math.isfinite(score)]
    if not draws:
        return []
    order = np.concatenate([rng.permutation(take) for _ in range(repeats)])
    found: list[dict[str, Any]] = []
    columns = list(groups.items())
    # Many columns a call, where their rows are few: a model takes longer to be called than to predict some hundred rows.
    a_call = max(1, CALL_ROWS // (take * repeats))
    for start in range(0, len(columns), a_call):
        some = columns[start : start + a_call]
        shuffled = np.tile(x, (repeats * len(some), 1))
        for (_, positions), part in zip(some, np.split(shuffled, len(some)), strict=True):
            places = list(positions)
            part[:, places] = x[order][:, places]
        for (column, _), told in zip(some, np.split(predict(shuffled), len(some)), strict=True):
            answers = np.split(told, repeats)
            values = [reached - scorer(y, one) for one in answers]
            losses = [base - scorer(y[at], one[at]) for one in answers for base, at in zip(before, draws, strict=True)]
            low, high = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])
            found.append(
                {
                    "column": column,
                    "value": float(np.mean(values)),
                    "low": float(low),
                    "high": float(high),
                    "rows": take,
                }
            )
    found.sort(key=lambda entry: (-entry["value"], entry["column"]))
    return found


def parameters(
    trials: Sequence[Mapping[str, Any]], *, higher_is_better: bool
) -> dict[str, list[dict[str, Any]] | None]:
    """How much of reaching a kind's best tenth of trials each of its parameters decided (PED-ANOVA, arXiv:2304.10255).

    Args:
        trials: rows of a leaderboard: `kind`, `params`, `score` (None: it has none) and `state`.

    Returns:
        kind -> `[{"parameter", "share"}]`, the largest first, shares add up to 1; None where there are fewer than
        MIN_TRIALS trials with a score, or no parameter varied.
    """
    kinds = list(dict.fromkeys(trial["kind"] for trial in trials))
    return {
        kind: _shares(
            [
                trial
                for trial in trials
                # A trial that was cut has the score of a part of the folds.
                if trial["kind"] == kind and trial["score"] is not None and trial.get("state", "complete") == "complete"
            ],
            higher_is_better,
        )
        for kind in kinds
    }


def _shares(trials: Sequence[Mapping[str, Any]], higher_is_better: bool) -> list[dict[str, Any]] | None:
    common = set.intersection(*(set(trial["params"]) for trial in trials)) if trials else set()
    varied = sorted(name for name in common if len({repr(trial["params"][name]) for trial in trials}) > 1)
    if len(trials) < MIN_TRIALS or not varied:
        return None
    import optuna

    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        space = {name: _distribution([trial["params"][name] for trial in trials]) for name in varied}
        study = optuna.create_study(direction="minimize")
        for trial in trials:
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: _internal(space[name], trial["params"][name]) for name in varied},
                    distributions=space,
                    value=-trial["score"] if higher_is_better else trial["score"],
                )
            )
        # At least 5 trials should lie above the quantile (the evaluator's note).
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(trials)))
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(quiet)
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"parameter": name, "share": float(share)} for name, share in ordered]


def _distribution(values: Sequence[Any]) -> Any:
    """The range that the trials covered, on a log scale where it spans a factor of 20; other than numbers are choices."""
    from optuna import distributions

    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = min(values), max(values)
    log = low > 0 and high / low >= 20
    if all(isinstance(value, int) for value in values):
        return distributions.IntDistribution(low, high, log=log)
    return distributions.FloatDistribution(float(low), float(high), log=log)


def _internal(distribution: Any, value: Any) -> Any:
    """The value as its distribution knows it."""
    return str(value) if hasattr(distribution, "choices") else value
