"""Answers requests of a line whose traffic is split between two versions (H-40), and counts what each did (H-41).

A unit is what must see one version as the share grows: the header `x-unit-id`, else what the family says of its rows, else the
request itself. A candidate that fails, hangs or answers what is no number costs nobody an answer: the champion gives it.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from esteira.errors import DataError
from esteira.family import Answer, Row
from esteira.rollout.router import BUCKETS, bucket, to_candidate
from esteira.rollout.sums import ArmName, number
from serving.answering import LARGE, Answering, TimedOut, document, within
from serving.arms import Arms, Key
from serving.asgi import Receive
from serving.batching import Batcher, LateError
from serving.body import rows_of
from serving.faults import worded
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.problems import Problem
from serving.splits import Live, Splits

if TYPE_CHECKING:
    import asyncio

    from serving.faults import Faults

_log = logging.getLogger("serving")
THREADS = 8
"""Of the champions together, and of each candidate. Where so many calls of a candidate hang, it is asked no more until one ends."""
SHARE = 0.5
"""Of a request's time that a candidate may take; the rest is the champion's."""
_TIMED = 0.9 * BUCKETS
"""The bucket from which the champion's units, a tenth of all, go the candidate's way, so that both are timed alike."""
_WHOSE: Mapping[bytes | None, ArmName] = {b"candidate": "candidate", b"control": "control"}
_TOLD = 60.0  # seconds between two words about the same candidate


class Told(NamedTuple):
    """An answer.

    Attributes:
        body: encoded.
        rows: in it.
        predictor: that computed it.
        arm: that the request's unit belongs to; None where it takes no part in a rollout. A unit of the candidate that the
            candidate could not answer stays one, and `predictor` is the champion's.
    """

    body: bytes
    rows: int
    predictor: Predictor
    arm: ArmName | None


class NotFiniteError(Exception):
    """A candidate answered with what is no number."""


class _Lane:
    """The threads of one candidate in one rollout, so that one that hangs takes nothing from whoever comes after it, or beside it."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="candidate")
        self.hung = 0  # calls that go on after their time

    def came_back(self, call: "asyncio.Future[Any]") -> None:
        self.hung -= 1
        if not call.cancelled():
            call.exception()  # looked at, so that nobody is told that it was not


