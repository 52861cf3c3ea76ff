"""What counts as a step's code is no guess: every file of ours that a step opens while it runs is among it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.code import ROOMS, ROOT, files_of
from pipelines.shape import STEPS
from pipelines.world import code_of

# Written into a folder on PYTHONPATH, so that a step and every process it starts says what it opens.
WATCH = """
import os, sys

_log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def _watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(os.environ["WATCH_ROOT"]):
        os.write(_log, (arguments[0] + "\\n").encode())

sys.addaudithook(_watch)
"""


def _opened(log: Path) -> set[str]:
    """Files of the rooms, relative to the root; a compiled file stands for its source."""
    found = set()
    for line in log.read_text(encoding="utf-8").splitlines():
        path = Path(line)
        if path.suffix == ".pyc":
            path = path.parents[1] / f"{path.name.split('.')[0]}.py"
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in ROOMS and path.is_file():
            found.add(name)
    return found


@pytest.mark.slow
def test_every_file_that_a_step_opens_is_part_of_its_code(tmp_path: Path) -> None:
    """Each step runs in a process of its own under an audit hook; the command line around it is left out."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    folders = {step.name: tmp_path / "out" / step.name for step in STEPS}
    validated, ingested = folders["validate"], folders["ingest"]
    flags: dict[str, list[str]] = {
        "ingest": ["--source", str(tmp_path / "data" / "breast_cancer.csv"), "--target", "diagnosis"],
        "validate": [
            "--rows", f"{ingested}/rows.parquet", "--dataset", f"{ingested}/dataset.json", "--target", "diagnosis",
        ],
        "featurize": ["--rows", f"{validated}/rows.parquet", "--contract", f"{validated}/contract.yaml", "--seed", "42"],
        "train": [
            "--features", str(folders["featurize"]), "--contract", f"{validated}/contract.yaml", "--set", "trials=3",
        ],
        "evaluate": [
            "--features", str(folders["featurize"]), "--trained", str(folders["train"]), "--contract",
            f"{validated}/contract.yaml", "--dataset", f"{ingested}/dataset.json", "--seed", "42",
        ],
        "register": [
            "--evaluated", str(folders["evaluate"]), "--trained", str(folders["train"]), "--dataset",
            f"{ingested}/dataset.json", "--profile", f"{validated}/profile.json", "--run-id", "",
        ],
        "deploy": [
            "--receipt", f"{folders['register']}/receipt.json", "--bundle", f"{folders['evaluate']}/bundle",
        ],
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "esteira.cli", "data"], cwd=tmp_path, check=True, capture_output=True)
    around = {path.relative_to(ROOT).as_posix() for path in files_of(["esteira.cli.__main__", "esteira.cli.step"])}
    unknown: dict[str, set[str]] = {}
    for step in STEPS:
        log = tmp_path / f"{step.name}.log"
        line = [] if step.name == "featurize" else ["--line", "tabular"]
        done = subprocess.run(
            [sys.executable, "-m", "esteira.cli", "step", step.name, *flags[step.name], *line, "--out", str(folders[step.name]),
             "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "ESTEIRA_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "watch"),
                 "WATCH_LOG": str(log), "WATCH_ROOT": str(ROOT)},
        )  # fmt: skip
        assert 0 == done.returncode, f"{step.name}: {done.stdout}{done.stderr}"
        assert json.loads(done.stdout)
        opened = _opened(log)
        assert f"components/{step.name}.py" in opened
        # Migrations bring the store up to date and decide nothing of what a step leaves.
        opened = {name for name in opened if not name.startswith("esteira/store/migrations/")}
        unknown[step.name] = opened - set(code_of(step, "tabular")) - around

    assert {name: set() for name in folders} == unknown
