"""One trial of a search: what was tried, how it did on each fold, and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from esteira.automl.cost import microseconds
from esteira.automl.evaluate import Fitted
from esteira.automl.kinds.base import Cost, Floats
from esteira.automl.study import Proposal

State = Literal["complete", "pruned", "failed"]


@dataclass(eq=False)
class Trial:
    """What is known of a trial so far.

    Attributes:
        params: what is fitted: as proposed, but with no more trees than an answer may visit.
        scores: of each fold that was scored, higher is better.
        predictions: of each fold's held rows; emptied for trials that will not be blended.
        fitted: models of folds that are still in memory.
        rounds: of each fold's fit, how many it kept.
        curve: (progress, loss) of the first fold's fit.
        sampled: score on the first fold of the model that was fitted on a sample of its rows; None where none was.
        spare: what that model gave, for a search that has no time for the whole fold.
        pooled: score of all folds' rows together; None where a fold alone has one.
    """

    proposal: Proposal
    params: Mapping[str, Any]
    scores: dict[int, float] = field(default_factory=dict)
    predictions: dict[int, Floats] = field(default_factory=dict)
    fitted: dict[int, Fitted] = field(default_factory=dict)
    rounds: dict[int, int | None] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    state: State = "complete"
    why: str = ""
    sampled: float | None = None
    spare: "Trial | None" = None
    pooled: float | None = None

    @property
    def score(self) -> float:
        """Mean over the folds on which it is defined, else that of their rows together; NaN where neither is."""
        defined = [score for score in self.scores.values() if np.isfinite(score)]
        return float(np.mean(defined)) if defined else float("nan") if self.pooled is None else self.pooled

    @property
    def deviation(self) -> float | None:
        """Standard deviation over folds; None with fewer than two."""
        defined = [score for score in self.scores.values() if np.isfinite(score)]
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else None

    def rank(self) -> tuple[int, float, float, int]:
        """Sorts best first: whole trials before cut ones, of equal scores the cheaper, then the earlier."""
        score = self.score
        group = {"complete": 0, "pruned": 1, "failed": 2}[self.state] if np.isfinite(score) else 3
        return group, -score if group < 3 else 0.0, microseconds(self.cost), self.proposal.number

    def row(self, sign: float) -> dict[str, Any]:
        """A row of the leaderboard; `sign` is -1 where the metric falls as models get better."""

        def told(value: float) -> float | None:
            return sign * value if np.isfinite(value) else None

        return {
            "number": self.proposal.number,
            "kind": self.proposal.kind,
            "params": dict(self.params),
            "recipe": self.proposal.recipe.named(),
            "origin": self.proposal.origin,
            "score": told(self.score),
            "deviation": self.deviation,
            "folds": [told(self.scores[fold]) for fold in sorted(self.scores)],
            "row_us": round(microseconds(self.cost), 2),
            "bytes": self.cost.bytes,
            "state": self.state,
            "why": self.why,
            "fit_seconds": round(self.seconds, 4),
        }
