"""Shifts the weights of two servers of an HAProxy backend through its runtime socket, and reads them back.

The backend has the servers `champion` and `challenger`; manifests/haproxy/rollout.cfg is one. Commands are those of HAProxy 2.6's
management guide, section 9.3: `set server B/S weight N` and `show servers state B`. HAProxy shares requests among weights of
0 to 256 exactly, in turn, so 10 % is 10 beside 90; a reload or restart begins again with the weights of its file.

Callers that name their unit stay where they are: the backend computes the bucket of H-40 from the header `x-unit-id` and from a
process-wide variable that says salt and test, and compares it with the very weights.
"""

import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import quote

from esteira.errors import ConfigError, OutsideError
from esteira.rollout.split import Split

CHAMPION, CHALLENGER = "champion", "challenger"
MOST = 256
"""The largest weight that HAProxy takes."""
NEAR = 0.1
"""Points of percent that a pair of weights may be off."""
_LIMIT = 1 << 20
_UP = frozenset({1, 2})  # warming up, running; 0 is down and 3 drains


@dataclass(frozen=True)
class Weights:
    """The weights of the two servers, 0 to 256 each, not both 0."""

    champion: int
    challenger: int

    @property
    def percent(self) -> float:
        """Of the traffic that the challenger gets."""
        return 100 * self.challenger / (self.champion + self.challenger)


@dataclass(frozen=True)
class Server:
    """A server as `show servers state` tells it.

    Attributes:
        weight: 0 to 256.
        operation: 0 down, 1 warming up, 2 running, 3 draining.
        administration: a mask; anything but 0 is maintenance or drain.
    """

    weight: int
    operation: int
    administration: int

    @property
    def up(self) -> bool:
        """Whether it takes requests."""
        return self.operation in _UP and self.administration == 0


@lru_cache(maxsize=128)
def weights(percent: float) -> Weights:
    """The smallest weights that give this percent: those of a sum of 100 for whole percents, else the nearest fraction.

    Every percent from 0.4 to 99.6 is met within 0.1 points; between 0 and 0.4 two weights of at most 256 cannot.

    Args:
        percent: 0 to 100, of the challenger.

    Raises:
        ConfigError: code `bad_percent`; it is no such number, or no weights come near it.
    """
    if not 0 <= percent <= 100:
        raise _bad_percent(percent)
    if percent == int(percent):
        return Weights(100 - int(percent), int(percent))
    share = percent / 100
    # For each weight of one of the two, the best of the other; the loop is 512 steps, and its answers are kept.
    pairs = [Weights(large, round(large * share / (1 - share))) for large in range(1, MOST + 1)]
    pairs += [Weights(round(large * (1 - share) / share), large) for large in range(1, MOST + 1)]
    fit = [pair for pair in pairs if max(pair.champion, pair.challenger) <= MOST]
    best = min(fit, key=lambda pair: (round(abs(pair.percent - percent), 9), pair.champion + pair.challenger))
    # A share of nothing, or of all, is another thing than a small or a large one.
    if abs(best.percent - percent) > NEAR or best.percent in (0.0, 100.0):
        raise _bad_percent(percent)
    return best


def order(now: Weights, wanted: Weights) -> tuple[tuple[str, int], ...]:
    """The weights to set, in the order in which the share on the way leaves the two ends least; never both 0 on the way.

    Returns:
        (server, weight) pairs; those that stand already are left out.
    """
    if now == wanted:
        return ()
    first_champion = (wanted.champion, now.challenger)
    first_challenger = (now.champion, wanted.challenger)
    low, high = sorted((now.percent, wanted.percent))

    def beyond(pair: tuple[int, int]) -> float:
        if sum(pair) == 0:
            return float("inf")
        percent = 100 * pair[1] / sum(pair)
        return max(low - percent, percent - high, 0.0)

    steps = [(CHALLENGER, wanted.challenger), (CHAMPION, wanted.champion)]
    if beyond(first_champion) < beyond(first_challenger):
        steps.reverse()
    standing = {CHAMPION: now.champion, CHALLENGER: now.challenger}
    return tuple((server, weight) for server, weight in steps if standing[server] != weight)


