"""The command line's manners: instant help, one JSON document, errors as letters, exit codes of DESIGN 9, rule 8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esteira.cli import COMMANDS

HEAVY = (
    "pandas",
    "sklearn",
    "kfp",
    "mlflow",
    "great_expectations",
    "bentoml",
    "xgboost",
    "sqlalchemy",
    "pydantic",
    "numpy",
)


def _esteira(*arguments: str, cwd: Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "ESTEIRA_HOME": ".esteira"},
    )  # fmt: skip
    assert code == done.returncode, done.stderr
    return done


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom esteira.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str, tmp_path: Path) -> None:
    done = _esteira(name, "--help", cwd=tmp_path)

    assert "Example:" in done.stdout
    assert f"esteira {name}" in done.stdout or name == "demo"


def test_a_wrong_command_is_exit_2_and_points_at_help(tmp_path: Path) -> None:
    done = _esteira("rnu", cwd=tmp_path, code=2)

    assert "No such command" in done.stderr
    assert "--help" in done.stderr


def test_a_failure_with_json_is_one_error_document(tmp_path: Path) -> None:
    done = _esteira("run", "tabular@nothing", "--json", cwd=tmp_path, code=2)

    error = json.loads(done.stdout)["error"]
    assert {"code", "message", "where", "cure"} == set(error)
    assert "no_source" == error["code"]


def test_a_fault_of_ours_shows_no_traceback_without_debug(tmp_path: Path) -> None:
    (tmp_path / ".esteira").write_text("a file where a folder should be", encoding="utf-8")

    done = _esteira("run", "tabular", "--source", "x.csv", "--target", "y", cwd=tmp_path, code=2)

    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert ".esteira" in done.stderr
