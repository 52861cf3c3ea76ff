"""Under load a bounded number is answered, a bounded number waits its turn, the rest is told when to come back, and no slot is lost."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esteira.family import Answer, Finding, Row
from serving.answering import LARGE, Pace, TimedOut
from serving.body import Limits
from serving.cache import AnswerCache
from serving.deployments import Deployment
from serving.gate import Gate
from serving.http import Api, Message
from serving.openapi import describe_api
from serving.outside import THREADS, Outside
from serving.predictor import Predictor
from serving.problems import Problem
from serving.started import Resumed, begin
from tests.serving_fakes import GOOD, LINE, PREDICT, FakeSource, ask, asked, fake_predictor, make_api

# A coroutine that is started by hand


async def _after(turns: int, value: Any) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_coroutine_started_by_hand_gives_what_it_gives_when_awaited(turns: int) -> None:
    async def run() -> Any:
        found = begin(_after(turns, "it"))
        assert isinstance(found, Resumed) == (turns > 0)
        return await found if isinstance(found, Resumed) else found

    assert "it" == asyncio.run(run())


@pytest.mark.parametrize("turns", [0, 2])
def test_what_it_raises_is_raised(turns: int) -> None:
    async def run() -> None:
        found = begin(_after(turns, KeyError("x")))
        assert isinstance(found, Resumed)
        await found

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_a_timeout_reaches_it_and_its_own_clean_up_runs() -> None:
    seen = []

    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("cleaned")

    async def run() -> None:
        found = begin(slow())
        assert isinstance(found, Resumed)
        async with asyncio.timeout(0.01):
            await found

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert ["cleaned"] == seen


# The gate


@given(
    limit=st.integers(1, 3),
    queue=st.integers(0, 3),
    steps=st.lists(st.tuples(st.sampled_from(["arrive", "leave", "give up"]), st.integers(0, 9)), max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_no_slot_is_lost_or_promised_twice_whoever_comes_leaves_or_gives_up(
    limit: int, queue: int, steps: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        gate = Gate(limit, queue, 60.0)
        waiting: list[asyncio.Task[None]] = []
        served: list[int] = []
        inside = refused = number = 0

        async def come(me: int) -> None:
            await gate.enter()
            served.append(me)

        for what, which in steps:
            if what == "arrive":
                number += 1
                waiting.append(asyncio.create_task(come(number)))
            elif what == "leave" and inside:
                inside -= 1
                gate.leave()
            elif what == "give up" and waiting:
                waiting[which % len(waiting)].cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                if task.cancelled():
                    continue
                if task.exception() is None:
                    inside += 1
                else:
                    refused += 1
            assert inside == gate.inside <= limit
            assert len(waiting) == gate.waiting <= queue
            assert not waiting or inside == limit, "nobody waits while a slot is free"
        assert refused == gate.refused
        assert sorted(served) == served, "first come, first served"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(inside):
            gate.leave()
        assert (0, 0) == (gate.inside, gate.waiting)

    asyncio.run(run())


def test_a_slot_that_was_handed_to_a_caller_who_gives_up_in_the_same_turn_goes_on_to_the_next() -> None:
    async def run() -> int:
        gate = Gate(1, 2, 60.0)
        await gate.enter()
        first, second = asyncio.create_task(gate.enter()), asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()
        first.cancel()
        await second
        assert first.cancelled()
        gate.leave()
        return gate.inside

    assert 0 == asyncio.run(run())


def test_who_waits_too_long_is_told_so_and_retry_after_follows_how_long_it_takes() -> None:
    async def run() -> tuple[Problem, Problem]:
        gate = Gate(1, 1, 0.02)
        await gate.enter()
        with pytest.raises(Problem) as late:
            await gate.enter()
        gate._mean = 2.4  # as after waits of that many seconds
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        with pytest.raises(Problem) as busy:
            await gate.enter()
        waiting.cancel()
        return late.value, busy.value

    late, busy = asyncio.run(run())
    assert (503, "waited", b"1") == (late.status, late.error["code"], dict(late.headers)[b"retry-after"])
    assert (429, "busy", b"3") == (busy.status, busy.error["code"], dict(busy.headers)[b"retry-after"])


# The API


class Slow:
    """A model that answers when it may; counts its calls."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.calls = 0
        self.seconds = 0.0

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return []

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        self.calls += 1
        if self.seconds:
            time.sleep(self.seconds)
        else:
            self.may.wait(20)
        return [{"prediction": row.get("a"), "warnings": []} for row in rows]


