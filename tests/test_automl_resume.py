"""A search that is killed, stopped or shared goes on from its journal and ends as if nothing had happened."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from esteira.automl.engine import search, work
from esteira.automl.kept import Predictions
from esteira.automl.splits import plan_folds
from esteira.automl.trial_log import TrialLog
from esteira.family import Candidate
from tests.test_automl import CANDIDATES, find, rows, tried, without_time


def test_a_killed_search_goes_on_from_its_journal_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, of: int, row: Any) -> None:
        if done == 7:
            raise Killed

    named = {"candidates": [Candidate("lightgbm"), Candidate("linear"), Candidate("constant")], "trials": 14}
    with pytest.raises(Killed):
        find(**named, storage=str(tmp_path / "killed.journal"), progress=kill)
    seen: list[int] = []
    resumed = find(
        **named,
        storage=str(tmp_path / "killed.journal"),
        progress=lambda done, _of, _row: seen.append(done),
    )
    whole = find(**named, storage=str(tmp_path / "whole.journal"))

    assert len(seen) <= 8
    assert without_time(whole) == without_time(resumed)
    assert whole.graph() == resumed.graph()
    assert whole.record == resumed.record
    assert without_time(whole) == without_time(find(**named))


def test_a_search_killed_between_any_two_words_to_its_storage_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    words, at = 0, 0

    def counted(word: Any) -> Any:
        def said(*arguments: Any, **named: Any) -> Any:
            nonlocal words
            words += 1
            if words == at:
                raise Killed
            return word(*arguments, **named)

        return said

    kinds = ("lightgbm", "xgboost", "linear", "constant")
    named: dict[str, Any] = {"candidates": [Candidate(name) for name in kinds], "trials": 20, "n": 200}
    whole = find(**named)
    for owner, name in ((TrialLog, "add"), (TrialLog, "claim"), (TrialLog, "_finish"), (Predictions, "put")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    # In the middle of asking for a wave, and in the middle of telling one.
    for at in (33, 61):
        words, journal = 0, str(tmp_path / f"{at}.journal")
        with pytest.raises(Killed):
            find(**named, storage=journal)
        resumed = find(**named, storage=journal)
        assert without_time(whole) == without_time(resumed)
        assert whole.graph() == resumed.graph()
        assert whole.record == resumed.record


def test_a_trial_for_which_there_was_no_time_is_made_by_a_later_run_with_more(tmp_path: Path) -> None:
    def slow() -> float:
        return next(ticking)

    ticking = itertools.count(0.0, 0.5)
    short = find(trials=8, seconds=8.0, clock=slow, storage=str(tmp_path / "study.journal"))
    cut = [row["number"] for row in tried(short) if "no time" in row["why"] or "more than is left" in row["why"]]
    longer = find(trials=8, seconds=1e6, storage=str(tmp_path / "study.journal"))

    assert cut
    assert list(range(1, 9)) == [row["number"] for row in tried(longer)]
    assert not [row["why"] for row in tried(longer) if "time" in row["why"] or "is left" in row["why"]]


@pytest.mark.parametrize("before", [{"trials": 30, "seconds": 1e6}, {"trials": 14}, {"trials": 1}], ids=str)
def test_so_many_trials_give_the_same_whatever_the_journal_knows(before: dict[str, Any], tmp_path: Path) -> None:
    bare = {"candidates": [Candidate("lightgbm"), Candidate("linear"), Candidate("constant")]}
    find(**bare, **before, storage=str(tmp_path / "study.journal"))

    found = find(**bare, trials=9, storage=str(tmp_path / "study.journal"))

    assert without_time(find(**bare, trials=9)) == without_time(found)


def test_workers_one_after_the_other_share_one_study(tmp_path: Path) -> None:
    x, y = rows("binary")
    named: dict[str, Any] = {
        "task": "binary", "categorical": [3], "candidates": CANDIDATES, "metric": "roc_auc", "trials": 20, "seed": 5,
        "folds": plan_folds(y, task="binary", seed=5, count=3, repeats=1), "storage": str(tmp_path / "study.journal"),
    }  # fmt: skip
    first: list[int] = []
    work(x, y, **named, progress=lambda _done, _of, row: first.append(row["number"]), stop=lambda: len(first) >= 4)
    second: list[int] = []
    work(x, y, **named, progress=lambda _done, _of, row: second.append(row["number"]))
    found = search(x, y, **named)

    assert first
    assert second
    assert list(range(1, 21)) == sorted(first + second) == [row["number"] for row in tried(found)]
    assert found.best["score"] > 0.8
