"""What a bundle says of itself: its manifest, and what goes into its card. It measures and seals nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.evaluation.measuring import sealed_id
from esteira.family import Trainable
from esteira.features.contract import TableContract
from esteira.features.metrics import label_text
from esteira.origin import code_revision, dependencies


def manifest_of(
    family: Trainable,
    line: str,
    contract: TableContract,
    trained: Path,
    source: Mapping[str, Any],
    board: Sequence[Mapping[str, Any]],
    revision: str,
    seed: int,
) -> dict[str, Any]:
    """Everything that the bundle says of itself; no wall time and no path of this machine."""
    post = read_json(trained / "model" / "post.json") or {}
    best = board[0] if board else {}
    return {
        "family": family.name,
        "line": line,
        "artefact_kind": family.artefact_kind,
        **family.manifest(contract, post),
        "method": best.get("kind", ""),
        "model": {"kind": best.get("kind", ""), "params": best.get("params", {})},
        "simulated": False,
        "confidence_kind": post.get("confidence_kind", "heuristic"),
        "data_hash": source["content_hash"],
        "code_revision": revision or code_revision(),
        "seed": seed,
        "dependencies": dependencies(),
    }


def data_section(source: Mapping[str, Any], contract: TableContract, document: Mapping[str, Any]) -> dict[str, Any]:
    """The card's data: which they were and what was left out."""
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


def answers(contract: TableContract, source: Mapping[str, Any]) -> str:
    """What the line answers, in one sentence."""
    label, unit = contract.target.name, f" in {contract.target.unit}" if contract.target.unit else ""
    if contract.target.classes is None:
        return f"Answers the number `{label}`{unit} of a row like those of `{source['name']}`."
    classes = [f"`{label_text(name)}`" for name in contract.target.classes]
    shown = ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
    return f"Answers which `{label}` ({shown}) a row like those of `{source['name']}` has."


def metrics_section(document: Mapping[str, Any]) -> dict[str, Any]:
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


def former_card(champion: Path | None) -> dict[str, Any] | None:
    """The champion's card with its bundle_id, for the history; None when there is none that can be read."""
    if champion is None:
        return None
    try:
        card = read_json(champion / "card.json")
    except ValueError:
        return None
    return None if card is None else {**card, "bundle_id": sealed_id(champion)}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None where there is no file."""
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
