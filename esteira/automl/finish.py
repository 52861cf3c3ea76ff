"""From trials to the model that answers: blend the best, bag or refit, calibrate, draw, and check what was drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl import calibrate, threshold
from esteira.automl.cost import microseconds
from esteira.automl.course import KEPT, Course
from esteira.automl.ensemble import Limits, choose, mean
from esteira.automl.evaluate import quiet_and_alike, side_by_side
from esteira.automl.final import TOLERANCE, Member, Model, bags, difference, fit_into, shown, trying_rows
from esteira.automl.importance import permutation
from esteira.automl.kinds.base import Features, Floats
from esteira.automl.prepare import Recipe
from esteira.automl.question import Question
from esteira.automl.scoring import scorer
from esteira.automl.study import Proposal
from esteira.automl.trial import Trial
from esteira.errors import ConfigError, DataError

CHECKED_ROWS = 200
"""Rows on which the drawn model is held to the native one."""
PLANNED = 0.9
"""Of the limits: what is planned for, because a refit on all rows costs a little more than the fold's model."""
ENOUGH = 4
"""Trials that were scored on more repeats of the folds, beside which the others are left out of the blend."""
CLEARLY = 0.05
"""Of what the best whole trial gains over the constant: by so much must a trial that was cut off be ahead to answer."""
CHOSEN_ROWS = 50_000
"""Rows by which members are chosen; of more the same number, evenly spread: each of some hundred blends is scored on them."""
SHUFFLED = 20_000
"""Rows times features that are looked at for importances, about."""


@dataclass(frozen=True)
class Result:
    """What a search found; satisfies `esteira.family.Searched`.

    Attributes:
        best: `{"kind", "params", "score"}` of what answers: the winner's kind, or `blend`.
        leaderboard: one dict a trial, best first (see `Trial.row`), `weight` of those that are blended; and one for the blend.
            `fit_seconds` is a wall time, the only entry that differs between equal searches.
        out_of_fold: predictions of the blend on the training rows by models that did not see them, calibrated by maps that
            did not either; `(rows, classes)` or `(rows,)`; NaN where no fold held a row.
        metric: name of the score.
        uncalibrated: `out_of_fold` before calibration; None where nothing was calibrated.
        threshold: probability of the second class from which it is answered; None for the larger one.
        record: JSON: members and their forms, cost of a row, bytes, folds, trials, recipe, calibration, importances and the
            catalogue of made features.
    """

    best: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]
    out_of_fold: NDArray[np.float64]
    metric: str
    uncalibrated: NDArray[np.float64] | None
    threshold: float | None
    record: Mapping[str, Any]
    model: Model = field(repr=False)
    content: bytes = field(repr=False)

    def predict(self, x: Features) -> Floats:
        """Natively: probabilities `(rows, classes)`, or values `(rows,)` for regression."""
        with quiet_and_alike():
            return self.model.predict(x)

    def graph(self) -> bytes:
        """The same as an ONNX graph: input `x`, output `y` (double)."""
        return self.content