class SplitAnswering:
    """Answers requests of lines that have a live split.

    Both versions answer the units whose latency is compared the same way, by a thread: all of the candidate's, so that one that
    hangs is left behind, and a tenth of all units at the champion's end of the buckets. The champion's other units go the usual,
    quicker way. No answer is taken from or put into the answer cache.

    Args:
        answering: the usual way; its slots and its time hold here, too.
        splits: that are live.
        arms: counts.
        metrics: counts for people.
        faults: told of a candidate's exceptions.
    """

    def __init__(
        self, answering: Answering, splits: Splits, arms: Arms, metrics: Metrics, faults: "Faults | None" = None
    ) -> None:
        self.live = splits.live
        self._answering = answering
        self._splits = splits
        self._arms = arms
        self._metrics = metrics
        self._faults = faults
        self._lanes: dict[tuple[str, str], _Lane] = {}  # by line and test
        self._control = ThreadPoolExecutor(THREADS, thread_name_prefix="control")
        self._told: dict[str, float] = {}

    def close(self) -> None:
        """Begin no more calls; those in flight end by themselves."""
        for lane in self._lanes.values():
            lane.threads.shutdown(wait=False, cancel_futures=True)
        self._control.shutdown(wait=False)

    async def answer(
        self, live: Live, predictor: Predictor, body: bytes, request_id: bytes, receive: Receive, *,
        unit: bytes | None = None, told: bytes | None = None, spent: float = 0.0,
    ) -> Told:  # fmt: skip
        """The answer, by the version that the unit belongs to.

        Args:
            live: the split as it was found; its file is looked at again, so that a share that was taken back is not used.
            predictor: what the line serves.
            unit: the header `x-unit-id`.
            told: the header `x-esteira-arm`, by which a proxy that splits the traffic, and asks the other service again where one
                fails, says whose the request is; heard only where the split says that there is such a proxy.
            spent: seconds of the request's that are gone already.

        Raises:
            Problem, TimedOut, GoneError: as `Answering.answer`.
        """
        answering = self._answering
        left = answering.pace.seconds - spent
        now = self._splits.now(live)
        if now is None or now.bundle_id != predictor.deployment.bundle_id:
            return await self._usual(predictor, body, request_id, receive, spent)
        if not answering.gate.try_enter():
            waited = await answering.wait(receive, left)
            left -= waited
            now = self._splits.now(now)
            if now is None:
                answering.gate.leave()
                return await self._usual(predictor, body, request_id, receive, spent + waited)
        running: asyncio.Future[Any] | None = None
        try:
            return await self._inside(now, predictor, body, request_id, unit, told, left)
        except LateError as late:
            running = late.call
            raise TimedOut(answering.pace.seconds, running) from None
        except DataError as error:
            raise Problem(422, error.code, error.message) from error
        finally:
            if running is None:
                answering.gate.leave()
            else:
                running.add_done_callback(answering.ended)

    async def _usual(
        self, predictor: Predictor, body: bytes, request_id: bytes, receive: Receive, spent: float
    ) -> Told:
        answer, rows = await self._answering.answer(predictor, body, request_id, receive, spent)
        return Told(answer, rows, predictor, None)

    async def _inside(
        self, live: Live, predictor: Predictor, body: bytes, request_id: bytes, unit: bytes | None, told: bytes | None,
        left: float,
    ) -> Told:  # fmt: skip
        begun = time.perf_counter()
        large = len(body) > LARGE
        read = partial(rows_of, body, self._answering.rows)
        rows = await within(self._control, left, read) if large else read()
        name = _unit(live, rows, unit, request_id)
        if name is None:
            self._metrics.mixed(live.line)
            _, answer = await self._by_champion(predictor, rows, request_id, left, thread=large)
            return Told(answer, len(rows), predictor, None)
        split = live.split
        place = bucket(split.salt, split.test_id, name)
        arm: ArmName
        whose = _WHOSE.get(told) if live.arm is not None and split.asks_again else None
        if live.arm is not None:
            arm, thread, timed = whose or live.arm, large, True
        elif name in live.named or to_candidate(split.percent, place):
            return await self._of_candidate(live, predictor, rows, request_id, name, begun, left, large=large)
        else:
            timed = place >= _TIMED
            arm, thread = "control", timed or large
        key = Key(split.test_id, split.stage, arm)
        try:
            answers, answer = await self._by_champion(predictor, rows, request_id, left, thread=thread)
        except (Problem, DataError):
            raise  # the row is at fault, and would be in either arm
        except Exception:
            if whose is None or whose != live.arm:  # else the other service is asked again, and counts it
                self._count(live, key, name, error=True)
            raise
        if whose is not None and whose != live.arm:
            self._count(live, key, name, error=True)  # of the other one, which could not
        elif sound(answers):
            self._count(live, key, name, answers, seconds=time.perf_counter() - begun if timed else None)
            self._arms.note(key, live.line, predictor.deployment.version, name, request_id.decode(), answers)
        else:
            self._count(live, key, name, error=True)
        return Told(answer, len(rows), predictor, arm)

    async def _of_candidate(
        self, live: Live, champion: Predictor, rows: Sequence[Row], request_id: bytes, name: str, begun: float, left: float,
        *, large: bool,
    ) -> Told:  # fmt: skip
        """The answer to a unit of the candidate's, by the champion where the candidate has none in time."""
        key = Key(live.split.test_id, live.split.stage, "candidate")
        candidate = live.candidate
        found = None
        if candidate is not None and (lane := self._lane(live)).hung < THREADS:
            found = await self._by_candidate(lane, candidate, rows, request_id, left)
        if found is not None and candidate is not None:
            answers, answer = found
            self._count(live, key, name, answers, seconds=time.perf_counter() - begun)
            self._arms.note(key, live.line, candidate.deployment.version, name, request_id.decode(), answers)
            return Told(answer, len(rows), candidate, "candidate")
        left -= time.perf_counter() - begun
        try:
            _, answer = await self._by_champion(champion, rows, request_id, left, thread=large)
        except (Problem, DataError):
            raise
        except Exception:
            self._count(live, key, name, error=True)
            raise
        self._count(live, key, name, error=True)
        return Told(answer, len(rows), champion, "candidate")

    def _lane(self, live: Live) -> _Lane:
        """The threads of this rollout's candidate. Those of rollouts that are over end when their calls do."""
        key = (live.line, live.split.test_id)
        lane = self._lanes.get(key)
        if lane is None:
            running = {(line, found.split.test_id) for line, found in list(self.live.items())}
            for over in self._lanes.keys() - running:
                self._lanes.pop(over).threads.shutdown(wait=False)
            lane = self._lanes[key] = _Lane()
        return lane

    async def _by_candidate(
        self, lane: _Lane, candidate: Predictor, rows: Sequence[Row], request_id: bytes, left: float
    ) -> tuple[list[Answer], bytes] | None:
        seconds = left * SHARE
        work = partial(self._call, candidate, rows, request_id, time.monotonic() + seconds, strict=True)
        try:
            return await within(lane.threads, seconds, work)
        except LateError as late:
            if late.call is not None:
                lane.hung += 1
                late.call.add_done_callback(lane.came_back)
            self._tell(candidate, late)
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises, the champion answers
            self._tell(candidate, error)
        return None

    async def _by_champion(
        self, predictor: Predictor, rows: Sequence[Row], request_id: bytes, left: float, *, thread: bool
    ) -> tuple[list[Answer], bytes]:
        if thread:
            work = partial(self._call, predictor, rows, request_id, time.monotonic() + left, strict=False)
            return await within(self._control, left, work)
        findings = predictor.check(rows)
        if findings:
            self._answering.judge(predictor, findings)
        pace = self._answering.pace
        batcher = Batcher.of(predictor, rows=pace.batch_rows, window=pace.batch_seconds, seconds=pace.seconds)
        if len(rows) <= batcher.direct:
            answers = predictor.answer(rows, findings)
        else:
            answers = await batcher.answer(rows, findings, left)
        return answers, document(predictor, answers, request_id)

    def _call(
        self, predictor: Predictor, rows: Sequence[Row], request_id: bytes, until: float, *, strict: bool
    ) -> tuple[list[Answer], bytes]:
        """In a thread: answers, and the document of them.

        Args:
            strict: an answer, or its confidence, that is no number is a failure.
        """
        if time.monotonic() > until:  # it waited for a thread until nobody waited for it
            raise LateError
        findings = predictor.check(rows)
        if findings:
            self._answering.judge(predictor, findings)
        answers = predictor.answer(rows, findings)
        if strict and not sound(answers):
            raise NotFiniteError
        return answers, document(predictor, answers, request_id)

    def _count(
        self, live: Live, key: Key, name: str, answers: Sequence[Answer] = (), *, seconds: float | None = None,
        error: bool = False,
    ) -> None:  # fmt: skip
        user = name if live.split.primaries else ""
        self._arms.count(key, answers, seconds=seconds, error=error, user=user)
        self._metrics.rollout(live.line, key.arm, error=error)

    def _tell(self, candidate: Predictor, error: Exception) -> None:
        """Say once a minute why a candidate's units are answered by the champion. Its words may hold a cell, and are not said."""
        deployment = candidate.deployment
        now = time.monotonic()
        if now - self._told.get(deployment.line, -_TOLD) < _TOLD:
            return
        self._told[deployment.line] = now
        why = "took too long" if isinstance(error, LateError) else worded(error)
        _log.error("the champion answers for candidate %s of line %s: %s", deployment.version, deployment.line, why)
        if self._faults is not None and not isinstance(error, LateError | NotFiniteError | Problem | DataError):
            self._faults(error, line=deployment.line, bundle_id=deployment.bundle_id)


