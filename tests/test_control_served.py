"""A real service of two workers is steered through HTTP by named keys, and its document of these routes is true."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving_fakes import LINE, until
from tests.serving_process import KEY, ROOT, Service
from tests.small_bundle import ROW
from tests.test_split_served import answer, esteira, home, made, service

__all__ = ["home", "made", "service"]

ROLLOUT = f"/v1/{LINE}/rollout"


@pytest.fixture
def keys(home: Path) -> dict[str, str]:
    """Those of an admin, who gave the others, an approver and a viewer; made by the real command."""
    found: dict[str, str] = {}
    for name, role in (("ana", "admin"), ("bob", "approver"), ("vera", "viewer")):
        done = subprocess.run(
            [sys.executable, "-m", "esteira.cli", "keys", "add", name, "--role", role], cwd=ROOT, capture_output=True,
            text=True, timeout=120, env={**os.environ, "ESTEIRA_HOME": str(home), "ESTEIRA_KEY": found.get("ana", "")},
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr
        found[name] = done.stdout.split()[-1]
    return found


def move(service: Service, verb: str, key: str, **told: Any) -> tuple[int, Any]:
    status, document, _ = service.ask(
        f"{ROLLOUT}/{verb}", {"reason": "by HTTP", **told}, headers={"X-Esteira-Key": key}
    )
    return status, document


@pytest.mark.slow
@pytest.mark.requirement("H-46")
def test_a_rollout_is_steered_through_http_while_predictions_go_on(
    home: Path, keys: dict[str, str], service: Service
) -> None:
    """H-46 Done when: paused never advances. Start, pause, resume, promote, rollback, status through CLI and API, with actor and
    reason; and whoever predicts meanwhile gets every answer."""
    stop, asked, slowest = threading.Event(), [0], [0.0]

    def predict() -> None:
        while not stop.is_set():
            begun = time.perf_counter()
            status, document = service.predict(ROW)
            assert 200 == status, document
            asked[0], slowest[0] = asked[0] + 1, max(slowest[0], time.perf_counter() - begun)
            time.sleep(0.01)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        status, begun = move(service, "start", keys["bob"], version=2)
        assert 200 == status, begun
        assert ("running", 10.0) == (begun["status"], begun["percent"])
        assert until(lambda: {answer(service, f"u{n}")[0] for n in range(60)} == {1, 2})
        assert 403 == move(service, "pause", keys["vera"])[0]
        assert "paused" == move(service, "pause", keys["bob"])[1]["status"]
        for _ in range(3):
            assert "hold" == esteira(home, "rollout", "tick", LINE)["done"]
        assert ("paused", 10.0) == tuple(service.ask(ROLLOUT)[1][name] for name in ("status", "percent"))
        assert "running" == move(service, "resume", keys["bob"])[1]["status"]
        assert "rolled_back" == move(service, "rollback", keys["bob"])[1]["status"]
        assert {1} == {answer(service, f"u{n}")[0] for n in range(60)}, "the next request is the champion's"
    finally:
        stop.set()
        thread.join()
    print(f"{asked[0]} predictions meanwhile, the slowest took {slowest[0] * 1000:.0f} ms")
    assert asked[0] > 20
    entries = esteira(home, "ledger", "log", "--line", LINE)["entries"]
    told = [one for one in entries if one["kind"] == "rollout"]
    assert ["started", "paused", "resumed", "ended"] == [one["evidence"]["action"] for one in told]
    assert {("bob", "approver", "http")} == {
        (one["actor"], one["evidence"]["role"], one["evidence"]["door"]) for one in told
    }
    said = service.log.read_text(encoding="utf-8")
    assert not [name for name, key in keys.items() if key in said]


@pytest.mark.slow
def test_schemathesis_finds_nothing_on_the_routes_that_steer_and_list(
    home: Path, keys: dict[str, str], service: Service, tmp_path: Path
) -> None:
    """With a rollout that is under way, so that a start is refused before its options, which the document leaves to the policy.

    ASCII, because a pattern cannot say which of Unicode's characters are printable, as those of a reason are.
    """
    assert 200 == move(service, "start", keys["bob"], version=2)[0]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://{service.address}/openapi.json",
         "-H", f"Authorization: Bearer {KEY}", "-H", f"X-Esteira-Key: {keys['bob']}", "--seed", "42", "--max-examples", "40",
         "--continue-on-failure", "--generation-codec", "ascii",
         "--include-path-regex", "rollout$|rollout/(start|pause|resume)$|/v1/models(/{id})?$"],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout[-6000:] + done.stderr[-1000:]
    assert re.search(r"Tested:\s+6\b", done.stdout), done.stdout[-3000:]
    listed = service.ask("/v1/models")[1]["models"]
    assert {1, 2} == {service.ask(f"/v1/models/{one['id']}")[1]["version"] for one in listed}
