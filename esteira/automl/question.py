"""What a search is asked: the table, its folds, the score, who may enter, and how long it may take."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from esteira.automl.ensemble import Limits
from esteira.automl.evaluate import Data
from esteira.automl.kept import search_name
from esteira.automl.kinds import make
from esteira.automl.kinds.base import Features
from esteira.automl.prepare import Columns
from esteira.automl.scoring import Scorer, scorer
from esteira.automl.splits import Folds, plan_folds
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate
from esteira.features.metrics import HIGHER_IS_BETTER

Progress = Callable[[int, int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Question:
    """See `ask`.

    Attributes:
        score: of the metric, higher is better.
        began: what `clock` said at the start.
    """

    data: Data
    folds: Folds
    score: Scorer
    metric: str
    candidates: Sequence[Candidate]
    trials: int
    seconds: float | None
    limits: Limits
    progress: Progress | None
    stop: Callable[[], bool]
    clock: Callable[[], float]
    began: float

    @property
    def sign(self) -> float:
        """1, or -1 where the metric falls as models get better."""
        return 1.0 if HIGHER_IS_BETTER[self.metric] else -1.0

    @property
    def left(self) -> float:
        """Seconds left of the whole budget."""
        return math.inf if self.seconds is None else self.seconds - self.passed

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    def name(self) -> str:
        """The same for the same question only; how many trials or seconds it may take is no part of it."""
        arrays = {"x": self.data.x, "y": self.data.y}
        arrays |= {f"held{number}": fold.held for number, fold in enumerate(self.folds.folds)}
        settings = {
            "task": self.data.task,
            "classes": self.data.classes,
            "columns": asdict(self.data.columns),
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "metric": self.metric,
            "seed": self.data.seed,
            "limits": asdict(self.limits),
            # What a clock has cut may not answer where no clock decides, and a single trial is another first one.
            "timed": self.seconds is not None,
            "single": self.trials == 1,
        }
        return search_name(arrays, settings)


def ask(
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
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Question:
    """Put a question that a search can answer; what is wrong with it is said before anything is fitted.

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
        stop: asked between waves; True ends the search with the best so far.
        clock: seconds; only looked at when `seconds` is given, and for what is told of times.

    Raises:
        ConfigError: no trials or candidates, an unknown metric, kind or parameter, a budget that is not above 0.
        DataError: fewer than 4 rows.
    """
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
    data = data_of(x, y, task=task, classes=k, names=names, categorical=categorical, texts=texts, seed=seed)
    folds = folds or plan_folds(y, task=task, seed=seed)
    return Question(
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


def data_of(
    x: Features,
    y: NDArray[Any],
    *,
    task: str,
    classes: int | None,
    names: Sequence[str],
    categorical: Sequence[int],
    texts: Sequence[Sequence[int]],
    seed: int,
    **_others: Any,
) -> Data:
    """One table, ready for a search; see `ask`, of whose other words it needs none."""
    given = tuple(names) or tuple(f"f{position}" for position in range(x.shape[1]))
    columns = Columns(given, tuple(categorical), tuple(map(tuple, texts)))
    return Data(x, y, task, classes, columns, seed)


def of_kinds(offered: Sequence[Candidate], kinds: Sequence[str], *, where: str) -> list[Candidate]:
    """The candidates of the wanted kinds, in the order that they are offered in; all when none is named.

    Args:
        where: the wish stands, for people.

    Raises:
        ConfigError: a kind that is not offered.
    """
    names = [candidate.kind for candidate in offered]
    for kind in kinds:
        if kind not in names:
            raise ConfigError(
                f"a kind of estimator is one of {', '.join(names)}, but got {kind!r}",
                code="unknown_kind", where=where, cure="take some of these, or leave it out",
            )  # fmt: skip
    return [candidate for candidate in offered if not kinds or candidate.kind in kinds]
