"""The policies by name. A policy is imported when it is asked for, so that naming one costs nothing."""

from collections.abc import Callable, Mapping
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
        ConfigError: there is no such policy, or it cannot work with these options.
    """
    plan = getattr(make(name), "planned", None)
    if plan is None:
        return dict(options)
    ready: dict[str, Any] = plan(options)
    return ready
