"""The step register: a judged bundle becomes a version that says what it came from, or nothing happens at all."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import register
from esteira import bundle as bundles
from esteira import ledger
from esteira.errors import Refused, SourceError
from esteira.ledger import canonical
from esteira.registry import Registry
from esteira.release import approvals
from esteira.settings import load_settings
from tests import keyholders
from tests.test_registry import BOARD, CARD, LINE, PASS, _die_at, template

__all__ = ["template"]

DATA = "da" * 32


@pytest.fixture
def registry(esteira_home: Path, template: Path) -> Registry:
    """The registry of this test's home, which the step finds by the environment."""
    esteira_home.mkdir()
    shutil.copy(template, esteira_home / "mlflow.db")
    return Registry(load_settings())


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """What the steps before left: `evaluated/`, `trained/`, `dataset.json`."""
    bundle = tmp_path / "evaluated" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "card.json").write_text(json.dumps(CARD), encoding="utf-8")
    (bundle / "card.md").write_text("# Card\n", encoding="utf-8")
    manifest = {
        "family": "tabular", "line": LINE, "stages": [], "data_hash": DATA, "code_revision": "c0ffee", "seed": 42,
        "model": {"kind": "xgboost", "params": {"max_depth": 6}},
    }  # fmt: skip
    bundle_id = bundles.seal(bundle, manifest=manifest)
    (tmp_path / "trained").mkdir()
    measured = {"metrics": {"roc_auc": 0.91, "log_loss": None}, "baseline": {"roc_auc": 0.5}, "slices": []}
    dataset = {
        "name": "churn", "source": "churn.csv", "data_format": "csv", "source_type": "upload", "content_hash": DATA,
        "file_size": 120, "row_count": 10, "column_count": 2, "rows_hash": "0" * 64,
        "columns": [{"name": "age", "type": "text", "missing": 1, "distinct": 9}], "provenance": {"notes": []},
    }  # fmt: skip
    for path, document in {
        "evaluated/gate.json": {**PASS, "bundle_id": bundle_id},
        "evaluated/metrics.json": measured,
        # A kind that did not suit the table stands there too; it is no trial.
        "trained/leaderboard.json": [
            *BOARD,
            {"number": None, "kind": "nearest_neighbours", "params": {}, "score": None},
        ],
        "dataset.json": dataset,
    }.items():
        (tmp_path / path).write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def run(steps: Path, *, run_id: str = "r1", params: register.Params | None = None, **more: Any) -> register.Report:
    return register.run(
        evaluated=steps / "evaluated",
        trained=steps / "trained",
        dataset=steps / "dataset.json",
        line=LINE,
        run_id=run_id,
        out=steps / "registered",
        params=params or register.Params(),
        **more,
    )


def test_a_judged_bundle_becomes_a_version_that_says_what_it_came_from(registry: Registry, steps: Path) -> None:
    plan = {"line": LINE, "train": {"trials": 8}}
    registry.store.start_run(run_id="r1", line=LINE, seed=42, params=plan)

    report = run(steps)

    version = registry.get(LINE, 1)
    assert version is not None
    assert report.model_dump() == json.loads((steps / "registered" / "receipt.json").read_text("utf-8"))
    assert (1, version.bundle_id, version.uri) == (report.version, report.bundle_id, report.uri)
    assert (DATA, "c0ffee", "r1") == (version.data_hash, version.code_revision, version.run_id)
    asked = {**plan, "model": {"kind": "xgboost", "params": {"max_depth": 6}}}
    assert (asked, hashlib.sha256(canonical(asked)).hexdigest()) == (version.params, version.params_hash)
    assert {"roc_auc": 0.91, "log_loss": None, "baseline": {"roc_auc": 0.5}} == version.metrics
    assert ["xgboost", "constant"] == [trial.kind for trial in registry.store.trials("r1")]
    assert ["verdict", "registration", "alias"] == [entry.kind for entry in ledger.log(registry.store)]
    dataset = registry.store.get_dataset(DATA)
    assert dataset is not None
    assert (10, 2, 120) == (dataset.row_count, dataset.column_count, dataset.file_size)


