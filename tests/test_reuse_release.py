"""Reuse on the real DAG, in a copy of the repository whose code a person edits: exactly what depends on an edit runs again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.code import ROOMS, ROOT

FEW = ("--set", "train.trials=2", "--set", "deploy.rehearse=false")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rooms, params.yaml and sample data in a folder of their own."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "serving.lock", folder / "requirements")
    shutil.copy(ROOT / "params.yaml", folder)
    _esteira(folder, "data")
    return folder


def _esteira(folder: Path, *arguments: str) -> Any:
    # The copy's own code: `-m` puts the working directory before what is installed.
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "ESTEIRA_HOME": ".esteira", "ESTEIRA_CODE_REVISION": "test"},
    )  # fmt: skip
    assert 0 == done.returncode, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else None


def _ran(document: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["why"] for step in document["steps"] if step["status"] == "ran"}


@pytest.mark.slow
def test_one_changed_line_of_code_runs_exactly_what_depends_on_it(copy: Path) -> None:
    """A line of a step, of what it imports, and of a file that it reads: each runs what it must, and a run of all steps
    gives the same bits as the reused ones."""

    def after(name: str, line: str) -> dict[str, str]:
        with (copy / name).open("a", encoding="utf-8") as stream:
            stream.write(line)
        return _ran(_esteira(copy, "run", "tabular", *FEW, "--json"))

    first = _esteira(copy, "run", "tabular", *FEW, "--json")
    assert 7 == len(_ran(first))
    assert {} == _ran(_esteira(copy, "run", "tabular", *FEW, "--json"))

    # Its output is the same bits, so what comes after it is reused; the Bento carries a copy of esteira's code.
    told = after("esteira/automl/splits.py", "# a line\n")
    assert {"train": "esteira/automl/splits.py changed", "deploy": "esteira/automl/splits.py changed"} == told
    assert {"validate": "components/validate.py changed"} == after("components/validate.py", "# a line\n")
    told = after("families/tabular/gate.yaml", "# a line\n")
    assert {"evaluate", "register", "deploy"} == set(told)
    assert "families/tabular/gate.yaml changed" == told["evaluate"]

    last = _esteira(copy, "run", "tabular", *FEW, "--json")
    fresh = _esteira(copy, "run", "tabular", *FEW, "--fresh", "--json")
    assert {} == _ran(last)
    assert 7 == len(_ran(fresh))
    assert last["metrics"] == fresh["metrics"]
    for name in ("train/model/graph.onnx", "featurize/x_test.npy", "validate/rows.parquet", "validate/contract.yaml"):
        files = [(copy / "build" / "tabular" / run["run_id"] / name).read_bytes() for run in (first, last, fresh)]
        assert files[0] == files[1] == files[2], name
