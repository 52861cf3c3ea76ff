"""Step `evaluate`: measures the exported model on held-back rows, boots the real server, seals the bundle and lets the gate judge.

It measures what will be served (the sealed graph behind the family's answerer), never the native model; all outputs are
written before a held gate is raised. It registers nothing.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from esteira import gate, outputs, probe, slices
from esteira.bundle import Bundle, answerer, open_bundle, seal
from esteira.card import card_missing, make_card, to_markdown
from esteira.errors import DataError, EsteiraError, GateHeld, SourceError
from esteira.family import Answer, Line, load_family
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
    label_text,
    names,
    per_class,
    predictions,
    resample_count,
    scores,
    statistic,
)
from esteira.gate import Fact, Facts, Rule, Verdict

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

GRAPH = "graph.onnx"
_IMPORTANCE_ROWS = 30_000  # rows through the graph in all, whatever the number of columns: about a second
_FEW_ROWS = 200
_WITH_INTERVAL = {"accuracy", "log_loss", "r2", "rmse", "mae"}  # besides the primary score
_LIBRARIES = ("esteira", "numpy", "onnx", "onnxruntime", "scikit-learn", "xgboost", "xgboost-cpu", "optuna")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardText(_Frozen):
    """What a line says of itself instead of its family's README; empty keeps the README's words."""

    purpose: str = ""
    data: str = ""
    limits: str = ""
    contact: str = ""
    licence: str = ""


class Params(_Frozen):
    """The section `evaluate` of params.yaml.

    Attributes:
        profile: a profile of the family's gate.yaml whose rules are added.
        rules: more rules, in the words of gate.yaml; one with a known name replaces it.
        resamples: bootstrap resamples behind each interval.
        calls: single rows that are asked of the real server, one after the other.
        boot_patience_s: seconds until the server must be ready.
        card: texts of the model card.
        code_revision: what the code is called; empty asks git.
    """

    profile: str | None = None
    rules: tuple[Rule, ...] = ()
    resamples: int = Field(default=1000, ge=200, le=10_000)
    calls: int = Field(default=200, ge=0, le=10_000)
    boot_patience_s: float = Field(default=90.0, gt=0, le=600)
    card: CardText = CardText()
    code_revision: str = ""


class Report(_Frozen):
    """What came out: the verdict, the point values by name (None where undefined) and the rules that hold, if any."""

    line: str
    verdict: str
    bundle_id: str
    primary: str
    metrics: dict[str, float | None]
    baseline: dict[str, float | None]
    held_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class TestTable:
    """The held-back rows. `rows` are JSON values without the label, `truths` labels in their own type."""

    __test__ = False  # not a test class, whatever its name

    rows: list[dict[str, Any]]
    truths: list[Any]
    x: NDArray[np.float32]
    y_train: NDArray[Any]
    groups: NDArray[Any] | None


# ---------------------------------------------------------------------------------------------- pure


def json_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of typed cells as JSON rows: dates become ISO text, NaN becomes null."""
    plain = [[_json_cell(cell) for cell in cells] for cells in columns.values()]
    keys = tuple(columns)
    return [dict(zip(keys, cells, strict=True)) for cells in zip(*plain, strict=True)]


def _json_cell(cell: Any) -> Any:
    if cell is None or cell != cell:
        return None
    return cell.isoformat() if hasattr(cell, "isoformat") else cell


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


def parity(native: NDArray[Any], exported: NDArray[Any]) -> tuple[float, int]:
    """How far two models' outputs lie apart: the largest difference (relative above 1 for values), and labels that differ.

    Args:
        native, exported: probabilities `(rows, classes)` or values `(rows,)`.
    """
    if native.shape != exported.shape:
        return float("inf"), len(native)
    if not native.size:
        return 0.0, 0
    apart = np.abs(native - exported)
    if native.ndim == 1:
        return float((apart / np.maximum(1.0, np.abs(native))).max()), 0
    return float(apart.max()), int((native.argmax(axis=1) != exported.argmax(axis=1)).sum())


def answered(y: Predictions) -> Floats:
    """Probabilities `(rows, classes)` or values `(rows,)` out of answers, for `parity`."""
    return y.probabilities if isinstance(y, Classified) else y.predicted


