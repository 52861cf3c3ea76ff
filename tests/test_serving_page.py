"""Every code block of docs/serving.md is run against a real service, and every answer that it shows is what comes back."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from esteira.settings import VARIABLES
from tests.serving_process import KEY, ROOT, Service
from tests.small_bundle import make_bundle

PAGE = ROOT / "docs" / "serving.md"
RUN_BY = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"],
          "javascript": ["node", "--input-type=module", "-e"]}  # fmt: skip
# What another answer has otherwise.
VOLATILE = {"bundle_id", "model_id", "request_id", "timestamp", "confidence", "yes", "no"}


class Block(NamedTuple):
    """A block that is run, and the JSON that the page shows below it as what it prints."""

    kind: str
    code: str
    shown: Any


def blocks() -> list[Block]:
    found: list[Block] = []
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if kind == "json":
            found[-1] = found[-1]._replace(shown=json.loads(text))
        else:
            found.append(Block(kind, text, None))
    return found


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a reader who has a service running and follows the page."""
    folder = tmp_path_factory.mktemp("page")
    make_bundle(folder / "bundle")
    service = Service(
        ["--bundle", str(folder / "bundle"), "--port", "0"],
        env={"ESTEIRA_HOME": str(folder / "home")},
        log=folder / "log",
    )
    try:
        service.wait_ready()
        yield {
            **os.environ,
            "ESTEIRA_URL": f"http://{service.address}",
            "ESTEIRA_API_KEY": KEY,
            "ESTEIRA_PROXY_CERTIFICATE": str(_certificate(folder)),
        }
    finally:
        service.stop()


def _certificate(folder: Path) -> Path:
    from tests.test_haproxy import make_certificate

    return make_certificate(folder) if shutil.which("openssl") else folder / "none"


def test_the_page_has_nothing_but_blocks_that_are_run_or_compared() -> None:
    assert set(RUN_BY) == {block.kind for block in blocks()}
    assert 3 == sum(block.shown is not None for block in blocks())


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(), ids=[f"{number}-{block.kind}" for number, block in enumerate(blocks(), 1)])
def test_each_block_does_what_the_page_says(block: Block, surroundings: dict[str, str]) -> None:
    programs = {RUN_BY[block.kind][0]} | ({"curl", "haproxy", "openssl"} & set(re.findall(r"\w+", block.code)))
    programs |= {"openssl"} if "haproxy" in programs else set()
    absent = sorted(program for program in programs if shutil.which(program) is None)
    if absent:
        pytest.skip(f"needs {', '.join(absent)} on PATH")

    done = subprocess.run(
        [*RUN_BY[block.kind], block.code], cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout + done.stderr
    if block.shown is not None:
        assert _steady(block.shown) == _steady(json.loads(done.stdout))
    if block.kind == "javascript":
        assert "type 0 visits" in done.stdout
    if "RowsRefused" in block.code:
        assert "1 visits must be a finite number" in done.stdout


def _steady(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _steady(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return type(value).__name__ if name in VOLATILE and value != "order-17" else value


def test_the_page_names_settings_that_there_are_with_their_defaults() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {name for variable in VARIABLES for name in variable.names}
    told = {"ESTEIRA_URL"} | set(re.findall(r"ESTEIRA_PROXY_\w+", text))

    assert set() == set(re.findall(r"\bESTEIRA_[A-Z_]+", text)) - known - told


def test_the_page_names_statuses_as_the_document_of_the_api_does() -> None:
    from serving.openapi import describe_api

    rows = re.findall(r"^\| (\d{3}) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    whole = describe_api({"tabular": None}, 1000, health=True, jobs=True, feedback=True, control=True)
    described = {status for route in whole["paths"].values() for one in route.values() for status in one["responses"]}

    # 414 and 431 come from the connection, before there is a route.
    assert sorted({status for status in described if status >= "400"} | {"414", "431"}) == rows
