"""Takes truths that come later: finds the answer that a rollout gave, and counts its outcome once (H-41)."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from esteira.errors import DataError
from esteira.family import load_family
from esteira.rollout.outcomes import outcome_of
from esteira.rollout.split import Split
from esteira.rollout.sums import number
from serving.arms import Arms
from serving.body import read
from serving.metrics import Metrics
from serving.problems import Problem

if TYPE_CHECKING:
    from esteira.store.records import RolloutUnit
    from esteira.store.rollouts import Labelled, Rollouts

_FIELDS = ("request_id", "unit", "row", "truth", "metric")
_MOST_ROW = 999_999
_MOST_NAME = 1000


class Feedback:
    """Truths of a service's lines. `take` reads and writes the store, so it is called in a thread.

    Args:
        connect: opens the store's `Rollouts`; called when the first truth comes, and again after a failure.
        arms: of this process; they write what they hold first, so that a truth may follow its answer at once.
        metrics: counts them.
        split: of a line, this moment; says what an experiment measures.
    """

    def __init__(
        self, connect: Callable[[], "Rollouts"], arms: Arms, metrics: Metrics, split: Callable[[str], Split | None]
    ) -> None:
        self._connect = connect
        self._arms = arms
        self._metrics = metrics
        self._split = split
        self._rollouts: Rollouts | None = None

    def take(self, line: str, body: bytes, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """What was counted: `{"line", "test_id", "arm", "stage", "version", "request_id", "row", "outcome", "counted"}`.

        Args:
            body: `{"request_id" | "unit": TEXT, "row": 0, "truth": VALUE}`; with `"metric": NAME` a primary of the experiment that
                the line has now, and its value in [0, 1].
            manifest: of what the line serves, whose family and scale outcomes go by.

        Raises:
            Problem: 400 or 422 for another body, 404 `unknown_answer` where no rollout gave such an answer, `unknown_metric` where
                no experiment measures that; 422 `by_truth` or `by_metric` where its first primary comes by the other way.
        """
        known, row, truth, metric = _asked(body)
        request_id, name = known.get("request_id"), known.get("unit")
        family = load_family(str(manifest.get("family")))
        (test_id, place), value = (("", 0), 0.0) if metric is None else (self._place(line, metric), _value(truth))

        def outcome(unit: "RolloutUnit") -> float:
            split = self._split(line)
            if split is not None and split.test_id == unit.test_id and split.primaries and not split.truths:
                raise _other_way("by_metric", f"'metric': '{split.primaries[0]}'")
            return outcome_of(family, truth, unit.answer, manifest)

        def label(rollouts: "Rollouts") -> "Labelled | None":
            if metric is not None:
                return rollouts.measure(test_id, place, value, request_id=request_id, unit=name)
            return rollouts.label(outcome=outcome, line=line, row=row, request_id=request_id, unit=name)

        try:
            if self._rollouts is None:
                self._rollouts = self._connect()
            unwritten = self._arms.waiting  # before the look: what waits then may be written by the time it ends
            found = label(self._rollouts)
            if found is None and unwritten:
                self._arms.flush()
                found = label(self._rollouts)
        except DataError as error:
            raise Problem(422, error.code, error.message, field="truth") from error
        except Problem:
            raise
        except Exception:
            self._rollouts = None
            raise
        if found is None:
            raise Problem(
                404, "unknown_answer",
                "no rollout of this line gave that answer; answers that take part carry the header x-esteira-arm",
                field=next(iter(known)),
            )  # fmt: skip
        unit = found.unit
        if found.counted:
            self._metrics.labelled(line, unit.arm)
        return {
            **({} if metric is None else {"metric": metric}),
            "line": line,
            "test_id": unit.test_id,
            "arm": unit.arm,
            "stage": unit.stage,
            "version": unit.version,
            "request_id": unit.request_id,
            "row": unit.row_index,
            "outcome": unit.outcome,
            "counted": found.counted,
        }

    def _place(self, line: str, metric: str) -> tuple[str, int]:
        """The experiment that measures it, and which of its primaries it is."""
        split = self._split(line)
        names = () if split is None else split.primaries
        if split is None or metric not in names:
            raise Problem(
                404, "unknown_metric",
                f"no experiment of this line measures that now{'; it measures ' + ', '.join(names) if names else ''}",
                field="metric",
            )  # fmt: skip
        place = names.index(metric)
        if place == 0 and split.truths:
            raise _other_way("by_truth", "truths without a 'metric'")
        return split.test_id, place


def _other_way(code: str, way: str) -> Problem:
    """Of an experiment's first primary, which is never the mean of two things."""
    return Problem(422, code, f"the first primary of this experiment is what is sent as {way}", field="metric")


def _value(truth: Any) -> float:
    """The value of a metric.

    Raises:
        Problem: it is no number in [0, 1].
    """
    if not number(truth) or not 0.0 <= float(truth) <= 1.0:
        raise Problem(422, "bad_truth", "the truth of a metric is a number from 0 to 1", field="truth")
    return float(truth)


def _asked(body: bytes) -> tuple[dict[str, str], int, Any, str | None]:
    """Which answer, its row, the truth, and of which metric.

    Raises:
        Problem: the body says it otherwise.
    """
    document = read(body)
    if not isinstance(document, dict):
        raise Problem(422, "wrong_type", 'the body is an object: {"request_id": ..., "truth": ...}')
    for name in document:
        if name not in _FIELDS:
            raise Problem(
                422, "unknown_field", f"a truth has {', '.join(_FIELDS)}, but got {name[:80]!r}", field=name[:80]
            )
    known = {name: document[name] for name in ("request_id", "unit") if name in document}
    if len(known) != 1:
        raise Problem(422, "missing_field", "a truth names either its request_id or its unit", field="request_id")
    for name, value in known.items():
        if not isinstance(value, str) or not 0 < len(value) <= _MOST_NAME:
            raise Problem(422, "wrong_type", f"'{name}' is a text of 1 to {_MOST_NAME} characters", field=name)
    row = document.get("row", 0)
    if type(row) is float and row.is_integer():  # 1.0 is a whole number of JSON
        row = int(row)
    if type(row) is not int or not 0 <= row <= _MOST_ROW:
        raise Problem(422, "wrong_type", f"'row' is a whole number from 0 to {_MOST_ROW}", field="row")
    if document.get("truth") is None:
        raise Problem(422, "missing_field", "the body needs a 'truth' that is not null", field="truth")
    metric = document.get("metric")
    if "metric" in document and (not isinstance(metric, str) or not 0 < len(metric) <= _MOST_NAME):
        raise Problem(422, "wrong_type", f"'metric' is a text of 1 to {_MOST_NAME} characters", field="metric")
    return known, row, document["truth"], metric
