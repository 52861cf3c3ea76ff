"""What int8 weights changed, as one HTML page: accuracy, time and bytes before and after; no script, no outside file.

Pure: a comparison in, text out. The look is that of the evaluation's page (`esteira.report`).
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from esteira import charts
from esteira.automl.panels import grid, name_of, number, panel, size, tile
from esteira.automl.quantised import MANY, Comparison, Side
from esteira.charts import Mark
from esteira.features.metrics import Classified
from esteira.report import STYLE

MOST_POINTS = 700
MOST_PRODUCTS = 40
_BINS = 40


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: what was lost, of what, and whether that is too much."""
    metric, rule = report["rule"]["metric"], report["rule"]
    was, now = (report[side]["scores"][metric] for side in ("before", "after"))
    which = "at most" if report["accepted"] else "more than"
    return (
        f"{name_of(metric)} {was:.4g} before, {now:.4g} after on {report['rows']:,} rows: "
        f"{which} {rule['lost_at_most']:g} lost, so it is {'accepted' if report['accepted'] else 'refused'}"
    )


def gain(report: Mapping[str, Any], part: str = "one_row_us") -> float:
    """How many times as fast the whole answer is after as before, by the medians."""
    was, now = (float(report[side][part]["answer"]["p50"]) for side in ("before", "after"))
    return was / now if now else 1.0


