"""A study proposes the same whoever runs it and however often it dies, loses no trial, counts none twice, and beats chance."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.automl import trial_log
from esteira.automl.kept import Predictions, search_name
from esteira.automl.prepare.recipe import Recipe
from esteira.automl.propose import Seen, propose
from esteira.automl.study import Study, Told
from esteira.errors import ConfigError, OutsideError
from tests.study_worker import FIXED, KINDS, SPACES, begin, go_on, made


@pytest.fixture(params=["memory", "journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every place where a study can be."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url.replace("+psycopg2", "")
    return "" if request.param == "memory" else str(tmp_path / "study.journal")


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Of a study that no other test has: all share one PostgreSQL."""
    return tmp_path.name


def test_every_place_gives_the_same_trials_and_keeps_all_that_was_told(storage: str, name: str) -> None:
    expected = go_on(begin(""), 12)
    with begin(storage, name=name) as study:
        got = go_on(study, 12)

    assert expected == got
    assert list(range(1, 13)) == [told.proposal.number for told in got]
    assert ["portfolio", "portfolio", "recipe"] + ["tpe"] * 9 == [told.proposal.origin for told in got]
    assert (None, "it fails", (0.1, 0.2)) == (got[0].score, got[0].why, got[0].folds)
    assert Recipe(ratios=5) == got[2].proposal.recipe
    assert {"rounds": 3} == next(told.notes for told in got[3:] if told.proposal.kind == "trees")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("die_at", [2, 5, 8])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, batch: int, die_at: int) -> None:
    expected = go_on(begin("", seed=7), 12, batch)
    journal = str(tmp_path / "study.journal")
    killed = begin(journal, seed=7)
    before = go_on(killed, 12, batch, die_at=die_at)
    # As the kernel leaves it: the lock is free, and nobody gave anything back.
    killed._log._alive._file.close()
    with begin(journal, seed=7) as study:
        after = go_on(study, 12, batch)

    assert die_at - 1 == len(before)
    assert expected == after


def in_waves(study: Study, die_after: int = 99) -> list[Told]:
    """As the search does: a wave is begun before the one before it is told, and of each some are told at once."""
    waiting: list[Any] = []
    for wave in range(1, 100):
        batch = study.ask(4, kinds=KINDS, limit=20)
        if not batch and not waiting:
            break
        for proposal in [proposal for proposal in batch if proposal.number % 3 == 0]:
            study.tell(proposal, **made(proposal))
        if wave == die_after:
            break
        for proposal in waiting:
            study.tell(proposal, **made(proposal))
        waiting = [proposal for proposal in batch if proposal.number % 3]
    return study.told()


@pytest.mark.parametrize("die_after", [1, 2, 3, 4])
def test_waves_that_overlap_go_on_after_a_kill_as_if_it_had_not_been(tmp_path: Path, die_after: int) -> None:
    expected = in_waves(begin(""))
    killed = begin(str(tmp_path / "journal"))
    before = in_waves(killed, die_after)
    killed._log._alive._file.close()
    with begin(str(tmp_path / "journal")) as study:
        after = in_waves(study)

    assert 20 == len(expected)
    assert len(before) < len(after)
    assert expected == after


def test_a_study_that_is_closed_gives_back_what_it_had_asked_for(storage: str, name: str) -> None:
    if not storage:
        pytest.skip("what is in memory ends with its study")
    with begin(storage, name=name) as study:
        asked = study.ask(2, kinds=KINDS)
    with begin(storage, name=name) as study:
        again = study.ask(2, kinds=KINDS)

    assert [1, 2] == [proposal.number for proposal in again]
    assert asked == again


def test_the_seed_decides_what_is_proposed() -> None:
    first, same, other = (go_on(begin("", seed=seed), 9) for seed in (1, 1, 2))

    assert first == same
    assert first[3:] != other[3:]


def test_a_limit_that_was_raised_goes_on_where_the_search_ended() -> None:
    study = begin("")
    go_on(study, 8)

    assert go_on(begin(""), 14) == go_on(study, 14)


def test_another_search_in_the_same_file_is_another_study(tmp_path: Path) -> None:
    journal = f"journal:{tmp_path / 'a' / 'studies'}"
    with begin(journal, name="one") as one, begin(journal, name="two") as two:
        go_on(one, 5)

        assert [] == two.told()
        assert 5 == len(one.told())


