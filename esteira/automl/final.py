"""From chosen trials to the model that answers: bags of fold models where an answer may cost that much, refits elsewhere."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esteira.automl.calibrate import Calibration
from esteira.automl.cost import microseconds
from esteira.automl.ensemble import Limits, mean
from esteira.automl.evaluate import Fitted
from esteira.automl.kinds.base import Cost, Features, Floats
from esteira.onnx.graph import Graph

TOLERANCE = 1e-9  # between the native and the drawn model: of a probability, or of a value's size
FLOOR = Cost(nodes=2)


@dataclass(frozen=True)
class Member:
    """One chosen trial: fitted once on all rows, or a bag of the models of its folds.

    Attributes:
        number: of the trial.
        weight: its share; those of all members add up to 1.
    """

    number: int
    weight: float
    fitted: tuple[Fitted, ...]

    @property
    def form(self) -> str:
        """`refit`, or `bag of N`."""
        return "refit" if self.fitted[0].fold < 0 else f"bag of {len(self.fitted)}"


@dataclass(frozen=True)
class Model:
    """A weighted mean of fitted members, calibrated. Predicts and draws; exact in both.

    Attributes:
        features: width of the table.
        classes: how many; None for regression.
    """

    members: tuple[Member, ...]
    features: int
    classes: int | None
    calibration: Calibration | None = None

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        parts, shares = zip(*[(fitted, share) for fitted, share in self._shares()], strict=True)
        blended = mean([fitted.predict(x) for fitted in parts], shares)
        return blended if self.calibration is None else self.calibration.apply(blended)

    def graph(self) -> bytes:
        """The same as an ONNX graph: input `x` float32 (rows, features), output `y` double."""
        built = Graph(self.features)
        total = ""
        for fitted, share in self._shares():
            part = fitted.draw(built, "x")
            part = part if share == 1.0 else built.add("Mul", part, built.scalar(share, np.float64))
            total = built.add("Add", total, part) if total else part
        if self.calibration is not None:
            total = self.calibration.draw(built, total)
        return built.finish(total, classes=self.classes)

    def cost(self) -> Cost:
        """What one answer costs."""
        last = FLOOR if self.calibration is None else FLOOR + self.calibration.cost()
        return sum((fitted.cost() for member in self.members for fitted in member.fitted), last)

    def _shares(self) -> list[tuple[Fitted, float]]:
        return [(fitted, member.weight / len(member.fitted)) for member in self.members for fitted in member.fitted]


def bags(
    costs: Mapping[int, Cost], weights: Mapping[int, float], count: int, limits: Limits, able: Collection[int]
) -> set[int]:
    """Which members may be bags of `count` fold models, the heaviest first, when all others are one model each.

    Args:
        costs: of one fold's model of each member.
        weights: of each member.
        able: members of which the folds' models can be had.
    """
    chosen: set[int] = set()
    for index in sorted(able, key=lambda index: (-weights[index], index)):
        wanted = chosen | {index}
        total = FLOOR
        for other in weights:
            for _ in range(count if other in wanted else 1):
                total = total + costs[other]
        if limits.allow(total):
            chosen = wanted
    return chosen


def fit_into(members: Sequence[Member], limits: Limits, singles: Callable[[Member], Member]) -> tuple[Member, ...]:
    """Members within the limits: bags become one model each, lightest weight first, then the lightest members go.

    What a refit costs is known only after it, so that a choice by estimates may end a little above the limits.

    Args:
        singles: makes one fitted model of a bag.
    """
    kept = list(members)

    def cost() -> Cost:
        return sum((fitted.cost() for member in kept for fitted in member.fitted), FLOOR)

    for member in sorted(members, key=lambda member: (member.weight, -member.number)):
        if limits.allow(cost()):
            break
        if len(member.fitted) > 1:
            kept[kept.index(member)] = singles(member)
    while len(kept) > 1 and not limits.allow(cost()):
        kept.remove(min(kept, key=lambda member: (member.weight, -member.number)))
    whole = sum(member.weight for member in kept)
    return tuple(Member(member.number, member.weight / whole, member.fitted) for member in kept)


def difference(graph: bytes, native: Callable[[Features], Floats], x: Features) -> float:
    """Largest difference between a graph and what it was drawn of, on these rows together and on some one by one.

    Of values, relative to their size where that is above 1; infinite where one label of the classes differs, and where either
    is not a number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(rows: Features) -> Floats:
        return np.asarray(session.run(["y"], {"x": np.ascontiguousarray(rows)})[0], np.float64)

    expected, drawn = native(x), run(x)
    single = np.concatenate([run(x[at : at + 1]) for at in range(min(len(x), 20))])
    worst = 0.0
    for found, wanted in ((drawn, expected), (single, expected[: len(single)])):
        if wanted.ndim == 2 and bool((found.argmax(axis=1) != wanted.argmax(axis=1)).any()):
            return float("inf")
        gaps = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
        if not np.isfinite(gaps).all():
            return float("inf")
        worst = max(worst, float(np.max(gaps, initial=0.0)))
    return worst


def trying_rows(x: Features, categorical: Sequence[int], count: int, seed: int) -> Features:
    """Rows to hold a graph to: real ones, and copies with missing cells and categories never seen."""
    rng = np.random.default_rng(seed)
    real = x[np.sort(rng.permutation(len(x))[:count])]
    gaps = np.where(rng.random(real.shape) < 0.2, np.float32(np.nan), real)
    unseen = gaps.copy()
    unseen[:, list(categorical)] = np.where(
        rng.random((len(real), len(categorical))) < 0.3, np.float32(0.0), unseen[:, list(categorical)]
    )
    return np.concatenate([real, gaps, unseen]).astype(np.float32)


def shown(model: Model, limits: Limits) -> dict[str, Any]:
    """What a record says of the final model."""
    cost = model.cost()
    return {
        "members": [{"number": m.number, "weight": m.weight, "form": m.form} for m in model.members],
        "row_us": round(microseconds(cost), 2),
        "row_us_limit": limits.row_us,
        "calibration": None if model.calibration is None else model.calibration.named(),
    }
