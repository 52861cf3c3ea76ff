"""Running sums of what an arm of a rollout answered (H-41): counts, sums, squares and a latency histogram, never a payload."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Literal, Self, TypeGuard

from esteira.latency import BOUNDS

ArmName = Literal["candidate", "control"]
_LATER = ("units", "units_sq")
"""Numbers that sums of the first version do not have."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What one arm did in one stage. Adding two gives what they did together, in any order.

    Attributes:
        served: units that the arm was to answer.
        errors: of these, that it did not answer (the champion answered in its place) or answered with what is no number.
        labelled: units whose truth is known by now.
        outcome: sum of their outcomes, each in [0, 1]; 1 is right, for a regression 1 less the scaled error.
        outcome_sq: sum of their squares.
        sure: answers that carry a confidence.
        confidence: sum of these, each in [0, 1].
        confidence_sq: sum of their squares.
        latency: bucket of `esteira.latency.BOUNDS` (`bisect_right(BOUNDS, seconds)`) -> answers.
        units: of an experiment (`ab`), whose requests name their user: users that were served. `served` then counts their requests,
            and `labelled` users again, each with the mean of its outcomes. 0 where each request is a unit of its own.
        units_sq: sum of the squares of the requests of each of these.
    """

    served: int = 0
    errors: int = 0
    labelled: int = 0
    outcome: float = 0.0
    outcome_sq: float = 0.0
    sure: int = 0
    confidence: float = 0.0
    confidence_sq: float = 0.0
    latency: Mapping[int, int] = field(default_factory=dict)
    units: int = 0
    units_sq: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        """Both together."""
        numbers = {
            one.name: getattr(self, one.name) + getattr(other, one.name)
            for one in fields(self)
            if one.name != "latency"
        }
        latency = dict(self.latency)
        for bucket, count in other.latency.items():
            latency[bucket] = latency.get(bucket, 0) + count
        return Sums(**numbers, latency=latency)

    @property
    def people(self) -> int:
        """Users that were served, each once; where each request is a unit of its own, requests."""
        return self.units or self.served

    @property
    def weight(self) -> float:
        """What one request counts in terms of independent ones, in (0, 1].

        Kish's effective sample size over the requests: were all requests of a user to say the same, which is the worst,
        their mean would vary as that of so many independent ones.
        """
        return min(1.0, self.served / self.units_sq) if self.units_sq else 1.0

    @property
    def error_rate(self) -> float | None:
        """Share of the served units that it did not answer; None before the first."""
        return self.errors / self.served if self.served else None

    @property
    def accuracy(self) -> float | None:
        """Mean outcome of the labelled units; None before the first."""
        return self.outcome / self.labelled if self.labelled else None

    @property
    def mean_confidence(self) -> float | None:
        """Mean of the confidences; None before the first."""
        return self.confidence / self.sure if self.sure else None

    def latency_at(self, share: float) -> float | None:
        """The upper bound, in seconds, of the bucket that holds this percentile (nearest rank); None before the first answer.

        Args:
            share: in (0, 1], such as 0.95.
        """
        total = sum(self.latency.values())
        if not total:
            return None
        rank, seen = max(1, -int(-share * total // 1)), 0
        for bucket in sorted(self.latency):
            seen += self.latency[bucket]
            if seen >= rank:
                return BOUNDS[min(bucket, len(BOUNDS) - 1)]
        raise AssertionError("a rank lies within the total")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` reads them."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "latency"}
        if not self.units_sq:  # the users of one writer may all have been seen by another, first
            numbers = {name: value for name, value in numbers.items() if name not in _LATER}
        return {**numbers, "latency": {str(bucket): count for bucket, count in sorted(self.latency.items())}}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        latency = {int(bucket): int(count) for bucket, count in said["latency"].items()}
        whole = {name: int(said[name]) for name in ("served", "errors", "labelled", "sure")}
        parts: dict[str, Any] = {
            name: float(said[name]) for name in ("outcome", "outcome_sq", "confidence", "confidence_sq")
        }
        later = {name: int(said[name]) for name in _LATER if name in said}
        if set(said) != {*whole, *parts, *later, "latency"}:
            raise ValueError("sums have other fields")
        return cls(**whole, **parts, **later, latency=latency)


class Tally:
    """Sums that grow by one served unit at a time; whoever counts, live or from a log, counts by `add`.

    One thread adds and another may read: it may see a unit half counted, and sees it whole at its next look.
    """

    __slots__ = ("confidence", "confidence_sq", "errors", "latency", "served", "sure")

    def __init__(self) -> None:
        self.served = self.errors = self.sure = 0
        self.confidence = self.confidence_sq = 0.0
        self.latency = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float | None = None, confidences: Iterable[object] = (), *, error: bool = False) -> None:
        """Count one unit.

        Args:
            seconds: until its answer; None where that is not comparable with the other arm's.
            confidences: of its answers; what is no number in [0, 1] is none.
            error: the arm could not answer; then nothing else counts.
        """
        self.served += 1
        if error:
            self.errors += 1
            return
        if seconds is not None:
            self.latency[bisect_right(BOUNDS, seconds)] += 1
        for said in confidences:
            if number(said) and 0.0 <= (value := float(said)) <= 1.0 + 1e-9:
                self.sure += 1
                self.confidence += value
                self.confidence_sq += value * value

    def sums(self) -> Sums:
        """What was counted so far."""
        latency = {bucket: count for bucket, count in enumerate(self.latency.copy()) if count}
        return Sums(
            served=self.served, errors=self.errors, sure=self.sure, confidence=self.confidence,
            confidence_sq=self.confidence_sq, latency=latency,
        )  # fmt: skip


def number(value: object) -> TypeGuard[Real]:
    """Whether it is a real number; numpy's are, too, and True is none."""
    return type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))


def labelled(outcome: float) -> Sums:
    """One unit whose truth became known.

    Args:
        outcome: in [0, 1].
    """
    return Sums(labelled=1, outcome=outcome, outcome_sq=outcome * outcome)
