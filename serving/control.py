"""The routes by which people steer rollouts and look at versions (H-46, K-54): what the commands do, by the same functions.

Moves take a named key beside the service's own, and its name stands in the ledger; looking takes the service's key alone. All of it
runs in threads, moves in others than looks, and shows MLflow nothing: what serves predictions waits for none of it. Import it only
where there is a registry.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qs

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from esteira import access
from esteira.access import Actor
from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused
from esteira.registry import Registry
from esteira.rollout import alerts, policies, shown, targets
from esteira.rollout import control as rollouts
from esteira.settings import Settings, redact
from serving.asgi import Receive, Scope
from serving.asked import asked_as
from serving.body import Bodies, Limits
from serving.faults import worded
from serving.outside import Outside, away
from serving.problems import Headers, Problem
from serving.routes import Route, declared_length, must_be, must_be_json

BODY = 65_536
"""Bytes of a move's body, at most."""

# As printable ASCII, a name of the registry's is never a driver's trouble.
_WORD = re.compile(r"[ -~]{1,200}")
_FILTERS = {"status": "state", "type": "model_type", "framework": "framework", "line": "line"}
_MOST = 999_999_999
_RETRY: Headers = [(b"retry-after", b"5")]
_CHALLENGE: Headers = [(b"www-authenticate", b'EsteiraKey header="X-Esteira-Key"')]
_STATUS: Mapping[str, int] = {
    "not_allowed": 403, "other_keys": 403, "unknown_version": 404, "missing_bundle": 503, "missing_storage": 503,
}  # fmt: skip

_FAULTS: Mapping[str, str] = {
    "target": "what splits the traffic does not do what it is told",
    "registry": "the registry is away, or refuses the promotion",
    "sums": "what was measured cannot be read",
    "ledger": "the ledger cannot be told",
    "state": "the state cannot be gone by",
    "disk": "the disk takes no write",
}
"""What an engine's alert says here, by its kind: its own words may be a driver's, with addresses."""
# It stands first, or after the word for how a rollout ended.
_FAULT = re.compile(rf"(?:^|(?<=: ))({'|'.join(sorted(alerts.ENGINE_ALERTS))}): .*", re.DOTALL)

_CURES: Mapping[str, str] = {
    "not_allowed": "send such a key as 'X-Esteira-Key: KEY'; an admin gives one by `esteira keys add NAME --role ROLE`",
    "other_keys": "send a key that this store knows as 'X-Esteira-Key: KEY'",
}
"""What helps here where it is no command, by a letter's code."""
_FIELDS = {"state": "status", "option ": "options."}
# A command that has a route; any other, which stays as it is; an option that is a field here.
_COMMAND = re.compile(
    r"`?esteira (?:rollout (?P<verb>status|start|pause|resume|promote|rollback) (?P<line>[^\s`]+)(?: --version \d+)?(?: --reason TEXT)?"
    r"|release ls(?: --json)?(?: (?P<of>[a-z][^\s`]*))?)`?(?=[\s,;.)]|$)"
    r"|`?esteira [^`;,)]*"
    r"|--(?P<field>option |version|reason|state|limit|offset)"
)

_log = logging.getLogger("serving")


def _whole(value: Any) -> Any:
    """JSON has one kind of number, so 2.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Move(BaseModel):
    """The body of a move."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class _Start(_Move):
    """The body of a start; see `esteira.rollout.control.start` for each word."""

    version: Annotated[Annotated[int, Field(ge=1, le=_MOST)] | None, BeforeValidator(_whole)] = None
    policy: Annotated[str, Field(min_length=1, max_length=50)] | None = None
    options: dict[str, Any] | None = None


