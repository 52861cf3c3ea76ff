"""`make family NAME=x` writes a folder, a params block and an overlay that keep every rule from the first minute.

And whoever follows docs/families/new.md has a released line of his own in fifteen minutes, without touching anything else.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from esteira.errors import ConfigError, Refused
from esteira.project import Project
from pipelines.scaffold import TEMPLATE, scaffold
from tests import walkthrough

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """What the scaffold reads of a repository."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (tmp_path / "families").mkdir()
    return tmp_path


def test_a_family_gets_its_eight_things_its_block_and_its_overlay(yard: Path) -> None:
    before = (yard / "params.yaml").read_text(encoding="utf-8")

    scaffold("cut_time", yard)

    names = {path.name for path in (yard / "families" / "cut_time").iterdir()}
    assert {"README.md", "contract.py", "features.py", "model.py", "metrics.py", "gate.yaml", "resources.yaml"} <= names
    text = (yard / "params.yaml").read_text(encoding="utf-8")
    project = Project.model_validate(yaml.safe_load(text))
    assert {"cut_time", "tabular"} <= set(project.families)
    block = project.families["cut_time"]
    assert ("families/cut_time/sample/table.jsonl", "minutes") == (block.source, block.target)
    assert before.splitlines()[:2] == text.splitlines()[:2], "comments stay"
    overlay = yaml.safe_load(
        (yard / "manifests" / "overlays" / "cut-time" / "kustomization.yaml").read_text(encoding="utf-8")
    )
    assert ["ESTEIRA_LINES=cut_time"] == overlay["configMapGenerator"][0]["literals"]


@pytest.mark.parametrize("name", ["", "Cut", "1st", "cut-time", "../x", "x" * 41, "class", "import"])
def test_a_bad_name_is_refused(name: str, yard: Path) -> None:
    with pytest.raises(ConfigError, match="a family's name"):
        scaffold(name, yard)

    assert [] == list((yard / "families").iterdir())


@pytest.mark.parametrize(("words", "code"), [(["Cut"], 2), ([""], 2), (["tabular"], 1), ([], 2)])
def test_its_command_refuses_in_a_letter_of_three_lines(words: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.scaffold", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert code == done.returncode
    assert ["error:", "where:", "cure:"] == [line.split()[0] for line in done.stderr.splitlines()]


def test_nothing_is_overwritten(yard: Path) -> None:
    scaffold("cut_time", yard)
    written = {path: path.read_bytes() for path in yard.rglob("*") if path.is_file()}

    with pytest.raises(Refused, match="overwrites nothing"):
        scaffold("cut_time", yard)

    assert written == {path: path.read_bytes() for path in yard.rglob("*") if path.is_file()}


def test_what_a_scaffold_asks_of_a_cluster_and_of_a_model_is_what_tables_do() -> None:
    """The templates are texts of their own, so that pipelines name no family; a change there is made here too."""
    for name in ("gate.yaml", "resources.yaml"):
        ours = yaml.safe_load((TEMPLATE / f"{name}.txt").read_text(encoding="utf-8"))
        assert yaml.safe_load((ROOT / "families" / "tabular" / name).read_text(encoding="utf-8")) == ours, name


# ---------------------------------------------------------------- whole copies of the repository


def copied(folder: Path) -> dict[str, str]:
    """A copy of the repository as a person has it after `make setup`; gives the environment of its commands."""
    for part in (
        "esteira",
        "families",
        "components",
        "pipelines",
        "serving",
        "tests",
        "manifests",
        "docs",
        "requirements",
    ):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "params.yaml", "Makefile"):
        shutil.copy(ROOT / part, folder)
    # The interpreter and the libraries of this suite, in a .venv of the copy's own. Set-up must find nothing to do: it would
    # work on the libraries that the links lead to.
    (folder / "requirements" / "setup.sh").write_text("echo set-up must not run here; exit 1\n", encoding="utf-8")
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "esteira-setup":
            (folder / ".venv" / path.name).symlink_to(path)
    if shutil.which("make") is not None:
        recipe = ran(["make", "-n", "setup"], folder, dict(os.environ))
        key = ran(
            ["bash", "-c", f"{recipe.partition('; ' + chr(92))[0]}; printf '%s' \"$key\""], folder, dict(os.environ)
        )
        (folder / ".venv" / "esteira-setup").write_text(f"{key}\n", encoding="utf-8")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ESTEIRA_")},
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        # Before the installed esteira, which is the original.
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ESTEIRA_HOME": str(folder / ".esteira"),
    }


