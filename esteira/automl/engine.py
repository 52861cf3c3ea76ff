"""The search itself: every kind's defaults first, then seeded TPE proposals for the kinds that lead; no files, no clock.

Bounded by trials. Scores come from folds that a trial did not see, the winner is fitted again on all rows.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl.blend import Blend, choose, mean
from esteira.automl.estimators import Estimator, make, threads
from esteira.automl.folds import Folds, plan_folds
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate
from esteira.features.metrics import HIGHER_IS_BETTER, Classified, Estimated, names, statistic

Progress = Callable[[int, int, Mapping[str, Any]], None]
_Scorer = Callable[[NDArray[Any], NDArray[np.float64]], float]


@dataclass(frozen=True)
class Result:
    """What a search found; satisfies `esteira.family.Searched`.

    Attributes:
        best: `{"kind", "params", "score"}` of the winner.
        leaderboard: one dict a trial, best first: number (from 1), kind, params, score (mean over the scored folds, in
            the metric's own direction), deviation (None with one fold), cost, fit_seconds (a wall time: the only entry
            that differs between equal runs).
        out_of_fold: predictions on the training rows by models that did not see them; `(rows, classes)` or `(rows,)`.
        metric: name of the score.
    """

    best: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]
    out_of_fold: NDArray[np.float64]
    metric: str
    model: Estimator | Blend = field(repr=False)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Natively: probabilities `(rows, classes)`, or values `(rows,)` for regression."""
        return self.model.predict(x)

    def graph(self) -> bytes:
        """The same as an ONNX graph: input `x`, output `y` (double)."""
        return self.model.graph()


@dataclass(eq=False)
class _Trial:
    number: int
    kind: str
    params: dict[str, Any]
    score: float
    deviation: float | None
    cost: int
    seconds: float
    predictions: dict[int, NDArray[np.float64]]

    def row(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "kind": self.kind,
            "params": self.params,
            "score": self.score,
            "deviation": self.deviation,
            "cost": self.cost,
            "fit_seconds": round(self.seconds, 4),
        }


