"""The model that every peer serves, trained once by our AutoML, with rows to ask and what the native model says of them."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.serving.peers import Row, Said

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "serving"
TARGET = "diagnosis"
TRIALS = 8


@dataclass(frozen=True)
class Subject:
    """What is served and asked.

    Attributes:
        folder: holds `graph.onnx` and `columns.json` for the peers, `bundle/`, and `bento/` once it was built.
    """

    folder: Path

    @cached_property
    def classes(self) -> list[str]:
        """The labels, in the order of the graph's output."""
        return list(self._read("columns.json")["classes"])

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the table that it was trained on; 30 numbers each."""
        return list(self._read("rows.json"))

    @cached_property
    def expected(self) -> list[Said]:
        """What the fitted model itself, not its export, says of each row."""
        return [Said(label, probability) for label, probability in self._read("expected.json")]

    def some(self, start: int, count: int) -> tuple[list[Row], list[Said]]:
        """Rows from a place on, as often around as it takes, and what is expected of them."""
        places = [(start + at) % len(self.rows) for at in range(count)]
        return [self.rows[at] for at in places], [self.expected[at] for at in places]

    @property
    def row_us(self) -> float:
        """What the graph takes for one row by the cost model, microseconds."""
        return float(json.loads((self.folder / "bundle" / "record.json").read_text(encoding="utf-8"))["row_us"])

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def build_bento(self) -> None:
        """Write the Bento of today's code anew."""
        words = ["build", "--bundle", str(self.folder / "bundle"), "--out", str(self.folder / "bento")]
        done = subprocess.run(
            [sys.executable, "-m", "serving", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"the Bento could not be built:\n{done.stderr[-3000:]}")


def make(build: Path = BUILD) -> Subject:
    """The model below a folder, trained if it is not there; the same arguments give the same model on every machine."""
    from esteira.datasets import write_data

    csv = build / "data" / "breast_cancer.csv"
    write_data(csv.parent)
    key = hashlib.sha256(csv.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    folder = build / f"model-{key}"
    if not (folder / "expected.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _train(csv, folder)
    return Subject(folder)


def _train(csv: Path, folder: Path) -> None:
    import pandas as pd

    from esteira.automl.api import fit

    frame = pd.read_csv(csv)
    model = fit(frame, TARGET, trials=TRIALS, seed=42)
    classes = model.classes
    if classes is None or model.found.threshold is not None:
        raise SystemExit("the peers say the likelier of two classes, but this model goes by something else")
    model.export(folder / "bundle")
    shutil.copy(folder / "bundle" / "graph.onnx", folder)
    inputs = frame.drop(columns=TARGET).astype("float64")
    _write(folder / "columns.json", {"columns": inputs.columns.tolist(), "classes": classes.tolist()})
    _write(folder / "rows.json", inputs.to_dict("records"))
    probabilities = model.predict_proba(frame)[:, 1].tolist()
    _write(folder / "expected.json", list(zip(model.predict(frame).tolist(), probabilities, strict=True)))


def _write(file: Path, document: Any) -> None:
    file.write_text(json.dumps(document), encoding="utf-8")
