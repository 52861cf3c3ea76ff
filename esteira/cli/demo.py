"""`esteira demo`: boots the champion of a line, asks it one real row over HTTP, prints the answer and leaves nothing behind."""

import http.client
import json
import os
import signal
import subprocess
import sys
from typing import Any

import click

from esteira.cli import say


@click.command()
@click.argument("line", default="tabular")
def demo(line: str) -> None:
    """Serve LINE's champion on a free port and ask it one row of its golden pair; the last line is the HTTP answer.

    \b
    Example:
      esteira data && esteira run tabular && esteira demo
    """
    from esteira.errors import Refused
    from esteira.registry import Registry
    from esteira.settings import api_key, load_settings

    settings = load_settings()
    registry = Registry(settings)
    version = registry.resolve(line)
    if version is None:
        raise Refused(
            f"only a released line serves, but {line} has no champion",
            code="no_champion",
            where=line,
            cure=f"esteira run {line}",
        )
    golden = json.loads((registry.fetch(version) / "golden.json").read_text(encoding="utf-8"))
    row = golden["rows"][0]
    key, _ = api_key(settings)
    say(f"serving {line} version {version.version} ...")
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "serve", "--line", line, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "ESTEIRA_API_KEY": key},
    )  # fmt: skip
    try:
        answer = _ask(server, line, row, key)
    finally:
        server.send_signal(signal.SIGINT)  # as a person ends it: no load balancer to wait for
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
    click.echo(answer)


def _ask(server: "subprocess.Popen[str]", line: str, row: dict[str, Any], key: str) -> str:
    from esteira.errors import OutsideError

    assert server.stdout is not None
    address = next((text.split("http://", 1)[1].strip() for text in server.stdout if text.startswith("READY ")), None)
    if address is None:
        raise OutsideError(
            "the service must become ready, but it ended",
            code="not_ready",
            where=line,
            cure=f"see `esteira serve {line}`",
        )
    body = json.dumps({"rows": [row]}, ensure_ascii=False)
    say(f"POST http://{address}/v1/predict")
    say(f"  {body[:160]}{' ...' if len(body) > 160 else ''}")
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(
        "POST", "/v1/predict", body.encode(), {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    )
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise OutsideError(
            f"the answer must be 200, but is {response.status}", code="bad_answer", where=line, cure=text[:300]
        )
    return text.strip()
