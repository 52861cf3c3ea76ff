"""What the arms did reaches the store behind the requests' back: bounded, never twice, and what was written outlives the process."""

import os
import random
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira.errors import OutsideError
from esteira.rollout.ab import ratio_p
from esteira.rollout.router import routed
from esteira.rollout.sums import Sums
from esteira.store import Store
from esteira.store.rollouts import KEPT, Rollouts
from serving.arms import Arms, Key, _units
from tests.rollout_states import answered
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


@pytest.mark.parametrize("confidence", [None, float("nan"), 1.5, -0.5, "high", [0.5], True])
def test_what_is_no_confidence_is_not_counted_as_one(sqlite_store: Store, confidence: Any) -> None:
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


USERS = [f"{number:016x}" for number in range(7)]


def test_a_user_of_an_experiment_counts_once_in_all_workers_and_after_a_restart(sqlite_store: Store) -> None:
    """S-37: sticky hash assignment by user, so that the check of the sample ratio counts users."""
    asked = [0] * len(USERS)
    for start in range(3):  # the last of them are started again
        workers = [Arms(lambda: Rollouts(sqlite_store), period=3600) for _ in range(2)]
        for number, worker in enumerate(workers):
            worker.start()
            for turn in range(20):
                user = (3 * start + 5 * number + turn * turn) % len(USERS)
                asked[user] += 1
                worker.count(CANDIDATE, [ANSWER], error=turn % 3 == 0, user=USERS[user])
                if turn == 10:
                    assert worker.flush(20)
            worker.stop()
    sums = Rollouts(sqlite_store).sums("shop-7")[0]["candidate"]

    assert (120, 42) == (sums.served, sums.errors)
    assert (sum(count > 0 for count in asked), sum(count**2 for count in asked)) == (sums.units, sums.units_sq)


def test_users_wait_for_a_store_that_is_away_and_count_once(sqlite_store: Store) -> None:
    store = Away(sqlite_store)
    arms = Arms(store, period=0.01)
    arms.start()
    try:
        for user in (*USERS, *USERS):
            arms.count(CANDIDATE, [ANSWER], user=user)
        assert until(lambda: store.asked > 1)
        assert not arms._users, "they are added up meanwhile, so that few wait"
        arms.count(CANDIDATE, [ANSWER], user=USERS[0])
        store.away = False
        assert arms.flush(20)
        found = store.rollouts.sums("shop-7")[0]["candidate"]
        assert (15, 7, 6 * 2**2 + 3**2) == (found.served, found.units, found.units_sq)
    finally:
        arms.stop()


def test_users_count_once_though_the_answer_of_the_store_never_arrived(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all, lost = Rollouts.put_all, []

    def broken_off(self: Rollouts, *args: Any, **options: Any) -> Any:
        found = put_all(self, *args, **options)
        if len(lost) < 2:
            lost.append(found)
            arms.count(CANDIDATE, [ANSWER], user=USERS[0])  # more comes before it is tried again
            raise OutsideError("the store answers", code="store_away")
        return found

    monkeypatch.setattr(Rollouts, "put_all", broken_off)
    arms = Arms(lambda: Rollouts(sqlite_store), period=0.01)
    for user in USERS:
        arms.count(CANDIDATE, [ANSWER], user=user)
    arms.start()
    try:
        assert until(lambda: len(lost) == 2)
        assert arms.flush(20)
        found = Rollouts(sqlite_store).sums("shop-7")[0]["candidate"]
        assert (9, 7, 6 + 3**2) == (found.served, found.units, found.units_sq)
    finally:
        arms.stop()


def test_two_equal_arms_whose_users_ask_often_are_not_taken_for_a_broken_split(sqlite_store: Store) -> None:
    """Users who ask 1 to 60 times; by their requests two of three such experiments were stopped."""
    chance, users, requests = random.Random(3), 0, 0
    arms = Arms(lambda: Rollouts(sqlite_store), period=3600)
    arms.start()
    try:
        for test in range(25):
            for number in range(300):
                key = Key(f"shop-{test}", 0, "candidate" if routed("s", f"shop-{test}", 50, str(number)) else "control")
                for _ in range(min(60, int(chance.paretovariate(0.8)))):
                    arms.count(key, [], seconds=0.001, user=str(number))
            assert arms.flush(30)
        for test in range(25):
            sums = Rollouts(sqlite_store).sums(f"shop-{test}")[0]
            users += ratio_p(sums["candidate"].people, sums["control"].people) < 0.001
            requests += ratio_p(sums["candidate"].served, sums["control"].served) < 0.001
    finally:
        arms.stop()
    assert 0 == users
    assert requests > 10, "else this traffic shows nothing"


def test_old_answers_go_though_nothing_is_counted_any_more(sqlite_store: Store) -> None:
    """After the last rollout of a line, too: predictions and request ids are kept for 30 days."""
    rollouts = Rollouts(sqlite_store)
    arms = Arms(lambda: rollouts, period=0.01, tidy=0.05)
    arms.note(CANDIDATE, "tabular", 2, "ana", "new", [ANSWER])
    old = arms._notes[0]._replace(request_id="old", at=datetime.now(UTC) - KEPT - timedelta(hours=1))
    arms._write(rollouts)
    rollouts.note_units(_units(old))
    assert {"old", "new"} == {unit.request_id for unit in rollouts.units("shop-7")}
    arms.start()
    try:
        assert until(lambda: ["new"] == [unit.request_id for unit in rollouts.units("shop-7")])
    finally:
        arms.stop()


KILLED = """
import sys, time
from esteira.store import Store
from esteira.store.rollouts import Rollouts
from serving.arms import Arms, Key
arms = Arms(lambda: Rollouts(Store.open(sys.argv[1])), period=0.01)
arms.start()
for number in range(100_000):
    arms.count(Key("shop-7", 0, "control"), [], seconds=0.001, user=str(number % 50))
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
        with sqlite_store.read() as connection:
            asked = [row.served for row in connection.exec_driver_sql("SELECT served FROM rollout_tallies")]
        assert (50, found.served) == (found.units, sum(asked)), "users and sums are written together"
        assert sum(one**2 for one in asked) == found.units_sq
        seen = found.served
    assert seen >= 300


def _served(store: Store) -> int:
    sums = Rollouts(store).sums("shop-7")
    return sums[0]["control"].served if sums else 0
