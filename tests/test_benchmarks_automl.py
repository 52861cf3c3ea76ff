"""The comparison of AutoML systems counts what really ran, and the portfolio is learned from rows that it never tests on."""

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.automl import child, compare, experience, figures, portfolio, tables
from benchmarks.automl.environments import PROJECTS
from esteira.automl.ensemble import Limits
from esteira.automl.evaluate import Data
from esteira.automl.kinds import make
from esteira.automl.kinds.base import Cost
from esteira.automl.prepare import Columns, Recipe
from esteira.automl.schedule import portfolio as entries_of

TASKS = ("binary", "multiclass", "regression")
NO_DATA = pytest.mark.skipif(not tables.place().exists(), reason="needs the public tables at ESTEIRA_TEST_DATA")


def made(task: str, kind: str, params: dict[str, Any]) -> None:
    make(kind, params, task=task, classes={"binary": 2, "multiclass": 3}.get(task), categorical=(), seed=1)


# ------------------------------------------------------------------------------------------------- portfolio.json


@pytest.mark.parametrize("task", TASKS)
def test_every_entry_of_the_portfolio_can_be_made(task: str) -> None:
    entries = entries_of(task)

    assert 8 <= len(entries)
    assert all(entry["seconds"] > 0 for entry in json.loads(portfolio.TARGET.read_text(encoding="utf-8"))[task])
    for kind, params, recipe in entries:
        made(task, kind, dict(params))
        assert recipe == Recipe.of(recipe.named())
    assert len(entries) == len({json.dumps([kind, dict(params), recipe.named()]) for kind, params, recipe in entries})


# ------------------------------------------------------------------------------------------------------- splits


def frame_of(rows: int) -> pd.DataFrame:
    labels = np.where(np.arange(rows) % 10 == 0, "rare", "common")
    return pd.DataFrame({"a": np.arange(rows), "y": labels})


def test_a_split_tests_on_a_quarter_of_each_class_and_another_seed_on_other_rows() -> None:
    table = tables.Table("x", "y", "binary", 400)

    train, test = tables.split(frame_of(400), table, 1)
    _, other = tables.split(frame_of(400), table, 2)

    assert {"common": 90, "rare": 10} == test["y"].value_counts().to_dict()
    assert list(range(400)) == sorted([*train["a"], *test["a"]])
    assert set(test["a"]) != set(other["a"])
    assert test.equals(tables.split(frame_of(400), table, 1)[1])


def test_what_the_portfolio_learns_from_is_tested_on_by_no_split() -> None:
    table, frame = tables.Table("x", "y", "binary", 400), frame_of(400)

    learned = {int(row) for row in experience.untested(table, frame)}

    assert 100 < len(learned)
    for seed in tables.seeds(table, experience.SEEDS):
        assert not learned & set(tables.split(frame, table, seed)[1]["a"])


@NO_DATA
def test_the_tables_are_there_with_the_rows_and_labels_that_are_said() -> None:
    small = [table for table in tables.TABLES.values() if table.rows < 2000]

    assert 12 <= len(tables.TABLES)
    for table in small:
        frame = tables.read(table)
        assert table.rows == len(frame)
        assert (2 < frame[table.target].nunique()) == (table.task != "binary")


# ------------------------------------------------------------------------------------------------------- figures


def test_losses_are_one_minus_the_area_log_loss_and_root_mean_square() -> None:
    second = np.array([0.1, 0.6, 0.4, 0.9])
    binary = figures.scores("binary", pd.Series([0, 0, 1, 1]), pd.DataFrame({"proba_0": 1 - second, "proba_1": second}))
    three = figures.scores(
        "multiclass", pd.Series(["a", "b", "c"]), pd.DataFrame({"proba_a": [0.5, 0.0, 0.5], "proba_b": [0.5, 1.0, 0.5]})
    )
    value = figures.scores("regression", pd.Series([1.0, 2.0, 3.0]), pd.DataFrame({"prediction": [1.0, 2.0, 6.0]}))

    assert {"loss": pytest.approx(0.25), "accuracy": 0.5} == binary
    # A class that nobody could learn has probability 0, which costs what 1e-15 costs.
    assert (math.log(2) - math.log(1e-15)) / 3 == pytest.approx(three["loss"])
    assert math.sqrt(3) == pytest.approx(value["loss"])


