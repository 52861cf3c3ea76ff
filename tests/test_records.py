"""Records of predictions wait while their store is away, are bounded, and are written when the service stops."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.records import Recorder
from tests.serving_fakes import kept_nowhere, until


def record(number: int) -> Mapping[str, Any]:
    return {"request_id": str(number)}


def test_records_wait_while_the_store_is_away_and_are_written_when_it_is_back() -> None:
    kept: list[Any] = []
    away = [True]

    def connect() -> Callable[[Sequence[Mapping[str, Any]]], None]:
        if away[0]:
            raise OSError("no store")
        return kept.extend

    recorder = Recorder(connect, period=0.01)
    recorder.start()
    for number in range(3):
        recorder.put(record(number))
    assert until(lambda: recorder.failures > 0)
    away[0] = False

    assert until(lambda: [record(number) for number in range(3)] == kept)
    recorder.stop()
    assert 0 == recorder.waiting


def test_the_queue_of_records_is_bounded_and_counts_what_it_drops() -> None:
    recorder = Recorder(lambda: kept_nowhere, capacity=5)
    for number in range(8):
        recorder.put(record(number))

    assert (5, 3) == (recorder.waiting, recorder.dropped)


def test_what_waits_is_written_when_the_service_stops() -> None:
    kept: list[Any] = []
    recorder = Recorder(lambda: kept.extend, period=60)
    recorder.start()
    recorder.put(record(1))
    recorder.stop()

    assert [record(1)] == kept