def ran(words: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert 0 == done.returncode, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def tree(folder: Path) -> dict[str, str]:
    """Every file that is or would be committed, by its hash."""
    made = {
        ".venv",
        ".esteira",
        "build",
        "__pycache__",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".import_linter_cache",
    }
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if not made & set(path.relative_to(folder).parts) and path.is_file()
    }


@pytest.mark.slow
def test_a_new_family_is_green_from_the_first_minute_and_its_whole_dag_runs(tmp_path: Path) -> None:
    """In a copy of the tree: formatted, linted, typed, within the import contracts, conformant, released, asked over HTTP."""
    env = copied(tmp_path)
    scaffold("cut_time", tmp_path)
    folder = "families/cut_time"

    for words in (
        ["-m", "families.cut_time.sample"],
        ["-m", "ruff", "format", "--check", folder],
        ["-m", "ruff", "check", folder],
        ["-m", "mypy", folder],
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_families.py", "-k", "cut_time"],
    ):
        ran([sys.executable, *words], tmp_path, env)
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        ran([kubectl, "kustomize", "manifests/overlays/cut-time"], tmp_path, env)

    esteira = [sys.executable, "-m", "esteira.cli"]
    # A scaffold's version waits for an approver, who is not the one that registered it.
    admin = ran([*esteira, "keys", "add", "root", "--role", "admin"], tmp_path, env).strip()
    author, approver = (
        ran([*esteira, "keys", "add", name, "--role", role], tmp_path, {**env, "ESTEIRA_KEY": admin}).strip()
        for name, role in (("lia", "data_scientist"), ("bob", "approver"))
    )
    run = json.loads(ran([*esteira, "run", "cut_time", "--json"], tmp_path, {**env, "ESTEIRA_KEY": author}))
    assert ("awaiting_approval", 1) == (run["status"], run["version"])
    for words in (["approve", "cut_time", "--reason", "seen"], ["promote", "cut_time", "--reason", "approved"]):
        ran([*esteira, "release", *words], tmp_path, {**env, "ESTEIRA_KEY": approver})
    assert run["metrics"]["r2"] > 0.9 > run["baseline"]["r2"]
    answer = json.loads(ran([sys.executable, "-m", "esteira.cli", "demo", "cut_time"], tmp_path, env).splitlines()[-1])
    assert ("cut_time", 1, run["bundle_id"]) == (answer["line"], answer["version"], answer["bundle_id"])
    low, high = answer["rows"][0]["interval"]
    assert low < answer["rows"][0]["prediction"] < high

    # A model does not answer with code that has moved on, and says what has.
    features = tmp_path / folder / "features.py"
    features.write_text(features.read_text(encoding="utf-8").replace("/ 1e6", "/ 1e3"), encoding="utf-8")
    words = ["predict", "--bundle", run["bundle"], "--data", f"{folder}/sample/table.jsonl", "--out", "answers.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert 2 == done.returncode
    assert "features.py makes 'area_m2'" in done.stderr


@pytest.mark.slow
def test_a_stranger_has_a_released_line_and_an_http_answer_in_fifteen_minutes(tmp_path: Path) -> None:
    """docs/families/new.md, word for word: no file changes but those of the three things that the scaffold wrote."""
    if shutil.which("make") is None:
        pytest.skip("needs make on PATH")
    env = copied(tmp_path)
    before = tree(tmp_path)
    name = walkthrough.family_of()

    began = time.perf_counter()
    outcomes = walkthrough.follow(tmp_path, env)
    seconds = time.perf_counter() - began

    print(f"the walk-through's commands took {seconds:.0f} s")
    assert seconds < 600, "what is left of a quarter of an hour is for reading"
    answer = json.loads(outcomes[-1].stdout.splitlines()[-1])
    assert name == answer["line"]
    assert {"late", "on time"} == set(answer["rows"][0]["probabilities"])
    assert answer["rows"][0]["prediction"] in {"late", "on time"}
    metrics = json.loads(next((tmp_path / "build" / name).glob("*/evaluate/metrics.json")).read_text(encoding="utf-8"))
    assert metrics["metrics"]["roc_auc"] > 0.85
    assert 0 <= metrics["metrics"]["late_not_foreseen"] <= 1, "a score of the family's own"
    after = tree(tmp_path)
    changed = {file for file in after.keys() | before.keys() if after.get(file) != before.get(file)}
    three = (f"families/{name}/", f"manifests/overlays/{name.replace('_', '-')}/", "params.yaml")
    assert [] == sorted(file for file in changed if not file.startswith(three))
    # What the page makes its reader write is as tidy as the rest.
    ran([sys.executable, "-m", "ruff", "format", "--check", f"families/{name}"], tmp_path, env)
    ran([sys.executable, "-m", "ruff", "check", f"families/{name}"], tmp_path, env)
    ran([sys.executable, "-m", "mypy", f"families/{name}"], tmp_path, env)


def test_the_walk_through_edits_only_what_the_scaffold_writes(yard: Path) -> None:
    """Every file that the page writes is one of the scaffold's, is Python where it says so, and every command is known."""
    name = walkthrough.family_of()
    scaffold(name, yard)
    found = list(walkthrough.blocks())

    assert walkthrough.PAGE.read_text(encoding="utf-8").count("\n```") == 2 * len(found), "every block is understood"
    written = {path.name for path in (yard / "families" / name).iterdir()}
    assert {block.file for block in found if block.kind in {"python", "markdown"}} <= written
    for block in found:
        if block.kind == "python":
            ast.parse(block.text)
    commands = [line.split()[0:2] for block in found if block.kind == "sh" for line in block.text.splitlines()]
    assert [["make", "family"], ["python", "-m"], ["python", "-m"], ["esteira", "run"], ["esteira", "demo"]] == commands
    settings = ["    target: returned\n", "    deploy: {approval_mode: automatic}\n"]
    assert settings == [block.text for block in found if block.kind == "yaml"]


@pytest.mark.slow
def test_a_family_of_nested_rows_runs_the_whole_dag(tmp_path: Path) -> None:
    """The toy with plans of tasks, from JSON lines with nested objects to its answer; bad plans go to quarantine."""
    from tests.toys import nested

    env = copied(tmp_path)
    shutil.copytree(ROOT / "tests" / "toys" / "nested", tmp_path / "families" / "nested")
    shutil.copy(TEMPLATE / "resources.yaml.txt", tmp_path / "families" / "nested" / "resources.yaml")
    rows, truths = nested.plans(300, seed=5)
    rows[7]["tasks"][0]["ms"] = -5
    table = [{**row, "seconds": truth} for row, truth in zip(rows, truths, strict=True)]
    (tmp_path / "plans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")

    # A family that says nothing of releases waits for an approver, which is not what is looked at here.
    with (tmp_path / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("  nested:\n    deploy: {approval_mode: automatic}\n")
    words = ["run", "nested", "--source", "plans.jsonl", "--target", "seconds", "--json"]
    run = json.loads(ran([sys.executable, "-m", "esteira.cli", *words], tmp_path, env))

    assert ("released", "nested@plans-seconds") == (run["status"], run["line"])
    assert "mae" == json.loads((Path(tmp_path / run["bundle"]).parent / "metrics.json").read_text())["primary"]
    assert run["metrics"]["mae"] < 0.1 < run["baseline"]["mae"]
    bad = (tmp_path / run["bundle"]).parents[1] / "validate" / "quarantine.jsonl"
    assert [(8, "tasks.0.ms")] == [
        (entry["row"], entry["reasons"][0]["column"]) for entry in map(json.loads, bad.read_text().splitlines())
    ]
    answer = json.loads(ran([sys.executable, "-m", "esteira.cli", "demo", run["line"]], tmp_path, env).splitlines()[-1])
    assert answer["rows"][0]["prediction"] > 0
