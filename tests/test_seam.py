"""The steps talk to a family through its words only: any family that has them runs, and one that has not is refused at once."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import evaluate, featurize, ingest, train, validate
from esteira.errors import ConfigError, DataError
from esteira.family import TRAINABLE, Trainable, load_trainable
from families.tabular import FAMILY
from tests.toys import nested, policy

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {path.parent.name for path in (ROOT / "families").glob("*/__init__.py")}
STEPS = sorted([*(ROOT / "components").glob("*.py"), *(ROOT / "pipelines").rglob("*.py")])


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys stand where families do."""
    monkeypatch.setitem(sys.modules, "families.nested", nested)
    monkeypatch.setitem(sys.modules, "families.policy", policy)


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_step_and_no_pipeline_names_a_family(path: Path) -> None:
    """Neither by import (a lint contract forbids that too) nor by a name or module in a text of its own."""
    named = re.compile(rf"(?:families[./])?(?:{'|'.join(sorted(FAMILIES))})(?:[./][\w./]*)?")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("families.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "families":
            names = [str(node.module)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and named.fullmatch(node.value):
            names = [node.value]
        found += [f"{path.name}:{getattr(node, 'lineno', 0)} {name}" for name in names]

    assert [] == found


def test_the_families_that_can_run_have_every_word() -> None:
    assert isinstance(FAMILY, Trainable)
    assert isinstance(nested.FAMILY, Trainable)
    assert all(hasattr(nested.FAMILY, word) for word in TRAINABLE)
    assert FAMILY is load_trainable("tabular")


@pytest.mark.usefixtures("toys")
def test_a_family_that_is_no_graph_is_refused_before_a_step_does_anything(tmp_path: Path) -> None:
    """No input is there, so the refusal came before any was looked for; nothing is written."""
    gone, out = tmp_path / "gone", tmp_path / "out"
    with pytest.raises(ConfigError, match="artefact is of kind 'policy'") as caught:
        validate.run(rows=gone, dataset=gone, target="y", line="policy@a", out=out, params=validate.Params())
    assert "family_cannot_run" == caught.value.code
    with pytest.raises(ConfigError, match="kind 'policy'"):
        evaluate.run(
            features=gone, trained=gone, contract=gone, dataset=gone, line="policy", out=out,
            params=evaluate.Params(), seed=1,
        )  # fmt: skip
    assert not out.exists()


def test_a_family_that_lacks_words_is_refused_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        name, artefact_kind = "bare", "onnx"

    module = type(sys)("families.bare")
    module.FAMILY = Bare()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "families.bare", module)

    with pytest.raises(ConfigError, match="it has no row_rules, contract, featurizer"):
        load_trainable("bare")


# ---------------------------------------------------------------- nested rows


def ingested(folder: Path, rows: list[dict[str, Any]], line: str, target: str) -> dict[str, Path]:
    """JSON lines through ingest."""
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest.run(source=str(folder / "t.jsonl"), target=target, line=line, out=folder / "in", params=ingest.Params())
    return {"rows": folder / "in" / "rows.parquet", "dataset": folder / "in" / "dataset.json"}


@pytest.mark.usefixtures("toys")
def test_nested_rows_go_from_json_lines_to_a_trained_model(tmp_path: Path) -> None:
    """A nested cell stays JSON on its way; the family's own rules put bad plans into quarantine, by their dotted path."""
    plans, truths = nested.plans(200, seed=4)
    plans[3]["tasks"] = []
    plans[10]["tasks"] = [{"ms": 1}, {"ms": "long"}]
    plans[11]["tasks"] = None
    table: list[dict[str, Any]] = [{**plan, "seconds": truth} for plan, truth in zip(plans, truths, strict=True)]
    table[12]["seconds"] = None
    given = ingested(tmp_path, table, "nested", "seconds")
    out = tmp_path / "validated"

    report = validate.run(**given, target="seconds", line="nested", out=out, params=validate.Params(expectations=False))

    kept = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [
        (4, "required", "tasks", "[]"), (11, "type", "tasks.1.ms", None), (12, "required", "tasks", None),
        (13, "label_missing", "seconds", None),
    ] == [
        (entry["row"], reason["rule"], reason["column"], reason["value"] if reason["value"] == "[]" else None)
        for entry in kept
        for reason in entry["reasons"]
    ]  # fmt: skip
    assert (200, 196, 4) == (report.row_count, report.good_rows, report.quarantined_rows)

    featurize.run(rows=out / "rows.parquet", contract=out / "contract.yaml", out=tmp_path / "features")
    told = json.loads((tmp_path / "features" / "features.json").read_text(encoding="utf-8"))
    assert (["tasks", "sum_s", "longest_s"], {"plan_id": [], "tasks": [0, 1, 2]}) == (told["names"], told["groups"])

    trained = tmp_path / "trained"
    found = train.run(
        features=tmp_path / "features", contract=out / "contract.yaml", line="nested", out=trained,
        params=train.Params(trials=2),
    )  # fmt: skip
    assert ("mae", "linear", 3) == (found.metric, found.kind, found.features)
    golden = json.loads((trained / "model" / "golden.json").read_text(encoding="utf-8"))
    assert all(row["tasks"] for row in golden["rows"]), "a row that the family refuses is no golden one"
    for row, answer in zip(golden["rows"], golden["answers"], strict=True):
        expected = 0.2 * len(row["tasks"]) + sum(task["ms"] for task in row["tasks"]) / 1000
        assert expected == pytest.approx(answer["prediction"], abs=0.05)


def test_a_table_of_flat_columns_refuses_a_nested_one_unless_it_is_left_out(tmp_path: Path) -> None:
    """Only a contract that declares an object can read one; a line of tables says how to go on."""
    rng = np.random.default_rng(1)
    table = [
        {"x": float(x), "tags": ["a"] * int(n), "y": "yes" if x > 0 else "no"}
        for x, n in zip(rng.normal(size=60), rng.integers(0, 3, 60), strict=True)
    ]
    given = ingested(tmp_path, table, "tabular@tags", "y")

    def run(**params: Any) -> validate.Report:
        settings = validate.Params(expectations=False, allow_leak=("x",), **params)
        return validate.run(**given, target="y", line="tabular@tags", out=tmp_path / "out", params=settings)

    with pytest.raises(DataError, match="column 'tags' holds objects or arrays") as caught:
        run()
    assert "nested_column" == caught.value.code
    assert "validate.drop: [tags]" in caught.value.cure
    assert 60 == run(drop=("tags",)).good_rows


# ---------------------------------------------------------------- the champion by reference


def test_a_path_to_the_champion_costs_no_import_of_the_registry() -> None:
    code = (
        "import sys; from components import champions, evaluate, validate;"
        "print(champions.folder('', 'l'), champions.folder('a/b', 'l'), 'esteira.registry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "None a/b False" == done.stdout.strip()
