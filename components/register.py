"""Records a judged bundle as the next version of its line, with what it came from; moves nothing into service.

Refuses a bundle whose gate did not pass, whose card is not complete, or that was changed since it was judged.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from esteira import access, crash, outputs
from esteira import bundle as bundles
from esteira.errors import Refused, SourceError
from esteira.ledger import canonical
from esteira.registry import Registry, Version, datasets
from esteira.release.policy import Asked, ReleasePolicy, decided, policy_of, stricter
from esteira.settings import Settings, load_settings
from esteira.store.database import plain


class Params(BaseModel):
    """The section `register` of params.yaml.

    Attributes:
        trials: how many trials, best first, become runs of their own in MLflow; the platform store keeps all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=200, ge=0)


class Report(BaseModel):
    """The receipt of a registration.

    Attributes:
        version: the registry's number.
        bundle_id: SHA-256 of the bundle's manifest.
        uri: of the stored bundle.
        mlflow_run_id: the run in MLflow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    version: int
    bundle_id: str
    uri: str
    mlflow_run_id: str


def run(
    *,
    evaluated: Path,
    trained: Path,
    dataset: Path,
    line: str,
    run_id: str,
    out: Path,
    params: Params,
    profile: Path | None = None,
) -> Report:
    """Register `evaluated/bundle` and leave `out/receipt.json`. The same bundle of the same run is registered once.

    Args:
        evaluated: folder of evaluate: `bundle/`, gate.json, metrics.json.
        trained: folder of train: leaderboard.json.
        dataset: dataset.json of ingest.
        line: the model line.
        run_id: the run of the platform store; empty where there is none, as in a run of a single step.
        out: gets `receipt.json`.
        profile: profile.json of validate; with it the data set's record has statistics and quality score.

    Raises:
        SourceError: an input is missing or no JSON.
        Refused: no passed verdict, an incomplete card, a changed bundle, one that learned from other data, or a key that opens
            nothing or may not register.
        OutsideError: store, MLflow or artefact storage failed.
    """
    settings = load_settings()
    bundle = evaluated / "bundle"
    gate, measured, board = (
        _read(path) for path in (evaluated / "gate.json", evaluated / "metrics.json", trained / "leaderboard.json")
    )
    # A kind that does not suit the table stands on the leaderboard with its reason; it was no trial.
    board = [row for row in board if row["number"] is not None]
    told = _read(dataset)
    manifest = bundles.verify(bundle)
    data_hash = str(manifest.get("data_hash", ""))
    if data_hash != told.get("content_hash"):
        raise Refused(
            f"a bundle names the data it learned from, but it names {data_hash[:12]} and the data set is"
            f" {str(told.get('content_hash'))[:12]}",
            code="other_data",
            where=f"{line}, step register",
            cure="run ingest to evaluate again on the same data",
        )
    registry, actor = Registry(settings), access.who(settings)
    name = run_id or f"step-{hashlib.sha256((bundle / bundles.MANIFEST).read_bytes()).hexdigest()[:16]}"
    asked = asked_for(registry, run_id, manifest, line)
    datasets.record(registry.store, dataset, profile, actor=actor.name)
    if registry.store.find_run(name) is not None:
        registry.store.record_trials(name, board)
    version = registry.register(
        line,
        bundle,
        run_id=name,
        data_hash=data_hash,
        code_revision=_revision(manifest, settings),
        params_hash=hashlib.sha256(canonical(asked)).hexdigest(),
        metrics={**measured.get("metrics", {}), "baseline": measured.get("baseline", {})},
        params=asked,
        trials=board[: params.trials],
        verdict=gate,
        actor=actor,
        policy=release_policy(asked, line),
        record={"validator": validator_report(profile, told), "primary": measured.get("primary")},
    )
    crash.point("receipt.before_rename")
    report = _receipt(version)
    outputs.write(out, {"receipt.json": (json.dumps(report.model_dump(mode="json"), indent=1) + "\n").encode()})
    return report


def asked_for(registry: Registry, run_id: str, manifest: dict[str, Any], line: str) -> dict[str, Any]:
    """What the run was asked to do, as the platform store has it; of a single step, what the bundle says of itself."""
    recorded = registry.store.find_run(run_id) if run_id else None
    model = {"model": manifest.get("model", {})}
    if recorded is not None:
        return {**recorded.params, **model}
    asked: dict[str, Any] = plain({"line": line, "seed": manifest.get("seed"), **model})
    return asked


def release_policy(asked: dict[str, Any], line: str) -> ReleasePolicy:
    """How the line is released, by its family and params.yaml; what one run was told besides makes it stricter only.

    Whoever releases the version later is held to it, and whoever trains has no say in that.
    """
    said = asked.get("sections", {}).get("deploy")
    ours = policy_of(line)
    return ours if said is None else stricter(decided(Asked.model_validate(said), line), ours)


def validator_report(profile: Path | None, dataset: dict[str, Any]) -> dict[str, Any]:
    """What validate found of the rows that the bundle learned from (H-34): its scores, and the SHA-256 of its whole document.

    Args:
        profile: profile.json of validate; None, or a path without a file, where rows were not validated.
        dataset: ingest's document.
    """
    told: dict[str, Any] = {"rows": dataset.get("row_count"), "profile_sha256": None}
    if profile is None or not profile.is_file():
        return told
    found = _read(profile)
    kept = {name: value for name, value in found.items() if name != "columns"}
    return {**told, **kept, "profile_sha256": hashlib.sha256(profile.read_bytes()).hexdigest()}


def _revision(manifest: dict[str, Any], settings: Settings) -> str:
    return str(manifest.get("code_revision") or settings.code_revision or "unknown")


def _receipt(version: Version) -> Report:
    return Report(
        line=version.line,
        version=version.version,
        bundle_id=version.bundle_id,
        uri=version.uri,
        mlflow_run_id=version.mlflow_run_id,
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"register needs {path.name}, but {getattr(error, 'strerror', None) or 'it is no JSON'}",
            code="missing_file",
            where=f"step register, {path.parent.name}/{path.name}",
            cure="run the steps before it again",
        ) from error


if __name__ == "__main__":
    from components.door import main

    main("register")
