"""The registry: versions of a line, what each came from, and which of them serves. Reading it imports no MLflow.

The platform store and its ledger are the truth. A version is written to MLflow first, which gives it its number, then with its
ledger entries in one transaction; an alias moves in the store together with its entry, then MLflow is made to show the same.
A move that was cut off after its transaction holds, and is shown by MLflow at the next write of that line. What takes a version
into production or out of it waits for no MLflow: its transaction comes first, and followers on this machine hear of it at once.
Entries carry the moment of their transaction, so that their order by time is that by number.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esteira import access, crash, ledger
from esteira.access import Actor
from esteira.errors import ConfigError, Refused
from esteira.registry import beacon, moves
from esteira.registry.moves import RolledBack
from esteira.registry.noting import note_move
from esteira.registry.promotable import refuse_undeployable, require_promotable
from esteira.registry.reading import known_alias
from esteira.registry.registering import Registering
from esteira.release import approvals
from esteira.release.lifecycle import State, require_move
from esteira.store.records import Version
from esteira.store.releases import Releases
from esteira.store.store import now as present

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_DEPLOYED = frozenset({"staging", "champion", "production", "challenger"})
_SET = {"staging": "stage", "challenger": "rollout"}
"""Alias that may be set -> the right it takes. The others follow registration and promotion."""


class Registry(Registering):
    """Versions and aliases of one tenant's lines: what is asked of them, how one is registered, and every move.

    Args:
        settings: addresses of store, MLflow and artefacts; the tenant; the actor where a registration names none.
        store: an open store to use instead of opening one.
        mirror: False for a process that never imports MLflow: what it moves is shown there by the next writer that does, and
            it registers nothing.
    """

    def __repr__(self) -> str:
        return f"Registry(tenant={self._settings.tenant!r})"

    def set_alias(
        self, line: str, alias: str, version: int, *, actor: Actor, reason: str = "", now: datetime | None = None
    ) -> Version:
        """Point `staging` or `challenger` at a version; neither serves everybody, which takes `promote`.

        Nothing happens when it points there already. MLflow shows the move afterwards; if it cannot, the move still holds.

        Args:
            now: the moment of the move; by default that of its transaction, whatever it waited for. So everywhere here.

        Returns:
            The version as it is now.

        Raises:
            Refused: no such version, or an archived or failed one; code `unknown_version`, `archived`, `failed_version`. A
                second challenger (H-38, code `challenger_running`); a move that the life cycle does not have
                (`illegal_move`); who asks may not (`not_allowed`).
            ConfigError: no such alias, or one that is not set by hand.
        """
        if known_alias(alias) not in _SET:
            raise ConfigError(
                f"alias {alias} follows registration and promotion and is not set by hand",
                code="bad_alias",
                where=line,
                cure=f"esteira release promote {line} {version} --reason TEXT",
            )
        access.require(actor, _SET[alias], line=line, store=self.store, now=now)
        with self.store.begin() as connection:
            self.store.alone(connection)
            at = now or present()
            wanted = self.must(line, version, connection)
            refuse_undeployable(wanted)
            held = self._held(line, connection)
            if held.get(alias) != version:
                self._to_alias(connection, alias, wanted, held, actor=actor, reason=reason, at=at)
            moved = self.must(line, version, connection)
            crash.point("alias.before_commit")
        self._tell(line)
        return moved

    def drop_alias(
        self,
        line: str,
        alias: str,
        *,
        actor: Actor,
        reason: str,
        state: str | None = None,
        now: datetime | None = None,
    ) -> bool:
        """Let `challenger` point at nothing: its test ended. False when it did already.

        Args:
            state: what becomes of the version besides: `rolled_back` when the test ended by going back.

        Raises:
            Refused: code `not_allowed`, or `illegal_move` for a state that it cannot have.
            ConfigError: another alias, which a move of the champion or of staging takes along; or no reason.
        """
        if alias != "challenger":
            raise ConfigError(
                f"only a challenger's name is taken away, but got {alias[:50]!r}",
                code="bad_alias", where=line, cure="the other aliases follow registration, staging and promotion",
            )  # fmt: skip
        approvals.require_reason(reason, line)
        access.require(
            actor, "rollout" if access.may(actor, "rollout") else "roll_back", line=line, store=self.store, now=now
        )
        with self.store.begin() as connection:
            self.store.alone(connection)
            at = now or present()
            held = self._held(line, connection)
            if alias not in held:
                return False
            left = self.must(line, held[alias], connection)
            back = state is not None and held.get("champion") != left.version
            gone = [alias, *(_staged(left, held) if back else [])]
            note_move(self.store, connection, left, {}, held, gone=gone, actor=actor, reason=reason, at=at)
            if state is not None and back:
                require_move(line, left.version, left.state, state)
                self.store.set_version_state(connection, line, left.version, state)
                approvals.void(self.store, connection, left, actor=actor, reason=f"{state}: {reason}", now=at)
            crash.point("alias.before_commit")
        self._tell(line, always=True)
        return True

    def check_promote(
        self,
        line: str,
        version: int,
        *,
        actor: Actor,
        evidence: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> None:
        """Whether `promote` would go through at this moment; it raises what that would raise, and moves nothing.

        As there, an artefact that was changed voids what was asked and given for it.

        Args:
            evidence: as for `promote`; without it the basis is not asked.
        """
        access.require(actor, "promote", line=line, store=self.store, now=now)
        basis = None if evidence is None else moves.basis_of(evidence, line)
        self._require_basis(self.must(line, version), basis, actor, now)
        with self.store.read() as connection:
            wanted = self.must(line, version, connection)
            if self._held(line, connection).get("champion") != version:
                require_promotable(
                    self.store, connection, wanted, basis=basis, evidence=evidence or {}, at=now or present()
                )

    def promote(
        self,
        line: str,
        version: int,
        *,
        actor: Actor,
        reason: str,
        evidence: Mapping[str, Any],
        now: datetime | None = None,
    ) -> Version:
        """Make a version the champion: `champion` and `production` point at it together, the former one is `previous`.

        Nothing happens when it is the champion already. The transaction waits for nobody but another one; MLflow shows it
        afterwards. A line that notifies is left a notice with the move.

        Args:
            evidence: on what it stands, for the ledger. It names one of `approval` (True), `test_id` (of a rollout that was
                approved), `override` (a person's words), `policy` (`automatic` or `notify`: the line asks nobody). A version
                for which an approval was asked, or whose registration says that its line requires one, needs one that
                counts, whatever else it stands on, unless an approver overrides.

        Returns:
            The version as it is now.

        Raises:
            NotFound: no such version.
            Refused: code `not_allowed`, `no_report`, `no_basis`, `not_rehearsed`, `illegal_move`, `archived`, or what
                `esteira.release.approvals.require` raises.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "promote", line=line, store=self.store, now=now)
        basis = moves.basis_of(evidence, line)
        self._require_basis(self.must(line, version), basis, actor, now)
        with self.store.begin() as connection:
            self.store.alone(connection)
            at = now or present()
            wanted = self.must(line, version, connection)
            held = self._held(line, connection)
            if held.get("champion") != version:
                given = require_promotable(self.store, connection, wanted, basis=basis, evidence=evidence, at=at)
                shown = approvals.rehearsed(self.store, wanted, connection)
                # Null tells the record that it went without, whatever it stands on (S-20).
                seq = shown["seq"] if shown is not None and shown["evidence"].get("verdict") == "pass" else None
                said = {**evidence, "basis": basis, "rehearsal": seq}
                if given is not None:
                    said |= {"approval_entry": given.ledger_seq, "approver": given.approver}
                    approvals.use(self.store, connection, given)
                else:
                    approvals.void(self.store, connection, wanted, actor=actor, reason=f"overridden: {reason}", now=at)
                self._to_champion(connection, wanted, held, actor=actor, reason=reason, at=at, said=said)
                if basis == "policy" and evidence["policy"] == "notify":
                    what = f"version {version} of {line} was released without asking: it became the champion"
                    ledger.append(
                        self.store, kind="notice", line=line, version=version, bundle_id=wanted.bundle_id, actor=actor.name,
                        evidence={"what": what, "test_id": None, **actor.told()}, now=at, connection=connection,
                    )  # fmt: skip
            promoted = self.must(line, version, connection)
            crash.point("promote.before_commit")
        crash.point("promote.before_beacon")
        beacon.touch(self._settings.home)
        crash.point("promote.before_mirror")
        self._show_soon(line)
        return promoted

    def roll_back(
        self,
        line: str,
        *,
        to: int | None = None,
        actor: Actor,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> RolledBack:
        """Return to an earlier champion (H-37). The version that is left is `rolled_back`, and its approval is void.

        It imports nothing heavy before its transaction is kept, and waits for no MLflow.

        Args:
            to: by default the last version that was production and was not itself rolled back, so that two roll backs reach
                the version before the previous one.
            evidence: more for the ledger.

        Raises:
            Refused: code `not_allowed`, `no_champion`, or what `esteira.registry.moves.target_of` raises.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "roll_back", line=line, store=self.store, now=now)
        releases = Releases(self.store)
        with self.store.begin() as connection:
            self.store.alone(connection)
            at = now or present()
            held = self._held(line, connection)
            if "champion" not in held:
                raise Refused(
                    f"a roll back leaves a champion, but {line} has none",
                    code="no_champion", where=line, cure=f"esteira release ls {line} shows what there is",
                )  # fmt: skip
            left = self.must(line, held["champion"], connection)

            def version_of(number: int) -> Version | None:
                return self.store.get_version(line, number, connection)

            target = moves.target_of(line, left, to, releases.champions(connection, line), version_of)
            require_move(line, left.version, left.state, State.ROLLED_BACK)
            require_move(line, target.version, target.state, State.PRODUCTION)
            entry = ledger.append(
                self.store,
                kind="rollback",
                line=line,
                version=target.version,
                bundle_id=target.bundle_id,
                actor=actor.name,
                evidence={
                    **(evidence or {}), "from": left.version, "to": target.version, "reason": reason, **actor.told(),
                },
                now=at,
                connection=connection,
            )  # fmt: skip
            self.store.set_version_state(connection, line, left.version, State.ROLLED_BACK.value)
            self.store.set_version_state(connection, line, target.version, State.PRODUCTION.value)
            releases.stamp_deployed(connection, line, target.version, at)
            approvals.void(self.store, connection, left, actor=actor, reason=f"rolled back: {reason}", now=at)
            approvals.void(self.store, connection, target, actor=actor, reason="it serves again by a roll back", now=at)
            # What a further roll back would return to; a version that was rolled back is nobody's previous one.
            before = moves.former_of(releases.champions(connection, line), target.version, version_of)
            to_be = {"champion": target, "production": target, **({} if before is None else {"previous": before})}
            gone = [*(["previous"] if before is None and "previous" in held else []), *_staged(left, held)]
            note_move(self.store, connection, target, to_be, held, gone=gone, actor=actor, reason=reason, at=at)
            crash.point("rollback.before_commit")
        crash.point("rollback.before_beacon")
        beacon.touch(self._settings.home)
        crash.point("rollback.before_mirror")
        self._show_soon(line, always=bool(gone))
        return RolledBack(left.version, target.version, entry.seq)

    def retire(self, line: str, version: int, *, actor: Actor, reason: str, now: datetime | None = None) -> Version:
        """Put a version away: it stays readable and can be fetched, but no alias may point at it any more, and what was asked or
        given for it counts no more.

        Raises:
            Refused: no such version, it is deployed, or who asks may not; code `unknown_version`, `deployed`, `not_allowed`.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "retire", line=line, store=self.store, now=now)
        with self.store.begin() as connection:
            self.store.alone(connection)
            at = now or present()
            wanted = self.must(line, version, connection)
            if wanted.archived_at is not None:
                return wanted
            held = [alias for alias, number in self._held(line, connection).items() if number == version]
            if _DEPLOYED.intersection(held):
                raise Refused(
                    f"a deployed version is not archived, but version {version} is {', '.join(held)}",
                    code="deployed", where=line, cure="move the alias to another version first",
                )  # fmt: skip
            ledger.append(
                self.store, kind="archive", line=line, version=version, bundle_id=wanted.bundle_id, actor=actor.name,
                evidence={
                    "reason": reason, "aliases": held, "moves": {alias: [version, None] for alias in held}, **actor.told(),
                },
                now=at, connection=connection,
            )  # fmt: skip
            approvals.void(self.store, connection, wanted, actor=actor, reason=f"retired: {reason}", now=at)
            for alias in held:
                self.store.drop_alias(connection, line, alias)
            self.store.set_version_state(connection, line, version, State.RETIRED.value, archived_at=at)
            archived = self.must(line, version, connection)
            crash.point("alias.before_commit")
        self._tell(line, always=bool(held))
        return archived

    # How

    def _require_basis(self, wanted: Version, basis: moves.Basis | None, actor: Actor, now: datetime | None) -> None:
        """What a promotion asks before its transaction: reading a bundle takes a while, and nobody else is to wait for it."""
        if basis == "override":
            approvals.require_override(self.store, wanted, actor=actor, now=now)
            return
        asked = approvals.find(self.store, wanted)
        if asked is not None and asked.state == "approved":
            approvals.sound(self, wanted, actor=actor, now=now)

    def _to_alias(
        self,
        connection: "Connection",
        alias: str,
        wanted: Version,
        held: Mapping[str, int],
        *,
        actor: Actor,
        reason: str,
        at: datetime,
    ) -> None:
        """Move an alias that serves nobody: the rules of staging and of tests."""
        line, number = wanted.line, wanted.version
        if alias == "challenger":
            if alias in held:
                raise Refused(
                    f"a line tests one challenger at a time, but version {held[alias]} is it",
                    code="challenger_running",
                    where=line,
                    cure=f"wait until `esteira rollout status {line}` shows its end, or end it:"
                    f" esteira rollout rollback {line} --reason TEXT",
                )
            if held.get("champion") == number:
                raise Refused(
                    f"a challenger is another version than the champion, but version {number} is that",
                    code="same_version", where=line, cure="name another version",
                )  # fmt: skip
        note_move(self.store, connection, wanted, {alias: wanted}, held, actor=actor, reason=reason, at=at)
        if alias != "staging":
            return
        if (former := held.get("staging")) is not None:
            moved_on = self.must(line, former, connection)
            if moved_on.state == State.STAGING:
                self.store.set_version_state(connection, line, former, State.VALIDATED.value)
        if wanted.state != State.PRODUCTION:
            require_move(line, number, wanted.state, State.STAGING)
            self.store.set_version_state(connection, line, number, State.STAGING.value)

    def _to_champion(
        self,
        connection: "Connection",
        wanted: Version,
        held: Mapping[str, int],
        *,
        actor: Actor,
        reason: str,
        at: datetime,
        said: Mapping[str, Any],
    ) -> None:
        """Champion and production together; the former one becomes previous. `said` is on what it stands."""
        line = wanted.line
        to_be = {"champion": wanted, "production": wanted}
        if "champion" in held:
            former = self.must(line, held["champion"], connection)
            to_be["previous"] = former
            self.store.set_version_state(connection, line, former.version, State.RETIRED.value)
        note_move(self.store, connection, wanted, to_be, held, actor=actor, reason=reason, at=at, said=said)
        self.store.set_version_state(connection, line, wanted.version, State.PRODUCTION.value)
        Releases(self.store).stamp_deployed(connection, line, wanted.version, at)

    def _tell(self, line: str, *, always: bool = False) -> None:
        """After a move was kept: followers first, MLflow then."""
        beacon.touch(self._settings.home)
        crash.point("alias.before_mirror")
        self._show_soon(line, always=always)


def _staged(version: Version, held: Mapping[str, int]) -> list[str]:
    """The alias that a version loses when it is rolled back: staging is where it comes back by, if a person takes it up."""
    return ["staging"] if held.get("staging") == version.version else []