def importance(
    bundle: Bundle, x: NDArray[np.float32], y: Predictions, groups: Mapping[str, Sequence[int]], *, seed: int
) -> dict[str, Any]:
    """What the primary score loses when one source column is shuffled, most first.

    Args:
        x: test features `(rows, features)`; as many rows are taken as keep all columns within a fixed amount of work.
        groups: source column -> positions of its features, which are shuffled together.

    Returns:
        `{"metric", "rows", "columns": [{"column", "value"}]}`; empty columns when the score is undefined on the rows taken.
    """
    rng = np.random.default_rng(seed)
    take = min(len(x), max(100, min(1000, _IMPORTANCE_ROWS // max(1, len(groups)))))
    index = np.sort(rng.permutation(len(x))[:take])
    part, mine = x[index], y.take(index)
    metric = names(mine)[0]
    ones = np.ones((1, take))

    def value(features: NDArray[np.float32]) -> float:
        out = np.asarray(bundle.run(GRAPH, features)["y"], dtype=np.float64)
        if isinstance(mine, Classified):
            told: Predictions = Classified(mine.truth, out, out.argmax(axis=1), mine.classes)
        else:
            told = Estimated(mine.truth, out)
        return float(statistic(metric, told)(ones)[0])

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


def facts_of(
    document: Mapping[str, Any],
    against_baseline: Mapping[str, Fact],
    against_champion: Mapping[str, Fact] | None,
    measured: probe.Measured,
    *,
    bundle_id: str,
    missing: Sequence[str],
) -> Facts:
    """What the gate judges.

    Args:
        document: metrics.json.
        against_champion: None when the line has no champion.
        measured: what the real server showed.
        missing: what the card lacks.
    """
    n = document["rows"]["test"]
    found: dict[str, Fact] = {}
    for name, value in document["metrics"].items():
        span = document["intervals"].get(name)
        found[name] = Fact(
            value=value,
            n=n,
            interval=None if span is None else (span[0], span[1]),
            higher_is_better=document["higher_is_better"][name],
            reason=document["reasons"].get(name, ""),
        )
    for name in ("ece",):
        if document.get("calibration"):
            found[name] = Fact(value=document["calibration"][name], n=n, higher_is_better=False)
    found["test_rows"] = Fact(value=n, n=n)
    same = document["parity"]
    found["parity_difference"] = Fact(value=same["difference"], n=n, higher_is_better=False, reason=same["reason"])
    found["labels_differing"] = Fact(value=same["labels_differing"], n=n, higher_is_better=False, reason=same["reason"])
    reason = measured.reason
    if not reason and measured.bundle_id != bundle_id:
        reason = f"the server says that it serves bundle {measured.bundle_id[:12]!r}, not {bundle_id[:12]!r}"
    differing = None if reason else float(measured.differing)
    found["golden_differing"] = Fact(value=differing, n=measured.golden, higher_is_better=False, reason=reason)
    for share, name in ((0.5, "latency_p50_ms"), (0.95, "latency_p95_ms")):
        found[name] = Fact(
            value=None if reason else measured.percentile(share),
            n=len(measured.milliseconds),
            higher_is_better=False,
            reason=reason or "no request was timed",
        )
    found["card_missing"] = Fact(
        value=len(missing),
        n=1,
        higher_is_better=False,
        reason=f"the card lacks {', '.join(missing)}" if missing else "",
    )
    cut = {
        part["segment"]: {
            part["metric"]: Fact(
                value=part["value"],
                n=part["n"],
                interval=None if part["interval"] is None else (part["interval"][0], part["interval"][1]),
                higher_is_better=document["higher_is_better"][part["metric"]],
                reason=part["reason"],
            )
        }
        for part in document["slices"]
    }
    return Facts(
        primary=document["primary"],
        metrics=found,
        against_baseline=dict(against_baseline),
        against_champion=dict(against_champion or {}),
        has_champion=against_champion is not None,
        slices=cut,
    )


def held(verdict: Verdict, line: str, measured: probe.Measured) -> GateHeld:
    """The letter of a gate that said no: which rules, and what to do about the first of them."""
    first = verdict.held_by[0].rule if verdict.held_by else ""
    cures = {
        "better_than_baseline": "look for columns that tell more, or bring more rows; report.html shows where it errs",
        "not_worse_than_champion": "the champion goes on serving; more trials or newer data may beat it",
        "enough_rows": "bring more rows",
        "export_answers_as_native": "this is a fault of ours: the export must answer as the model does",
        "export_labels_equal": "this is a fault of ours: the export must answer as the model does",
        "served_answers_equal": f"look at what the server said: {measured.reason or '; '.join(measured.examples)}"[
            :400
        ],
        "served_in_time": "use a smaller model, or raise the bound for this line",
        "card_complete": "write the missing sections into the family's README.md or under evaluate.card in params.yaml",
    }
    return GateHeld(
        f"the gate held this release: {verdict.summary()}",
        code="gate_held",
        where=f"{line}, step evaluate",
        cure=cures.get(first, "see gate.json and report.html of this run for every rule, its value and its bound"),
    )


# ---------------------------------------------------------------------------------------------- measuring


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
    *,
    resamples: int,
    seed: int,
) -> Measurement:
    """Scores with intervals, the trivial baseline on the same rows, calibration, slices; deterministic by the seed."""
    classes = None if contract.target.classes is None else [str(name) for name in answers[0]["probabilities"]]
    y = predictions(table.truths, answers, classes=classes)
    trivial = baseline(table.y_train, y)
    found = scores(y)
    primary = next(iter(found))
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
        return {"bundle_id": _sealed_id(champion), "reason": error.message, "metrics": {}, "difference": {}}, {}, None
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


def _former_card(champion: Path | None) -> dict[str, Any] | None:
    """The champion's card with its bundle_id, for the history; None when there is none that can be read."""
    if champion is None:
        return None
    try:
        card = _read_json(champion / "card.json")
    except ValueError:
        return None
    return None if card is None else {**card, "bundle_id": _sealed_id(champion)}


def _sealed_id(folder: Path) -> str:
    name = folder / "manifest.sha256"
    return name.read_text(encoding="utf-8").strip()[:64] if name.is_file() else ""


def _dumped(facts: Mapping[str, Fact]) -> dict[str, Any]:
    keep = {"value", "interval", "reason"}
    return {name: fact.model_dump(mode="json", include=keep) for name, fact in facts.items()}


def _listed(span: tuple[float, float] | None) -> list[float] | None:
    return None if span is None else list(span)


# ---------------------------------------------------------------------------------------------- the step


def run(
    *,
    features: Path,
    trained: Path,
    contract: Path,
    dataset: Path,
    champion: Path | None,
    line: str,
    out: Path,
    params: Params,
    seed: int,
) -> Report:
    """Measure, seal, boot, judge.

    Args:
        features: featurize's folder.
        trained: train's folder.
        contract: validate's contract.yaml.
        dataset: ingest's dataset.json.
        champion: bundle folder of the line's present champion, if there is one.
        line: `FAMILY` or `FAMILY@NAME`.
        out: gets `bundle/` (sealed), metrics.json (deterministic), gate.json, serving.json (what the server showed) and
            report.html.
        params: the section `evaluate`.
        seed: of resamples and shuffles.

    Raises:
        GateHeld: after everything is written.
        ConfigError: the gate's rules cannot be read, or there is no such profile.
        SourceError: an input is missing.
    """
    return evaluate(
        features=features, trained=trained, contract=contract, dataset=dataset, champion=champion, line=line, out=out,
        params=params, seed=seed, server=probe.COMMAND,
    )  # fmt: skip


def evaluate(
    *,
    features: Path,
    trained: Path,
    contract: Path,
    dataset: Path,
    champion: Path | None,
    line: str,
    out: Path,
    params: Params,
    seed: int,
    server: Sequence[str],
) -> Report:
    """`run` with the server's command as an argument."""
    family = Line.parse(line).family
    _must_exist(
        line,
        *(features / name for name in ("rows_test.parquet", "x_test.npy", "y_test.npy", "y_train.npy")),
        *(trained / name for name in ("leaderboard.json", "native_test.npy", "model/golden.json", "model/graph.onnx")),
        contract,
        dataset,
    )
    here = resources.files(f"families.{family}")
    rules = gate.read_rules(
        (here / "gate.yaml").read_text(encoding="utf-8"), where=f"families/{family}/gate.yaml"
    ).select(params.profile, params.rules)
    readme = here / "README.md"
    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    source: dict[str, Any] = json.loads(dataset.read_text(encoding="utf-8"))
    table = _read_table(features, agreed)
    board: list[dict[str, Any]] = json.loads((trained / "leaderboard.json").read_text(encoding="utf-8"))
    native = np.load(trained / "native_test.npy", allow_pickle=False)
    golden = json.loads((trained / "model" / "golden.json").read_text(encoding="utf-8"))
    pairs = list(zip(golden["rows"], golden["answers"], strict=True))

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluate-", dir=out) as scratch:
        # What is measured is the export, opened as it will be served; the card needs the figures, so it is sealed twice.
        draft = Path(scratch) / "draft"
        shutil.copytree(trained / "model", draft)
        manifest = _manifest(family, line, agreed, trained, source, board, params, seed)
        seal(draft, manifest=manifest)
        opened = open_bundle(draft, "cpu")
        answers = answerer(opened).answer(table.rows)
        measured = measure(table, answers, agreed, resamples=params.resamples, seed=seed)
        document = measured.document
        former = _former_card(champion)
        card = make_card(
            line=line,
            answers=_answers(agreed, source),
            readme=readme.read_text(encoding="utf-8") if readme.is_file() else "",
            overrides=params.card.model_dump(),
            data=_data_section(source, agreed, document),
            metrics=_metrics_section(document),
            found_limits=document["warnings"],
            versions={"code_revision": manifest["code_revision"], **manifest["dependencies"]},
            example=pairs[0][0] if pairs else table.rows[0],
            former=former,
        )
        final = Path(scratch) / "bundle"
        shutil.copytree(trained / "model", final)
        (final / "leaderboard.json").write_text(_json(board), encoding="utf-8")
        (final / "card.json").write_text(_json(card), encoding="utf-8")
        (final / "card.md").write_text(to_markdown(card), encoding="utf-8")
        told = {"metrics": document["metrics"], "baseline": document["baseline"]}
        bundle_id = seal(final, manifest={**manifest, **told})
        bundle = out / "bundle"
        if bundle.exists():
            shutil.rmtree(bundle)
        final.replace(bundle)

        with probe.Server(bundle, patience=params.boot_patience_s, command=server) as booting:
            # The server boots for some seconds; all that does not need it is done meanwhile.
            difference: dict[str, Fact] | None = None
            rival: Predictions | None = None
            if champion is not None:
                document["champion"], difference, rival = compare_champion(champion, table, measured, agreed, seed=seed)
                if document["champion"].get("data_hash", "") not in {"", source["content_hash"]}:
                    document["warnings"].append(
                        "The champion learned from other data, so it may have seen some of these test rows."
                    )
            document["parity"] = _parity(native, opened, table, measured.y)
            document["importance"] = importance(
                opened, table.x, measured.y, _feature_groups(draft / "decoder.json", table.x.shape[1]), seed=seed
            )
            asked = booting.measure(pairs, table.rows[: max(1, params.calls)], calls=params.calls)

    verdict = gate.judge(
        rules,
        facts_of(
            document, measured.against_baseline, difference, asked, bundle_id=bundle_id, missing=card_missing(card)
        ),
    )
    judged = {**verdict.to_json(), "line": line, "bundle_id": bundle_id}
    serving = {
        "reason": asked.reason,
        "device": asked.device,
        "golden": asked.golden,
        "differing": asked.differing,
        "examples": list(asked.examples),
        "calls": len(asked.milliseconds),
        "p50_ms": asked.percentile(0.5),
        "p95_ms": asked.percentile(0.95),
        "boot_seconds": asked.boot_seconds,
    }
    page = _render(document, judged, measured.y, board, rival, serving, asked.milliseconds)
    outputs.write(
        out,
        {
            "metrics.json": _json(document).encode(),
            "serving.json": _json(serving).encode(),
            "report.html": page.encode(),
            "gate.json": _json(judged).encode(),
        },
    )
    if not verdict.released:
        raise held(verdict, line, asked)
    return Report(
        line=line,
        verdict="pass",
        bundle_id=bundle_id,
        primary=document["primary"],
        metrics=document["metrics"],
        baseline=document["baseline"],
    )


def _must_exist(line: str, *paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise SourceError(
                f"evaluate needs {path.name}, but there is none",
                code="missing_file",
                where=f"{line}, step evaluate, {path.parent.name}/{path.name}",
                cure="run the steps before it again",
            )


def _render(
    document: Mapping[str, Any],
    judged: Mapping[str, Any],
    y: Predictions,
    board: Sequence[Mapping[str, Any]],
    rival: Predictions | None,
    serving: Mapping[str, Any],
    milliseconds: Sequence[float],
) -> str:
    from esteira.report import render

    return render(document, judged, y, leaderboard=board, champion=rival, serving=serving, milliseconds=milliseconds)


def _parity(native: NDArray[Any], opened: Bundle, table: TestTable, y: Predictions) -> dict[str, Any]:
    """The export against the native model, twice: features through the graph, and JSON rows through the whole answerer."""
    exported = np.asarray(opened.run(GRAPH, table.x)["y"], dtype=np.float64)
    by_graph, labels = parity(native, exported)
    by_rows, labels_by_rows = parity(native, answered(y))
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


def _feature_groups(decoder: Path, features: int) -> dict[str, list[int]]:
    """Source column -> positions of its features."""
    from esteira.features.decode import Decoder

    groups: dict[str, list[int]] = {}
    start = 0
    for column in Decoder.from_json(decoder.read_bytes()).columns:
        groups[column.name] = list(range(start, start + len(column.names)))
        start += len(column.names)
    return groups if start == features else {f"feature {k}": [k] for k in range(features)}


def _read_table(features: Path, contract: TableContract) -> TestTable:
    import pyarrow.parquet

    columns = [column.name for column in contract.columns]
    extra = [contract.group_column] if contract.group_column and contract.group_column not in columns else []
    # Not `read_table`, which imports pandas (0.5 s); one thread, because two cores are shared with the server.
    file = pyarrow.parquet.ParquetFile(features / "rows_test.parquet")
    read = file.read(columns=[*columns, *extra], use_threads=False)
    codes = np.load(features / "y_test.npy", allow_pickle=False)
    classes = contract.target.classes
    return TestTable(
        rows=json_rows({name: read.column(name).to_pylist() for name in columns}),
        truths=codes.tolist() if classes is None else [classes[code] for code in codes.tolist()],
        x=np.load(features / "x_test.npy", allow_pickle=False),
        y_train=np.load(features / "y_train.npy", allow_pickle=False),
        groups=_groups(read.column(contract.group_column).to_pylist()) if contract.group_column else None,
    )


def _groups(values: Sequence[Any]) -> NDArray[np.int64]:
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)


def _manifest(
    family: str,
    line: str,
    contract: TableContract,
    trained: Path,
    source: Mapping[str, Any],
    board: Sequence[Mapping[str, Any]],
    params: Params,
    seed: int,
) -> dict[str, Any]:
    """Everything that the bundle says of itself; no wall time and no path of this machine."""
    post = _read_json(trained / "model" / "post.json") or {}
    owned: dict[str, Any] = importlib.import_module(f"families.{family}").manifest_of(contract, post)
    best = board[0] if board else {}
    return {
        "family": family,
        "line": line,
        "artefact_kind": load_family(family).artefact_kind,
        **owned,
        "method": best.get("kind", ""),
        "model": {"kind": best.get("kind", ""), "params": best.get("params", {})},
        "simulated": False,
        "confidence_kind": post.get("confidence_kind", "heuristic"),
        "data_hash": source["content_hash"],
        "code_revision": params.code_revision or code_revision(),
        "seed": seed,
        "dependencies": dependencies(),
    }


def _data_section(source: Mapping[str, Any], contract: TableContract, document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": source["name"],
        "source": source.get("source", ""),
        "content_hash": source["content_hash"],
        "source_rows": source["row_count"],
        "training_rows": document["rows"]["train"],
        "test_rows": document["rows"]["test"],
        "label": contract.target.name,
        "columns": [column.name for column in contract.columns],
        "left_out": [f"{column.name}: {column.reason}" for column in contract.dropped],
    }


def _answers(contract: TableContract, source: Mapping[str, Any]) -> str:
    """What the line answers, in one sentence."""
    label, unit = contract.target.name, f" in {contract.target.unit}" if contract.target.unit else ""
    if contract.target.classes is None:
        return f"Answers the number `{label}`{unit} of a row like those of `{source['name']}`."
    classes = [f"`{label_text(name)}`" for name in contract.target.classes]
    shown = ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
    return f"Answers which `{label}` ({shown}) a row like those of `{source['name']}` has."


def _metrics_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """The card's figures: every score with its interval and the baseline's, and the segments with most rows first."""
    overall = {
        name: {
            "value": value,
            "interval": document["intervals"].get(name),
            "baseline": document["baseline"].get(name),
            "reason": document["reasons"].get(name, ""),
        }
        for name, value in document["metrics"].items()
    }
    keep = ("segment", "n", "metric", "value", "interval", "reason", "weak")
    segments = [
        {key: part[key] for key in keep}
        for part in (*sorted(document["slices"], key=lambda part: not part["weak"]), *document["truth_slices"])
    ]
    return {"primary": document["primary"], "overall": overall, "segments": segments}


def code_revision() -> str:
    """`$ESTEIRA_CODE_REVISION`, else git's commit of this code, with `-dirty` when tracked files differ from it, else `unknown`."""
    told = os.environ.get("ESTEIRA_CODE_REVISION")
    if told:
        return told
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def dependencies() -> dict[str, str]:
    """Versions of what made the model: Python and those of the listed libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
