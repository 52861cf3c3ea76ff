"""What makes the split of a rollout real: the process itself, HAProxy, or a Kubernetes gateway, behind one small protocol."""

import re
from typing import Protocol

from esteira.errors import ConfigError
from esteira.rollout.split import Split
from esteira.settings import Settings


class Target(Protocol):
    """What splits the traffic of one line between its champion and its challenger.

    Attributes:
        name: of the kind: `in-process`, `haproxy` or `gateway`.
        place: what is split there, in words: two lines with the same place would move each other's traffic.
        settle_seconds: that the champion's service may need, after a promotion, until it serves the new champion; so long the
            candidate's keeps all traffic. 0 where one service does both.
        sticky: whether a unit that names itself stays in its arm.
        named: whether units that the split names get the candidate.
        asks_again: whether it asks the other service where one fails, and says in `x-esteira-arm` whose the request is, taking that
            header from whoever asks. Only where it does may the services hear the header: else anybody could say it.
    """

    name: str
    settle_seconds: float
    sticky: bool
    named: bool
    asks_again: bool

    @property
    def place(self) -> str:
        """See the class."""
        ...

    def share(self) -> float | None:
        """Percent of the traffic that the challenger gets now, by the target's own account; None where it cannot be read."""
        ...

    def shift(self, split: Split | None, *, first: bool = False) -> None:
        """Give the challenger the split's percent of the traffic, or none. Doing it again changes nothing.

        It returns once the target itself says so. What was cut off in between is mended by doing it again.

        Args:
            first: a rollout begins: what has just become the challenger may take its time until it is up.

        Raises:
            OutsideError: the target cannot be reached, refuses, or says something else afterwards; worth a retry.
            ConfigError: code `bad_percent`; the target has no weights for this percent.
        """
        ...


def make(settings: Settings, line: str) -> Target:
    """The target that ESTEIRA_TARGET names; `{line}` in it becomes the line's name, with `-` for what a host name cannot hold.

    Reaches nothing: a target that is away says so when it is asked.

    Raises:
        ConfigError: code `bad_target`; it names none.
    """
    kind, _, place = settings.target.partition(":")
    place = place.replace("{line}", re.sub(r"[^A-Za-z0-9-]+", "-", line).strip("-").lower())
    if kind == "in-process" and not place:
        from esteira.rollout.targets.in_process import InProcess

        return InProcess(settings.home, line)
    if kind == "haproxy":
        from esteira.rollout.targets.haproxy import HAProxy

        return HAProxy.parse(place)
    if kind == "gateway":
        from esteira.rollout.targets.gateway import Gateway

        return Gateway.parse(place)
    raise ConfigError(
        f"a target is in-process, haproxy:SOCKET#BACKEND or gateway:NAMESPACE/NAME, but got {settings.target[:100]!r}",
        code="bad_target",
        where="ESTEIRA_TARGET",
        cure="haproxy:/run/haproxy/esteira.sock#rollout, for example; leave it out where one service does both",
    )


__all__ = ["Target", "make"]
