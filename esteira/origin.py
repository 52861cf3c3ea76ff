"""What made a model: the revision of this code and the versions of the libraries. It reads git and the environment only."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_LIBRARIES = (
    "esteira", "numpy", "scipy", "onnx", "onnxruntime", "scikit-learn", "xgboost", "xgboost-cpu", "lightgbm", "optuna", "torch",
)  # fmt: skip


def code_revision() -> str:
    """`$ESTEIRA_CODE_REVISION`, else git's commit of this code, with `-dirty` when tracked files differ from it, else `unknown`."""
    told = os.environ.get("ESTEIRA_CODE_REVISION")
    if told:
        return told
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def dependencies() -> dict[str, str]:
    """Versions of what made the model: Python and those of the listed libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
