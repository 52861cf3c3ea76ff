"""A real service with two workers: a rollout by the real commands splits its traffic, and a rollback holds for the next request."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from esteira.registry import Registry
from esteira.rollout import split as splits
from esteira.rollout.router import bucket, to_candidate
from esteira.settings import Settings
from esteira.store.rollouts import Rollouts
from tests.rollouts import UNREHEARSED
from tests.serving_fakes import LINE, until
from tests.serving_process import KEY, ROOT, Service
from tests.small_bundle import OTHER, ROW, answers, make_bundle, resealed
from tests.test_registry import lead

DATA = "da" * 32
PASS = {"verdict": "pass", "rules": [{"rule": "better", "outcome": "PASS", "value": 0.9, "bound": 0.5, "n": 100}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two registered versions of one line, the first its champion."""
    folder = tmp_path_factory.mktemp("split-served")
    settings = Settings(home=folder / "made", actor="ana")
    registry = Registry(settings)
    registry.store.register_dataset(name="shop", content_hash=DATA, created_by="ana", row_count=12_000)
    for number in (1, 2):
        bundle = folder / f"bundle{number}"
        make_bundle(bundle, weight=0.01 * number, card=True)
        resealed(bundle, golden={"rows": [ROW, OTHER], "answers": answers(bundle, [ROW, OTHER])})
        registry.register(
            LINE, bundle, run_id=f"run-{number}", data_hash=DATA, code_revision="c0ffee", params_hash="ab" * 32,
            metrics={"roc_auc": 0.9}, verdict=PASS, policy=UNREHEARSED,
        )  # fmt: skip
    lead(registry, 1, line=LINE)
    registry.store.close()
    # A copy finds its bundles below it only when they are not where they were made.
    return settings.home.rename(folder / "home")


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Iterator[Service]:
    env = {"ESTEIRA_HOME": str(home), "ESTEIRA_WORKERS": "2", "ESTEIRA_REQUEST_LOG": "50"}
    started = Service(["--line", LINE, "--port", "0"], env=env, log=tmp_path / "log")
    try:
        yield started.wait_ready()
    finally:
        started.stop()


def esteira(home: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *arguments, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "ESTEIRA_HOME": str(home)},
    )  # fmt: skip
    assert 0 == done.returncode, done.stdout + done.stderr
    return json.loads(done.stdout)


def answer(service: Service, unit: str, request_id: str = "") -> tuple[int, str | None]:
    """Version and arm of one answer; every request has a connection of its own, so it meets either worker."""
    headers = {"X-Unit-Id": unit} | ({"X-Request-Id": request_id} if request_id else {})
    status, document, found = service.ask("/v1/predict", {"rows": [ROW]}, headers=headers)
    assert 200 == status, document
    return int(document["version"]), found.get("x-esteira-arm")


def sums_when(home: Path, test_id: str, served: int) -> Any:
    """The sums once so many units are in the store; workers write them twice a second."""
    rollouts = Rollouts(Registry(Settings(home=home)).store)

    def there() -> bool:
        arms = rollouts.sums(test_id).get(0, {})
        return sum(sums.served for sums in arms.values()) >= served

    assert until(there, 20), rollouts.sums(test_id)
    return rollouts.sums(test_id)[0]


