"""The course of a search: what was tried and how it did, and what comes next. It decides; it does not wait."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from esteira.automl import schedule
from esteira.automl.cost import microseconds
from esteira.automl.evaluate import Fits, Outcome, Watch
from esteira.automl.kept import Predictions
from esteira.automl.kinds import kind
from esteira.automl.kinds.base import Cost
from esteira.automl.prepare import Recipe
from esteira.automl.question import Question
from esteira.automl.study import Proposal, Study
from esteira.automl.trial import Trial
from esteira.family import Candidate

RECIPES_AFTER = schedule.FIRST_ENTRIES
"""Trials after which made features are tried, on the boosting that leads by then: whole waves, so that none of them is half
told when a search is killed."""
SAMPLE_ROWS = 50_000
"""A trial on a larger fold is first tried on so many of its rows, and goes on only when it does well there."""
KEPT = 15
"""Trials whose predictions and models stay in memory, beside the best of each kind."""
MODEL_BYTES, PREDICTION_BYTES = 150_000_000, 150_000_000
RESERVED = 0.1
"""Of a budget in seconds: for blending, refits, export and its check."""
# Fold fits of kinds that have not been timed yet, in units of what LightGBM takes.
GUESSED = {
    "constant": 0.01,
    "linear": 0.5,
    "nearest_neighbours": 0.5,
    "lightgbm": 1.0,
    "xgboost": 2.0,
    "extra_trees": 2.0,
}


@dataclass(eq=False)
class Course:
    """The search so far. Every door of it is called by one thread, but for `fit`, which notes nothing.

    Attributes:
        done: trials that were told, in the order of telling.
        skipped: kind -> why it was not tried.
        kept_recipe: made features that helped, with which TPE proposes.
        recipe_base: the trial that made features were tried on.
        fold_seconds: kind -> seconds of a fit on a fold, the slow ones remembered.
        predictions: where those of trials are kept; None where they are not.
        shared: whether other processes, or later ones, make trials of the same study.
        asked: the highest number of a proposal so far.
        later: entries of the portfolio that wait until it is decided which made features are tried.
        undecided: whether that is still to be decided.
    """

    question: Question
    fits: Fits
    done: list[Trial] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    kept_recipe: Recipe = field(default_factory=Recipe)
    recipe_base: Trial | None = None
    fold_seconds: dict[str, float] = field(default_factory=dict)
    predictions: Predictions | None = None
    shared: bool = False
    asked: int = 0
    later: list[schedule.Entry] = field(default_factory=list)
    undecided: bool = False
    study: Study = field(init=False)

    def open(self, storage: str) -> None:
        """Open the study, take over what it knows, queue what is tried first."""
        rows, width = self.question.data.x.shape
        able: list[Candidate] = []
        for candidate in self.question.candidates:
            why = kind(candidate.kind).refuses(self.question.data.task, rows, width, self.question.data.classes)
            if why and len(self.question.candidates) > 1:
                self.skipped[candidate.kind] = why
            else:
                able.append(candidate)
        spaces = schedule.spaces(able, self.question.data.task, rows, width)
        fixed = {
            candidate.kind: schedule.standing(candidate.kind, spaces.get(candidate.kind, {}), width)
            | dict(candidate.defaults)
            for candidate in able
        }
        entries = schedule.first_entries(
            able,
            self.question.data.task,
            self.question.data.columns,
            self.question.data.classes,
            trials=self.question.trials,
            rows=rows,
        )
        name = self.question.name() if storage else "search"
        self.shared = bool(storage)
        self.predictions = Predictions.beside(storage, name)
        self.study = Study.open(storage, name=name, seed=self.question.data.seed, spaces=spaces, fixed=fixed)
        self.catch_up()
        bare = any(not candidate.defaults for candidate in able)
        self.undecided = bare
        self.later = entries[schedule.FIRST_ENTRIES :] if bare else []
        # What was queued before is not queued again.
        for entry in entries[: len(entries) - len(self.later)]:
            self.study.queue(*entry, "portfolio")

    @property
    def dealing(self) -> int:
        """Folds of one dealing, on which every trial is scored."""
        return len(self.question.folds.folds) // self.question.folds.repeats

    @property
    def large(self) -> bool:
        """Whether a trial is first tried on a sample of the first fold."""
        return len(self.question.folds.folds[0].fit) > SAMPLE_ROWS

    def catch_up(self) -> None:
        """Take over what an earlier process told, or another worker meanwhile."""
        known = {trial.proposal.number for trial in self.done}
        for told in self.study.told():
            if told.proposal.number in known or told.proposal.number > self.question.trials:
                continue
            notes = told.notes
            trial = Trial(
                told.proposal,
                self._fitted_with(told.proposal),
                scores={int(fold): score for fold, score in notes["scores"].items()},
                rounds={int(fold): rounds for fold, rounds in notes["rounds"].items()},
                curve=tuple((at, loss) for at, loss in notes["curve"]),
                cost=Cost(**notes["cost"]),
                seconds=told.seconds,
                state=notes["state"],
                why=told.why,
                sampled=notes["sampled"],
                pooled=notes["pooled"],
            )
            if trial.scores:
                self._took(trial.proposal.kind, trial.seconds / len(trial.scores))
            if self.predictions is not None and trial.scores:
                names = {fold: f"fold{fold}" for fold in trial.scores}
                kept = self.predictions.get(told.proposal.number, *names.values())
                trial.predictions = {} if kept is None else {fold: kept[name] for fold, name in names.items()}
            self.done.append(trial)
            self._forget()

    def left_for_trials(self) -> float:
        """Seconds left for trials; what comes after them is reserved."""
        if self.question.seconds is None:
            return math.inf
        leading = sorted(self.done, key=Trial.rank)[:3]
        refits = sum(1.3 * self.fold_seconds.get(trial.proposal.kind, 0.0) for trial in leading)
        reserved = max(RESERVED * self.question.seconds, min(0.3 * self.question.seconds, refits))
        return self.question.left - reserved

    def next(self, count: int, kinds: Sequence[str] | None = None) -> list[Trial]:
        """Trials to begin, at most so many: what waits, and what TPE makes of the kinds that lead."""
        if self.shared:
            self.catch_up()
        # What a killed search had begun comes first: what follows from a wave is decided when all of it is told.
        if not self.study.left_behind():
            self._queue_recipes()
        wanted = self.leading() if kinds is None else kinds
        proposals = self.study.ask(count, kinds=wanted, recipe=self.kept_recipe, limit=self.question.trials)
        self.asked = max([self.asked, *(proposal.number for proposal in proposals)])
        return [Trial(proposal, self._fitted_with(proposal)) for proposal in proposals]

    def ready(self) -> bool:
        """Whether what comes next is known: after the first entries it is what these showed to be worth making."""
        if self.shared and self.undecided:
            # Another worker may have told some of these, or died at them.
            if self.study.left_behind():
                return True
            self.catch_up()
        early = sum(trial.proposal.number <= RECIPES_AFTER for trial in self.done)
        return not self.undecided or early >= RECIPES_AFTER or self.asked < RECIPES_AFTER

    def _took(self, name: str, seconds: float) -> None:
        self.fold_seconds[name] = max(seconds, 0.7 * self.fold_seconds.get(name, 0.0))

    @property
    def timed(self) -> bool:
        """Whether it is known how long fits take, the trivial model's aside."""
        return len(self.done) >= 2 or any(name != "constant" for name in self.fold_seconds)

    def expected(self, name: str) -> float:
        """Seconds of a fit of this kind on a fold."""
        if name in self.fold_seconds:
            return self.fold_seconds[name]
        unit = self.fold_seconds.get("lightgbm")
        if unit is None and kind(name).rounds_name is None:
            # A boosting can be stopped by the clock, a forest not: what is known of others must do.
            unit = self.fold_seconds.get("linear", 0.0) / GUESSED["linear"]
        return GUESSED.get(name, 4.0) * (unit or 0.0)

    def leading(self) -> list[str]:
        """The kinds that lead: of the rest, proposals are wasted."""
        best: dict[str, Trial] = {}
        for trial in sorted(self.done, key=Trial.rank):
            if trial.state == "complete" and trial.proposal.kind != "constant":
                best.setdefault(trial.proposal.kind, trial)
        return list(best)[:3]

    def _queue_recipes(self) -> None:
        """Once some have been tried: made features on the boosting that leads, one part at a time, then what helped."""
        offered = [c for c in self.question.candidates if not c.defaults]
        # The first ones by number, whatever else has been told: a search that was killed goes on from the same base.
        early = [trial for trial in self.done if trial.proposal.number <= RECIPES_AFTER]
        if not offered or len(early) < RECIPES_AFTER:
            return
        if self.undecided:
            boosted = [
                trial
                for trial in sorted(early, key=Trial.rank)
                if trial.proposal.kind in schedule.BOOSTING
                and trial.state == "complete"
                and trial.proposal.recipe == Recipe()
            ]
            if boosted:
                self.recipe_base = boosted[0]
                for recipe in schedule.recipes(self.question.data.columns):
                    self.study.queue(boosted[0].proposal.kind, boosted[0].proposal.params, recipe, "recipe")
            for entry in self.later:
                self.study.queue(*entry, "portfolio")
            # A search that goes on may know of these already, so what they showed is looked at now.
            self.later, self.undecided = [], False
        base = self.recipe_base
        if base is None:
            return
        tried = [t for t in self.done if t.proposal.origin == "recipe" and t.state == "complete"]
        parts = [
            trial.proposal.recipe
            for trial in tried
            if trial.proposal.params == base.proposal.params and schedule.helps(trial.scores, base.scores)
        ]
        whole = schedule.joined(parts)
        if whole != self.kept_recipe:
            self.kept_recipe = whole
            if len(parts) > 1 and not any(trial.proposal.recipe == whole for trial in self.done):
                self.study.queue(base.proposal.kind, base.proposal.params, whole, "recipe")

    def fit(
        self,
        job: tuple[Trial, int],
        watch: Callable[[Trial, int], Watch | None] = lambda _trial, _fold: None,
        most_rows: int | None = None,
    ) -> Outcome:
        """Fit a trial on a fold; nothing is noted."""
        trial, fold = job
        name, recipe = trial.proposal.kind, trial.proposal.recipe
        return self.fits.fold(recipe, name, trial.params, fold, most_rows=most_rows, watch=watch(trial, fold))

    def _fitted_with(self, proposal: Proposal) -> Mapping[str, Any]:
        rows, row_us = len(self.question.folds.folds[0].fit), self.question.limits.row_us
        return schedule.capped(proposal.kind, proposal.params, row_us, rows, self.question.data.classes)

    def note(self, trial: Trial, fold: int, outcome: Outcome, share: float = 1.0) -> None:
        """Keep what a fit on a fold gave.

        Args:
            share: of the fold's rows, what was fitted on.
        """
        trial.seconds += outcome.seconds
        name = trial.proposal.kind
        if outcome.fitted is None:
            trial.state = "pruned" if outcome.pruned else "failed"
            trial.why = outcome.why
            if outcome.seconds > self.expected(name):
                self._took(name, outcome.seconds)
            return
        self._took(name, outcome.seconds / share)
        held = self.question.data.y[self.question.folds.folds[fold].held]
        trial.scores[fold] = self.question.score(held, outcome.predicted)
        trial.predictions[fold] = outcome.predicted
        trial.fitted[fold] = outcome.fitted
        trial.rounds[fold] = outcome.fitted.estimator.rounds
        cost = outcome.fitted.cost()
        if microseconds(cost) >= microseconds(trial.cost):
            trial.cost = cost
        if fold == 0:
            trial.curve = outcome.curve
        if not np.isfinite(trial.score) and set(range(self.dealing)) <= set(trial.predictions):
            trial.pooled = self._pooled(trial)

    def _pooled(self, trial: Trial) -> float | None:
        """The score of all folds' rows together, where no fold alone has one: a class of so few rows that folds lack it."""
        folds = range(self.dealing)
        held = np.concatenate([self.question.folds.folds[fold].held for fold in folds])
        score = self.question.score(
            self.question.data.y[held], np.concatenate([trial.predictions[fold] for fold in folds])
        )
        return float(score) if np.isfinite(score) else None

    def tell(self, trial: Trial) -> None:
        """A trial is done, for better or worse: tell the study and whoever watches."""
        whole = trial.state == "complete" and np.isfinite(trial.score)
        # What follows from a trial is kept before the trial is: killed in between, it is made again and leads to the same.
        if self.predictions is not None and trial.predictions:
            arrays = {f"fold{fold}": predicted for fold, predicted in trial.predictions.items()}
            self.predictions.put(trial.proposal.number, arrays)
        self._speed_up(trial)
        self.study.tell(
            trial.proposal,
            score=trial.score if whole else None,
            folds=tuple(trial.scores[fold] for fold in sorted(trial.scores)),
            seconds=trial.seconds,
            why=trial.why,
            notes={
                "scores": {str(fold): score for fold, score in trial.scores.items()},
                "rounds": {str(fold): rounds for fold, rounds in trial.rounds.items()},
                "curve": trial.curve,
                "cost": asdict(trial.cost),
                "state": trial.state,
                "sampled": trial.sampled,
                "pooled": trial.pooled,
            },
        )
        self._end(trial)

    def put_off(self, trial: Trial, why: str) -> None:
        """No time for a trial: it is not told, so that a later run with more seconds makes it."""
        trial.state, trial.why = "pruned", why
        spare = trial.spare
        if not trial.scores and spare is not None:
            trial.scores, trial.predictions, trial.fitted = spare.scores, spare.predictions, spare.fitted
            trial.rounds, trial.cost = spare.rounds, spare.cost
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        trial.spare = None
        self.done.append(trial)
        self._forget()
        if self.question.progress is not None:
            best = min(self.done, key=Trial.rank)
            passed = self.question.passed
            row = trial.row(self.question.sign) | {
                "best": best.row(self.question.sign)["score"],
                "seconds": passed,
                "left": None if self.question.seconds is None else max(0.0, self.question.seconds - passed),
            }
            self.question.progress(len(self.done), self.question.trials, row)

    def _speed_up(self, trial: Trial) -> None:
        """A boosting that had not settled when its rounds were used up is tried again with twice the learning rate."""
        name, counts = trial.proposal.kind, kind(trial.proposal.kind).rounds_name
        if name not in schedule.BOOSTING or trial.state != "complete" or trial.proposal.origin != "portfolio":
            return
        wanted = trial.params.get(counts or "")
        bare = any(c.kind == name and not c.defaults for c in self.question.candidates)
        if bare and wanted and trial.rounds and all((rounds or 0) >= 0.98 * wanted for rounds in trial.rounds.values()):
            again = schedule.faster(trial.proposal.params)
            if again is not None:
                self.study.queue(name, again, trial.proposal.recipe, "portfolio")

    def _forget(self) -> None:
        """Drop the predictions and models of trials that will not be blended."""
        kinds, weight, held = set(), 0, 0
        for place, trial in enumerate(sorted(self.done, key=Trial.rank)):
            held += sum(predicted.nbytes for predicted in trial.predictions.values())
            wanted = trial.state != "failed" and (place < KEPT or trial.proposal.kind not in kinds)
            wanted = wanted and (place == 0 or held <= PREDICTION_BYTES)
            kinds.add(trial.proposal.kind)
            more = sum(fitted.nbytes for fitted in trial.fitted.values())
            if not wanted:
                trial.predictions = {}
            if not wanted or weight + more > MODEL_BYTES:
                trial.fitted, more = {}, 0
            weight += more