Make = Callable[..., Api]


@pytest.fixture
def model() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.may.set()


@pytest.fixture
def slow_api(monkeypatch: pytest.MonkeyPatch, model: Slow) -> Make:
    """An API whose model runs in threads, each request alone unless its rows cost less."""

    def make(pace: Pace | None = None, *, cost: float = 1e6, source: FakeSource | None = None, **options: Any) -> Api:
        def load(folder: Any, deployment: Any, device: str) -> Predictor:
            return Predictor(deployment, model, {}, "cpu", cost_us=cost)

        monkeypatch.setattr("serving.predictor.load", load)
        return make_api(source or FakeSource(LINE), pace=pace or Pace(batch_rows=1), **options)

    return make


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_storm_of_ten_times_the_limit_gets_only_200_and_429_and_nobody_is_lost(slow_api: Make, model: Slow) -> None:
    model.seconds = 0.002
    gate = Gate(4, 4, 30.0)
    api = slow_api(gate=gate)

    async def storm() -> list[tuple[int, Any, dict[str, str]]]:
        return await asyncio.gather(*(asked(api, PREDICT, b'{"rows": [{"a": %d}]}' % number) for number in range(80)))

    answers = asyncio.run(storm())

    statuses = [status for status, _, _ in answers]
    assert {200, 429} == set(statuses)
    assert 8 <= statuses.count(200) == model.calls
    assert 80 - statuses.count(200) == gate.refused
    assert all(
        document["rows"][0]["prediction"] == n for n, (status, document, _) in enumerate(answers) if status == 200
    )
    assert all(int(headers["retry-after"]) >= 1 for status, _, headers in answers if status == 429)
    assert (0, 0, 0, 0) == (gate.inside, gate.waiting, api.in_flight, api.bodies)


def test_an_answer_that_takes_too_long_is_504_and_keeps_its_slot_until_its_thread_ends(
    slow_api: Make, model: Slow
) -> None:
    gate = Gate(1, 1, 0.05)
    api = slow_api(gate=gate, pace=Pace(seconds=0.05, batch_rows=1))

    async def run() -> list[tuple[int, str]]:
        found = []
        for _ in range(2):
            status, document, _ = await asked(api, PREDICT, GOOD)
            found.append((status, document["error"]["code"]))
        assert 1 == gate.inside
        model.may.set()
        await _until(lambda: gate.inside == 0)
        status, document, _ = await asked(api, PREDICT, GOOD)
        return [*found, (status, document["rows"][0]["prediction"])]

    assert [(504, "timeout"), (503, "waited"), (200, 1)] == asyncio.run(run())


def test_a_large_body_is_answered_by_a_thread_and_in_time_too(slow_api: Make, model: Slow) -> None:
    gate = Gate(1, 1, 5.0)
    api = slow_api(gate=gate, pace=Pace(seconds=0.05), limits=Limits(rows=3, body=10 * LARGE, bodies=10 * LARGE))
    body = json.dumps({"rows": [{"a": 1, "text": "x" * LARGE}]}).encode()

    async def run() -> tuple[int, int]:
        late, _, _ = await asked(api, PREDICT, body)
        assert 1 == gate.inside
        model.may.set()
        await _until(lambda: gate.inside == 0)
        return late, (await asked(api, PREDICT, body))[0]

    assert (504, 200) == asyncio.run(run())
    assert 422 == ask(api, PREDICT, body.replace(b'"rows"', b'"raws"'))[0]


