"""What KFP's UI shows of a step is what the step wrote, in the forms that KFP takes; what is undefined is left out."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp import dsl
from pydantic import BaseModel

from esteira.features.metrics import Classified, roc_auc, roc_curve
from pipelines.artefacts import describe, log_classification, log_scores

ROOT = Path(__file__).resolve().parents[1]


def _metrics(folder: Path, **more: Any) -> Path:
    document = {
        "primary": "roc_auc",
        "metrics": {"roc_auc": 0.75, "accuracy": 0.5, "average_precision": None},
        "baseline": {"roc_auc": 0.5, "accuracy": 0.5},
        "rows": {"train": 16, "test": 4},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def _rows(folder: Path, truth: list[int], probabilities: list[list[float]]) -> dict[str, Path]:
    for name in ("featurized", "trained"):
        (folder / name).mkdir()
    np.save(folder / "featurized" / "y_test.npy", np.array(truth))
    np.save(folder / "trained" / "native_test.npy", np.array(probabilities))
    return {name: folder / name for name in ("featurized", "trained")}


class TestScores:
    def test_defined_scores_stand_beside_the_baseline_and_the_number_of_rows(self, tmp_path: Path) -> None:
        artefact = dsl.Metrics()

        log_scores(artefact, _metrics(tmp_path))

        assert {"roc_auc": 0.75, "accuracy": 0.5, "baseline_roc_auc": 0.5, "test_rows": 4} == artefact.metadata

    def test_a_report_is_described_without_nulls_which_kfp_refuses(self) -> None:
        class Report(BaseModel):
            kind: str = "linear"
            baseline: float | None = None
            classes: dict[str, int] | None = None

        artefact = dsl.Model()

        describe(artefact, Report())

        assert {"kind": "linear"} == artefact.metadata


class TestClassification:
    def test_two_classes_have_a_matrix_and_a_curve(self, tmp_path: Path) -> None:
        confusion = {"classes": [False, True], "counts": [[1, 1], [0, 2]]}
        rows = _rows(tmp_path, [0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
        artefact = dsl.ClassificationMetrics()

        log_classification(artefact, _metrics(tmp_path / "evaluated", confusion=confusion), **rows)

        matrix = artefact.metadata["confusionMatrix"]
        assert ["False", "True"] == [one["displayName"] for one in matrix["annotationSpecs"]]
        assert [[1, 1], [0, 2]] == [row["row"] for row in matrix["rows"]]
        curve = artefact.metadata["confidenceMetrics"]
        assert [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)] == [
            (point["falsePositiveRate"], point["recall"]) for point in curve
        ]
        assert [1.0, 0.9, 0.6, 0.5, 0.1] == [point["confidenceThreshold"] for point in curve]
        json.dumps(artefact.metadata, allow_nan=False)

    def test_more_classes_have_a_matrix_and_no_curve(self, tmp_path: Path) -> None:
        confusion = {"classes": ["a", "b", "c"], "counts": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]}
        artefact = dsl.ClassificationMetrics()

        log_classification(artefact, _metrics(tmp_path, confusion=confusion), tmp_path, tmp_path)

        assert ["confusionMatrix"] == list(artefact.metadata)

    def test_very_many_classes_have_neither(self, tmp_path: Path) -> None:
        names = [f"class {number}" for number in range(31)]
        confusion = {"classes": names, "counts": np.eye(31, dtype=int).tolist()}
        artefact = dsl.ClassificationMetrics()

        log_classification(artefact, _metrics(tmp_path, confusion=confusion), tmp_path, tmp_path)

        assert {} == artefact.metadata

    def test_a_regression_logs_nothing(self, tmp_path: Path) -> None:
        artefact = dsl.ClassificationMetrics()

        log_classification(artefact, _metrics(tmp_path, coverage={}), tmp_path, tmp_path)

        assert {} == artefact.metadata


class TestCurve:
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60))
    def test_the_area_below_it_is_the_roc_auc(self, rows: list[tuple[bool, int]]) -> None:
        positive = np.array([row[0] for row in rows])
        score = np.array([row[1] / 20 for row in rows])
        false_alarms, hits, thresholds = roc_curve(positive, score)
        if positive.all() or not positive.any():
            assert ([], [], []) == (false_alarms, hits, thresholds)
            return

        y = Classified(
            positive.astype(np.int64), np.column_stack([1 - score, score]), positive.astype(np.int64), ("0", "1")
        )
        area = float(np.trapezoid(hits, false_alarms))
        assert float(roc_auc(y)(np.ones((1, len(rows))))[0]) == pytest.approx(area)
        assert (0.0, 0.0, 1.0, 1.0) == (false_alarms[0], hits[0], false_alarms[-1], hits[-1])
        assert all(np.diff(false_alarms) >= 0)
        assert all(np.diff(hits) >= 0)
        assert all(np.diff(thresholds) < 0)

    def test_a_long_curve_is_thinned_and_keeps_its_ends_and_its_area(self) -> None:
        rng = np.random.default_rng(7)
        positive = rng.random(20_000) < 0.3
        score = rng.random(20_000) * 0.7 + positive * 0.3

        false_alarms, hits, thresholds = roc_curve(positive, score)
        whole = roc_curve(positive, score, most=100_000)

        assert 200 == len(false_alarms) == len(hits) == len(thresholds)
        assert (0.0, 1.0) == (false_alarms[0], false_alarms[-1])
        assert np.trapezoid(whole[1], whole[0]) == pytest.approx(np.trapezoid(hits, false_alarms), abs=1e-3)
        assert np.isfinite(thresholds).all()


@pytest.mark.slow
@pytest.mark.parametrize(("table", "target", "logged"), [
    ("breast_cancer.csv", "diagnosis", {"confidenceMetrics", "confusionMatrix"}),
    ("diabetes.csv", "progression", set()),
])  # fmt: skip
def test_what_kfp_keeps_of_a_run_here_is_typed_and_whole(
    table: str, target: str, logged: set[str], esteira_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ingest to evaluate through kfp's own subprocess runner; kfp's record of each output is read back."""
    from kfp import local
    from kfp.local.config import LocalExecutionConfig

    from esteira.datasets import write_data
    from pipelines import ops

    class Told(NamedTuple):
        trained: dsl.Model
        evaluated: dsl.Artifact
        metrics: dsl.Metrics
        classification: dsl.ClassificationMetrics
        page: dsl.HTML

    @dsl.pipeline(name="judged")
    def judged(source: str, target: str) -> Told:
        line, seed = "tabular", 42
        ingested = ops.ingest(line=line, source=source, target=target, params={}).outputs["out"]
        validated = ops.validate(line=line, target=target, champion="", params={}, ingested=ingested).outputs["out"]
        featurized = ops.featurize(seed=seed, params={}, validated=validated).outputs["out"]
        trained = ops.train(
            line=line, seed=seed, params={"trials": 1}, featurized=featurized, validated=validated
        ).outputs["out"]
        told = ops.evaluate(
            line=line, champion="", seed=seed, params={}, featurized=featurized, trained=trained, validated=validated,
            ingested=ingested,
        ).outputs  # fmt: skip
        return Told(trained, told["out"], told["metrics"], told["classification"], told["page"])

    write_data(Path("data"))
    monkeypatch.setattr(LocalExecutionConfig, "instance", None)  # a singleton: put back as it was
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with warnings.catch_warnings():
        # kfp's words about an image that it does not use here.
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root="root", raise_on_error=True)
        told = judged(source=f"data/{table}", target=target).outputs

    measured = json.loads((Path(told["evaluated"].path) / "metrics.json").read_text(encoding="utf-8"))
    defined = {name: value for name, value in measured["metrics"].items() if value is not None}
    assert defined == {name: told["metrics"].metadata[name] for name in defined}
    assert logged == {"confidenceMetrics", "confusionMatrix"} & set(told["classification"].metadata)
    assert Path(told["page"].path).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert "kind" in told["trained"].metadata
    for artefact in told.values():
        assert None not in artefact.metadata.values()
