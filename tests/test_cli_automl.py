"""`esteira automl`: one bundle and nothing else, what a script and a person are told, and what bad input gets."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esteira.bundle import answerer, open_bundle, verify
from esteira.cli import main
from esteira.cli.automl import _progress
from esteira.console import interruptible

QUICK = ("--max-trials", "1", "--kinds", "linear")


def _table(rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    spent, plan = rng.normal(50, 15, rows).round(2), rng.choice(["basic", "gold"], rows)
    left = np.where((spent < 50) & (plan == "basic") | (rng.random(rows) < 0.1), "yes", "no")
    return pd.DataFrame(
        {"spent": spent, "plan": plan, "visits": rng.integers(0, 9, rows), "flag": rng.random(rows) < 0.5, "left": left}
    )


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A folder of its own with a table in it; the working directory."""
    _table().to_csv(tmp_path / "train.csv", index=False)
    return tmp_path / "train.csv"


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The JSON document of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    said = capsys.readouterr()
    assert code == ended.value.code, said
    return json.loads(said.out)


def test_it_leaves_one_sealed_bundle_and_nothing_else_and_predict_takes_it(train: Path, tmp_path: Path) -> None:
    """No project: a home that is not there is not made."""
    here = tmp_path / "elsewhere"
    here.mkdir()
    environment = {**os.environ, "ESTEIRA_HOME": str(here / "home")}

    def esteira(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "esteira.cli", *arguments],
            cwd=here, capture_output=True, text=True, timeout=120, env=environment,
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr
        return done

    done = esteira("automl", "--train", str(train), "--target", "left", "--out", "made/b", *QUICK, "--json")

    found = json.loads(done.stdout)
    assert {"best", "score", "metric", "leaderboard", "bundle_id", "bundle", "seconds", "row_us", "bytes"} <= set(found)
    assert ("roc_auc", "binary", "linear") == (found["metric"], found["task"], found["best"]["kind"])
    assert found["score"] == found["leaderboard"][0]["score"] == found["best"]["score"]
    assert ["b", "made"] == sorted(str(p.relative_to(here)).split("/")[-1] for p in here.rglob("*") if p.is_dir())
    manifest = verify(here / "made" / "b", found["bundle_id"])
    assert "tabular@train-left" == manifest["line"]
    assert "trial 1" in done.stderr

    _table().drop(columns="left").to_csv(here / "new.csv", index=False)
    esteira("predict", "--bundle", "made/b", "--data", "new.csv", "--out", "answers.csv")
    answers = pd.read_csv(here / "answers.csv")
    assert ["prediction", "proba_no", "proba_yes"] == answers.columns.tolist()
    opened = answerer(open_bundle(here / "made" / "b", "cpu"))
    rows = _table().drop(columns="left").to_dict("records")
    assert [answer["prediction"] for answer in opened.answer(rows)] == answers["prediction"].tolist()


