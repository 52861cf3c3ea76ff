"""Running sums of what an arm of a rollout answered (H-41): counts, sums, squares and a latency histogram, never a payload."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from esteira.latency import BOUNDS

ArmName = Literal["candidate", "control"]


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
        if set(said) != {*whole, *parts, "latency"}:
            raise ValueError("sums have other fields")
        return cls(**whole, **parts, latency=latency)


def answered(seconds: float, *, confidence: float | None = None, error: bool = False) -> Sums:
    """One served unit.

    Args:
        seconds: until its answer.
        confidence: of the answer, in [0, 1]; None where it has none.
        error: the arm could not answer.
    """
    sure = confidence is not None and not error
    value = float(confidence) if sure and confidence is not None else 0.0
    return Sums(
        served=1, errors=int(error), sure=int(sure), confidence=value, confidence_sq=value * value,
        latency={} if error else {bisect_right(BOUNDS, seconds): 1},
    )  # fmt: skip


def labelled(outcome: float) -> Sums:
    """One unit whose truth became known.

    Args:
        outcome: in [0, 1].
    """
    return Sums(labelled=1, outcome=outcome, outcome_sq=outcome * outcome)
