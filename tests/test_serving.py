"""The service answers over HTTP by the bundle it was given, refuses in one shape, follows its line, and leaves nobody behind."""

import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from esteira.settings import load_settings
from esteira.store import Store
from tests.serving_fakes import LINE, until
from tests.serving_lines import add_version, point_champion
from tests.serving_process import KEY, ROOT, Service, gone
from tests.small_bundle import OTHER, ROW, answers, make_bundle

# The real server on a real socket


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store's folder should be stands a file, until somebody removes it."""
    place = tmp_path_factory.mktemp("store") / "blocked"
    place.write_text("not a folder")
    return place


@pytest.fixture(scope="session")
def service(bundle: Path, blocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One real `bentoml serve` for this session; its store of predictions cannot be written at first."""
    folder = tmp_path_factory.mktemp("service")
    env = {"ESTEIRA_HOME": str(folder / "home"), "ESTEIRA_DATABASE_URL": f"sqlite:///{blocked}/store.db"}
    running = Service(["--bundle", str(bundle), "--port", "0", "--record"], env=env, log=folder / "log")
    try:
        yield running.wait_ready()
    finally:
        running.stop()


@pytest.mark.requirement("K-56")
def test_real_time_prediction_on_the_real_server(service: Service, bundle: Path, blocked: Path) -> None:
    """K-56. Done when: a 2-row request returns two predictions and two confidences; p95 for a cached tabular model < 100 ms.

    And its decision: input is checked against the schema (422 with field names), only what is deployed serves, and a store
    that cannot be written fails no prediction; the records come later.
    """
    status, document = service.predict(ROW, OTHER)

    expected = answers(bundle, [ROW, OTHER])
    assert 200 == status
    assert 2 == len(document["rows"])
    assert [answer["prediction"] for answer in expected] == [row["prediction"] for row in document["rows"]]
    assert [answer["confidence"] for answer in expected] == pytest.approx(
        [row["confidence"] for row in document["rows"]]
    )
    assert document["rows"][0]["confidence"] != document["rows"][1]["confidence"], "a confidence a row, not one a batch"
    assert document["bundle_id"] == document["model_id"]
    assert document["timestamp"].endswith("Z")

    connection = http.client.HTTPConnection(service.address, timeout=20)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    seconds = []
    for number in range(300):
        body = json.dumps({"rows": [{**ROW, "age": 18 + number % 60}]})
        begun = time.perf_counter()
        connection.request("POST", "/v1/predict", body, headers)
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - begun)
        assert 200 == response.status
    connection.close()
    p95 = statistics.quantiles(seconds, n=20)[18]
    assert p95 < 0.100, f"p95 is {p95 * 1000:.1f} ms"

    wrong = {**ROW, "visits": "three"}
    del wrong["city"]
    status, refused = service.predict(ROW, wrong)
    assert 422 == status
    assert {"city", "visits"} == {problem["field"] for problem in refused["error"]["details"]}
    assert {1} == {problem["row"] for problem in refused["error"]["details"]}

    status, other, _ = service.ask("/v1/predict?version=7", {"rows": [ROW]})
    assert (403, "not_deployed") == (status, other["error"]["code"])

    blocked.unlink()
    blocked.mkdir()
    store = None
    end = time.monotonic() + 20
    while time.monotonic() < end and not (store and len(store.list_predictions(LINE, limit=1000)) >= 303):
        time.sleep(0.1)
        if (blocked / "store.db").exists():
            store = Store.open(f"sqlite:///{blocked}/store.db")
    assert store is not None, "the records were never written"
    kept = store.list_predictions(LINE, limit=1000)
    assert 303 == len(kept)
    assert {200, 403, 422} == {entry.status for entry in kept}
    assert all(entry.elapsed_ms > 0 for entry in kept)


def test_only_livez_and_readyz_are_open_and_they_say_nothing(service: Service) -> None:
    for path in ("/livez", "/readyz"):
        assert (200, b"") == service.ask(path, key=None)[:2]
    for path in ("/metrics", "/openapi.json", "/healthz", "/", "/docs.json", "/schema.json", f"/v1/{LINE}/model"):
        assert 401 == service.ask(path, key=None)[0], path
        assert 401 == service.ask(path, key="not-the-key")[0], path
    for path in ("/metrics", "/openapi.json", "/healthz", "/docs.json", f"/v1/{LINE}/model"):
        assert 200 == service.ask(path)[0], path


def test_the_model_route_tells_contract_units_metrics_data_hash_and_device(service: Service) -> None:
    status, document, _ = service.ask(f"/v1/{LINE}/model")

    assert 200 == status
    assert ["age", "visits", "member", "city", "since", "note"] == [
        column["name"] for column in document["schema"]["columns"]
    ]
    assert ({"age": "years"}, {"roc_auc": 0.9}, "d" * 64) == (
        document["units"],
        document["metrics"],
        document["data_hash"],
    )
    assert ("cpu", "linear", False) == (document["device"], document["method"], document["simulated"])


def test_the_line_may_be_named_and_its_sign_may_be_escaped(service: Service) -> None:
    for path in (f"/v1/{LINE}/predict", f"/v1/{LINE.replace('@', '%40')}/predict"):
        assert 200 == service.predict(ROW, path=path)[0]


def test_the_label_is_ignored_and_an_odd_cell_is_a_warning_on_its_row(service: Service) -> None:
    status, document = service.predict({**ROW, "buys": "yes"}, {**ROW, "city": "Faro", "age": None, "visits": 99})

    assert 200 == status
    assert [] == document["rows"][0]["warnings"]
    assert {"city", "age", "visits"} == {warning["column"] for warning in document["rows"][1]["warnings"]}


def test_a_large_request_answers_in_order(service: Service) -> None:
    rows = [{**ROW, "age": 18 + number * 0.05} for number in range(1000)]
    status, document = service.predict(*rows)

    assert 200 == status
    sure = [row["probabilities"]["yes"] for row in document["rows"]]
    assert 1000 == len(sure)
    assert sorted(sure) == sure


def test_the_limits_hold_on_the_wire(service: Service) -> None:
    assert 422 == service.predict(*[ROW] * 1001)[0]
    status, document, _ = service.ask("/v1/predict", b" " * 10_000_001)
    assert (413, "body_too_large") == (status, document["error"]["code"])
    assert 400 == service.ask("/v1/predict", b'{"rows": [{"age": NaN}]}')[0]
    assert 415 == service.ask("/v1/predict", b"a,b", headers={"Content-Type": "text/csv"})[0]
    assert 200 == service.predict(ROW)[0]


def test_no_file_of_a_service_lies_outside_its_own_folder(service: Service) -> None:
    """Bento's stores, sockets and counters go away with the service, whatever BENTOML_HOME it has."""
    assert not (Path(os.environ["BENTOML_HOME"]) / "prometheus_multiproc_dir").exists()


# A line of the registry


def test_a_served_line_follows_its_champion_without_losing_a_request(tmp_path: Path) -> None:
    """And a champion that was tampered with is not taken: the last good one goes on."""
    settings = load_settings({"ESTEIRA_HOME": str(tmp_path / "home")}, file=None)
    store = Store.open(settings.database_url)
    ids = {}
    for number in (1, 2, 3):
        ids[number] = make_bundle(tmp_path / f"bundle{number}", weight=0.05 * number)
        add_version(store, settings, tmp_path / f"bundle{number}", number, ids[number])
        shutil.rmtree(tmp_path / f"bundle{number}")
    point_champion(store, 1, ids[1])
    service = Service(["--line", LINE, "--port", "0"], env={"ESTEIRA_HOME": str(settings.home)}, log=tmp_path / "log")
    seen: list[tuple[int, Any]] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            seen.append(service.predict(ROW))

    try:
        service.wait_ready()
        first = service.predict(ROW)[1]
        assert (1, ids[1]) == (first["version"], first["bundle_id"])
        hammering = threading.Thread(target=hammer)
        hammering.start()
        point_champion(store, 2, ids[2])
        followed = until(lambda: seen and seen[-1][1].get("version") == 2)
        stop.set()
        hammering.join()
        assert followed
        assert {200} == {status for status, _ in seen}
        assert {(1, ids[1]), (2, ids[2])} == {(answer["version"], answer["bundle_id"]) for _, answer in seen}
        assert first["rows"][0]["confidence"] < seen[-1][1]["rows"][0]["confidence"], "the other model really answers"

        graph = (
            Path(settings.artifacts) / "tabular--shop-buys" / "run3" / "artifacts" / "model" / "bundle" / "graph.onnx"
        )
        graph.write_bytes(graph.read_bytes()[::-1])
        point_champion(store, 3, ids[3])
        assert until(lambda: b"esteira_follow_errors_total{" in service.ask("/metrics")[1])
        assert 2 == service.predict(ROW)[1]["version"]
        assert until(lambda: len(store.list_predictions(LINE, limit=100_000)) >= len(seen) + 2)
    finally:
        stop.set()
        service.stop()


# How it starts and ends


def run_serving(*arguments: str, env: Mapping[str, str], timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False, env={**os.environ, **env},
    )  # fmt: skip


def test_serving_a_tampered_bundle_ends_with_1_and_a_letter(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "extra.json").write_text("{}")

    ended = run_serving(
        "serve", "--json", "--bundle", str(tmp_path / "bundle"), "--port", "0", env={"ESTEIRA_API_KEY": KEY}
    )

    assert 1 == ended.returncode
    assert "" == ended.stdout
    assert "bundle_unlisted" == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), "usage"), (("--bundle", "x", "--line", "tabular"), "usage"), (("--line", "tabular@nobody"), "no_champion")],
)
def test_serving_what_cannot_be_served_ends_at_once(tmp_path: Path, arguments: tuple[str, ...], code: str) -> None:
    env = {"ESTEIRA_API_KEY": KEY, "ESTEIRA_HOME": str(tmp_path)}
    ended = run_serving("serve", "--json", *arguments, "--port", "0", env=env)

    assert ended.returncode in (1, 2)
    assert code == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


