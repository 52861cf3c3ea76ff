"""The comparison of servers counts only right answers, its figures can be checked by hand, and it leaves no process behind."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import compare, figures, load, model
from benchmarks.serving.environments import PROJECTS
from benchmarks.serving.figures import MANY, ONE, Round
from benchmarks.serving.load import Scenario
from benchmarks.serving.model import Subject
from benchmarks.serving.peers import DEFAULT, PEERS, Peer, Said
from benchmarks.serving.server import Failed, Server, differs, encode
from tests.serving_process import gone

BIN = Path(sys.executable).parent
CLASSES = ("no", "yes")
LOCKED = [peer for peer in PEERS if peer.project]

# A server that answers {"rows": [...]} with a's own value as the probability of yes; `+ W` makes it wrong, `S` is its status.
HONEST = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["rows"]
        said = [{"prediction": "yes" if row["a"] >= .5 else "no", "probabilities": {"yes": row["a"] + W}} for row in rows]
        body = json.dumps({"rows": said}).encode()
        self.send_response(S)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def peer(code: str) -> Peer:
    ours = PEERS[0]
    escaped = code.replace("{", "{{").replace("}", "}}")
    return Peer("fake", "", "esteira", ("python", "-c", escaped, "{port}"), "/", ours.body, ours.said)


def honest(wrong: float = 0.0, status: int = 200) -> Peer:
    return peer(HONEST.replace("W", repr(wrong)).replace("(S)", f"({status})"))


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = tmp_path / "model"
    folder.mkdir()
    values = [0.1, 0.9, 0.4, 0.7]
    documents: dict[str, Any] = {
        "columns.json": {"columns": ["a"], "classes": CLASSES},
        "rows.json": [{"a": value} for value in values],
        "expected.json": [["yes" if value >= 0.5 else "no", value] for value in values],
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return Subject(folder)


# Servers


def test_a_server_is_up_when_its_first_answer_is_right_and_gone_afterwards(subject: Subject, tmp_path: Path) -> None:
    with Server(honest(), BIN, subject, tmp_path / "work") as server:
        assert server._process is not None
        pid = server._process.pid
        assert 0 < server.seconds < 60
        assert server.megabytes() > 1
        with closing(server.connect()) as connection:
            assert "" == connection.wrong(3, 2) == connection.wrong(0, 1000)

    assert gone([pid])


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        pytest.param(honest(0.001), "was said", id="another answer"),
        pytest.param(peer("raise SystemExit(3)"), "ended with 3", id="ended"),
        pytest.param(peer("import no_such_module"), "no_such_module", id="its log is told"),
    ],
)
def test_a_server_that_does_less_is_a_failure_and_not_a_figure(
    subject: Subject, tmp_path: Path, fake: Peer, said: str
) -> None:
    server = Server(fake, BIN, subject, tmp_path / "work")

    with pytest.raises(Failed, match=said), server:
        pass
    assert server._process is not None
    assert gone([server._process.pid])


def test_a_server_that_never_answers_is_given_up(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.serving.server.START_SECONDS", 2.0)

    with pytest.raises(Failed, match="status 503"), Server(honest(status=503), BIN, subject, tmp_path / "work"):
        pass


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([Said("no", 0.1), Said("yes", 0.9)], ""),
        ([Said("no", 0.1 + 9e-7), Said("yes", 0.9)], ""),
        ([Said("no", 0.1), Said("yes", 0.9 + 2e-6)], "row 1"),
        ([Said("yes", 0.1), Said("yes", 0.9)], "row 0"),
        ([Said("no", float("nan")), Said("yes", 0.9)], "row 0"),
        ([Said("yes", 0.9), Said("no", 0.1)], "row 0"),
        ([Said("no", 0.1)], "2 rows were asked, but 1 answered"),
    ],
    ids=["equal", "near", "apart", "label", "nan", "order", "fewer"],
)
def test_an_answer_is_right_when_labels_are_equal_and_probabilities_near(said: Sequence[Said], why: str) -> None:
    assert differs([Said("no", 0.1), Said("yes", 0.9)], said).startswith(why)
    assert bool(why) == bool(differs([Said("no", 0.1), Said("yes", 0.9)], said))


# What each peer is asked and says

ROWS = [{"a": 0.1, "b": 2.0}, {"a": 0.9, "b": 3.0}]
ANSWERS: dict[str, Any] = {
    "esteira": {"rows": [{"prediction": "no", "probabilities": {"no": 0.9, "yes": 0.1}, "warnings": []},
                         {"prediction": "yes", "probabilities": {"no": 0.1, "yes": 0.9}, "warnings": []}]},
    "mlflow": {"predictions": [{"prediction": "no", "no": 0.9, "yes": 0.1}, {"prediction": "yes", "no": 0.1, "yes": 0.9}]},
    "mlserver": {"outputs": [{"name": "prediction", "data": ["no", "yes"]},
                             {"name": "probabilities", "data": [0.9, 0.1, 0.1, 0.9]}]},
}  # fmt: skip
ANSWERS["fastapi"] = ANSWERS["esteira"]


@pytest.mark.parametrize("name", DEFAULT)
def test_a_peers_answers_are_read_as_it_writes_them(name: str) -> None:
    found = next(one for one in PEERS if one.name == name)

    assert [Said("no", 0.1), Said("yes", 0.9)] == found.said(ANSWERS[name], CLASSES)


@pytest.mark.parametrize("name", DEFAULT)
def test_a_body_is_one_line_that_holds_every_cell(name: str) -> None:
    found = next(one for one in PEERS if one.name == name)
    body = encode(found, ROWS)

    assert b"\n" not in body
    for cell in (b"0.1", b"2.0", b"0.9", b"3.0", b'"a"', b'"b"'):
        assert cell in body


def test_bodies_go_once_round_the_table_and_stay_few_where_they_are_large(subject: Subject) -> None:
    ones, larges = (load.bodies(PEERS[0], subject, rows) for rows in (1, 1000))

    assert [0.1, 0.9, 0.4, 0.7] == [json.loads(body)["rows"][0]["a"] for body in ones]
    assert [1000] * 3 == [len(json.loads(body)["rows"]) for body in larges]


@pytest.mark.parametrize("locked", LOCKED, ids=[peer.name for peer in LOCKED])
def test_a_lock_pins_by_hash_and_names_no_address(locked: Peer) -> None:
    lock = (PROJECTS / locked.project / "requirements.lock").read_text(encoding="utf-8")

    assert re.search(rf"^{locked.package}==\S+", lock, re.MULTILINE)
    assert "onnxruntime==" in lock
    for block in re.findall(r"^[a-z0-9][^\n]*==(?:[^\n]*\\\n)*[^\n]*", lock, re.MULTILINE):
        assert "--hash=sha256:" in block, block
    assert not re.search(r"https?://|file:|^/|find-links|index-url", lock, re.MULTILINE)
    assert compare.version_of(locked) in lock


# wrk

RESULT = {"requests": 1000, "microseconds": 2_000_000, "refused": 10, "broken": 1, "late": 2, "p50": 800.0, "p95": 1500.0,
          "p99": 2500.0, "most": 9000.0}  # fmt: skip


def test_answers_that_were_refused_are_failures_and_no_answers() -> None:
    found = load.read(f"Running 2s test\nRESULT {json.dumps(RESULT)}\n")

    assert (990, 495.0, 0.8, 1.5, 2.5, 13, 0.0) == found


def test_a_load_without_a_result_is_a_failure() -> None:
    with pytest.raises(Failed, match="unable to connect"):
        load.read("unable to connect to 127.0.0.1:9")


def test_without_wrk_it_says_so_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "wrk", lambda: None)
    monkeypatch.setattr(sys, "argv", ["compare"])
    compare.main()

    assert capsys.readouterr().out.startswith("skipped: wrk")


needs_wrk = pytest.mark.skipif(load.wrk() is None, reason="needs wrk (Debian: apt-get install wrk)")


@needs_wrk
def test_wrk_counts_what_a_server_answers_and_refuses(subject: Subject, tmp_path: Path) -> None:
    scenario = Scenario("x", 2, 2)
    with Server(honest(), BIN, subject, tmp_path / "work") as server:
        found = load.run(server, scenario, 1, tmp_path)
        server.peer = Peer(**{**vars(server.peer), "path": "/", "body": lambda _: {"rows": 7}, "project": "bad"})
        broken = load.run(server, scenario, 1, tmp_path)

    assert found.rps > 10
    assert found.processor_us > 1
    assert 0 < found.p50 <= found.p95 <= found.p99
    assert (0, True) == (found.failed, broken.failed > 0)


@needs_wrk
def test_a_wrong_answer_under_load_is_seen(subject: Subject, tmp_path: Path) -> None:
    scenario = Scenario("x", 1, 2)
    with Server(honest(), BIN, subject, tmp_path / "work") as server:
        asked, wrong = load.compare_under_load(server, scenario, 1, tmp_path)
        (subject.folder / "expected.json").write_text(json.dumps([["no", 0.5]] * 4), encoding="utf-8")
        server.subject = Subject(subject.folder)
        asked_again, all_wrong = load.compare_under_load(server, scenario, 1, tmp_path)

    assert asked > 0
    assert [] == wrong
    assert asked_again == len(all_wrong) > 0


# Figures


def one(rps: float, p99: float, *, wrong: int = 0, failed: int = 0, ready: float = 3.0) -> Round:
    figure = {"rps": rps, "p50": p99 / 4, "p95": p99 / 2, "p99": p99, "failed": failed, "processor_us": 9}
    return Round({ONE: figure, MANY: figure}, ready, 100.0, 50, wrong)


def test_ratios_are_medians_over_rounds_whose_sides_were_measured_together() -> None:
    ours = [one(100, 2), one(300, 2), one(1000, 4)]
    base = [one(50, 4), one(100, 4), one(400, 4)]
    found = figures.summed_up({"esteira": ours, "fastapi": base})["peers"]

    assert 300 == found["esteira"]["loads"][ONE]["rps"]
    assert 2.5 == found["esteira"]["loads"][ONE]["to_fastapi"], "the median of 2, 3 and 2.5"
    assert 0.5 == found["esteira"]["loads"][MANY]["p99_to_fastapi"]
    assert found["fastapi"]["loads"][ONE]["to_fastapi"] is None


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        (one(200, 4), []),
        (one(199, 4), ["requests a second, to FastAPI's"]),
        (one(200, 4.1), ["p99, to FastAPI's"]),
        (one(200, 4, wrong=1), ["wrong answers"]),
        (one(200, 4, failed=1), ["failed requests"]),
        (one(200, 4, ready=4.0), ["start to first answer, s"]),
        (one(200, 400), ["p99, to FastAPI's", "p95 at 100 connections, ms"]),
    ],
)
def test_a_bound_is_met_or_missed(ours: Round, missed: list[str]) -> None:
    found = figures.summed_up({"esteira": [ours], "fastapi": [one(100, 4)]})["bounds"]

    assert missed == [name for name, bound in found.items() if not bound["held"]]
    assert len(missed) == sum(line.startswith("- MISSED") for line in figures.told(found))


def test_a_bound_whose_other_side_was_not_run_is_not_told() -> None:
    found = figures.summed_up({"esteira": [one(1, 1)]})["bounds"]

    assert not [name for name in found if "FastAPI" in name]
    assert {} == figures.summed_up({"fastapi": [one(1, 1)]})["bounds"]


def test_the_table_has_a_line_for_each_peer_and_load() -> None:
    found = figures.summed_up({"esteira": [one(200, 4)], "fastapi": [one(100, 4)]})["peers"]
    lines = figures.table(found, {"esteira": "1", "fastapi": "2"}, {"esteira": "all", "fastapi": "types"}).splitlines()

    assert "| esteira 1 | 200 | 2.00 | 1.00 | 2.00 | 4.00 | 9 | 0 | 0 of 50 | 3.0 | 100 | all |" in lines
    assert "| fastapi 2 | 100 |  | 1.00 | 2.00 | 4.00 | 9 | 0 |" in lines
    assert 2 == sum(line.startswith("| esteira") for line in lines)


def test_growth_is_the_slope_of_memory() -> None:
    assert 0.5 == pytest.approx(figures.slope([(0, 10.0), (10, 15.0), (20, 20.0)]))
    assert 0.0 == figures.slope([(1, 5.0)]) == figures.slope([])


@needs_wrk
@pytest.mark.slow
def test_ours_is_measured_as_the_bento_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = model.make
    made = make(tmp_path)
    monkeypatch.setattr(model, "make", lambda: made)
    monkeypatch.setattr(sys, "argv", ["compare", "--rounds", "1", "--seconds", "1", "--peers", "esteira", "--quick"])
    compare.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])

    ours = found["peers"]["esteira"]
    assert (0, 0) == (ours["wrong"], ours["loads"][ONE]["failed"])
    assert ours["compared"] > 10
    assert (made.folder / "bento" / "bento.yaml").is_file()
    assert make(tmp_path) == made, "it is trained once"