def test_nothing_is_proposed_twice_and_a_small_space_is_tried_whole() -> None:
    spaces: dict[str, Any] = {"small": {"a": ("choice", [1, 2, 3]), "b": ("int", 0, 2)}, "constant": {}}
    study = Study.open("", name="s", seed=0, spaces=spaces)
    study.queue("small", {"a": 1, "b": 1}, Recipe(), "portfolio")
    study.queue("small", {"b": 1, "a": 1}, Recipe(), "portfolio")
    while asked := study.ask(1, kinds=["small", "constant"]):
        study.tell(asked[0], score=float(asked[0].number))

    told = [(one.proposal.kind, one.proposal.params.get("a"), one.proposal.params.get("b")) for one in study.told()]
    assert {("constant", None, None), *(("small", a, b) for a in (1, 2, 3) for b in (0, 1, 2))} == set(told)
    assert 10 == len(told)


def test_the_kind_that_leads_is_proposed_most_and_only_what_is_asked_for() -> None:
    study = begin("")
    go_on(study, 30)
    kinds = [told.proposal.kind for told in study.told()[3:]]
    asked = [study.ask(1, kinds=["trees"])[0] for _ in range(5)]

    # The best of `linear` is its own optimum; the best of `trees` is worse than that, but its space is larger.
    assert kinds.count("linear") + kinds.count("trees") == len(kinds) - kinds.count("constant")
    assert {"trees"} == {proposal.kind for proposal in asked}
    assert 5 == len({str(proposal.params) for proposal in asked})
    assert all(100 == proposal.params["rounds"] for proposal in asked)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    number=st.integers(1, 1000),
    outcomes=st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.one_of(st.none(), st.floats(allow_nan=False)),
            st.floats(1e-4, 1e4),
            st.booleans(),
        ),
        max_size=12,
    ),
)
def test_proposals_stay_in_their_space_whatever_was_told(seed: int, number: int, outcomes: list[Any]) -> None:
    """Scores may be infinite or missing, parameters may lie outside their space or lack, trials may be under way."""
    seen = [
        Seen(kind, {"rate": at, "leaves": at, "share": 0.7, "depth": 3, "C": at}, score, (0.5,), pending)
        for kind, score, at, pending in outcomes
    ]
    given_: dict[str, Any] = {
        "number": number, "seed": seed, "kinds": KINDS, "spaces": SPACES, "fixed": FIXED, "recipe": {}, "made": set(),
    }  # fmt: skip
    found = propose(seen, **given_)

    assert found is not None
    assert found == propose(seen, **given_)
    kind, params = found
    if kind == "trees":
        assert 1e-3 <= params["rate"] <= 1
        assert 4 <= params["leaves"] <= 256
        assert isinstance(params["leaves"], int)
        assert 0.5 <= params["share"] <= 1
        assert 2 <= params["depth"] <= 12
        assert params["layers"] in ([32], [64, 32], None)
        assert 100 == params["rounds"]
    elif kind == "linear":
        assert 1e-3 <= params["C"] <= 100


def test_a_space_of_another_form_is_refused() -> None:
    study = Study.open("", name="s", seed=0, spaces={"k": {"a": ("uniform", 0, 1)}})

    with pytest.raises(ConfigError, match=r"a space is .* but 'a' has") as error:
        study.ask(1, kinds=["k"])
    assert "bad_space" == error.value.code


# What it finds against what chance finds.


def _branin(p: Mapping[str, float]) -> float:
    """Its least value is 0.397887."""
    bowl = p["y"] - 5.1 / (4 * math.pi**2) * p["x"] ** 2 + 5 / math.pi * p["x"] - 6
    return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(p["x"]) + 10


