"""Deploy writes a Bento that needs nothing of this machine, then moves the alias; what fails before leaves the alias alone."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from components import deploy
from esteira.errors import OutsideError, Refused, SourceError
from esteira.registry import Registry
from esteira.settings import Settings, load_settings
from tests.serving_process import KEY, ROOT, Service, descendants, gone
from tests.small_bundle import ROW, answers, make_bundle

# MLflow's own mappers, when a registration imports it.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*")

LINE = "tabular@shop-buys"
PASSED = {"verdict": "pass", "rules": [{"rule": "made up", "outcome": "PASS", "value": 1, "bound": 0, "n": 2}]}


# A rehearsal is what test_deploy_release.py looks at; here it would only take its time.
PLAIN = deploy.Params(rehearse=False)


class Released(NamedTuple):
    """Two registered versions of a line, the first of which was deployed."""

    settings: Settings
    bundles: dict[int, Path]
    out: Path
    report: deploy.Report


def receipt(folder: Path, version: int, bundle_id: str, line: str = LINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "receipt.json"
    path.write_text(
        json.dumps({"line": line, "version": version, "bundle_id": bundle_id, "uri": "", "mlflow_run_id": ""})
    )
    return path


def identity(bundle: Path) -> str:
    return (bundle / "manifest.sha256").read_text().strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("deploy") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESTEIRA_HOME", str(place))
        patch.setenv("ESTEIRA_ACTOR", "the tests")
        yield place


@pytest.fixture(scope="module")
def released(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("released")
    settings = load_settings()
    registry = Registry(settings)
    bundles = {}
    for number in (1, 2):
        bundles[number] = folder / f"bundle{number}"
        make_bundle(bundles[number], weight=0.05 * number, card=True)
        version = registry.register(
            LINE, bundles[number], run_id=f"run{number}", data_hash="d" * 64, code_revision="unknown", params_hash="p" * 64,
            metrics={"roc_auc": 0.9}, verdict=PASSED,
        )  # fmt: skip
        assert number == version.version
    report = deploy.run(
        receipt=receipt(folder / "one", 1, identity(bundles[1])),
        bundle=bundles[1],
        line=LINE,
        out=folder / "out",
        params=PLAIN,
    )
    return Released(settings, bundles, folder / "out", report)


def test_the_alias_moves_to_the_deployed_version_and_the_ledger_says_who_and_why(released: Released) -> None:
    registry = Registry(released.settings)
    champion = registry.resolve(LINE)

    assert champion is not None
    assert (1, identity(released.bundles[1])) == (champion.version, champion.bundle_id)
    assert released.report == deploy.Report.model_validate_json((released.out / "deployment.json").read_text())
    assert (1, "champion", None) == (released.report.version, released.report.alias, released.report.previous)
    moves = [row for row in registry.store.ledger_rows(LINE) if row["kind"] == "alias"]
    assert "the tests" == moves[-1]["actor"]
    # Where a line says that it is not rehearsed, so does the move.
    assert {"policy": "automatic", "rehearsal": None}.items() <= json.loads(moves[-1]["evidence"]).items()


def test_no_process_is_left_behind(released: Released) -> None:
    assert [os.getpid()] == [
        pid for pid in descendants(os.getpid()) if "serving" in _command(pid) or pid == os.getpid()
    ]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_bento_holds_no_path_of_this_machine_and_no_secret(released: Released) -> None:
    bento = released.out / "bento"
    needles = [
        str(place).encode() for place in (ROOT, released.out.parent, released.settings.home, tempfile.gettempdir())
    ]
    found = [
        (str(path.relative_to(bento)), needle)
        for path in bento.rglob("*")
        # What Bento writes for containers has paths of the container, such as /tmp.
        if path.is_file() and path.parent.name != "docker"
        for needle in needles
        if needle in path.read_bytes()
    ]

    assert [] == found
    assert [] == list(bento.rglob("__pycache__"))
    assert [] == list(bento.rglob("*.pyc"))
    assert "ESTEIRA_API_KEY" not in (bento / "env" / "docker" / "Dockerfile").read_text()


def test_a_bento_carries_code_model_and_locked_requirements(released: Released) -> None:
    bento = released.out / "bento"

    assert {"esteira", "families", "serving", "model"} <= {path.name for path in (bento / "src").iterdir()}
    assert identity(released.bundles[1]) == identity(bento / "src" / "model" / "bundle")
    requirements = (bento / "env" / "python" / "requirements.txt").read_text()
    assert (ROOT / "requirements" / "serving.lock").read_text() == requirements
    names = set(re.findall(r"^([a-z0-9-]+)==", requirements, re.MULTILINE))
    assert {"bentoml", "onnxruntime", "msgspec"} <= names
    assert set() == names & {"kfp", "great-expectations", "mlflow", "pandas", "scikit-learn"}


@pytest.fixture(scope="module")
def moved_bento(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The Bento copied elsewhere and served by plain `bentoml serve FOLDER`; its folder and address."""
    place = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(released.out / "bento", place / "bento")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ESTEIRA_", "PYTHONPATH"))}
    env |= {"ESTEIRA_API_KEY": KEY, "BENTOML_HOME": str(place / "store"), "TMPDIR": str(place)}
    with (place / "log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", str(place / "bento"), "--host", "127.0.0.1", "--port", str(port)],
            cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield place / "bento", f"127.0.0.1:{port}"
    finally:
        tree = descendants(running.pid)
        running.terminate()
        running.wait(30)
        assert gone(tree), "bentoml serve left a process behind"