def test_fewer_answers_than_rows_are_no_result() -> None:
    with pytest.raises(ValueError, match="as many answers as rows, 2, but got 1"):
        figures.scores("regression", pd.Series([1.0, 2.0]), pd.DataFrame({"prediction": [1.0]}))


def test_the_constant_knows_the_training_rows_only() -> None:
    train, test = pd.Series(["a", "a", "a", "b"]), pd.Series(["a", "b"])

    assert -(math.log(0.75) + math.log(0.25)) / 2 == pytest.approx(figures.constant_loss("multiclass", train, test))
    assert 2.0 == figures.constant_loss("regression", pd.Series([1.0, 3.0]), pd.Series([4.0, 4.0, 4.0, 4.0]))


def row(peer: str, name: str, loss: float | None, seed: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "peer": peer, "version": "1", "set": name, "task": "binary", "seed": seed, "budget": 60.0, "constant": 0.5,
        **({"failed": "fit ended with 1"} if loss is None else {"loss": loss, "row_us": 50.0, "row_p95_us": 60.0, "bytes": 10**6}),
        "fit_seconds": 61.0, "peak_mb": 900, "imports_mb": 300, "frame_mb": 10.0, "load": 0.1, "at": "2026-11-21T10:00:00Z",
        **more,
    }  # fmt: skip


ROWS = [
    row("ours", "s", 0.10), row("flaml", "s", 0.20), row("autogluon_medium", "s", 0.10),
    row("ours", "t", 0.30), row("flaml", "t", None), row("autogluon_medium", "t", 0.25),
]  # fmt: skip


def test_a_loss_is_normalised_between_the_best_and_the_constant_and_a_failure_is_the_constant() -> None:
    shown = figures.normalised(figures.losses(ROWS), {"s": 0.5, "t": 0.5})

    assert {"ours": 0.0, "flaml": pytest.approx(0.25), "autogluon_medium": 0.0} == shown["s"]
    assert {"ours": pytest.approx(0.2), "flaml": 1.0, "autogluon_medium": 0.0} == shown["t"]


def test_wins_ties_and_excess_can_be_checked_by_hand() -> None:
    found = figures.losses(ROWS)

    assert (2, 0, 0) == figures.duel(found, "ours", "flaml")
    assert (0, 1, 1) == figures.duel(found, "ours", "autogluon_medium")
    assert 0.1 == pytest.approx(figures.excess(found, "ours", "autogluon_medium")["mean"])
    assert math.sqrt(1.2) - 1 == pytest.approx(figures.excess(found, "ours", "autogluon_medium")["ratio"])


def test_a_table_on_which_a_peer_lacks_a_split_is_left_out() -> None:
    more = [*ROWS, row("ours", "s", 0.1, seed=2), row("flaml", "s", 0.1, seed=2)]

    assert ["t"] == list(figures.losses(more))


def test_a_target_that_is_missed_is_said_to_be_missed() -> None:
    slow = [{**one, "row_us": 5000.0 if one["peer"] == "autogluon_medium" else 50.0} for one in ROWS]
    late = [{**one, "fit_seconds": 80.0 if one["peer"] == "ours" else 61.0} for one in slow]

    lines = figures.targets(late, 60.0)

    said = {line.split(":")[1].split("(")[0].strip(): line.startswith("- met") for line in lines}
    assert said == {
        "mean normalised loss below FLAML's": True,
        "at least as good as FLAML on 60 % of the sets": True,
        "one row at least 5 times faster than FLAML's": False,
        "loss within 2 % of AutoGluon's medium_quality on average": False,
        "one row at least 20 times faster than AutoGluon's": True,
        "the whole process within 71 s": False,
        "peak memory at most imports + 4 frames + 500 MB": False,
        "a bundle of at most 50 MB": True,
    }