def render(found: Comparison) -> str:
    """The page."""
    report = found.report
    title = f"Int8 weights for {report['line']}"
    parts = [
        _head(report, title),
        _tiles(report),
        "<h2>Time</h2>",
        grid(
            [
                _ranges(report, "one_row_us", "One row", "Median, and up to the 95th percentile."),
                _ranges(report, f"{MANY}_rows_us", f"{MANY:,} rows at once", "Median, and up to the 95th percentile."),
                _histogram(found.before, found.after),
            ]
        ),
        "<h2>Answers</h2>",
        grid([_both(found), _scores(report)]),
        "<h2>Matrix products</h2>",
        _products(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(report: Mapping[str, Any], title: str) -> str:
    good = report["accepted"]
    badge = f'<span class="badge {"PASS" if good else "FAIL"}">{"accepted" if good else "refused"}</span>'
    said = verdict(report)
    facts = [
        f"of bundle <code>{escape(report['from'][:12])}</code>",
        f"{report['rows']:,} labelled rows of {escape(report['data']['name'])}",
        f"{report['calls']:,} calls each, by turns, on this machine's processor, one thread",
    ]
    return (
        f"<header><h1>{escape(title)}</h1>{badge}</header>"
        f'<p class="soft">{" &middot; ".join(facts)}</p><p>{escape(said[:1].upper() + said[1:])}.</p>'
    )


def _tiles(report: Mapping[str, Any]) -> str:
    metric = report["rule"]["metric"]
    was, now = report["before"], report["after"]
    ends = report["interval"]
    lost = (
        "no interval" if ends is None else f"lost {report['lost']:+.4f}, 95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}"
    )
    constant = f"{number(report['baseline'][metric])} by a constant"
    tiles = [
        tile(f"{name_of(metric)} before", number(was["scores"][metric]), constant),
        tile(f"{name_of(metric)} after", number(now["scores"][metric]), lost),
        *(
            tile(f"{name}, speed", _times(gain(report, part)), f"{_us(was, part)} before, {_us(now, part)} after")
            for name, part in (("one row", "one_row_us"), (f"{MANY:,} rows", f"{MANY}_rows_us"))
        ),
        tile("graph", size(now["bytes"]), f"{size(was['bytes'])} before"),
    ]
    return f'<div class="tiles" style="margin-top:18px">{"".join(tiles)}</div>'


def _times(ratio: float) -> str:
    return f"{ratio:.3g} \u00d7" if ratio >= 1 else f"1/{1 / ratio:.3g} \u00d7"


def _us(side: Mapping[str, Any], part: str) -> str:
    return _duration(side[part]["answer"]["p50"])


def _duration(microseconds: float) -> str:
    return f"{microseconds / 1000:.3g} ms" if microseconds >= 1000 else f"{microseconds:.3g} \u00b5s"


def _ranges(report: Mapping[str, Any], part: str, title: str, note: str) -> str:
    marks = []
    for which in ("answer", "graph"):
        for side, kind in (("before", "baseline"), ("after", "model")):
            told = report[side][part][which]
            name = "whole answer" if which == "answer" else "graph alone"
            marks.append(Mark(f"{name}, {side}", told["p50"], told["p50"], told["p95"], _duration(told["p50"]), kind))
    return panel(title, charts.ranges(marks, title=title, x_label="\u00b5s"), note)


def _histogram(before: Side, after: Side) -> str:
    """Times of one row; the slowest twentieth stands in the last bin, or it would be all that is seen."""
    both = [before.one.answer, after.one.answer]
    low, high = min(float(part.min()) for part in both), max(float(np.percentile(part, 95)) for part in both)
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    counts = [np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0].tolist() for part in both]
    groups = [("before", counts[0], "baseline"), ("after", counts[1], "model")]
    chart = charts.histogram(
        groups, edges.tolist(), title="Times of one row", x_label="one row, \u00b5s", y_label="calls"
    )
    return panel("Calls of one row", chart, "Slower ones than the 95th percentile stand at the right edge.")


def _both(found: Comparison) -> str:
    """The same rows by both: on the line nothing changed."""
    before, after = found.before.judged, found.after.judged
    if isinstance(before, Classified) and isinstance(after, Classified):
        # Of two classes the second's probability says all; of more, that of the class that was said before.
        of = np.ones(len(before), np.int64) if len(before.classes) == 2 else before.probabilities.argmax(axis=1)
        rows = np.arange(len(before))
        x, y, what = before.probabilities[rows, of], after.probabilities[rows, of], "probability"
    else:
        assert not isinstance(before, Classified)
        assert not isinstance(after, Classified)
        x, y, what = before.predicted, after.predicted, "prediction"
    step = np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(np.int64)
    pairs = list(zip(x[step].tolist(), y[step].tolist(), strict=True))
    chart = charts.scatter(
        pairs, title="Before and after", x_label=f"{what} before", y_label=f"{what} after", diagonal=True
    )
    changed = found.report["changed"]
    said = f"{changed['labels']:.2%} of the labels differ. " if "labels" in changed else ""
    return panel("The same rows", chart, f"{said}The largest step is {number(changed['largest_step'])}.")


def _scores(report: Mapping[str, Any]) -> str:
    was, now, constant = report["before"]["scores"], report["after"]["scores"], report["baseline"]
    rows = "".join(
        f"<tr><td>{escape(name_of(name))}</td>"
        + "".join(f'<td class="n">{number(side.get(name))}</td>' for side in (was, now, constant))
        + "</tr>"
        for name in was
    )
    head = '<tr><th>score</th><th class="n">before</th><th class="n">after</th><th class="n">constant</th></tr>'
    return f'<div class="panel scroll"><h3>All scores</h3><table>{head}{rows}</table></div>'


def _products(report: Mapping[str, Any]) -> str:
    products: Sequence[Mapping[str, Any]] = sorted(report["products"], key=lambda product: -product["weights"])
    rows = "".join(
        f"<tr><td><code>{escape(product['stage'])} {escape(product['name'])}</code></td>"
        f'<td class="n">{" &times; ".join(map(str, product["shape"]))}</td><td class="n">{product["weights"]:,}</td>'
        f"<td>{escape('left: ' + product['left'] if product['left'] else 'int8')}</td></tr>"
        for product in products[:MOST_PRODUCTS]
    )
    more = len(products) - MOST_PRODUCTS
    note = f"<p>{more:,} smaller ones are in report.json.</p>" if more > 0 else ""
    trees = f"<p>{report['trees']:,} trees are left as they are: they have no products.</p>" if report["trees"] else ""
    head = '<tr><th>product</th><th class="n">shape</th><th class="n">weights</th><th>weights are</th></tr>'
    return f'<div class="panel scroll"><table>{head}{rows}</table>{note}{trees}</div>'
