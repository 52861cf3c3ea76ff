"""The last requests of a line are kept for rehearsals where that is asked for: as they came, bounded, and for the owner's eyes."""

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.request_log import MOST_BODY, RequestLog
from tests.rollout_fakes import Model, load_models
from tests.serving_fakes import LINE, FakeSource, ask, make_api


def kept(home: Path, line: str = LINE) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (home / "requests" / f"{line}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_requests_are_kept_as_they_came(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 10)
    log.put(LINE, b"r1", None, b'{ "rows": [\n  {"a": 1.50, "b": "x\\n y", "c": null} ] }')
    log.put(LINE, b"r2", "jo\u00e3o".encode(), b'{"rows":[{"a":true}]}')
    log.write()
    first, second = kept(tmp_path)

    assert ("r1", [{"a": 1.5, "b": "x\n y", "c": None}]) == (first["request_id"], first["rows"])
    assert ("r2", "jo\u00e3o", [{"a": True}]) == (second["request_id"], second["unit"], second["rows"])
    assert "unit" not in first
    assert first["at"].endswith("Z")
    assert b'"a":1.50' in (tmp_path / "requests" / f"{LINE}.jsonl").read_bytes(), "numbers keep their digits"


def test_a_line_keeps_its_last_requests(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 10)
    for number in range(200):
        log.put(LINE, b"r%d" % number, None, b'{"rows":[{}]}')
        if number % 3 == 0:
            log.write()
    log.write()

    found = [line["request_id"] for line in kept(tmp_path)]
    assert 10 <= len(found) <= 20
    assert [f"r{number}" for number in range(200 - len(found), 200)] == found
    assert [f"{LINE}.jsonl"] == [file.name for file in (tmp_path / "requests").iterdir()]


def test_a_log_goes_on_where_another_process_left_off(tmp_path: Path) -> None:
    for number in range(5):
        log = RequestLog(tmp_path, 2)
        log.put(LINE, b"r%d" % number, None, b'{"rows":[{}]}')
        log.write()

    assert "r4" == kept(tmp_path)[-1]["request_id"]
    assert len(kept(tmp_path)) <= 4


def test_what_comes_faster_than_it_is_written_leaves_the_newest(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 3)
    for number in range(50):
        log.put(LINE, b"r%d" % number, None, b'{"rows":[{}]}')
    log.write()

    assert ["r47", "r48", "r49"] == [line["request_id"] for line in kept(tmp_path)]


def test_a_very_large_request_is_not_kept(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 3)
    log.put(LINE, b"r1", None, b'{"rows":[{"a":"' + b"x" * MOST_BODY + b'"}]}')
    log.write()

    assert not (tmp_path / "requests").exists()


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1)
    for _ in range(5):
        log.put(LINE, b"r1", None, b'{"rows":[{}]}')
        log.write()
        assert 0o600 == stat.S_IMODE((tmp_path / "requests" / f"{LINE}.jsonl").stat().st_mode)


def test_a_file_that_others_may_read_is_closed_before_rows_go_into_it(tmp_path: Path) -> None:
    file = tmp_path / "requests" / f"{LINE}.jsonl"
    file.parent.mkdir()
    file.write_text('{"rows": [{}]}\n', encoding="utf-8")
    file.chmod(0o644)
    log = RequestLog(tmp_path, 10)
    log.put(LINE, b"r1", None, b'{"rows":[{}]}')
    log.write()

    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 2 == len(file.read_text(encoding="utf-8").splitlines())


def test_what_a_kill_left_half_written_is_swept_when_a_service_starts(tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    folder.mkdir()
    (folder / f"{LINE}.jsonl").write_text('{"rows": [{"cpf": 1}]}\n', encoding="utf-8")
    # Of this line, of one that is served no more, and as an earlier release named it.
    for left in (f".{LINE}.jsonl.tmp", ".tabular@gone.jsonl.tmp", ".tabular@gone.jsonl.4711.tmp"):
        (folder / left).write_text('{"rows": [{"cpf": 1}]}\n', encoding="utf-8")
    log = RequestLog(tmp_path, 10)
    log.start()
    log.stop()

    assert [f"{LINE}.jsonl"] == [file.name for file in folder.iterdir()]


def test_a_line_that_comes_while_another_worker_shortens_the_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = RequestLog(tmp_path, 2), RequestLog(tmp_path, 2)
    other.put(LINE, b"theirs", None, b'{"rows":[{}]}')
    writing = threading.Thread(target=other.write)
    replace = Path.replace

    def late(self: Path, target: Path) -> Path:
        writing.start()
        writing.join(0.3)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    for number in range(5):
        one.put(LINE, b"r%d" % number, None, b'{"rows":[{}]}')
        one.write()
    writing.join()

    assert ["r3", "r4", "theirs"] == [line["request_id"] for line in kept(tmp_path)]
    assert [f"{LINE}.jsonl"] == [file.name for file in (tmp_path / "requests").iterdir()]


def test_a_folder_that_cannot_be_written_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "requests").write_text("a file", encoding="utf-8")
    log = RequestLog(tmp_path, 3, period=0.01)
    log.put(LINE, b"r1", None, b'{"rows":[{}]}')
    log.start()
    log.stop()

    assert "requests are not kept for rehearsals" in caplog.text


@pytest.mark.parametrize(
    ("path", "body", "options", "expected"),
    [
        ("/v1/predict", b'{"rows": [{"a": 1}]}', {}, 1),
        ("/v1/predict", b'{"rows": [{"bad": 1}]}', {}, 0),
        ("/v1/predict", b'{"rows": [{"a": 1}]}', {"key": "wrong"}, 0),
        ("/v1/predict", b'{"rows": [{"a": 1}]}', {"query": "version=1"}, 0),
        (f"/v1/{LINE}/model", b"", {"method": "GET"}, 0),
    ],
    ids=["answered", "refused", "no key", "a version by number", "no prediction"],
)
def test_only_predictions_that_were_answered_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes, options: dict[str, Any], expected: int
) -> None:
    load_models(monkeypatch, {1: Model()})
    log = RequestLog(tmp_path, 10)
    ask(make_api(FakeSource(LINE), requests=log), path, body, **options)
    log.write()

    assert expected == (len(kept(tmp_path)) if (tmp_path / "requests").exists() else 0)
