"""Puts a registered version into service: writes its Bento, then moves the line's alias. Starts no server, leaves no process.

The Bento comes first, because it can fail; the alias is the one move that changes the world, and comes last.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from esteira import outputs
from esteira.bundle import verify
from esteira.crash import point
from esteira.errors import OutsideError, Refused, SourceError
from esteira.registry import Registry
from esteira.settings import load_settings

_BUILD_SECONDS = 300


class Params(BaseModel):
    """How a version is put into service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str = Field(
        default="champion", pattern="^(champion|challenger|staging)$", description="the alias that moves"
    )
    reason: str = Field(default="the gate released it", min_length=1, max_length=500, description="why, for the ledger")


class Report(BaseModel):
    """What is in service now.

    Attributes:
        version: the registry's number.
        bundle_id: SHA-256 of the bundle's manifest.
        alias: what moved to the version.
        previous: version that served before; None when there was none.
        bento: Bento's tag; its folder is `bento/` in the step's outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    version: int
    bundle_id: str
    alias: str
    previous: int | None
    bento: str


def read_receipt(text: str, line: str) -> tuple[int, str]:
    """Version and bundle_id of a registration.

    Raises:
        SourceError: the text is no receipt.
        Refused: it is another line's.
    """
    try:
        receipt = json.loads(text)
        found, version, bundle_id = str(receipt["line"]), int(receipt["version"]), str(receipt["bundle_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "a receipt has line, version and bundle_id",
            code="bad_receipt", where="receipt.json", cure="run register again",
        ) from error  # fmt: skip
    if found != line:
        raise Refused(
            f"a line deploys its own versions, but the receipt is of {found!r}",
            code="other_line", where=f"{line}, receipt.json", cure="give the receipt of this line's registration",
        )  # fmt: skip
    return version, bundle_id


def run(*, receipt: Path, bundle: Path, line: str, out: Path, params: Params) -> Report:
    """Build the Bento of a registered version and move the alias to it.

    Doing it again is harmless: the Bento is written anew and an alias that stands already is left alone.

    Args:
        receipt: `receipt.json` of register.
        bundle: the sealed bundle that was registered.
        line: the model line.
        out: gets `bento/` and `deployment.json`.

    Raises:
        SourceError: the receipt is missing or is no receipt.
        Refused: the bundle is not the registered one, or the receipt is another line's. The alias has not moved.
        OutsideError: the Bento could not be written. The alias has not moved.
    """
    if not receipt.is_file():
        raise SourceError(
            "deploy needs the receipt of a registration, but there is none",
            code="missing_file", where=str(receipt), cure="run register first",
        )  # fmt: skip
    version, bundle_id = read_receipt(receipt.read_text(encoding="utf-8"), line)
    verify(bundle, bundle_id)
    settings = load_settings()
    registry = Registry(settings)
    before = registry.resolve(line, params.alias)
    moves = before is None or before.version != version
    with _start_build(bundle, out / "bento", line, version) as building:
        try:
            if moves:
                # The move will need it, and its import takes as long as the build does.
                import esteira.registry.mlflow_mirror  # noqa: F401
            tag = _finish_build(building)
        except BaseException:
            building.kill()
            raise
    point("deploy.built")
    if moves:
        registry.set_alias(line, params.alias, version, actor=settings.actor, reason=params.reason)
    point("deploy.moved")
    former = before if moves else registry.resolve(line, "previous")
    report = Report(
        line=line,
        version=version,
        bundle_id=bundle_id,
        alias=params.alias,
        previous=None if former is None else former.version,
        bento=tag,
    )
    outputs.write(out, {"deployment.json": (report.model_dump_json(indent=1) + "\n").encode()})
    return report


def _start_build(bundle: Path, to: Path, line: str, version: int) -> "subprocess.Popen[str]":
    to.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable, "-m", "serving", "build", "--json", "--bundle", str(bundle), "--out", str(to), "--line", line,
            "--version", str(version),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _finish_build(building: "subprocess.Popen[str]") -> str:
    try:
        said, complained = building.communicate(timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OutsideError(
            f"a Bento must be built within {_BUILD_SECONDS} s, but it is not",
            code="slow_build", where="python -m serving build", cure="run deploy again on a machine that is less busy",
        ) from error  # fmt: skip
    if building.returncode == 0:
        return str(_last_json(said)["bento"])
    letter = _last_json(complained).get("error")
    if letter is None:
        raise OutsideError(
            f"`python -m serving build` must end with 0, but ended with {building.returncode}: {complained.strip()[-300:]}",
            code="build_failed", where="python -m serving build", cure="run it by hand to see more",
        )  # fmt: skip
    kind = Refused if building.returncode == 1 else OutsideError
    raise kind(letter["message"], code=letter["code"], where=letter["where"], cure=letter["cure"])


def _last_json(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return {}


if __name__ == "__main__":
    from components.door import main

    main("deploy")
