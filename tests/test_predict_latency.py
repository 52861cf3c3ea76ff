"""`esteira predict` on an AutoML bundle: n rows in, n out, in order; the time of one row; and that it needs no training library."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esteira.automl.api import AutoML, fit
from esteira.cli import main
from tests import serving_lock

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("sklearn", "xgboost", "lightgbm", "optuna", "pandas", "onnx", "kfp", "mlflow")


def _table(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(9)
    size, city = rng.normal(80, 20, rows).round(1), rng.choice(["Porto", "Lisboa", "Faro"], rows)
    size[::9] = np.nan
    z = np.nan_to_num(size, nan=80.0) / 20 + (city == "Lisboa") * 2 + rng.normal(size=rows) * 0.5
    since = pd.date_range("2024-01-01", periods=rows, freq="D").strftime("%Y-%m-%d")
    level = np.array(["low", "middle", "high"])[np.digitize(z, [3.5, 5.0])]
    return pd.DataFrame({"size": size, "city": city, "since": since, "level": level})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoML]:
    """A folder with `bundle` and `rows.csv`, and the model; tests read both only."""
    folder = tmp_path_factory.mktemp("predict")
    model = fit(_table(), "level", trials=4, kinds=("lightgbm", "xgboost", "linear", "extra_trees"))
    model.export(folder / "bundle")
    rows = _table().iloc[::-1]
    rows.loc[rows.index[:3], "city"] = "never seen"
    rows.to_csv(folder / "rows.csv", index=False)
    return folder, model


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *arguments, "--json"])
    said = capsys.readouterr()
    assert 0 == ended.value.code, said
    return json.loads(said.out)


def test_as_many_answers_as_rows_in_their_order(
    made: tuple[Path, AutoML], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unseen categories, empty cells and the label itself among the columns are no reason to lose a row."""
    folder, model = made

    words = ("--bundle", str(folder / "bundle"), "--data", str(folder / "rows.csv"))
    said = _json(capsys, *words, "--out", str(tmp_path / "a.csv"))

    frame, answers = pd.read_csv(folder / "rows.csv"), pd.read_csv(tmp_path / "a.csv")
    assert (300, 300) == (said["rows"], len(answers))
    assert ["prediction", "proba_high", "proba_low", "proba_middle"] == answers.columns.tolist()
    assert model.predict(frame).tolist() == answers["prediction"].tolist()
    np.testing.assert_allclose(model.predict_proba(frame), answers.iloc[:, 1:].to_numpy(), atol=1e-9)


def test_the_latency_of_single_rows_is_printed_in_microseconds(
    made: tuple[Path, AutoML], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = made

    with pytest.raises(SystemExit) as ended:
        main(["predict", "--bundle", str(folder / "bundle"), "--data", str(folder / "rows.csv"), "--latency", "200"])

    assert 0 == ended.value.code
    word, _, figures = capsys.readouterr().out.strip().partition(" ")
    found = json.loads(figures)
    assert ("LATENCY", {"median", "p95", "calls"}, 200) == (word, set(found), found["calls"])
    assert 1 < found["median"] <= found["p95"] < 1e6


def test_predicting_imports_no_training_library(made: tuple[Path, AutoML]) -> None:
    script = (
        "import sys\nfrom esteira.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n"
        f"    print(ended.code, [name for name in {TRAINING!r} if name in sys.modules])"
    )
    folder, _ = made
    words = ["predict", "--bundle", str(folder / "bundle"), "--data", str(folder / "rows.csv"), "--latency", "5"]

    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True, cwd=ROOT)

    assert "0 []" == done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_it_answers_the_same_where_only_the_serving_lock_is_installed(
    made: tuple[Path, AutoML], tmp_path: Path
) -> None:
    """In an environment made from requirements/serving.lock, with our code and nothing else in it."""
    folder, model = made
    python, installed = serving_lock.make(tmp_path)
    assert set() == installed & {"scikit_learn", "xgboost", "xgboost_cpu", "lightgbm", "optuna", "pandas", "onnx"}

    def predict(*words: str) -> str:
        return subprocess.run(
            [python, "-m", "esteira.cli", "predict", "--bundle", folder / "bundle",
             "--data", folder / "rows.csv", *words],
            cwd=tmp_path, capture_output=True, text=True, check=True,
            env={"PYTHONPATH": str(tmp_path / "code"), "PATH": os.environ["PATH"]},
        ).stdout  # fmt: skip

    predict("--out", "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        answers = list(csv.DictReader(stream))
    frame = pd.read_csv(folder / "rows.csv")
    assert model.predict(frame).tolist() == [answer["prediction"] for answer in answers]
    shares = [[float(answer[f"proba_{name}"]) for name in model.classes.tolist()] for answer in answers]  # type: ignore[union-attr]
    np.testing.assert_allclose(model.predict_proba(frame), shares, atol=1e-9)
    assert predict("--latency", "20").startswith('LATENCY {"median": ')


def test_a_full_disk_leaves_no_answers_and_the_former_ones(tmp_path: Path) -> None:
    """The kernel's own refusal, by a limit on the size of files, which no process can pass."""
    import resource
    import signal

    from esteira.cli.predict import write_answers
    from esteira.errors import OutsideError

    answers = [{"prediction": "low", "probabilities": {"low": 1.0}}] * 500
    (tmp_path / "a.csv").write_text("former", encoding="utf-8")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OutsideError) as caught:
            write_answers(tmp_path / "a.csv", answers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)

    assert "disk_full" == caught.value.code
    assert ["a.csv"] == [path.name for path in tmp_path.iterdir()]
    assert "former" == (tmp_path / "a.csv").read_text(encoding="utf-8")
