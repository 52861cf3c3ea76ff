"""The split of a line: the one small file that what serves reads to know whom a unit belongs to. Absent or odd means 0 %."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esteira import outputs
from esteira.errors import ConfigError, OutsideError
from esteira.rollout.state import Side

SCHEMA = 1
FOLDER = "rollouts"
"""Folder below `$ESTEIRA_HOME` where splits and states lie."""
_FIELDS = frozenset({"schema", "test_id", "salt", "percent", "stage", "champion", "challenger", "options"})


@dataclass(frozen=True)
class Split:
    """Who takes part in a line's traffic, and how much of it the candidate takes.

    Attributes:
        test_id, salt: decide with the unit which arm it belongs to (`esteira.rollout.router`).
        percent: of the units that the candidate takes, in [0, 100].
        stage: position in the policy's stages; what is measured is counted there.
        champion, challenger: control and candidate.
        options: the policy's own plan. `outside: true` says that something before the service splits the traffic (a proxy):
            the service then counts by this stage, and answers all it gets with the version that it was started for. With
            `asks_again: true` that proxy says in the header `x-esteira-arm` whose a request is, and lets no caller say it.

    Raises:
        ConfigError: code `bad_percent` or `bad_stage`.
    """

    test_id: str
    salt: str
    percent: float
    stage: int
    champion: Side
    challenger: Side
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.percent, bool) or not (math.isfinite(self.percent) and 0 <= self.percent <= 100):
            raise ConfigError(
                f"a share of traffic lies in 0 to 100 percent, but got {str(self.percent)[:50]}",
                code="bad_percent", where=self.test_id[:100], cure="give a number of percent, such as 10",
            )  # fmt: skip
        if isinstance(self.stage, bool) or self.stage < 0:
            raise ConfigError(
                f"stages count from 0, but got {str(self.stage)[:50]}",
                code="bad_stage", where=self.test_id[:100], cure="give the position of a stage of the policy",
            )  # fmt: skip

    @property
    def outside(self) -> bool:
        """Whether something before the service splits the traffic."""
        return self.options.get("outside") is True

    @property
    def asks_again(self) -> bool:
        """Whether what splits outside says whose a request is, so that the service may believe it."""
        return self.outside and self.options.get("asks_again") is True

    @property
    def primaries(self) -> tuple[str, ...]:
        """What an experiment measures, by place; nothing for any other rollout. A user of an experiment counts once."""
        said = self.options.get("primaries")
        return tuple(map(str, said)) if isinstance(said, list | tuple) else ()

    @property
    def truths(self) -> bool:
        """Whether an experiment's first primary is the outcome of truths; else it comes by its name, like the others."""
        return self.options.get("truths") is not False

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `read` takes them back."""
        return {
            "schema": SCHEMA,
            "test_id": self.test_id,
            "salt": self.salt,
            "percent": self.percent,
            "stage": self.stage,
            "champion": side_dict(self.champion),
            "challenger": side_dict(self.challenger),
            "options": dict(self.options),
        }


def side_dict(side: Side) -> dict[str, Any]:
    """A side as JSON values."""
    return {"version": side.version, "bundle_id": side.bundle_id}


def side_of(said: Any) -> Side:
    """What `side_dict` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    if set(said) != {"version", "bundle_id"}:
        raise ValueError("a side has version and bundle_id")
    version, bundle_id = said["version"], said["bundle_id"]
    if type(version) is not int or version < 1 or not isinstance(bundle_id, str) or not bundle_id:
        raise ValueError("a side's version is a number from 1 and its bundle_id a text")
    return Side(version, bundle_id)


def path(home: Path, line: str) -> Path:
    """Where the split of a line lies; one `os.stat` tells whether it is there and whether it changed."""
    return home / FOLDER / f"{line}.split"


def read(file: Path) -> Split | None:
    """The split in a file; None when it is absent, cut short, of an unknown schema or anything else that cannot be trusted."""
    try:
        said = json.loads(file.read_bytes())
        if set(said) != _FIELDS or type(said["schema"]) is not int or said["schema"] != SCHEMA:
            return None
        test_id, salt, percent, stage = (said[name] for name in ("test_id", "salt", "percent", "stage"))
        fits = (
            isinstance(test_id, str) and isinstance(salt, str) and type(stage) is int and type(percent) in (int, float)
        )
        if not fits or not test_id or not isinstance(said["options"], dict):
            return None
        return Split(
            test_id=test_id, salt=salt, percent=float(percent), stage=stage, champion=side_of(said["champion"]),
            challenger=side_of(said["challenger"]), options=said["options"],
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError, ConfigError):
        return None


def write(home: Path, line: str, split: Split) -> None:
    """Make this the split of a line; whoever reads sees the old one or the new one, whole.

    Raises:
        OutsideError: the disk is full or cannot be written; the old one stands.
    """
    text = json.dumps(split.to_dict(), ensure_ascii=False, allow_nan=False, sort_keys=True)
    outputs.write(home / FOLDER, {path(home, line).name: text.encode("utf-8")})


def clear(home: Path, line: str) -> None:
    """Take all traffic from the candidate; nothing happens when there is no split.

    Raises:
        OutsideError: code `cannot_write`; the file cannot be removed, so that whoever reads it goes on by it.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            path(home, line).unlink()
    except OSError as error:
        raise OutsideError(
            f"a split can be removed, but: {error.strerror or error}",
            code="cannot_write", where=f"{FOLDER}/{path(home, line).name}", cure="see who may write $ESTEIRA_HOME, or remove it",
        ) from error  # fmt: skip
