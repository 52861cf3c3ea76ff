"""The comparison of orchestrators counts only what really ran, and its figures are sums that can be checked by hand."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from benchmarks.orchestrators.compare import CHAIN, Failed, once, version_of
from benchmarks.orchestrators.figures import Round, median_and_p95, summed_up, table
from benchmarks.orchestrators.peers import PEERS, PROJECTS, SILENT, Peer

BIN = Path(sys.executable).parent
OURS = next(peer for peer in PEERS if peer.name == "esteira")
LOCKED = [peer for peer in PEERS if peer.lock is not None]


def test_our_peer_runs_six_steps_and_then_none(tmp_path: Path) -> None:
    found = once(OURS, BIN, tmp_path / "work", tmp_path)

    assert 0 == found.ran_again
    assert found.again < found.first
    assert not (tmp_path / "work").exists()


# A command that does what six honest steps would leave, and ones that do less.
HONEST = "import os; from pathlib import Path; Path('6.txt').write_text('1 2 3 4 5 6'); " \
    f"Path(os.environ['NOOP_LOG']).open('a').write({chr(10).join(CHAIN) + chr(10)!r})"  # fmt: skip
FOUR = HONEST.replace("\\n1 2 3 4 5\\n1 2 3 4 5 6", "")


@pytest.mark.parametrize(
    ("first", "again", "said"),
    [
        pytest.param("pass", "pass", "but these ran: []", id="nothing ran"),
        pytest.param(FOUR, "pass", "but these ran: ['1', '1 2', '1 2 3', '1 2 3 4']", id="two steps are missing"),
        pytest.param(HONEST, FOUR, "all steps run again or none", id="some ran again"),
        pytest.param(HONEST, "import os; os.remove('6.txt')", "the last step's file is gone", id="no product"),
        pytest.param("raise SystemExit(3)", "pass", "ended with 3", id="a failed command"),
    ],
)
def test_a_peer_that_did_less_is_a_failure_and_not_a_figure(tmp_path: Path, first: str, again: str, said: str) -> None:
    peer = Peer("x", "dvc", ("python", "-c", first), ("python", "-c", again), "")

    with pytest.raises(Failed, match=re.escape(said)):
        once(peer, BIN, tmp_path / "work", tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_peer_that_runs_all_again_is_said_to(tmp_path: Path) -> None:
    peer = Peer("x", "dvc", ("python", "-c", HONEST), ("python", "-c", HONEST), "")

    assert 6 == once(peer, BIN, tmp_path / "work", tmp_path).ran_again


def test_a_server_that_does_not_come_up_is_a_failure_and_leaves_no_process(tmp_path: Path) -> None:
    peer = dataclasses.replace(
        Peer("x", "dvc", ("python", "-c", HONEST), ("python", "-c", HONEST), ""),
        server=("python", "-c", "raise SystemExit(1)"),
        environment={"PREFECT_API_URL": "http://127.0.0.1:{port}/api"},
    )

    with pytest.raises(Failed, match="the server ended with 1"):
        once(peer, BIN, tmp_path / "work", tmp_path)


def test_figures_are_medians_their_ratios_and_two_bounds() -> None:
    rounds = {
        "esteira": [Round(0.5, 0.1, 0), Round(0.7, 0.3, 0), Round(0.6, 0.2, 0)],
        "kfp": [Round(1.0, 1.0, 6), Round(2.0, 1.0, 6), Round(1.5, 1.0, 6)],
        "dvc": [Round(1.0, 0.4, 0)] * 3,
    }

    found = summed_up(rounds)

    assert pytest.approx({"median": 0.6, "p95": 0.69, "to_kfp": 0.4}) == found["peers"]["esteira"]["first"]
    assert pytest.approx({"median": 0.2, "p95": 0.29, "to_dvc": 0.5}) == found["peers"]["esteira"]["again"]
    assert found["bounds"]["first_to_kfp"]["held"] is True
    assert found["bounds"]["again_to_dvc"]["held"] is True
    slow = summed_up({**rounds, "esteira": [Round(1.81, 0.4, 0)]})["bounds"]
    assert slow["first_to_kfp"]["held"] is False, "1.81 is more than 1.2 times 1.5"
    assert slow["again_to_dvc"]["held"] is False, "faster than DVC means below it"
    alone = summed_up({"esteira": rounds["esteira"]})["bounds"]
    assert alone["first_to_kfp"]["held"] is None, "without kfp there is nothing to compare with"


def test_one_round_is_its_own_median_and_percentile() -> None:
    assert {"median": 2.0, "p95": 2.0} == median_and_p95([2.0])


def test_the_table_has_a_row_a_peer() -> None:
    found = summed_up({"kfp": [Round(1.0, 2.0, 6)], "dvc": [Round(3.0, 4.0, 0)]})["peers"]

    assert [
        "| kfp 2 | 1.00 (1.00) | 1.00 | 2.00 (2.00) | 0.50 | 6 | nothing |",
        "| dvc 3 | 3.00 (3.00) | 3.00 | 4.00 (4.00) | 1.00 | 0 | a lock |",
    ] == table(found, {"kfp": "2", "dvc": "3"}, {"kfp": "nothing", "dvc": "a lock"}).splitlines()[2:]


@pytest.mark.parametrize("peer", LOCKED, ids=lambda peer: peer.name)
def test_a_peer_is_pinned_by_hash_and_by_no_address(peer: Peer) -> None:
    assert peer.lock is not None
    text = peer.lock.read_text(encoding="utf-8")
    pins = re.findall(r"^[a-z0-9][^ ]*==[^ ]+", text, re.MULTILINE)

    assert len(pins) > 10
    assert len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) >= len(pins)
    assert not re.search(r"://|file:|--(extra-)?index|--find-links", text)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version_of(peer))


def test_every_project_is_some_peers_and_no_peer_tells_its_makers() -> None:
    assert {folder.name for folder in PROJECTS.iterdir() if folder.is_dir()} == {peer.project for peer in PEERS}
    assert {"DO_NOT_TRACK", "DVC_NO_ANALYTICS", "KEDRO_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"} == set(SILENT)  # fmt: skip
    assert len({peer.name for peer in PEERS}) == len(PEERS)
