"""One open model that answers rows and says who it is; loading one verifies it and holds it to its golden rows.

Knows bundles; knows nothing of lines that move, of HTTP, Bento or the records of predictions.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from esteira.errors import Refused
from esteira.family import Answer, Answerer, Finding, Row
from serving.deployments import Deployment

# How far an answer to a golden row may be off, relative to its size above 1. A GPU adds float32 up in another order.
_TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
_WARM_UP_CALLS = 20


class Predictor:
    """One open model: answers rows and says who it is. Safe to call from several threads.

    Args:
        deployment: what this is.
        answerer: the family's answerer over the open bundle.
        manifest: the bundle's manifest.
        device: `cpu` or `cuda`.
        deterministic: the same row always gets the same answer; never true of a simulated model.
        cost_us: microseconds that the graph takes for one row; None where the bundle does not say.
        example: `{"row", "answer"}`, a golden pair of the bundle; None where it has no golden row.

    Attributes:
        envelope: what stands around the rows of every answer.
        head: the envelope as JSON, its closing brace left off.
        kind: what answers, such as `lightgbm`; `unknown` where the manifest does not say.
    """

    def __init__(
        self,
        deployment: Deployment,
        answerer: Answerer,
        manifest: Mapping[str, Any],
        device: str,
        *,
        deterministic: bool = True,
        cost_us: float | None = None,
        example: dict[str, Any] | None = None,
    ) -> None:
        self.deployment = deployment
        self.manifest = manifest
        self.device = device
        self.cost_us = cost_us
        self.example = example
        self.check: Callable[[Sequence[Row]], list[Finding]] = answerer.check
        self._answer: Callable[..., list[Answer]] = answerer.answer
        # A family whose answerer takes what `check` found does not look at the same rows twice.
        self._takes_findings = "findings" in inspect.signature(answerer.answer).parameters
        model = manifest.get("model") or {}
        simulated = bool(manifest.get("simulated", False))
        self.deterministic = deterministic and not simulated
        self.envelope: dict[str, Any] = {
            "line": deployment.line,
            "version": deployment.version,
            "bundle_id": deployment.bundle_id,
            "model_id": deployment.bundle_id,
            "device": device,
            "method": manifest.get("method") or model.get("kind") or manifest.get("artefact_kind"),
            "simulated": simulated,
            "confidence_kind": manifest.get("confidence_kind", "heuristic"),
        }
        self.kind = str(self.envelope["method"] or "unknown")
        self.head = msgspec.json.encode(self.envelope)[:-1]

    def answer(self, rows: Sequence[Row], findings: Sequence[Finding] | None = None) -> list[Answer]:
        """One answer a row, in order, for rows that `check` found no error in.

        Args:
            findings: what `check` found of these very rows; without it they may be looked at again.
        """
        if findings is not None and self._takes_findings:
            answers = self._answer(rows, findings=findings)
        else:
            answers = self._answer(rows)
        if len(answers) != len(rows):
            raise RuntimeError(f"{len(rows)} rows must give as many answers, but the model gave {len(answers)}")
        return answers

    def describe(self) -> dict[str, Any]:
        """What `/v1/{line}/model` says: identity, contract, units, metrics, lineage, device."""
        said = {
            key: self.manifest.get(key)
            for key in (
                "family", "artefact_kind", "task", "schema", "units", "metrics", "baseline", "data_hash", "code_revision",
                "params_hash", "seed", "dependencies",
            )
        }  # fmt: skip
        return {**self.envelope, **said}


def load(folder: Path, deployment: Deployment, device: str = "auto") -> Predictor:
    """Verify and open a bundle, hold it to its golden rows, and warm it up with them.

    Raises:
        Refused: the bundle is not what its identity says, or code `golden_mismatch`: it answers its golden rows otherwise
            than the native model did.
        ConfigError: the device is not there.
    """
    from esteira import bundle
    from esteira.family import load_family

    opened = bundle.open_bundle(folder, device=device, bundle_id=deployment.bundle_id or None)
    answerer = bundle.answerer(opened)
    found = Deployment(deployment.line or str(opened.manifest.get("line", "")), deployment.version, opened.bundle_id)
    rows, answers = _golden(opened)
    predictor = Predictor(
        found,
        answerer,
        opened.manifest,
        opened.device,
        deterministic=bool(getattr(load_family(opened.manifest["family"]), "deterministic", False)),
        cost_us=_cost(opened),
        example={"row": rows[0], "answer": answers[0] if answers else None} if rows else None,
    )
    if rows:
        _hold_to_golden(predictor, rows, answers)
    return predictor


def _golden(opened: Any) -> tuple[list[Row], list[Answer]]:
    """The bundle's golden rows, and the native model's answers to them; either may be empty."""
    document = _document(opened, "golden.json")
    return list(document.get("rows") or ()), list(document.get("answers") or ())


def _cost(opened: Any) -> float | None:
    cost = _document(opened, "record.json").get("row_us")
    return float(cost) if isinstance(cost, int | float) and cost > 0 else None


def _document(opened: Any, name: str) -> dict[str, Any]:
    try:
        document = json.loads(opened.read(name))
    except KeyError:  # the manifest lists no such file
        return {}
    return document if isinstance(document, dict) else {}


def _hold_to_golden(predictor: Predictor, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
    """Answer the golden rows all at once and the first ones alone, as requests will; compare where the bundle has answers."""
    from esteira.probe import difference

    tolerance = _TOLERANCE[predictor.device]
    line = predictor.deployment.line

    def refuse(how: str) -> Refused:
        return Refused(
            f"a model that serves answers its golden rows as it did when it was trained, but {how}",
            code="golden_mismatch",
            where=f"{line}, bundle {predictor.deployment.bundle_id[:12]}",
            cure="train and release it again with this version; the one before it goes on serving",
        )

    if answers and len(answers) != len(rows):
        raise refuse(f"it has {len(rows)} golden rows and {len(answers)} answers")
    try:
        said = predictor.answer(rows)
        alone = [predictor.answer([row])[0] for row in rows[:_WARM_UP_CALLS]]
    except MemoryError:
        raise
    except Exception as error:
        raise refuse(f"they end in {type(error).__name__}") from error
    for got in (said, alone) if answers else ():
        for number, (wanted, answer) in enumerate(zip(answers, got, strict=False)):
            how = difference(wanted, answer, tolerance)
            if how:
                raise refuse(f"of golden row {number} {how}")
