"""What the arms of rollouts did, in the store: each writer's own row, a truth that counts once, and nobody else's rows."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esteira.errors import DataError, Refused
from esteira.rollout.sums import ArmName, Sums, labelled
from esteira.store import Store
from esteira.store import tables as t
from esteira.store.records import RolloutUnit
from esteira.store.rollouts import LABELS, Place, Rollouts, unit_key
from tests.rollout_states import answered
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

TEST, LINE = "tabular@shop-buys-7", "tabular@shop-buys"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOME = answered(0.004, confidence=0.75) + answered(0.02, error=True)


def unit(request_id: str = "r1", row: int = 0, **changed: object) -> RolloutUnit:
    values = {
        "test_id": TEST, "request_id": request_id, "row_index": row, "line": LINE, "unit": unit_key("ana"),
        "arm": "candidate", "stage": 0, "version": 2, "answer": {"prediction": "yes"}, "at": AT,
    }  # fmt: skip
    return RolloutUnit(**{**values, **changed})  # type: ignore[arg-type]


def right(answer: RolloutUnit) -> float:
    return 1.0


def test_sums_are_what_all_writers_counted_by_stage_and_arm(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.put_all(TEST, "worker-1", {(0, "candidate"): SOME})
    rollouts.put_all(TEST, "worker-2", {(0, "candidate"): SOME})
    rollouts.put_all(TEST, "worker-1", {(0, "control"): answered(0.001)})
    rollouts.put_all(TEST, "worker-1", {(1, "control"): answered(0.002)})
    rollouts.put_all("another", "worker-1", {(0, "candidate"): SOME})

    assert {
        0: {"candidate": SOME + SOME, "control": answered(0.001)},
        1: {"control": answered(0.002)},
    } == rollouts.sums(TEST)


def test_a_writer_writes_over_what_it_wrote_before(store: Store) -> None:
    rollouts = Rollouts(store)
    for count in (1, 2, 3):
        rollouts.put_all(TEST, "worker-1", {(0, "control"): Sums(served=count)})

    assert 3 == rollouts.sums(TEST)[0]["control"].served


def test_a_test_that_nobody_wrote_of_has_no_sums(store: Store) -> None:
    assert {} == Rollouts(store).sums("unheard of")


def test_no_writer_takes_the_name_of_the_labels(store: Store) -> None:
    with pytest.raises(ValueError, match="labels"):
        Rollouts(store).put_all(TEST, LABELS, {(0, "control"): SOME})


def test_several_sums_are_written_together_or_not_at_all(store: Store) -> None:
    rollouts = Rollouts(store)
    with pytest.raises(Exception, match=r"ck_arm|CHECK"):
        rollouts.put_all(TEST, "worker-1", {(0, "control"): SOME, (0, "nobody"): SOME})  # type: ignore[dict-item]

    assert {} == rollouts.sums(TEST)


def test_a_row_that_holds_no_sums_is_refused_by_name(sqlite_store: Store) -> None:
    rollouts = Rollouts(sqlite_store)
    rollouts.put_all(TEST, "worker-1", {(0, "control"): SOME})
    with sqlite_store.begin() as connection:
        connection.exec_driver_sql("""UPDATE rollout_sums SET sums = '{"served": 1}'""")

    with pytest.raises(Refused, match="worker-1") as caught:
        rollouts.sums(TEST)
    assert "bad_rollout_sums" == caught.value.code


# Labels


def test_a_label_counts_for_the_arm_and_stage_that_answered(store: Store) -> None:
    """H-41: accuracy only on units with a later label, attributed to the serving arm and stage."""
    rollouts = Rollouts(store)
    rollouts.note_units([unit("r1"), unit("r2", arm="control", version=1), unit("r3", stage=2)])
    rollouts.label(outcome=right, request_id="r1")
    rollouts.label(outcome=lambda _: 0.25, request_id="r2")
    rollouts.label(outcome=lambda _: 0.0, request_id="r3")

    assert {
        0: {"candidate": labelled(1.0), "control": labelled(0.25)},
        2: {"candidate": labelled(0.0)},
    } == rollouts.sums(TEST)


def test_a_label_counts_once(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit()])
    first = rollouts.label(outcome=right, request_id="r1", at=AT + timedelta(hours=1))
    second = rollouts.label(outcome=lambda _: 0.0, request_id="r1")

    assert first is not None
    assert second is not None
    assert (True, False) == (first.counted, second.counted)
    assert first.unit == second.unit
    assert (1.0, AT + timedelta(hours=1)) == (first.unit.outcome, first.unit.labelled_at)
    assert {0: {"candidate": labelled(1.0)}} == rollouts.sums(TEST)


def test_a_label_that_many_send_at_once_counts_once(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit(f"r{number}") for number in range(4)])
    counted = []

    def send() -> None:
        for number in range(4):
            found = rollouts.label(outcome=right, request_id=f"r{number}")
            assert found is not None
            counted.append(found.counted)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (4, 16) == (sum(counted), len(counted))
    assert {0: {"candidate": Sums(labelled=4, outcome=4.0, outcome_sq=4.0)}} == rollouts.sums(TEST)


def test_labels_and_writers_add_up(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit()])
    rollouts.label(outcome=right, request_id="r1")
    rollouts.put_all(TEST, "worker-1", {(0, "candidate"): SOME})

    assert SOME + labelled(1.0) == rollouts.sums(TEST)[0]["candidate"]


@pytest.mark.parametrize("outcome", [1.5, -0.1, float("nan"), float("inf"), None, "good"])
def test_an_outcome_out_of_range_changes_nothing(store: Store, outcome: object) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit()])

    with pytest.raises(DataError) as caught:
        rollouts.label(outcome=lambda _: outcome, request_id="r1")  # type: ignore[arg-type, return-value]
    assert "bad_outcome" == caught.value.code
    assert {} == rollouts.sums(TEST)
    assert rollouts.units(TEST)[0].outcome is None


def test_an_outcome_that_fails_changes_nothing(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit()])

    with pytest.raises(KeyError):
        rollouts.label(outcome=lambda found: found.answer["rank"], request_id="r1")
    assert {} == rollouts.sums(TEST)


def test_what_nobody_answered_has_no_label(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit("r1")])

    assert rollouts.label(outcome=right, request_id="r2") is None
    assert rollouts.label(outcome=right, request_id="r1", row=1) is None
    assert rollouts.label(outcome=right, request_id="r1", line="tabular@other") is None
    assert rollouts.label("another test", outcome=right, request_id="r1") is None
    assert {} == rollouts.sums(TEST)


def test_a_unit_s_label_is_about_its_newest_answer(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit("old"), unit("new", at=AT + timedelta(days=1)), unit("other", unit=unit_key("rui"))])
    found = rollouts.label(outcome=right, unit="ana")

    assert found is not None
    assert "new" == found.unit.request_id
    again = rollouts.label(outcome=right, unit="ana")
    assert again is not None
    assert not again.counted, "an older answer is not labelled in its place"


@pytest.mark.parametrize("known", [{}, {"request_id": "r1", "unit": "ana"}])
def test_a_label_names_its_request_or_its_unit(store: Store, known: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="request or by its unit"):
        Rollouts(store).label(outcome=right, **known)  # type: ignore[arg-type]


def test_an_answer_that_is_noted_again_stays_as_it_is(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units([unit()])
    rollouts.label(outcome=right, request_id="r1")
    rollouts.note_units([unit(answer={"prediction": "no"}), unit("r2")])

    kept = rollouts.units(TEST)
    assert [("r1", "yes", 1.0), ("r2", "yes", None)] == [
        (found.request_id, found.answer["prediction"], found.outcome) for found in kept
    ]


# Users of an experiment


def served(rollouts: Rollouts, *users: str, arm: ArmName = "candidate") -> None:
    """These users were served, and each of their requests is kept."""
    seen = {unit_key(user): users.count(user) for user in users}
    rollouts.put_all(TEST, f"worker-{arm}", {(0, arm): Sums(served=len(users))}, seen={(0, arm): seen})
    rollouts.note_units(unit(f"r{n}-{arm}", unit=unit_key(user), arm=arm) for n, user in enumerate(users))


def test_users_are_counted_with_what_was_served_and_each_once(store: Store) -> None:
    rollouts = Rollouts(store)
    written = Sums()
    for source, seen in (("one", {"ana": 3, "rui": 1}), ("two", {"ana": 2}), ("one", {"ana": 1, "eva": 4})):
        before = written if source == "one" else Sums()
        sums = replace(before, served=before.served + sum(seen.values()))
        found = rollouts.put_all(TEST, source, {(0, "control"): sums}, seen={(0, "control"): seen})
        written = found[0, "control"] if source == "one" else written

    both = rollouts.sums(TEST)[0]["control"]
    assert (11, 3, 6**2 + 1 + 4**2) == (both.served, both.units, both.units_sq)
    assert 11**2 / 53 == pytest.approx(both.served * both.weight)


def test_two_workers_who_see_the_same_users_at_once_count_each_once(store: Store) -> None:
    def work(source: str) -> None:
        sums = Sums()
        for _ in range(8):
            sums = replace(sums, served=sums.served + 3)
            sums = Rollouts(store).put_all(
                TEST, source, {(0, "control"): sums}, seen={(0, "control"): {"ana": 1, "rui": 2}}
            )[0, "control"]

    threads = [threading.Thread(target=work, args=(source,)) for source in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = Rollouts(store).sums(TEST)[0]["control"]
    assert (48, 2, 16**2 + 32**2) == (found.served, found.units, found.units_sq)


def test_what_was_written_and_is_written_again_changes_nothing(store: Store) -> None:
    """A commit may have gone through though its answer never arrived."""
    rollouts = Rollouts(store)
    place: Place = (0, "control")
    first = rollouts.put_all(TEST, "one", {place: Sums(served=8)}, seen={place: dict.fromkeys("abcdefgh", 1)})
    again = rollouts.put_all(TEST, "one", {place: Sums(served=8)}, seen={place: dict.fromkeys("abcdefgh", 1)})

    assert first == again
    found = rollouts.sums(TEST)[0]["control"]
    assert (8, 8, 8) == (found.served, found.units, found.units_sq)
    more = replace(again[place], served=9)
    grown = rollouts.put_all(TEST, "one", {place: more}, seen={place: {"a": 1}})[place]
    assert (9, 8, 7 + 2**2) == (grown.served, grown.units, grown.units_sq)


def test_a_user_counts_once_with_the_mean_of_its_outcomes(store: Store) -> None:
    rollouts = Rollouts(store)
    served(rollouts, "ana", "ana", "rui", "ana", "ana")
    for request, outcome in (("r0", 1.0), ("r2", 0.0), ("r1", 0.0), ("r1", 1.0), ("r4", 0.5)):
        rollouts.label(outcome=lambda _, value=outcome: value, request_id=f"{request}-candidate")  # type: ignore[misc]

    found = rollouts.sums(TEST)[0]["candidate"]
    assert (2, 2, 0.5, 0.25) == (found.units, found.labelled, found.outcome, found.outcome_sq)


def test_a_primary_is_measured_once_a_user(store: Store) -> None:
    """S-37, in part: two primaries, conversion and user satisfaction."""
    rollouts = Rollouts(store)
    served(rollouts, "ana", "ana", "rui")
    first = rollouts.measure(TEST, 1, 0.75, unit="ana")
    again = rollouts.measure(TEST, 1, 0.25, request_id="r0-candidate")
    rollouts.measure(TEST, 1, 1.0, request_id="r2-candidate")

    assert first is not None
    assert again is not None
    assert [(True, 0.75), (False, 0.75)] == [(one.counted, one.unit.outcome) for one in (first, again)]
    assert {1: {"candidate": labelled(0.75) + labelled(1.0)}} == {1: rollouts.sums(TEST)[1]}
    assert 0 == rollouts.sums(TEST)[0]["candidate"].labelled
    assert None is rollouts.measure(TEST, 1, 1.0, unit="nobody")
    rollouts.note_units([unit("before", unit=unit_key("zoe"))])
    assert None is rollouts.measure(TEST, 1, 1.0, unit="zoe"), "no user of an experiment"
    with pytest.raises(DataError) as refused:
        rollouts.measure(TEST, 1, 1.5, unit="ana")
    assert "bad_outcome" == refused.value.code


@pytest.mark.requirement("H-41")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log=st.lists(
        st.tuples(
            st.sampled_from(["candidate", "control"]),
            st.integers(0, 2),
            st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])),
            st.integers(0, 3),
        ),
        max_size=30,
    ),
)
def test_replaying_a_log_gives_the_same_aggregates(
    store: Store, log: list[tuple[ArmName, int, float | None, int]]
) -> None:
    """H-41's Done when: replaying a log gives the same aggregates.

    The log is answered by several writers, its truths come in another order; replayed in one go it gives the same sums.
    """
    rollouts = Rollouts(store)
    fresh = secrets.token_hex(8)
    live, replayed = f"live-{fresh}", f"replayed-{fresh}"
    written: dict[tuple[int, ArmName, int], Sums] = {}
    for number, (arm, stage, _, writer) in enumerate(log):
        key = (stage, arm, writer)
        written[key] = written.get(key, Sums()) + answered(0.001 * (number + 1), confidence=0.5)
        rollouts.put_all(live, f"worker-{writer}", {(stage, arm): written[key]})
        rollouts.note_units([unit(f"r{number}", test_id=live, arm=arm, stage=stage)])
    for number, (_, _, outcome, _) in reversed(list(enumerate(log))):
        for _ in range(2):  # a truth that is sent twice is one truth
            if outcome is not None:
                rollouts.label(live, outcome=lambda _, value=outcome: value, request_id=f"r{number}")

    again: dict[tuple[int, ArmName], Sums] = {}
    for number, (arm, stage, outcome, _) in enumerate(log):
        one = answered(0.001 * (number + 1), confidence=0.5)
        again[(stage, arm)] = again.get((stage, arm), Sums()) + one
        if outcome is not None:
            again[(stage, arm)] += labelled(outcome)
    rollouts.put_all(replayed, "replay", again)

    assert rollouts.sums(replayed) == rollouts.sums(live)


# What is kept, and for how long


def test_no_row_and_no_name_of_a_unit_is_kept(sqlite_store: Store, tmp_path: Path) -> None:
    rollouts = Rollouts(sqlite_store)
    rollouts.note_units([unit(unit=unit_key("ana.maria@example.org"))])
    sqlite_store.close()

    assert 16 == len(unit_key("ana.maria@example.org"))
    assert not any(b"ana.maria" in file.read_bytes() for file in tmp_path.glob("esteira.db*"))


def test_old_answers_go_and_sums_stay(store: Store) -> None:
    rollouts = Rollouts(store)
    sums: dict[Place, Sums] = {(0, "control"): SOME}
    for user, days in (("old", 0), ("new", 2)):
        at = AT + timedelta(days=days)
        sums = rollouts.put_all(TEST, "worker-1", sums, seen={(0, "control"): {user: 2}}, at=at)
        rollouts.note_units([unit(user, at=at)])

    assert 1 == rollouts.prune(AT + timedelta(days=1))
    assert ["new"] == [found.request_id for found in rollouts.units(TEST)]
    assert replace(SOME, units=2, units_sq=8) == rollouts.sums(TEST)[0]["control"]
    with store.read() as connection:
        mine = t.rollout_tallies.c.tenant_id == store.tenant
        assert ["new"] == list(connection.execute(sa.select(t.rollout_tallies.c.unit).where(mine)).scalars())


@pytest.mark.parametrize(
    "act",
    [
        lambda rollouts: rollouts.prune(AT + timedelta(days=9)),
        lambda rollouts: rollouts.label(outcome=right, request_id="r1"),
        lambda rollouts: rollouts.put_all(TEST, "worker-1", {(0, "control"): Sums()}),
    ],
    ids=["prune", "label", "put_all"],
)
def test_another_tenant_sees_and_changes_nothing(store: Store, act: Callable[[Rollouts], object]) -> None:
    mine = Rollouts(store)
    mine.put_all(TEST, "worker-1", {(0, "control"): SOME})
    mine.note_units([unit()])
    theirs = Rollouts(Store(store.engine, "somebody else"))

    assert ({}, []) == (theirs.sums(TEST), theirs.units(TEST))
    act(theirs)
    assert {0: {"control": SOME}} == mine.sums(TEST)
    assert [None] == [found.outcome for found in mine.units(TEST)]


def test_many_answers_are_noted_in_one_go(store: Store) -> None:
    rollouts = Rollouts(store)
    rollouts.note_units(unit("r1", row) for row in range(1200))
    rollouts.note_units([])

    assert list(range(1200)) == [found.row_index for found in rollouts.units(TEST)]