def test_the_table_goes_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n", encoding="utf-8")

    figures.put(page, "a", figures.markdown(ROWS, 60.0, {"cores": 2, "cpu": "c", "memory_gib": 1}))

    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- a -->\n| System |")
    assert text.endswith("\n<!-- end of a -->\nafter\n")
    assert "old" not in text
    with pytest.raises(ValueError, match="once each"):
        figures.put(page, "b", "x")


# ---------------------------------------------------------------------------------------------------------- runs

BARE = {"PATH": os.environ.get("PATH", os.defpath)}


def test_a_command_that_fails_says_why_and_a_childs_memory_counts(tmp_path: Path) -> None:
    grown = "import time; held = bytearray(150_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; held = bytearray(150_000_000); subprocess.run([sys.executable, '-c', {grown!r}])"

    failed = child.run([sys.executable, "-c", "raise SystemExit('no luck')"], cwd=tmp_path, environment=BARE, limit=30)
    two = child.run([sys.executable, "-c", parent], cwd=tmp_path, environment=BARE, limit=30)

    assert failed.why == "ended with 1: no luck\n"
    assert two.why == ""
    assert 280 < two.peak_mb < 400
    assert 1.0 <= two.seconds < 10


def test_a_command_that_goes_on_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    write = f"pathlib.Path({str(tmp_path / 'beat')!r}).write_text(str(time.time()))"
    beating = f"import time, pathlib\nwhile True:\n    {write}; time.sleep(0.05)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {beating!r}]); time.sleep(60)"

    ran = child.run([sys.executable, "-c", parent], cwd=tmp_path, environment=BARE, limit=1.5)

    last = (tmp_path / "beat").read_text(encoding="utf-8")
    time.sleep(0.3)
    assert ran.why == "was ended after 2 s"
    assert ran.seconds < 10
    assert last == (tmp_path / "beat").read_text(encoding="utf-8")


