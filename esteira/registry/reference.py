"""From a reference to a champion, `@ALIAS` or an address in artefact storage, to a verified folder here. It moves nothing."""

import json
from pathlib import Path

from esteira import bundle as bundles
from esteira.errors import Refused, SourceError
from esteira.registry import artefacts
from esteira.registry.registry import Registry
from esteira.settings import Settings, load_settings
from esteira.store.records import Version


def resolve(reference: str, line: str, settings: Settings | None = None, *, begun: str = "") -> Path | None:
    """A folder on this machine with the bundle that is meant.

    Args:
        reference: `@champion` or another alias of the registry, looked up now; or the address of a stored bundle.
        line: whose bundle it must be.
        settings: addresses of store and storage; by default those of the environment.
        begun: as for `version_of`.

    Returns:
        None for an alias that points at nothing.

    Raises:
        ConfigError: there is no alias of that name.
        SourceError: there is no bundle at the address.
        Refused: it lies outside of artefact storage, is not what was sealed, or is of another line.
        OutsideError: store or storage cannot be reached.
    """
    settings = settings or load_settings()
    if reference.startswith("@"):
        registry = Registry(settings)
        version = version_of(registry, line, reference.removeprefix("@"), begun=begun)
        return None if version is None else registry.fetch(version)
    uri = reference.rstrip("/")
    bundle_id = artefacts.sealed_id(uri, root=settings.artifacts)
    if not bundle_id:
        raise SourceError(
            f"a stored bundle is sealed, but there is no {bundles.SEAL} at {uri[:200]}",
            code="missing_bundle",
            where=f"{line}, champion",
            cure="see `esteira lines` for what is registered, or name @champion",
        )
    folder = artefacts.fetch(uri, bundle_id, root=settings.artifacts, place="", home=settings.home)
    found = json.loads((folder / bundles.MANIFEST).read_bytes())["line"]
    if found != line:
        raise Refused(
            f"the champion of a line is of that line, but the bundle at {uri[:200]} is of {found}",
            code="other_line",
            where=line,
            cure=f"name a bundle of {line}, or @champion",
        )
    return folder


def version_of(registry: Registry, line: str, alias: str = "champion", *, begun: str = "") -> Version | None:
    """The version that an alias points at now, or None.

    Args:
        begun: bundle_id of what was begun with; that version of the line is taken, wherever the alias points by now.

    Raises:
        ConfigError: there is no alias of that name.
        OutsideError: the store cannot be reached.
    """
    version = registry.resolve(line, alias)
    if not begun or (version is not None and version.bundle_id == begun):
        return version
    former = (one for one in registry.versions(line) if one.bundle_id == begun and one.state != "failed")
    return next(former, version)