def test_every_format_of_the_same_rows_gives_the_same_model(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = _table()
    frame.to_csv(tmp_path / "train.csv.gz", index=False)
    frame.to_parquet(tmp_path / "train.parquet", index=False)
    frame.to_json(tmp_path / "train.jsonl", orient="records", lines=True)

    graphs = set()
    for name in ("train.csv", "train.csv.gz", "train.parquet", "train.jsonl"):
        out = tmp_path / f"from-{name}"
        _run(capsys, "automl", "--train", str(tmp_path / name), "--target", "left", "--out", str(out), *QUICK)
        graphs.add((out / "graph.onnx").read_bytes())

    assert 1 == len(graphs)


def test_a_bundle_is_replaced_only_when_asked(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("automl", "--train", str(train), "--target", "left", "--out", str(tmp_path / "b"), *QUICK)
    first = _run(capsys, *words)

    assert "place_taken" == _run(capsys, *words, "--seed", "1", code=1)["error"]["code"]
    assert verify(tmp_path / "b", first["bundle_id"])
    second = _run(capsys, *words, "--seed", "1", "--force")
    assert verify(tmp_path / "b", second["bundle_id"])["seed"] == 1


BAD: dict[str, tuple[dict[str, str], str, int, str]] = {
    "a budget of nothing": ({"--budget": "0"}, "bad_budget", 2, "above 0"),
    "a negative budget": ({"--budget": "-3"}, "bad_budget", 2, "above 0"),
    "a budget that is no number": ({"--budget": "nan"}, "bad_budget", 2, "above 0"),
    "a row that may cost nothing": ({"--max-row-ms": "0"}, "bad_budget", 2, "max_row_us"),
    "no such file": ({"--train": "gone.csv"}, "missing_file", 2, "gone.csv"),
    "no such label": ({"--target": "lft"}, "missing_label", 1, "'left'"),
    "an unknown metric": ({"--metric": "auc"}, "unknown_metric", 2, "roc_auc"),
    "an unknown kind": ({"--kinds": "catboost"}, "unknown_kind", 2, "linear"),
    "an unknown column of time": ({"--time-column": "when"}, "unknown_column", 2, "visits"),
    "a task that the label cannot be": ({"--task": "regression"}, "label_not_numeric", 1, "left"),
    "a storage that is away": ({"--storage": "postgresql://ana:s3cret@127.0.0.1:1/x"}, "storage_away", 2, "127.0.0.1"),
    "a page among the files of the bundle": ({"--report": "b/page.html"}, "page_in_bundle", 2, "elsewhere"),
    "a page that cannot be": ({"--report": "train.csv/page.html"}, "cannot_write", 2, "train.csv"),
    "a folder that cannot be": ({"--out": "train.csv/b"}, "cannot_write", 2, "train.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_letter_and_leaves_nothing(
    case: str, train: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, code, status, word = BAD[case]
    monkeypatch.chdir(train.parent)
    words = {
        "--train": "train.csv",
        "--target": "left",
        "--out": "b",
        **dict(zip(QUICK[::2], QUICK[1::2], strict=True)),
    }

    error = _run(capsys, "automl", *(part for pair in {**words, **changed}.items() for part in pair), code=status)[
        "error"
    ]

    assert code == error["code"]
    assert word in " ".join(error.values())
    assert "s3cret" not in " ".join(error.values())
    assert error["cure"]
    assert ["train.csv"] == [path.name for path in train.parent.iterdir()]


def test_kinds_that_were_not_tried_are_no_trouble_to_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a few rows no network is made: it has a row on the leaderboard, and no number."""
    _table(12).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["automl", "--train", str(tmp_path / "few.csv"), "--target", "left", "--out", str(tmp_path / "b"),
              "--max-trials", "2", "--kinds", "constant,linear,neural_network"])  # fmt: skip

    said = capsys.readouterr().out
    assert 0 == ended.value.code, said
    assert "bundle" in said
    assert "None" not in said


def test_nested_cells_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": at * 0.37, "b": {"c": [at % 3]}, "y": at % 2} for at in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("automl", "--train", str(tmp_path / "t.jsonl"), "--target", "y", "--out", str(tmp_path / "b"), *QUICK)

    error = _run(capsys, *words, code=1)["error"]

    assert ("nested_column", True) == (error["code"], "--drop" in error["cure"])
    assert 0 < _run(capsys, *words, "--drop", "b")["bytes"]


def test_where_there_is_a_home_a_search_goes_on_from_its_journal(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second search finds every trial told, so it writes none into the journal."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("ESTEIRA_HOME", str(tmp_path / "home"))
    words = ("automl", "--train", str(train), "--target", "left", *QUICK)
    journal = tmp_path / "home" / "automl" / "journal"

    _run(capsys, *words, "--out", str(tmp_path / "a"))
    told = journal.read_bytes()
    _run(capsys, *words, "--out", str(tmp_path / "b"))

    assert told == journal.read_bytes() != b""
    assert (tmp_path / "a" / "graph.onnx").read_bytes() == (tmp_path / "b" / "graph.onnx").read_bytes()


def test_a_leaked_label_is_said_out_loud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _table().assign(copy=lambda t: (t["left"] == "yes") * 2.0).to_csv(tmp_path / "t.csv", index=False)

    with pytest.raises(SystemExit) as ended:
        main(["automl", "--train", str(tmp_path / "t.csv"), "--target", "left", "--out", str(tmp_path / "b"), *QUICK])

    assert 0 == ended.value.code
    said = capsys.readouterr().err
    assert "warning:" in said
    assert "'copy'" in said


def test_the_first_interrupt_asks_and_the_second_one_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    former = signal.getsignal(signal.SIGINT)

    with interruptible("stopping with the best so far") as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert former is signal.getsignal(signal.SIGINT)
    assert "best so far" in capsys.readouterr().err


def _searching(folder: Path) -> subprocess.Popen[str]:
    """A search with a long budget that has told of its first trial."""
    _table(2000).to_csv(folder / "train.csv", index=False)
    started = subprocess.Popen(
        [sys.executable, "-m", "esteira.cli", "automl", "--train", "train.csv", "--target", "left", "--budget", "300", "--out", "b"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "ESTEIRA_HOME": str(folder / "home")},
    )  # fmt: skip
    assert started.stderr is not None
    for line in started.stderr:
        if "trial 1" in line:
            break
    return started


@pytest.mark.slow
def test_interrupted_once_the_best_so_far_is_written(tmp_path: Path) -> None:
    search = _searching(tmp_path)

    search.send_signal(signal.SIGINT)
    _, said = search.communicate(timeout=120)

    assert 0 == search.returncode, said
    assert verify(tmp_path / "b")["family"] == "tabular"
    assert {"train.csv", "b"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_interrupted_twice_nothing_is_written(tmp_path: Path) -> None:
    search = _searching(tmp_path)

    search.send_signal(signal.SIGINT)
    assert search.stderr is not None
    for line in search.stderr:
        if "once more" in line:
            break
    search.send_signal(signal.SIGINT)
    search.communicate(timeout=120)

    assert 1 == search.returncode
    assert ["train.csv"] == [path.name for path in tmp_path.iterdir()]


def test_where_there_is_no_terminal_a_line_is_said_where_it_gets_better(capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that was cut after a good first fold is no new best, and neither is one without a score."""
    with _progress(10.0, 0.0, quiet=True) as told:
        for number, (score, best) in enumerate([(None, None), (0.6, 0.6), (0.1, 0.6), (0.5, 0.5), (0.7, 0.5)], 1):
            told(number, 5, {"kind": "linear", "metric": "log_loss", "score": score, "best": best})

    lines = capsys.readouterr().err.splitlines()
    assert ["0.60000", "0.50000"] == [line.split()[-1] for line in lines]
