"""Puts a registered version into service: writes its Bento, then goes as far as the line's policy lets it. Starts no service.

Every version runs in staging first, unless its line says `rehearse: false`. Then, by the policy (esteira/release/policy.py), a
request for approval waits, it takes the first share of traffic, or the alias moves at once.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from esteira import access, outputs
from esteira.access import Actor
from esteira.bundle import verify
from esteira.crash import point
from esteira.errors import OutsideError, Refused, SourceError
from esteira.registry import Registry
from esteira.release import approvals
from esteira.release.policy import Asked, ReleasePolicy, decided, stricter
from esteira.release.staging import stage
from esteira.settings import Settings, load_settings

_BUILD_SECONDS = 300


Params = Asked
"""One model for the step and for what people do with a line later, so that neither takes what the other refuses."""


class Report(BaseModel):
    """What is in service now.

    Attributes:
        version: the registry's number.
        bundle_id: SHA-256 of the bundle's manifest.
        alias: what points at the version now: `champion`, or `staging` where it waits or takes a share.
        status: `released` where nothing more needs a person, `awaiting_approval` where it does.
        previous: version that served before; None when there was none.
        bento: Bento's tag; its folder is `bento/` in the step's outputs.
        test_id: of the rollout that was started; None where none was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    version: int
    bundle_id: str
    alias: str
    status: Literal["released", "awaiting_approval"] = "released"
    previous: int | None
    bento: str
    test_id: str | None = None


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
    """Build the Bento of a registered version and release it as far as the line's policy lets it go.

    Doing it again is harmless: the Bento is written anew and an alias that stands already is left alone.

    Args:
        receipt: `receipt.json` of register.
        bundle: the sealed bundle that was registered.
        line: the model line.
        out: gets `bento/` and `deployment.json`.

    Raises:
        SourceError: the receipt is missing or is no receipt.
        Refused: the bundle is not the registered one, the receipt is another line's, the version was rolled back, or whoever
            asks may not. What served before still serves.
        GateHeld: the rehearsal did not pass; the version stays in staging, and what served before still serves.
        OutsideError: the Bento could not be written. What served before still serves, and nobody was asked to approve.
    """
    if not receipt.is_file():
        raise SourceError(
            "deploy needs the receipt of a registration, but there is none",
            code="missing_file", where=str(receipt), cure="run register first",
        )  # fmt: skip
    version, bundle_id = read_receipt(receipt.read_text(encoding="utf-8"), line)
    verify(bundle, bundle_id)
    settings = load_settings()
    registry, actor = Registry(settings), access.who(settings)
    policy, now = _policy(registry, line, version, params), datetime.now(UTC)
    before = registry.resolve(line, params.alias)
    moves = before is None or before.version != version
    if moves:
        _refuse(registry, line, version, params, policy, actor, now)
    release = moves and params.alias == "champion"
    by_shares = policy.rollout == "staged" and before is not None
    waits = policy.approval_mode == "required"
    with _start_build(bundle, out / "bento", line, version) as building:
        try:
            if moves:
                # The move will need it, and its import takes as long as the build does.
                import esteira.registry.mlflow_mirror  # noqa: F401
            # Nobody is asked for what cannot be built; else the server of the rehearsal boots meanwhile.
            tag = _finish_build(building) if waits else ""
            if release and (policy.rehearse or by_shares or waits):
                stage(registry, line, version, settings=settings, actor=actor, policy=policy, reason=params.reason)
            tag = tag or _finish_build(building)
        except BaseException:
            building.kill()
            raise
    point("deploy.built")
    outcome: tuple[str, str, str | None] = params.alias, "released", None
    if release:
        outcome = _release(registry, line, version, settings, params, policy, actor, by_shares)
    elif moves:
        registry.set_alias(line, params.alias, version, actor=actor, reason=params.reason)
    point("deploy.moved")
    alias, status, test_id = outcome
    former = before if moves else registry.resolve(line, "previous")
    report = Report(
        line=line,
        version=version,
        bundle_id=bundle_id,
        alias=alias,
        status="awaiting_approval" if status == "awaiting_approval" else "released",
        previous=None if former is None else former.version,
        bento=tag,
        test_id=test_id,
    )
    outputs.write(out, {"deployment.json": (report.model_dump_json(indent=1) + "\n").encode()})
    return report


def _policy(registry: Registry, line: str, version: int, params: Params) -> ReleasePolicy:
    """What this run was told, and at least what the version was registered under."""
    told, recorded = decided(params, line), approvals.terms(registry.store, registry.must(line, version))
    if recorded is None:
        return told
    # Whoever may release may leave the rehearsal out of this one run; the record of the version says so.
    return stricter(told, recorded).model_copy(update={"rehearse": told.rehearse})


def _refuse(
    registry: Registry, line: str, version: int, params: Params, policy: ReleasePolicy, actor: Actor, now: datetime
) -> None:
    """What would be refused after the Bento is built is refused before."""
    found = registry.must(line, version)
    if found.state == "rolled_back":
        raise Refused(
            f"what was rolled back comes back by a person's hand, but version {version} was, and a run would release it again",
            code="rolled_back",
            where=f"{line}, step deploy",
            cure=f"train another; or esteira release stage {line} {version} --reason TEXT, then promote it",
        )
    action = "stage"
    if params.alias == "challenger":
        action = "rollout"
    elif params.alias == "champion" and policy.approval_mode != "required":
        action = "promote" if policy.rollout == "direct" or registry.resolve(line) is None else "rollout"
    access.require(actor, action, line=line, store=registry.store, now=now)


def _release(
    registry: Registry,
    line: str,
    version: int,
    settings: Settings,
    params: Params,
    policy: ReleasePolicy,
    actor: Actor,
    by_shares: bool,
) -> tuple[str, str, str | None]:
    """Alias, status and rollout that a version came to."""
    if policy.approval_mode == "required":
        return "staging", "awaiting_approval", None
    alias, test_id = "champion", None
    if by_shares:
        from esteira.rollout import control

        begun = control.start(
            line, settings=settings, now=datetime.now(UTC), actor=actor, reason=params.reason, version=version,
            policy=policy.rollout_policy, options=policy.rollout_options, release=policy, registry=registry,
        )  # fmt: skip
        alias, test_id = "staging", begun.test_id
    else:
        registry.promote(line, version, actor=actor, reason=params.reason, evidence={"policy": policy.approval_mode})
    return alias, "released", test_id


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