def test_the_room_of_a_body_is_given_back_when_its_call_ends_and_not_with_the_504(slow_api: Make, model: Slow) -> None:
    limits = Limits(rows=3, body=10 * LARGE, bodies=10 * LARGE)
    api = slow_api(pace=Pace(seconds=0.05, batch_rows=1), limits=limits)
    large, small = json.dumps({"rows": [{"text": "x" * LARGE}]}).encode(), GOOD

    async def run() -> list[int]:
        found = []
        for body in (large, small):
            assert 504 == (await asked(api, PREDICT, body))[0]
            found.append(api.bodies)
        model.may.set()
        await _until(lambda: api.bodies == 0)
        return found

    assert [len(large), len(large) + len(small)] == asyncio.run(run())
    assert 0 == api._answering.gate.inside


def test_a_request_whose_time_is_up_before_it_is_part_of_a_call_gives_its_slot_back_at_once(
    slow_api: Make, model: Slow
) -> None:
    gate = Gate(9, 0, 30.0)
    api = slow_api(Pace(seconds=30.0), cost=1500.0, gate=gate)
    predictor = api._deployed.loaded(LINE)
    assert predictor is not None
    two = b'{"rows": [{"a": 1}, {"a": 2}]}'

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {}

    async def run() -> int:
        first = asyncio.create_task(asked(api, PREDICT, two))
        await _until(lambda: model.calls == 1)
        with pytest.raises(TimedOut) as late:
            await api._answering.answer(predictor, two, b"r", receive, 29.95)
        assert (504, None) == (late.value.status, late.value.call)
        assert (1, 1) == (gate.inside, model.calls), "the call before it goes on, and it has none"
        model.may.set()
        return (await first)[0]

    assert 200 == asyncio.run(run())
    assert (0, 1) == (gate.inside, model.calls)


def test_a_large_body_that_no_thread_has_begun_gives_its_slot_back_with_the_504(slow_api: Make, model: Slow) -> None:
    gate = Gate(99, 0, 5.0)
    limits = Limits(rows=3, body=10 * LARGE, bodies=200 * LARGE)
    api = slow_api(pace=Pace(seconds=0.2), gate=gate, limits=limits)
    threads = api._answering._large._max_workers
    body = json.dumps({"rows": [{"text": "x" * LARGE}]}).encode()

    async def run() -> list[int]:
        answers = await asyncio.gather(*(asked(api, PREDICT, body) for _ in range(threads + 3)))
        assert (threads, threads * len(body)) == (gate.inside, api.bodies)
        model.may.set()
        await _until(lambda: gate.inside == 0)
        return [status for status, _, _ in answers]

    assert {504} == set(asyncio.run(run()))
    assert (threads, 0) == (model.calls, api.bodies)


def test_a_caller_who_hangs_up_while_it_waits_is_not_answered(slow_api: Make, model: Slow) -> None:
    gate = Gate(1, 1, 5.0)
    api = slow_api(gate=gate)

    async def run() -> list[int]:
        first = asyncio.create_task(asked(api, PREDICT, GOOD))
        await _until(lambda: model.calls == 1)
        second = asyncio.create_task(asked(api, PREDICT, GOOD, hangs_up=True))
        await _until(lambda: gate.waiting == 1)
        model.may.set()
        return [(await first)[0], (await second)[0]]

    assert [200, 0] == asyncio.run(run())
    assert (1, 0) == (model.calls, gate.inside)


def test_a_caller_who_hung_up_leaves_its_place_in_the_queue_to_who_comes_next(slow_api: Make, model: Slow) -> None:
    gate = Gate(1, 1, 30.0)
    api = slow_api(gate=gate)

    async def run() -> list[int]:
        first = asyncio.create_task(asked(api, PREDICT, GOOD))
        await _until(lambda: model.calls == 1)
        gone = asyncio.create_task(asked(api, PREDICT, GOOD, hangs_up=True))
        await _until(lambda: gate.waiting == 1)
        third = asyncio.create_task(asked(api, PREDICT, GOOD))
        assert 0 == (await gone)[0]
        assert (1, 0) == (gate.waiting, gate.refused)
        model.may.set()
        return [(await first)[0], (await third)[0]]

    assert [200, 200] == asyncio.run(run())
    assert (0, 0) == (gate.inside, gate.waiting)


