"""Whether there is a line of a name at all: asked by commands that look, where they found nothing of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esteira.store import Store


def require_line(line: str, store: "Store | None" = None) -> None:
    """Refuse a line of which nobody ever heard, so that a slip of the pen is not taken for an answer.

    Args:
        store: an open one to use.

    Raises:
        NotFound: code `unknown_line`; it has no version, no run, no entry in the ledger and no rollout.
    """
    from esteira import ledger
    from esteira.errors import NotFound
    from esteira.rollout import files
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    if line in files.lines(settings.home):
        return
    store = store or Store.open(settings.database_url, settings.tenant)
    if store.list_versions(line) or store.list_runs(line, limit=1) or ledger.log(store, line, limit=1):
        return
    raise NotFound(
        f"a line has a version, a run, an entry in the ledger or a rollout, but {line} has none",
        code="unknown_line", where=line, cure="`esteira lines` names those that are there",
    )  # fmt: skip
