"""Records a data set in the platform store from what ingest and validate found out about it (K-08)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esteira.store import Dataset, Store

_FORMATS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "image": "image", "text": "text"}
_SOURCES = frozenset({"upload", "database", "api", "stream"})


def columns_of(dataset: Mapping[str, Any], profile: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of K-08 that dataset.json and profile.json tell.

    Args:
        dataset: ingest's document.
        profile: validate's document with `quality_score` and its parts; without it statistics are the type report's counts
            and the score is null.
    """
    reported = dataset.get("columns") or []
    statistics: dict[str, Any] = {
        "columns": [{key: column.get(key) for key in ("name", "missing", "distinct")} for column in reported]
    }
    if profile is not None:
        statistics = dict(profile)
    source_type = str(dataset.get("source_type", ""))
    return {
        "data_format": _FORMATS.get(str(dataset.get("data_format", "")), "text"),
        "source_type": source_type if source_type in _SOURCES else "upload",
        "source_config": {"source": dataset.get("source"), **(dataset.get("provenance") or {})},
        "schema_config": {"columns": [{"name": column.get("name"), "type": column.get("type")} for column in reported]},
        "statistics": statistics,
        "file_path": dataset.get("source"),
        "file_size": dataset.get("file_size"),
        "row_count": dataset.get("row_count"),
        "column_count": dataset.get("column_count"),
        "quality_score": None if profile is None else profile.get("quality_score"),
        "is_processed": profile is not None,
    }


def record(store: Store, dataset: Path, profile: Path | None = None, *, actor: str) -> Dataset:
    """Register the data set of a run, or bring its record up to date when these bytes are known.

    Args:
        dataset: dataset.json of ingest.
        profile: profile.json of validate; None where rows were not validated.
        actor: who registers it.
    """
    told: dict[str, Any] = json.loads(dataset.read_text(encoding="utf-8"))
    found = None if profile is None or not profile.is_file() else json.loads(profile.read_text(encoding="utf-8"))
    return store.register_dataset(
        name=str(told["name"]), content_hash=str(told["content_hash"]), created_by=actor, **columns_of(told, found)
    )