def test_probes_health_and_metrics_never_wait(slow_api: Make, model: Slow) -> None:
    class Health:
        ready = True

        def report(self) -> tuple[int, dict[str, Any]]:
            return 200, {"status": "healthy"}

    api = slow_api(gate=Gate(60, 0, 5.0), health=Health())

    async def run() -> dict[str, int]:
        stuck = [asyncio.create_task(asked(api, PREDICT, GOOD)) for _ in range(60)]
        await _until(lambda: model.calls >= 1 and api.in_flight == 60)
        found = {}
        async with asyncio.timeout(10):
            for path in ("/livez", "/readyz", "/health", "/metrics", "/openapi.json", f"/v1/{LINE}/model"):
                found[path] = (await asked(api, path, method="GET"))[0]
            found[PREDICT] = (await asked(api, PREDICT, GOOD))[0]
        model.may.set()
        assert {200} == {status for status, _, _ in await asyncio.gather(*stuck)}
        return found

    assert {
        "/livez": 200, "/readyz": 503, "/health": 200, "/metrics": 200, "/openapi.json": 200, f"/v1/{LINE}/model": 200, PREDICT: 429,
    } == asyncio.run(run())  # fmt: skip  # no life span was started, so it is not ready


def test_a_service_that_drains_answers_on_and_ends_each_connection_with_the_answer(slow_api: Make, model: Slow) -> None:
    model.may.set()
    api = slow_api()

    async def run(drains: bool) -> list[tuple[int, str | None]]:
        if drains:
            await asyncio.to_thread(api.drain)
        asking: list[Awaitable[tuple[int, Any, dict[str, str]]]] = [
            asked(api, PREDICT, GOOD),
            asked(api, PREDICT, b"{"),
            asked(api, "/v1/none/predict", GOOD),
            asked(api, "/docs.json", method="GET"),
            asked(api, "/livez", method="GET"),
            asked(api, "/readyz", method="GET", key=""),
        ]
        return [(status, headers.get("connection")) for status, _, headers in [await one for one in asking]]

    api._alive = True
    before, after = asyncio.run(run(False)), asyncio.run(run(True))

    assert [(200, None), (400, None), (404, None), (200, None), (200, None), (200, None)] == before
    assert [(200, "close"), (400, "close"), (404, "close"), (200, "close"), (200, "close"), (503, "close")] == after


# What is outside


OTHER = "tabular@other"


class Hanging(FakeSource):
    """A registry that does not answer for a version that is not deployed; its other line has no release."""

    def __init__(self) -> None:
        super().__init__(LINE, OTHER)
        self.champion[OTHER] = None
        self.may = threading.Event()
        self.asked = 0

    def version(self, line: str, number: int) -> Deployment | None:
        self.asked += 1
        self.may.wait(30)
        return super().version(line, number)


