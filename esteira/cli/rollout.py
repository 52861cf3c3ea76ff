"""`esteira rollout`: give a candidate its traffic by shares, see how it does, and take it back."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from esteira.cli import emit, fail, show


@click.group()
def rollout() -> None:
    """A candidate's way from the first share of traffic to all of it, or back.

    \b
    Example:
      esteira rollout start tabular --reason "released by the gate"
      esteira rollout status tabular --json
      esteira tick --every 60
    """


def _common(*, reason: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
        if reason:
            command = click.option("--reason", required=True, help="Why, for who reads the ledger.")(command)
        return click.argument("line")(command)

    return give


@rollout.command()
@_common()
@click.option("--version", type=click.IntRange(1), help="The candidate; by default what is staged.")
@click.option("--policy", help="rules, sequential, thresholds, ab or flags; by default the line's own.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=JSON",
    help="Of the policy's plan; also min_samples=N. Repeatable.",
)
def start(
    line: str, reason: str, version: int | None, policy: str | None, options: Sequence[str], as_json: bool
) -> None:
    """Start a rollout: the candidate takes its first share of the traffic.

    \b
    Example:
      esteira rollout start tabular --version 3 --reason "trained on October" --option min_samples=500
    """
    from esteira.rollout import control, policies

    given = options_of(options)
    with policies.said_at("--policy" if policy else "", {name: f"--option {name}" for name in given}):
        _do(control.start, line, as_json, reason=reason, version=version, policy=policy, options=given)


@rollout.command()
@_common(reason=False)
def status(line: str, as_json: bool) -> None:
    """Show where the rollout stands; changes nothing.

    \b
    Example:
      esteira rollout status tabular --json
    """
    import contextlib

    from esteira import access
    from esteira.cli.known import require_line
    from esteira.errors import OutsideError
    from esteira.family import Line
    from esteira.settings import load_settings

    Line.parse(line)
    # Whether the store knows the key and the line, too, cannot be asked while it is away; how a rollout stands must be seen then.
    with contextlib.suppress(OutsideError):
        access.reader(load_settings(), line=line)
        require_line(line)
    _show(line, as_json)


@rollout.command()
@_common()
def pause(line: str, reason: str, as_json: bool) -> None:
    """Keep the share as it is; nothing is decided and the time does not count.

    \b
    Example:
      esteira rollout pause tabular --reason "holiday traffic"
    """
    from esteira.rollout import control

    _do(control.pause, line, as_json, reason=reason)


@rollout.command()
@_common()
def resume(line: str, reason: str, as_json: bool) -> None:
    """Let a paused rollout go on.

    \b
    Example:
      esteira rollout resume tabular --reason "traffic is as usual"
    """
    from esteira.rollout import control

    _do(control.resume, line, as_json, reason=reason)


@rollout.command()
@_common()
def promote(line: str, reason: str, as_json: bool) -> int:
    """Make the candidate the champion now, without the stages that are left.

    \b
    Example:
      esteira rollout promote tabular --reason "the champion cannot stay"
    """
    from esteira.rollout import control

    return _do(control.promote, line, as_json, ends=True, reason=reason)


@rollout.command()
@_common()
def rollback(line: str, reason: str, as_json: bool) -> int:
    """Take all traffic from the candidate and end the rollout. The champion stays; `esteira rollback` moves that back too.

    Refused where no rollout is under way; asked again after a rollback it shows that one.
    The exit code is 2 where the traffic could not be taken away, or the ledger could not be told: every look tries again.

    \b
    Example:
      esteira rollout rollback tabular --reason "complaints"
    """
    from esteira.rollout import control

    return _do(control.rollback, line, as_json, ends=True, reason=reason, only=True)


@rollout.command()
@_common(reason=False)
def tick(line: str, as_json: bool) -> int:
    """Look at the rollout once and do what its policy says; safe to repeat. The exit code is as that of `esteira tick`.

    \b
    Example:
      esteira rollout tick tabular
    """
    from esteira.cli.known import require_line
    from esteira.cli.tick import look
    from esteira.settings import load_settings

    decision, code = look(line, load_settings())
    if decision is None:
        require_line(line)
    _show(line, as_json, done=None if decision is None else decision.action)
    return code


def _do(action: Callable[..., Any], line: str, as_json: bool, *, ends: bool = False, **told: Any) -> int:
    """Do it, show how it stands, and give the exit code: 2 where an end could not be carried out."""
    from datetime import UTC, datetime

    from esteira import access
    from esteira.rollout import shown
    from esteira.settings import load_settings

    settings = load_settings()
    state = action(line, settings=settings, now=datetime.now(UTC), actor=access.who(settings), **told)
    # What is wrong with a rollout that goes on was not made by this command: it is shown as its alert.
    error = shown.undone(state, line) if ends else None
    if as_json:
        _show(line, as_json, **({} if error is None else {"error": error}))
    else:
        _show(line, as_json)
        if error is not None:
            fail(error, as_json=False)
    return 0 if error is None else 2


def _show(line: str, as_json: bool, **more: Any) -> None:
    from datetime import UTC, datetime

    from esteira.family import Line
    from esteira.rollout import shown
    from esteira.settings import load_settings

    Line.parse(line)
    found = {**shown.status(line, settings=load_settings(), now=datetime.now(UTC)), **more}
    if as_json:
        emit(found)
        return
    if found["status"] == "none":
        show(f"{line}: no rollout" + (f"; {found['alert']}" if found["alert"] else ""))
        return
    show(f"{line}: {found['status']}, candidate {found['percent']:g} % since {found['since'] or '-'}")
    for name, arm in found["arms"].items():
        show(
            f"  {name:<9} v{arm['version']}  served {arm['served']}  errors {_share(arm['error_rate'])}  "
            f"labelled {arm['labelled']}  accuracy {_share(arm['accuracy'])}  p95 {_ms(arm['p95_ms'])}"
        )
    if found["verdict"]:
        show(f"  now: {found['verdict']}, {found['action']}: {found['reason']}")
    elif found.get("reason"):
        show(f"  {found['reason']}")
    if found["alert"]:
        show(click.style(f"  alert: {found['alert']}", fg="red"))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:g} ms"


def options_of(texts: Sequence[str]) -> dict[str, Any]:
    """What `--option KEY=JSON` says, given any number of times; a value that is no JSON is text."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"an option of a plan is KEY=JSON, but got {text[:100]!r}")
        if key in found:
            raise click.UsageError(f"an option of a plan stands once, but {key[:100]!r} stands twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
