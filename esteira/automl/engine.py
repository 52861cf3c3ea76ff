"""The search's one door: arrays in, a fitted and drawn model out. It reads and writes no file but the storage it is given.

Bounded by trials, it looks at no clock: the same rows, seed and number give the same result to the last bit.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from esteira.automl import drive
from esteira.automl.course import Course
from esteira.automl.ensemble import Limits
from esteira.automl.evaluate import Data, Fits, quiet_and_alike
from esteira.automl.finish import Finish, Result
from esteira.automl.kinds import make
from esteira.automl.kinds.base import Features
from esteira.automl.prepare import Columns
from esteira.automl.question import Progress, Question
from esteira.automl.scoring import scorer
from esteira.automl.splits import Folds, plan_folds
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate

__all__ = ["Result", "search"]


def search(
    x: Features,
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
    names: Sequence[str] = (),
    texts: Sequence[Sequence[int]] = (),
    seconds: float | None = None,
    max_row_us: float = 100.0,
    max_bytes: int = 50_000_000,
    storage: str = "",
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Find the best of the candidates; see `esteira.family.Search`.

    Args:
        x: features (rows, features); NaN is missing, category columns hold codes. Not changed.
        y: class codes 0..k-1, or values.
        task: binary, multiclass or regression.
        categorical: indexes of the category columns.
        candidates: kinds, and spaces where the family declares them; kinds without defaults start from the portfolio.
        metric: a score of `esteira.features.metrics`.
        trials: how many are tried at most, at least 1.
        seed: of folds, proposals and fits.
        classes: number of classes, when y may lack the last ones.
        folds: who is held back when; by default `plan_folds`.
        progress: called after every trial with (done, trials, leaderboard row with `best`, `seconds` and `left`).
        names: of the features.
        texts: positions of the word features of each text column.
        seconds: wall time of search, refits and export together; None bounds by trials only. A search that is bounded by
            time promises no equal results.
        max_row_us: microseconds that one answer may cost, by the cost model.
        max_bytes: of the graph.
        storage: where the study lives (see `Study.open`); in memory by default.
        stop: asked between waves; True ends the search with the best so far.
        clock: seconds; only looked at when `seconds` is given, and for what is told of times.

    Raises:
        ConfigError: no trials or candidates, an unknown metric, kind or parameter, a budget that is not above 0, limits that no
            model keeps.
        DataError: fewer than 4 rows, nothing could be fitted, or the metric is undefined on all held-back rows.
    """
    question = _question(
        x, y, task, categorical, candidates, metric, trials, seed, classes, folds, progress, names, texts, seconds,
        max_row_us, max_bytes, stop, clock,
    )  # fmt: skip
    with quiet_and_alike():
        course = Course(question, Fits(question.data, question.folds))
        drive.run(course, storage)
        drive.deepen(course)
        return Finish(question, course).result()


def work(x: Features, y: NDArray[Any], *, storage: str, **words: Any) -> None:
    """Make trials of a study that others work on too, and fit no final model; `search` on the same storage does that.

    Args:
        x, y, words: as for `search`, and the same for all workers: the study is found by them.
        storage: where the study lives, see `Study.open`.
    """
    defaults: dict[str, Any] = {
        "classes": None, "folds": None, "progress": None, "names": (), "texts": (), "seconds": None,
        "max_row_us": 100.0, "max_bytes": 50_000_000, "stop": lambda: False, "clock": time.monotonic,
    }  # fmt: skip
    question = _question(x, y, **(defaults | words))
    with quiet_and_alike():
        drive.run(Course(question, Fits(question.data, question.folds)), storage)


def _question(
    x: Features,
    y: NDArray[Any],
    task: str,
    categorical: Sequence[int],
    candidates: Sequence[Candidate],
    metric: str,
    trials: int,
    seed: int,
    classes: int | None,
    folds: Folds | None,
    progress: Progress | None,
    names: Sequence[str],
    texts: Sequence[Sequence[int]],
    seconds: float | None,
    max_row_us: float,
    max_bytes: int,
    stop: Callable[[], bool],
    clock: Callable[[], float],
) -> Question:
    began = clock()
    if trials < 1 or not candidates:
        raise ConfigError(
            f"a search needs a trial and a candidate, but got {trials} trials and {len(candidates)} candidates",
            code="no_trials", where="train.trials", cure="set train.trials to 1 or more",
        )  # fmt: skip
    if seconds is not None and not seconds > 0:
        raise ConfigError(
            f"a budget is a number of seconds above 0, but got {seconds}",
            code="no_budget", where="--budget", cure="give some seconds, for example 60",
        )  # fmt: skip
    if len(y) < 4:
        raise DataError(
            f"a search needs 4 training rows or more, but got {len(y)}",
            code="too_few_rows", where="train", cure="give more rows",
        )  # fmt: skip
    k = None if task == "regression" else max(2, classes or 0, int(y.max()) + 1)
    for candidate in candidates:
        # A wrong word is said before anything is fitted, not as a failed trial after it.
        make(candidate.kind, candidate.defaults, task=task, classes=k, categorical=(), seed=seed)
    score = scorer(metric, task, k)
    given = Columns(
        tuple(names) or tuple(f"f{position}" for position in range(x.shape[1])),
        tuple(categorical),
        tuple(map(tuple, texts)),
    )
    data = Data(x, y, task, k, given, seed)
    folds = folds or plan_folds(y, task=task, seed=seed)
    question = Question(
        data,
        folds,
        score,
        metric,
        candidates,
        trials,
        seconds,
        Limits(max_row_us, max_bytes),
        progress,
        stop,
        clock,
        began,
    )
    return question
