"""Versions as the outside may see them (K-54, H-36): an id that tells nothing, every system's word for the state, no storage path."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from esteira.errors import ConfigError
from esteira.family import Line
from esteira.release import lifecycle
from esteira.release.lifecycle import State
from esteira.store.records import Version

MOST = 1000
"""Versions on one page."""

_NAMESPACE = uuid.UUID("8f2d4b0a-6d0e-5c1b-9a57-3c7b0f6f2f11")
_TYPES: Mapping[str, str] = {"binary": "classification", "multiclass": "classification"}
FRAMEWORKS: Mapping[str, str] = {
    **{name: name for name in ("lightgbm", "xgboost")},
    **dict.fromkeys(("gradient_boosting", "random_forest", "extra_trees", "linear", "kmeans"), "scikit-learn"),
    **dict.fromkeys(("nearest_neighbours", "neural_network", "constant"), "numpy"),
    # Of several libraries' models; what they have in common is the graph.
    "blend": "onnx",
}
"""Algorithm -> what fits it, in the words of K-05. Said here, since who reads the registry must not hang on the search."""


@dataclass(frozen=True)
class Page:
    """A part of a list.

    Attributes:
        total: how many there are in all.
        models: documents of `public`.
    """

    total: int
    limit: int
    offset: int
    models: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"total": self.total, "limit": self.limit, "offset": self.offset, "models": list(self.models)}


def model_id(tenant: str, line: str, version: int) -> str:
    """The id of a version: a UUID that another tenant's version of the same line and number does not have."""
    return str(uuid.uuid5(_NAMESPACE, f"{tenant}\0{line}\0{version}"))


SCORES = ("accuracy", "precision", "recall", "f1")
"""Metrics that have a word of their own, `accuracy_score` and so on, to four digits (K-05)."""


def public(version: Version, *, tenant: str, aliases: Mapping[str, int], now: datetime) -> dict[str, Any]:
    """A version without the address of its artefact.

    Args:
        aliases: of its line.
    """
    return {
        "id": model_id(tenant, version.line, version.version),
        "line": version.line,
        "family": Line.parse(version.line).family,
        "version": version.version,
        "bundle_id": version.bundle_id,
        "type": version.model_type,
        "algorithm": version.algorithm,
        "framework": version.framework,
        "state": version.state,
        "words": {system: lifecycle.word(system, version.state) for system in lifecycle.WORDS},
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
        "metrics": version.metrics,
        **{f"{name}_score": _score(version.metrics.get(name)) for name in SCORES},
        "data_hash": version.data_hash,
        "code_revision": version.code_revision,
        "run_id": version.run_id,
        "created_by": version.actor,
        "created_at": version.created_at.isoformat(),
        "deployed_at": None if version.deployed_at is None else version.deployed_at.isoformat(),
        "archived_at": None if version.archived_at is None else version.archived_at.isoformat(),
        "age_seconds": max(0, round((now - version.created_at).total_seconds())),
    }


def more(version: Version, registered: Mapping[str, Any], training_seconds: float | None) -> dict[str, Any]:
    """What the whole record of a version has besides `public` (K-05): null is what was not recorded of it.

    Args:
        registered: evidence of its registration.
        training_seconds: of its run's step train; None where it did not train, or nobody timed it.
    """
    primary = registered.get("primary")
    return {
        "params": _training(version.params),
        "primary_score": None if not primary else {"metric": primary, "value": _number(version.metrics.get(primary))},
        "model_size": registered.get("size_bytes"),
        "training_time": None if training_seconds is None else round(training_seconds),
    }


def _training(params: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of its training; the rest of a run's plan names files and databases."""
    sections = params.get("sections")
    asked = {**params, **(sections if isinstance(sections, Mapping) else {})}
    return {name: asked[name] for name in ("seed", "model", "train") if name in asked}


def _score(value: Any) -> float | None:
    number = _number(value)
    return None if number is None else round(number, 4)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def states(text: str | None) -> frozenset[str] | None:
    """The states that a filter means, in our words or those of a system that this one replaces; None for no filter.

    Raises:
        ConfigError: it is nobody's word for a state.
    """
    if text is None:
        return None
    found = lifecycle.states_of(text)
    if not found:
        raise ConfigError(
            f"a state is one of {', '.join(State)}, or a system's word for one, but got {text[:50]!r}",
            code="unknown_state", where="--state", cure="take one of these",
        )  # fmt: skip
    return found


def require_page(limit: int, offset: int) -> None:
    """Refuse a page that is none.

    Raises:
        ConfigError: the limit is not in 1 to 1000, or the offset is negative.
    """
    if 1 <= limit <= MOST and offset >= 0:
        return
    raise ConfigError(
        f"a page has 1 to {MOST} entries and begins at 0 or later, but limit is {limit} and offset {offset}",
        code="bad_page", where="--limit, --offset", cure="for example --limit 50 --offset 100",
    )  # fmt: skip


def kind_of(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """`model_type`, `algorithm` and `framework` (K-05), as far as a bundle says them."""
    model = manifest.get("model")
    algorithm = str((model.get("kind") if isinstance(model, Mapping) else None) or manifest.get("method") or "")
    task = str(manifest.get("task") or "")
    found = {"model_type": _TYPES.get(task, task), "algorithm": algorithm, "framework": FRAMEWORKS.get(algorithm, "")}
    return {name: text[:100] or None for name, text in found.items()}


def window_of(manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Date column -> first and last date of the rows that a bundle learned its contract from (H-34); empty without dates."""
    schema = manifest.get("schema")
    columns: Any = schema.get("columns") if isinstance(schema, Mapping) else None
    dates: Iterable[Any] = columns if isinstance(columns, Sequence) and not isinstance(columns, str) else ()
    return {
        str(column["name"]): [column.get("minimum"), column.get("maximum")]
        for column in dates
        if isinstance(column, Mapping) and column.get("kind") == "date" and "name" in column
    }


def record_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a registration writes down of a bundle besides where it came from: its features' version and window (H-34), its bytes."""
    from hashlib import sha256

    from esteira.ledger import canonical

    schema = manifest.get("schema")
    version = schema.get("version", 1) if isinstance(schema, Mapping) else None
    told = None if schema is None else {"version": version, "sha256": sha256(canonical(schema)).hexdigest()}
    files = manifest.get("files")
    size = sum(file["size"] for file in files.values()) if isinstance(files, Mapping) else None
    return {"schema": told, "data_window": window_of(manifest), "size_bytes": size}
