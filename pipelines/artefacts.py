"""What a step wrote, told in kfp's typed artefacts, so that the KFP UI shows it. Reads files; imports neither kfp nor a model library."""

import json
from pathlib import Path
from typing import Any

# The report draws no larger matrix either, and KFP keeps an artefact's metadata in one row of its database.
MOST_CLASSES = 30


def describe(artefact: Any, report: Any) -> None:
    """Put a step's report beside its output, without what is undefined: KFP refuses a null and would fail the step."""
    document: dict[str, Any] = report.model_dump(mode="json")
    artefact.metadata.update({name: value for name, value in document.items() if value is not None})


def log_scores(metrics: Any, evaluated: Path) -> None:
    """Every defined score, the constant baseline's primary score beside it, and how many rows were held back.

    Args:
        metrics: a kfp `Metrics`.
        evaluated: folder of evaluate.
    """
    document = _metrics(evaluated)
    primary = document["primary"]
    baseline = {f"baseline_{primary}": document["baseline"].get(primary), "test_rows": document["rows"]["test"]}
    for name, value in {**document["metrics"], **baseline}.items():
        if value is not None:
            metrics.log_metric(name, value)


def log_classification(classification: Any, evaluated: Path, featurized: Path, trained: Path) -> None:
    """Confusion matrix and, with two classes, the ROC curve; nothing for a regression, and KFP then shows nothing.

    The curve is the native model's; evaluate has held a release whose export answers otherwise.

    Args:
        classification: a kfp `ClassificationMetrics`.
        evaluated, featurized, trained: folders of those steps.
    """
    confusion = _metrics(evaluated).get("confusion")
    if confusion is None:
        return
    classes = [str(name) for name in confusion["classes"]]
    if len(classes) <= MOST_CLASSES:
        classification.log_confusion_matrix(classes, confusion["counts"])
    if len(classes) == 2:
        import numpy as np

        from esteira.features.metrics import roc_curve

        truth = np.load(featurized / "y_test.npy", allow_pickle=False)
        score = np.load(trained / "native_test.npy", allow_pickle=False)[:, 1]
        classification.log_roc_curve(*roc_curve(truth == 1, score))


def _metrics(evaluated: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    return document
