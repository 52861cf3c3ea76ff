"""Step `evaluate`: measures the exported model on held-back rows, boots the real server, seals the bundle and lets the gate judge.

It measures what will be served (the sealed graph behind the family's answerer), never the native model; all outputs are
written before a held gate is raised. It registers nothing.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from components import champions
from components.evaluation import papers
from components.evaluation.heldback import read_table
from components.evaluation.judging import facts_of, held
from components.evaluation.measuring import compare_champion, export_parity, importance, measure, row_cost
from esteira import gate, outputs, probe
from esteira.bundle import answerer, open_bundle, seal
from esteira.card import card_missing, make_card, to_markdown
from esteira.errors import SourceError
from esteira.family import Line, load_trainable
from esteira.features.contract import TableContract
from esteira.features.metrics import Predictions
from esteira.gate import Fact, Rule

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardText(_Frozen):
    """What a line says of itself instead of its family's README; empty keeps the README's words."""

    purpose: str = ""
    data: str = ""
    limits: str = ""
    contact: str = ""
    licence: str = ""


class Params(_Frozen):
    """The section `evaluate` of params.yaml.

    Attributes:
        profile: a profile of the family's gate.yaml whose rules are added.
        rules: more rules, in the words of gate.yaml; one with a known name replaces it.
        resamples: bootstrap resamples behind each interval.
        calls: single rows that are asked of the real server, one after the other.
        boot_patience_s: seconds until the server must be ready.
        card: texts of the model card.
        code_revision: what the code is called; empty asks git.
    """

    profile: str | None = None
    rules: tuple[Rule, ...] = ()
    resamples: int = Field(default=1000, ge=200, le=10_000)
    calls: int = Field(default=200, ge=0, le=10_000)
    boot_patience_s: float = Field(default=90.0, gt=0, le=600)
    card: CardText = CardText()
    code_revision: str = ""


class Report(_Frozen):
    """What came out: the verdict, the point values by name (None where undefined) and the rules that hold, if any."""

    line: str
    verdict: str
    bundle_id: str
    primary: str
    metrics: dict[str, float | None]
    baseline: dict[str, float | None]
    held_by: tuple[str, ...] = ()


def run(
    *,
    features: Path,
    trained: Path,
    contract: Path,
    dataset: Path,
    champion: str = "",
    line: str,
    out: Path,
    params: Params,
    seed: int,
) -> Report:
    """Measure, seal, boot, judge.

    Args:
        features: featurize's folder.
        trained: train's folder.
        contract: validate's contract.yaml.
        dataset: ingest's dataset.json.
        champion: the present champion, to compare with: a folder, `file://` or `s3://` address of its bundle, or `@champion`
            for the registry's. Empty where there is none.
        line: `FAMILY` or `FAMILY@NAME`.
        out: gets `bundle/` (sealed), metrics.json (deterministic), gate.json, serving.json (what the server showed) and
            report.html.
        params: the section `evaluate`.
        seed: of resamples and shuffles.

    Raises:
        GateHeld: after everything is written.
        ConfigError: the family cannot run, the gate's rules cannot be read, or there is no such profile.
        SourceError: an input is missing.
        Refused: the champion is not what was sealed.
    """
    return evaluate(
        features=features, trained=trained, contract=contract, dataset=dataset, champion=champions.folder(champion, line),
        line=line, out=out, params=params, seed=seed, server=probe.COMMAND,
    )  # fmt: skip


def evaluate(
    *,
    features: Path,
    trained: Path,
    contract: Path,
    dataset: Path,
    champion: Path | None,
    line: str,
    out: Path,
    params: Params,
    seed: int,
    server: Sequence[str],
) -> Report:
    """`run` with the champion's folder and the server's command as arguments."""
    name = Line.parse(line).family
    family = load_trainable(name)
    _must_exist(
        line,
        *(
            features / name
            for name in ("rows_test.parquet", "x_test.npy", "y_test.npy", "y_train.npy", "features.json")
        ),
        *(trained / name for name in ("leaderboard.json", "native_test.npy", "model/golden.json", "model/graph.onnx")),
        contract,
        dataset,
    )
    here = resources.files(f"families.{name}")
    rules = gate.read_rules(
        (here / "gate.yaml").read_text(encoding="utf-8"), where=f"families/{name}/gate.yaml"
    ).select(params.profile, params.rules)
    readme = here / "README.md"
    agreed = TableContract.from_yaml(contract.read_text(encoding="utf-8"))
    source: dict[str, Any] = json.loads(dataset.read_text(encoding="utf-8"))
    table = read_table(features, agreed)
    board: list[dict[str, Any]] = json.loads((trained / "leaderboard.json").read_text(encoding="utf-8"))
    native = np.load(trained / "native_test.npy", allow_pickle=False)
    golden = json.loads((trained / "model" / "golden.json").read_text(encoding="utf-8"))
    groups = json.loads((features / "features.json").read_text(encoding="utf-8"))["groups"]
    pairs = list(zip(golden["rows"], golden["answers"], strict=True))

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluate-", dir=out) as scratch:
        # What is measured is the export, opened as it will be served; the card needs the figures, so it is sealed twice.
        draft = Path(scratch) / "draft"
        shutil.copytree(trained / "model", draft)
        manifest = papers.manifest_of(family, line, agreed, trained, source, board, params.code_revision, seed)
        seal(draft, manifest=manifest)
        opened = open_bundle(draft, "cpu")
        answers = answerer(opened).answer(table.rows)
        own = family.metrics(table.truths, answers)
        measured = measure(table, answers, agreed, own, resamples=params.resamples, seed=seed)
        document = measured.document
        former = papers.former_card(champion)
        card = make_card(
            line=line,
            answers=papers.answers(agreed, source),
            readme=readme.read_text(encoding="utf-8") if readme.is_file() else "",
            overrides=params.card.model_dump(),
            data=papers.data_section(source, agreed, document),
            metrics=papers.metrics_section(document),
            found_limits=document["warnings"],
            versions={"code_revision": manifest["code_revision"], **manifest["dependencies"]},
            example=pairs[0][0] if pairs else table.rows[0],
            former=former,
        )
        final = Path(scratch) / "bundle"
        shutil.copytree(trained / "model", final)
        (final / "leaderboard.json").write_text(_json(board), encoding="utf-8")
        (final / "card.json").write_text(_json(card), encoding="utf-8")
        (final / "card.md").write_text(to_markdown(card), encoding="utf-8")
        told = {"metrics": document["metrics"], "baseline": document["baseline"]}
        bundle_id = seal(final, manifest={**manifest, **told})
        bundle = out / "bundle"
        if bundle.exists():
            shutil.rmtree(bundle)
        final.replace(bundle)

        with probe.Server(bundle, patience=params.boot_patience_s, command=server) as booting:
            # The server boots for some seconds; all that does not need it is done meanwhile.
            difference: dict[str, Fact] | None = None
            rival: Predictions | None = None
            if champion is not None:
                document["champion"], difference, rival = compare_champion(champion, table, measured, agreed, seed=seed)
                if document["champion"].get("data_hash", "") not in {"", source["content_hash"]}:
                    document["warnings"].append(
                        "The champion learned from other data, so it may have seen some of these test rows."
                    )
            document["parity"] = export_parity(native, opened, table, measured.y)
            document["row_cost"] = row_cost(opened)
            document["importance"] = importance(opened, table.x, measured.y, groups, document["primary"], seed=seed)
            asked = booting.measure(pairs, table.rows[: max(1, params.calls)], calls=params.calls)

    verdict = gate.judge(
        rules,
        facts_of(
            document, measured.against_baseline, difference, asked, bundle_id=bundle_id, missing=card_missing(card)
        ),
    )
    judged = {**verdict.to_json(), "line": line, "bundle_id": bundle_id}
    serving = {
        "reason": asked.reason,
        "device": asked.device,
        "golden": asked.golden,
        "differing": asked.differing,
        "examples": list(asked.examples),
        "calls": len(asked.milliseconds),
        "p50_ms": asked.percentile(0.5),
        "p95_ms": asked.percentile(0.95),
        "boot_seconds": asked.boot_seconds,
    }
    page = _render(document, judged, measured.y, board, rival, serving, asked.milliseconds)
    outputs.write(
        out,
        {
            "metrics.json": _json(document).encode(),
            "serving.json": _json(serving).encode(),
            "report.html": page.encode(),
            "gate.json": _json(judged).encode(),
        },
    )
    if not verdict.released:
        raise held(verdict, line, asked)
    return Report(
        line=line,
        verdict="pass",
        bundle_id=bundle_id,
        primary=document["primary"],
        metrics=document["metrics"],
        baseline=document["baseline"],
    )


def _must_exist(line: str, *paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise SourceError(
                f"evaluate needs {path.name}, but there is none",
                code="missing_file",
                where=f"{line}, step evaluate, {path.parent.name}/{path.name}",
                cure="run the steps before it again",
            )


def _render(
    document: Mapping[str, Any],
    judged: Mapping[str, Any],
    y: Predictions,
    board: Sequence[Mapping[str, Any]],
    rival: Predictions | None,
    serving: Mapping[str, Any],
    milliseconds: Sequence[float],
) -> str:
    from esteira.report import render

    return render(document, judged, y, leaderboard=board, champion=rival, serving=serving, milliseconds=milliseconds)


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


if __name__ == "__main__":
    from components.door import main

    main("evaluate")
