"""Examines an installation: each check says what was looked at and what was found, and repairs nothing."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from esteira.settings import Settings

PIPELINE = (
    "kfp",
    "mlflow",
    "great_expectations",
    "pandas",
    "sklearn",
    "xgboost",
    "optuna",
    "onnx",
    "onnxruntime",
    "bentoml",
)


class Check(TypedDict):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def examine(settings: Settings) -> list[Check]:
    """Look at Python, packages, disk, store, ledger and registry; a check that raises is a failed check."""
    looks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": _packages,
        "home": lambda: _home(settings),
        "disk": lambda: _disk(settings),
        "store": lambda: _store(settings),
        "ledger": lambda: _ledger(settings),
        "uv": _uv,
        "gpu": _gpu,
    }
    checks: list[Check] = []
    for name, look in looks.items():
        try:
            checks.append({"name": name, "ok": True, "detail": look()})
        except Exception as error:  # noqa: BLE001 - whatever is wrong is what the reader came for
            checks.append({"name": name, "ok": False, "detail": str(error)[:300]})
    return checks


class _Wrong(Exception):
    pass


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise _Wrong(f"Python 3.11 to 3.13 is needed, but this is {sys.version.split()[0]}")
    return sys.version.split()[0]


def _packages() -> str:
    missing = [name for name in PIPELINE if importlib.util.find_spec(name) is None]
    if missing:
        raise _Wrong(f"not installed: {', '.join(missing)}; `make setup` installs them")
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("kfp", "mlflow", "bentoml", "onnxruntime")
    )


def _home(settings: Settings) -> str:
    home = settings.home
    if home.exists() and not os.access(home, os.W_OK):
        raise _Wrong(f"{home} must be writable")
    return f"{home} ({'exists' if home.exists() else 'will be made'})"


def _disk(settings: Settings) -> str:
    place = settings.home if settings.home.exists() else "."
    free = shutil.disk_usage(place).free / 2**30
    if free < 1:
        raise _Wrong(f"at least 1 GiB must be free, but {free:.2f} GiB is")
    return f"{free:.0f} GiB free"


def _store(settings: Settings) -> str:
    from esteira.store import Store

    runs = Store.open(settings.database_url, settings.tenant).list_runs()
    return f"{len(runs)} runs recorded"


def _ledger(settings: Settings) -> str:
    from esteira import ledger
    from esteira.store import Store

    verdict = ledger.verify(Store.open(settings.database_url, settings.tenant))
    if not verdict.ok:
        raise _Wrong(f"broken at entry {verdict.broken_at}: {verdict.reason}")
    return f"{verdict.entries} entries, unbroken"


def _uv() -> str:
    beside = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if beside is None:
        raise _Wrong("bentoml builds with uv, which is not on PATH; `make setup` installs it")
    return "found"


def _gpu() -> str:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    return "cuda" if "CUDAExecutionProvider" in providers else "none; the CPU is used"