class Control:
    """Rollouts and versions of a service with a registry. Safe to call from several threads.

    Args:
        settings: where the state, the keys and the store are; the tenant. The store is opened at the first request.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings, mirror=False)
        self._bodies = Bodies(Limits(body=BODY, bodies=10 * BODY))
        # A store that hangs under those who look must not take the way out from those who roll back.
        self._moves, self._looks = Outside(settings.request_seconds), Outside(settings.request_seconds)

    async def answer(
        self, route: Route, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive
    ) -> dict[str, Any]:
        """The document of one of these routes.

        Raises:
            Problem: 401 without a named key where one is asked for, or with one that opens nothing; 403 where its holder may not;
                404, of another tenant's version too; 405, 408, 413, 415; 400 or 422 for what was sent; 409 where it does not fit;
                503 when something is away, or has not ended in time.
            GoneError: the caller hung up.
        """
        path, key = scope["path"], headers.get(b"x-esteira-key")
        if route.name == "models":
            must_be(scope, "GET")
            if path != "/v1/models":
                return await self._told(self._looks, partial(self._one, path.removeprefix("/v1/models/"), key))
            filters = _filters(scope.get("query_string", b""))
            return await self._told(self._looks, partial(self._found, filters, key))
        verb = path.rpartition("/rollout")[2].removeprefix("/")
        if not verb:
            must_be(scope, "GET")
            return await self._told(self._looks, partial(self._seen, route.line, key))
        must_be(scope, "POST")
        must_be_json(headers)
        if key is None:
            raise Problem(
                401, "no_named_key", "a move is somebody's: send their key as 'X-Esteira-Key: KEY'",
                field="x-esteira-key", cure=_CURES["not_allowed"], headers=_CHALLENGE,
            )  # fmt: skip
        body = await self._bodies.read(receive, declared_length(headers), asked=b"expect" in headers)
        self._bodies.bytes -= len(body)  # it is small, and read at once
        asked = _asked(_Start if verb == "start" else _Move, body)
        return await self._told(self._moves, partial(self._moved, route.line, verb, asked, key), moves=True)

    async def _told(
        self, outside: Outside, work: Callable[[], dict[str, Any]], *, moves: bool = False
    ) -> dict[str, Any]:
        """What the work gives; its letters as those of HTTP."""
        try:
            return await outside.ask(work)
        except EsteiraError as error:
            raise self._letter(error) from error
        except Problem as problem:
            if moves and problem.error["code"] == "outside":
                # Its thread goes on, and nobody takes it back.
                raise Problem(
                    503, "unfinished", "this takes longer than a request may, and may still be done: ask for the status first",
                    headers=_RETRY,
                ) from problem  # fmt: skip
            raise

    def _letter(self, error: EsteiraError) -> Problem:
        if isinstance(error, OutsideError):
            # Its words may be a driver's.
            _log.warning("a request to steer failed: %s", worded(error))
            return Problem(503, error.code, away().error["message"], cure=_by_routes(error.cure), headers=_RETRY)
        status = _STATUS.get(error.code, 422 if isinstance(error, ConfigError) else error.http_status)
        letter = error.to_dict()
        return self._problem(status, letter | {"cure": _CURES.get(error.code, letter["cure"])})

    def _problem(self, status: int, letter: Mapping[str, str]) -> Problem:
        """A letter of ours as an answer, without an address of this machine."""
        said = {name: redact(self._placeless(text)) for name, text in letter.items()}
        said |= {name: _by_routes(said[name]) for name in ("where", "cure")}
        headers = _RETRY if status == 503 else ()
        return Problem(status, said["code"], said["message"], where=said["where"], cure=said["cure"], headers=headers)

    def _placeless(self, text: str) -> str:
        places = {"$ESTEIRA_ARTIFACTS": self._settings.artifacts, "$ESTEIRA_HOME": str(self._settings.home)}
        for name, place in places.items():
            text = text.replace(place.removeprefix("file://"), name)
        return text

    # In a thread

    def _actor(self, key: bytes) -> Actor:
        """Who holds the key."""
        given = key.decode("latin-1")
        try:
            actor = access.who(self._settings.model_copy(update={"key": SecretStr(given)}))
        except (Refused, ConfigError) as error:
            if error.code == "unknown_key":
                raise Problem(
                    401, error.code, "no key that is valid is the one in X-Esteira-Key", field="x-esteira-key",
                    headers=_CHALLENGE,
                ) from error  # fmt: skip
            # The keys of this service, not the caller's, are in disorder.
            raise self._problem(503, error.to_dict()) from error
        return replace(actor, door="http")

    def _look(self, line: str, key: bytes | None) -> None:
        """Whoever gives a key looks by it or not at all; whoever gives none has the service's."""
        if key is not None:
            access.require(self._actor(key), "read", line=line, store=lambda: self._registry.store)

    def _seen(self, line: str, key: bytes | None) -> dict[str, Any]:
        self._look(line, key)
        target = self._target(line)
        seen = shown.status(
            line, settings=self._settings, now=datetime.now(UTC), target=target, registry=self._registry
        )
        return _shown(seen)

    def _moved(self, line: str, verb: str, asked: _Move, key: bytes) -> dict[str, Any]:
        actor = self._actor(key)
        told = asked.model_dump(exclude_none=True)
        if verb == "rollback":
            told["only"] = True
        common: dict[str, Any] = {"settings": self._settings, "target": self._target(line), "registry": self._registry}
        # A start's words, and no other move's, may be wrong as those of params.yaml are.
        options = {name: f"options.{name}" for name in told.get("options", ())}
        with policies.said_at("policy" if "policy" in told else "", options):
            done = getattr(rollouts, verb)(line, now=datetime.now(UTC), actor=actor, **told, **common)
        known = None if done is None else replace(done, alert=_faultless(done.alert))
        # Only these two move traffic away or to all; for the others an alert may be an old one, and the status tells it.
        if verb in {"promote", "rollback"} and (letter := shown.undone(known, line)) is not None:
            raise self._problem(503, letter)
        return _shown(shown.status(line, now=datetime.now(UTC), **common))

    def _target(self, line: str) -> targets.Target:
        """What splits the traffic; a setting that is none is this service's fault, and not the request's."""
        try:
            return targets.make(self._settings, line)
        except EsteiraError as error:
            raise self._problem(503, error.to_dict()) from error

    def _found(self, filters: Mapping[str, Any], key: bytes | None) -> dict[str, Any]:
        self._look(access.EVERY_LINE, key)
        return self._registry.find(**filters).to_dict()

    def _one(self, identity: str, key: bytes | None) -> dict[str, Any]:
        self._look(access.EVERY_LINE, key)
        return self._registry.model(identity)


