"""The files of a rollout: what was written comes back, what was cut off or changed is refused, and a kill loses nothing."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esteira.errors import ConfigError, OutsideError, Refused
from esteira.rollout import files, targets
from esteira.rollout import split as splits
from esteira.rollout.split import Split
from esteira.rollout.state import Rollout, Side
from esteira.rollout.sums import Sums
from esteira.rollout.targets.in_process import InProcess
from esteira.settings import Settings
from tests.rollouts import die_at

LINE = "tabular@a.b-c"
AT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
STATE = Rollout(
    test_id="t1",
    line=LINE,
    policy="rules",
    champion=Side(1, "a" * 64),
    challenger=Side(2, "b" * 64),
    salt="salt",
    started_at=AT,
    stage_at=AT + timedelta(hours=1),
    percent=10.0,
    looked_at=AT + timedelta(hours=2),
    options={"rules": {"margin": 0.03}, "words": ["ç"]},
    sums={0: {"candidate": Sums(served=3, latency={4: 3}), "control": Sums(served=9, labelled=2, outcome=1.5)}},
    history=({"at": AT.isoformat(), "action": "start", "from": 0.0, "to": 10.0, "actor": "ana", "reason": "é"},),
)
SPLIT = Split("t1", "salt", 10.0, 0, Side(1, "a" * 64), Side(2, "b" * 64))

_times = st.datetimes(timezones=st.just(UTC))
_counts = st.integers(0, 10**9)
_sums = st.builds(
    Sums, served=_counts, errors=_counts, labelled=_counts, sure=_counts, outcome=st.floats(0, 1e9),
    outcome_sq=st.floats(0, 1e9), confidence=st.floats(0, 1e9), confidence_sq=st.floats(0, 1e9),
    latency=st.dictionaries(st.integers(0, 140), _counts, max_size=4),
)  # fmt: skip
_states = st.builds(
    Rollout, test_id=st.text(min_size=1), line=st.just(LINE), policy=st.sampled_from(["rules", "sequential"]),
    champion=st.builds(Side, st.integers(1, 99), st.text("abcdef", min_size=1)),
    challenger=st.builds(Side, st.integers(1, 99), st.text("abcdef", min_size=1)), salt=st.text(),
    started_at=_times, stage_at=_times, paused_at=st.none() | _times, looked_at=st.none() | _times,
    judged_at=st.none() | _times, cooldown_until=st.none() | _times, paused_seconds=st.floats(0, 1e9),
    status=st.sampled_from(["running", "paused", "approved", "rolled_back", "inconclusive"]),
    stage=st.integers(0, 5), percent=st.floats(0, 100), looks=st.integers(0, 4), pooled_looks=st.integers(0, 4),
    negatives=st.integers(0, 9), pooled_from=st.integers(0, 5), alert=st.text(),
    options=st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3),
    sums=st.dictionaries(
        st.integers(0, 3), st.dictionaries(st.sampled_from(["candidate", "control"]), _sums, max_size=2), max_size=3
    ),
    history=st.lists(st.dictionaries(st.text(), st.text() | st.floats(0, 100), max_size=3), max_size=3).map(tuple),
)  # fmt: skip


class TestState:
    @given(state=_states)
    @settings(max_examples=60, deadline=None)
    def test_what_was_written_comes_back(self, state: Rollout) -> None:
        assert state == files.decode(files.encode(state), LINE)

    def test_a_line_without_a_rollout_has_no_state(self, tmp_path: Path) -> None:
        assert files.load(tmp_path, LINE) is None
        assert files.load_backup(tmp_path, LINE) is None
        assert [] == files.lines(tmp_path)

    @pytest.mark.requirement("H-45")
    def test_a_kill_during_a_write_never_loses_the_last_valid_state(self, tmp_path: Path) -> None:
        """H-45 Done when: a kill during write never loses the last valid state."""
        files.save(tmp_path, STATE)
        later = replace(STATE, percent=25.0, stage=1)

        die_at("outputs.before_rename", lambda: files.save(tmp_path, later))
        assert STATE == files.load(tmp_path, LINE)
        files.save(tmp_path, later)
        assert later == files.load(tmp_path, LINE)
        assert STATE == files.load_backup(tmp_path, LINE)
        die_at("outputs.before_rename", lambda: files.prepare(tmp_path, STATE, "m"))
        assert files.prepared(tmp_path, LINE) is None
        # Whatever half a write left at the state's own place is told, and the one before is there.
        whole = files.path(tmp_path, LINE).read_bytes()
        for length in range(0, len(whole) - 2, 97):
            files.path(tmp_path, LINE).write_bytes(whole[:length])
            with pytest.raises(Refused) as caught:
                files.load(tmp_path, LINE)
            assert "bad_rollout_state" == caught.value.code
            assert STATE == files.load_backup(tmp_path, LINE)

    def test_the_file_has_the_fields_of_h_45(self) -> None:
        document = json.loads(files.encode(STATE))
        told = {"test_id", "line", "champion", "challenger", "status", "percent", "stage_at", "sums", "history", "salt"}
        assert told | {"schema"} <= set(document)
        assert 1 == document["schema"]

    @pytest.mark.parametrize(
        "change",
        [
            {"schema": 2},
            {"schema": True},
            {"line": "tabular@other"},
            {"status": "started"},
            {"percent": 101},
            {"percent": "10"},
            {"percent": None},
            {"stage": -1},
            {"stage": 1.0},
            {"looks": "many"},
            {"started_at": "2026-01-05T09:00:00"},
            {"stage_at": 7},
            {"paused_seconds": -1},
            {"champion": {"version": 1}},
            {"challenger": {"version": 0, "bundle_id": "b"}},
            {"challenger": None},
            {"sums": {"0": {"third": {}}}},
            {"sums": {"0": {"control": {"served": 1}}}},
            {"sums": []},
            {"history": "none"},
            {"options": None},
            {"alert": None},
            {"more": 1},
        ],
        ids=str,
    )
    def test_a_state_that_is_none_is_refused(self, change: dict[str, Any], tmp_path: Path) -> None:
        document = {**json.loads(files.encode(STATE)), **change}
        files.save(tmp_path, STATE)
        files.path(tmp_path, LINE).write_text(json.dumps(document), encoding="utf-8")

        with pytest.raises(Refused) as caught:
            files.load(tmp_path, LINE)
        assert "bad_rollout_state" == caught.value.code
        assert LINE in caught.value.where
        assert len(caught.value.message) < 400

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"{",
            b"\xff\xfe",
            b'{"schema": 1}',
            b'{"schema": NaN}',
            b"[" * 100_000,
            b'{"a":1,"a":2}',
        ],
        ids=["empty", "null", "list", "cut", "binary", "fields", "nan", "deep", "twice"],
    )
    def test_what_is_no_state_is_refused(self, data: bytes) -> None:
        with pytest.raises(Refused):
            files.decode(data, LINE)

    def test_a_bad_state_never_takes_the_place_of_a_good_backup(self, tmp_path: Path) -> None:
        files.save(tmp_path, STATE)
        files.save(tmp_path, replace(STATE, looks=1))
        files.path(tmp_path, LINE).write_bytes(b"{")

        files.save(tmp_path, replace(STATE, looks=2))

        assert STATE == files.load_backup(tmp_path, LINE)
        assert 2 == files.load(tmp_path, LINE).looks  # type: ignore[union-attr]

    def test_a_prepared_move_is_found_until_it_is_committed(self, tmp_path: Path) -> None:
        files.save(tmp_path, STATE)
        later = replace(STATE, percent=25.0)
        files.prepare(tmp_path, later, "move-1")

        assert ("move-1", later) == files.prepared(tmp_path, LINE)
        assert STATE == files.load(tmp_path, LINE)
        files.commit(tmp_path, later)
        assert files.prepared(tmp_path, LINE) is None
        assert later == files.load(tmp_path, LINE)
        files.discard(tmp_path, LINE)
        (tmp_path / "rollouts" / f"{LINE}.next").write_text('{"move": 1}', encoding="utf-8")
        assert files.prepared(tmp_path, LINE) is None

    def test_a_disk_that_takes_nothing_leaves_the_state_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "rollouts").write_text("a file where the folder belongs", encoding="utf-8")
        with pytest.raises(OutsideError):
            files.save(tmp_path, STATE)

    def test_lines_are_those_that_have_anything_of_a_rollout(self, tmp_path: Path) -> None:
        files.save(tmp_path, STATE)
        splits.write(tmp_path, "other", SPLIT)
        (tmp_path / "rollouts" / ".x.json.1.tmp").touch()

        assert ["other", LINE] == files.lines(tmp_path)


class TestSplit:
    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        split = replace(SPLIT, options={"units": ["a"], "outside": True})
        splits.write(tmp_path, LINE, split)

        assert split == splits.read(splits.path(tmp_path, LINE))
        assert split.outside
        assert not SPLIT.outside
        splits.clear(tmp_path, LINE)
        splits.clear(tmp_path, LINE)
        assert splits.read(splits.path(tmp_path, LINE)) is None

    @pytest.mark.parametrize("percent", [-1.0, 100.1, float("nan"), float("inf"), True])
    def test_a_bad_percent_is_refused(self, percent: float) -> None:
        with pytest.raises(ConfigError) as caught:
            replace(SPLIT, percent=percent)
        assert "bad_percent" == caught.value.code

    def test_a_bad_stage_is_refused(self) -> None:
        with pytest.raises(ConfigError) as caught:
            replace(SPLIT, stage=-1)
        assert "bad_stage" == caught.value.code

    @given(cut=st.integers(0, 400), flip=st.integers(0, 255))
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_split_that_was_cut_or_changed_is_read_as_none_or_as_a_split(
        self, tmp_path: Path, cut: int, flip: int
    ) -> None:
        splits.write(tmp_path, LINE, SPLIT)
        file = splits.path(tmp_path, LINE)
        whole = file.read_bytes()
        file.write_bytes(whole[: cut % len(whole)])
        assert splits.read(file) is None
        at = cut % len(whole)
        file.write_bytes(whole[:at] + bytes([flip]) + whole[at + 1 :])
        found = splits.read(file)
        assert found is None or 0 <= found.percent <= 100

    @pytest.mark.parametrize(
        "change",
        [
            {"schema": 2},
            {"percent": 250},
            {"percent": "10"},
            {"percent": True},
            {"stage": 1.5},
            {"test_id": ""},
            {"salt": None},
            {"champion": {"version": "1", "bundle_id": "a"}},
            {"options": []},
            {"more": 1},
            {"percent": 10**400},
        ],
        ids=lambda change: str(change)[:40],
    )
    def test_an_odd_split_is_no_split(self, change: dict[str, Any], tmp_path: Path) -> None:
        file = tmp_path / "x.split"
        file.write_text(json.dumps({**SPLIT.to_dict(), **change}), encoding="utf-8")
        assert splits.read(file) is None

    def test_a_folder_or_nothing_in_its_place_is_no_split(self, tmp_path: Path) -> None:
        (tmp_path / "x.split").mkdir()
        assert splits.read(tmp_path / "x.split") is None
        assert splits.read(tmp_path / "y.split") is None


class TestInProcess:
    def test_a_shift_is_the_file_and_the_share_is_read_from_it(self, tmp_path: Path) -> None:
        target = InProcess(tmp_path, LINE)
        assert 0.0 == target.share()
        target.shift(SPLIT)
        target.shift(SPLIT)
        assert 10.0 == target.share()
        splits.path(tmp_path, LINE).write_text("{", encoding="utf-8")
        assert 0.0 == target.share()
        target.shift(None)
        target.shift(None)
        assert not splits.path(tmp_path, LINE).exists()

    def test_it_is_what_the_settings_name_by_default(self, tmp_path: Path) -> None:
        assert isinstance(targets.make(Settings(home=tmp_path), LINE), InProcess)

    @pytest.mark.parametrize("told", ["", "in-process:x", "nginx:x", "haproxy:", "gateway"])
    def test_any_other_word_is_refused(self, told: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            targets.make(Settings(home=tmp_path, target=told), LINE)
        assert "bad_target" == caught.value.code
