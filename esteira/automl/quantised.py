"""A bundle with int8 weights beside the bundle that it is made of: accuracy, time and bytes before and after, and a verdict.

It is accepted where accuracy on labelled rows falls by at most a point, or R2 by at most 0.01. Writes nothing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.automl.model_files import dumped
from esteira.bundle import Bundle
from esteira.card import to_markdown
from esteira.errors import ConfigError, DataError, Refused
from esteira.family import Answer, Answerer, Row, load_family
from esteira.features import metrics
from esteira.features.contract import TableContract
from esteira.features.labels import encode_labels
from esteira.features.metrics import Classified, Predictions
from esteira.onnx.quantise import Product, Quantised, quantise
from esteira.probe import difference
from esteira.rows import answered

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LOST = 0.01
CALLS = 500
MANY = 1000  # rows that are asked at once, beside one
_TURN = 10  # calls of one model before it is the other's turn: what else runs on the machine then slows down both
_ALONE = 50  # rows that are asked alone and together
_PARITY = 1e-6


@dataclass(frozen=True)
class Times:
    """Microseconds of each call, in order: of the whole answer, and of the graph alone."""

    answer: "NDArray[np.float64]"
    graph: "NDArray[np.float64]"

    def named(self) -> dict[str, Any]:
        """Median and 95th percentile of both."""
        return {
            part: {"p50": _percentile(values, 50), "p95": _percentile(values, 95)}
            for part, values in vars(self).items()
        }


@dataclass(frozen=True)
class Side:
    """One of the two bundles on the labelled rows.

    Attributes:
        one, many: times of one row, and of MANY rows at once.
        bytes: of the graphs.
    """

    judged: Predictions = field(repr=False)
    scores: Mapping[str, float | None]
    bytes: int
    one: Times
    many: Times

    def named(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scores": dict(self.scores),
            "bytes": self.bytes,
            "one_row_us": self.one.named(),
            f"{MANY}_rows_us": self.many.named(),
        }


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        accepted: whether the new bundle may take the old one's place.
        report: everything that was seen, JSON.
        files, manifest: the new bundle's.
    """

    accepted: bool
    report: Mapping[str, Any]
    before: Side
    after: Side
    files: Mapping[str, bytes] = field(repr=False)
    manifest: Mapping[str, Any] = field(repr=False)


