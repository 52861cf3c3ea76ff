"""A batch that is killed anywhere and started again has lost nothing and repeated nothing: its results are those of a whole run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esteira import crash
from esteira.batch import Job, Stopped, Summary, run
from esteira.errors import Refused
from tests.batches import answered, contents, errors, some_rows, write
from tests.small_bundle import make_bundle

ROOT = Path(__file__).resolve().parents[1]
# Those of a batch, and that of every file that is written whole.
POINTS = [name for name in crash.POINTS if name.startswith("batch.")] + ["outputs.before_rename"]
BEGUN = "batch.before_start"  # once, before the first part
ROWS, PART = 1000, 150


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files with bad rows in several parts."""
    rows = some_rows(ROWS)
    for number in (5, 160, 161, 440, 999):
        rows[number]["age"] = "?!"
    folder = tmp_path_factory.mktemp("rows") / "in"
    folder.mkdir()
    write(folder / "a.csv", rows[:430])
    write(folder / "b.csv.gz", rows[430:])
    return folder


@pytest.fixture(scope="module")
def whole(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert (ROWS - 5, 5) == _counts(run(_job(bundle, data, out)))
    return contents(out)


def _job(bundle: Path, data: Path, out: Path, **words: Any) -> Job:
    return Job(bundle=bundle, data=str(data), out=str(out), rows_per_part=PART, **words)


def _counts(summary: Summary) -> tuple[int, int]:
    return summary.processed, summary.error


def _started(bundle: Path, data: Path, out: Path, *words: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "esteira.cli", "batch", "--bundle", str(bundle), "--data", str(data), "--out", str(out),
         "--rows-per-part", str(PART), "--json", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, cwd=out.parent, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def _stop_after(parts: int, job: Job) -> None:
    told: list[Summary] = []
    with pytest.raises(Stopped):
        run(job, stop=lambda: len(told) >= parts, tell=told.append)


@pytest.mark.parametrize(
    ("point", "after"), [(point, 0) for point in POINTS] + [(point, 2) for point in POINTS if point != BEGUN]
)
def test_a_run_that_dies_at_a_crash_point_goes_on_as_if_it_had_not(
    point: str, after: int, bundle: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if after:
        _stop_after(after, _job(bundle, data, out))

    process = _started(bundle, data, out, ESTEIRA_CRASH_AT=point)
    process.communicate(timeout=60)
    assert -signal.SIGKILL == process.returncode, f"{point} was not reached"
    summary = run(_job(bundle, data, out))

    assert ("done", ROWS - 5, 5, 100) == (summary.state, summary.processed, summary.error, summary.progress)
    assert whole == contents(out)
    assert [6, 161, 162, 441, 1000] == [error["row"] for error in errors(out)]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_at_any_moment_ends_like_a_whole_one(bundle: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", some_rows(3000) * 10)
    run(Job(bundle=bundle, data=str(data), out=str(tmp_path / "whole"), rows_per_part=1000))
    drawn, out = random.Random(5), tmp_path / "out"
    for kills in range(8):
        wanted = _notes(out) + drawn.randrange(1, 4)
        process = _started(bundle, data, out, "--rows-per-part", "1000", "--workers", str(1 + kills % 2))
        while _notes(out) < wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(drawn.uniform(0, 0.02))
        process.kill()
        process.communicate()
    assert 0 < _notes(out) < 30, "it was killed on its way"
    run(Job(bundle=bundle, data=str(data), out=str(out)))

    assert contents(tmp_path / "whole") == contents(out)


def _notes(out: Path) -> int:
    """Parts that are noted; the first line says what was asked for."""
    journal = out / "journal.jsonl"
    return len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0


def test_ctrl_c_stops_where_the_same_command_goes_on(
    bundle: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = _started(bundle, data, out, "--rate", "100")
    until = time.monotonic() + 60
    while not (out / "journal.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, problem = process.communicate(timeout=60)

    assert 1 == process.returncode, problem
    assert "stopped" == json.loads(said)["state"]
    shutil.rmtree(out)
    _stop_after(3, _job(bundle, data, out))
    assert 3 * PART == len(answered(out)) + len(errors(out))
    assert (ROWS - 5, 5) == _counts(run(_job(bundle, data, out)))
    assert whole == contents(out)


def test_half_a_note_and_what_was_never_noted_count_for_nothing(
    bundle: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stop_after(3, _job(bundle, data, out))
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"part": 3, "rows": 150, "ba')
    with (out / "errors.jsonl").open("ab") as told:
        told.write(b'{"file": "a.csv", "row": 700}\n')
    (out / "parts" / "00003.parquet").write_bytes(b"half a part")
    (out / "parts" / ".00004.parquet.123.tmp").write_bytes(b"left behind")

    run(_job(bundle, data, out))

    assert whole == contents(out)


def test_workers_go_on_where_one_process_was_stopped(
    bundle: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stop_after(2, _job(bundle, data, out))

    run(_job(bundle, data, out, workers=2))

    assert whole == contents(out)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.json", "rows.csv"])
def test_every_form_goes_on_in_the_middle_of_a_file(name: str, bundle: Path, tmp_path: Path) -> None:
    rows = some_rows(1000)
    data = tmp_path / name
    if name == "rows.json":
        data.write_text(json.dumps(rows), encoding="utf-8")
    else:
        write(data, rows)
    run(_job(bundle, data, tmp_path / "whole"))

    for parts in (1, 4):
        _stop_after(parts, _job(bundle, data, tmp_path / f"out{parts}"))
        run(_job(bundle, data, tmp_path / f"out{parts}"))

        assert contents(tmp_path / "whole") == contents(tmp_path / f"out{parts}")


def test_the_size_of_the_parts_is_kept_where_nothing_is_said(bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _stop_after(2, _job(bundle, data, out))

    summary = run(Job(bundle=bundle, data=str(data), out=str(out), rate=1e6))

    assert -(-ROWS // PART) == summary.parts


def test_a_part_that_is_gone_or_a_source_that_was_changed_is_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", tmp_path / "in"
    shutil.copytree(data, rows)
    _stop_after(2, _job(bundle, rows, out))
    (out / "parts" / "00001.parquet").rename(tmp_path / "part")

    with pytest.raises(Refused) as refused:
        run(_job(bundle, rows, out))
    assert "part_lost" == refused.value.code

    (tmp_path / "part").rename(out / "parts" / "00001.parquet")
    with (rows / "a.csv").open("a", encoding="utf-8") as file:
        file.write("1,2,true,Porto,2024-01-01,x\n")
    with pytest.raises(Refused) as refused:
        run(_job(bundle, rows, out))
    assert "another_batch" == refused.value.code


@pytest.mark.parametrize("name", ["parts/00001.parquet", "errors.jsonl"])
def test_what_was_finished_is_held_against_the_journal(
    name: str, bundle: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stop_after(2, _job(bundle, data, out))
    before = (out / name).read_bytes()

    # As many bytes, but others; and of errors, which are held by their size, too few.
    (out / name).write_bytes(before[:-1] if name == "errors.jsonl" else before[:-9] + b"another" + before[-2:])
    with pytest.raises(Refused, match=name) as refused:
        run(_job(bundle, data, out))

    assert "part_lost" == refused.value.code
    (out / name).write_bytes(before)
    run(_job(bundle, data, out))
    assert whole == contents(out)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_changes_while_it_is_open_gives_no_further_part(
    parts: int, workers: int, bundle: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.csv", some_rows(2 * PART))
    told: list[Summary] = []

    def change(summary: Summary) -> None:
        told.append(summary)
        if len(told) == parts:  # of two: before the last one, and before the end is noted
            with data.open("r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(b"Z")

    with pytest.raises(Refused) as refused:
        run(_job(bundle, data, tmp_path / "out", workers=workers), tell=change)

    assert "source_changed" == refused.value.code
    assert parts == _notes(tmp_path / "out")


def test_a_source_that_changes_while_it_is_read_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        write(folder / name, some_rows(200))

    def change(_: Summary) -> None:
        with (folder / "b.csv").open("a", encoding="utf-8") as file:
            file.write("1,2,true,Porto,2024-01-01,x\n")

    with pytest.raises(Refused) as refused:
        run(_job(bundle, folder, tmp_path / "out"), tell=change)
    assert "source_changed" == refused.value.code
