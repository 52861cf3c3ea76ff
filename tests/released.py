"""Versions of a line with all that a release asks of them: artefact, report, registration. Without MLflow, which is only shown them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esteira import ledger
from esteira.access import Actor
from esteira.registry import Registry, Version
from esteira.release.policy import ApprovalMode, Asked, ReleasePolicy
from esteira.settings import Settings
from esteira.store import Store
from tests.test_registry import LINE, PASS, make_bundle

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)

VIEWER = Actor("vera", "viewer", keyed=True)
SCIENTIST = Actor("lia", "data_scientist", keyed=True)
APPROVER = Actor("bob", "approver", keyed=True)
ADMIN = Actor("ana", "admin", keyed=True)
LOCAL = Actor("somebody", "local", keyed=False)
GUEST = Actor("somebody", "guest", keyed=False)

AUTOMATIC = {"policy": "automatic"}


def policy(mode: ApprovalMode, *, rehearse: bool = False) -> ReleasePolicy:
    """How a line is released: at once, and by default without a server of a rehearsal."""
    return ReleasePolicy.of(Asked(rehearse=rehearse), approval_mode=mode, rollout="direct")


class Unshown(Registry):
    """A registry that shows MLflow nothing: what is decided does not wait for it, and its own tests show it."""

    def _show_aliases(self, line: str, *, always: bool = False) -> None:
        """Nothing."""


def add(
    store: Store,
    settings: Settings,
    number: int,
    *,
    line: str = LINE,
    author: Actor = SCIENTIST,
    verdict: dict[str, Any] | None = PASS,
    policy: ReleasePolicy | None = None,
    at: datetime = NOW,
    **columns: Any,
) -> Version:
    """A registered version: its bundle in storage, its entries, its row. `verdict` None leaves it without a report, `policy` None
    without a word of how its line is released."""
    name = line.replace("@", "--")
    place = Path(settings.artifacts) / name / f"run{number}" / "artifacts" / "model" / "bundle"
    if not place.exists():
        make_bundle(place, line=line, text=str(number))
    bundle_id = (place / "manifest.sha256").read_text(encoding="utf-8").split()[0]
    common: dict[str, Any] = {"line": line, "version": number, "bundle_id": bundle_id, "actor": author.name, "now": at}
    with store.begin() as connection:
        if verdict is not None:
            ledger.append(store, kind="verdict", evidence=verdict, connection=connection, **common)
        release = {} if policy is None else {"release": policy.model_dump(mode="json")}
        ledger.append(
            store, kind="registration", evidence={**release, **author.told()}, connection=connection, **common
        )
        row = {
            "uri": place.as_uri(), "mlflow_run_id": f"run{number}", "run_id": f"run{number}", "data_hash": "d" * 64,
            "code_revision": "unknown", "params_hash": "p" * 64, "params": {}, "metrics": {"roc_auc": 0.9}, "state": "validated",
        }  # fmt: skip
        names = ("line", "version", "bundle_id", "actor")
        store.add_version(connection, {**row, **{key: common[key] for key in names}, **columns})
    found = store.get_version(line, number)
    assert found is not None
    return found


def stored(settings: Settings, number: int, line: str = LINE) -> Path:
    """The folder in which a version's bundle lies."""
    return Path(settings.artifacts) / line.replace("@", "--") / f"run{number}" / "artifacts" / "model" / "bundle"


def spoil(settings: Settings, number: int) -> None:
    """Change one byte of a version's stored artefact."""
    path = stored(settings, number) / "parts" / "decoder.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**told, "text": "?"}), encoding="utf-8")
