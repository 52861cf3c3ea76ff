"""Requests that come together share a call of the model, and each gets exactly what it would have got alone."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import ConfigError
from esteira.family import Answer, Finding, Row
from esteira.settings import load_settings
from serving.batching import CALL_US, INLINE_ROWS, INLINE_US, Batcher, LateError, totals
from serving.deployments import Deployment
from serving.predictor import load
from tests.small_bundle import OTHER, ROW, make_bundle


class Model:
    """Answers each row with its own number; a row with `error` raises it. `release` lets calls that wait for it go on."""

    def __init__(self, cost_us: float | None = 50.0, *, waits: bool = False) -> None:
        self.cost_us = cost_us
        self.calls: list[list[Any]] = []
        self.findings: list[Sequence[Finding] | None] = []
        self.threads: list[bool] = []
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()
        if not waits:
            self.release.set()

    def answer(self, rows: Sequence[Row], findings: Sequence[Finding] | None = None) -> list[Answer]:
        self.calls.append([row["n"] for row in rows])
        self.findings.append(findings)
        self.threads.append(threading.current_thread() is not threading.main_thread())
        if self.threads[-1]:
            self.begun.release()
            assert self.release.wait(20)
        for row in rows:
            if "error" in row:
                raise row["error"]
        return [{"prediction": row["n"]} for row in rows]


def rows(*numbers: int) -> list[Row]:
    return [{"n": number} for number in numbers]


def said(*numbers: int) -> list[Answer]:
    return [{"prediction": number} for number in numbers]


def together(
    batcher: Batcher, *requests: Sequence[Row], findings: Sequence[Finding] | None = None
) -> "Coroutine[Any, Any, list[list[Answer] | BaseException]]":
    """The answers of requests that come in one turn of the loop; an error instead of an answer is given as it is."""

    async def ask() -> list[list[Answer] | BaseException]:
        return await asyncio.gather(*(batcher.answer(one, findings) for one in requests), return_exceptions=True)

    return ask()


async def company(batcher: Batcher) -> None:
    """Let two requests come together, so that the batcher expects more of them."""
    await together(batcher, rows(-1), rows(-2))
    await asyncio.sleep(0)


def test_requests_of_one_turn_share_a_call_once_they_come_together() -> None:
    before = totals()
    model = Model()
    batcher = Batcher(model)

    async def run() -> None:
        assert [said(1), said(2), said(3)] == await together(batcher, rows(1), rows(2), rows(3))
        assert [said(4), said(5, 6), said(7)] == await together(batcher, rows(4), rows(5, 6), rows(7))

    asyncio.run(run())

    assert [[1], [2, 3], [4, 5, 6, 7]] == model.calls, (
        "the first of all did not wait for company that it did not know of"
    )
    assert (3, 7, 6) == tuple(now - then for now, then in zip(totals(), before, strict=True)), "calls, rows, requests"


def test_a_request_that_comes_alone_is_answered_without_a_wait() -> None:
    model = Model()
    batcher = Batcher(model)

    async def run() -> None:
        for number in range(3):
            asking = batcher.answer(rows(number))
            with pytest.raises(StopIteration) as done:
                asking.send(None)
            assert said(number) == done.value.value
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(run())

    assert [[0], [1], [2]] == model.calls


def test_company_that_stays_away_is_not_waited_for_again() -> None:
    model = Model()
    batcher = Batcher(model)

    async def run() -> None:
        await company(batcher)
        assert said(1) == await batcher.answer(rows(1))
        await asyncio.sleep(0)
        with pytest.raises(StopIteration):
            batcher.answer(rows(2)).send(None)

    asyncio.run(run())


@given(
    st.lists(st.lists(st.lists(st.integers(), min_size=1, max_size=9), max_size=12), max_size=4),
    st.sampled_from([None, 1.0, 50.0, 600.0, 9000.0]),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.001]),
)
def test_each_request_gets_the_answers_of_its_own_rows_in_their_order(
    turns: list[list[list[int]]], cost: float | None, most: int, window: float
) -> None:
    model = Model(cost)
    batcher = Batcher(model, rows=most, window=window)

    async def run() -> None:
        for turn in turns:
            found = await together(batcher, *(rows(*one) for one in turn))
            assert [said(*one) for one in turn] == found

    asyncio.run(run())

    assert 0 == batcher.busy
    assert sum(len(one) for turn in turns for one in turn) == sum(map(len, model.calls))


def test_a_call_of_several_requests_has_at_most_so_many_rows() -> None:
    model = Model()
    batcher = Batcher(model, rows=4)

    async def run() -> None:
        await company(batcher)
        model.calls.clear()
        assert [said(1), said(2, 3), said(4, 5), said(6)] == await together(
            batcher, rows(1), rows(2, 3), rows(4, 5), rows(6)
        )

    asyncio.run(run())

    assert [[1, 2, 3], [4, 5, 6]] == model.calls, "a request is never parted"


def test_rows_that_cost_much_wait_for_few_others() -> None:
    """What a call of several may cost bounds how long a request waits for rows that are not its own."""
    model = Model(CALL_US / 3)
    batcher = Batcher(model)

    async def run() -> None:
        await company(batcher)
        model.calls.clear()
        await together(batcher, *(rows(number) for number in range(9)))

    asyncio.run(run())

    assert 3 == max(map(len, model.calls))
    assert list(range(9)) == sorted(number for call in model.calls for number in call)


@pytest.mark.parametrize(("cost", "most"), [(50.0, 1), (CALL_US * 2, 64)], ids=["off", "dear"])
def test_requests_that_gain_nothing_from_one_another_are_answered_alone(cost: float, most: int) -> None:
    model = Model(cost)
    batcher = Batcher(model, rows=most)

    async def run() -> None:
        for _ in range(2):
            assert [said(1), said(2), said(3)] == await together(batcher, rows(1), rows(2), rows(3))

    asyncio.run(run())

    assert 6 == len(model.calls)


def test_what_may_be_called_directly_is_said() -> None:
    """So the fast path of a request needs no coroutine; where requests gather, nothing is."""
    off, silent, dear, gathers = Model(INLINE_US / 10), Model(None), Model(CALL_US), Model(50.0)

    assert (10, INLINE_ROWS, 0, 0) == (
        Batcher(off, rows=1).direct, Batcher(silent, rows=1).direct, Batcher(dear).direct, Batcher(gathers).direct
    )  # fmt: skip


def test_what_costs_little_is_answered_in_the_loop_and_what_costs_much_in_a_thread() -> None:
    knows, silent = Model(INLINE_US / 10), Model(None)

    async def run() -> None:
        for number in (10, 11):
            assert said(*range(number)) == await Batcher(knows, rows=1).answer(rows(*range(number)))
        for number in (INLINE_ROWS, INLINE_ROWS + 1):
            assert said(*range(number)) == await Batcher(silent, rows=1).answer(rows(*range(number)))

    asyncio.run(run())

    assert [False, True] == knows.threads == silent.threads


def test_while_a_call_runs_in_a_thread_the_next_rows_gather() -> None:
    model = Model(INLINE_US, waits=True)  # two rows are too much for the loop, and as much as a call takes
    batcher = Batcher(model)

    async def run() -> None:
        asked = [asyncio.ensure_future(batcher.answer(rows(number))) for number in range(3)]
        await asyncio.to_thread(model.begun.acquire)
        assert 1 == batcher.busy
        asked += [asyncio.ensure_future(batcher.answer(rows(number))) for number in (3, 4)]
        await asyncio.sleep(0.01)
        assert [[0], [1, 2]] == model.calls, "nothing runs beside it"
        model.release.set()
        assert [said(number) for number in range(5)] == await asyncio.gather(*asked)

    asyncio.run(run())

    assert [[0], [1, 2], [3, 4]] == model.calls
    assert [False, True, True] == model.threads
    assert 0 == batcher.busy


def test_small_requests_do_not_wait_for_one_that_fills_a_call() -> None:
    model = Model(100.0, waits=True)
    batcher = Batcher(model)

    async def run() -> None:
        large = asyncio.ensure_future(batcher.answer(rows(*range(100))))
        await asyncio.to_thread(model.begun.acquire)
        assert [said(1), said(2)] == await together(batcher, rows(1), rows(2))
        assert not large.done()
        model.release.set()
        assert said(*range(100)) == await large

    asyncio.run(run())


@pytest.mark.parametrize("cost", [50.0, 2000.0], ids=["in the loop", "in a thread"])
def test_an_error_is_of_the_request_whose_row_it_is(cost: float) -> None:
    model = Model(cost)
    batcher = Batcher(model, rows=64)
    wrong = ValueError("this row")

    async def run() -> "list[list[Answer] | BaseException]":
        await company(batcher)
        return await together(batcher, rows(1), [{"n": 2, "error": wrong}], rows(3))

    assert [said(1), wrong, said(3)] == asyncio.run(run())


@pytest.mark.parametrize("cost", [50.0, 2000.0], ids=["in the loop", "in a thread"])
def test_an_error_of_the_whole_call_is_told_to_each(cost: float) -> None:
    model = Model(cost)
    batcher = Batcher(model, rows=64)
    broken = RuntimeError("the graph is broken")

    async def run() -> "list[list[Answer] | BaseException]":
        await company(batcher)
        return await together(batcher, *([{"n": number, "error": broken}] for number in range(3)))

    assert [broken] * 3 == asyncio.run(run())


@pytest.mark.parametrize(("cost", "number"), [(50.0, 1), (2000.0, 1), (2000.0, 3)], ids=["loop", "batch", "thread"])
def test_a_model_that_raises_stop_iteration_leaves_nobody_waiting(cost: float, number: int) -> None:
    model = Model(cost)
    batcher = Batcher(model)
    bad = [{"n": 0, "error": StopIteration()}, *rows(*range(1, number))]

    async def run() -> "list[list[Answer] | BaseException]":
        await company(batcher)
        async with asyncio.timeout(20):
            return await together(batcher, rows(1), bad)

    answered, error = asyncio.run(run())

    assert said(1) == answered
    assert isinstance(error, RuntimeError)
    assert "StopIteration" in str(error)


def test_rows_of_a_caller_that_has_gone_are_not_answered() -> None:
    model = Model()
    batcher = Batcher(model)

    async def run() -> None:
        await company(batcher)
        model.calls.clear()
        asked = [asyncio.ensure_future(batcher.answer(rows(number))) for number in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        assert [said(0), said(2)] == await asyncio.gather(asked[0], asked[2])

    asyncio.run(run())

    assert [[0, 2]] == model.calls


def test_a_caller_that_goes_while_its_call_runs_takes_nobody_with_it() -> None:
    model = Model(2000.0, waits=True)
    batcher = Batcher(model)

    async def run() -> None:
        asked = [asyncio.ensure_future(batcher.answer(rows(number))) for number in range(3)]
        await asyncio.to_thread(model.begun.acquire)
        asked[1].cancel()
        await asyncio.sleep(0)
        assert 1 == batcher.busy, "the thread goes on"
        model.release.set()
        assert said(2) == await asked[2]
        assert 0 == batcher.busy

    asyncio.run(run())


def test_a_call_that_takes_too_long_is_told_and_goes_on() -> None:
    model = Model(INLINE_US, waits=True)
    batcher = Batcher(model, seconds=0.05)

    async def run() -> None:
        with pytest.raises(LateError) as late:
            await batcher.answer(rows(1, 2, 3))
        assert (1, False) == (batcher.busy, late.value.call.done())
        model.release.set()
        await asyncio.wait([late.value.call])
        await asyncio.sleep(0)
        assert 0 == batcher.busy

    asyncio.run(run())


def test_what_waits_behind_a_call_that_takes_too_long_is_answered() -> None:
    model = Model(INLINE_US, waits=True)
    batcher = Batcher(model, seconds=0.1)

    async def run() -> "list[list[Answer] | BaseException]":
        asked = [asyncio.ensure_future(batcher.answer(rows(number))) for number in range(3)]
        await asyncio.to_thread(model.begun.acquire)
        asked.append(asyncio.ensure_future(batcher.answer(rows(3), None, 30.0)))
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        first, second, third, behind = asyncio.run(asyncio.wait_for(release_after(run(), model), 30))
    finally:
        model.release.set()

    assert (said(0), said(3)) == (first, behind)
    assert isinstance(second, LateError)
    assert isinstance(third, LateError)


def test_whose_time_is_up_while_it_waits_for_a_call_is_told_then_and_takes_part_in_none() -> None:
    model = Model(INLINE_US, waits=True)
    batcher = Batcher(model, seconds=30.0)

    async def run() -> None:
        asked = [asyncio.ensure_future(batcher.answer(rows(number))) for number in range(4)]
        await asyncio.to_thread(model.begun.acquire)
        with pytest.raises(LateError) as late:
            await batcher.answer(rows(4), None, 0.02)
        assert late.value.call is None
        assert [True, False, False, False] == [one.done() for one in asked], "the others have their own time"
        model.release.set()
        assert [said(number) for number in range(4)] == await asyncio.gather(*asked)

    try:
        asyncio.run(asyncio.wait_for(release_after(run(), model), 30))
    finally:
        model.release.set()

    assert [[0], [1, 2], [3]] == model.calls
    assert 0 == batcher._gathered


def test_each_request_of_a_call_has_its_own_time() -> None:
    model = Model(INLINE_US, waits=True)
    batcher = Batcher(model, seconds=30.0)

    async def run() -> None:
        lefts = (None, 0.02, 30.0)
        asked = [asyncio.ensure_future(batcher.answer(rows(number), None, left)) for number, left in enumerate(lefts)]
        with pytest.raises(LateError) as late:
            await asked[1]
        assert late.value.call is not None
        assert (False, False) == (late.value.call.done(), asked[2].done())
        model.release.set()
        assert said(2) == await asked[2]

    asyncio.run(asyncio.wait_for(release_after(run(), model), 30))

    assert [[0], [1, 2]] == model.calls
    assert 0 == batcher.busy


def test_a_call_that_no_thread_has_begun_when_its_time_is_up_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hangs = Model(INLINE_US), threading.Event()
    batcher = Batcher(model)

    async def run() -> None:
        with pytest.raises(LateError) as late:
            await batcher.answer(rows(1, 2, 3), None, 0.02)
        assert late.value.call is not None
        await asyncio.wait([late.value.call])
        assert late.value.call.cancelled()
        await asyncio.sleep(0)
        assert 0 == batcher.busy

    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr("serving.batching._threads", threads)
        threads.submit(hangs.wait, 30)
        try:
            asyncio.run(asyncio.wait_for(run(), 20))
        finally:
            hangs.set()

    assert [] == model.calls


def test_whose_time_is_up_before_it_asks_is_told_so_at_once() -> None:
    model = Model(INLINE_US)

    async def run() -> None:
        with pytest.raises(LateError) as late:
            await Batcher(model).answer(rows(1, 2, 3), None, -0.1)
        assert late.value.call is None

    asyncio.run(run())

    assert [] == model.calls


async def release_after(asking: "Coroutine[Any, Any, Any]", model: Model) -> Any:
    """What it gives; then the calls that wait go on, so that the loop can end."""
    try:
        return await asking
    finally:
        model.release.set()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> float:
    """A window that no test sees the end of."""
    monkeypatch.setattr("serving.batching.LONGEST_WINDOW", 600.0)
    return 600.0


def test_a_window_gathers_over_turns(endless: float) -> None:
    model = Model(1.0)
    batcher = Batcher(model, rows=2, window=endless)

    async def run() -> None:
        first, second = (asyncio.ensure_future(batcher.answer(rows(number))) for number in range(2))
        assert said(0) == await first
        for _ in range(5):
            await asyncio.sleep(0)
        assert not second.done()
        assert [said(1), said(2)] == await asyncio.gather(second, batcher.answer(rows(2)))

    asyncio.run(run())

    assert [[0], [1, 2]] == model.calls


def test_one_who_asks_one_question_after_the_other_waits_for_no_window(endless: float) -> None:
    model = Model(1.0)
    batcher = Batcher(model, window=endless)

    async def run() -> None:
        for number in range(3):
            with pytest.raises(StopIteration):
                batcher.answer(rows(number)).send(None)
            for _ in range(3):
                await asyncio.sleep(0)

    asyncio.run(run())


def test_a_window_in_which_nobody_else_came_is_the_last() -> None:
    model = Model(1.0)
    batcher = Batcher(model, window=0.001)

    async def run() -> None:
        await company(batcher)
        assert said(1) == await batcher.answer(rows(1))
        await asyncio.sleep(0.01)
        assert said(2) == await batcher.answer(rows(2))
        await asyncio.sleep(0.01)
        with pytest.raises(StopIteration):
            batcher.answer(rows(3)).send(None)

    asyncio.run(run())


def test_a_window_closes_early_when_a_call_is_full(endless: float) -> None:
    model = Model(50.0)
    batcher = Batcher(model, rows=3, window=endless)

    async def run() -> None:
        await together(batcher, rows(0), rows(1), rows(2), rows(3), rows(4), rows(5), rows(6))

    asyncio.run(run())

    assert [[0], [1, 2, 3], [4, 5, 6]] == model.calls


def test_findings_travel_with_their_rows() -> None:
    model = Model()
    batcher = Batcher(model)
    odd = Finding("range", "a", 0, "was 1 to 2", "warning")
    whole = Finding("range", "a", None, "of the column", "warning")

    async def run() -> None:
        await company(batcher)
        await asyncio.gather(
            batcher.answer(rows(1, 2), []), batcher.answer(rows(3), [odd, whole]), batcher.answer(rows(4), [odd])
        )
        await asyncio.gather(batcher.answer(rows(1), []), batcher.answer(rows(2)))

    asyncio.run(run())

    *_, joined, unknown = model.findings
    assert joined is not None
    assert [2, None, 3] == [finding.row for finding in joined]
    assert unknown is None, "a request without findings makes the model look again"


def test_a_model_has_one_batcher_and_goes_when_nobody_holds_it() -> None:
    model = Model()
    batcher, same, other = Batcher.of(model), Batcher.of(model), Batcher.of(Model())
    gone = weakref.ref(model)
    asyncio.run(together(batcher, rows(1), rows(2)))

    assert batcher is same
    assert batcher is not other
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="gone"):
        asyncio.run(batcher.answer(rows(1)))


def test_a_loop_that_ended_leaves_nothing_to_the_next() -> None:
    model = Model()
    batcher = Batcher(model)

    async def leave() -> None:
        await company(batcher)
        for number in range(3):
            asyncio.ensure_future(batcher.answer(rows(number)))  # noqa: RUF006 - it is left on purpose
        await asyncio.sleep(0)

    for _ in range(3):
        asyncio.run(leave())
        assert [said(8), said(9)] == asyncio.run(together(batcher, rows(8), rows(9)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batching") / "bundle"
    make_bundle(folder)
    return folder


def test_a_real_model_answers_a_batch_as_it_answers_each_row(bundle: Path) -> None:
    predictor = load(bundle, Deployment("", None, ""))
    kinds: list[Row] = [ROW, OTHER, {**ROW, "age": 300.0}, {**OTHER, "city": "Faro", "note": None}]
    requests = [[kinds[(start + at) % 4] for at in range(1 + start % 3)] for start in range(20)]
    alone = [predictor.answer(one) for one in requests]
    batcher, before = Batcher.of(predictor), totals()

    async def run() -> "list[list[Answer]]":
        found: list[list[Answer]] = []
        for _ in range(2):
            found = await asyncio.gather(*(batcher.answer(one, predictor.check(one)) for one in requests))
        return found

    found = asyncio.run(run())

    calls, _, asked = (now - then for now, then in zip(totals(), before, strict=True))
    assert calls < asked == 2 * len(requests)
    for expected, actual in zip(alone, found, strict=True):
        assert [one["warnings"] for one in expected] == [one["warnings"] for one in actual]
        assert [one["prediction"] for one in expected] == [one["prediction"] for one in actual]
        for one, other in zip(expected, actual, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-12)


@pytest.mark.parametrize(
    "setting", [{"ESTEIRA_BATCH_MS": "10.1"}, {"ESTEIRA_BATCH_ROWS": "0"}, {"ESTEIRA_ANSWER_CACHE": "-1"}]
)
def test_a_setting_out_of_its_bounds_is_refused(setting: dict[str, str]) -> None:
    """Added latency is bounded: nobody can set a window of more than 10 ms."""
    with pytest.raises(ConfigError, match=next(iter(setting))):
        load_settings(setting, None)


def test_settings_are_read_with_their_units() -> None:
    said = load_settings({"ESTEIRA_BATCH_MS": "2.5", "ESTEIRA_BATCH_ROWS": "8", "ESTEIRA_ANSWER_CACHE": "64MB"}, None)
    default = load_settings({}, None)

    assert (2.5, 8, 64_000_000) == (said.batch_ms, said.batch_rows, said.answer_cache)
    assert (0.0, 64, 0) == (default.batch_ms, default.batch_rows, default.answer_cache)
