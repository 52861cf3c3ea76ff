"""The policies by name. A policy is imported when it is asked for, so that naming one costs nothing."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from esteira.errors import ConfigError
from esteira.rollout.state import Policy


def _rules() -> Policy:
    from esteira.rollout.rules import Rules

    return Rules()


def _sequential() -> Policy:
    from esteira.rollout.sequential import Sequential

    return Sequential()


def _thresholds() -> Policy:
    from esteira.rollout.thresholds import Thresholds

    return Thresholds()


def _ab() -> Policy:
    from esteira.rollout.ab import AB

    return AB()


def _flags() -> Policy:
    from esteira.rollout.flags import Flags

    return Flags()


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "rules": _rules,
    "sequential": _sequential,
    "thresholds": _thresholds,
    "ab": _ab,
    "flags": _flags,
}
"""Name -> what makes the policy. `rules` is H-42 and H-43, `ab` S-37, `flags` S-38."""

OPTIONS: Mapping[str, frozenset[str]] = {
    "rules": frozenset({"rules"}), "ab": frozenset({"primaries"}), "flags": frozenset({"units"}),
}  # fmt: skip
"""What a line or a person may say of a policy's plan; nothing of one that does not stand here."""


def make(name: str) -> Policy:
    """The policy of this name.

    Raises:
        ConfigError: there is none (`unknown_policy`).
    """
    if name not in POLICIES:
        raise ConfigError(
            f"a rollout's policy is one of {', '.join(POLICIES)}, but got {name!r}",
            code="unknown_policy",
            where="deploy.rollout_policy",
            cure="take one of these",
        )
    return POLICIES[name]()


def planned(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a rollout that is to start, completed and checked: what the policy needs is planned before it begins.

    Args:
        options: as the line or the person who starts it said; JSON values.

    Raises:
        ConfigError: there is no such policy, it takes no such option (`unknown_option`), what is given is no JSON
            (`bad_option`), or it cannot work with it.
    """
    plan = getattr(make(name), "planned", None)
    takes = OPTIONS.get(name, frozenset())
    if odd := sorted(set(options) - takes):
        raise ConfigError(
            f"the policy {name} takes {' and '.join(sorted(takes)) or 'no options'}, but got {', '.join(map(str, odd))}"[:300],
            code="unknown_option", where=_place(odd[0]),
            cure='see docs/release.md for the options of each policy; a number of the rules is given as {"rules": {...}}',
        )  # fmt: skip
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a plan is kept as JSON, but: {str(error)[:200]}",
            code="bad_option", where="deploy.rollout_options", cure="give finite numbers, texts, lists and objects",
        ) from error  # fmt: skip
    ready: dict[str, Any] = dict(options) if plan is None else plan(options)
    return ready


def _place(option: str) -> str:
    """Where params.yaml has an option."""
    return f"deploy.rollout_options.{option}"[:120]


@contextlib.contextmanager
def said_at(policy: str, options: Mapping[str, str]) -> Iterator[None]:
    """Let a refusal name the place where a person said what is refused; by itself it names that of params.yaml.

    Args:
        policy: where they named the policy, such as `--policy`; empty where they did not.
        options: option that they gave -> where, such as `--option rules`.
    """
    said = {_place(name): place for name, place in options.items()}
    said |= {"deploy.rollout_policy": policy, "deploy.min_samples": options.get("min_samples", "")}
    try:
        yield
    except ConfigError as error:
        error.where = said.get(error.where) or error.where
        raise


def needs(name: str, plan: Mapping[str, Any]) -> str:
    """What a rollout asks of its target beyond a share: `named`, `sticky` (see `esteira.rollout.targets`), or nothing.

    Args:
        plan: what `planned` returned.
    """
    if name == "ab":
        return "sticky"
    return "named" if name == "flags" and any(plan.get("units", {}).values()) else ""