def test_bentoml_serves_the_folder_anywhere_and_answers_with_the_registered_version(
    moved_bento: tuple[Path, str], released: Released
) -> None:
    service = Service.__new__(Service)
    service.address = moved_bento[1]
    end = time.monotonic() + 60
    while not _ready(service):
        assert time.monotonic() < end, (moved_bento[0].parent / "log").read_text()[-3000:]
        time.sleep(0.1)

    status, document = service.predict(ROW)

    expected = answers(released.bundles[1], [ROW])[0]
    assert 200 == status
    assert (LINE, 1, identity(released.bundles[1])) == (document["line"], document["version"], document["bundle_id"])
    assert expected["prediction"] == document["rows"][0]["prediction"]
    assert expected["confidence"] == pytest.approx(document["rows"][0]["confidence"], abs=1e-9)
    assert 401 == service.ask("/docs.json", key=None)[0]


def _ready(service: Service) -> bool:
    try:
        return service.ask("/readyz", key=None)[0] == 200
    except OSError:
        return False


def test_a_bento_imports_everything_it_needs_from_itself(released: Released, tmp_path: Path) -> None:
    """With this repository hidden, every module of the Bento is found in the Bento or among installed libraries."""
    shutil.copytree(released.out / "bento" / "src", tmp_path / "src")
    script = f"""
import sys
sys.path[:] = [{str(tmp_path / "src")!r}] + [p for p in sys.path if p and p != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import serving.service, serving.http, serving.metrics, serving.records
from serving.deployments import Folder
from serving.predictor import load
source = serving.service.source_of(serving.service.load_settings({{}}, file=None))
line = source.lines[0]
predictor = load(source.folder(source.current(line)), source.current(line))
places = {{name: module.__file__ for name, module in sys.modules.items()
          if name.split(".")[0] in ("esteira", "families", "serving") and getattr(module, "__file__", None)}}
outside = [place for place in places.values() if not place.startswith({str(tmp_path)!r})]
heavy = [name for name in ("pandas", "sklearn", "mlflow", "kfp", "great_expectations", "onnx") if name in sys.modules]
print(predictor.deployment.version, outside, heavy)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
    )

    assert "1 [] []" == ended.stdout.strip(), ended.stderr[-2000:]


def test_a_bento_whose_model_was_changed_does_not_start(released: Released, tmp_path: Path) -> None:
    shutil.copytree(released.out / "bento", tmp_path / "bento")
    (tmp_path / "bento" / "src" / "model" / "bundle" / "graph.onnx").write_bytes(b"x")

    env = {name: value for name, value in os.environ.items() if name != "ESTEIRA_TEST_DATA"}
    env |= {"ESTEIRA_API_KEY": KEY, "BENTOML_HOME": str(tmp_path / "store")}
    ended = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", str(tmp_path / "bento"), "--port", "0"],
        capture_output=True, text=True, cwd=tmp_path, env=env, check=False, timeout=60,
    )  # fmt: skip

    assert 0 != ended.returncode
    assert "graph.onnx" in ended.stderr
    assert "do not mend it" in ended.stderr


def test_the_next_version_replaces_bento_and_champion_and_the_former_is_told(
    released: Released, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(released.out, out)
    report = deploy.run(
        receipt=receipt(tmp_path, 2, identity(released.bundles[2])),
        bundle=released.bundles[2],
        line=LINE,
        out=out,
        params=deploy.Params(reason="a better one", rehearse=False),
    )
    registry = Registry(released.settings)

    assert (2, 1) == (report.version, report.previous)
    assert {"champion": 2, "production": 2, "previous": 1} == {
        alias: version
        for alias, version in registry.aliases(LINE).items()
        if alias in ("champion", "production", "previous")
    }
    assert identity(released.bundles[2]) == identity(out / "bento" / "src" / "model" / "bundle")
    assert {"bento", "deployment.json"} == {path.name for path in out.iterdir()}

    entries = len(list(registry.store.ledger_rows(LINE)))
    again = deploy.run(receipt=tmp_path / "receipt.json", bundle=released.bundles[2], line=LINE, out=out, params=PLAIN)
    assert (2, 1, report.bento) == (again.version, again.previous, again.bento), (
        "the same bundle and code give the same tag"
    )
    assert entries == len(list(registry.store.ledger_rows(LINE))), "what stands already is not moved again"


@pytest.fixture
def champion(released: Released) -> Iterator[None]:
    """Whatever the test does, the champion and the ledger stay as they were."""
    registry = Registry(released.settings)
    before = registry.aliases(LINE), len(list(registry.store.ledger_rows(LINE)))
    yield
    assert before == (registry.aliases(LINE), len(list(registry.store.ledger_rows(LINE))))


@pytest.mark.usefixtures("champion")
class TestTheAliasDoesNotMove:
    """Nothing that is wrong before the move changes what serves."""

    def test_without_a_receipt(self, released: Released, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="receipt"):
            deploy.run(
                receipt=tmp_path / "none.json",
                bundle=released.bundles[1],
                line=LINE,
                out=tmp_path / "out",
                params=PLAIN,
            )

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"line": "tabular", "version": "x", "bundle_id": ""}'])
    def test_when_the_receipt_is_none(self, released: Released, tmp_path: Path, text: str) -> None:
        (tmp_path / "receipt.json").write_text(text)
        with pytest.raises(SourceError, match="receipt"):
            deploy.run(
                receipt=tmp_path / "receipt.json",
                bundle=released.bundles[1],
                line=LINE,
                out=tmp_path / "out",
                params=PLAIN,
            )

    def test_with_another_lines_receipt(self, released: Released, tmp_path: Path) -> None:
        other = receipt(tmp_path, 1, identity(released.bundles[1]), line="tabular@other")
        with pytest.raises(Refused, match="tabular@other"):
            deploy.run(receipt=other, bundle=released.bundles[1], line=LINE, out=tmp_path / "out", params=PLAIN)

    def test_when_the_bundle_is_not_the_registered_one(self, released: Released, tmp_path: Path) -> None:
        first = receipt(tmp_path, 1, identity(released.bundles[1]))
        with pytest.raises(Refused, match="asked for"):
            deploy.run(receipt=first, bundle=released.bundles[2], line=LINE, out=tmp_path / "out", params=PLAIN)

    def test_when_a_file_of_the_bundle_was_flipped(self, released: Released, tmp_path: Path) -> None:
        shutil.copytree(released.bundles[1], tmp_path / "bundle")
        (tmp_path / "bundle" / "golden.json").write_text("{}")
        first = receipt(tmp_path, 1, identity(released.bundles[1]))
        with pytest.raises(Refused, match=r"golden\.json"):
            deploy.run(receipt=first, bundle=tmp_path / "bundle", line=LINE, out=tmp_path / "out", params=PLAIN)

    def test_when_the_bento_cannot_be_written(self, released: Released, tmp_path: Path) -> None:
        (tmp_path / "out" / "bento").mkdir(parents=True)
        (tmp_path / "out" / "bento" / "precious.txt").write_text("not a Bento")
        first = receipt(tmp_path, 1, identity(released.bundles[1]))
        with pytest.raises(Refused, match="holds other things"):
            deploy.run(receipt=first, bundle=released.bundles[1], line=LINE, out=tmp_path / "out", params=PLAIN)
        assert "not a Bento" == (tmp_path / "out" / "bento" / "precious.txt").read_text()

    def test_when_the_disk_is_full(self, released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deploy, "_start_build", _full_disk)
        first = receipt(tmp_path, 1, identity(released.bundles[1]))
        with pytest.raises(OutsideError, match="fit on the disk") as caught:
            deploy.run(receipt=first, bundle=released.bundles[1], line=LINE, out=tmp_path / "out", params=PLAIN)
        assert "disk_full" == caught.value.code


def _full_disk(bundle: Path, to: Path, line: str, version: int) -> "subprocess.Popen[str]":
    """The real build, in its own process, on a disk that takes no copy of the code."""
    script = (
        "import errno, shutil, sys\n"
        "def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "shutil.copytree = full\n"
        "from serving.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "build", "--json", "--bundle", str(bundle), "--out", str(to), "--line", line],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", ["deploy.built", "deploy.moved"])
def test_a_kill_leaves_a_whole_state_and_the_next_run_ends_it(released: Released, tmp_path: Path, point: str) -> None:
    registry = Registry(released.settings)
    before = registry.resolve(LINE)
    assert before is not None
    wanted = 3 - before.version
    path = receipt(tmp_path, wanted, identity(released.bundles[wanted]))
    script = (
        "import sys; from pathlib import Path; from components import deploy\n"
        "receipt, bundle, out = map(Path, sys.argv[1:])\n"
        f"deploy.run(receipt=receipt, bundle=bundle, line={LINE!r}, out=out, params=deploy.Params(rehearse=False))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(path), str(released.bundles[wanted]), str(tmp_path / "out")],
        env={**os.environ, "ESTEIRA_CRASH_AT": point}, cwd=ROOT, check=False, timeout=120, capture_output=True,
    )  # fmt: skip
    now = registry.resolve(LINE)

    assert -9 == killed.returncode
    assert now is not None
    assert (before.version if point == "deploy.built" else wanted) == now.version
    assert not (tmp_path / "out" / "deployment.json").exists()
    report = deploy.run(receipt=path, bundle=released.bundles[wanted], line=LINE, out=tmp_path / "out", params=PLAIN)
    assert wanted == report.version
    after = registry.resolve(LINE)
    assert after is not None
    assert wanted == after.version