def _hartmann(p: Mapping[str, float]) -> float:
    """Its least value is -3.32237."""
    scale = np.array(
        [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    )
    centre = np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    at = np.array([p[f"x{axis}"] for axis in range(6)])
    return -float(np.array([1, 1.2, 3, 3.2]) @ np.exp(-(scale * (at - centre * 1e-4) ** 2).sum(axis=1)))


@pytest.mark.requirement("S-19")
@pytest.mark.parametrize(
    ("loss", "space"),
    [
        (_branin, {"x": ("float", -5, 10), "y": ("float", 0, 15)}),
        (_hartmann, {f"x{axis}": ("float", 0, 1) for axis in range(6)}),
    ],
    ids=["branin", "hartmann"],
)
def test_it_beats_random_search_at_equal_budget(
    loss: Callable[[Mapping[str, float]], float], space: dict[str, Any]
) -> None:
    """Done when: it beats random search's median at equal budget on a benchmark function."""
    budget = 50
    rng = np.random.default_rng(0)
    random = [
        min(loss({axis: rng.uniform(low, high) for axis, (_, low, high) in space.items()}) for _ in range(budget))
        for _ in range(101)
    ]
    found = []
    for seed in range(5):
        study = Study.open("", name="s", seed=seed, spaces={"k": space})
        for _ in range(budget):
            (proposal,) = study.ask(1, kinds=["k"])
            study.tell(proposal, score=-loss(proposal.params))
        found.append(-max(told.score for told in study.told() if told.score is not None))

    assert np.median(found) < np.median(random)
    assert 4 <= sum(one < np.median(random) for one in found)


# Storages that are wrong, away or damaged.


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://host/db", "redis://host"])
def test_a_storage_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="a path, journal:PATH or postgresql://") as error:
        begin(url)
    assert "bad_storage" == error.value.code


def test_a_server_that_is_not_there_is_the_worlds_failure_and_no_password_is_told() -> None:
    with pytest.raises(OutsideError, match="must answer") as error:
        begin("postgresql://someone:hunter2@127.0.0.1:1/none")
    assert "storage_away" == error.value.code
    assert "hunter2" not in str(error.value)


def test_a_journal_in_a_place_that_cannot_be_written_is_the_worlds_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(OutsideError, match="must answer"):
        begin(str(tmp_path / "file" / "journal"))


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n1,2\n3,4")

    with pytest.raises(OutsideError, match="this one does not") as error:
        begin(str(path))
    assert "broken_journal" == error.value.code
    assert b"a,b\n1,2\n3,4" == path.read_bytes()


def test_a_journal_cut_off_in_the_middle_of_a_record_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with begin(str(journal)) as study:
        expected = go_on(study, 8)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"0')
    with begin(str(journal)) as study:
        assert expected == study.told()
        assert go_on(begin(""), 10) == go_on(study, 10)


def test_a_journal_with_a_broken_record_in_the_middle_says_so(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with begin(str(journal)) as study:
        go_on(study, 5)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"{\n", *lines[5:]]))

    with pytest.raises(OutsideError, match="one record of a study a line"):
        begin(str(journal))


@pytest.mark.slow
def test_a_database_that_goes_away_is_waited_for_then_told_and_the_study_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pgserver = pytest.importorskip("pgserver", reason="needs pgserver, which has no wheel for this Python")
    server = pgserver.get_server(tmp_path / "pg", cleanup_mode="delete")
    try:
        with begin(server.get_uri()) as study:
            go_on(study, 5)
            (proposal,) = study.ask(1, kinds=KINDS)
            _control(server, "stop")
            with monkeypatch.context() as patch:
                patch.setattr(trial_log, "PAUSES", ())
                with pytest.raises(OutsideError, match="must answer"):
                    study.tell(proposal, **made(proposal))
            back = threading.Timer(1.5, _control, (server, "start"))
            back.start()
            study.tell(proposal, **made(proposal))
            back.join()

            assert go_on(begin(""), 8) == go_on(study, 8)
    finally:
        server.cleanup()


def _control(server: Any, what: str) -> None:
    from pgserver import pg_ctl
    from pgserver.utils import ensure_prefix_permissions

    if server.system_user is not None:
        # Another session of pytest, such as one that a test runs, takes the rights of others from the folder of all sessions.
        ensure_prefix_permissions(server.pgdata)
    folder = parse_qs(urlsplit(server.get_uri()).query)["host"][0]
    options = {"stop": ["-m", "fast"], "start": ["-o", f"-h '' -k {folder}", "-l", str(server.log)]}[what]
    pg_ctl(["-w", *options, what], pgdata=server.pgdata, user=server.system_user, timeout=30)


# Workers of one study.

