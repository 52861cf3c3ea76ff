"""A sealed bundle of family `tabular`, made by hand in milliseconds: every kind of column, one linear graph; trains nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esteira.bundle import MANIFEST, SEAL, answerer, open_bundle, seal
from esteira.features.contract import Column, TableContract, Target
from esteira.features.decode import ColumnDecoder, Decoder

ROW: dict[str, Any] = {
    "age": 41.5,
    "visits": 3,
    "member": True,
    "city": "Porto",
    "since": "2024-03-01",
    "note": "call before noon",
}
OTHER: dict[str, Any] = {**ROW, "age": 19.0, "city": "Lisboa", "member": False}


def make_bundle(
    folder: Path,
    *,
    line: str = "tabular@shop-buys",
    weight: float = 0.05,
    card: bool = False,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write a bundle into a new folder and seal it.

    Args:
        weight: of column `age`; another weight is another model with another bundle_id.
        card: with the complete card that a registration asks for.
        metrics: that the manifest tells; an area under the curve of 0.9 by default.

    Returns:
        The bundle_id.
    """
    from families.tabular import manifest_of
    from tests.small_graph import Linear, graph

    contract = TableContract(
        line=line,
        target=Target(name="buys", task="binary", classes=("no", "yes")),
        columns=(
            Column(name="age", kind="number", minimum=18, maximum=90, unit="years"),
            Column(name="visits", kind="integer", minimum=0, maximum=50),
            Column(name="member", kind="boolean"),
            Column(name="city", kind="category", categories=("Porto", "Lisboa")),
            Column(name="since", kind="date", minimum="2020-01-01", maximum="2025-12-31"),
            Column(name="note", kind="text"),
        ),
    )
    decoder = Decoder(
        columns=(
            ColumnDecoder("age", "number", minimum=18.0, maximum=90.0),
            ColumnDecoder("visits", "integer", minimum=0.0, maximum=50.0),
            ColumnDecoder("member", "boolean"),
            ColumnDecoder("city", "category", levels=("Porto", "Lisboa")),
            ColumnDecoder("since", "date", minimum=1.5778e15, maximum=1.7671e15, parts=("days", "month")),
            ColumnDecoder("note", "text", tokens=("call", "noon")),
        ),
        label="buys",
    )
    numeric = tuple(i for i in range(len(decoder.names)) if i not in decoder.categorical)
    count = len(numeric)
    weights = np.zeros((count, 1))
    weights[0] = weight
    model = Linear(
        numeric=numeric,
        median=np.zeros(count),
        mean=np.zeros(count),
        scale=np.ones(count),
        weights=weights,
        missing_weights=np.zeros((count, 1)),
        categorical=decoder.categorical,
        levels=(2,),
        tables=(np.array([[0.0], [0.4], [-0.4], [0.0]]),),
        intercept=np.array([-1.5]),
    )
    folder.mkdir(parents=True)
    (folder / "graph.onnx").write_bytes(graph(model, features=len(decoder.names), classes=2))
    (folder / "decoder.json").write_text(decoder.to_json(), encoding="utf-8")
    (folder / "golden.json").write_text(json.dumps({"rows": [ROW, OTHER], "answers": []}), encoding="utf-8")
    if card:
        said = {
            "purpose": "Who buys.",
            "data": {"name": "made up in a test"},
            "metrics": {
                "primary": "roc_auc",
                "segments": [{"segment": "all", "n": 2, "metric": "roc_auc", "value": 0.9}],
            },
            "limits": "A test's model; it knows nothing.",
            "contact": "the tests",
            "licence": "MIT",
        }
        (folder / "card.json").write_text(json.dumps(said), encoding="utf-8")
        (folder / "card.md").write_text("# Who buys\n", encoding="utf-8")
    manifest = {
        "family": "tabular",
        "line": line,
        "artefact_kind": "onnx",
        **manifest_of(contract, {"classes": ["no", "yes"], "confidence_kind": "heuristic"}),
        "method": "linear",
        "simulated": False,
        "confidence_kind": "heuristic",
        "metrics": dict(metrics or {"roc_auc": 0.9}),
        "baseline": {"roc_auc": 0.5},
        "data_hash": "d" * 64,
        "code_revision": "unknown",
        "dependencies": {},
    }
    return seal(folder, manifest=manifest)


def answers(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the bundle answers in process, to compare with what comes over HTTP."""
    return answerer(open_bundle(folder, "cpu")).answer(rows)


def resealed(folder: Path, **files: Any) -> str:
    """Write these JSON files into the bundle (`golden=...` is golden.json) and seal it again; the bundle_id that it has now."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in (MANIFEST, SEAL):
        (folder / name).unlink()
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return seal(folder, manifest={key: value for key, value in manifest.items() if key not in ("files", "format")})
