"""May a candidate get live traffic at all? (H-39.) Rules in the gate's words over what registry, store and ledger know of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esteira import ledger
from esteira.bundle import MANIFEST
from esteira.errors import Refused
from esteira.gate import Fact, Facts, Rule, Verdict, judge
from esteira.registry import Registry, Version

MIN_SAMPLES = 10_000
"""H-39: rows it was trained on, >=."""
_SIMULATED = frozenset({"simulated", "synthetic"})


@dataclass(frozen=True)
class Known:
    """What is known of a candidate; None where nothing is.

    Attributes:
        samples: rows of the data set that it was trained on.
        simulated: whether a simulation made the data or makes the answers.
        passed: whether every rule of its gate passed, as the ledger has it.
        rehearsed: whether it passed its rehearsal.
    """

    samples: int | None = None
    simulated: bool | None = None
    passed: bool | None = None
    rehearsed: bool | None = None


def rules(*, min_samples: int = MIN_SAMPLES, rehearsal: bool = False) -> tuple[Rule, ...]:
    """The rules of H-39.

    Args:
        min_samples: for a line that has fewer.
        rehearsal: whether it must have been rehearsed too.
    """
    asked: list[tuple[str, str, str]] = [
        ("real_data", "simulated", "=="),
        ("passed_its_gate", "gate_failed", "=="),
    ]
    if rehearsal:
        asked.append(("rehearsed", "rehearsal_failed", "=="))
    enough = Rule(
        rule="enough_samples", metric="samples", op=">=", threshold=min_samples, min_n=0, moment="canary",
        why="H-39: with fewer rows a candidate is not compared on live traffic",
    )  # fmt: skip
    return (
        enough,
        *(
            Rule.model_validate(
                {
                    "rule": name,
                    "metric": metric,
                    "op": op,
                    "threshold": 0,
                    "min_n": 0,
                    "moment": "canary",
                    "why": "H-39",
                }
            )
            for name, metric, op in asked
        ),
    )


def verdict(known: Known, *, min_samples: int = MIN_SAMPLES, rehearsal: bool = False) -> Verdict:
    """Hold the rules against what is known; what is not known is NO_DATA, which never passes. Pure."""
    facts = {
        "samples": _fact(known.samples, "the store has no record of how many rows it was trained on"),
        "simulated": _fact(known.simulated, "neither manifest nor data set say whether the data are real"),
        "gate_failed": _fact(_not(known.passed), "the ledger has no verdict of its gate"),
        "rehearsal_failed": _fact(_not(known.rehearsed), "the ledger has no rehearsal of it"),
    }
    asked = rules(min_samples=min_samples, rehearsal=rehearsal)
    return judge(asked, Facts(primary="samples", metrics=facts), moment="canary")


def known(registry: Registry, version: Version) -> Known:
    """What registry, store and ledger know of a version. Its bundle is fetched and verified on the way.

    Raises:
        Refused: the bundle is not what was sealed.
        SourceError: it is gone.
        OutsideError: store or storage cannot be reached.
    """
    manifest: Mapping[str, Any] = json.loads((registry.fetch(version) / MANIFEST).read_bytes())
    dataset = registry.store.get_dataset(version.data_hash)
    simulated: bool | None = None
    if dataset is not None and isinstance(manifest.get("simulated"), bool):
        source = dataset.source_config or {}
        simulated = (
            manifest["simulated"]
            or dataset.dataset_type in _SIMULATED
            or any(source.get(word) is True for word in _SIMULATED)
        )
    passed: bool | None = None
    rehearsed: bool | None = None
    for entry in ledger.log(registry.store, version.line, limit=None):
        if entry.bundle_id != version.bundle_id:
            continue
        if entry.kind == "verdict":
            passed = entry.evidence.get("verdict") == "pass"
        elif entry.kind == "rehearsal":
            rehearsed = entry.evidence.get("verdict") == "pass"
    return Known(None if dataset is None else dataset.row_count, simulated, passed, rehearsed)


def require(
    registry: Registry, version: Version, *, min_samples: int = MIN_SAMPLES, rehearsal: bool = False
) -> Verdict:  # fmt: skip
    """The verdict, when it is a pass.

    Raises:
        Refused: code `preconditions`; the message names each condition that is missing and why.
        SourceError, OutsideError: as `known`.
    """
    found = verdict(known(registry, version), min_samples=min_samples, rehearsal=rehearsal)
    if found.released:
        return found
    missing = "; ".join(f"{one.rule} {one.outcome}: {one.reason}" for one in found.held_by)
    raise Refused(
        f"a candidate gets live traffic when all preconditions hold, but {missing}",
        code="preconditions",
        where=f"{version.line}, version {version.version}",
        cure="train on more or real data and let the gate judge it; a small line may say --option min_samples=N, or before its next"
        f" run deploy.min_samples in params.yaml; esteira release stage {version.line} {version.version} --reason TEXT rehearses it",
    )


def _fact(value: float | bool | None, absent: str) -> Fact:
    return Fact(value=None if value is None else float(value), reason="" if value is not None else absent)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value
