"""Draws docs/flow.svg, the picture of the README, from the DAG's own shape. Run by `make docs`; a test says when it is stale."""

import os
import textwrap
from html import escape
from pathlib import Path

from pipelines.shape import STEPS

FILE = Path(__file__).with_name("flow.svg")

# What a person finds in the step's folder afterwards.
LEAVES = {
    "ingest": "rows.parquet, content hash, provenance",
    "validate": "contract.yaml, quarantine with reasons, report",
    "featurize": "decoder, split, float32 features",
    "train": "leaderboard, graph.onnx",
    "evaluate": "sealed bundle, gate.json, report",
    "register": "version with lineage, ledger entry",
    "deploy": "Bento, alias champion",
}
_BOX, _GAP, _TOP, _HEIGHT = 148, 22, 78, 144
_TEXT = 'font-family="system-ui, sans-serif" fill="#1c2733"'


def draw() -> str:
    """The picture as SVG text; the same for the same STEPS."""
    width = 2 * 24 + len(STEPS) * _BOX + (len(STEPS) - 1) * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 340" role="img" '
        f'aria-label="The steps of a run: {", ".join(step.name for step in STEPS)}">',
        f'<rect width="{width}" height="340" rx="10" fill="#fbfaf7"/>',
        f'<text x="24" y="36" font-size="17" font-weight="600" {_TEXT}>From raw rows to a proven HTTP answer</text>',
        f'<text x="24" y="58" font-size="12.5" {_TEXT}>One step is one function: the same for KFP, for the command line and for '
        "a test. A held gate ends the run.</text>",
    ]
    for number, step in enumerate(STEPS):
        x = 24 + number * (_BOX + _GAP)
        gate = step.name == "evaluate"
        parts.append(
            f'<rect x="{x}" y="{_TOP}" width="{_BOX}" height="{_HEIGHT}" rx="8" '
            f'fill="{"#fff1d6" if gate else "#ffffff"}" stroke="{"#c47f00" if gate else "#6b7f93"}" stroke-width="1.4"/>'
        )
        parts.append(f'<text x="{x + 12}" y="{_TOP + 25}" font-size="15" font-weight="600" {_TEXT}>{step.name}</text>')
        parts += _lines(step.title, x + 12, _TOP + 45, 21, "")
        parts += _lines(LEAVES[step.name], x + 12, _TOP + 98, 20, 'font-style="italic" opacity=".72"')
        if number:
            middle = _TOP + _HEIGHT / 2
            parts.append(
                f'<path d="M{x - _GAP + 2} {middle} H{x - 8} m-5 -4 l6 4 l-6 4" fill="none" stroke="#6b7f93" stroke-width="1.6"/>'
            )
    parts += _below()
    return "\n".join([*parts, "</svg>", ""])


def _below() -> list[str]:
    """What outlives a run: the record and the service."""
    wide = (len(STEPS) - 1) * (_BOX + _GAP) - _GAP
    boxes = (
        (
            24,
            wide,
            "Ledger and registry",
            "append-only and hash-chained: verdict, registration, alias; MLflow is the mirror",
        ),
        (24 + wide + _GAP, _BOX, "Service", "follows the champion"),
    )
    parts = []
    for x, across, title, text in boxes:
        parts.append(
            f'<rect x="{x}" y="252" width="{across}" height="62" rx="8" fill="#e6f0ee" stroke="#3d7a70" stroke-width="1.4"/>'
        )
        parts.append(f'<text x="{x + 12}" y="277" font-size="14" font-weight="600" {_TEXT}>{title}</text>')
        parts.append(f'<text x="{x + 12}" y="298" font-size="11.5" {_TEXT}>{escape(text)}</text>')
    for step in ("evaluate", "register", "deploy"):
        number = [entry.name for entry in STEPS].index(step)
        middle = 24 + number * (_BOX + _GAP) + _BOX / 2
        parts.append(
            f'<path d="M{middle} {_TOP + _HEIGHT} V246 m-4 -6 l4 6 l4 -6" fill="none" stroke="#3d7a70" stroke-width="1.6"/>'
        )
    return parts


def _lines(text: str, x: float, y: float, width: int, style: str) -> list[str]:
    return [
        f'<text x="{x}" y="{y + 14 * number}" font-size="11" {style} {_TEXT}>{escape(line)}</text>'
        for number, line in enumerate(textwrap.wrap(text, width))
    ]


if __name__ == "__main__":
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(draw(), encoding="utf-8")
    os.replace(temporary, FILE)
    print(FILE.name)
