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


@pytest.mark.parametrize("group", ["step", "ledger", "runs"])
def test_a_group_without_its_command_shows_its_help_and_no_error(group: str, tmp_path: Path) -> None:
    done = _esteira(group, cwd=tmp_path, code=2)

    assert done.stderr.startswith(f"Usage: esteira {group}")
    assert "error:" not in done.stderr


def test_a_file_that_is_no_file_is_named_and_is_no_fault_of_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.parquet").mkdir()
    words = ["--dataset", "data", "--rows", "data", "--target", "y", "--line", "tabular", "--out", "out"]

    done = _esteira("step", "validate", *words, cwd=tmp_path, code=2)

    assert ["error:", "where:", "cure:"] == [line.split()[0] for line in done.stderr.splitlines()]
    assert "fault of ours" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_says_what_it_looked_at_and_finds_nothing_wrong_here(tmp_path: Path) -> None:
    checks = json.loads(_esteira("doctor", "--json", cwd=tmp_path).stdout)["checks"]

    assert {"python", "packages", "home", "disk", "store", "ledger", "uv", "gpu"} == {check["name"] for check in checks}
    assert all(check["ok"] and check["detail"] for check in checks)


def test_doctor_exits_1_and_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / ".esteira").mkdir()
    (tmp_path / ".esteira" / "esteira.db").write_text("this is no database, whatever its name says", encoding="utf-8")

    checks = json.loads(_esteira("doctor", "--json", cwd=tmp_path, code=1).stdout)["checks"]

    assert {"store", "ledger"} <= {check["name"] for check in checks if not check["ok"]}


def test_families_are_listed_once_with_what_their_bundles_hold(tmp_path: Path) -> None:
    found = json.loads(_esteira("families", "--json", cwd=tmp_path).stdout)

    assert {"name": "tabular", "kind": "onnx"} in found
    assert len(found) == len({family["name"] for family in found})


def test_what_was_asked_for_is_on_standard_output(tmp_path: Path) -> None:
    """`esteira families | grep x` finds it; what is said beside it is on standard error, and so is an error."""
    done = _esteira("families", cwd=tmp_path)
    assert ["tabular", "onnx"] in [line.split() for line in done.stdout.splitlines()]
    assert "" == done.stderr
    assert "" == _esteira("release", "show", "tabular", cwd=tmp_path, code=1).stdout


def test_whoever_reads_the_first_lines_alone_gets_no_traceback(tmp_path: Path) -> None:
    """`esteira ledger log | head -1`: the reader is gone before all is written."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "esteira.cli", "families"], cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    assert (1, "") == (done.returncode, done.stderr)


def test_a_folder_without_lines_says_how_to_open_one(tmp_path: Path) -> None:
    done = _esteira("lines", cwd=tmp_path)

    assert "esteira run" in done.stderr
    assert "" == done.stdout


def test_init_twice_writes_nothing_the_second_time(tmp_path: Path) -> None:
    first = json.loads(_esteira("init", "--json", cwd=tmp_path).stdout)["written"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    second = json.loads(_esteira("init", "--json", cwd=tmp_path).stdout)["written"]

    assert "params.yaml" in first
    assert [] == second
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
