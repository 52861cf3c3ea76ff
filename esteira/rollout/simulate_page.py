"""What simulated rollouts came to, as one HTML page: how each policy ended in each scenario, how soon, and at what price.

Pure: rows in, text out; no script, no outside file. The look is that of the evaluation's page (`esteira.report`).
"""

from collections.abc import Mapping, Sequence
from html import escape

from esteira import charts
from esteira.charts import Series
from esteira.report import STYLE
from esteira.rollout.simulate import ENDINGS, Ending, Row
from esteira.rollout.traffic import Scenario

_STYLE = """
.ends { display:flex; height:14px; border-radius:4px; overflow:hidden; background:var(--line); min-width:180px }
.ends i { display:block; height:100% } .promoted { background:var(--good) } .rolled_back { background:var(--bad) }
.inconclusive { background:var(--warn) } .running { background:var(--baseline) }
.key i { display:inline-block; width:11px; height:11px; border-radius:3px; margin:0 5px 0 14px }
td.same { border-bottom:0 }
"""
_NAMES: Mapping[Ending, str] = {
    "promoted": "promoted", "rolled_back": "rolled back", "inconclusive": "inconclusive", "running": "still running",
}  # fmt: skip
_KINDS = ("model", "champion", "baseline")
_CHARTS = ("equal", "better", "at_margin", "ten_points_worse", "delayed_labels", "errors")


def render(rows: Mapping[str, Sequence[Row]], scenarios: Sequence[Scenario], *, runs: int, seed: int) -> str:
    """The page.

    Args:
        rows: policy -> its row for each scenario, in the order of `scenarios`.
        runs: of each scenario.
        seed: of the traffic.
    """
    title = f"Simulated rollouts: {', '.join(rows)}"
    rates = sorted({rate for found in rows.values() for row in found for rate in row.rates})
    facts = [
        f"{runs:,} runs of each scenario and policy", f"seed {seed}", "looks every hour",
        f"{' or '.join(map(str, rates))} units an hour" + (", by turns" if len(rates) > 1 else ""),
        "the same traffic for every policy",
    ]  # fmt: skip
    drawn = [
        panel for at, scenario in enumerate(scenarios)
        if scenario.name in _CHARTS and (panel := _course(scenario, {name: found[at] for name, found in rows.items()}))
    ]  # fmt: skip
    parts = [
        f"<header><h1>{escape(title)}</h1></header>",
        f'<p class="soft">{" &middot; ".join(facts)}</p>',
        '<p class="key">' + "".join(f'<i class="{end}"></i>{name}' for end, name in _NAMES.items()) + "</p>",
        "<h2>How they ended</h2>",
        _table(rows, scenarios),
        "<h2>How soon</h2>",
        f'<div class="grid">{"".join(drawn)}</div>' if drawn else "<p>Nothing to draw.</p>",
        "<h2>How it was counted</h2>",
        "<p>Shares stand with their 95 % intervals (Wilson). Hours run from the first unit to the end of a run, median over all"
        " endings. Harm is the number of units, mean of a run, that the candidate answered wrongly or not at all and the"
        " control would have answered rightly.</p>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _table(rows: Mapping[str, Sequence[Row]], scenarios: Sequence[Scenario]) -> str:
    body = []
    for at, scenario in enumerate(scenarios):
        for number, (policy, found) in enumerate(rows.items()):
            row = found[at]
            same = "" if number == len(rows) - 1 else ' class="same"'
            head = (
                f"<b>{escape(scenario.name.replace('_', ' '))}</b><br><small>{escape(scenario.what)}</small>"
                if not number
                else ""
            )
            hours = "" if row.median_hours is None else f"{row.median_hours:g}"
            harm = sum(run.harm for run in row.runs) / len(row.runs) if row.runs else 0.0
            cells = "".join(f'<td class="n">{_share(row, end)}</td>' for end in ENDINGS[:3])
            body.append(
                f"<tr><td{same}>{head}</td><td>{escape(policy)}</td><td>{_ends(row)}</td>{cells}"
                f'<td class="n">{hours}</td><td class="n">{harm:,.0f}</td></tr>'
            )
    heads = "".join(
        f'<th class="n">{name}</th>' for name in ("promoted", "rolled back", "inconclusive", "hours", "harm")
    )
    return f'<div class="panel scroll"><table><tr><th>scenario</th><th>policy</th><th></th>{heads}</tr>{"".join(body)}</table></div>'


def _ends(row: Row) -> str:
    if not row.runs:
        return ""
    bars = "".join(
        f'<i class="{end}" style="width:{100 * row.count(end) / len(row.runs):.2f}%" title="{_NAMES[end]}: {row.count(end)}"></i>'
        for end in ENDINGS
    )
    return f'<div class="ends">{bars}</div>'


def _share(row: Row, end: Ending) -> str:
    if not row.runs:
        return ""
    share, low, high = row.share(end)
    return f"{100 * share:.1f} %<br><small>{100 * low:.1f} to {100 * high:.1f}</small>"


def _course(scenario: Scenario, rows: Mapping[str, Row]) -> str:
    """The share of runs that ended as they mostly should, over the hours."""
    right: Ending = "promoted" if scenario.good else "rolled_back"
    last = max((run.hours for row in rows.values() for run in row.runs), default=1)
    lines = [
        Series(name, _steps(row, right, last), _KINDS[number % len(_KINDS)])
        for number, (name, row) in enumerate(rows.items())
    ]
    if not any(len(line.points) > 2 for line in lines):
        return ""
    label = f"{_NAMES[right]} by then (share)"
    chart = charts.curves(
        lines, title=f"{scenario.name} by hour", x_label="hours", y_label=label, xs=(0, last), ys=(0, 1)
    )
    name = scenario.name.replace("_", " ")
    return (
        f'<div class="panel"><h3>{escape(name[:1].upper() + name[1:])}</h3>{chart}<p>{escape(scenario.what)}.</p></div>'
    )


def _steps(row: Row, right: Ending, last: int) -> list[tuple[float, float]]:
    hours = sorted(run.hours for run in row.runs if run.ending == right)
    points, share = [(0.0, 0.0)], 0.0
    for number, hour in enumerate(hours, start=1):
        if number < len(hours) and hours[number] == hour:
            continue
        points.append((float(hour), share))
        share = number / len(row.runs)
        points.append((float(hour), share))
    return [*points, (float(last), share)]
