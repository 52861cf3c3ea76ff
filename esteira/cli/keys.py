"""`esteira keys`: who may do what. A key is printed once, when it is made; what is kept is its hash."""

from typing import TYPE_CHECKING

import click

from esteira.cli import emit, say, show

if TYPE_CHECKING:
    from esteira.settings import Settings
    from esteira.store import Store


def _open() -> "tuple[Settings, Store]":
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    return settings, Store.open(settings.database_url, settings.tenant)


@click.group()
def keys() -> None:
    """Keys by name, with a role each: viewer, data_scientist, approver, admin. The first one is an admin's.

    Whoever acts sets ESTEIRA_KEY; from the first key on, approving, promoting, retiring and rolling back take one that may.

    \b
    Example:
      export ESTEIRA_KEY=$(esteira keys add ana --role admin)
      esteira keys add bob --role approver
    """


@keys.command()
@click.argument("name")
@click.option("--role", required=True, help="viewer, data_scientist, approver or admin.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def add(name: str, role: str, as_json: bool) -> None:
    """Make a key and print it, this once.

    \b
    Example:
      esteira keys add bob --role approver
    """
    from esteira import access

    settings, store = _open()

    def tell(key: str) -> None:
        emit({"name": name, "role": role, "key": key}) if as_json else click.echo(key)

    access.give(settings, name, role, store=store, show=tell)
    if not as_json:
        say(f"{name} ({role}) sets ESTEIRA_KEY to it; it is shown only now")


@keys.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def ls(as_json: bool) -> None:
    """List names and roles, revoked ones too; the keys themselves are not kept.

    \b
    Example:
      esteira keys ls
    """
    from esteira import access
    from esteira.settings import load_settings

    settings = load_settings()
    access.reader(settings, line=access.EVERY_LINE)
    found = [key.public() for key in access.listed(settings.home)]
    if as_json:
        emit({"keys": found})
    elif not found:
        say("no key yet: `esteira keys add NAME --role admin` makes the first")
    else:
        for key in found:
            show(f"{key['name']:<24} {key['role']:<16} since {key['created_at']}" + (
                f", revoked {key['revoked_at']}" if key["revoked_at"] else ""
            ))  # fmt: skip


@keys.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def revoke(name: str, as_json: bool) -> None:
    """Let a key open nothing from now on.

    \b
    Example:
      esteira keys revoke bob
    """
    from esteira import access

    settings, store = _open()
    key = access.take(settings, name, store=store)
    emit(key.public()) if as_json else show(f"{name}'s key opens nothing any more")
