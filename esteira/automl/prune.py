"""Which trials may stop early: a boosting that falls behind while it is fitted, a trial whose first fold is hopeless."""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from esteira.automl.cost import microseconds
from esteira.automl.course import Course
from esteira.automl.evaluate import Pruned, Watch
from esteira.automl.trial import Trial

BEHIND_FIRST, BEHIND_AGAIN = 0.15, 0.03
"""How far behind the best a trial may be on the first fold, as a share of what the best gains over the constant there; the
first of its kind may be further behind, the less so the more rows and seconds its other folds take, and all may be where few
rows were held (by 1 / sqrt(rows))."""
MANY_ROWS = 20_000
DEAR = 0.2
"""Of the time that is left: a trial whose other folds take so much must be as good as the best."""
SETTLING, CURVES, ABOVE = 4.0, 4, 1.02
"""From which progress (rounds times learning rate) on a proposal is compared with earlier trials of its kind, with how many at
least, and how far above the median of their losses it is cut."""
LEAST = 0.03
"""Of a budget in seconds: what a fit may take in any case, when it is begun."""


def watch(course: Course, behind: int = 0) -> Callable[[Trial, int], Watch]:
    """What looks on while a boosting is fitted: the clock, and on the first fold the curves of earlier trials.

    Args:
        behind: only of trials that are so many numbers before: these were told, whether the search was killed meanwhile or not.
    """
    until = math.inf
    if course.question.seconds is not None:
        until = course.question.clock() + max(course.left_for_trials(), LEAST * course.question.seconds)
    curves: dict[str, list[tuple[int, tuple[tuple[float, float], ...]]]] = {}
    for trial in course.done:
        if trial.state == "complete" and trial.curve:
            curves.setdefault(trial.proposal.kind, []).append((trial.proposal.number, trial.curve))

    def made(trial: Trial, fold: int) -> Watch:
        # A sample's curve is no match for those of whole folds.
        compared = fold == 0 and trial.proposal.origin == "tpe" and (not course.large or trial.sampled is not None)
        last = trial.proposal.number - behind
        known = [curve for number, curve in curves.get(trial.proposal.kind, ()) if number <= last] if compared else []

        def watch(progress: float, loss: float) -> bool:
            losses = [_at(curve, progress) for curve in known] if progress >= SETTLING else []
            past = [passed for passed in losses if passed is not None]
            if len(past) >= CURVES and loss > ABOVE * float(np.median(past)):
                raise Pruned(f"its loss {loss:.4g} is above the median of earlier trials at progress {progress:.1f}")
            return until == math.inf or (course.question.clock() < until and not course.question.stop())

        return watch

    return made


def hopeless(course: Course, trial: Trial, others: Sequence[Trial] = (), *, sample: bool = False) -> str:
    """Why a trial that was scored on the first fold need not be scored on the others; empty when it should.

    Args:
        sample: judge by the scores of models that were fitted on a sample of the fold, each beside its like.
    """

    def first(one: Trial) -> float:
        score = one.sampled if sample else one.scores.get(0)
        return float("nan") if score is None else score

    if 0 not in trial.scores:
        return trial.why
    if not course.question.limits.allow(trial.cost):
        return (
            f"one answer costs {microseconds(trial.cost):.0f} us and {trial.cost.bytes:,} bytes, more than is allowed"
        )
    mine = first(trial)
    before = [other for other in [*course.done, *others] if other is not trial]
    known = [other for other in before if np.isfinite(first(other))]
    trivial = [first(other) for other in known if other.proposal.kind == "constant"]
    if trial.proposal.kind == "constant" or not np.isfinite(mine) or not trivial or len(known) < 2:
        return ""
    best = max(first(other) for other in known)
    gain = best - trivial[0]
    # By number, not by what has been told: a wave of which a killed search told a part is judged as it was.
    number, name = trial.proposal.number, trial.proposal.kind
    new = all(
        other.proposal.kind != name or other.state != "complete" or other.proposal.number > number for other in before
    )
    if trial.proposal.origin == "recipe" and len(course.question.folds.folds[0].fit) >= MANY_ROWS:
        # On many rows one fold tells whether a made feature helps.
        base = [first(other) for other in before if other is course.recipe_base]
        if base and mine <= base[0]:
            return "no better than without it on the first fold"
    new = new or trial.proposal.origin == "recipe"
    behind = _behind(course, trial, new)
    wanted = trivial[0] + (1 - behind) * gain
    if gain > 0 and mine < wanted:
        share = (mine - trivial[0]) / gain
        return f"gains {share:.0%} of what the best gains over the constant on the first fold"
    return ""


def _behind(course: Course, trial: Trial, new: bool) -> float:
    rows = len(course.question.folds.folds[0].fit)
    most = max(BEHIND_AGAIN, BEHIND_FIRST * (1 - rows / MANY_ROWS)) if new else BEHIND_AGAIN
    behind = most + 1 / math.sqrt(len(course.question.folds.folds[0].held))
    if course.question.seconds is None:
        return behind
    seconds = course.expected(trial.proposal.kind) * (course.dealing - 1) / (os.cpu_count() or 1)
    return behind * max(0.0, 1 - seconds / (DEAR * max(1e-9, course.left_for_trials())))


def _at(curve: Sequence[tuple[float, float]], progress: float) -> float | None:
    """The loss of a curve at some progress; its best when it had ended by then."""
    passed = [loss for at, loss in curve if at <= progress]
    if not passed:
        return None
    return passed[-1] if curve[-1][0] >= progress else min(passed)
