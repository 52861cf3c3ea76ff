"""`esteira rollback`: the way out. It imports nothing heavy before what it undoes is undone."""

from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say

if TYPE_CHECKING:
    from esteira.rollout.state import Rollout
    from esteira.store import Store


@click.command()
@click.argument("line")
@click.option(
    "--to", type=click.IntRange(1), help="Version to return to; by default the last champion not rolled back."
)
@click.option("--reason", required=True, help="Why, for who reads the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rollback(line: str, to: int | None, reason: str, as_json: bool) -> None:
    """Undo LINE's last release: the alias and the traffic move back.

    While a rollout is under way that is what is undone: its candidate loses its traffic, and the champion stays. With --to the
    champion moves, too. Otherwise the champion becomes the last version that was it and was not rolled back itself.

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

        ended = control.rollback(line, settings=settings, now=now, actor=actor, reason=reason, registry=registry)
    if ended is not None and (to is None or to == ended.champion.version):
        found = _of_rollout(registry.store, ended)
    else:
        moved = registry.roll_back(line, to=to, actor=actor, reason=reason, now=now)
        found = {"line": line, "from": moved.from_version, "to": moved.to_version, "ledger_entry": moved.ledger_seq}
        found |= {"undone": "release", "test_id": None if ended is None else ended.test_id}
    if as_json:
        emit(found)
        return
    what = "its rollout ended" if found["undone"] == "rollout" else "the champion moved"
    say(f"{line}: version {found['from']} -> {found['to']}, {what}; ledger entry {found['ledger_entry']}")


def _of_rollout(store: "Store", ended: "Rollout") -> dict[str, Any]:
    """What became of a rollout that was ended, with the entry by which its traffic went back."""
    from esteira.store.releases import Releases

    with store.read() as connection:
        entries = Releases(store).entries(connection, ended.line, "traffic", "rollout")
        found = (one["seq"] for one in entries if one["evidence"].get("test_id") == ended.test_id)
        entry = next(found, None)
    return {
        "line": ended.line, "from": ended.challenger.version, "to": ended.champion.version, "ledger_entry": entry,
        "undone": "rollout", "test_id": ended.test_id,
    }  # fmt: skip
