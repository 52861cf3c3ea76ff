"""The house's own rules bite: import contracts, one vocabulary for CI and people, a set-up that runs only when it must."""

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("esteira", "families", "components", "pipelines", "serving")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
LINT = (
    "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports']; lint_imports_command()"
)

# Contract -> a module that breaks it and what it would import.
PLANTED = {
    "rooms": ("families/tabular/planted_rooms.py", "import components.ingest"),
    "steps-name-no-family": ("components/planted_family.py", "import families.tabular"),
    "pipelines-serving": ("pipelines/planted_serving.py", "import serving.service"),
    "esteira-below": ("esteira/gate.py", "import families.tabular"),
    "esteira-layers": ("esteira/planted.py", ""),
    "family-words": ("families/tabular/planted_words.py", "import esteira.gate"),
    "families-apart": ("families/planted/__init__.py", "import families.tabular"),
    "families-pure": ("families/tabular/planted_pure.py", "import mlflow"),
    "only-kfp": ("components/planted_kfp.py", "import kfp"),
    "only-bentoml": ("components/planted_bentoml.py", "import bentoml"),
    "only-mlflow": ("serving/planted_mlflow.py", "import mlflow"),
    "only-sqlalchemy": ("esteira/doctor.py", "import sqlalchemy"),
}


def test_every_contract_breaks_when_its_rule_is_broken(tmp_path: Path) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert set(CONTRACTS) == set(PLANTED)
    for file, line in PLANTED.values():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")

    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {LINT}"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"COLUMNS": "400", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip

    kept = [contract["id"] for contract in CONTRACTS.values() if f"{contract['name']} BROKEN" not in done.stdout]
    assert [] == kept, done.stdout + done.stderr


def test_a_family_may_use_four_modules_of_esteira_and_every_other_is_listed() -> None:
    modules = {
        path.stem for path in (ROOT / "esteira").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}

    listed = {name.removeprefix("esteira.") for name in CONTRACTS["family-words"]["forbidden_modules"]}

    assert modules - {"family", "features", "checks", "errors"} == listed


def test_every_folder_of_python_is_a_room_or_stands_outside_the_product() -> None:
    tracked = {
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and next(folder.rglob("*.py"), None)
    }

    assert set() == tracked - {*ROOMS, "benchmarks", "build", "docs", "tests"}
    assert sorted(ROOMS) == sorted(PROJECT["tool"]["importlinter"]["root_packages"])
    assert sorted(ROOMS) == sorted(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_ci_says_what_people_say() -> None:
    assert re.search(r"\bmake check\b", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    commands = re.findall(r"- run: (.+)", workflow)

    assert [".ci/run", "make demo", "make setup PYTHON=python${{ matrix.python }}"] == sorted(commands)
    assert "hashFiles('requirements/dev.lock')" in workflow
    assert re.findall(r'"(3\.\d+)"', workflow.split("matrix:")[1].splitlines()[1]) == ["3.11", "3.12", "3.13"]


def test_every_filter_of_a_warning_is_exact_and_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("filterwarnings = [", 1)[1].split("\n]", 1)[0].strip().splitlines()

    assert '"error",' == block[0].strip()
    for above, line in itertools.pairwise(block):
        if not line.strip().startswith("#"):
            assert above.strip().startswith("#"), f"say why: {line}"


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A copy of the Makefile whose set-up only leaves a note of its arguments."""
    if shutil.which("make") is None:
        pytest.skip("needs make on PATH")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "dev.lock").write_text("a==1\n", encoding="utf-8")
    shutil.copy(ROOT / "requirements" / "index.sh", tmp_path / "requirements")
    (tmp_path / "requirements" / "setup.sh").write_text(
        'mkdir -p .venv/bin; echo "asked: $1" >> notes; printf "#!/bin/sh\\n" > .venv/bin/esteira; chmod +x .venv/bin/esteira\n',
        encoding="utf-8",
    )
    return tmp_path


def _setups(yard: Path, *arguments: str) -> list[str]:
    subprocess.run(
        ["make", "setup", *arguments], cwd=yard, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}
    )
    return (yard / "notes").read_text(encoding="utf-8").splitlines()


def test_setup_runs_once_until_the_lock_or_the_project_changes(yard: Path) -> None:
    assert ["asked: "] == _setups(yard)
    assert ["asked: "] == _setups(yard)

    (yard / "requirements" / "dev.lock").write_text("a==2\n", encoding="utf-8")
    assert 2 == len(_setups(yard))

    with (yard / "pyproject.toml").open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert 3 == len(_setups(yard))


def test_setup_keeps_the_python_that_was_asked_for_until_another_is(yard: Path) -> None:
    _setups(yard)

    assert ["asked: ", "asked: python3.12"] == _setups(yard, "PYTHON=python3.12")
    assert 2 == len(_setups(yard)), "without PYTHON, what is there is kept"
    assert 2 == len(_setups(yard, "PYTHON=python3.12"))
    assert 3 == len(_setups(yard, "PYTHON=python3.13"))


def test_setup_runs_again_after_it_failed_or_esteira_went_away(yard: Path) -> None:
    _setups(yard)
    (yard / ".venv" / "bin" / "esteira").unlink()

    assert 2 == len(_setups(yard))


def test_setup_refuses_a_python_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("setup.sh", "index.sh"):
        shutil.copy(ROOT / "requirements" / name, tmp_path / "requirements")
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)

    done = subprocess.run(
        ["bash", "requirements/setup.sh", str(old)], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert 2 == done.returncode
    assert "3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
