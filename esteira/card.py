"""The model card: what a model is for, what it learned from, how good it is for whom, and whom to ask. Pure.

Made from the family's README, the run's data and measurements; a version without a complete card is not registered.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

REQUIRED: tuple[str, ...] = ("purpose", "data", "metrics", "limits", "contact", "licence")
HISTORY_LENGTH = 20
_PLACEHOLDER = re.compile(r"\s*(todo|tbd|fixme|xxx|n/?a|none|null|\?+|-+|\.+)[\s.:!]*", re.IGNORECASE)


def card_missing(card: Mapping[str, Any]) -> list[str]:
    """What a card lacks, in the order of the card; an empty list means that it is complete.

    A section is missing when it is absent, empty or a placeholder (`TODO`, `TBD`, `n/a`, ...). The metrics are complete
    only with a segment (`metrics.segments`: name and number of rows each), because an average hides its weakest group.
    """
    missing = [name for name in REQUIRED if _empty(card.get(name))]
    metrics = card.get("metrics")
    if "metrics" not in missing:
        segments = metrics.get("segments") if isinstance(metrics, Mapping) else None
        if (
            not isinstance(segments, Sequence)
            or isinstance(segments, str)
            or not segments
            or not all(
                isinstance(part, Mapping) and part.get("segment") and part.get("n") is not None for part in segments
            )
        ):
            missing.insert(_place(missing), "metrics.segments")
    return missing


def _place(missing: Sequence[str]) -> int:
    before = REQUIRED[: REQUIRED.index("metrics")]
    return sum(name in before for name in missing)


def _empty(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip() or _PLACEHOLDER.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(_empty(part) for part in value.values())
    if isinstance(value, Sequence):
        return all(_empty(part) for part in value)
    return False


def readme_sections(text: str) -> dict[str, str]:
    """Sections of a family's README by their second-level heading in lower case: `## Limits` -> `limits`."""
    found: dict[str, str] = {}
    parts = re.split(r"^##\s+(.+?)\s*$", text, flags=re.MULTILINE)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        found[heading.strip().lower()] = body.strip()
    return found


def make_card(
    *,
    line: str,
    answers: str,
    readme: str,
    overrides: Mapping[str, str],
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    found_limits: Sequence[str],
    versions: Mapping[str, str],
    example: Mapping[str, Any],
    former: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Put a card together.

    Args:
        answers: one sentence that says what this line answers; it opens the purpose.
        readme: the family's README, whose sections question (or purpose), data, metric, limits, contact, licence count.
        overrides: section -> text that replaces the README's, for one line.
        data: what the model learned from: name, hash, rows, columns, label.
        metrics: `primary`, `overall` and `segments`.
        found_limits: sentences that the evaluation found, added to the README's limits.
        versions: what it was made with: code revision, data hash, libraries.
        example: one request row, for the usage section.
        former: the champion's card, whose metrics and history become this card's history.
    """
    said = readme_sections(readme)
    said["purpose"] = said.get("purpose") or said.get("question", "")

    def text(section: str) -> str:
        return overrides.get(section) or said.get(section, "")

    path = f"/v1/{line}/predict"
    return {
        "card_version": 1,
        "line": line,
        "purpose": text("purpose") if overrides.get("purpose") else " ".join(filter(None, (answers, text("purpose")))),
        "data": {"about": text("data"), **data},
        "metrics": {"about": text("metric"), **metrics},
        "limits": [*([text("limits")] if text("limits") else []), *found_limits],
        "contact": text("contact"),
        "licence": text("licence"),
        "versions": dict(versions),
        "history": _history(former),
        "usage": {
            "method": "POST",
            "path": path,
            "authorization": "Bearer $ESTEIRA_API_KEY",
            "request": {"rows": [dict(example)]},
            "serve": f"esteira serve {line} --port 3000",
            "curl": f'curl -s http://127.0.0.1:3000{path} -H "Authorization: Bearer $ESTEIRA_API_KEY" '
            f"-H 'Content-Type: application/json' -d @rows.json",
        },
    }


def _history(former: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Metrics of the former champions of the line, oldest first, the latest HISTORY_LENGTH of them."""
    if former is None:
        return []
    overall = former.get("metrics", {}).get("overall", {})
    entry = {
        "bundle_id": former.get("bundle_id"),
        "content_hash": former.get("data", {}).get("content_hash"),
        "metrics": {name: score.get("value") for name, score in overall.items()},
    }
    return [*former.get("history", []), entry][-HISTORY_LENGTH:]


def to_markdown(card: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    data, metrics, usage = card["data"], card["metrics"], card["usage"]
    out = [f"# Model card: {card['line']}", "", "## Purpose", "", card["purpose"], "", "## Data", ""]
    if data.get("about"):
        out += [data["about"], ""]
    out += _table(
        ("What", "Value"),
        [
            (key.replace("_", " "), _cell(value))
            for key, value in data.items()
            if key != "about" and value not in ([], "")
        ],
    )
    out += ["", "## Metrics", ""]
    if metrics.get("about"):
        out += [metrics["about"], ""]
    primary = metrics.get("primary", "")
    rows = []
    for name, score in metrics.get("overall", {}).items():
        shown = f"**{name}** (primary)" if name == primary else name
        rows.append(
            (shown, _number(score.get("value"), score), _span(score.get("interval")), _number(score.get("baseline")))
        )
    out += _table(("Metric", "Value", "95 % interval", "Constant baseline"), rows)
    out += ["", "### By segment", ""]
    segment_rows = []
    for part in metrics.get("segments", []):
        name = f"{part['segment']} (weak)" if part.get("weak") else str(part["segment"])
        figures = (_number(part.get("value"), part), _span(part.get("interval")))
        segment_rows.append((name, f"{part['n']:,}", str(part.get("metric", primary)), *figures))
    out += _table(("Segment", "Rows", "Metric", "Value", "95 % interval"), segment_rows)
    out += ["", "## Limits", "", *(f"{limit}\n" if "\n" in limit else f"- {limit}" for limit in card["limits"])]
    out += ["", "## Contact", "", card["contact"], "", "## Licence", "", card["licence"], "", "## Usage", ""]
    request = json.dumps(usage["request"], ensure_ascii=False, indent=2)
    out += ["```sh", usage["serve"], usage["curl"], "```", "", "with `rows.json`:", "", "```json", request, "```"]
    out += ["", "## Versions", ""]
    out += _table(
        ("What", "Version"), [(key.replace("_", " "), _cell(value)) for key, value in card["versions"].items()]
    )
    out += ["", "## History", ""]
    if card["history"]:
        former = [
            (_cell(str(entry.get("bundle_id"))[:12]), _number(entry.get("metrics", {}).get(primary)))
            for entry in card["history"]
        ]
        out += _table(("Former champion", primary), former)
    else:
        out += ["This is the first release of the line."]
    return "\n".join(out) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [row(header), "|" + "---|" * len(header), *(row(cells) for cells in rows)]


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(part) for part in value[:12])
        return shown + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _number(value: float | None, part: Mapping[str, Any] | None = None) -> str:
    if value is None:
        return f"undefined: {part['reason']}" if part and part.get("reason") else "-"
    return f"{value:.4g}"


def _span(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
