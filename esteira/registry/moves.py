"""What decides a move into or out of production, as values: on what a promotion stands, what a roll back returns to. Reads nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from esteira.errors import NotFound, Refused
from esteira.release.lifecycle import State
from esteira.store.records import Version

Basis = Literal["approval", "test_id", "override", "policy"]
BASES: tuple[Basis, ...] = ("override", "test_id", "approval", "policy")
"""On what a promotion stands (H-35): a person who overrides, a rollout that was approved, an approval, or a line that asks nobody."""

ASKS_NOBODY = ("automatic", "notify")
"""Words of a line's policy on which a version may be promoted without being asked for."""


@dataclass(frozen=True)
class RolledBack:
    """A roll back that happened.

    Attributes:
        ledger_seq: number of its entry of kind `rollback`.
    """

    from_version: int
    to_version: int
    ledger_seq: int


def basis_of(evidence: Mapping[str, Any], line: str) -> Basis:
    """On what the evidence of a promotion stands; where it names several, the first of `BASES`.

    Raises:
        Refused: it names none; code `no_basis`.
    """
    for basis in BASES:
        if _counts(basis, evidence.get(basis)):
            return basis
    raise Refused(
        "a promotion stands on an approval, a rollout that was approved, or a person's override that is written down, but none"
        " was given",
        code="no_basis",
        where=line,
        cure=f"esteira release approve {line} --reason TEXT, esteira rollout start {line} --reason TEXT, or"
        f" esteira release promote {line} --reason TEXT --override TEXT",
    )


def _counts(basis: Basis, said: Any) -> bool:
    if basis == "approval":
        return said is True
    if basis == "policy":
        return said in ASKS_NOBODY
    return isinstance(said, str) and bool(said.strip())


def unknown_version(line: str, version: int) -> NotFound:
    """A line has no version of this number."""
    return NotFound(
        f"a version is known by its number, but {line} has no version {version}",
        code="unknown_version", where=line, cure=f"see `esteira release ls {line}` for what there is",
    )  # fmt: skip


def former_of(champions: Iterable[int], champion: int, version_of: Callable[[int], Version | None]) -> Version | None:
    """The last version that was production and was not itself rolled back (H-37), or None.

    Args:
        champions: what became the champion, the latest first.
        champion: the present one, which it is not.
        version_of: a version by its number.
    """
    seen = {champion}
    for number in champions:
        if number in seen:
            continue
        seen.add(number)
        found = version_of(number)
        if found is not None and may_return(found):
            return found
    return None


def may_return(version: Version) -> bool:
    """Whether a version that served may serve again by a roll back."""
    return version.archived_at is None and version.state == State.RETIRED


def target_of(
    line: str, champion: Version, to: int | None, champions: Iterable[int], version_of: Callable[[int], Version | None]
) -> Version:
    """What a roll back returns to.

    Raises:
        Refused: there is no version to return to (code `nothing_before`); the one asked for is none (code `unknown_version`),
            serves already (code `already_champion`), never served (code `never_served`), or may serve no more (code
            `not_to_return`).
    """
    where = line
    if to is None:
        found = former_of(champions, champion.version, version_of)
        if found is None:
            raise Refused(
                f"a roll back returns to a version that served before and was not rolled back itself, but before version"
                f" {champion.version} there is none",
                code="nothing_before",
                where=where,
                cure=f"esteira release ls {line} shows what there is; esteira release promote {line} VERSION --reason TEXT takes another",
            )
        return found
    wanted = version_of(to)
    if to == champion.version:
        raise Refused(
            f"a roll back returns to another version, but version {to} is the champion",
            code="already_champion", where=where, cure="name another version, or none",
        )  # fmt: skip
    if wanted is None:
        raise unknown_version(line, to)
    if to not in set(champions):
        raise Refused(
            f"a roll back returns to a version that served before, but version {to} never did",
            code="never_served", where=where, cure=f"esteira release promote {line} {to} --reason TEXT, or name another version",
        )  # fmt: skip
    if not may_return(wanted):
        state = "archived" if wanted.archived_at is not None else wanted.state
        raise Refused(
            f"a roll back returns to a version that may serve again, but version {to} is {state}",
            code="not_to_return",
            where=where,
            cure=f"name another version; esteira release stage {line} {to} --reason TEXT takes up one that was rolled back",
        )
    return wanted


def reported(verdict: Mapping[str, Any] | None) -> bool:
    """Whether a version's last entry `verdict` is a pass (H-35); None where it has none."""
    if verdict is None:
        return False
    rules = verdict["evidence"].get("rules")
    return verdict["evidence"].get("verdict") == "pass" and isinstance(rules, list) and bool(rules)
