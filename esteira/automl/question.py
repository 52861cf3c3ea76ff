"""What a search is asked: the table, its folds, the score, who may enter, and how long it may take."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esteira.automl.ensemble import Limits
from esteira.automl.evaluate import Data
from esteira.automl.kept import search_name
from esteira.automl.scoring import Scorer
from esteira.automl.splits import Folds
from esteira.family import Candidate
from esteira.features.metrics import HIGHER_IS_BETTER

Progress = Callable[[int, int, Mapping[str, Any]], None]

LABELS_ONLY = frozenset({"accuracy", "precision", "recall", "f1", "f1_macro", "balanced_accuracy"})


@dataclass(frozen=True)
class Question:
    """See `esteira.automl.engine.search`.

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
        """The same for the same question only; how long it may go on is no part of it."""
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
        }
        return search_name(arrays, settings)