class HangingJobs:
    """Batch predictions whose store does not answer."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def takes(self, path: str) -> bool:
        return path.startswith("/v1/batch-predictions/")

    async def handle(
        self, method: str, path: str, body: bytes, role: str, request_id: str = ""
    ) -> tuple[int, dict[str, Any]]:
        await asyncio.to_thread(self.may.wait, 30)
        return 200, {}


MANY = 40  # more than the threads that an event loop has of its own


def test_a_registry_and_a_store_that_hang_take_no_thread_of_predictions(slow_api: Make, model: Slow) -> None:
    """The model needs threads; who asks what hangs is told to come back."""
    model.may.set()
    source, jobs = Hanging(), HangingJobs()
    api = slow_api(Pace(seconds=2.0, batch_rows=1), source=source, jobs=jobs)
    path = f"/v1/{LINE}/predict"

    async def run() -> None:
        hang = [asyncio.create_task(asked(api, path, GOOD, query="version=2", key="operator")) for _ in range(MANY)]
        hang += [asyncio.create_task(asked(api, "/v1/batch-predictions/1", method="GET")) for _ in range(MANY)]
        await _until(lambda: source.asked == THREADS and api.in_flight == 2 * MANY)
        assert 200 == (await asked(api, path, GOOD))[0]
        assert 200 == (await asked(api, path, GOOD, query="version=1"))[0], "it is in memory, so nothing is asked"
        status, document, _ = await asked(api, f"/v1/{OTHER}/predict", GOOD)
        assert (503, "no_model") == (status, document["error"]["code"])
        for status, document, headers in await asyncio.gather(*hang):
            assert (503, "outside", "5") == (status, document["error"]["code"], headers["retry-after"])
        assert THREADS == source.asked, "nobody waits for the others any more"
        source.may.set()
        jobs.may.set()
        await _until(lambda: api._outside._gate.inside == 0)
        assert 200 == (await asked(api, path, GOOD, query="version=2", key="operator"))[0]

    try:
        asyncio.run(run())
    finally:
        source.may.set()
        jobs.may.set()


def test_a_service_whose_batch_predictions_hang_stops_all_the_same(slow_api: Make) -> None:
    jobs, heard = HangingJobs(), []

    async def run() -> None:
        words = ["lifespan.startup", "lifespan.shutdown"]

        async def receive() -> Message:
            return {"type": words.pop(0)}

        async def send(message: Message) -> None:
            heard.append(message["type"])

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            hang = [asyncio.create_task(asked(api, "/v1/batch-predictions/1", method="GET")) for _ in range(MANY)]
            await _until(lambda: api.in_flight == MANY)
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            for task in hang:
                task.cancel()

        api = slow_api(jobs=jobs, stop=lambda: heard.append("stop"))
        api._inner = inner
        async with asyncio.timeout(10):
            await api({"type": "lifespan"}, receive, send)
        jobs.may.set()

    try:
        asyncio.run(run())
    finally:
        jobs.may.set()

    assert ["lifespan.startup.complete", "stop", "lifespan.shutdown.complete"] == heard


def test_what_is_asked_outside_gives_what_it_gives_and_raises_what_it_raises() -> None:
    def fails() -> None:
        raise KeyError("words")

    async def run() -> str:
        outside = Outside(10.0)
        with pytest.raises(KeyError):
            await outside.ask(fails)
        return await outside.ask(lambda: "it")

    assert "it" == asyncio.run(run())


def test_a_process_ends_though_what_it_asked_outside_hangs() -> None:
    code = """
import asyncio, threading
from serving.outside import Outside
from serving.problems import Problem

async def run():
    try:
        await Outside(0.05).ask(threading.Event().wait)
    except Problem as problem:
        print(problem.status)

asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (0, "503\n", "") == (done.returncode, done.stdout, done.stderr)


def test_a_thread_that_cannot_be_had_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Any) -> Any:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        outside = Outside(10.0)
        with monkeypatch.context() as patch:
            patch.setattr("serving.outside.in_thread", fails)
            for _ in range(THREADS):
                with pytest.raises(RuntimeError):
                    await outside.ask(lambda: None)
        assert "it" == await outside.ask(lambda: "it")

    asyncio.run(run())


def test_a_batch_prediction_is_told_the_id_that_its_caller_gave_and_no_other(slow_api: Make) -> None:
    told = []

    class Listening(HangingJobs):
        async def handle(
            self, method: str, path: str, body: bytes, role: str, request_id: str = ""
        ) -> tuple[int, dict[str, Any]]:
            told.append(request_id)
            return 202, {}

    api = slow_api(jobs=Listening())
    for headers in ({"x-request-id": "order-17"}, {"x-request-id": "not an id"}, {}):
        assert 202 == asyncio.run(asked(api, "/v1/batch-predictions/1", headers=headers))[0]

    assert ["order-17", "", ""] == told


# The cache


class Counts:
    """A model that says how often it was asked; a row with `odd` gets a warning."""

    def __init__(self) -> None:
        self.calls = 0

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return [Finding("range", "odd", number, "odd", "warning") for number, row in enumerate(rows) if "odd" in row]

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        self.calls += 1
        return [{"prediction": self.calls, "warnings": ["odd"] if "odd" in row else []} for row in rows]


