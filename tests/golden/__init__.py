"""Compiled pipelines as they should be, for a person to read a change of them; `make golden` writes them anew."""

from pathlib import Path
from typing import Any

import yaml

from esteira.project import read_project
from pipelines.compile import defaults, write
from pipelines.plan import Plan
from pipelines.resources import Resources, read_resources

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PREFIX = "registry.example.org/ml"
GPU_LINE = "tabular@gpu-example"


def gpu_resources() -> Resources:
    """Those of tables, with training on a GPU in an image with torch, and rows on a claim."""
    document: dict[str, Any] = yaml.safe_load(
        (ROOT / "families" / "tabular" / "resources.yaml").read_text(encoding="utf-8")
    )
    document["steps"]["train"] |= {
        "cpu": 7.5,
        "memory": 0.5,
        "gpu": 2,
        "node_pool": "gpu",
        "image": "pipeline-torch",
        "tolerations": [
            {"key": "example.org/reserved", "operator": "Equal", "value": "training", "effect": "NoExecute"}
        ],
    }
    document["volumes"] = [{"claim": "esteira-data", "path": "/mnt/data"}]
    return Resources.model_validate(document)


def write_all(folder: Path) -> None:
    """Write every golden file into a folder."""
    write(defaults("tabular", read_project(ROOT / "params.yaml")), folder, resources=read_resources("tabular", ROOT))
    sections = {step: {} for step in ("ingest", "validate", "featurize", "evaluate", "register", "deploy")}
    plan = Plan(
        line=GPU_LINE,
        source="/mnt/data/rows.parquet",
        target="y",
        seed=7,
        sections={**sections, "train": {"trials": 30}},
    )
    write(plan, folder, resources=gpu_resources(), prefix=PREFIX)
