"""What every test may count on: a clean environment, a home of its own, the public data or a skip that says why."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before any test module imports a library. Spinning libgomp threads slow fits a hundred times, at random.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["MPLBACKEND"] = "Agg"
# A suite in the background of a script has SIGINT ignored, and its children inherit that; what is handled they do not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test calls home.
for _name, _value in {
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DVC_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "1",
    # Moto's server answers any key; no test may reach a real account.
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}.items():
    os.environ[_name] = _value

# The developer's own settings must not reach a test, nor a test the developer's home.
_TEST_DATA = os.environ.get("ESTEIRA_TEST_DATA") or str(ROOT.parent / "shared" / "data")
for _name in [name for name in os.environ if name.startswith("ESTEIRA_") or name in {"DATABASE_URL", "REDIS_URL"}]:
    del os.environ[_name]
os.environ["ESTEIRA_TEST_DATA"] = _TEST_DATA
_HOME = tempfile.mkdtemp(prefix="esteira-tests-")
os.environ["ESTEIRA_HOME"] = str(Path(_HOME) / "home")
# MLflow and BentoML write below these when they are asked for nothing else.
os.environ["BENTOML_HOME"] = str(Path(_HOME) / "bentoml")

pytest_plugins = ("tests.requirements",)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets, `$ESTEIRA_TEST_DATA`."""
    folder = Path(_TEST_DATA)
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets: {folder.name}/ is absent; set ESTEIRA_TEST_DATA to their folder")
    return folder


@pytest.fixture
def esteira_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `$ESTEIRA_HOME`, with the working directory in a fresh folder beside it."""
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("ESTEIRA_HOME", str(home))
    monkeypatch.chdir(work)
    return home


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL of this session, as a SQLAlchemy URL."""
    pgserver = pytest.importorskip("pgserver", reason="needs pgserver, which has no wheel for this Python")
    folder = Path(_HOME) / "postgres"
    server = pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()
