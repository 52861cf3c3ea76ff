"""What the arms did reaches the store behind the requests' back: bounded, never twice, and what was written outlives the process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from esteira.errors import OutsideError
from esteira.rollout.sums import Sums, answered
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from serving.arms import Arms, Key
from tests.serving_fakes import until
from tests.stores import sqlite_store, sqlite_template

__all__ = ["sqlite_store", "sqlite_template"]

ROOT = Path(__file__).resolve().parents[1]
CANDIDATE = Key("shop-7", 0, "candidate")
ANSWER = {"prediction": "yes", "confidence": 0.75}


class Away:
    """A store that refuses while it is away, and counts how often it was asked."""

    def __init__(self, store: Store) -> None:
        self.rollouts = Rollouts(store)
        self.away = True
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        if self.away:
            raise OutsideError("the store answers", code="store_away")
        return self.rollouts


def test_counted_units_are_the_sums_of_single_ones(sqlite_store: Store) -> None:
    arms = Arms(lambda: Rollouts(sqlite_store))
    expected = Sums()
    for number in range(50):
        seconds, error = 0.0001 * 1.3**number, number % 7 == 0
        arms.count(CANDIDATE, [] if error else [ANSWER], seconds=seconds, error=error)
        expected += answered(seconds, confidence=0.75, error=error)

    found = arms.sums()[CANDIDATE]
    assert (expected.served, expected.errors, expected.sure) == (found.served, found.errors, found.sure)
    assert expected.latency == found.latency
    assert expected.confidence == pytest.approx(found.confidence)
    assert expected.confidence_sq == pytest.approx(found.confidence_sq)


@pytest.mark.parametrize("confidence", [None, float("nan"), 1.5, -0.5])
def test_what_is_no_confidence_is_not_counted_as_one(sqlite_store: Store, confidence: float | None) -> None:
    arms = Arms(lambda: Rollouts(sqlite_store))
    arms.count(CANDIDATE, [{"prediction": 1, "confidence": confidence}, {"prediction": 1}])

    assert Sums(served=1) == arms.sums()[CANDIDATE]


def test_what_was_counted_is_written_when_it_ends(sqlite_store: Store) -> None:
    arms = Arms(lambda: Rollouts(sqlite_store), period=3600)
    arms.start()
    arms.count(CANDIDATE, [ANSWER], seconds=0.001)
    arms.note(CANDIDATE, "tabular", 2, "ana", "r1", [ANSWER])
    arms.stop()

    rollouts = Rollouts(sqlite_store)
    assert {0: {"candidate": answered(0.001, confidence=0.75)}} == rollouts.sums("shop-7")
    assert [{"prediction": "yes"}] == [unit.answer for unit in rollouts.units("shop-7")]


def test_a_store_that_is_away_loses_and_doubles_no_sum(sqlite_store: Store) -> None:
    store = Away(sqlite_store)
    arms = Arms(store, period=0.01)
    arms.start()
    try:
        for _ in range(3):
            arms.count(CANDIDATE, [ANSWER], seconds=0.001)
            asked = store.asked
            assert until(lambda: store.asked > asked)  # noqa: B023 - asked within this turn
        assert not arms.flush(0.05)
        store.away = False
        assert arms.flush(20)
        assert 3 == store.rollouts.sums("shop-7")[0]["candidate"].served
        assert arms.failures >= 3
    finally:
        arms.stop()


def test_answers_that_find_no_room_are_dropped_and_told_and_sums_are_not(sqlite_store: Store) -> None:
    arms = Arms(Away(sqlite_store), capacity=10)
    for number in range(30):
        arms.count(CANDIDATE, [ANSWER])
        arms.note(CANDIDATE, "tabular", 2, "ana", f"r{number}", [ANSWER])

    assert (10, 20) == (arms.waiting, arms.dropped)
    assert 30 == arms.sums()[CANDIDATE].served


def test_what_waits_is_written_by_whoever_asks(sqlite_store: Store) -> None:
    arms = Arms(lambda: Rollouts(sqlite_store), period=3600)
    arms.start()
    try:
        for number in range(3):
            arms.note(CANDIDATE, "tabular", 2, "ana", f"r{number}", [ANSWER] * 400)
            assert arms.flush(20)
            assert (number + 1) * 400 == len(Rollouts(sqlite_store).units("shop-7"))
        assert 0 == arms.waiting
    finally:
        arms.stop()


def test_counting_while_it_is_written_loses_nothing(sqlite_store: Store) -> None:
    arms = Arms(lambda: Rollouts(sqlite_store), period=0.001)
    arms.start()
    stop = threading.Event()
    readers = threading.Thread(target=lambda: [arms.flush(1) for _ in iter(stop.is_set, True)])
    readers.start()
    try:
        for number in range(5000):
            arms.count(Key("shop-7", number % 3, "control"), [ANSWER], seconds=0.001)
    finally:
        stop.set()
        readers.join()
    assert arms.flush(20)
    arms.stop()

    sums = Rollouts(sqlite_store).sums("shop-7")
    assert 5000 == sum(found["control"].served for found in sums.values())
    assert 5000 == sum(sum(found["control"].latency.values()) for found in sums.values())


def test_two_workers_write_beside_each_other(sqlite_store: Store) -> None:
    workers = [Arms(lambda: Rollouts(sqlite_store), period=3600) for _ in range(2)]
    for worker in workers:
        worker.start()
        for _ in range(5):
            worker.count(CANDIDATE, [ANSWER])
        worker.stop()

    assert workers[0].source != workers[1].source
    assert 10 == Rollouts(sqlite_store).sums("shop-7")[0]["candidate"].served


KILLED = """
import sys, time
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from serving.arms import Arms, Key
arms = Arms(lambda: Rollouts(Store.open(sys.argv[1])), period=0.01)
arms.start()
for number in range(100_000):
    arms.count(Key("shop-7", 0, "control"), [], seconds=0.001)
    if number == 100:
        assert arms.flush(30)
        print("written", flush=True)
    if number > 100:
        time.sleep(0.0005)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_it_wrote_and_no_unit_twice(sqlite_store: Store, tmp_path: Path) -> None:
    """Killed in the middle of counting, again and again: each leaves one whole row, and rows only grow."""
    url = f"sqlite:///{tmp_path / 'esteira.db'}"
    seen = 0
    for killed in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        assert b"written\n" == child.stdout.readline()
        assert until(lambda: _served(sqlite_store) > seen + 101)  # noqa: B023 - asked within this turn
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = Rollouts(sqlite_store).sums("shop-7")[0]["control"]
        assert found.served == sum(found.latency.values()), f"kill {killed}"
        seen = found.served
    assert seen >= 300


def _served(store: Store) -> int:
    sums = Rollouts(store).sums("shop-7")
    return sums[0]["control"].served if sums else 0