def _unit(live: Live, rows: Sequence[Row], given: bytes | None, request_id: bytes) -> str | None:
    """The name of the unit; None where the rows are of several."""
    if given:
        return given.decode("utf-8", "surrogateescape")
    if live.unit_of is not None:
        names = {_name(live, row) for row in rows}
        if len(names) > 1:
            return None
        name = names.pop()
        if name is not None:
            return name
    return request_id.decode()


def _name(live: Live, row: Row) -> str | None:
    assert live.unit_of is not None
    try:
        found = live.unit_of(row)
    except Exception:  # noqa: BLE001 - a row that the contract has not been asked about yet may be anything
        return None
    return None if found is None else str(found)


def sound(answers: Sequence[Answer]) -> bool:
    """Whether every number in the answers is one, and every confidence, where there is one, is a number."""
    return finite(answers) and all(
        (confidence := answer.get("confidence")) is None or number(confidence) for answer in answers
    )


def finite(value: Any) -> bool:
    """Whether no number in it is NaN or infinite; numpy's are numbers, too."""
    kind = type(value)
    if kind is float:
        return isfinite(value)
    if kind is list or kind is tuple:
        return all(map(finite, value))
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    if isinstance(value, float):
        return isfinite(value)
    as_python = getattr(value, "tolist", None)
    return True if as_python is None else finite(as_python())