def search(
    x: NDArray[np.float32],
    y: NDArray[Any],
    *,
    task: str,
    categorical: Sequence[int],
    candidates: Sequence[Candidate],
    metric: str,
    trials: int,
    seed: int,
    classes: int | None = None,
    folds: Folds | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find the best of the candidates; see `esteira.family.Search`.

    Args:
        x: features (rows, features); NaN is missing, category columns hold codes.
        y: class codes 0..k-1, or values.
        task: binary, multiclass or regression.
        categorical: indexes of the category columns.
        candidates: kinds and their spaces; each one's defaults are tried before anything else, in this order.
        metric: a score of `esteira.features.metrics`.
        trials: how many parameter sets are tried, at least 1.
        seed: of folds, proposals and fits.
        classes: number of classes, when y may lack the last ones.
        folds: who is held back when; by default `plan_folds`.
        progress: called after every trial with (done, trials, leaderboard row).

    Raises:
        ConfigError: no trials or candidates, an unknown metric, kind or parameter.
        DataError: fewer than 4 rows, or the metric is undefined on every held-back fold.
    """
    if trials < 1 or not candidates:
        raise ConfigError(
            f"a search needs a trial and a candidate, but got {trials} trials and {len(candidates)} candidates",
            code="no_trials", where="train.trials", cure="set train.trials to 1 or more",
        )  # fmt: skip
    if len(y) < 4:
        raise DataError(
            f"a search needs 4 training rows or more, but got {len(y)}",
            code="too_few_rows", where="train", cure="give more rows",
        )  # fmt: skip
    k = None if task == "regression" else max(2, classes or 0, int(y.max()) + 1)
    scorer = _scorer(metric, task, k)
    folds = folds or plan_folds(y, task=task, seed=seed)
    fits = _Fits(x, y, k, tuple(categorical), folds, seed)
    tried: list[_Trial] = []
    proposers = {candidate.kind: _Proposer(candidate, seed) for candidate in candidates}
    with _quiet_and_alike():
        while len(tried) < trials:
            batch = _next_kinds(candidates, tried)[: trials - len(tried)]
            asked = [(proposers[kind], proposers[kind].ask()) for kind in batch]
            jobs = [(proposer.kind, params) for proposer, (params, _) in asked]
            for (proposer, (params, ticket)), outcome in zip(asked, fits.score(jobs, scorer), strict=True):
                trial = _Trial(len(tried) + 1, proposer.kind, params, **outcome)
                proposer.tell(ticket, trial.score)
                tried.append(trial)
                if progress is not None:
                    progress(trial.number, trials, _shown(trial.row(), metric))
            leaders = _leaders(tried)
            for other in tried:
                if other not in leaders:
                    other.predictions = {}
    best = leaders[0]
    if math.isnan(best.score):
        raise DataError(
            f"{metric} must be defined on held-back rows, but it was on none of {len(folds.scored)} folds",
            code="score_undefined", where="train", cure="give more rows of every class, or choose another metric",
        )  # fmt: skip
    with _quiet_and_alike():
        best, model, out_of_fold = _finish(fits, leaders, tried, scorer)
    leaderboard = [_shown(trial.row(), metric) for trial in sorted({*tried, best}, key=_rank)]
    return Result(
        best={"kind": best.kind, "params": best.params, "score": leaderboard[0]["score"]},
        leaderboard=leaderboard,
        out_of_fold=out_of_fold,
        metric=metric,
        model=model,
    )


def _leaders(tried: Sequence["_Trial"]) -> list["_Trial"]:
    """The best trial of each kind, best first."""
    best: dict[str, _Trial] = {}
    for trial in sorted(tried, key=_rank):
        best.setdefault(trial.kind, trial)
    return list(best.values())


def _finish(
    fits: "_Fits", leaders: Sequence["_Trial"], tried: Sequence["_Trial"], scorer: _Scorer
) -> tuple["_Trial", "Estimator | Blend", NDArray[np.float64]]:
    """Blend the leaders of the kinds where that helps, and fit what won on all rows."""

    def score(members: Sequence[_Trial], weights: Sequence[float]) -> float:
        return fits.blended(members, weights, scorer)[0]

    able = [trial for trial in leaders if trial.kind != "constant" and math.isfinite(trial.score)] or [leaders[0]]
    weights = choose(able, score)
    members = [able[index] for index in weights]
    completed = fits.complete(members)
    if len(members) == 1:
        return leaders[0], *completed[0]
    shares = tuple(weights.values())
    reached, deviation = fits.blended(members, shares, scorer)
    model = Blend(tuple(model for model, _ in completed), shares, fits.x.shape[1], fits.classes)
    parts = [
        {"kind": member.kind, "number": member.number, "weight": share, "params": member.params}
        for member, share in zip(members, shares, strict=True)
    ]
    blend = _Trial(
        len(tried) + 1, "blend", {"members": parts}, reached, deviation, sum(m.cost for m in members), 0.0, {}
    )
    return blend, model, mean([held for _, held in completed], shares)


def _next_kinds(candidates: Sequence[Candidate], tried: Sequence[_Trial]) -> list[str]:
    """The next batch: every kind's defaults, then twice the kind that leads and once the runner-up.

    The size of a batch does not depend on the machine, because proposals depend on the scores told before.
    """
    if not tried:
        return [candidate.kind for candidate in candidates]
    open_kinds = [candidate.kind for candidate in candidates if candidate.space]
    ranked = list(dict.fromkeys(trial.kind for trial in sorted(tried, key=_rank) if trial.kind in open_kinds))
    if not ranked:
        return [candidates[0].kind]
    return [ranked[0], ranked[min(1, len(ranked) - 1)], ranked[0]]


@contextmanager
def _quiet_and_alike() -> Iterator[None]:
    """One BLAS thread, so that sums do not depend on the machine's cores; no word of a solver that stopped early."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Both are of the whole process, so they are set here and not in the fits, which run side by side.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _rank(trial: _Trial) -> tuple[bool, float, int, int]:
    """Best first; of equal scores the cheaper model, then the earlier trial. An undefined score comes last."""
    undefined = math.isnan(trial.score)
    return undefined, 0.0 if undefined else -trial.score, trial.cost, trial.number


def _shown(row: dict[str, Any], metric: str) -> dict[str, Any]:
    """A row with its score in the metric's own direction; undefined is None."""
    score = row["score"] if HIGHER_IS_BETTER[metric] else -row["score"]
    return {**row, "score": None if math.isnan(score) else score}


@dataclass(frozen=True)
class _Fits:
    """Fits on one table, side by side where there are cores; results are in the order of what was asked."""

    x: NDArray[np.float32]
    y: NDArray[Any]
    classes: int | None
    categorical: tuple[int, ...]
    folds: Folds
    seed: int

    def score(self, jobs: Sequence[tuple[str, Mapping[str, Any]]], scorer: _Scorer) -> list[dict[str, Any]]:
        """Of each (kind, params): `score`, `deviation`, `cost`, `seconds`, and `predictions` by scored fold."""
        tasks = [(kind, params, fold) for kind, params in jobs for fold in self.folds.scored]
        done = self._map(self._held, tasks)
        outcomes = []
        for start in range(0, len(done), len(self.folds.scored)):
            parts = done[start : start + len(self.folds.scored)]
            predictions = {fold: predicted for fold, (_, predicted, _) in zip(self.folds.scored, parts, strict=True)}
            scores = [scorer(self.y[self.folds.number == fold], predicted) for fold, predicted in predictions.items()]
            defined = [score for score in scores if math.isfinite(score)]
            outcomes.append(
                {
                    "score": float(np.mean(defined)) if defined else math.nan,
                    "deviation": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
                    "cost": max(model.cost() for model, _, _ in parts),
                    "seconds": sum(seconds for _, _, seconds in parts),
                    "predictions": predictions,
                }
            )
        return outcomes

    def blended(
        self, members: Sequence[_Trial], weights: Sequence[float], scorer: _Scorer
    ) -> tuple[float, float | None]:
        """Mean score and deviation of a weighted mean of members over the scored folds."""
        scores = []
        for fold in self.folds.scored:
            predicted = mean([member.predictions[fold] for member in members], weights)
            scores.append(scorer(self.y[self.folds.number == fold], predicted))
        defined = [score for score in scores if math.isfinite(score)]
        deviation = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
        return float(np.mean(defined)) if defined else math.nan, deviation

    def complete(self, members: Sequence[_Trial]) -> list[tuple[Estimator, NDArray[np.float64]]]:
        """Of each member: fitted on all rows, and its predictions on all rows by models that did not see them."""
        folds = [
            [-1, *(fold for fold in range(self.folds.count) if fold not in member.predictions)] for member in members
        ]
        tasks = [(m.kind, m.params, fold) for m, wanted in zip(members, folds, strict=True) for fold in wanted]
        done = iter(self._map(self._held, tasks))
        completed = []
        for member, wanted in zip(members, folds, strict=True):
            model = next(done)[0]
            predictions = member.predictions | {fold: next(done)[1] for fold in wanted[1:]}
            out = np.full((len(self.y),) if self.classes is None else (len(self.y), self.classes), np.nan)
            for fold, predicted in predictions.items():
                out[self.folds.number == fold] = predicted
            completed.append((model, out))
        return completed

    def _held(self, task: tuple[str, Mapping[str, Any], int]) -> tuple[Estimator, NDArray[np.float64], float]:
        """Fit without a fold (-1: with all rows) and predict that fold; and the seconds it took."""
        kind, params, fold = task
        began = time.perf_counter()
        held = self.folds.number == fold
        model = make(kind, params, classes=self.classes, categorical=self.categorical, seed=self.seed)
        if fold < 0:
            model.fit(self.x, self.y)
            return model, np.empty(0), time.perf_counter() - began
        model.fit(self.x[~held], self.y[~held])
        return model, model.predict(self.x[held]), time.perf_counter() - began

    def _map(
        self,
        run: Callable[[tuple[str, Mapping[str, Any], int]], tuple[Estimator, NDArray[np.float64], float]],
        tasks: Sequence[tuple[str, Mapping[str, Any], int]],
    ) -> list[tuple[Estimator, NDArray[np.float64], float]]:
        workers = 1 if threads(self.x) > 1 else min(4, os.cpu_count() or 1, len(tasks))
        if workers == 1:
            return [run(task) for task in tasks]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run, tasks))


