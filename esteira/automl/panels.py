"""The charts of a search's page, each a panel with a sentence below it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira import charts
from esteira.automl.curve import best_so_far
from esteira.charts import Mark, Series, Spot
from esteira.features.answers import said
from esteira.features.metrics import HIGHER_IS_BETTER, Classified, calibration, confusion

if TYPE_CHECKING:
    from esteira.automl.page import Record

MOST_MARKS = 20
MOST_POINTS = 700
MOST_CLASSES = 30


def _trials(record: "Record") -> list[Mapping[str, Any]]:
    """Trials that have a score, without the blend, in order."""
    tried = [row for row in record.leaderboard if row["score"] is not None and row["kind"] != "blend"]
    return sorted(tried, key=lambda row: int(row["number"]))


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether it was scored on all folds."""
    return bool(row.get("state", "complete") == "complete")


def _spots(record: "Record", trials: Sequence[Mapping[str, Any]], x: Sequence[float]) -> tuple[list[Spot], float, str]:
    """Trials as points, the far worse half drawn at the frame's edge; the edge; and a note that says so."""
    better = HIGHER_IS_BETTER[record.metric]
    scores = np.array([row["score"] for row in trials])
    best = scores.max() if better else scores.min()
    edge = best + 3 * (np.median(scores) - best)
    drawn = np.maximum(scores, edge) if better else np.minimum(scores, edge)
    points = []
    for row, at, height in zip(trials, x, drawn, strict=True):
        kind = "other" if row.get("weight") else "model" if _whole(row) else "baseline"
        tip = f"#{row['number']} {name_of(row['kind'])}: {number(row['score'])}"
        points.append(Spot(at, float(height), tip, kind))
    cut = int((drawn != scores).sum())
    note = "" if all(map(_whole, trials)) else " Grey ones were cut: theirs is the score of some folds."
    note += f" {cut} far worse ones are drawn at the edge." if cut else ""
    return points, float(edge), note


def course(record: "Record") -> str:
    trials = _trials(record)
    if len(trials) < 2:
        return ""
    points, edge, note = _spots(record, trials, [float(row["number"]) for row in trials])
    better = HIGHER_IS_BETTER[record.metric]
    told = [
        {"number": row["number"], "score": row["score"], "seconds": row.get("fit_seconds") or 0.0}
        for row in trials
        if _whole(row)
    ]
    steps: list[tuple[float, float]] = []
    for point in best_so_far(told, higher_is_better=better):
        height = max(point["best"], edge) if better else min(point["best"], edge)
        if steps:
            steps.append((point["number"], steps[-1][1]))
        steps.append((point["number"], height))
    chart = charts.spots(
        points, [Series("", steps, "baseline")], title="Score by trial", x_label="trial", y_label=name_of(record.metric)
    )
    return panel("The search", chart, f"Each trial, in orange those that answer; the line is the best so far.{note}")


def costs_and_scores(record: "Record") -> str:
    trials = [row for row in _trials(record) if row.get("row_us") is not None]
    if len(trials) < 2:
        return ""
    limit = record.summary.get("row_us_limit")
    costs = [float(row["row_us"]) for row in trials]
    most = 3 * limit if limit else max(costs)
    points, edge, note = _spots(record, trials, [min(cost, most) for cost in costs])
    lines = []
    if limit:
        heights = [*(point.y for point in points), edge]
        lines = [Series(f"budget {limit:g} \u00b5s", [(limit, min(heights)), (limit, max(heights))], "champion")]
    chart = charts.spots(
        points, lines, title="Cost and score", x_label="one row, \u00b5s (estimated)", y_label=name_of(record.metric)
    )
    beyond = sum(cost > most for cost in costs)
    over = f" {beyond} cost more than {most:g} \u00b5s and stand at the right edge." if beyond else ""
    return panel("What a better score costs", chart, f"In orange those that answer.{over}{note}")


def kinds(record: "Record") -> str:
    """The best whole trial of each kind."""
    seen: dict[str, Mapping[str, Any]] = {}
    for row in record.leaderboard:
        # The baseline is so far from the others that it would hide what sets them apart.
        if row["score"] is not None and _whole(row) and row["kind"] != "constant":
            seen.setdefault(row["kind"], row)
    marks = []
    for kind, row in seen.items():
        spread = row.get("deviation") or 0.0
        marks.append(Mark(name_of(kind), row["score"], row["score"] - spread, row["score"] + spread))
    if len(marks) < 2:
        return ""
    chart = charts.ranges(marks, title="Best of each kind", x_label=name_of(record.metric))
    return panel("The best of each kind", chart, "With the deviation over folds.")


# ---------------------------------------------------------------------------------------------- answers


