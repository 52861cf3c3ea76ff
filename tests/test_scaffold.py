"""`make family NAME=x` writes a folder, a params block and an overlay that keep every rule from the first minute."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esteira.errors import ConfigError, Refused
from pipelines.plan import Project
from pipelines.scaffold import scaffold

ROOT = Path(__file__).resolve().parents[1]
CONFORMANCE = """
import pytest

from esteira.automl import search as engine
from families.cut_time import FAMILY
from tests.conformance import FamilyConformance


@pytest.fixture(scope="module")
def search():
    return engine


@pytest.fixture(scope="module")
def family():
    return FAMILY


class TestConformance(FamilyConformance): ...
"""


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """What the scaffold reads of a repository."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (tmp_path / "families" / "tabular").mkdir(parents=True)
    for name in ("gate.yaml", "resources.yaml"):
        shutil.copy(ROOT / "families" / "tabular" / name, tmp_path / "families" / "tabular")
    return tmp_path


def test_a_family_gets_its_eight_things_its_block_and_its_overlay(yard: Path) -> None:
    before = (yard / "params.yaml").read_text(encoding="utf-8")

    scaffold("cut_time", yard)

    names = {path.name for path in (yard / "families" / "cut_time").iterdir()}
    assert {"README.md", "contract.py", "features.py", "model.py", "metrics.py", "gate.yaml", "resources.yaml"} <= names
    text = (yard / "params.yaml").read_text(encoding="utf-8")
    project = Project.model_validate(yaml.safe_load(text))
    assert {"cut_time", "tabular"} <= set(project.families)
    assert before.splitlines()[:2] == text.splitlines()[:2], "comments stay"
    overlay = yaml.safe_load(
        (yard / "manifests" / "overlays" / "cut-time" / "kustomization.yaml").read_text(encoding="utf-8")
    )
    assert ["ESTEIRA_LINES=cut_time"] == overlay["configMapGenerator"][0]["literals"]


@pytest.mark.parametrize("name", ["", "Cut", "1st", "cut-time", "../x", "x" * 41])
def test_a_bad_name_is_refused(name: str, yard: Path) -> None:
    with pytest.raises(ConfigError, match="a family's name"):
        scaffold(name, yard)


def test_nothing_is_overwritten(yard: Path) -> None:
    scaffold("cut_time", yard)
    written = {path: path.read_bytes() for path in yard.rglob("*") if path.is_file()}

    with pytest.raises(Refused, match="overwrites nothing"):
        scaffold("cut_time", yard)

    assert written == {path: path.read_bytes() for path in yard.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_family_is_green_from_the_first_minute(tmp_path: Path) -> None:
    """In a copy of the tree: formatted, linted, typed, within the import contracts, conformant, its overlay renders."""
    for part in ("esteira", "families", "components", "pipelines", "serving", "tests", "manifests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "params.yaml"):
        shutil.copy(ROOT / part, tmp_path)
    scaffold("cut_time", tmp_path)
    (tmp_path / "tests" / "test_cut_time.py").write_text(CONFORMANCE, encoding="utf-8")
    folder = "families/cut_time"

    for words in (
        ["-m", "families.cut_time.sample"],
        ["-m", "ruff", "format", "--check", folder],
        ["-m", "ruff", "check", folder],
        ["-m", "mypy", folder],
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cut_time.py"],
    ):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert 0 == done.returncode, f"{words}: {done.stdout[-3000:]}{done.stderr[-2000:]}"
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        subprocess.run(
            [kubectl, "kustomize", str(tmp_path / "manifests" / "overlays" / "cut-time")],
            check=True,
            capture_output=True,
        )
