"""An environment that has what requirements/serving.lock lists and nothing else, for what must work without the rest."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path) -> tuple[Path, set[str]]:
    """Install the lock into `folder/venv`, and copy what serving needs of the code to `folder/code`.

    Returns:
        The environment's Python, and the names of the packages that it has.
    """
    script = (
        f'python="{sys.executable}"; . requirements/index.sh; uv="{Path(sys.executable).parent}/uv"; '
        f'"$uv" venv --quiet --python "$python" "{folder}/venv" && VIRTUAL_ENV="{folder}/venv" '
        '"$uv" pip sync --quiet --require-hashes requirements/serving.lock'
    )
    subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True, timeout=300)
    for room in ("esteira", "families"):
        shutil.copytree(ROOT / room, folder / "code" / room, ignore=shutil.ignore_patterns("__pycache__"))
    installed = {path.name.split("-")[0] for path in folder.glob("venv/lib/*/site-packages/*.dist-info")}
    return folder / "venv" / "bin" / "python", installed