def _shown(status: Mapping[str, Any]) -> dict[str, Any]:
    """A rollout's status without the words of what is outside of it."""
    told = {name: _faultless(status[name]) for name in ("alert", "reason") if name in status}
    history = [
        {name: _faultless(value) if isinstance(value, str) else value for name, value in entry.items()}
        for entry in status.get("history", ())
    ]
    return {**status, **told, **({"history": history} if "history" in status else {})}


def _faultless(text: str) -> str:
    """Each fault as its kind and a sentence of ours. Pure."""
    return alerts.AND.join(
        _FAULT.sub(lambda found: f"{found[1]}: {_FAULTS[found[1]]}", part) for part in text.split(alerts.AND)
    )


def _by_routes(text: str) -> str:
    """The commands and options of a letter as the routes and fields that do the same here, where there are such. Pure."""

    def here(found: re.Match[str]) -> str:
        if found["field"]:
            return _FIELDS.get(found["field"], found["field"])
        if found["verb"] == "status":
            return f"`GET /v1/{found['line']}/rollout`"
        if found["verb"]:
            return f"`POST /v1/{found['line']}/rollout/{found['verb']}`"
        if "release ls" in found[0]:
            return "`GET /v1/models" + (f"?line={found['of']}`" if found["of"] else "`")
        return found[0]

    return _COMMAND.sub(here, text)


def _asked(kind: type[_Move], body: bytes) -> _Move:
    """What a move is told.

    Raises:
        Problem: the body says it otherwise.
    """
    asked = asked_as(kind, body)
    if not asked.reason.strip() or not asked.reason.isprintable():  # as the move asks, but before it waits for its turn
        raise Problem(422, "wrong_type", "reason: say why, in printable characters on one line", field="reason")
    return asked


def _filters(query: bytes) -> dict[str, Any]:
    """Arguments of `Registry.find`.

    Raises:
        Problem: 422 for anything else in the query, or a word that stands twice.
    """
    asked: Mapping[str, Sequence[str]] = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    found: dict[str, Any] = {}
    for name, values in asked.items():
        text = values[0]
        if len(values) > 1:
            raise Problem(422, "duplicate_field", f"the query has one {name[:80]!r}, but got more", field=name[:80])
        if name in _FILTERS:
            if _WORD.fullmatch(text) is None:
                raise Problem(422, "wrong_type", f"'{name}' is 1 to 200 printable characters", field=name)
            found[_FILTERS[name]] = text
        elif name in ("limit", "offset"):
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise Problem(422, "wrong_type", f"'{name}' is a whole number", field=name)
            found[name] = int(text)
        else:
            known = ", ".join((*_FILTERS, "limit", "offset"))
            raise Problem(422, "unknown_field", f"the query has {known}, but got {name[:80]!r}", field=name[:80])
    return found
