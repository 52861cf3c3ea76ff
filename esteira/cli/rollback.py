"""`esteira rollback`: the way out. It imports nothing heavy before what it undoes is undone."""

import contextlib
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, fail, show

if TYPE_CHECKING:
    from esteira.registry import Registry
    from esteira.rollout.state import Rollout


@click.command()
@click.argument("line")
@click.option(
    "--to", type=click.IntRange(1), help="Version to return to; by default the last champion not rolled back."
)
@click.option("--reason", required=True, help="Why, for who reads the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rollback(line: str, to: int | None, reason: str, as_json: bool) -> int:
    """Undo LINE's last release: the alias and the traffic move back.

    While a rollout is under way that is what is undone: its candidate loses its traffic, and the champion stays. With --to the
    champion moves, too. Otherwise the champion becomes the last version that was it and was not rolled back itself.
    The exit code is 2 where the traffic could not be taken away, or the ledger could not be told: every look tries again.

    \b
    Example:
      esteira rollback tabular --reason "prices are off since noon"
      esteira rollback tabular --to 3 --reason "4 and 5 share the fault"
    """
    from datetime import UTC, datetime

    from esteira import access
    from esteira.family import Line
    from esteira.registry import Registry
    from esteira.settings import load_settings

    Line.parse(line)
    settings, now = load_settings(), datetime.now(UTC)
    registry, actor = Registry(settings), access.who(settings)
    ended = None
    if any((settings.home / "rollouts").glob(f"{line}.*")):
        from esteira.rollout import control

        if to is not None:
            _refuse_target(registry, line, to)
        ended = control.rollback(line, settings=settings, now=now, actor=actor, reason=reason, registry=registry)
    # Of a rollout that won, what is undone is the promotion, however far its traffic was handed over.
    if ended is not None and ended.status != "approved" and (to is None or to == ended.champion.version):
        found = _of_rollout(registry, ended)
    else:
        moved = registry.roll_back(line, to=to, actor=actor, reason=reason)
        found = {"line": line, "from": moved.from_version, "to": moved.to_version, "ledger_entry": moved.ledger_seq}
        found |= {"undone": "release", "test_id": None if ended is None else ended.test_id}
    error = None
    if ended is not None:
        from esteira.rollout.shown import undone

        error = undone(ended, line)
    if as_json:
        emit({**found, **({} if error is None else {"error": error})})
    else:
        what = "its rollout ended" if found["undone"] == "rollout" else "the champion moved"
        entry = "none yet" if found["ledger_entry"] is None else found["ledger_entry"]
        show(f"{line}: version {found['from']} -> {found['to']}, {what}; ledger entry {entry}")
        if error is not None:
            fail(error, as_json=False)
    return 0 if error is None else 2


def _refuse_target(registry: "Registry", line: str, to: int) -> None:
    """Refuse a version that cannot be returned to before anything is ended for it.

    Where the store cannot be asked nobody knows; then the rollout is ended, and the move of the champion says so.
    """
    from esteira.errors import Refused
    from esteira.registry import moves
    from esteira.store.releases import Releases

    try:
        champion = registry.resolve(line)
        if champion is None or champion.version == to:
            return
        with registry.store.read() as connection:
            champions = Releases(registry.store).champions(connection, line)
            moves.target_of(line, champion, to, champions, lambda n: registry.store.get_version(line, n, connection))
    except Refused:
        raise
    except Exception:  # noqa: BLE001 - away, a standby, of a newer schema: what it raises stands in no way out
        return


def _of_rollout(registry: "Registry", ended: "Rollout") -> dict[str, Any]:
    """What became of a rollout that was ended, with the entry by which its traffic went back; none while the store is away."""
    from esteira.store.releases import Releases

    entry = None
    # What is done is done, whatever the store raises where it cannot be asked.
    with contextlib.suppress(Exception):
        store = registry.store
        with store.read() as connection:
            entries = Releases(store).entries(connection, ended.line, "traffic", "rollout")
            entry = next((one["seq"] for one in entries if one["evidence"].get("test_id") == ended.test_id), None)
    return {
        "line": ended.line, "from": ended.challenger.version, "to": ended.champion.version, "ledger_entry": entry,
        "undone": "rollout", "test_id": ended.test_id, "alert": ended.alert,
    }  # fmt: skip
