"""How good the exported model is on held-back rows, beside the trivial baseline, the champion and its native self. It judges nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.heldback import TestTable
from esteira import slices
from esteira.bundle import Bundle, answerer, open_bundle
from esteira.errors import ConfigError, DataError, EsteiraError
from esteira.family import Answer, Score
from esteira.features.answers import said
from esteira.features.contract import TableContract
from esteira.features.metrics import (
    HIGHER_IS_BETTER,
    Classified,
    Estimated,
    Floats,
    Predictions,
    baseline,
    bootstrap,
    calibration,
    confusion,
    coverage,
    interval,
    names,
    per_class,
    predictions,
    resample_count,
    scores,
    statistic,
)
from esteira.gate import Fact

GRAPH = "graph.onnx"
_IMPORTANCE_ROWS = 30_000  # rows through the graph in all, whatever the number of columns: about a second
_FEW_ROWS = 200
_WITH_INTERVAL = {"accuracy", "log_loss", "r2", "rmse", "mae"}  # besides the primary score


@dataclass(frozen=True)
class Measurement:
    """The model on the test rows: its predictions, the resamples of its scores and the document made of them."""

    y: Predictions
    trivial: Predictions
    drawn: Mapping[str, Floats]
    against_baseline: Mapping[str, Fact]
    document: dict[str, Any]


def measure(
    table: TestTable,
    answers: Sequence[Answer],
    contract: TableContract,
    own: Mapping[str, Score],
    *,
    resamples: int,
    seed: int,
) -> Measurement:
    """Scores with intervals, the trivial baseline on the same rows, calibration, slices; deterministic by the seed.

    Args:
        own: the family's scores of these answers, the primary one first. A name that is known here is computed here;
            others are reported as the family says, without interval and baseline.

    Raises:
        ConfigError: the family's primary score is none of those that are known here.
    """
    classes = None if contract.target.classes is None else [str(name) for name in answers[0]["probabilities"]]
    y = predictions(table.truths, answers, classes=classes)
    trivial = baseline(table.y_train, y)
    primary = next(iter(own), "")
    known = scores(y)
    if primary not in known:
        raise ConfigError(
            f"a family's first score is one of {', '.join(known)}, but that of {contract.line} is {primary!r}",
            code="unknown_metric",
            where=f"{contract.line}, metrics.py",
            cure="name one of these first; scores of its own may follow, and gate.yaml may hold them to a threshold",
        )
    found = {primary: known[primary], **known, **{name: score for name, score in own.items() if name not in known}}
    count = resample_count(len(y), resamples)
    wanted = [name for name in names(y) if name == primary or name in _WITH_INTERVAL]
    # Both models in one pass over the resamples: paired by construction.
    drawn = bootstrap(
        {f"{who}:{name}": statistic(name, of) for who, of in (("model", y), ("baseline", trivial)) for name in wanted},
        len(y),
        count=count,
        seed=seed,
        groups=table.groups,
    )
    mine = {name: drawn[f"model:{name}"] for name in wanted}
    against = compare(mine, {name: drawn[f"baseline:{name}"] for name in wanted}, y, trivial)
    document: dict[str, Any] = {
        "line": contract.line,
        "task": contract.target.task,
        "target": contract.target.name,
        "primary": primary,
        "rows": {"train": len(table.y_train), "test": len(y)},
        "seed": seed,
        "resamples": count,
        "metrics": {name: score.value for name, score in found.items()},
        "higher_is_better": {name: score.higher_is_better for name, score in found.items()},
        "intervals": {name: span for name in wanted if (span := _listed(interval(mine[name]))) is not None},
        "reasons": {name: score.reason for name, score in found.items() if score.reason},
        "baseline": {name: score.value for name, score in scores(trivial).items()},
        "against_baseline": _dumped(against),
    }
    if isinstance(y, Classified):
        document["calibration"] = calibration(y)
        document["per_class"] = per_class(y)
        document["confusion"] = {"classes": list(y.classes), "counts": confusion(y).tolist()}
        metric = primary
    else:
        document["coverage"] = coverage(y)
        metric = "mae"  # R2 compares with a group's own spread, so a narrow group looks bad by it whatever its errors
    overall = document["metrics"][metric]
    parts = slices.cut(contract.columns, table.rows)
    document["slices"] = slices.score(parts, y, metric, overall, seed=seed)
    by_class = slices.score(slices.by_class(y), y, "accuracy" if isinstance(y, Classified) else metric, None, seed=seed)
    document["truth_slices"] = by_class
    document["warnings"] = _warnings(document, contract)
    return Measurement(y, trivial, mine, against, document)


def _warnings(document: Mapping[str, Any], contract: TableContract) -> list[str]:
    """What a reader should keep in mind, in sentences."""
    said: list[str] = []
    n = document["rows"]["test"]
    if n < _FEW_ROWS:
        said.append(f"Only {n} rows were held back: every interval here is wide.")
    for name, reason in document["reasons"].items():
        said.append(f"{name}: {reason}.")
    weak = [part for part in document["slices"] if part["weak"]]
    if weak:
        shown = ", ".join(f"{part['segment']} ({part['value']:.3g}, n {part['n']:,})" for part in weak[:5])
        more = f" and {len(weak) - 5} more" if len(weak) > 5 else ""
        said.append(f"It is clearly worse for some: {shown}{more}.")
    if contract.group_column:
        said.append(f"Rows of one {contract.group_column!r} were resampled together, because they are not independent.")
    if contract.time_column:
        said.append(f"The test rows are the latest by {contract.time_column!r}; intervals take rows as independent.")
    return said


def compare_champion(
    champion: Path, table: TestTable, mine: Measurement, contract: TableContract, *, seed: int
) -> tuple[dict[str, Any], dict[str, Fact], Predictions | None]:
    """The line's champion on the same rows and the same resamples.

    Returns:
        its part of metrics.json, the differences (empty with a `reason` in the part when it cannot answer these rows), and
        its predictions.
    """
    try:
        opened = open_bundle(champion, "cpu")
        model = answerer(opened)
        known = {column["name"] for column in opened.manifest.get("schema", {}).get("columns", [])}
        rows = [{key: value for key, value in row.items() if key in known} for row in table.rows]
        broken = [finding for finding in model.check(rows) if finding.severity == "error"]
        if broken:
            raise DataError(
                f"the champion cannot read these rows: {broken[0].message}",
                code="champion_rows",
                where=str(contract.line),
            )
        classes = mine.y.classes if isinstance(mine.y, Classified) else None
        y = predictions(table.truths, model.answer(rows), classes=classes)
        if type(y) is not type(mine.y):
            raise DataError("the champion answers another kind of question", code="champion_task", where=contract.line)
    except EsteiraError as error:
        return {"bundle_id": sealed_id(champion), "reason": error.message, "metrics": {}, "difference": {}}, {}, None
    drawn = bootstrap(
        {name: statistic(name, y) for name in mine.drawn},
        len(y),
        count=mine.document["resamples"],
        seed=seed,
        groups=table.groups,
    )
    difference = compare(mine.drawn, drawn, mine.y, y)
    part = {
        "bundle_id": opened.bundle_id,
        "reason": "",
        "metrics": {name: score.value for name, score in scores(y).items()},
        "difference": _dumped(difference),
        "data_hash": opened.manifest.get("data_hash", ""),
    }
    return part, difference, y


def compare(
    model: Mapping[str, Floats], other: Mapping[str, Floats], a: Predictions, b: Predictions
) -> dict[str, Fact]:
    """Paired differences a - b of every score that has resamples on both sides, counted so that more is better for a.

    Args:
        model, other: name -> values on the same resamples.
        a, b: the predictions, for the point values.
    """
    found: dict[str, Fact] = {}
    left, right = scores(a), scores(b)
    for name in model:
        if name not in other:
            continue
        sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
        one, two = left[name].value, right[name].value
        if one is None or two is None:
            found[name] = Fact(n=len(a), reason=left[name].reason or right[name].reason)
        else:
            span = interval(sign * (model[name] - other[name]))
            found[name] = Fact(value=sign * (one - two), n=len(a), interval=span)
    return found


def importance(
    bundle: Bundle,
    x: NDArray[np.float32],
    y: Predictions,
    groups: Mapping[str, Sequence[int]],
    metric: str,
    *,
    seed: int,
) -> dict[str, Any]:
    """What a score loses when one source column is shuffled, most first.

    Args:
        x: test features `(rows, features)`; as many rows are taken as keep all columns within a fixed amount of work.
        groups: source column -> positions of its features, which are shuffled together.
        metric: name of the score; one of which less is better gains instead, so its sign is turned.

    Returns:
        `{"metric", "rows", "columns": [{"column", "value"}]}`; empty columns when the score is undefined on the rows taken.
    """
    rng = np.random.default_rng(seed)
    take = min(len(x), max(100, min(1000, _IMPORTANCE_ROWS // max(1, len(groups)))))
    index = np.sort(rng.permutation(len(x))[:take])
    part, mine = x[index], y.take(index)
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    ones = np.ones((1, take))

    def value(features: NDArray[np.float32]) -> float:
        out = np.asarray(bundle.run(GRAPH, features)["y"], dtype=np.float64)
        if isinstance(mine, Classified):
            told: Predictions = Classified(mine.truth, out, said(out, bundle.manifest["post"]), mine.classes)
        else:
            told = Estimated(mine.truth, out)
        return sign * float(statistic(metric, told)(ones)[0])

    whole = value(part)
    table: list[dict[str, Any]] = []
    for column, positions in groups.items():
        shuffled = part.copy()
        shuffled[:, list(positions)] = part[rng.permutation(take)][:, list(positions)]
        table.append({"column": column, "value": whole - value(shuffled)})
    if not all(np.isfinite(entry["value"]) for entry in table):
        table = []
    table.sort(key=lambda entry: (-entry["value"], entry["column"]))
    return {"metric": metric, "rows": int(take), "columns": table}


def export_parity(native: NDArray[Any], opened: Bundle, table: TestTable, y: Predictions) -> dict[str, Any]:
    """The export against the native model, twice: features through the graph, and JSON rows through the whole answerer."""
    exported = np.asarray(opened.run(GRAPH, table.x)["y"], dtype=np.float64)
    post = opened.manifest["post"]
    by_graph, labels = parity(native, exported, post)
    by_rows, labels_by_rows = parity(native, answered(y), post)
    worst = max(by_graph, by_rows)
    fine = bool(np.isfinite(worst))
    return {
        "difference": worst if fine else None,
        "graph": by_graph if np.isfinite(by_graph) else None,
        "rows": by_rows if np.isfinite(by_rows) else None,
        "labels_differing": max(labels, labels_by_rows),
        "reason": ""
        if fine
        else f"the native model answers {native.shape}, the export {exported.shape}, or not in numbers",
    }


def row_cost(opened: Bundle) -> dict[str, Any]:
    """What one answer costs by the cost model, as a share of what the search was allowed: `{"us", "limit_us", "share", "reason"}`."""
    try:
        record = json.loads(opened.read("record.json"))
    except KeyError:
        reason = "the bundle has no record.json, which says what one answer costs"
        return {"us": None, "limit_us": None, "share": None, "reason": reason}
    spent, limit = record["row_us"], record["row_us_limit"]
    return {"us": spent, "limit_us": limit, "share": spent / limit, "reason": ""}


def parity(native: NDArray[Any], exported: NDArray[Any], post: Mapping[str, Any]) -> tuple[float, int]:
    """How far two models' outputs lie apart: the largest difference (relative above 1 for values), and labels that differ.

    Args:
        native, exported: probabilities `(rows, classes)` or values `(rows,)`.
        post: says how a label is made of probabilities.
    """
    if native.shape != exported.shape:
        return float("inf"), len(native)
    if not native.size:
        return 0.0, 0
    apart = np.abs(native - exported)
    if native.ndim == 1:
        return float((apart / np.maximum(1.0, np.abs(native))).max()), 0
    return float(apart.max()), int((said(native, post) != said(exported, post)).sum())


def answered(y: Predictions) -> Floats:
    """Probabilities `(rows, classes)` or values `(rows,)` out of answers, for `parity`."""
    return y.probabilities if isinstance(y, Classified) else y.predicted


def sealed_id(folder: Path) -> str:
    """The bundle_id that a folder says it has; empty where there is none."""
    name = folder / "manifest.sha256"
    return name.read_text(encoding="utf-8").strip()[:64] if name.is_file() else ""


def _dumped(facts: Mapping[str, Fact]) -> dict[str, Any]:
    keep = {"value", "interval", "reason"}
    return {name: fact.model_dump(mode="json", include=keep) for name, fact in facts.items()}


def _listed(span: tuple[float, float] | None) -> list[float] | None:
    return None if span is None else list(span)
