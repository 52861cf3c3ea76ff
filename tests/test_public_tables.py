"""Real public tables end released, with a model that beats its constant baseline and is no worse than a plain script's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TABLES = {
    "telco_churn": ("Churn", "data.csv", "roc_auc"),
    "adult": ("income", "data.csv.gz", "roc_auc"),
    "diamonds": ("price", "data.csv.gz", "r2"),
    "vehicle": ("Class", "data.csv", "f1_macro"),
    "titanic": ("survived", "data.csv", "roc_auc"),
}
# What a careful person's script reaches with the same libraries, rows and trials: benchmarks/dag/plain_script.py, whose
# score stands in its own output; the comparison itself is made by `python -m benchmarks.dag.compare`.


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_public_table_ends_released(name: str, public_data: Path, tmp_path: Path) -> None:
    target, file, primary = TABLES[name]
    source = public_data / f"tabular_{name}" / file

    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", "run", "tabular", "--as", name, "--source", str(source), "--target", target,
         "--set", "deploy.rehearse=false", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, env={**os.environ, "ESTEIRA_HOME": str(tmp_path / "home")},
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    document = json.loads(done.stdout)
    assert "released" == document["status"]
    rules = {rule["rule"]: rule for rule in document["gate"]}
    low, _high = rules["better_than_baseline"]["interval"]
    assert low > 0
    assert document["metrics"][primary] > document["baseline"][primary]