def servers(text: str) -> dict[str, Server]:
    """Server name -> what `show servers state BACKEND` says of it.

    Raises:
        ValueError: it is no such answer, or of another format than version 1.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise ValueError(lines[0].strip()[:200] if lines else "nothing")
    names = lines[1][2:].split()
    found = {}
    for line in lines[2:]:
        if line.startswith("#"):
            continue
        row = dict(zip(names, line.split(), strict=False))
        try:
            found[row["srv_name"]] = Server(
                weight=int(row["srv_uweight"]),
                operation=int(row["srv_op_state"]),
                administration=int(row["srv_admin_state"]),
            )
        except KeyError as error:
            raise ValueError(f"a server without {error}") from error
    return found


def said_before(split: Split) -> str:
    """What the proxy hashes before a unit, as `esteira.rollout.router.bucket` does, each byte of it fit for a command line."""
    return quote(f"{split.salt}\0{split.test_id}\0", safe="", errors="surrogatepass")


class HAProxy:
    """A backend of a running HAProxy.

    Args:
        socket: its runtime API with level admin: the path of a unix socket, or `host:port`.
        backend: name of the backend that has the two servers.
        patience: seconds until an answer.
    """

    name = "haproxy"
    settle_seconds = 60.0
    sticky, named, asks_again = True, False, True

    def __init__(self, socket: str, backend: str, *, patience: float = 2.0) -> None:
        self._socket, self._backend, self._patience = socket, backend, patience

    @property
    def place(self) -> str:
        """Socket and backend."""
        return f"haproxy:{self._socket}#{self._backend}"

    @classmethod
    def parse(cls, place: str) -> Self:
        """The target that `SOCKET#BACKEND` names.

        Raises:
            ConfigError: code `bad_target`; it names none.
        """
        socket, _, backend = place.rpartition("#")
        if not socket or re.fullmatch(r"[A-Za-z0-9_.:-]+", backend) is None:
            raise ConfigError(
                f"HAProxy is named by its runtime socket and a backend, but got {place[:100]!r}",
                code="bad_target",
                where="ESTEIRA_TARGET",
                cure="write haproxy:SOCKET#BACKEND, such as haproxy:/run/haproxy/esteira.sock#rollout",
            )
        return cls(socket, backend)

    def share(self) -> float | None:
        """Percent by the weights of the two servers; None when it cannot be read. A server that is down keeps its weight."""
        try:
            return _weights(self._servers()).percent
        except (OutsideError, ZeroDivisionError):
            return None

    def shift(self, split: Split | None, *, first: bool = False) -> None:
        """Set the weights and read them back.

        A challenger that is not up yet may have its share: HAProxy gives it to the champion until it is.

        Raises:
            OutsideError: code `haproxy_away`, `haproxy_refused`, `shift_unseen`, or `candidate_down`: all traffic is for a
                challenger that is not up.
            ConfigError: code `bad_percent`.
        """
        wanted = weights(0.0 if split is None else split.percent)
        before = self._servers()
        now = _weights(before)
        if wanted.champion == 0 and now != wanted and not before[CHALLENGER].up:
            raise OutsideError(
                f"all traffic goes to a candidate that is up, but HAProxy says that {self._backend}/{CHALLENGER} is not "
                f"(operational state {before[CHALLENGER].operation}, administrative {before[CHALLENGER].administration})",
                code="candidate_down",
                where=self._where,
                cure="see that the challenger's service answers 200 on /readyz, then try again; the shares are as they were",
            )
        if split is not None and wanted.challenger:
            self._tell(split)
        steps = _forced(wanted) if now.champion + now.challenger == 0 else order(now, wanted)
        if not steps:
            return
        # In one line, so that no other command comes in between; a refusal of one does not stop the next, hence the look.
        command = "; ".join(f"set server {self._backend}/{server} weight {weight}" for server, weight in steps)
        said = self._ask(command).strip()
        after = _weights(self._servers())
        if after != wanted:
            raise OutsideError(
                f"HAProxy must have the weights {wanted.champion} and {wanted.challenger} afterwards, but it has "
                f"{after.champion} and {after.challenger}" + (f"; it said: {said[:200]}" if said else ""),
                code="haproxy_refused" if said else "shift_unseen",
                where=self._where,
                cure="give the socket `level admin` and the backend an algorithm with weights that move (balance roundrobin)",
            )

    def _tell(self, split: Split) -> None:
        """Say whose units are shared out, before they are."""
        name = "proc.esteira_" + re.sub(r"[^A-Za-z0-9]", "_", self._backend)
        wanted = said_before(split)
        if f"<{wanted}>" in self._ask(f"get var {name}"):
            return
        said = self._ask(f"experimental-mode on; set var {name} str({wanted})").strip()
        if f"<{wanted}>" not in self._ask(f"get var {name}"):
            raise OutsideError(
                f"HAProxy keeps the test that is under way in {name}, but it does not"
                + (f": {said[:200]}" if said else ""),
                code="haproxy_refused",
                where=self._where,
                cure="take HAProxy 2.6 or newer, and give the socket `level admin`",
            )

    @property
    def _where(self) -> str:
        return f"HAProxy at {self._socket}, backend {self._backend}"

    def _servers(self) -> dict[str, Server]:
        text = self._ask(f"show servers state {self._backend}")
        try:
            found = servers(text)
        except ValueError as error:
            raise OutsideError(
                f"HAProxy tells the state of its servers in format 1, but it said: {str(error)[:200]}",
                code="haproxy_refused",
                where=self._where,
                cure="name the backend as HAProxy's file does, in ESTEIRA_TARGET after #",
            ) from error
        missing = sorted({CHAMPION, CHALLENGER} - found.keys())
        if missing:
            raise OutsideError(
                f"the backend has the servers {CHAMPION} and {CHALLENGER}, but it has {', '.join(sorted(found))[:200] or 'none'}",
                code="haproxy_refused",
                where=self._where,
                cure="see manifests/haproxy/rollout.cfg for such a backend",
            )
        return found

    def _ask(self, command: str) -> str:
        """What HAProxy answers to a line of commands, whole."""
        try:
            with self._connect() as line:
                line.settimeout(self._patience)
                line.sendall(command.encode() + b"\n")
                said = bytearray()
                while block := line.recv(65536):
                    said += block
                    if len(said) > _LIMIT:
                        raise OSError("its answer does not end")
        except OSError as error:  # a timeout is one
            raise OutsideError(
                f"HAProxy answers on its runtime socket, but: {error.strerror or str(error) or type(error).__name__}",
                code="haproxy_away",
                where=self._where,
                cure="see that HAProxy runs with this `stats socket` and that this user may open it; then try again",
            ) from error
        return said.decode("utf-8", "replace")

    def _connect(self) -> socket.socket:
        host, colon, port = self._socket.rpartition(":")
        if colon and port.isdigit() and "/" not in self._socket:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=self._patience)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(self._patience)
            line.connect(self._socket)
        except BaseException:
            line.close()
            raise
        return line


def _weights(found: dict[str, Server]) -> Weights:
    return Weights(found[CHAMPION].weight, found[CHALLENGER].weight)


def _forced(wanted: Weights) -> tuple[tuple[str, int], ...]:
    """Both weights, where both were 0 and nobody got anything: the champion's first."""
    return ((CHAMPION, wanted.champion), (CHALLENGER, wanted.challenger))


def _bad_percent(percent: float) -> ConfigError:
    return ConfigError(
        f"HAProxy's weights of 0 to {MOST} give 0, 0.4 to 99.6 and 100 percent, but {percent:g} was asked",
        code="bad_percent",
        where="ESTEIRA_TARGET",
        cure="take a larger share for this stage",
    )