@pytest.mark.slow
@pytest.mark.requirement("H-44")
def test_a_rollout_s_traffic_is_split_counted_labelled_and_taken_back(home: Path, service: Service) -> None:
    """H-44's Done when: next request after rollback is answered by the champion.

    By the real commands, store and split, through a service of two workers that nobody restarts.
    """
    started = esteira(home, "rollout", "start", LINE, "--version", "2", "--reason", "released by the gate")
    split = splits.read(splits.path(home, LINE))
    assert split is not None
    assert (10.0, split.test_id) == (started["percent"], started["test_id"])
    units = [f"user-{number}" for number in range(300)]
    expected = {unit: 2 if to_candidate(10, bucket(split.salt, split.test_id, unit)) else 1 for unit in units}
    early = next(unit for unit in units if expected[unit] == 2)
    assert until(lambda: [answer(service, early)[1] for _ in range(6)] == ["candidate"] * 6), "both workers have it"

    before = time.time()
    found = {unit: answer(service, unit, f"request-{unit}") for unit in units}
    print(f"{len(units)} requests in {time.time() - before:.1f} s")
    assert expected == {unit: version for unit, (version, _) in found.items()}
    assert {(1, "control"), (2, "candidate")} == set(found.values())

    labelled = [label(service, f"request-{unit}") for unit in (early, next(u for u in units if expected[u] == 1))]
    assert ["candidate", "control"] == [said["arm"] for said in labelled]
    arms = sums_when(home, split.test_id, len(units))
    assert sum(version == 2 for version in expected.values()) <= arms["candidate"].served
    assert (1, 1) == (arms["candidate"].labelled, arms["control"].labelled)
    assert (0, 0) == (arms["candidate"].errors, arms["control"].errors)
    told = esteira(home, "rollout", "status", LINE)
    assert arms["candidate"].served == told["arms"]["candidate"]["served"]
    kept = (home / "requests" / f"{LINE}.jsonl").read_text(encoding="utf-8").splitlines()
    assert ROW == json.loads(kept[-1])["rows"][0]

    back = esteira(home, "rollback", LINE, "--reason", "it was worse")
    assert [(1, None)] * 12 == [answer(service, early) for _ in range(12)]
    assert (2, 1) == (back["from"], back["to"])


def label(service: Service, request_id: str) -> Mapping[str, Any]:
    """A truth; the worker that gave the answer may have it still in hand when another is told the truth."""
    said: list[Any] = []

    def counted() -> bool:
        status, document, _ = service.ask("/v1/feedback", {"request_id": request_id, "truth": "yes"})
        said.append(document)
        return status == 200

    assert until(counted), said
    found: Mapping[str, Any] = said[-1]
    return found


@pytest.mark.slow
def test_an_alias_that_is_rolled_back_is_followed_at_once(home: Path, service: Service) -> None:
    """The champion of before is still in memory, and a beacon says that the alias moved: no period is waited for."""
    registry = Registry(Settings(home=home, actor="ana"))
    lead(registry, 2, line=LINE)
    assert until(lambda: {answer(service, "x")[0] for _ in range(6)} == {2})
    back = esteira(home, "rollback", LINE, "--reason", "it was worse")

    assert (2, 1) == (back["from"], back["to"])
    assert until(lambda: {answer(service, "x")[0] for _ in range(6)} == {1}, 3)


@pytest.mark.slow
def test_a_second_service_serves_the_challenger(home: Path, service: Service, tmp_path: Path) -> None:
    esteira(home, "rollout", "start", LINE, "--version", "2", "--reason", "released by the gate")
    second = Service(
        ["serve", LINE, "--alias", "challenger", "--port", "0"],
        env={"ESTEIRA_HOME": str(home)}, log=tmp_path / "second.log", command=[sys.executable, "-m", "esteira.cli"],
    )  # fmt: skip
    try:
        second.wait_ready()
        assert (2, "candidate") == answer(second, "anybody")
    finally:
        second.stop()


@pytest.mark.slow
def test_what_has_no_challenger_cannot_be_served_by_that_alias(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", "serve", LINE, "--alias", "challenger", "--port", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "ESTEIRA_HOME": str(home)},
    )  # fmt: skip

    assert 1 == done.returncode
    assert "has no challenger" in done.stderr


@pytest.mark.slow
def test_schemathesis_finds_nothing_on_the_routes_of_a_line_with_a_rollout(
    home: Path, service: Service, tmp_path: Path
) -> None:
    """Truths, and predictions with and without a unit, are as the document of the running service describes them."""
    esteira(home, "rollout", "start", LINE, "--version", "2", "--reason", "released by the gate")
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://{service.address}/openapi.json",
         "-H", f"Authorization: Bearer {KEY}", "--seed", "42", "--max-examples", "40", "--continue-on-failure",
         "--include-path-regex", "feedback|/v1/predict"],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout[-6000:] + done.stderr[-1000:]
    assert re.search(r"Tested:\s+3\b", done.stdout), done.stdout[-3000:]
