"""Versions of a line in a store and its artefacts, put there by hand: what a registration leaves, without MLflow."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from esteira import ledger
from esteira.settings import Settings
from esteira.store import Store
from tests.serving_fakes import LINE


def add_version(
    store: Store,
    settings: Settings,
    folder: Path,
    number: int,
    bundle_id: str,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Put a bundle into artefact storage and its row into the store; a folder that is not there leaves only the row."""
    place = Path(settings.artifacts) / "tabular--shop-buys" / f"run{number}" / "artifacts" / "model" / "bundle"
    if folder.exists():
        shutil.copytree(folder, place)
    add_row(store, number, bundle_id, place.as_uri(), metrics)


def add_row(store: Store, number: int, bundle_id: str, uri: str, metrics: Mapping[str, float] | None = None) -> None:
    """Put the row of a version into the store."""
    with store.begin() as connection:
        store.add_version(
            connection,
            {
                "line": LINE, "version": number, "bundle_id": bundle_id, "uri": uri, "mlflow_run_id": f"run{number}",
                "run_id": f"run{number}", "data_hash": "d" * 64, "code_revision": "unknown", "params_hash": "p" * 64,
                "params": {}, "metrics": dict(metrics or {}), "actor": "the tests", "state": "validated",
            },
        )  # fmt: skip


def point_champion(store: Store, number: int, bundle_id: str) -> None:
    """Make the version the line's champion, with the entry that says so."""
    with store.begin() as connection:
        entry = ledger.append(
            store, kind="alias", line=LINE, version=number, bundle_id=bundle_id, actor="ana",
            evidence={"alias": "champion", "moves": {"champion": [None, number]}}, connection=connection,
        )  # fmt: skip
        store.put_alias(
            connection, line=LINE, alias="champion", version=number, bundle_id=bundle_id, ledger_seq=entry.seq
        )
