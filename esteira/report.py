"""The evaluation as one HTML page to look at rather than read: no script, no outside file, light and dark.

Pure: it takes what `metrics.json` and `gate.json` hold, and the predictions to draw, and returns text.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira import charts
from esteira.charts import Mark, Series
from esteira.features.metrics import Classified, Estimated, Predictions

MAX_POINTS = 700
MAX_SLICES = 18

STYLE = """
:root {
  --bg:#fbfaf8; --card:#fff; --ink:#1d2433; --soft:#5d6678; --line:#e4e1da; --model:#2f6fde; --baseline:#98a0ae;
  --champion:#c77700; --good:#1d7f4e; --bad:#c0392b; --warn:#a86400; --tint:#eef3fd; }
@media (prefers-color-scheme: dark) { :root {
  --bg:#14171d; --card:#1c2028; --ink:#e7eaf0; --soft:#9aa3b4; --line:#2c323d; --model:#6ea2ff; --baseline:#79818f;
  --champion:#f0a63c; --good:#2f9e6b; --bad:#ff7b6b; --warn:#c98b2b; --tint:#202b40; } }
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 22px 60px }
h1 { font-size:24px; margin:0; overflow-wrap:anywhere } h2 { font-size:16px; margin:34px 0 10px }
h3 { font-size:14px; margin:0 0 6px } p { margin:4px 0 } small,.soft { color:var(--soft) }
header { display:flex; gap:14px; align-items:center; flex-wrap:wrap; margin-bottom:4px }
.badge { padding:3px 12px; border-radius:99px; font-weight:600; color:#fff }
.PASS { background:var(--good) } .FAIL { background:var(--bad) } .NO_DATA { background:var(--warn) }
code { font:12.5px ui-monospace,Menlo,Consolas,monospace; overflow-wrap:anywhere }
.tiles,.grid { display:grid; gap:14px; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)) }
.grid { display:block; columns:3 330px; column-gap:14px }
.grid .panel { break-inside:avoid; margin-bottom:14px }
.tile,.panel { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 16px; min-width:0 }
.tile b { display:block; font-size:26px; line-height:1.25; font-variant-numeric:tabular-nums }
.panel p { font-size:13px; color:var(--soft) } .scroll { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:13.5px }
td,th { text-align:left; padding:5px 14px 5px 0; border-bottom:1px solid var(--line); vertical-align:top }
tr:last-child td { border-bottom:0 } th { color:var(--soft); font-weight:500 }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
td .badge { font-size:11px; padding:1px 8px; white-space:nowrap } ul { margin:6px 0; padding-left:20px }
svg.chart { width:100%; height:auto; display:block; overflow:visible }
svg text { fill:var(--ink); font-family:inherit }
.tick { font-size:10.5px } svg text.tick { fill:var(--soft) }
svg text.tick.on { fill:var(--card); font-weight:600 } svg text.label { font-size:11px; fill:var(--soft) }
.halo { paint-order:stroke; stroke:var(--card); stroke-width:3px }
line.grid { stroke:var(--line); stroke-width:1 } .line { fill:none; stroke-width:2; stroke-linejoin:round }
.line.model { stroke:var(--model) } .line.champion { stroke:var(--champion) }
.line.baseline { stroke:var(--baseline); stroke-width:1.4; stroke-dasharray:5 4 }
.dot.model,.bar.model,.cloud { fill:var(--model) } .dot.weak,.bar.weak,.bar.other { fill:var(--bad) }
.dot.baseline,.bar.baseline { fill:var(--baseline) } .bar.model { fill-opacity:.72 } .bar.other { fill-opacity:.5 }
.cloud { fill-opacity:.38 }
.whisker { stroke:var(--model); stroke-width:3; stroke-opacity:.38; stroke-linecap:round }
.whisker.weak { stroke:var(--bad) } .whisker.baseline { stroke:var(--baseline) }
.cell { fill:var(--tint) } .right { fill:var(--model) } .wrong { fill:var(--bad) }
@media print { body { background:#fff } .panel,.tile { break-inside:avoid } }
"""


def render(
    metrics: Mapping[str, Any],
    gate: Mapping[str, Any],
    y: Predictions,
    *,
    leaderboard: Sequence[Mapping[str, Any]] = (),
    champion: Predictions | None = None,
    serving: Mapping[str, Any] | None = None,
    milliseconds: Sequence[float] = (),
) -> str:
    """The page.

    Args:
        metrics: the document of metrics.json.
        gate: the document of gate.json.
        y: the model's answers on the test rows, drawn as curves or clouds.
        leaderboard: what was tried, best first.
        champion: the champion's answers on the same rows, when there is a champion.
        serving: `p50_ms`, `p95_ms`, `calls`, `boot_seconds`, `reason` of the real server.
        milliseconds: time of each request.
    """
    parts = [
        _head(metrics, gate),
        _tiles(metrics, serving or {}),
        "<h2>The gate</h2>",
        _rules(gate["rules"]),
        "<h2>How it answers</h2>",
        '<div class="grid">',
        *(_classifier(y, metrics, champion) if isinstance(y, Classified) else _regression(y, metrics)),
        "</div>",
        "<h2>For whom it works, and by what</h2>",
        '<div class="grid">',
        _slices(metrics),
        _importance(metrics),
        _leaderboard(leaderboard, metrics),
        _latency(milliseconds, serving or {}),
        "</div>",
        "<h2>All scores</h2>",
        _scores(metrics),
        _classes(metrics),
        _notes(metrics),
    ]
    title = escape(f"Evaluation of {metrics['line']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(metrics: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    released = gate["verdict"] == "pass"
    badge = f'<span class="badge {"PASS" if released else "FAIL"}">{"passed" if released else "held"}</span>'
    facts = [
        f"answers <b>{escape(str(metrics['target']))}</b>: {_kind(metrics)}",
        f"{metrics['rows']['test']:,} held-back rows",
        f"{metrics['rows']['train']:,} training rows",
    ]
    if gate.get("bundle_id"):
        facts.append(f"bundle <code>{escape(gate['bundle_id'][:12])}</code>")
    return (
        f"<header><h1>{escape(metrics['line'])}</h1>{badge}</header>"
        f'<p class="soft">{" &middot; ".join(facts)}</p><p>{escape(_sentence(gate["summary"]))}</p>'
    )


def _kind(metrics: Mapping[str, Any]) -> str:
    kinds = {"binary": "one of two classes", "regression": "a number"}
    return kinds.get(metrics["task"], f"one of {len(metrics.get('per_class') or [])} classes")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _tiles(metrics: Mapping[str, Any], serving: Mapping[str, Any]) -> str:
    primary = metrics["primary"]
    span = metrics["intervals"].get(primary)
    tiles = [_tile(_name(primary), _num(metrics["metrics"].get(primary)), _span(span) or "no interval")]
    gain = metrics["against_baseline"].get(primary, {})
    tiles.append(
        _tile("over the constant baseline", _num(gain.get("value"), sign=True), _span(gain.get("interval"), sign=True))
    )
    former = metrics.get("champion")
    if former:
        change = former["difference"].get(primary, {})
        tiles.append(
            _tile(
                "against the champion", _num(change.get("value"), sign=True), _span(change.get("interval"), sign=True)
            )
        )
    else:
        tiles.append(_tile("against the champion", "first", "the line has no champion yet"))
    calibration = metrics.get("calibration")
    if calibration:
        tiles.append(_tile("calibration error", _num(calibration["ece"]), "0 is perfect"))
    spread = metrics.get("coverage") or {}
    if spread.get("coverage") is not None:
        tiles.append(
            _tile("inside its interval", f"{spread['coverage']:.1%}", f"mean width {_num(spread['mean_width'])}")
        )
    if serving.get("p95_ms") is not None:
        note = f"95 of 100 requests; median {serving['p50_ms']:.2g} ms"
        tiles.append(_tile("answer over HTTP", f"{serving['p95_ms']:.2g} ms", note))
    return f'<div class="tiles" style="margin-top:18px">{"".join(tiles)}</div>'


def _tile(name: str, value: str, note: str) -> str:
    return f'<div class="tile"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(note)}</small></div>'


def _rules(rules: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td><span class="badge {rule["outcome"]}">{rule["outcome"].replace("_", " ")}</span></td>'
        f"<td>{escape(rule['rule'].replace('_', ' '))}</td><td>{escape(rule['reason'])}</td>"
        f'<td class="n">{"" if rule["n"] is None else format(rule["n"], ",")}</td></tr>'
        for rule in rules
    )
    return (
        '<div class="panel scroll"><table><tr><th></th><th>rule</th><th>what was seen</th><th class="n">n</th></tr>'
        f"{rows}</table></div>"
    )


# ---------------------------------------------------------------------------------------------- predictions


def _classifier(y: Classified, metrics: Mapping[str, Any], champion: Predictions | None) -> list[str]:
    panels: list[str] = []
    if len(y.classes) == 2:
        former = champion if isinstance(champion, Classified) and champion.classes == y.classes else None
        panels.append(_roc(y, former, metrics))
        panels.append(_precision_recall(y, former))
    if len(y.classes) <= 30:
        counts = metrics["confusion"]["counts"]
        panels.append(
            _panel(
                "Where it errs",
                charts.confusion(counts, y.classes, title="Confusion matrix"),
                "Numbers are rows; the shade is the share of the true class. The diagonal is right.",
            )
        )
    panels.append(_reliability(metrics))
    if len(y.classes) == 2:
        panels.append(_separation(y))
    return panels


def _roc(y: Classified, champion: Classified | None, metrics: Mapping[str, Any]) -> str:
    value = metrics["metrics"].get("roc_auc")
    lines = [Series("chance", [(0, 0), (1, 1)], "baseline")]
    if champion is not None:
        lines.append(Series("champion", charts.thin(_roc_points(champion)), "champion"))
    lines.append(Series("model", charts.thin(_roc_points(y))))
    chart = charts.curves(lines, title="ROC curve", x_label="false alarms (share)", y_label="found (share)")
    return _panel("ROC", chart, f"Area {_num(value)}: the chance that a {y.classes[1]!r} row scores above another.")


def _precision_recall(y: Classified, champion: Classified | None) -> str:
    share = float((y.truth == 1).mean())
    lines = [Series("chance", [(0, share), (1, share)], "baseline")]
    if champion is not None:
        lines.append(Series("champion", charts.thin(_pr_points(champion)), "champion"))
    lines.append(Series("model", charts.thin(_pr_points(y))))
    chart = charts.curves(lines, title="Precision and recall", x_label="found (recall)", y_label="right (precision)")
    return _panel("Precision and recall", chart, f"{share:.1%} of the test rows are {y.classes[1]!r}.")


def _roc_points(y: Classified) -> list[tuple[float, float]]:
    hits, misses, _ = _cumulated(y)
    if hits[-1] == 0 or misses[-1] == 0:
        return [(0.0, 0.0), (1.0, 1.0)]
    points = zip((misses / misses[-1]).tolist(), (hits / hits[-1]).tolist(), strict=True)
    return [(0.0, 0.0), *points]


def _pr_points(y: Classified) -> list[tuple[float, float]]:
    hits, misses, _ = _cumulated(y)
    if hits[-1] == 0:
        return [(0.0, 0.0), (1.0, 0.0)]
    return list(zip((hits / hits[-1]).tolist(), (hits / (hits + misses)).tolist(), strict=True))


def _cumulated(y: Classified) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hits and false alarms above each distinct score of class 1, from the highest score down."""
    score = y.probabilities[:, 1]
    order = np.argsort(-score, kind="stable")
    ordered, positive = score[order], (y.truth[order] == 1).astype(np.float64)
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    hits = np.cumsum(positive)[last]
    return hits, last + 1.0 - hits, ordered[last]


def _reliability(metrics: Mapping[str, Any]) -> str:
    calibration = metrics["calibration"]
    points = [(bin_["mean"], bin_["share"]) for bin_ in calibration["bins"]]
    lines = [Series("perfect", [(0, 0), (1, 1)], "baseline"), Series("model", points)]
    chart = charts.curves(
        lines, title="Reliability", x_label="said (probability)", y_label="came true (share)", dots=True
    )
    note = (
        f"Of {calibration['of']!r}; calibration error {_num(calibration['ece'])}. On the dashed line, 70 % means 70 %."
    )
    return _panel("Does 70 % mean 70 %?", chart, note)


def _separation(y: Classified) -> str:
    edges = np.linspace(0, 1, 21)
    groups = [
        (f"true {label}", np.histogram(y.probabilities[y.truth == code, 1], edges)[0].tolist(), kind)
        for code, label, kind in ((0, y.classes[0], "model"), (1, y.classes[1], "other"))
    ]
    chart = charts.histogram(
        groups, edges.tolist(), title="Scores by true class", x_label=f"probability of {y.classes[1]}"
    )
    return _panel("How far apart the classes are", chart, "Two heaps at the ends are a model that knows.")


def _regression(y: Estimated, metrics: Mapping[str, Any]) -> list[str]:
    step = np.linspace(0, len(y) - 1, min(len(y), MAX_POINTS)).astype(np.int64)
    part = y.take(np.argsort(y.truth, kind="stable")[step])  # evenly through the range of truths, the same on every run
    unit = metrics["target"]
    fit = charts.scatter(
        list(zip(part.truth.tolist(), part.predicted.tolist(), strict=True)),
        title="Predicted and true",
        x_label=f"true {unit}",
        y_label=f"predicted {unit}",
        diagonal=True,
    )
    errors = y.predicted - y.truth
    low, high = np.quantile(errors, [0.005, 0.995]) if len(errors) else (-1.0, 1.0)
    edges = np.linspace(low, high, 31) if high > low else np.linspace(low - 1, high + 1, 31)
    counts = np.histogram(np.clip(errors, edges[0], edges[-1]), edges)[0].tolist()
    heap = charts.histogram([("", counts, "model")], edges.tolist(), title="Errors", x_label=f"predicted - true {unit}")
    cloud = charts.scatter(
        list(zip(part.predicted.tolist(), (part.predicted - part.truth).tolist(), strict=True)),
        title="Errors by size",
        x_label=f"predicted {unit}",
        y_label="predicted - true",
        zero=True,
    )
    panels = [
        _panel("Predicted and true", fit, f"On the dashed line it is right. R2 {_num(metrics['metrics'].get('r2'))}."),
        _panel("How large the errors are", heap, f"Mean absolute error {_num(metrics['metrics'].get('mae'))}."),
        _panel("Where the errors are", cloud, "A band that widens or bends is a model that misses something."),
    ]
    if y.low is not None and y.high is not None and metrics.get("coverage"):
        panels.append(_coverage(y))
    return panels


def _coverage(y: Estimated) -> str:
    """Coverage in five parts of the predicted range."""
    assert y.low is not None
    assert y.high is not None
    inside = (y.low <= y.truth) & (y.truth <= y.high)
    marks = []
    for part in np.array_split(np.argsort(y.predicted, kind="stable"), min(5, len(y))):
        share, n = float(inside[part].mean()), len(part)
        half = 1.96 * (share * (1 - share) / n) ** 0.5
        name = f"{charts.short(float(y.predicted[part[0]]))} to {charts.short(float(y.predicted[part[-1]]))}"
        marks.append(Mark(name, share, max(0.0, share - half), min(1.0, share + half), f"n {n:,}"))
    overall = float(inside.mean())
    chart = charts.ranges(
        marks,
        title="Coverage",
        x_label="share inside the interval",
        reference=overall,
        reference_name=f"all {overall:.1%}",
    )
    return _panel("Do the intervals hold?", chart, "By the size of the prediction, with 95 % intervals.")


# ---------------------------------------------------------------------------------------------- lists


def _slices(metrics: Mapping[str, Any]) -> str:
    scored = [part for part in metrics["slices"] if part["value"] is not None and part["interval"] is not None]
    if not scored:
        return _panel("By segment", "<p>No segment is large enough to be scored.</p>", "")
    metric, overall = scored[0]["metric"], metrics["metrics"].get(scored[0]["metric"])
    worst_first = sorted(
        scored, key=lambda part: (not part["weak"], part["value"] if _higher(metrics, metric) else -part["value"])
    )
    marks = [
        Mark(
            part["segment"],
            part["value"],
            part["interval"][0],
            part["interval"][1],
            f"n {part['n']:,}",
            "weak" if part["weak"] else "model",
        )
        for part in worst_first[:MAX_SLICES]
    ]
    chart = charts.ranges(
        marks, title="Score by segment", x_label=_name(metric), reference=overall, reference_name=f"all {_num(overall)}"
    )
    weak = sum(part["weak"] for part in scored)
    note = f"The {len(marks)} weakest of {len(scored)} segments, with 95 % intervals. " + (
        f"{weak} in red are wholly worse than all." if weak else "None is wholly worse."
    )
    return _panel("By segment", chart, note)


def _higher(metrics: Mapping[str, Any], name: str) -> bool:
    return bool(metrics["higher_is_better"].get(name, True))


def _importance(metrics: Mapping[str, Any]) -> str:
    found = metrics.get("importance") or {}
    columns = found.get("columns", [])[:15]
    if not columns:
        return ""
    marks = [Mark(column["column"], max(column["value"], 0.0)) for column in columns]
    chart = charts.bars(marks, title="Importance", x_label=f"{_name(found['metric'])} lost when shuffled")
    return _panel("What it looks at", chart, f"Each column shuffled on {found['rows']:,} test rows.")


def _leaderboard(board: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> str:
    tried = [trial for trial in board if trial.get("score") is not None][:12]
    if not tried:
        return ""
    marks = []
    for place, trial in enumerate(tried):
        spread = trial.get("deviation") or 0.0
        value = float(trial["score"])
        kind = "baseline" if trial.get("kind") == "constant" else "model"
        note = "best" if place == 0 else ""
        name = f"{str(trial.get('kind', '?')).replace('_', ' ')} #{trial.get('number', place)}"
        marks.append(Mark(name, value, value - spread, value + spread, note, kind))
    chart = charts.ranges(marks, title="Leaderboard", x_label=f"{_name(metrics['primary'])} in validation")
    return _panel(
        "What was tried", chart, f"The best {len(tried)} of {len(board)} trials, best first; folds' deviation."
    )


def _latency(milliseconds: Sequence[float], serving: Mapping[str, Any]) -> str:
    if not milliseconds:
        reason = serving.get("reason")
        return _panel("Over HTTP", f"<p>Not measured: {escape(str(reason))}</p>", "") if reason else ""
    times = np.asarray(milliseconds)
    edges = np.linspace(0, max(float(np.quantile(times, 0.99)), 1e-3), 25)
    counts = np.histogram(np.clip(times, 0, edges[-1]), edges)[0].tolist()
    chart = charts.histogram(
        [("", counts, "model")], edges.tolist(), title="Latency", x_label="ms a row", y_label="requests"
    )
    boot = serving["boot_seconds"]
    note = f"{len(times)} single rows over one connection; the real server was ready after {boot:.1f} s."
    return _panel("Over HTTP", chart, note)


def _scores(metrics: Mapping[str, Any]) -> str:
    former = (metrics.get("champion") or {}).get("metrics")
    head = ["value", "95 % interval", "constant baseline", *(["champion"] if former else [])]
    rows = ""
    for name, value in metrics["metrics"].items():
        note = metrics["reasons"].get(name, "")
        cells = [_num(value), _span(metrics["intervals"].get(name)), _num(metrics["baseline"].get(name))]
        if former:
            cells.append(_num(former.get(name)))
        shown = _name(name) + (" (primary)" if name == metrics["primary"] else "")
        numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        reason = f"undefined: {note}" if value is None else note
        rows += f'<tr><td>{escape(shown)}</td>{numbers}<td class="soft">{escape(reason)}</td></tr>'
    titles = "".join(f'<th class="n">{title}</th>' for title in head)
    return f'<div class="panel scroll"><table><tr><th>score</th>{titles}<th></th></tr>{rows}</table></div>'


def _classes(metrics: Mapping[str, Any]) -> str:
    table = metrics.get("per_class")
    if not table:
        return ""
    rows = ""
    for row in table:
        shares = "".join(f'<td class="n">{row[name]:.3f}</td>' for name in ("precision", "recall", "f1"))
        counts = "".join(f'<td class="n">{row[name]:,}</td>' for name in ("support", "predicted"))
        rows += (
            f'<tr><td>{escape(row["class"])}</td>{shares}{counts}<td class="soft">{escape(row["warning"])}</td></tr>'
        )
    return (
        '<h2>By class</h2><div class="panel scroll"><table><tr><th>class</th><th class="n">precision</th>'
        '<th class="n">recall</th><th class="n">F1</th><th class="n">true rows</th><th class="n">predicted rows</th>'
        f"<th></th></tr>{rows}</table></div>"
    )


def _notes(metrics: Mapping[str, Any]) -> str:
    notes = metrics.get("warnings") or []
    if not notes:
        return ""
    return f"<h2>To keep in mind</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


# ---------------------------------------------------------------------------------------------- words


def _panel(title: str, body: str, note: str) -> str:
    shown = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="panel"><h3>{escape(title)}</h3>{body}{shown}</div>'


_NAMES = {
    "brier": "Brier",
    "roc_auc": "ROC AUC",
    "f1_macro": "macro F1",
    "f1": "F1",
    "r2": "R2",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
}


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))


def _num(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.4g}" if sign else f"{value:.4g}"


def _span(interval: Sequence[float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    return f"{_num(interval[0], sign=sign)} to {_num(interval[1], sign=sign)}"
