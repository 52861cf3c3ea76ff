"""The page on a table's quality that validate writes: one HTML file, readable without network. It decides nothing."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_CSS = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #667085; --line: #e3e7ee; --card: #fff; --page: #f6f7f9;
  --good: #1a7f4b; --warn: #b25e09; --bad: #b42318; --accent: #2f5fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3442; --card: #171c25;
  --page: #0f131a; --good: #47c98a; --warn: #f2a14a; --bad: #f97066; --accent: #84a9ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 10px; } p { margin: 6px 0; }
.soft { color: var(--soft); } .mono, td.mono { font-family: ui-monospace, monospace; font-size: 13px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; min-width: 140px; }
.card b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.bar { height: 12px; border-radius: 6px; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.parts { display: grid; grid-template-columns: 130px 1fr 70px 90px; gap: 6px 12px; align-items: center; max-width: 720px; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 12px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tag { border-radius: 5px; padding: 1px 7px; font-size: 12px; border: 1px solid currentColor; white-space: nowrap; }
.error { color: var(--bad); } .warning { color: var(--warn); } .good { color: var(--good); }
svg.h rect { fill: var(--accent); } .meter { display: inline-block; width: 64px; vertical-align: middle; margin-left: 8px; }
"""


def page(
    *,
    line: str,
    dataset: Mapping[str, Any],
    quality: Mapping[str, float],
    weights: Mapping[str, float],
    columns: Sequence[Mapping[str, Any]],
    dropped: Mapping[str, str],
    findings: Sequence[Mapping[str, Any]],
    quarantined: Sequence[Mapping[str, Any]],
    bad: int,
    limit: float,
    expectations: Sequence[Mapping[str, Any]],
    verdict: str,
) -> str:
    """The whole page.

    Args:
        line: the model line.
        dataset: the document `dataset.json`.
        quality, weights: the score, its parts, and their weights.
        columns: the profile, one dict a column.
        dropped: column -> why it is left out.
        findings: errors first.
        quarantined: the first quarantined rows.
        bad, limit: quarantined rows, and the share of rows that may be.
        expectations: results of Great Expectations; empty when it did not run.
        verdict: why validation failed; empty when it passed.
    """
    rows = dataset["row_count"]
    share = bad / rows if rows else 0.0
    parts = [
        f"<h1>{escape(line)}: is the data fit to learn from?</h1>",
        f"<p class=soft>{escape(dataset['name'])} · {escape(dataset['source'])} · content hash"
        f" <span class=mono title='{dataset['content_hash']}'>{dataset['content_hash'][:12]}</span></p>",
        f"<p class=error><b>Refused.</b> {escape(verdict)}</p>" if verdict else "<p class=good><b>Accepted.</b></p>",
        "<div class=cards>",
        _card(f"{rows:,}", "rows"),
        _card(str(dataset["column_count"]), "columns"),
        _card(f"{bad:,}", f"rows in quarantine ({share:.2%}, limit {limit:.2%})"),
        _card(str(len(findings)), "findings"),
        _card(f"{quality['quality_score']:.4f}", "quality score, of 1"),
        "</div>",
        _quality(quality, weights),
        "<h2>Findings</h2>",
        _findings(findings),
        "<h2>Columns</h2>",
        _columns(columns, dropped),
    ]
    if quarantined:
        parts += [
            "<h2>Rows in quarantine</h2>",
            f"<p class=soft>The first {len(quarantined)} of {bad:,}; all are in quarantine.jsonl.</p>",
            _quarantine(quarantined),
        ]
    if expectations:
        met = sum(bool(result["success"]) for result in expectations)
        parts += [
            "<h2>Expectations</h2>",
            f"<p class=soft>{met} of {len(expectations)} expectations of the Great Expectations suite made from the"
            " contract are met.</p>",
            _expectations(expectations),
        ]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(line)}: data quality</title><style>{_CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _card(number: str, what: str) -> str:
    return f"<div class=card><b>{number}</b><span class=soft>{escape(what)}</span></div>"


def _bar(share: float) -> str:
    return f"<div class=bar><i style='width:{100 * share:.2f}%'></i></div>"


def _quality(quality: Mapping[str, float], weights: Mapping[str, float]) -> str:
    rows = [
        f"<span>{name}</span>{_bar(quality[name])}<span class=mono>{quality[name]:.4f}</span>"
        f"<span class=soft>weight {weight:g}</span>"
        for name, weight in weights.items()
    ]
    return f"<h2>Quality</h2><div class=parts>{''.join(rows)}</div>"


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return "<p class=good>None: every cell obeys the contract.</p>"
    rows = []
    for finding in findings:
        examples = ", ".join(
            f"row {example['row']:,}" + ("" if example["value"] is None else f": {_short(example['value'])}")
            for example in finding["examples"]
        )
        rows.append(
            f"<tr><td><span class='tag {finding['severity']}'>{finding['severity']}</span></td>"
            f"<td class=mono>{escape(finding['rule'])}</td><td class=mono>{escape(finding['column'])}</td>"
            f"<td>{escape(finding['message'])}</td><td class=n>{finding['count']:,}</td><td class=n>{finding['share']:.2%}</td>"
            f"<td class=mono>{escape(examples)}</td></tr>"
        )
    return _table(["", "rule", "column", "first case in words", "count", "share", "examples"], rows)


def _columns(columns: Sequence[Mapping[str, Any]], dropped: Mapping[str, str]) -> str:
    rows = []
    for column in columns:
        why = dropped.get(column["name"], "")
        note = f"<br><span class=soft>{escape(why)}</span>" if why else ""
        top = ", ".join(f"{_short(item['value'])} ({item['count']:,})" for item in column["top"][:3])
        span = ""
        if column["minimum"] is not None:
            span = f"{_number(column['minimum'])} to {_number(column['maximum'])}"
        spread = ""
        if column["mean"] is not None:
            deviation = column["standard_deviation"]
            spread = _number(column["mean"]) + (f" ± {_number(deviation)}" if deviation is not None else "")
        rows.append(
            f"<tr><td><b>{escape(column['name'])}</b>{note}</td><td>{column['role']}</td><td>{column['type']}</td>"
            f"<td class=n>{column['missing_share']:.1%}<span class=meter>{_bar(column['missing_share'])}</span></td>"
            f"<td class=n>{column['distinct']:,}</td><td class=n>{escape(span)}</td><td class=n>{escape(spread)}</td>"
            f"<td>{_histogram(column['histogram'])}</td><td class=mono>{escape(top)}</td></tr>"
        )
    header = ["column", "role", "type", "missing", "distinct", "range", "mean ± deviation", "shape", "most frequent"]
    return _table(header, rows)


def _histogram(histogram: Mapping[str, Any] | None) -> str:
    if histogram is None:
        return ""
    counts = histogram["counts"]
    most = max(counts)
    width = 96 / len(counts)
    bars = "".join(
        f"<rect x='{i * width:.1f}' y='{24 - 24 * count / most:.1f}' width='{width - 0.6:.1f}' height='{24 * count / most:.1f}'/>"
        for i, count in enumerate(counts)
    )
    title = f"{_number(histogram['low'])} to {_number(histogram['high'])}"
    return f"<svg class=h width=96 height=24 role=img aria-label='{title}'><title>{title}</title>{bars}</svg>"


def _quarantine(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in entries:
        reasons = "<br>".join(
            f"<b class=mono>{escape(reason['column'])}</b> {escape(reason['message'])}" for reason in entry["reasons"]
        )
        rows.append(f"<tr><td class=n>{entry['row']:,}</td><td>{reasons}</td></tr>")
    return _table(["row", "why"], rows)


def _expectations(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for result in results:
        kind = "good" if result["success"] else result["severity"]
        unmet = result.get("unexpected_count")
        rows.append(
            f"<tr><td><span class='tag {kind}'>{'met' if result['success'] else 'not met'}</span></td>"
            f"<td class=mono>{escape(result['expectation'])}</td><td class=mono>{escape(result['column'])}</td>"
            f"<td class=n>{'' if unmet is None else f'{unmet:,}'}</td></tr>"
        )
    return _table(["", "expectation", "column", "unexpected"], rows)


def _short(value: Any) -> str:
    text = _number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= 32 else text[:29] + "..."


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