def classifier(record: "Record") -> list[str]:
    seen = np.isfinite(record.out_of_fold).all(axis=1)
    p, truth = record.out_of_fold[seen], record.truth[seen].astype(np.int64)
    if not len(truth):
        return []
    y = Classified(truth, p, said(p, {"threshold": record.threshold}), tuple(record.classes))
    panels = []
    if len(record.classes) <= MOST_CLASSES:
        matrix = charts.confusion(confusion(y).tolist(), y.classes, title="Confusion matrix")
        panels.append(
            panel("Where it errs", matrix, "The shade is the share of the true class; the diagonal is right.")
        )
    after = calibration(y)
    lines = [Series("perfect", [(0, 0), (1, 1)], "baseline")]
    before: Mapping[str, Any] | None = None
    if record.uncalibrated is not None:
        raw = record.uncalibrated[seen]
        before = calibration(Classified(truth, raw, raw.argmax(axis=1), y.classes))
        lines.append(Series("before", _reliability(before), "champion"))
    lines.append(Series("after" if before else "model", _reliability(after)))
    method = (record.summary.get("calibration") or {}).get("method")
    note = f"Of {after['of']!r}; calibration error {number(after['ece'])}"
    note += f", before {number(before['ece'])}, by {method}." if before else "; no calibration made it surely better."
    chart = charts.curves(
        lines, title="Reliability", x_label="said (probability)", y_label="came true (share)", dots=True
    )
    panels.append(panel("Does 70 % mean 70 %?", chart, note))
    return panels


def _reliability(found: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(bin_["mean"], bin_["share"]) for bin_ in found["bins"]]


def regression(record: "Record") -> list[str]:
    seen = np.isfinite(record.out_of_fold)
    predicted, truth = record.out_of_fold[seen], record.truth[seen].astype(np.float64)
    if not len(truth):
        return []
    step = np.linspace(0, len(truth) - 1, min(len(truth), MOST_POINTS)).astype(np.int64)
    part = np.argsort(truth, kind="stable")[step]
    both = list(zip(truth[part].tolist(), predicted[part].tolist(), strict=True))
    errors = [(value, value - true) for true, value in both]
    unit = record.target
    return [
        panel(
            "Predicted and true",
            charts.scatter(
                both, title="Predicted and true", x_label=f"true {unit}", y_label=f"predicted {unit}", diagonal=True
            ),
            "On the dashed line it is right.",
        ),
        panel(
            "Where the errors are",
            charts.scatter(
                errors, title="Errors by size", x_label=f"predicted {unit}", y_label="predicted - true", zero=True
            ),
            "A band that widens or bends is a model that misses something.",
        ),
    ]


# ---------------------------------------------------------------------------------------------- dependence


def permutation(record: "Record") -> str:
    found = record.permutation[:MOST_MARKS]
    if not found:
        return ""
    marks = [Mark(entry["column"], entry["value"], entry["low"], entry["high"]) for entry in found]
    chart = charts.ranges(
        marks, title="Permutation importance", x_label=f"{name_of(record.metric)} lost when shuffled", reference=0.0
    )
    note = f"Each column shuffled on {found[0]['rows']:,} held rows, with 95 % intervals."
    return panel("Columns", chart, note)


def slices(record: "Record") -> str:
    scored = [part for part in record.slices if part["value"] is not None and part["interval"] is not None]
    if not scored:
        return ""
    better = HIGHER_IS_BETTER[scored[0]["metric"]]
    worst = sorted(scored, key=lambda part: (not part["weak"], part["value"] if better else -part["value"]))
    marks = []
    for part in worst[:MOST_MARKS]:
        low, high = part["interval"]
        kind = "weak" if part["weak"] else "model"
        marks.append(Mark(part["segment"], part["value"], low, high, f"n {part['n']:,}", kind))
    chart = charts.ranges(
        marks, title="Score by segment", x_label=name_of(scored[0]["metric"]), reference=record.overall,
        reference_name="" if record.overall is None else f"all {number(record.overall)}",
    )  # fmt: skip
    weak = sum(part["weak"] for part in scored)
    note = f"{weak} of {len(scored)}, in red, are wholly worse than all." if weak else "None is wholly worse than all."
    return panel("The weakest segments", chart, note)


def learning(record: "Record") -> str:
    sign = 1.0 if HIGHER_IS_BETTER[record.metric] else -1.0
    points = [(float(point["rows"]), sign * point["score"]) for point in record.learning if point["score"] is not None]
    if len(points) < 2:
        return ""
    ys = [score for _, score in points]
    pad = 0.1 * (max(ys) - min(ys)) or 0.1
    chart = charts.curves(
        [Series("", points)], title="Learning curve", x_label="rows learned from", y_label=name_of(record.metric),
        xs=(0.0, points[-1][0] * 1.03), ys=(min(ys) - pad, max(ys) + pad), dots=True,
    )  # fmt: skip
    return panel("Would more rows help?", chart, "The best trial fitted on fewer rows, scored on the same held rows.")


def parameters(record: "Record") -> list[str]:
    panels = []
    for kind, shares in (record.parameters or {}).items():
        if shares:
            marks = [Mark(entry["parameter"], entry["share"]) for entry in shares[:12]]
            chart = charts.bars(
                marks, title=f"Parameters of {name_of(kind)}", x_label="share of reaching the best trials"
            )
            panels.append(panel(f"Parameters of {name_of(kind)}", chart, "PED-ANOVA over its trials."))
    return panels


# ---------------------------------------------------------------------------------------------- words


def grid(panels: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(panels)}</div>'


def panel(title: str, body: str, note: str) -> str:
    return f'<div class="panel"><h3>{escape(title)}</h3>{body}<p>{escape(note)}</p></div>'


def tile(name: str, value: str, note: str) -> str:
    return f'<div class="tile"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(note)}</small></div>'


def name_of(text: str) -> str:
    return text.replace("_", " ")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