def test_of_two_results_of_one_run_the_later_counts_and_half_a_line_is_none(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    whole = [json.dumps(row("ours", "s", loss)) for loss in (0.3, 0.2)]
    file.write_text("\n".join([*whole, whole[0][:40]]), encoding="utf-8")

    assert [0.2] == [one["loss"] for one in compare.read_results(file)]


@NO_DATA
@pytest.mark.slow
def test_a_peer_is_fitted_scored_and_timed_and_the_same_run_is_not_done_twice(tmp_path: Path) -> None:
    peer = next(peer for peer in compare.PEERS if peer.name == "lightgbm")
    asked = {"budget": 5.0, "seeds": 1, "results": tmp_path / "r.jsonl"}

    compare.measure([peer], [tables.TABLES["concrete"]], again=[], **asked)
    [found] = compare.read_results(tmp_path / "r.jsonl")
    written = (tmp_path / "r.jsonl").read_bytes()
    compare.measure([peer], [tables.TABLES["concrete"]], again=[], **asked)

    assert written == (tmp_path / "r.jsonl").read_bytes()
    assert found["loss"] < 0.4 * found["constant"]
    assert 200 == found["row_calls"]
    assert 0 < found["row_us"] <= found["row_p95_us"]
    assert "failed" not in found


def test_a_peers_lock_pins_every_file_by_hash_and_names_no_index() -> None:
    locks = sorted(PROJECTS.glob("*/requirements.lock"))

    assert ["autogluon", "flaml"] == [lock.parent.name for lock in locks]
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        pinned = re.findall(r"^([a-z0-9._-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
        assert {"torch", "nvidia-cudnn-cu13"}.isdisjoint(pinned)
        assert not re.search(r"://|file:|--index|--find-links|^/", text, re.MULTILINE)


def test_the_page_beside_the_comparison_names_every_peer() -> None:
    readme = Path(compare.__file__).with_name("README.md").read_text(encoding="utf-8")

    for peer in compare.PEERS:
        assert re.search(rf"\b{peer.name}\b", readme)


# ------------------------------------------------------------------------------------------ learning a portfolio


@pytest.mark.parametrize("task", TASKS)
def test_configurations_are_the_same_each_time_and_can_all_be_made(task: str) -> None:
    known = experience.configs(task)

    assert known == experience.configs(task)
    assert len(known) == len({config.key for config in known})
    assert set(experience.DRAWN) == {config.kind for config in known}
    for config in known:
        made(task, config.kind, experience.bounded(config, 3))
        Recipe.of(config.recipe)


def evidence(
    name: str, held: dict[str, list[float]], costs: dict[str, Cost], seconds: dict[str, float]
) -> portfolio.Evidence:
    labels = np.array([1.0, -1.0, 2.0, -2.0])
    data = Data(np.zeros((4, 1), np.float32), labels, "regression", None, Columns(("a",)), 1)
    predictions = {key: np.array(values) for key, values in held.items()}
    losses = {key: experience.loss_of(data, labels, values) for key, values in predictions.items()}
    constant = experience.loss_of(data, labels, np.zeros(4))
    return portfolio.Evidence(
        name, data, labels, losses, predictions, costs, seconds, min(losses.values()), max(losses.values()), constant
    )  # fmt: skip


def test_the_order_is_by_what_an_entry_adds_to_those_before_it_and_what_adds_nothing_comes_last() -> None:
    # Two that are wrong in opposite ways, and a copy of the first: alone the copy is better than the opposite one.
    held = {"quick": [2.0, 0.0, 3.0, -1.0], "copy": [2.0, 0.0, 3.0, -1.0], "opposite": [-0.2, -2.2, 0.8, -3.2]}
    known = [
        evidence("t", held, dict.fromkeys(held, Cost()), {"quick": 1.0, "copy": 2.0, "opposite": 2.0}),
    ]

    assert ["quick", "opposite", "copy"] == portfolio.select(known, list(held), Limits(100.0, 10**6))


def test_what_an_answer_may_not_cost_is_not_chosen() -> None:
    held = {"dear": [1.0, -1.0, 2.0, -2.0], "cheap": [0.5, -0.5, 1.0, -1.0]}
    costs = {"dear": Cost(visits=10**6), "cheap": Cost()}

    assert ["cheap"] == portfolio.select(
        [evidence("t", held, costs, dict.fromkeys(held, 1.0))], list(held), Limits(100.0, 10**6)
    )


def test_what_was_tried_is_kept_and_not_tried_again(tmp_path: Path) -> None:
    known, until = experience.Experience(tmp_path), time.monotonic() + 60

    first = list(experience.gather(known, "multiclass", most=1, until=until, only=["wine"]))
    again = list(experience.gather(known, "multiclass", most=1, until=until, only=["wine"]))

    [tried] = known.tried("multiclass", "wine").values()
    wine = experience.data(experience.Source("wine", "multiclass"))
    assert 1 == len(first)
    assert [] == again
    assert tried.held is not None
    assert (178, 3) == tried.held.shape
    assert experience.loss_of(wine, experience.truth(wine), tried.held) < 0.3


def test_the_file_that_is_written_is_read_by_the_search_as_it_was_meant() -> None:
    entry = {
        "kind": "lightgbm",
        "params": {"num_leaves": 7, "extra_trees": True},
        "recipe": {"ratios": 8},
        "seconds": 1.5,
    }

    document = json.loads(portfolio.text({"binary": [entry], "multiclass": [], "regression": [entry, entry]}, "a test"))

    assert {"version": 1, "made_by": "a test", "multiclass": []}.items() <= document.items()
    assert [entry] == document["binary"]
    assert 2 == len(document["regression"])
