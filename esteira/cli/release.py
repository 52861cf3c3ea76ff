"""`esteira release`: what versions there are, who let which of them go, and the record of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from esteira.cli import emit, say, show

if TYPE_CHECKING:
    from esteira.access import Actor
    from esteira.registry import Registry
    from esteira.settings import Settings
    from esteira.store.records import Approval, Version


class _Here(NamedTuple):
    settings: "Settings"
    registry: "Registry"

    @property
    def actor(self) -> "Actor":
        """Who decides. Reading asks less: see `_here`."""
        from esteira import access

        return access.who(self.settings)


def _here(line: str | None = None) -> _Here:
    from esteira import access
    from esteira.family import Line
    from esteira.registry import Registry
    from esteira.settings import load_settings

    if line is not None:
        Line.parse(line)
    settings = load_settings()
    registry = Registry(settings)
    access.reader(settings, line=line or access.EVERY_LINE, store=lambda: registry.store)
    return _Here(settings, registry)


_reason = click.option("--reason", required=True, help="Why, for who reads the ledger.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_version = click.argument("version", type=click.IntRange(1), required=False)


@click.group()
def release() -> None:
    """From the gate's yes to production: what waits for whom, and what was decided.

    \b
    Example:
      esteira release ls tabular
      esteira release approve tabular --reason "seen on staging"
      esteira release promote tabular --reason "approved"
    """


@release.command()
@click.argument("line", required=False)
@click.option("--family", help="Versions of all lines of this family.")
@click.option("--state", help="Such as production; also a system's own word: deployed, ACTIVE, Production.")
@click.option("--alias", help="Only what this alias points at.")
@click.option("--type", "model_type", help="Such as classification or regression.")
@click.option("--framework", help="Such as xgboost or scikit-learn.")
@click.option("--id", "identity", help="The one version of this id.")
@click.option("--limit", default=50, show_default=True, type=int, help="At most this many, newest first.")
@click.option("--offset", default=0, show_default=True, type=int, help="How many to leave out before.")
@_json
def ls(
    line: str | None,
    family: str | None,
    state: str | None,
    alias: str | None,
    model_type: str | None,
    framework: str | None,
    identity: str | None,
    limit: int,
    offset: int,
    as_json: bool,
) -> None:
    """List versions with their states, aliases, scores and age; filters go together.

    \b
    Example:
      esteira release ls tabular
      esteira release ls --family tabular --state production --json
    """
    here = _here(line)
    if identity is not None:
        model = here.registry.model(identity)
        emit(model) if as_json else show("\n".join(f"{name:<14} {value}" for name, value in model.items()))
        return
    page = here.registry.find(
        line=line, family=family, state=state, alias=alias, model_type=model_type, framework=framework, limit=limit,
        offset=offset,
    )  # fmt: skip
    if not page.total:
        _refuse_unknown(here, line, family)
    asked = _asked(here, line)
    models = [{**model, "approval": _told(asked.get((model["line"], model["version"])))} for model in page.models]
    if as_json:
        emit({**page.to_dict(), "models": models})
        return
    if not models:
        say("no such version")
    for model in models:
        waits = "" if model["approval"] is None else f"  approval {model['approval']['state']}"
        names = f"  ({', '.join(model['aliases'])})" if model["aliases"] else ""
        age = f"{model['age_seconds'] / 86400:.1f} days"
        show(f"{model['line']:<32} v{model['version']:<4} {model['state']:<12} {age:>12}{names}{waits}")
    if page.total > len(models):
        say(f"{len(models)} of {page.total}; --offset {offset + len(models)} shows more")


def _refuse_unknown(here: _Here, line: str | None, family: str | None) -> None:
    """Refuse a name that nothing was found of because there is no such line or family."""
    from esteira.cli.known import require_line
    from esteira.family import load_family

    if line is not None:
        require_line(line, here.registry.store)
    if family is not None:
        load_family(family)


def _asked(here: _Here, line: str | None) -> "dict[tuple[str, int], Approval]":
    from esteira.store.releases import Releases

    return {(one.line, one.version): one for one in Releases(here.registry.store).approvals(line)}


def _told(approval: "Approval | None") -> dict[str, Any] | None:
    return None if approval is None else {key: value for key, value in approval.to_dict().items() if key != "policy"}


@release.command("show")
@click.argument("line")
@_version
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write the record as a page to file."
)
@_json
def show_(line: str, version: int | None, html: Path | None, as_json: bool) -> None:
    """The record of VERSION (by default the champion): data, code, gate, rehearsal, approver, shares, what it replaced.

    \b
    Example:
      esteira release show tabular --html record.html
    """
    from esteira import outputs
    from esteira.release import record

    here = _here(line)
    document = record.record(here.registry, line, version)
    if html is not None:
        from esteira.release import page

        outputs.write(html.parent, {html.name: page.render(document).encode()})
    if as_json:
        emit(document)
        return
    for text in record.lines(document):
        show(text)
    if html is not None:
        show(f"read: {html}")


@release.command()
@click.argument("line")
@_version
@_reason
@_json
def stage(line: str, version: int | None, reason: str, as_json: bool) -> None:
    """Put VERSION (by default the candidate) into staging: rehearse it, and ask for an approval where the line wants one.

    \b
    Example:
      esteira release stage tabular 3 --reason "take it up again"
    """
    from esteira.errors import Refused
    from esteira.release import approvals
    from esteira.release.policy import in_force
    from esteira.release.staging import stage as put

    here = _here(line)
    number = version
    if number is None:
        candidate = here.registry.resolve(line, "candidate")
        if candidate is None:
            raise Refused(
                f"a version that is registered is staged, but {line} has no candidate",
                code="unknown_version", where=line, cure=f"esteira run {line}",
            )  # fmt: skip
        number = candidate.version
    staged = put(
        here.registry, line, number, settings=here.settings, actor=here.actor,
        policy=in_force(line, approvals.terms(here.registry.store, here.registry.must(line, number))), reason=reason,
    )  # fmt: skip
    if as_json:
        approval = _told(staged.approval)
        emit(
            {
                "line": line,
                "version": number,
                "state": staged.version.state,
                "rehearsal": staged.rehearsal,
                "approval": approval,
            }
        )
        return
    show(f"{line}: version {number} is in staging")
    if staged.approval is not None:
        say(f"  next: an approver who did not register it: esteira release approve {line} {number} --reason TEXT")


@release.command()
@click.argument("line")
@_version
@_reason
@_json
def approve(line: str, version: int | None, reason: str, as_json: bool) -> None:
    """Let VERSION (by default the newest that was asked for) go to production, within the hours its line allows.

    It says first on what terms: how the version is to be released, and what its rehearsal showed (`release show` has all of it).
    It takes the key of an approver or an admin who is not the one that registered the version.

    \b
    Example:
      esteira release approve tabular 3 --reason "seen on staging"
    """
    from esteira.release import approvals

    here = _here(line)
    wanted, asked = approvals.waiting(here.registry, line, version)
    tell = say if as_json else show
    for told in _terms(here, wanted, asked):
        tell(told)
    given = approvals.approve(here.registry, line, wanted.version, actor=here.actor, reason=reason)
    if as_json:
        emit(given.to_dict())
        return
    until = "" if given.expires_at is None else f" until {given.expires_at.isoformat(timespec='seconds')}"
    show(f"{line}: version {given.version} is approved by {given.approver}{until}; ledger entry {given.ledger_seq}")
    staged = given.policy.get("rollout") == "staged" and here.registry.resolve(line) is not None
    following = (
        f"rollout start {line} --version {given.version}" if staged else f"release promote {line} {given.version}"
    )
    say(f"  next: esteira {following} --reason TEXT")


def _terms(here: _Here, version: "Version", asked: "Approval") -> list[str]:
    """What who approves agrees to: whoever asked may have said it."""
    from esteira.release import approvals

    with here.registry.store.read() as connection:
        last = approvals.rehearsed(here.registry.store, version, connection)
    policy = asked.policy
    shown = "none"
    if last is not None:
        said = last["evidence"]
        shown = f"{said.get('verdict')}: {said.get('summary') or 'no summary'}; ledger entry {last['seq']}"
    elif policy.get("rehearse") is False:
        shown = "none; the request says rehearse: false"
    return [
        f"{version.line} version {version.version}, bundle {version.bundle_id[:12]}, asked for by {asked.requested_by}",
        f"  policy     {policy.get('approval_mode')}, {policy.get('rollout')} by {policy.get('rollout_policy')},"
        f" {asked.hours:g} hours, at least {policy.get('min_samples')} rows",
        f"  rehearsal  {shown}",
    ]


@release.command()
@click.argument("line")
@click.argument("version", type=click.IntRange(1))
@_reason
@_json
def withdraw(line: str, version: int, reason: str, as_json: bool) -> None:
    """Let the request for VERSION, or its approval, count no more.

    \b
    Example:
      esteira release withdraw tabular 3 --reason "a fault in its data came to light"
    """
    from esteira.release import approvals

    here = _here(line)
    left = approvals.withdraw(here.registry, line, version, actor=here.actor, reason=reason)
    emit(left.to_dict()) if as_json else show(f"{line}: the approval of version {version} is void")


@release.command()
@click.argument("line")
@_version
@_reason
@click.option(
    "--override", metavar="TEXT", help="Go without approval or rollout; an approver's key, and this for the ledger."
)
@_json
def promote(line: str, version: int | None, reason: str, override: str | None, as_json: bool) -> None:
    """Make VERSION (by default what is staged) the champion, on its approval. A staged line goes by `esteira rollout start`.

    \b
    Example:
      esteira release promote tabular 3 --reason "approved by bob"
    """
    here = _here(line)
    number = _staged(here, line) if version is None else version
    evidence = _evidence(here, line, number, override)
    before = here.registry.resolve(line)
    moved = here.registry.promote(line, number, actor=here.actor, reason=reason, evidence=evidence)
    former = None if before is None or before.version == number else before.version
    if as_json:
        emit({"line": line, "version": number, "bundle_id": moved.bundle_id, "state": moved.state, "previous": former})
        return
    show(f"{line}: version {number} is the champion" + ("" if former is None else f", after version {former}"))


def _staged(here: _Here, line: str) -> int:
    from esteira.errors import Refused

    found = here.registry.resolve(line, "staging") or here.registry.resolve(line, "candidate")
    if found is None:
        raise Refused(
            f"a version that is registered is promoted, but {line} has none in staging",
            code="unknown_version", where=line, cure=f"esteira run {line}",
        )  # fmt: skip
    return found.version


def _evidence(here: _Here, line: str, number: int, override: str | None) -> dict[str, Any]:
    """On what the promotion stands, by how the line is released."""
    from esteira.errors import Refused
    from esteira.release import approvals
    from esteira.release.policy import ReleasePolicy, in_force

    if override is not None:
        return {"override": override}
    store, version = here.registry.store, here.registry.must(line, number)
    asked = approvals.find(store, version)
    # What was asked for is what the approver agreed to; else what was registered holds from any folder.
    policy = (
        in_force(line, approvals.terms(store, version)) if asked is None else ReleasePolicy.model_validate(asked.policy)
    )
    champion = here.registry.resolve(line)
    if policy.rollout == "staged" and champion is not None and champion.version != number:
        raise Refused(
            f"{line} gives a new version its traffic by shares, but all of it was asked for at once",
            code="staged_line",
            where=line,
            cure=f"esteira rollout start {line} --version {number} --reason TEXT; or --override TEXT, by an approver",
        )
    if asked is not None or policy.approval_mode == "required":
        return {"approval": True}
    if policy.rehearse:
        from esteira.release import rehearsal

        rehearsal.require(store, line, number, version.bundle_id)
    return {"policy": policy.approval_mode}


@release.command()
@click.argument("line")
@click.argument("version", type=click.IntRange(1))
@_reason
@_json
def retire(line: str, version: int, reason: str, as_json: bool) -> None:
    """Put VERSION away: it stays on record and can be fetched, but serves no more.

    \b
    Example:
      esteira release retire tabular 1 --reason "trained on the old price list"
    """
    here = _here(line)
    left = here.registry.retire(line, version, actor=here.actor, reason=reason)
    if as_json:
        archived = None if left.archived_at is None else left.archived_at.isoformat()
        emit({"line": line, "version": version, "state": left.state, "archived_at": archived})
        return
    show(f"{line}: version {version} is retired")