SHARED = ["journal", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts workers of a study, each a process of its own; ends them after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(storage: str, name: str, log: Path, hang_at: int = 0) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.study_worker", storage, name, str(log), str(hang_at)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("storage", SHARED, indirect=True)
def test_a_worker_that_is_killed_loses_no_trial_and_none_counts_twice(
    storage: str, name: str, tmp_path: Path, workers: Callable[..., subprocess.Popen[str]]
) -> None:
    """Two processes on one study; one gets a SIGKILL in the middle of a trial."""
    lame = workers(storage, name, tmp_path / "lame", hang_at=4)
    whole = workers(storage, name, tmp_path / "whole")
    deadline = time.monotonic() + 60
    hung = 0
    while not hung:
        assert time.monotonic() < deadline
        numbers = [int(line) for line in _lines(tmp_path / "lame")]
        hung = next((number for number in numbers if number >= 4), 0)
        time.sleep(0.05)
    os.kill(lame.pid, signal.SIGKILL)
    told_by_whole = int(whole.communicate(timeout=60)[0])

    with begin(storage, name=name) as study:
        told = study.told()
        assert not study.wait()
    assert list(range(1, 17)) == [one.proposal.number for one in told]
    assert len(told) == len({str(one.proposal.params) + one.proposal.kind for one in told})
    made_by_lame = [int(line) for line in _lines(tmp_path / "lame")]
    made_by_whole = [int(line) for line in _lines(tmp_path / "whole")]
    assert hung in made_by_whole
    assert 16 - (len(made_by_lame) - 1) == told_by_whole
    assert sorted([*made_by_lame, *made_by_whole]) == sorted([*range(1, 17), hung])


@pytest.mark.parametrize("storage", SHARED, indirect=True)
def test_workers_share_the_trials_between_them(
    storage: str, name: str, tmp_path: Path, workers: Callable[..., subprocess.Popen[str]]
) -> None:
    counts = [workers(storage, name, tmp_path / f"{at}").communicate for at in range(2)]
    told = [int(wait(timeout=60)[0]) for wait in counts]

    assert 16 == sum(told)
    assert list(range(1, 17)) == sorted(int(line) for at in range(2) for line in _lines(tmp_path / f"{at}"))
    with begin(storage, name=name) as study:
        assert list(range(1, 17)) == [one.proposal.number for one in study.told()]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# What is kept beside the journal.


def test_predictions_come_back_as_they_were_and_what_is_damaged_does_not_come_back(tmp_path: Path) -> None:
    kept = Predictions.beside(f"journal:{tmp_path / 'journal'}", "name")
    assert kept is not None
    arrays = {"out_of_fold": np.array([[0.25, np.nan], [0.5, 0.5]]), "rounds": np.arange(3)}
    kept.put(3, arrays)
    found = kept.get(3, "out_of_fold", "rounds")

    assert found is not None
    assert all(
        arrays[one].tobytes() == found[one].tobytes() and arrays[one].shape == found[one].shape for one in arrays
    )
    assert kept.get(4, "out_of_fold") is None
    assert kept.get(3, "other") is None
    (path,) = tmp_path.rglob("*.out_of_fold.*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\\0")
    assert kept.get(3, "out_of_fold") is None
    assert kept.get(3, "rounds") is not None
    # Fitted again, and kept again.
    kept.put(3, arrays)
    assert kept.get(3, "out_of_fold") is not None


@pytest.mark.parametrize("storage", ["", "postgresql://host/db"])
def test_a_study_that_is_no_file_keeps_no_predictions(storage: str) -> None:
    assert Predictions.beside(storage, "name") is None


def test_another_table_question_or_seed_is_another_search() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, 1])
    base = search_name({"x": x, "y": y, "groups": None}, {"seed": 1, "metric": "rmse"})

    assert base == search_name({"y": y, "groups": None, "x": x.copy()}, {"metric": "rmse", "seed": 1})
    others = [
        search_name({"x": x.T.copy(), "y": y, "groups": None}, {"seed": 1, "metric": "rmse"}),
        search_name({"x": x.reshape(3, 4), "y": y, "groups": None}, {"seed": 1, "metric": "rmse"}),
        search_name({"x": x, "y": y[::-1], "groups": None}, {"seed": 1, "metric": "rmse"}),
        search_name({"x": x, "y": y, "groups": y}, {"seed": 1, "metric": "rmse"}),
        search_name({"x": x, "y": y, "groups": None}, {"seed": 2, "metric": "rmse"}),
        search_name({"x": x, "y": y, "groups": None}, {"seed": 1, "metric": "mae"}),
    ]
    assert 7 == len({base, *others})