def _scorer(metric: str, task: str, classes: int | None) -> _Scorer:
    """A function (truth, prediction) -> score, higher is better; NaN where undefined."""
    labels = tuple(str(code) for code in range(classes or 0))
    probe = (
        Estimated(np.zeros(0), np.zeros(0))
        if classes is None
        else Classified(np.zeros(0, np.int64), np.zeros((0, classes)), np.zeros(0, np.int64), labels)
    )
    valid = names(probe)
    if metric not in valid:
        raise ConfigError(
            f"a metric of {task} is one of {', '.join(valid)}, but got {metric!r}",
            code="unknown_metric", where="train.metric", cure="take one of these, or leave it out",
        )  # fmt: skip
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def score(truth: NDArray[Any], predicted: NDArray[np.float64]) -> float:
        both = (
            Estimated(truth.astype(np.float64), predicted)
            if classes is None
            else Classified(truth.astype(np.int64), predicted, predicted.argmax(axis=1), labels)
        )
        return sign * float(statistic(metric, both)(np.ones((1, len(truth))))[0])

    return score


class _Proposer:
    """Parameter sets for one kind: its defaults, then what TPE makes of the scores so far."""

    def __init__(self, candidate: Candidate, seed: int) -> None:
        missing = sorted(set(candidate.space) - set(candidate.defaults))
        if missing:
            raise ConfigError(
                f"every parameter of a space has a default, but {candidate.kind}.{missing[0]} has none",
                code="no_default", where=f"candidate {candidate.kind}", cure="add it to the candidate's defaults",
            )  # fmt: skip
        self.kind = candidate.kind
        self._candidate = candidate
        self._seed = seed
        self._study: Any = None
        self._asked = 0

    def ask(self) -> tuple[dict[str, Any], Any]:
        """The next parameters, and a ticket to tell their score by."""
        candidate = self._candidate
        self._asked += 1
        if self._asked == 1 or not candidate.space:
            return dict(candidate.defaults), None
        ticket = self._study.ask()
        proposed = {name: _suggest(ticket, name, spec) for name, spec in candidate.space.items()}
        return {**candidate.defaults, **proposed}, ticket

    def tell(self, ticket: Any, score: float) -> None:
        """How the parameters of a ticket did, higher is better."""
        if not self._candidate.space:
            return
        import optuna

        if ticket is None:
            self._study = self._open(score)
        elif math.isfinite(score):
            self._study.tell(ticket, score)
        else:
            self._study.tell(ticket, state=optuna.trial.TrialState.FAIL)

    def _open(self, score: float) -> Any:
        """A study that knows how the defaults did."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        candidate = self._candidate
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=4)
        )
        first = {name: candidate.defaults[name] for name in candidate.space}
        space = {name: _distribution(name, spec) for name, spec in candidate.space.items()}
        # Defaults may lie outside a space that was narrowed on purpose; TPE then starts without them.
        inside = all(space[name]._contains(space[name].to_internal_repr(first[name])) for name in first)
        if inside and math.isfinite(score):
            study.add_trial(optuna.trial.create_trial(params=first, distributions=space, value=score))
        return study


def _suggest(ticket: Any, name: str, spec: tuple[Any, ...]) -> Any:
    kind, *bounds = spec
    if kind == "choice":
        return ticket.suggest_categorical(name, *bounds)
    if kind == "int":
        return ticket.suggest_int(name, *bounds)
    return ticket.suggest_float(name, *bounds, log=kind == "log")


def _distribution(name: str, spec: tuple[Any, ...]) -> Any:
    from optuna import distributions

    match spec:
        case ("int", low, high):
            return distributions.IntDistribution(low, high)
        case ("float", low, high):
            return distributions.FloatDistribution(low, high)
        case ("log", low, high):
            return distributions.FloatDistribution(low, high, log=True)
        case ("choice", values):
            return distributions.CategoricalDistribution(values)
        case _:
            raise _bad_space(name, spec)


def _bad_space(name: str, spec: tuple[Any, ...]) -> ConfigError:
    return ConfigError(
        f"a space is ('int' | 'float' | 'log', low, high) or ('choice', values), but {name!r} has {spec!r}",
        code="bad_space", where="candidate", cure="write one of these forms",
    )  # fmt: skip