def test_whose_key_it_is_registers_whatever_they_call_themselves(
    registry: Registry, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyholders.add(load_settings().home, "ana", "admin")
    monkeypatch.setenv("ESTEIRA_KEY", keyholders.add(load_settings().home, "lia", "data_scientist"))
    monkeypatch.setenv("ESTEIRA_ACTOR", "somebody")

    run(steps)

    version, dataset = registry.must(LINE, 1), registry.store.get_dataset(DATA)
    assert dataset is not None
    assert ("lia", "lia") == (version.actor, dataset.created_by)
    entries = [entry for entry in ledger.log(registry.store) if entry.kind == "registration"]
    assert [("lia", True)] == [(entry.actor, entry.evidence["keyed"]) for entry in entries]


@pytest.mark.parametrize(
    ("told", "params", "mode", "rehearse", "least"),
    [
        ({"approval_mode": "required", "min_samples": 20_000}, "", "required", True, 20_000),
        (
            {"approval_mode": "automatic", "rehearse": False, "min_samples": 1},
            "approval_mode: required",
            "required",
            True,
            10_000,
        ),
        ({"approval_mode": "notify", "rehearse": False}, "", "notify", True, 10_000),
        ({"rehearse": False, "min_samples": 9}, "rehearse: false, min_samples: 9", "automatic", False, 9),
        (None, "approval_mode: required", "required", True, 10_000),
        (None, "", "automatic", True, 10_000),
    ],
    ids=[
        "a_run_may_be_told_more",
        "but_not_less_than_params",
        "nor_less_than_the_family",
        "params_may_say_less",
        "a_single_step_asks_params",
        "else_the_familys_word",
    ],
)
def test_it_records_how_the_line_is_released(
    told: dict[str, Any] | None,
    params: str,
    mode: str,
    rehearse: bool,
    least: int,
    registry: Registry,
    steps: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a promotion from any other folder is held to it."""
    monkeypatch.chdir(steps)
    if params:
        text = f"families:\n  tabular:\n    deploy: {{{params}}}\n"
        (steps / "params.yaml").write_text(text, encoding="utf-8")
    if told is not None:
        registry.store.start_run(run_id="r1", line=LINE, seed=42, params={"line": LINE, "sections": {"deploy": told}})

    registered = run(steps, run_id="" if told is None else "r1")

    version = registry.must(LINE, registered.version)
    recorded = approvals.terms(registry.store, version)
    assert recorded is not None
    assert (mode, rehearse, least) == (recorded.approval_mode, recorded.rehearse, recorded.min_samples)
    assert (mode == "required") == approvals.needed(registry.store, version)


def test_doing_it_again_gives_the_same_receipt(registry: Registry, steps: Path) -> None:
    assert run(steps) == run(steps)
    assert 1 == len(registry.versions(LINE))


def test_a_kill_before_the_receipt_leaves_a_version_that_the_next_run_finds(registry: Registry, steps: Path) -> None:
    run(steps, run_id="r0")  # opens MLflow here, so that the child has it
    (steps / "registered" / "receipt.json").unlink()

    _die_at("receipt.before_rename", lambda: run(steps))
    assert not (steps / "registered" / "receipt.json").exists()
    assert 2 == len(registry.versions(LINE))

    assert (2, 2) == (run(steps).version, len(registry.versions(LINE)))
    assert ["registration"] * 2 == [entry.kind for entry in ledger.log(registry.store) if entry.kind == "registration"]


def test_a_step_alone_needs_no_run(registry: Registry, steps: Path) -> None:
    report = run(steps, run_id="")

    version = registry.get(LINE, report.version)
    assert version is not None
    assert f"step-{report.bundle_id[:16]}" == version.run_id
    assert 42 == version.params["seed"]
    assert report == run(steps, run_id="")


def test_only_so_many_trials_go_to_mlflow(registry: Registry, steps: Path) -> None:
    from tests.test_registry import client

    report = run(steps, params=register.Params(trials=1))

    mlflow = client(load_settings())
    experiment = mlflow.get_run(report.mlflow_run_id).info.experiment_id
    assert 2 == len(mlflow.search_runs([experiment]))


def _hold(steps: Path) -> None:
    (steps / "evaluated" / "gate.json").write_text(json.dumps({**PASS, "verdict": "held"}), encoding="utf-8")


def _other_data(steps: Path) -> None:
    document = json.loads((steps / "dataset.json").read_text("utf-8"))
    (steps / "dataset.json").write_text(json.dumps({**document, "content_hash": "ff" * 32}), encoding="utf-8")


def _tamper(steps: Path) -> None:
    (steps / "evaluated" / "bundle" / "card.md").write_text("# Other\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "code"), [(_hold, "no_verdict"), (_other_data, "other_data"), (_tamper, "bundle_changed")]
)
def test_what_may_not_be_registered_leaves_nothing(
    spoil: Callable[[Path], None], code: str, registry: Registry, steps: Path
) -> None:
    spoil(steps)
    with pytest.raises(Refused) as caught:
        run(steps)

    assert code == caught.value.code
    assert ([], []) == (registry.lines(), ledger.log(registry.store))
    assert not (steps / "registered").exists()


@pytest.mark.parametrize(
    "path", ["evaluated/gate.json", "evaluated/metrics.json", "trained/leaderboard.json", "dataset.json"]
)
def test_a_missing_or_broken_input_is_named(path: str, registry: Registry, steps: Path) -> None:
    (steps / path).write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=Path(path).name):
        run(steps)
    (steps / path).unlink()
    with pytest.raises(SourceError, match=Path(path).name):
        run(steps)
    assert [] == registry.lines()


def test_unknown_params_are_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        register.Params.model_validate({"colour": "red"})


@pytest.mark.slow
@pytest.mark.requirement("K-08")
def test_registering_a_csv_fills_its_record(registry: Registry, steps: Path) -> None:
    """K-08 Done when: registering a CSV fills row_count, column_count, file_size, statistics, quality_score and hash.

    The rows go through the real ingest and validate; register records what they found.
    """
    from components import ingest, validate

    rows = [
        f"{20 + n % 50},{'lisboa' if n % 3 else 'porto'},{'' if n == 7 else n * 0.5},{'yes' if n % 4 else 'no'}"
        for n in range(200)
    ]
    text = "age,city,spent,left\n" + "\n".join(rows) + "\n"
    (steps / "churn.csv").write_text(text, encoding="utf-8")
    ingest.run(
        source=str(steps / "churn.csv"), target="left", line=LINE, out=steps / "ingested", params=ingest.Params()
    )
    validate.run(
        rows=steps / "ingested" / "rows.parquet",
        dataset=steps / "ingested" / "dataset.json",
        target="left",
        line=LINE,
        out=steps / "validated",
        params=validate.Params(),
    )
    bundle = steps / "evaluated" / "bundle"
    content_hash = hashlib.sha256(text.encode()).hexdigest()
    manifest = json.loads((bundle / bundles.MANIFEST).read_text("utf-8"))
    for name in (bundles.MANIFEST, bundles.SEAL):
        (bundle / name).unlink()
    del manifest["files"], manifest["format"]
    bundle_id = bundles.seal(bundle, manifest={**manifest, "data_hash": content_hash})
    (steps / "evaluated" / "gate.json").write_text(json.dumps({**PASS, "bundle_id": bundle_id}), encoding="utf-8")
    shutil.copy(steps / "ingested" / "dataset.json", steps / "dataset.json")

    run(steps, profile=steps / "validated" / "profile.json")

    (dataset,) = registry.store.list_datasets()
    assert ("churn", "csv", "upload", "training") == (
        dataset.name,
        dataset.data_format,
        dataset.source_type,
        dataset.dataset_type,
    )
    assert (200, 4, len(text.encode())) == (dataset.row_count, dataset.column_count, dataset.file_size)
    assert content_hash == dataset.content_hash
    assert dataset.quality_score is not None
    assert 0.9 < dataset.quality_score < 1.0, "one of 800 cells is missing"
    assert dataset.statistics is not None
    columns = {column["name"]: column for column in dataset.statistics["columns"]}
    assert {"age", "city", "spent", "left"} == set(columns)
    assert (1, 20, 69) == (columns["spent"]["missing"], columns["age"]["minimum"], columns["age"]["maximum"])
    assert dataset.is_processed
    assert dataset.schema_config is not None
    assert ["age", "city", "spent", "left"] == [column["name"] for column in dataset.schema_config["columns"]]
    version = registry.get(LINE, 1)
    assert version is not None
    assert dataset.to_dict() == registry.lineage(version)["data"]["dataset"]