def compare(
    bundle: Bundle,
    rows: Sequence[Row],
    labels: Sequence[Any],
    *,
    data: Mapping[str, str],
    calls: int = CALLS,
    seed: int = 0,
) -> Comparison:
    """Make the smaller bundle and hold it to the given one.

    Args:
        bundle: open on the CPU.
        rows: labelled rows that the model did not learn from, without the label.
        labels: of them, as cells of a file.
        data: `name` and `content_hash` of the rows.
        calls: single rows that each of the two answers against the clock.
        seed: of resamples.

    Raises:
        Refused: there is nothing to quantise, or a row's answer would depend on the rows beside it.
        DataError: there are no rows, one breaks the contract, a label is none of the model's, or R2 is not defined on them.
        ConfigError: the bundle answers no table.
    """
    contract = _contract(bundle)
    made = {stage: quantise(bundle.read(stage)) for stage in _graphs(bundle.manifest)}
    _require_products(bundle, made)
    if not rows:
        raise DataError(
            "accuracy is measured on labelled rows, but there is none",
            code="empty", where=data["name"], cure="give rows that the model did not learn from",
        )  # fmt: skip
    y = encode_labels(labels, contract.target)
    truths = [contract.target.classes[int(code)] for code in y] if contract.target.classes else y.tolist()
    graphs = {stage: found.content for stage, found in made.items()}
    contents = {name: graphs.get(name) or bundle.read(name) for name in bundle.manifest["files"]}
    smaller = Bundle(
        folder=bundle.folder, manifest=bundle.manifest, bundle_id=bundle.bundle_id, contents=contents, device="cpu"
    )
    clocks = [_Clocked(bundle), _Clocked(smaller)]
    models = [load_family(bundle.manifest["family"]).open(clock) for clock in clocks]
    answers = [answered(model, rows, where=data["name"]) for model in models]
    _require_alone(models[1], rows[:_ALONE], answers[1])
    classes = None if contract.target.classes is None else tuple(map(metrics.label_text, contract.target.classes))
    judged = [metrics.predictions(truths, said, classes=classes) for said in answers]
    metric = "accuracy" if isinstance(judged[0], Classified) else "r2"
    scores = [{name: score.value for name, score in metrics.scores(part).items()} for part in judged]
    lost = _lost(metric, scores, judged[0], data["name"])
    one = _take_turns(clocks, models, rows, size=1, calls=calls)
    many = _take_turns(clocks, models, rows, size=MANY, calls=max(_TURN, calls // 50))
    sizes = [sum(len(source.read(stage)) for stage in graphs) for source in (bundle, smaller)]
    before, after = (Side(judged[at], scores[at], sizes[at], one[at], many[at]) for at in (0, 1))
    report: dict[str, Any] = {
        "line": str(bundle.manifest["line"]),
        "from": bundle.bundle_id,
        "accepted": lost <= MOST_LOST + 1e-12,
        "rule": {"metric": metric, "lost_at_most": MOST_LOST},
        "lost": lost,
        "interval": _interval(metric, judged[0], judged[1], seed),
        "rows": len(rows),
        "data": dict(data),
        "calls": calls,
        "before": before.named(),
        "after": after.named(),
        "baseline": {name: score.value for name, score in metrics.scores(metrics.baseline(y, judged[0])).items()},
        "changed": _changed(judged[0], judged[1]),
        "products": [
            {"stage": stage, **_named(product)} for stage, found in made.items() for product in found.products
        ],
        "trees": sum(found.trees for found in made.values()),
    }
    manifest = _manifest(bundle, report)
    files = {**contents, **_papers(bundle, models[1], manifest["quantised"], data["name"])}
    return Comparison(report["accepted"], report, before, after, files, manifest)


class _Clocked:
    """An open bundle that adds up the seconds which its stages run."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest, self._bundle, self.spent = bundle.manifest, bundle, 0.0

    def read(self, name: str) -> bytes:
        """As the bundle's."""
        return self._bundle.read(name)

    def run(self, stage: str, x: "NDArray[np.float32]") -> "dict[str, NDArray[Any]]":
        """As the bundle's."""
        began = time.perf_counter()
        found = self._bundle.run(stage, x)
        self.spent += time.perf_counter() - began
        return found


def _contract(bundle: Bundle) -> TableContract:
    """The contract by which a label is read."""
    schema = bundle.manifest.get("schema")
    try:
        return TableContract.model_validate(schema)
    except ValueError as error:
        raise ConfigError(
            f"accuracy is measured against a label of a table's contract, but {bundle.manifest['line']} has none",
            code="no_contract", where=f"{bundle.folder}, manifest.json", cure="name a bundle that answers a table's rows",
        ) from error  # fmt: skip


def _graphs(manifest: Mapping[str, Any]) -> list[str]:
    return [stage for stage in manifest["stages"] if stage.endswith(".onnx")]


def _require_products(bundle: Bundle, made: Mapping[str, Quantised]) -> None:
    """Refuse a bundle of which nothing would become smaller."""
    products = [product for found in made.values() for product in found.products]
    if any(not product.left for product in products):
        return
    trees = sum(found.trees for found in made.values())
    largest = max((product.weights for product in products), default=0)
    held = f"{len(products)} matrix products, the largest of {largest:,} weights, and {trees:,} trees"
    raise Refused(
        f"int8 weights are for large matrix products, but {bundle.manifest['line']} has {held}",
        code="nothing_to_quantise",
        where=str(bundle.folder),
        cure="serve it as it is: trees and small products would not be answered any faster",
    )


def _require_alone(model: Answerer, rows: Sequence[Row], together: Sequence[Answer]) -> None:
    """Refuse a model that answers a row otherwise when others are asked with it."""
    for at, (row, wanted) in enumerate(zip(rows, together, strict=False)):
        said = difference(wanted, model.answer([row])[0], _PARITY)
        if said:
            raise Refused(
                f"a row alone is answered as among others, but of row {at + 1} {said}",
                code="row_depends_on_others", where="graph.onnx", cure="this is a fault of ours: report the bundle and the row",
            )  # fmt: skip


def _take_turns(
    clocks: Sequence[_Clocked], models: Sequence[Answerer], rows: Sequence[Row], *, size: int, calls: int
) -> list[Times]:
    """Times of calls of so many rows, the models by turns."""
    batches = [[rows[(call * size + at) % len(rows)] for at in range(size)] for call in range(min(calls, len(rows)))]
    for model in models:
        for batch in batches[:_TURN]:
            model.answer(batch)
    answer: list[list[float]] = [[] for _ in models]
    graph: list[list[float]] = [[] for _ in models]
    for start in range(0, calls, _TURN):
        for at, (clock, model) in enumerate(zip(clocks, models, strict=True)):
            for call in range(start, min(start + _TURN, calls)):
                batch, clock.spent = batches[call % len(batches)], 0.0
                began = time.perf_counter()
                model.answer(batch)
                answer[at].append((time.perf_counter() - began) * 1e6)
                graph[at].append(clock.spent * 1e6)
    return [Times(np.array(a), np.array(g)) for a, g in zip(answer, graph, strict=True)]


def _percentile(values: "NDArray[np.float64]", share: float) -> float:
    return round(float(np.percentile(values, share)), 1)


def _lost(metric: str, scores: Sequence[Mapping[str, float | None]], judged: Predictions, where: str) -> float:
    """How much of the score is lost; negative where it rose."""
    was, now = (side[metric] for side in scores)
    if was is None or now is None:
        raise DataError(
            f"{metric} must be defined on the given rows, but {metrics.undefined_reason(metric, judged)}",
            code="undefined_score", where=where, cure="give more rows, with labels that vary",
        )  # fmt: skip
    return was - now


def _interval(metric: str, before: Predictions, after: Predictions, seed: int) -> list[float] | None:
    """Ends of the 95 % interval of what is lost, by resamples of the rows that both answered."""
    both = {"before": metrics.statistic(metric, before), "after": metrics.statistic(metric, after)}
    drawn = metrics.bootstrap(both, len(before), count=metrics.resample_count(len(before)), seed=seed)
    ends = metrics.interval(drawn["before"] - drawn["after"])
    return None if ends is None else list(ends)


def _changed(before: Predictions, after: Predictions) -> dict[str, float]:
    """How far answers moved: the share of other labels and the largest step of a probability, or steps of values."""
    if isinstance(before, Classified) and isinstance(after, Classified):
        steps = np.abs(before.probabilities - after.probabilities)
        return {"labels": float((before.predicted != after.predicted).mean()), "largest_step": float(steps.max())}
    steps = np.abs(before.predicted - after.predicted)
    return {"mean_step": float(steps.mean()), "largest_step": float(steps.max())}


def _named(product: Product) -> dict[str, Any]:
    return {"name": product.name, "shape": list(product.shape), "weights": product.weights, "left": product.left}


def _manifest(bundle: Bundle, report: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the scores of what it seals now: those of the given one were measured on the graph as it was."""
    scores, metric = report["after"]["scores"], report["rule"]["metric"]
    told = {
        "from": bundle.bundle_id,
        "weights": "int8",
        "products": sum(not product["left"] for product in report["products"]),
        "rows": report["rows"],
        "data_hash": report["data"]["content_hash"],
        "metric": metric,
        "before": report["before"]["scores"][metric],
        "after": scores[metric],
    }
    kept = {name: value for name, value in bundle.manifest.items() if name not in {"files", "format"}}
    return {**kept, "metrics": dict(scores), "baseline": dict(report["baseline"]), "quantised": told}


def _papers(bundle: Bundle, model: Answerer, told: Mapping[str, Any], name: str) -> dict[str, bytes]:
    """What of the bundle's papers says otherwise now: the answers that it is held to, and its card."""
    listed, files = bundle.manifest["files"], {}
    if "golden.json" in listed:
        golden = json.loads(bundle.read("golden.json"))
        files["golden.json"] = dumped({**golden, "answers": model.answer(golden["rows"])})
    if "card.json" in listed:
        card = json.loads(bundle.read("card.json"))
        limits = card.get("limits") or []
        said = (
            f"Its large matrix products have int8 weights: on {told['rows']:,} rows of {name} its {told['metric']} is "
            f"{told['after']:.4g}, where that of bundle {told['from'][:12]}, whose scores stand above, is {told['before']:.4g}."
        )
        card["limits"] = [*([limits] if isinstance(limits, str) else limits), said]
        files["card.json"] = dumped(card)
        if "card.md" in listed and card.get("card_version"):
            files["card.md"] = to_markdown(card).encode()
    return files