def test_cuda_without_a_gpu_fails_at_start(bundle: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    env = {"ESTEIRA_API_KEY": KEY, "ESTEIRA_DEVICE": "cuda", "ESTEIRA_HOME": str(tmp_path)}
    ended = run_serving("serve", "--json", "--bundle", str(bundle), "--port", "0", env=env)

    assert 2 == ended.returncode
    assert "no_gpu" == json.loads(ended.stderr.strip().splitlines()[-1])["error"]["code"]


def test_a_key_is_made_once_and_kept_for_the_owner_only(bundle: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "ESTEIRA_API_KEY"}
    # A bundle that is refused: the key is made before, and nothing is served.
    ended = run_serving(
        "serve", "--bundle", str(tmp_path), "--port", "0", env={**env, "ESTEIRA_HOME": str(tmp_path / "home")}
    )

    key = (tmp_path / "home" / "api_key").read_text().strip()
    assert key in ended.stderr
    assert 0o600 == (tmp_path / "home" / "api_key").stat().st_mode & 0o777


@pytest.mark.slow
def test_no_process_is_left_however_the_service_ends(bundle: Path, tmp_path: Path) -> None:
    """SIGTERM; Ctrl-C; kill -9 of the supervisor, of Bento's master; the end of the process that started it."""
    env = {"ESTEIRA_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    arguments = ["--bundle", str(bundle), "--port", "0"]
    starter = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(300)"
    command = (sys.executable, "-c", starter, sys.executable, "-m", "serving", "serve")
    services = {
        name: Service(arguments, env=env, log=tmp_path / f"{name}.log", command=command if name == "starter" else ())
        for name in ("term", "interrupt", "supervisor", "master", "starter")
    }
    trees: dict[str, list[int]] = {}
    try:
        for name, service in services.items():
            service.wait_ready(120)
            trees[name] = service.tree()
            assert (4 if name == "starter" else 3) == len(trees[name]), "supervisor, master and worker"

        assert 0 == services["term"].stop(signal.SIGTERM)
        assert 0 == services["interrupt"].stop(signal.SIGINT)
        os.kill(services["supervisor"].process.pid, signal.SIGKILL)
        os.kill(trees["master"][1], signal.SIGKILL)
        os.kill(services["starter"].process.pid, signal.SIGKILL)

        for name, tree in trees.items():
            assert gone(tree, 20), (
                f"after the end of {name} some live on: {(tmp_path / f'{name}.log').read_text()[-800:]}"
            )
        services["supervisor"].process.wait(10)
        assert 2 == services["master"].process.wait(10), "a service that ended by itself is a failure"
        # What the killed supervisor could not remove goes with the next start.
        assert 1 == len(list(tmp_path.glob("esteira-serve-*")))
        run_serving("serve", "--bundle", str(tmp_path / "none"), "--port", "0", env=env)
        assert [] == list(tmp_path.glob("esteira-serve-*"))
    finally:
        for service in services.values():
            service.stop(signal.SIGKILL)
        for tree in trees.values():
            for pid in tree[1:]:
                if not gone([pid], 0):
                    os.kill(pid, signal.SIGKILL)
