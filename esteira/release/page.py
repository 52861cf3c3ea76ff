"""The release record as one HTML page that a person can read and file: no script, no outside file, light and dark.

Pure: it takes the document of `esteira.release.record` and returns text. Each entry of the ledger lies in it whole, so that its
hash can be made again from the page alone.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from esteira import charts
from esteira.charts import Stair
from esteira.ledger import canonical
from esteira.report import STYLE

_MORE = """
a { color:var(--model) } .dot.champion { fill:var(--champion) } .plain { background:var(--soft) }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; margin:0; font-size:13.5px }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere } .two { display:grid; gap:14px;
  grid-template-columns:repeat(auto-fit,minmax(330px,1fr)) }
details summary { cursor:pointer } pre { white-space:pre-wrap; overflow-wrap:anywhere; margin:6px 0;
  font:12px ui-monospace,Menlo,Consolas,monospace; max-width:760px }
.alarm { border-color:var(--bad) } .alarm b { color:var(--bad) } .tile b.word { font-size:19px }
td.t, td a code { white-space:nowrap }
"""
_GOOD = frozenset({"production", "staging"})
_BAD = frozenset({"failed", "rolled_back"})
# Columns whose cells stay on one line.
_NARROW = frozenset({"when (UTC)", "its share", "beside", "holds until"})
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Seconds between two marks of the picture's axis; the first that gives at most eight of them is taken.
_STEPS = tuple(
    60 * minutes
    for minutes in (1, 5, 15, 30, 60, 180, 360, 720, 1440, 2880, 10_080, 20_160, 43_200, 129_600, 525_600, 5_256_000)
)
_ACTIONS = {
    "rollback": "rolled back",
    "roll_back": "rolled back",
    "advance": "advanced",
    "promote": "promoted",
    "inconclusive": "inconclusive",
}


def render(record: Mapping[str, Any]) -> str:
    """The page.

    Args:
        record: the document that `esteira.release.record.record` gives.
    """
    parts = [
        _head(record),
        _alarm(record),
        _tiles(record),
        "<h2>Its share of the traffic</h2>",
        _picture(record),
        _changes(record["shares"]),
        "<h2>What the gate saw</h2>",
        _gate(record["gate"], record["metrics"], record["baseline"]),
        "<h2>Rehearsal</h2>",
        _rehearsal(record["rehearsal"], record["unrehearsed"]),
        "<h2>Approval</h2>",
        _approval(record["approval"]),
        *[_rollout(one) for one in record["rollouts"]],
        "<h2>Where it comes from</h2>",
        _origin(record),
        "<h2>What the ledger says</h2>",
        _ledger(record["ledger"]),
    ]
    title = escape(f"{record['line']} version {record['version']}: release record")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{_MORE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(record: Mapping[str, Any]) -> str:
    state = str(record["state"])
    kind = "PASS" if state in _GOOD else "FAIL" if state in _BAD else "plain"
    named = [f"<b>{escape(alias)}</b>" for alias in record["aliases"]]
    facts = [
        f"bundle <code>{escape(record['bundle_id'])}</code>",
        f"registered {_time(record['registered']['at'])} by {escape(str(record['registered']['by']))}",
        *([", ".join(named)] if named else []),
    ]
    return (
        f"<header><h1>{escape(record['line'])} <span class=soft>version {record['version']}</span></h1>"
        f'<span class="badge {kind}">{escape(state.replace("_", " "))}</span></header>'
        f'<p class="soft">{" &middot; ".join(facts)}</p>'
    )


def _alarm(record: Mapping[str, Any]) -> str:
    chain = record["ledger"]
    if chain["ok"]:
        return ""
    return (
        '<div class="panel alarm"><b>The ledger is broken, so this page proves nothing.</b>'
        f"<p>Entry {chain['broken_at']}: {escape(chain['reason'])}.</p></div>"
    )


def _tiles(record: Mapping[str, Any]) -> str:
    gate, approval, rehearsal, chain = (record[name] for name in ("gate", "approval", "rehearsal", "ledger"))
    tiles = [_tile("takes of the traffic", _percent(record["serving"]), "after the last entry")]
    if gate is None:
        tiles.append(_tile("gate", "no verdict", "none is in the ledger"))
    else:
        passed = sum(rule["outcome"] == "PASS" for rule in gate["rules"])
        tiles.append(_tile("gate", str(gate["verdict"]), f"{passed} of {len(gate['rules'])} rules passed"))
    if rehearsal is not None:
        note = f"{rehearsal.get('requests', '?')} requests replayed, {rehearsal.get('errors', '?')} errors"
        tiles.append(_tile("rehearsal", str(rehearsal.get("verdict", "?")), note))
    by = approval["by"] or "nobody was asked"
    tiles.append(_tile("approval", str(approval["status"]), str(by)))
    replaced, after = record["replaced"], record["replaced_by"]
    if replaced is not None or after is not None:
        word = f"version {replaced['version']}" if replaced else "nothing"
        tiles.append(_tile("replaced", word, f"and was replaced by version {after['version']}" if after else ""))
    tiles.append(
        _tile(
            "ledger", "holds" if chain["ok"] else "broken", f"{chain['entries']:,} entries, head {chain['head'][:12]}"
        )
    )
    return f'<div class="tiles" style="margin-top:18px">{"".join(tiles)}</div>'


# The picture


def _picture(record: Mapping[str, Any]) -> str:
    changes = record["shares"]
    if not changes:
        return '<div class="panel"><p>It never took traffic.</p></div>'
    times = [_seconds(change["at"]) for change in changes]
    lead = max(60.0, (times[-1] - times[0]) * 0.06)
    first, last = times[0] - lead, times[-1] + lead
    own = Stair(
        f"v{record['version']}",
        [(first, 100 * changes[0]["before"], "")]
        + [
            (at, 100 * change["share"], f"{_time(change['at'])}: {_percent(change['share'])}. {change['reason']}")
            for at, change in zip(times, changes, strict=True)
        ],
        filled=True,
    )
    others: dict[int, list[tuple[float, float, str]]] = {}
    for one in changes[0]["others_before"]:
        others[one["version"]] = [(first, 100 * one["share"], "")]
    for at, change in zip(times, changes, strict=True):
        shares = {one["version"]: one["share"] for one in change["others"]}
        for version in sorted({*others, *shares}):
            others.setdefault(version, [(at, 0.0, "")]).append((at, 100 * shares.get(version, 0.0), ""))
    drawn = [_other(version, steps, newer=version > record["version"]) for version, steps in sorted(others.items())]
    chart = charts.stairs(
        [*drawn, own], title="Share of the traffic over time", xs=(first, last), marks=_marks(first, last)
    )
    note = f"Percent of the line's requests by version, UTC; {_day(times[0])} to {_day(times[-1])}."
    return f'<div class="panel">{chart}<p>{escape(note)}</p></div>'


def _other(version: int, steps: list[tuple[float, float, str]], *, newer: bool) -> Stair:
    """The line of another version, from its first share to where it lost the last."""
    last = max(place for place, (_, share, _) in enumerate(steps) if share > 0) + 1
    kept, end = (steps, None) if last == len(steps) else (steps[: last + 1], steps[last][0])
    return Stair(f"v{version}", kept, "champion" if newer else "baseline", end=end)


def _marks(first: float, last: float) -> list[tuple[float, str]]:
    """Round times of an axis in seconds of Unix time, with their texts."""
    step = next((step for step in _STEPS if (last - first) / step <= 8), _STEPS[-1])
    place = -(-first // step) * step
    found = []
    while place <= last:
        at = datetime.fromtimestamp(place, UTC)
        clock = f"{at.hour:02}:{at.minute:02}"
        day = f"{at.day} {_MONTHS[at.month - 1]}"
        far = f"{day} {at.year}" if step >= 43_200 * 60 else day
        found.append((place, far if step >= 86_400 else day if (at.hour, at.minute) == (0, 0) else clock))
        place += step
    return found


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    if not changes:
        return ""
    rows = [
        [
            _time(change["at"]),
            f"{_percent(change['before'])} &#8594; <b>{_percent(change['share'])}</b>",
            escape(", ".join(f"v{one['version']} {_percent(one['share'])}" for one in change["others"])),
            escape(_action(change)),
            escape(change["reason"]),
            escape(change["by"]),
            _link(change),
        ]
        for change in changes
    ]
    return _table(["when (UTC)", "its share", "beside", "", "why", "by", "entry"], rows)


def _action(change: Mapping[str, Any]) -> str:
    if change["action"] == "alias":
        return "champion" if change["share"] else "champion no more"
    return _ACTIONS.get(change["action"], str(change["action"]).replace("_", " "))


# Gate, rehearsal, approval, rollouts


def _gate(gate: Mapping[str, Any] | None, metrics: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    if gate is None:
        return '<div class="panel"><p>No verdict is in the ledger.</p></div>'
    summary = str(gate["summary"]).rstrip(".")
    note = f"<p>{escape(summary[:1].upper() + summary[1:])}; {_time(gate['at'])}, entry {_link(gate)}.</p>"
    scores = [
        [escape(name), _number(value), _number(baseline.get(name))]
        for name, value in metrics.items()
        if isinstance(value, int | float) or value is None
    ]
    measured = _table(["score", "value", "constant baseline"], scores, numbers=(1, 2)) if scores else ""
    return _rules(gate["rules"]) + note + measured


def _rules(rules: Sequence[Mapping[str, Any]]) -> str:
    if not rules:
        return ""
    rows = [
        [
            _badge(rule["outcome"]),
            escape(str(rule["rule"]).replace("_", " ")),
            _number(rule["value"]) + _span(rule["interval"]),
            escape(f"{rule['op'] or ''} ") + _number(rule["bound"]),
            "" if rule["n"] is None else f"{rule['n']:,}",
            escape(str(rule["reason"] or "")),
        ]
        for rule in rules
    ]
    return _table(["", "rule", "value", "had to be", "n", "in words"], rows, numbers=(2, 3, 4))


def _rehearsal(said: Mapping[str, Any] | None, unrehearsed: str) -> str:
    if said is None:
        none = f"Not rehearsed: {escape(unrehearsed)}." if unrehearsed else "There was none."
        return f'<div class="panel"><p>{none}</p></div>'
    rows = []
    for name in ("candidate", "champion"):
        one = said.get(name)
        if isinstance(one, Mapping):
            version = f" (version {one['version']})" if one.get("version") else ""
            rows.append([escape(name + version), _number(one.get("p50_ms")), _number(one.get("p95_ms"))])
    facts = {
        "when": _time(said["at"]),
        "requests": f"{_number(said.get('requests'))} from {escape(str(said.get('source', 'a file')))}",
        "answers that differ": f"{_number(said.get('differing'))} of {_number(said.get('compared'))}",
        "largest difference": _number(said.get("max_difference")),
        "errors": _number(said.get("errors")),
        "entry": _link(said),
    }
    if said.get("reason"):
        facts["said"] = escape(str(said["reason"]))
    latency = _table(["milliseconds", "median", "95 of 100"], rows, numbers=(1, 2)) if rows else ""
    rules = [rule for rule in said.get("rules") or [] if isinstance(rule, Mapping)]
    names = ("rule", "outcome", "metric", "value", "op", "bound", "n", "interval", "reason")
    whole = [{name: rule.get(name) for name in names} for rule in rules]
    return f'<div class="two"><div class="panel">{_list(facts)}</div>{latency}</div>{_rules(whole)}'


def _approval(approval: Mapping[str, Any]) -> str:
    if not approval["events"]:
        return '<div class="panel"><p>Nobody was asked: the line\'s approval mode did not require it.</p></div>'
    rows = [
        [
            _time(one["at"]),
            escape(one["status"]),
            escape(one["by"]),
            escape(one["reason"]),
            _time(one["expires_at"]) if one["expires_at"] else "",
            _link(one),
        ]
        for one in approval["events"]
    ]
    return _table(["when (UTC)", "", "by", "why", "holds until", "entry"], rows)


def _rollout(one: Mapping[str, Any]) -> str:
    rows = [
        [
            _time(step["at"]),
            escape(step["action"].replace("_", " ")),
            "" if step["to"] is None else f"{_number(step['from'])} &#8594; {_number(step['to'])} %",
            escape(step["reason"]),
            escape(step["by"]),
            _link(step),
        ]
        for step in one["steps"]
    ]
    end = one["end"].replace("_", " ") or "running"
    head = f"<h2>Rollout <code>{escape(one['test_id'])}</code>: {escape(end)}</h2>"
    policy = f"<p>Decided by policy <b>{escape(str(one['policy']))}</b>.</p>" if one["policy"] else ""
    found = f"<h3 style='margin-top:14px'>What was found last</h3>{_rules(one['findings'])}" if one["findings"] else ""
    return f"{head}{policy}{_table(['when (UTC)', '', 'its share', 'why', 'by', 'entry'], rows)}{found}"


# Origin and ledger


def _origin(record: Mapping[str, Any]) -> str:
    data, code, run = record["data"], record["code"], record["run"]
    size = "" if data["rows"] is None else f"{data['rows']:,} rows, {_number(data['columns'])} columns"
    of_data = {
        "data": escape(str(data["name"] or "no record of it")),
        "source": escape(str(data["source"] or "")),
        "size": size,
        "quality": "" if data["quality_score"] is None else f"{data['quality_score']:.4f} of 1",
        "SHA-256": f"<code>{escape(data['hash'])}</code>",
    }
    of_code = {
        "code": f"<code>{escape(code['revision'])}</code>",
        "parameters": f"<code>{escape(code['params_hash'])}</code>",
        "seed": "" if run["seed"] is None else str(run["seed"]),
        "run": f"<code>{escape(run['run_id'])}</code>",
        "run in MLflow": f"<code>{escape(run['mlflow_run_id'])}</code>",
    }
    panels = f'<div class="panel">{_list(of_data)}</div><div class="panel">{_list(of_code)}</div>'
    replaced, after = record["replaced"], record["replaced_by"]
    words = []
    if replaced:
        words.append(
            f"It replaced version {replaced['version']} (bundle <code>{escape(str(replaced['bundle_id']))}</code>),"
            f" {_time(replaced['at'])}, by {escape(replaced['by'])}."
        )
    if after:
        why = f": {escape(after['reason'])}" if after["reason"] else ""
        words.append(f"Version {after['version']} replaced it, {_time(after['at'])}, by {escape(after['by'])}{why}.")
    told = "".join(f"<p>{word}</p>" for word in words)
    return f'<div class="two">{panels}</div>{told}'


def _ledger(chain: Mapping[str, Any]) -> str:
    rows = [
        [
            f'<a id="e{entry["seq"]}"></a>{entry["seq"]}',
            _time(entry["at"]),
            escape(entry["kind"].replace("_", " ")),
            escape(entry["actor"]),
            f"<details><summary><code>{escape(entry['hash'][:16])}</code></summary>"
            f"<pre>{escape(canonical(entry).decode('utf-8'))}</pre></details>",
            f"<code>{escape(entry['prev'][:16])}</code>",
        ]
        for entry in chain["about"]
    ]
    how = (
        "An entry's hash is SHA-256 over the hash before it and its own canonical JSON without <code>hash</code> and"
        " <code>prev</code>: keys sorted, no spaces, UTF-8. The whole chain is checked by"
        " <code>esteira ledger verify</code>."
    )
    state = "holds" if chain["ok"] else f"is broken at entry {chain['broken_at']}"
    note = f"<p>The chain of {chain['entries']:,} entries {state}; head <code>{escape(chain['head'])}</code>. {how}</p>"
    return _table(["no.", "when (UTC)", "kind", "by", "hash", "follows"], rows) + note


# Words and small parts


def _tile(name: str, value: str, note: str) -> str:
    word = ' class="word"' if len(value) > 9 else ""
    return f'<div class="tile"><small>{escape(name)}</small><b{word}>{escape(value)}</b><small>{escape(note)}</small></div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already; columns in `numbers` are set to the right."""
    mark = [
        ' class="n"' if place in numbers else ' class="t"' if name in _NARROW else "" for place, name in enumerate(head)
    ]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, mark, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, mark, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="panel scroll" style="margin-top:10px"><table><tr>{top}</tr>{body}</table></div>'


def _list(facts: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{text}</dd>' for name, text in facts.items() if text)}</dl>"


def _badge(outcome: Any) -> str:
    kind = outcome if outcome in {"PASS", "FAIL", "NO_DATA"} else "plain"
    return f'<span class="badge {kind}">{escape(str(outcome).replace("_", " "))}</span>'


def _link(entry: Mapping[str, Any]) -> str:
    return f'<a href="#e{entry["seq"]}"><code>{escape(entry["hash"][:8])}</code></a>'


def _number(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "undefined" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(str(value))


def _span(interval: Any) -> str:
    if not isinstance(interval, Sequence) or len(interval) != 2:
        return ""
    return f"<br><small>{interval[0]:.4g} to {interval[1]:.4g}</small>"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _time(text: str | None) -> str:
    """A time of the ledger to the second; the whole text where it has another form."""
    if not text:
        return "unknown"
    return escape(f"{text[:10]} {text[11:19]}" if len(text) >= 19 and text[10:11] == "T" else text)


def _day(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year} {at.hour:02}:{at.minute:02}"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