@pytest.mark.parametrize(
    ("first", "second", "deterministic", "calls"),
    [
        ('[{"a": 1}]', '[{"a": 1}]', True, 1),
        ('[{"a": 1, "b": 2}]', '[{"b": 2, "a": 1}]', True, 1),
        ('[{"a": 1}, {"a": 2}]', '[{"a": 2}, {"a": 1}]', True, 1),
        ('[{"a": 1}]', '[{"a": 1}, {"a": 2}]', True, 2),
        ('[{"a": 1}]', '[{"a": 1.0}]', True, 2),
        ('[{"a": 1}]', '[{"a": true}]', True, 2),
        ('[{"a": 1}]', '[{"a": "1"}]', True, 2),
        ('[{"odd": 1}]', '[{"odd": 1}]', True, 2),
        ('[{"a": 1}]', '[{"a": 1}]', False, 2),
    ],
    ids=[
        "same",
        "other order of cells",
        "other order of rows",
        "one is new",
        "float",
        "boolean",
        "text",
        "warned",
        "sampled",
    ],
)
def test_a_row_that_came_before_is_answered_from_the_cache_and_no_other(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str, deterministic: bool, calls: int
) -> None:
    model, cache = Counts(), AnswerCache(1_000_000)
    monkeypatch.setattr(
        "serving.predictor.load",
        lambda _, deployment, __: Predictor(deployment, model, {}, "cpu", deterministic=deterministic),
    )
    api = make_api(FakeSource(LINE), cache=cache)

    one = ask(api, PREDICT, f'{{"rows": {first}}}'.encode())[1]
    two = ask(api, PREDICT, f'{{"rows": {second}}}'.encode())[1]

    assert calls == model.calls
    assert one["request_id"] != two["request_id"]
    assert {"line", "version", "bundle_id", "timestamp"} <= set(two)
    assert [calls] * len(two["rows"]) == [row["prediction"] for row in two["rows"]]


def test_rows_count_as_hits_when_they_saved_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of which one row is new is computed as a whole, so none of its rows was saved."""
    cache = AnswerCache(1_000_000)
    monkeypatch.setattr("serving.predictor.load", lambda _, deployment, __: Predictor(deployment, Counts(), {}, "cpu"))
    api = make_api(FakeSource(LINE), cache=cache)
    counts = []
    for rows in ('[{"a": 1}]', '[{"a": 1}, {"a": 2}]', '[{"a": 2}, {"a": 1}, {"a": 1}]'):
        ask(api, PREDICT, f'{{"rows": {rows}}}'.encode())
        counts.append((cache.hits, cache.misses))

    assert [(0, 1), (0, 3), (3, 3)] == counts


# The document of the API


def test_the_document_of_the_api_is_made_again_only_when_a_line_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    made = describing(monkeypatch)
    source = FakeSource(LINE)
    api = make_api(source)

    first, second = (ask(api, "/openapi.json", method="GET")[1] for _ in range(2))
    assert first == second
    assert 1 == len(made)
    source.champion[LINE] = Deployment(LINE, 2, "2" * 64)
    api._deployed._try_to_follow(LINE)
    ask(api, "/openapi.json", method="GET")
    assert 2 == len(made)


def test_a_document_that_lacks_a_line_whose_model_was_evicted_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = describing(monkeypatch)
    lines = [f"tabular@a{number}" for number in range(17)]
    api = make_api(FakeSource(*lines))
    assert api._deployed.loaded(lines[0]) is None

    for number in range(1, 3):
        ask(api, "/openapi.json", method="GET")
        assert number == len(made)


def describing(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that load at once; the list grows by the lines of each document that is made."""
    made: list[Any] = []

    def describe(lines: Any, *arguments: Any, **options: Any) -> Any:
        made.append(lines)
        return describe_api(lines, *arguments, **options)

    monkeypatch.setattr("serving.predictor.load", lambda _, deployment, __: fake_predictor(deployment))
    monkeypatch.setattr("serving.http.describe_api", describe)
    return made
