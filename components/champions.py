"""Which champion a step is told of: a path costs nothing, an address or an alias is looked up and verified in storage."""

from pathlib import Path


def folder(reference: str, line: str, *, begun: str = "") -> Path | None:
    """The folder of the champion's bundle, or the contract file that was named; None where the line has no champion.

    Args:
        reference: empty; a path; `file://` or `s3://` of a stored bundle; `@ALIAS` of the registry, such as `@champion`.
        line: whose champion it must be.
        begun: bundle_id of a version of the line that is taken instead of what the alias points at by now.

    Raises:
        ConfigError: no such alias.
        Refused: the bundle is not what was sealed, lies outside of artefact storage, or is of another line.
        SourceError: there is no bundle at that address.
        OutsideError: store or storage cannot be reached.
    """
    if not reference:
        return None
    if not reference.startswith("@") and "://" not in reference:
        return Path(reference)
    # Here, because it costs a second and a path needs none of it.
    from esteira.registry.reference import resolve

    return resolve(reference, line, begun=begun)