@dataclass(eq=False)
class Finish:
    """The end of a search."""

    question: Question
    course: Course

    def result(self) -> Result:
        """Blend the best of what can be drawn exactly.

        Raises:
            ConfigError: no model keeps the limits.
            DataError: no trial was fitted, or none has a score.
        """
        usable, whole = self._usable()
        while usable:
            chosen, blended = self._blend(usable, whole)
            model = self._model(chosen)
            bad = self._inexact(model)
            if not bad:
                return self._result(model, blended)
            for trial in bad:
                trial.state = "failed"
            usable = [trial for trial in usable if trial not in bad]
        reasons = [*(trial.why for trial in self.course.done), *self.course.skipped.values()]
        why = next(filter(None, reasons), "")
        if not any(trial.scores for trial in self.course.done):
            raise DataError(
                f"one trial at least must be fitted, but none of {len(self.course.done)} was; {why}",
                code="no_model", where="train", cure="see to the reason, or let more kinds of estimators enter",
            )  # fmt: skip
        raise DataError(
            f"{self.question.metric} must be defined on held-back rows, but it was on none of {len(self.question.folds.folds)} folds"
            + (f"; {why}" if why else ""),
            code="score_undefined", where="train", cure="give more rows of every class, or choose another metric",
        )  # fmt: skip

    @property
    def _tight(self) -> Limits:
        """What may be planned for: a refit on all rows costs a little more than the fold's model that it is planned by."""
        return Limits(self.question.limits.row_us * PLANNED, int(self.question.limits.bytes * PLANNED))

    def _usable(self) -> tuple[list[Trial], bool]:
        """Trials that can be blended, best first, and whether by all folds; else by the first one, on which more were scored."""
        ranked = sorted(self.course.done, key=Trial.rank)
        scored = [trial for trial in ranked if trial.state == "complete" and np.isfinite(trial.score)]
        # A resumed search may have scores of which the predictions are lost; they are made again where they lead.
        for trial in scored[:KEPT]:
            missing = [fold for fold in range(self.course.dealing) if fold not in trial.predictions]
            if missing and self.course.expected(trial.proposal.kind) * len(missing) < self.course.left_for_trials():
                self._fit_again(trial, missing)
        whole = [trial for trial in scored if self._dealings(trial)]
        partly = [trial for trial in ranked if np.isfinite(trial.scores.get(0, np.nan)) and 0 in trial.predictions]
        partly.sort(key=lambda trial: (-trial.scores[0], trial.proposal.number))
        if any(trial.proposal.kind != "constant" for trial in whole) and not self._overtaken(whole, partly):
            return whole, True
        return partly, all(self._dealings(trial) for trial in partly)

    def _overtaken(self, whole: Sequence[Trial], partly: Sequence[Trial]) -> bool:
        """Whether a trial that there was no time to score on all folds is clearly better on the first than all that were."""
        firsts = [trial.scores[0] for trial in whole if np.isfinite(trial.scores.get(0, np.nan))]
        trivial = [trial.scores[0] for trial in partly if trial.proposal.kind == "constant"]
        if self.question.seconds is None or not (firsts and trivial and partly):
            return False
        return partly[0].scores[0] > max(firsts) + CLEARLY * (max(firsts) - trivial[0])

    def _dealings(self, trial: Trial) -> int:
        """How many whole dealings of the folds a trial has predictions of, from the first on."""
        of = self.course.dealing
        for dealing in range(self.question.folds.repeats):
            if not set(range(dealing * of, (dealing + 1) * of)) <= set(trial.predictions):
                return dealing
        return self.question.folds.repeats

    def _fit_again(self, trial: Trial, folds: Sequence[int]) -> None:
        for fold, outcome in zip(folds, side_by_side(lambda fold: self.course.fit((trial, fold)), folds), strict=True):
            if outcome.fitted is None:
                raise DataError(
                    f"a fit gives the same twice, but trial {trial.proposal.number} now says: {outcome.why}",
                    code="fit_failed", where=f"train, {trial.proposal.kind}", cure="run again; if it stays, report it",
                )  # fmt: skip
            trial.predictions[fold], trial.fitted[fold] = outcome.predicted, outcome.fitted

    def _out_of_fold(self, trial: Trial, folds: Sequence[int]) -> Floats:
        """Predictions of all rows by models that did not see them; the mean where a row was held more than once."""
        total, count = (
            np.zeros_like(self.question.data.empty(len(self.question.data.y))),
            np.zeros(len(self.question.data.y)),
        )
        for fold in folds:
            held = self.question.folds.folds[fold].held
            total[held] += trial.predictions[fold]
            count[held] += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total / (count if total.ndim == 1 else count[:, None]))

    def _blend(self, usable: Sequence[Trial], whole: bool) -> tuple[list[tuple[Trial, float]], Floats]:
        """Members and weights, and the blend's out-of-fold predictions."""
        # Those that were scored on more dealings are known better, so others stay out where there are a few of them.
        deepest = max(self._dealings(trial) for trial in usable)
        deep = [trial for trial in usable if self._dealings(trial) == deepest]
        usable = deep if whole and len(deep) >= min(ENOUGH, len(usable)) else usable
        depth = min(self._dealings(trial) for trial in usable) if whole else 0
        shared = range(depth * self.course.dealing) if depth else range(1)
        kinds: set[str] = set()
        members: list[Trial] = []
        for trial in usable:
            if len(members) < KEPT or trial.proposal.kind not in kinds:
                members.append(trial)
            kinds.add(trial.proposal.kind)
        limits = self._tight
        able = [trial for trial in members if trial.proposal.kind != "constant" and limits.allow(trial.cost)]
        members = able or [trial for trial in members if trial.proposal.kind == "constant"] or members
        predictions = [self._out_of_fold(trial, shared) for trial in members]
        seen = np.flatnonzero(_seen(predictions[0]))
        seen = seen[np.linspace(0, len(seen) - 1, min(len(seen), CHOSEN_ROWS)).astype(np.intp)]
        truth = self.question.data.y[seen]
        # Labels only jump where a probability crosses another; the log loss leads to the same place with less noise.
        jumps = self.question.metric in threshold.LABEL_METRICS
        smooth = (
            scorer("log_loss", self.question.data.task, self.question.data.classes) if jumps else self.question.score
        )
        weights = choose(
            [p[seen] for p in predictions], [trial.cost for trial in members], lambda p: smooth(truth, p), limits
        )
        blended = mean([predictions[i] for i in weights], list(weights.values()))
        alone = self.question.score(truth, predictions[0][seen])
        if jumps and limits.allow(members[0].cost) and self.question.score(truth, blended[seen]) < alone:
            weights, blended = {0: 1.0}, predictions[0]
        return [(members[i], weight) for i, weight in weights.items()], blended

    def _model(self, chosen: Sequence[tuple[Trial, float]]) -> Model:
        """Bags where an answer may cost that much, refits elsewhere, within the limits."""
        # A bag is of the folds of one dealing; further dealings only make scores steadier.
        count = self.course.dealing
        bagged: set[int] = set()
        # Under a clock there is no time to fit anew what was dropped to save memory.
        folds = set(range(count))
        able = [
            index
            for index, (trial, _) in enumerate(chosen)
            if folds <= set(trial.scores) and (self.question.seconds is None or folds <= set(trial.fitted))
        ]
        if self.question.folds.kind != "time" and count > 1:
            costs = {index: trial.cost for index, (trial, _) in enumerate(chosen)}
            weights = {index: weight for index, (_, weight) in enumerate(chosen)}
            bagged = bags(costs, weights, count, self._tight, able)
        members: dict[int, Member] = {}
        for index in sorted(bagged):
            trial, weight = chosen[index]
            self._fit_again(trial, [fold for fold in range(count) if fold not in trial.fitted])
            members[index] = Member(trial.proposal.number, weight, tuple(trial.fitted[fold] for fold in range(count)))
        refit = [index for index in range(len(chosen)) if index not in bagged]
        members |= dict(zip(refit, side_by_side(lambda index: self._single(*chosen[index]), refit), strict=True))
        by_number = {trial.proposal.number: trial for trial, _ in chosen}
        whole = fit_into(
            [members[index] for index in sorted(members)],
            self.question.limits,
            lambda member: self._single(by_number[member.number], member.weight),
        )
        model = Model(whole, self.question.data.x.shape[1], self.question.data.classes)
        if not self.question.limits.allow(model.cost()) and len(whole) == 1:
            # On all rows it has become larger than was planned for; the model of a fold is as large as was planned.
            only = whole[0]
            model = Model((self._of_a_fold(by_number[only.number], only.weight),), model.features, model.classes)
        if not self.question.limits.allow(model.cost()):
            cost, limits = model.cost(), self.question.limits
            raise ConfigError(
                f"one answer must cost {limits.row_us:g} us and {limits.bytes:,} bytes at most, but the cheapest model found "
                f"costs {microseconds(cost):.1f} us and {cost.bytes:,} bytes",
                code="limit_too_low", where="max_row_us, max_bytes", cure="allow more, or let more kinds of estimators enter",
            )  # fmt: skip
        return model

    def _single(self, trial: Trial, weight: float) -> Member:
        """Fitted on all rows; when no time is left for that, the model of the first fold."""
        proposal = trial.proposal
        if trial.fitted and 1.3 * self.course.expected(proposal.kind) > self.question.left:
            return self._of_a_fold(trial, weight)
        rounds = [trial.rounds[fold] for fold in sorted(trial.rounds)]
        try:
            fitted = self.course.fits.whole(proposal.recipe, proposal.kind, trial.params, rounds)
        except Exception as error:  # noqa: BLE001  what fitted on the folds and not on all rows still answers
            trial.why = f"not fitted on all rows: {type(error).__name__}: {str(error)[:200]}"
            return self._of_a_fold(trial, weight)
        return Member(proposal.number, weight, (fitted,))

    def _of_a_fold(self, trial: Trial, weight: float) -> Member:
        if not trial.fitted:
            self._fit_again(trial, [0])
        return Member(trial.proposal.number, weight, (trial.fitted[min(trial.fitted)],))

    def _rows(self) -> Features:
        data = self.question.data
        return trying_rows(data.x, data.columns.categorical, CHECKED_ROWS, data.seed)

    def _exact(self, model: Model) -> bool:
        return difference(model.graph(), model.predict, self._rows()) <= TOLERANCE

    def _inexact(self, model: Model) -> list[Trial]:
        """Members whose graph does not answer as they do, on real rows and on rows with gaps and unseen categories."""
        if self._exact(model):
            return []
        rows = self._rows()
        by_number = {trial.proposal.number: trial for trial in self.course.done}
        bad = []
        for member in model.members:
            alone = Model((Member(member.number, 1.0, member.fitted),), model.features, model.classes)
            found = difference(alone.graph(), alone.predict, rows)
            if found > TOLERANCE:
                trial = by_number[member.number]
                trial.why = f"its graph differs from the model by {found:.1e}, more than {TOLERANCE:.0e}"
                bad.append(trial)
        return bad or [by_number[member.number] for member in model.members]

    def _result(self, model: Model, blended: Floats) -> Result:
        data, codes = self.question.data, self.question.data.y.astype(np.int64) if self.question.data.classes else None
        cutoff, before = None, None
        if codes is not None:
            keeps_order = self.question.metric in {"roc_auc", "average_precision"}
            calibration = calibrate.choose(blended, codes, seed=data.seed, keeps_order=keeps_order)
            if calibration is not None:
                calibrated = Model(model.members, model.features, model.classes, calibration)
                if self.question.limits.allow(calibrated.cost()) and self._exact(calibrated):
                    model, before, blended = calibrated, blended, calibration.cross_fitted
            if data.classes == 2:
                cutoff = threshold.choose(self.question.metric, blended, codes)
        content = model.graph()
        board = self._board(model, content, blended, cutoff)
        winner = next(row for row in board if row["weight"])
        importances, catalogue = self._importances(model)
        record = shown(model, self.question.limits) | {
            "bytes": len(content),
            "folds": {
                "kind": self.question.folds.kind,
                "count": len(self.question.folds.folds),
                "repeats": self.question.folds.repeats,
            },
            "trials": len(self.course.done),
            "recipe": self.course.kept_recipe.named(),
            "importances": importances,
            "catalogue": catalogue,
        }
        return Result(
            best={"kind": winner["kind"], "params": winner["params"], "score": winner["score"]},
            leaderboard=board,
            out_of_fold=blended,
            metric=self.question.metric,
            uncalibrated=before,
            threshold=cutoff,
            record=record,
            model=model,
            content=content,
        )

    def _board(self, model: Model, content: bytes, blended: Floats, cutoff: float | None) -> list[dict[str, Any]]:
        """What answers first, then the trials, then the kinds that were not tried."""
        chosen = {member.number: member for member in model.members}
        board = [trial.row(self.question.sign) for trial in sorted(self.course.done, key=Trial.rank)]
        for row in board:
            member = chosen.get(row["number"])
            row |= {"weight": member.weight if member else 0.0, "form": member.form if member else ""}
        if len(chosen) > 1:
            seen, scores = _seen(blended), []
            # As it answers, by its threshold.
            judge = scorer(self.question.metric, self.question.data.task, self.question.data.classes, threshold=cutoff)
            for part in self.question.folds.folds:
                held = part.held[seen[part.held]]
                if len(held):
                    scores.append(judge(self.question.data.y[held], blended[held]))
            last = max(row["number"] for row in board)
            whole = Trial(
                Proposal(last + 1, "blend", {}, Recipe(), "blend"),
                {"members": shown(model, self.question.limits)["members"]},
                scores=dict(enumerate(scores)),
                cost=model.cost(),
                pooled=judge(self.question.data.y[seen], blended[seen]),
            )
            board.insert(0, whole.row(self.question.sign) | {"bytes": len(content), "weight": 1.0, "form": "blend"})
        for name, why in self.course.skipped.items():
            refused = Trial(Proposal(0, name, {}, Recipe(), ""), {}, state="failed", why=why).row(self.question.sign)
            board.append(refused | {"number": None, "state": "refused", "weight": 0.0, "form": ""})
        return board

    def _importances(self, model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the heaviest member depends on, given and made features alike, on rows that its model did not see."""
        heaviest = max(model.members, key=lambda member: (member.weight, -member.number))
        trial = next(trial for trial in self.course.done if trial.proposal.number == heaviest.number)
        if 0 not in trial.fitted:
            if self.question.seconds is not None:
                return [], []
            self._fit_again(trial, [0])
        fitted, held = trial.fitted[0], self.question.folds.folds[0].held
        names = fitted.preparation.columns.names
        most = max(50, min(500, SHUFFLED // max(1, len(names))))
        rows = held[np.linspace(0, len(held) - 1, min(most, len(held))).astype(np.intp)]
        told = permutation(
            fitted.estimator.predict,
            fitted.preparation.apply(self.question.data.x[rows]),
            self.question.data.y[rows],
            self.question.score,
            {name: [position] for position, name in enumerate(names)},
            seed=self.question.data.seed,
        )
        value = {entry["column"]: entry["value"] for entry in told}
        made = [dict(entry) | {"importance": value.get(entry["name"])} for entry in fitted.preparation.catalogue]
        return told, sorted(made, key=lambda entry: -(entry["importance"] or 0.0))


def _seen(predictions: Floats) -> NDArray[np.bool_]:
    """Rows that some fold held."""
    finite = np.isfinite(predictions)
    return np.asarray(finite if predictions.ndim == 1 else finite.all(axis=1))
