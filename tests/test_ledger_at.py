"""The ledger answers for any second which version of a line took which share of its traffic."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esteira import ledger
from esteira.cli import main
from esteira.errors import ConfigError, Refused
from esteira.ledger import Serving
from esteira.ledger.chain import LEAP
from esteira.settings import load_settings
from esteira.store import Store
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

LINE = "tabular@shop"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def bundle(version: int) -> str:
    """A bundle_id of its own for each version."""
    return f"{version:064x}"


def champion(
    store: Store, version: int, at: datetime, *, line: str = LINE, former: int | None = None, kind: str = "alias"
) -> ledger.Entry:
    """A move of the champion, as the registry writes it."""
    moves: dict[str, Any] = {"champion": [former, version], "production": [former, version]}
    said = {"alias": "champion", "from": former, "to": version, "reason": f"to {version}", "moves": moves}
    return ledger.append(
        store, kind=kind, line=line, version=version, bundle_id=bundle(version), actor="ana", evidence=said, now=at
    )


def traffic(
    store: Store, shares: dict[int, float], at: datetime, *, line: str = LINE, candidate: int = 2
) -> ledger.Entry:
    """A change of shares, as the rollout engine writes it."""
    said = {
        "test_id": "t1", "stage": 0, "from": 0.0, "to": 100 * shares.get(candidate, 0.0), "action": "advance",
        "reason": "stable", "findings": [],
        "shares": [{"version": v, "bundle_id": bundle(v), "share": share} for v, share in shares.items()],
    }  # fmt: skip
    return ledger.append(
        store, kind="traffic", line=line, version=candidate, bundle_id=bundle(candidate), actor="engine", evidence=said,
        now=at,
    )  # fmt: skip


def shares(store: Store, at: datetime, line: str | None = LINE) -> dict[int, float]:
    """version -> share at a time."""
    return {one.version: one.share for one in ledger.at(store, at, line)}


class TestAt:
    def test_a_whole_rollout_can_be_asked_for_second_by_second(self, store: Store) -> None:
        hour = timedelta(hours=1)
        champion(store, 1, NOON)
        traffic(store, {1: 0.9, 2: 0.1}, NOON + hour)
        traffic(store, {1: 0.5, 2: 0.5}, NOON + 2 * hour)
        champion(store, 2, NOON + 3 * hour, former=1)
        champion(store, 1, NOON + 4 * hour, former=2, kind="rollback")
        second = timedelta(seconds=1)

        assert {} == shares(store, NOON - second)
        assert {1: 1.0} == shares(store, NOON)
        assert {1: 1.0} == shares(store, NOON + hour - second)
        assert {1: 0.9, 2: 0.1} == shares(store, NOON + hour)
        assert {1: 0.5, 2: 0.5} == shares(store, NOON + 3 * hour - second)
        assert {2: 1.0} == shares(store, NOON + 3 * hour)
        assert {1: 1.0} == shares(store, NOON + 4 * hour)
        assert [Serving(LINE, 1, bundle(1), 0.9), Serving(LINE, 2, bundle(2), 0.1)] == ledger.at(store, NOON + hour)

    def test_a_rollout_that_went_back_gives_the_champion_everything(self, store: Store) -> None:
        champion(store, 1, NOON)
        traffic(store, {1: 0.9, 2: 0.1}, NOON + timedelta(hours=1))
        traffic(store, {1: 1.0, 2: 0.0}, NOON + timedelta(hours=2))

        assert {1: 1.0} == shares(store, NOON + timedelta(days=9))

    def test_other_aliases_and_kinds_move_nothing(self, store: Store) -> None:
        champion(store, 1, NOON)
        for alias in ("candidate", "staging", "challenger"):
            said = {
                "alias": alias,
                "from": None,
                "to": 2,
                "reason": 'the "champion":[1,2] of tomorrow',
                "moves": {alias: [None, 2]},
            }
            ledger.append(
                store, kind="alias", line=LINE, version=2, bundle_id=bundle(2), actor="ana", evidence=said, now=NOON
            )
        ledger.append(
            store, kind="verdict", line=LINE, version=2, actor="ana", evidence={"moves": {"champion": [1, 2]}}, now=NOON
        )
        nested = {"reason": "", "deep": {"champion": [1, 2]}, "moves": {"challenger": [1, 2]}}
        ledger.append(
            store, kind="alias", line=LINE, version=2, bundle_id=bundle(2), actor="ana", evidence=nested, now=NOON
        )
        ledger.append(
            store, kind="rollback", line=LINE, version=2, actor="ana", evidence={"from": 2, "to": 1}, now=NOON
        )

        assert {1: 1.0} == shares(store, NOON)

    def test_lines_answer_for_themselves_and_together(self, store: Store) -> None:
        champion(store, 3, NOON, line="tabular@b")
        champion(store, 1, NOON, line="tabular@a")

        assert [("tabular@a", 1), ("tabular@b", 3)] == [(one.line, one.version) for one in ledger.at(store, NOON)]
        assert {3: 1.0} == shares(store, NOON, "tabular@b")
        assert [] == ledger.at(store, NOON, "tabular@none")

    @pytest.mark.parametrize("back", [timedelta(microseconds=1), LEAP], ids=str)
    def test_a_clock_that_is_a_little_behind_hides_no_move_and_moves_nothing_into_the_past(
        self, back: timedelta, store: Store
    ) -> None:
        late = NOON + back
        champion(store, 1, late)
        lifted = champion(store, 2, NOON, former=1)

        assert (ledger.log(store)[0].at, ledger.chain.stamp(NOON)) == (lifted.at, lifted.evidence["told_at"])
        assert {} == shares(store, NOON), "nobody served then"
        assert {2: 1.0} == shares(store, late)
        assert ledger.verify(store).ok
        assert "told_at" not in champion(store, 1, late, former=2).evidence

    @pytest.mark.parametrize("ahead", [LEAP + timedelta(seconds=61), timedelta(days=3653)], ids=str)
    def test_an_entry_of_a_clock_that_is_ahead_dates_no_entry_that_follows(
        self, ahead: timedelta, store: Store
    ) -> None:
        hour = timedelta(hours=1)
        champion(store, 1, NOON)
        ledger.append(store, kind="denied", line="*", actor="eve", evidence={"action": "promote"}, now=NOON + ahead)
        right = champion(store, 2, NOON + timedelta(minutes=1), former=1)
        assert (ledger.chain.stamp(NOON + timedelta(minutes=1)), False) == (right.at, "told_at" in right.evidence)
        champion(store, 3, NOON + ahead + hour, former=2)
        traffic(store, {3: 0.9, 4: 0.1}, NOON + 2 * timedelta(minutes=1), candidate=4)
        a_little_behind = champion(store, 4, NOON + timedelta(minutes=1), former=3)

        assert {1: 1.0} == shares(store, NOON)
        assert {2: 1.0} == shares(store, NOON + timedelta(seconds=119))
        assert {4: 1.0} == shares(store, NOON + timedelta(minutes=3)), "as late as the entry before it, which is right"
        assert ledger.chain.stamp(NOON + timedelta(minutes=2)) == a_little_behind.at
        assert {4: 1.0} == shares(store, NOON + ahead + 2 * hour), "appended last"
        assert {4: 1.0} == shares(store, ledger.latest(store, NOON + hour))
        assert ledger.verify(store).ok

    def test_a_clock_that_was_never_set_moves_nothing_into_the_past(self, store: Store) -> None:
        champion(store, 1, NOON)
        lifted = champion(store, 2, datetime(1970, 1, 1, 0, 3, tzinfo=UTC), former=1)

        assert ({}, {2: 1.0}) == (shares(store, NOON - timedelta(seconds=1)), shares(store, NOON))
        assert ("1970-01-01T00:03:00.000000Z", ledger.chain.stamp(NOON)) == (lifted.evidence["told_at"], lifted.at)

    def test_the_present_is_the_clock_s_whatever_a_refusal_says(self, store: Store) -> None:
        assert NOON == ledger.latest(store, NOON)
        champion(store, 1, NOON + timedelta(hours=2))
        champion(store, 1, NOON, line="tabular@other")
        ledger.append(store, kind="denied", line="*", actor="eve", evidence={}, now=NOON + timedelta(days=3653))

        assert NOON + timedelta(hours=2) == ledger.latest(store, NOON), "so that the move of a clock ahead is seen too"

    def test_a_tenant_sees_its_own_traffic_only(self, store: Store, store_url: str) -> None:
        other = Store.open(store_url, tenant=store.tenant + "-other")
        champion(store, 1, NOON)

        assert [] == ledger.at(other, NOON)
        other.close()

    @pytest.mark.parametrize(
        "shares_said",
        [
            None, [], "all", [{"version": 1, "bundle_id": "b"}], [{"version": 1, "bundle_id": "b", "share": 0.5}],
            [{"version": 1, "bundle_id": "b", "share": 2.0}, {"version": 2, "bundle_id": "b", "share": -1.0}],
            [{"version": "x", "bundle_id": "b", "share": 1.0}], [None],
        ],
        ids=["none", "empty", "text", "no share", "half", "beyond", "no version", "null"],
    )  # fmt: skip
    def test_traffic_that_cannot_be_read_is_a_broken_ledger_and_no_guess(
        self, shares_said: Any, sqlite_store: Store
    ) -> None:
        champion(sqlite_store, 1, NOON)
        ledger.append(
            sqlite_store, kind="traffic", line=LINE, version=2, actor="eve", evidence={"shares": shares_said}, now=NOON
        )
        if shares_said == []:
            assert [] == ledger.at(sqlite_store, NOON)
            return
        with pytest.raises(Refused) as refused:
            ledger.at(sqlite_store, NOON)

        assert ("broken_ledger", True) == (refused.value.code, "entry 2" in refused.value.message)

    @given(
        moves=st.lists(
            st.tuples(
                st.integers(0, 600), st.sampled_from(["champion", "traffic"]), st.integers(1, 4), st.integers(0, 100)
            ),
            max_size=12,
        ),
        asked=st.lists(st.integers(-10, 700), min_size=1, max_size=8),
    )
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_the_answer_is_that_of_replaying_every_entry_until_then(
        self, moves: list[tuple[int, str, int, int]], asked: list[int], store: Store
    ) -> None:
        # In the order in which they are appended, whatever their clocks said; each example begins after the one before.
        count = len(ledger.log(store, limit=None))
        line, start = f"tabular@{count}x", NOON + timedelta(days=count)
        expected: list[tuple[int, dict[int, float]]] = []
        latest = 0
        for told, kind, version, percent in moves:
            at = start + timedelta(seconds=told)
            second = latest = max(told, latest)
            if kind == "champion":
                champion(store, version, at, line=line)
                expected.append((second, {version: 1.0}))
            else:
                both = {version: percent / 100, version + 1: 1 - percent / 100}
                traffic(store, both, at, line=line, candidate=version)
                expected.append((second, {number: share for number, share in both.items() if share > 0}))
        for second in asked:
            then: dict[int, float] = {}
            for at_second, state in expected:
                then = state if at_second <= second else then
            assert then == shares(store, start + timedelta(seconds=second), line)
            assert not then or abs(sum(then.values()) - 1) < 1e-9
        times = [change.at for change in ledger.course(store, line)]
        assert (len(moves), times) == (len(times), sorted(times))


class TestMoment:
    NOW = datetime(2026, 11, 22, 15, 30, 5, 250, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2026-11-22T14:03", "2026-11-22T14:03:00"),
            ("2026-11-22 14:03:07", "2026-11-22T14:03:07"),
            ("2026-11-22T14:03:07Z", "2026-11-22T14:03:07"),
            ("2026-11-22T14:03:07+01:00", "2026-11-22T13:03:07"),
            ("14:03", "2026-11-22T14:03:00"),
            ("14:03:07", "2026-11-22T14:03:07"),
            ("14:03-03:00", "2026-11-22T17:03:00"),
            ("00:30+09:00", "2026-11-22T15:30:00"),
            (" 2026-11-22 ", "2026-11-22T00:00:00"),
        ],
    )
    def test_a_time_is_utc_unless_it_names_a_zone_and_means_its_whole_second(self, text: str, expected: str) -> None:
        wanted = datetime.fromisoformat(expected).replace(tzinfo=UTC, microsecond=999_999)

        assert wanted == ledger.moment(text, self.NOW)

    def test_a_fraction_and_now_are_meant_as_they_are(self) -> None:
        assert datetime(2026, 11, 22, 14, 3, 7, 250_000, tzinfo=UTC) == ledger.moment("14:03:07.25", self.NOW)
        assert self.NOW == ledger.moment("now", self.NOW.astimezone(timezone(timedelta(hours=-3))))

    @pytest.mark.parametrize(
        "text", ["", "yesterday", "25:00", "14", "1403", "2026-13-01", "14:03 tomorrow", "9999999-01-01", "-1"]
    )
    def test_what_is_no_time_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(ConfigError) as refused:
            ledger.moment(text, self.NOW)

        assert ("bad_time", True) == (refused.value.code, "14:03" in refused.value.message)


def _cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def home_store(esteira_home: Path) -> Store:
    settings = load_settings()
    return Store.open(settings.database_url, settings.tenant)


class TestCommand:
    def test_it_prints_the_shares_of_a_time(self, home_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        champion(home_store, 1, NOON)
        traffic(home_store, {1: 0.75, 2: 0.25}, NOON + timedelta(minutes=3))

        assert 0 == _cli("ledger", "at", "2026-11-22T12:03", "--json")
        document = json.loads(capsys.readouterr().out)
        assert "2026-11-22T12:03:00Z" == document["at"]
        assert [
            {"line": LINE, "version": 1, "bundle_id": bundle(1), "share": 0.75},
            {"line": LINE, "version": 2, "bundle_id": bundle(2), "share": 0.25},
        ] == document["serving"]
        assert 0 == _cli("ledger", "at", "2026-11-22 12:02:59", "--line", LINE)
        assert f"{LINE}  v1  100 %" in capsys.readouterr().out

    def test_now_is_what_the_last_entry_says_even_if_its_clock_was_ahead(
        self, home_store: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ahead = datetime.now(UTC) + timedelta(hours=2)
        champion(home_store, 1, ahead)
        champion(home_store, 2, datetime.now(UTC), former=1)

        _cli("ledger", "at", "now", "--json")
        told = json.loads(capsys.readouterr().out)
        assert ([2], False) == ([one["version"] for one in told["serving"]], "note" in told)
        assert ledger.chain.stamp(ahead) == ledger.chain.stamp(datetime.fromisoformat(told["at"]))

    def test_before_the_first_release_it_is_empty_and_a_time_to_come_is_told(
        self, home_store: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        champion(home_store, 1, NOON)

        assert 0 == _cli("ledger", "at", "2000-01-01T00:00", "--json")
        assert {"at": "2000-01-01T00:00:00Z", "serving": []} == json.loads(capsys.readouterr().out)
        assert 0 == _cli("ledger", "at", "2999-01-01T00:00", "--json")
        told = json.loads(capsys.readouterr().out)
        assert (1, True) == (len(told["serving"]), "yet to come" in told["note"])

    @pytest.mark.parametrize("arguments", [("at", "noon"), ("at",), ("at", "14:03", "--line", "../x")])
    def test_a_bad_question_is_exit_2(self, arguments: tuple[str, ...], esteira_home: Path) -> None:
        assert 2 == _cli("ledger", *arguments)
