"""From a registration alone the model comes back, and does on the held-back rows what it was registered with."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from components.evaluation.heldback import read_table
from esteira import ledger
from esteira.bundle import answerer, open_bundle
from esteira.family import load_family
from esteira.features.contract import TableContract
from esteira.registry import Registry
from esteira.settings import Settings
from tests.test_pipeline import FEW, esteira

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a line that waits for an approver ran once; `keys.json` there has the keys by name."""
    folder = tmp_path_factory.mktemp("waits")
    esteira("data", cwd=folder)
    keys = {"ana": esteira("keys", "add", "ana", "--role", "admin", "--json", cwd=folder)["key"]}
    for name, role in (("lia", "data_scientist"), ("bob", "approver")):
        made = esteira("keys", "add", name, "--role", role, "--json", cwd=folder, env={"ESTEIRA_KEY": keys["ana"]})
        keys[name] = made["key"]
    (folder / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    (folder / "first.json").write_text(json.dumps(run(folder)), encoding="utf-8")
    return folder


def run(folder: Path) -> Any:
    """`esteira run` by lia, whose line waits for an approver; without a rehearsal, which test_deploy_release.py has."""
    words = ["--source", "data/breast_cancer.csv", "--target", "diagnosis", "--as", "cancer", *FEW]
    words += ["--set", "deploy.approval_mode=required"]
    return by(folder, "lia", "run", "tabular", *words)


def by(folder: Path, name: str, *words: str) -> Any:
    key = json.loads((folder / "keys.json").read_text(encoding="utf-8"))[name]
    return esteira(*words, "--json", cwd=folder, env={"ESTEIRA_KEY": key})


def test_a_run_of_a_line_that_waits_ends_so_and_is_released_once_it_was_approved(project: Path) -> None:
    """DESIGN 6: with approval_mode required a run ends awaiting_approval, with exit code 0; nothing serves before."""
    line = "tabular@cancer"
    first = json.loads((project / "first.json").read_text(encoding="utf-8"))
    assert ("awaiting_approval", line, 1) == (first["status"], first["line"], first["version"])
    assert "error" not in first
    assert [{"line": line, "champion": None, "state": "awaiting_approval", "rollout": None}] == esteira(
        "lines", "--json", cwd=project
    )
    again = run(project)
    assert ("awaiting_approval", {"reused"}) == (again["status"], {step["status"] for step in again["steps"]})

    assert "lia" != by(project, "bob", "release", "approve", line, "--reason", "seen")["approver"]
    assert 1 == by(project, "bob", "release", "promote", line, "--reason", "approved")["version"]

    assert "released" == run(project)["status"]
    entries = by(project, "lia", "ledger", "log", "--limit", "500")["entries"]
    kinds = [entry["kind"] for entry in entries if entry["line"] == line]
    assert ["verdict", "registration", "alias", "alias", "approval_request", "approval", "alias"] == kinds


def test_a_run_that_was_held_is_told_by_the_name_of_its_key(project: Path) -> None:
    """What register says of a version, the runner says of a bundle that never became one."""
    key = json.loads((project / "keys.json").read_text(encoding="utf-8"))["lia"]
    words = [
        "--source",
        "data/breast_cancer.csv",
        "--target",
        "diagnosis",
        "--as",
        "held",
        "--set",
        "train.kinds=[constant]",
    ]
    held = esteira(
        "run", "tabular", *words, "--json", cwd=project, code=1, env={"ESTEIRA_KEY": key, "ESTEIRA_ACTOR": "somebody"}
    )

    assert "held" == held["status"]
    entries = by(project, "lia", "ledger", "log", "--limit", "500")["entries"]
    (entry,) = [entry for entry in entries if entry["line"] == "tabular@held"]
    assert ("verdict", "lia", True) == (entry["kind"], entry["actor"], entry["evidence"]["keyed"])
    refused = esteira("run", "tabular", *words, "--json", cwd=project, code=1, env={"ESTEIRA_KEY": "esk_of_nobody"})
    assert "unknown_key" == refused["error"]["code"]


@pytest.mark.requirement("H-34")
def test_a_registered_version_can_be_loaded_and_reproduces_its_test_metrics(project: Path) -> None:
    """H-34 Done when: a registered version can be loaded and reproduces test metrics within 1e-6. (Recorded with it: metrics,
    feature schema version, data window, git revision, validator report.)"""
    run = json.loads((project / "first.json").read_text(encoding="utf-8"))
    registry = Registry(Settings(home=project / ".esteira"))
    version = registry.must(run["line"], run["version"])
    folder = project / "build" / run["line"] / run["run_id"]

    bundle = open_bundle(registry.fetch(version), "cpu")
    contract = TableContract.from_yaml((folder / "validate" / "contract.yaml").read_text(encoding="utf-8"))
    table = read_table(folder / "featurize", contract)
    scores = load_family("tabular").metrics(table.truths, answerer(bundle).answer(table.rows))

    registered = {name: value for name, value in version.metrics.items() if name != "baseline"}
    assert set(registered) == set(scores)
    assert registered["roc_auc"] is not None
    for name, value in registered.items():
        found = scores[name].value
        if value is None:
            assert found is None or not math.isfinite(found), name
        else:
            assert value == pytest.approx(found, abs=1e-6), name
    said = next(entry for entry in ledger.log(registry.store, limit=None) if entry.kind == "registration").evidence
    assert registered.items() <= said["metrics"].items()
    assert (1, 64) == (said["schema"]["version"], len(said["schema"]["sha256"]))
    assert said["code_revision"] == version.code_revision
    assert isinstance(said["data_window"], dict)
    profile = json.loads((folder / "validate" / "profile.json").read_text(encoding="utf-8"))
    assert profile["quality_score"] == said["validator"]["quality_score"]
    assert 64 == len(said["validator"]["profile_sha256"])
    assert ("classification", version.data_hash, "lia", True) == (
        version.model_type, said["data_hash"], version.actor, said["keyed"],
    )  # fmt: skip
    assert version.framework
