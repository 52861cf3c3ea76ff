"""Stand-ins for tests of the API in process: models that answer their own name, a registry of two lines of code, one request."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from esteira.family import Answer, Finding, Row
from serving.deployed import Deployed
from serving.deployments import Deployment
from serving.http import Api, Asgi, Keys, Limits, Message, Receive, Scope, Send
from serving.metrics import Metrics
from serving.predictor import Predictor

LINE = "tabular@shop-buys"
PREDICT = "/v1/predict"
GOOD = b'{"rows": [{"a": 1}]}'


class Fake:
    """Answers its own name; a row with `bad` is an error, one with `odd` a warning."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        found = []
        for number, row in enumerate(rows):
            if "bad" in row:
                found.append(Finding("type", "bad", number, "must be a number, but got text"))
            if "odd" in row:
                found.append(Finding("range", "odd", number, "was 1 to 2", "warning"))
        return found

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        if any("boom" in row for row in rows):
            raise RuntimeError("secret driver words at /srv/model.py")
        return [{"prediction": self.name, "confidence": 0.5, "warnings": []} for _ in rows]


def fake_predictor(deployment: Deployment) -> Predictor:
    return Predictor(deployment, Fake(f"v{deployment.version}"), {"schema": {"columns": []}}, "cpu")


class FakeSource:
    """A registry of the tests: `champion` is what lines serve, `fail` is raised instead."""

    moves = True

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.champion: dict[str, Deployment | None] = {line: Deployment(line, 1, "1" * 64) for line in lines}
        self.fail: Exception | None = None

    def current(self, line: str) -> Deployment | None:
        if self.fail is not None:
            raise self.fail
        return self.champion[line]

    def version(self, line: str, number: int) -> Deployment | None:
        return Deployment(line, number, str(number) * 64) if number < 4 else None

    def folder(self, deployment: Deployment) -> Path:
        return Path(deployment.bundle_id)


def fake_loading(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """Loading makes a fake and takes no time from now on; the list grows by what was loaded, in order."""
    made: list[Deployment] = []

    def fake_load(folder: Path, deployment: Deployment, device: str) -> Predictor:
        made.append(deployment)
        return fake_predictor(deployment)

    monkeypatch.setattr("serving.predictor.load", fake_load)
    return made


def until(condition: Callable[[], Any], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def kept_nowhere(records: Sequence[Mapping[str, Any]]) -> None:
    """A store that forgets."""


async def bento(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for Bento's own application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"bento"})


async def asked(
    api: Asgi,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    key: str = "caller",
    query: str = "",
    hangs_up: bool = False,
) -> tuple[int, Any, dict[str, str]]:
    """One request to an ASGI application: status, document and headers of its answer; status 0 when there was none.

    Several bodies are sent as parts, and an endless wait follows the last; a caller that hangs up does so after its body.
    """
    sent: list[Message] = []
    parts = [body] if isinstance(body, bytes) else list(body)
    given = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }

    async def receive() -> Message:
        if not parts:
            if hangs_up:
                return {"type": "http.disconnect"}
            await asyncio.sleep(3600)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": not isinstance(body, bytes) or bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    await api(scope, receive, send)
    if not sent:
        return 0, None, {}
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    is_json = found.get("content-type", "").startswith("application/json") and answer
    return sent[0]["status"], json.loads(answer) if is_json else answer, found


def ask(api: Asgi, path: str, body: bytes | Sequence[bytes] = b"", **options: Any) -> tuple[int, Any, dict[str, str]]:
    """The same, in a loop of its own; `options` are those of `asked`."""
    return asyncio.run(asked(api, path, body, **options))


def make_api(source: FakeSource, **options: Any) -> Api:
    """An API over the source's champions, with small limits and counters of its own; `options` are Api's."""
    deployed = Deployed(source)
    deployed.start(period=3600)
    given = {"limits": Limits(rows=3, body=1000, bodies=2000, seconds=0.2), **options}
    return Api(deployed, Keys(b"caller", b"operator"), bento, metrics=Metrics(CollectorRegistry()), **given)
