"""A search as one HTML page: what was tried, what won and why, what it costs, where it errs; no script, no outside file.

Pure: plain data in, text out. The look is that of the evaluation's page (`esteira.report`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esteira.automl import panels
from esteira.automl.panels import grid, name_of, number, size, tile
from esteira.report import STYLE

MOST_ROWS = 25
MOST_NAMED = 12

_MORE_STYLE = """
.dot.other { fill:var(--champion) } .dot { fill-opacity:.85 }  .panel + .grid { margin-top:14px }
td.long { max-width:420px; overflow-wrap:anywhere }
"""


@dataclass(frozen=True)
class Record:
    """What the page tells. What is empty or None is left out.

    Attributes:
        title: the line's or the table's name.
        target: the label's column.
        task: binary, multiclass or regression.
        metric: the score that the search went by.
        leaderboard: rows of `esteira.automl`, best first.
        summary: the search's own record: members, row_us, row_us_limit, bytes, calibration, folds, catalogue, trials.
        rows, features: of the table.
        seconds: that the search took; None leaves it out.
        truth: class codes or values of the training rows.
        out_of_fold: what the final model says of them, by models that did not see them; rows of NaN are left out.
        uncalibrated: the same before calibration, where there was one.
        classes: labels as text, in order of their codes; empty for regression.
        threshold: as in `post.json`.
        permutation, parameters: as `esteira.automl.importance` gives them.
        learning: as `esteira.automl.curve.learning` gives it, of scores of which higher is better.
        slices: as `esteira.slices.score` gives them, of the out-of-fold predictions.
        overall: the score of which the slices are slices.
        findings: what the leak checks warned of, in words.
    """

    title: str
    target: str
    task: str
    metric: str
    leaderboard: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    rows: int
    features: int
    seconds: float | None
    truth: NDArray[Any]
    out_of_fold: NDArray[np.float64]
    uncalibrated: NDArray[np.float64] | None = None
    classes: Sequence[str] = ()
    threshold: float | None = None
    permutation: Sequence[Mapping[str, Any]] = ()
    parameters: Mapping[str, Sequence[Mapping[str, Any]] | None] | None = None
    learning: Sequence[Mapping[str, Any]] = ()
    slices: Sequence[Mapping[str, Any]] = ()
    overall: float | None = None
    findings: Sequence[str] = ()


def render(record: Record) -> str:
    """The page."""
    answers = panels.classifier(record) if record.classes else panels.regression(record)
    parts = [
        _head(record),
        _tiles(record),
        _findings(record),
        "<h2>What was tried</h2>",
        _board(record),
        grid([panels.course(record), panels.costs_and_scores(record), panels.kinds(record)]),
        "<h2>How the winner answers, on rows that it had not seen</h2>",
        grid(answers),
        "<h2>What it depends on</h2>",
        grid([panels.permutation(record), panels.slices(record), panels.learning(record), *panels.parameters(record)]),
        _catalogue(record),
        _left_out(record),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(f'Search for {record.target}')}</title><style>{STYLE}{_MORE_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(record: Record) -> str:
    folds = record.summary.get("folds", {})
    repeats = folds.get("repeats", 1)
    times = f", {repeats} times" if repeats > 1 else ""
    validation = f"{folds['count'] // repeats} {folds['kind']} folds{times}" if folds else "held-back rows"
    facts = [
        f"answers <b>{escape(record.target)}</b>: {_task(record)}",
        f"{record.rows:,} rows, {record.features:,} features",
        f"judged by {escape(name_of(record.metric))} on {escape(validation)}",
    ]
    return f'<header><h1>{escape(record.title)}</h1></header><p class="soft">{" &middot; ".join(facts)}</p>'


def _task(record: Record) -> str:
    return {0: "a number", 2: "one of two classes"}.get(len(record.classes), f"one of {len(record.classes)} classes")


def _tiles(record: Record) -> str:
    best = next((row for row in record.leaderboard if row["score"] is not None), None)
    constant = next((row for row in record.leaderboard if row["kind"] == "constant"), None)
    tiles = []
    if best is not None:
        spread = best.get("deviation")
        note = "one fold" if spread is None else f"deviation over folds {number(spread)}"
        tiles.append(tile(name_of(record.metric), number(best["score"]), note))
    if constant is not None:
        tiles.append(tile("constant baseline", number(constant["score"]), "what no model at all would get"))
    summary = record.summary
    if summary.get("row_us") is not None:
        limit = summary.get("row_us_limit")
        tiles.append(
            tile("one row, estimated", f"{summary['row_us']:.3g} \u00b5s", f"of {limit:g} \u00b5s" if limit else "")
        )
    if summary.get("bytes") is not None:
        tiles.append(tile("graph", size(summary["bytes"]), ""))
    members = len(summary.get("members", ()))
    tiles.append(tile("members", f"{members}", f"of {len(record.leaderboard):,} rows of the leaderboard"))
    if record.seconds is not None:
        tiles.append(tile("search", f"{record.seconds:,.0f} s", ""))
    if record.threshold is not None:
        note = f"probability from which it says {record.classes[1]!r}"
        tiles.append(tile("threshold", number(record.threshold), note))
    return f'<div class="tiles" style="margin-top:18px">{"".join(tiles)}</div>'


def _findings(record: Record) -> str:
    if not record.findings:
        return ""
    items = "".join(f"<li>{escape(finding)}</li>" for finding in record.findings)
    return f"<h2>To look at first</h2><ul>{items}</ul>"


# ---------------------------------------------------------------------------------------------- the search


def _board(record: Record) -> str:
    scored = [row for row in record.leaderboard if row["score"] is not None]
    # Members stand further down when the search found better ones that were no use beside the others.
    shown = scored[:MOST_ROWS] + [row for row in scored[MOST_ROWS:] if row.get("weight")]
    head = "".join(
        f'<th class="{kind}">{name}</th>'
        for name, kind in (
            ("#", "n"), ("kind", ""), (escape(name_of(record.metric)), "n"), ("deviation", "n"), ("weight", "n"),
            ("one row", "n"), ("size", "n"), ("fit", "n"), ("", ""), ("parameters", ""),
        )
    )  # fmt: skip
    body = "".join(_board_row(row) for row in shown)
    rest = len(scored) - len(shown)
    note = f"<p>{rest:,} more are in leaderboard.json.</p>" if rest > 0 else ""
    return f'<div class="panel scroll"><table><tr>{head}</tr>{body}</table>{note}</div>'


def _board_row(row: Mapping[str, Any]) -> str:
    numbers = [
        number(row["score"]),
        number(row.get("deviation")),
        f"{row['weight']:.2f}" if row.get("weight") else "",
        "" if row.get("row_us") is None else f"{row['row_us']:.3g} \u00b5s",
        "" if row.get("bytes") is None else size(row["bytes"]),
        f"{row['fit_seconds']:.1f} s" if row.get("fit_seconds") else "",
    ]
    cells = "".join(f'<td class="n">{escape(cell)}</td>' for cell in numbers)
    state = row.get("state", "complete")
    return (
        f'<tr><td class="n">{row["number"]}</td><td>{escape(name_of(row["kind"]))}</td>{cells}'
        f'<td class="soft">{escape("" if state == "complete" else state)}</td>'
        f'<td class="long"><code>{escape(_params(row))}</code></td></tr>'
    )


def _params(row: Mapping[str, Any]) -> str:
    if row["kind"] == "blend":
        return ", ".join(f"{part['weight']:.2f} of #{part['number']}" for part in row["params"].get("members", ()))
    recipe = {name: value for name, value in (row.get("recipe") or {}).items() if value}
    return " ".join(f"{name}={_value(value)}" for name, value in {**row["params"], **recipe}.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _catalogue(record: Record) -> str:
    made = record.summary.get("catalogue") or ()
    if not made:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(entry['name']))}</td><td>{escape(name_of(str(entry['transformation'])))}</td>"
        f"<td>{escape(_made_of(entry['made_of']))}</td>"
        + "".join(
            f'<td class="n">{number(entry.get(name))}</td>'
            for name in ("missing", "mean", "deviation", "correlation", "importance")
        )
        + "</tr>"
        for entry in made
    )
    heads = "".join(
        f'<th class="n">{name}</th>' for name in ("missing", "mean", "deviation", "correlation", "importance")
    )
    return (
        '<h2>Features that were made</h2><div class="panel scroll"><table><tr><th>feature</th><th>how</th>'
        f"<th>of</th>{heads}</tr>{rows}</table></div>"
    )


def _made_of(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(str(part) for part in value)


def _left_out(record: Record) -> str:
    """Reasons, the commonest first, and whom they struck."""
    struck: dict[str, list[str]] = {}
    for row in record.leaderboard:
        if row.get("why"):
            name = name_of(row["kind"]) if row["number"] is None else f"#{row['number']}"
            struck.setdefault(row["why"], []).append(name)
    if not struck:
        return ""
    rows = ""
    for why, who in sorted(struck.items(), key=lambda pair: -len(pair[1])):
        more = f" and {len(who) - MOST_NAMED} more" if len(who) > MOST_NAMED else ""
        rows += (
            f'<tr><td class="n">{len(who)}</td><td>{escape(why)}</td>'
            f'<td class="soft">{escape(", ".join(who[:MOST_NAMED]))}{more}</td></tr>'
        )
    return (
        '<h2>Left out, or cut before the last fold</h2><div class="panel scroll"><table>'
        f'<tr><th class="n">trials</th><th>why</th><th>which</th></tr>{rows}</table></div>'
    )
