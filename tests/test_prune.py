"""Who may stop early: a trial by its first fold, a boosting by its curve, and who is scored on more repeats of the folds."""

from typing import Any

import pytest

from esteira.automl import drive, plan_folds, prune
from esteira.automl.course import Course
from esteira.automl.evaluate import Fits, Pruned
from esteira.automl.kinds.base import Cost
from esteira.automl.prepare import Recipe
from esteira.automl.question import ask
from esteira.automl.study import Proposal
from esteira.automl.trial import Trial
from esteira.family import Candidate
from tests.test_automl import find, rows, tried


def course_of(**changed: Any) -> Course:
    x, y = rows("binary")
    words: dict[str, Any] = {
        "task": "binary", "categorical": [3], "candidates": [Candidate("linear")], "metric": "roc_auc", "trials": 10, "seed": 5,
        "folds": plan_folds(y, task="binary", seed=5, repeats=1),
    }  # fmt: skip
    question = ask(x, y, **words | changed)
    return Course(question, Fits(question.data, question.folds))


def trial(number: int, kind: str, score: float, origin: str = "portfolio", **known: Any) -> Trial:
    return Trial(Proposal(number, kind, {}, Recipe(), origin), {}, scores={0: score}, **known)


def reached(*more: Trial) -> list[Trial]:
    """The constant, and one that gains 0.4 over it."""
    return [trial(1, "constant", 0.5), trial(2, "lightgbm", 0.9), *more]


def test_a_trial_far_behind_the_best_on_the_first_fold_is_not_scored_on_the_others() -> None:
    """Of 240 rows, 60 held: the first of its kind may lack 0.148 + 1/sqrt(60) of the gain, a later one 0.03 + 1/sqrt(60)."""
    course = course_of()
    course.done = reached()

    assert "gains 50% of what the best gains" in prune.hopeless(course, trial(3, "linear", 0.7))
    assert "" == prune.hopeless(course, trial(3, "linear", 0.82))
    assert "" == prune.hopeless(course, trial(3, "lightgbm", 0.85))
    assert "gains 80%" in prune.hopeless(course, trial(3, "lightgbm", 0.82))
    assert "" == prune.hopeless(course, trial(3, "constant", 0.5))


def test_nothing_is_hopeless_before_there_is_something_to_compare_with() -> None:
    course = course_of()

    assert "" == prune.hopeless(course, trial(1, "linear", 0.1))
    course.done = [trial(1, "constant", 0.5)]
    assert "" == prune.hopeless(course, trial(2, "linear", 0.1))


def test_what_an_answer_may_not_cost_is_cut_with_the_cost_in_words() -> None:
    course = course_of(max_row_us=50.0)

    why = prune.hopeless(course, trial(1, "lightgbm", 0.9, cost=Cost(visits=10**6)))

    assert "one answer costs" in why
    assert "more than is allowed" in why


def test_where_the_other_folds_would_take_the_time_that_is_left_only_the_best_goes_on() -> None:
    course = course_of(seconds=10.0, clock=lambda: 0.0)
    course.done = reached()
    course.fold_seconds = {"linear": 100.0, "xgboost": 1e-3}

    assert "gains" in prune.hopeless(course, trial(3, "linear", 0.89))
    assert "" == prune.hopeless(course, trial(3, "linear", 0.91))
    assert "" == prune.hopeless(course, trial(3, "xgboost", 0.89))


def test_a_boosting_that_is_above_the_median_of_earlier_curves_is_ended() -> None:
    course = course_of()
    curve = ((1.0, 0.6), (5.0, 0.4), (9.0, 0.3))
    course.done = [trial(number, "lightgbm", 0.9, curve=curve) for number in range(1, 5)]
    watch = prune.watch(course)(trial(5, "lightgbm", 0.0, "tpe"), 0)

    assert watch(2.0, 9.0)  # too early to compare
    assert watch(5.0, 0.4)
    with pytest.raises(Pruned, match=r"above the median of earlier trials at progress 6\.0"):
        watch(6.0, 0.41)
    for uncompared in (trial(5, "lightgbm", 0.0), trial(5, "xgboost", 0.0, "tpe")):
        assert prune.watch(course)(uncompared, 0)(6.0, 9.0)
    assert prune.watch(course)(trial(5, "lightgbm", 0.0, "tpe"), 1)(6.0, 9.0)
    assert prune.watch(course, behind=4)(trial(5, "lightgbm", 0.0, "tpe"), 0)(6.0, 9.0)


def test_a_fit_under_a_clock_is_ended_by_it_and_by_a_person() -> None:
    now, asked = [0.0], [False]
    course = course_of(seconds=10.0, clock=lambda: now[0], stop=lambda: asked[0])
    watch = prune.watch(course)(trial(1, "lightgbm", 0.0), 1)

    assert watch(1.0, 0.5)
    asked[0] = True
    assert not watch(1.0, 0.5)
    asked[0], now[0] = False, 9.5
    assert not watch(1.0, 0.5)


def test_the_best_of_a_long_search_of_few_rows_are_scored_on_every_repeat_of_the_folds() -> None:
    _, y = rows("binary", 120)
    folds = plan_folds(y, task="binary", seed=5, count=3)
    found = find(n=120, trials=drive.FEW * drive.DEEPENED, folds=folds)

    scored = [len(row["folds"]) for row in found.leaderboard if row["state"] == "complete" and row["kind"] != "blend"]
    assert 3 == folds.repeats
    assert drive.DEEPENED == scored.count(9)
    assert {3, 9} == set(scored)
    quick = find(n=120, trials=drive.FEW * drive.DEEPENED - 1, folds=folds)
    assert {3} == {len(row["folds"]) for row in tried(quick) if row["state"] == "complete"}
