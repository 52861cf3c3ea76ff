"""AutoML in Python: a frame in, a model out that predicts, tells its leaderboard and exports a bundle; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esteira.automl import api, bundle_files, table
from esteira.automl.api import AutoML, fit
from esteira.automl.model_files import dumped
from esteira.automl.panels import name_of
from esteira.bundle import answerer, open_bundle, verify
from esteira.card import card_missing
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.features.contract import ContractOptions
from esteira.features.decode import json_rows
from esteira.features.table import word_columns

QUICK: dict[str, Any] = {"trials": 1, "kinds": ("linear",)}


def frame_of(task: str, rows: int = 240) -> pd.DataFrame:
    """A frame with every type that pandas users bring, and a label that some of it tells."""
    rng = np.random.default_rng(5)
    size, city = rng.normal(80, 20, rows), rng.choice(["Porto", "Lisboa", "Faro"], rows)
    z = (size - 80) / 20 + (city == "Lisboa") + rng.normal(size=rows) * 0.4
    label: Any = {
        "binary": np.where(z > 0.3, "yes", "no"),
        "multiclass": np.digitize(z, [-0.3, 0.9]) + 1,
        "regression": z * 1000.0,
    }[task]
    return pd.DataFrame(
        {
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "rooms": pd.array([None if i % 11 == 0 else int(i % 5) for i in range(rows)], dtype="Int64"),
            "heated": pd.array([None if i % 7 == 0 else bool(i % 2) for i in range(rows)], dtype="boolean"),
            "city": pd.Categorical(city),
            "sold": pd.date_range("2024-01-01", periods=rows, freq="D").to_numpy()[rng.permutation(rows)],
            "stay": pd.to_timedelta(rng.integers(1, 90, rows), unit="D"),
            "note": rng.choice(["quiet street here", "near the sea", "an old house"], rows),
            "y": label,
        },
        index=np.arange(rows) + 1000,
    )


@pytest.fixture(scope="module", params=["binary", "multiclass", "regression"])
def found(request: pytest.FixtureRequest) -> tuple[pd.DataFrame, AutoML]:
    """A frame and what was found on it; tests read both only."""
    frame = frame_of(request.param)
    return frame, fit(frame, "y", trials=3, kinds=("linear", "lightgbm", "constant"))


def test_it_predicts_labels_in_their_own_type_and_tells_what_it_tried(found: tuple[pd.DataFrame, AutoML]) -> None:
    frame, model = found
    before = frame.copy()

    said = model.predict(frame.drop(columns="y"))

    pd.testing.assert_frame_equal(before, frame)
    assert (len(frame),) == said.shape
    assert api.METRIC[model.task] == model.metric
    assert {"number", "kind", "params", "score", "deviation"} <= set(model.leaderboard[0])
    assert model.best["score"] == model.leaderboard[0]["score"]
    if model.classes is None:
        assert model.score(frame, metric="r2") > 0.5
        with pytest.raises(ConfigError, match="this model answers a number"):
            model.predict_proba(frame)
        return
    assert set(model.classes.tolist()) == set(frame["y"].tolist())
    assert (said == frame["y"].to_numpy()).mean() > 0.7
    shares = model.predict_proba(frame)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-9)
    assert model.score(frame, metric="accuracy") == pytest.approx((said == frame["y"].to_numpy()).mean())


def test_its_bundle_answers_what_it_predicts_and_has_a_complete_card(
    found: tuple[pd.DataFrame, AutoML], tmp_path: Path
) -> None:
    frame, model = found

    bundle_id = model.export(tmp_path / "bundle")

    manifest = verify(tmp_path / "bundle", bundle_id)
    assert {"tabular", model.task} == {manifest["family"], manifest["task"]}
    assert [] == card_missing(json.loads((tmp_path / "bundle" / "card.json").read_text(encoding="utf-8")))
    assert ["bundle"] == [path.name for path in tmp_path.iterdir()]
    opened = answerer(open_bundle(tmp_path / "bundle", "cpu"))
    rows = json_rows(model.table.rows, model.table.contract)
    answers = opened.answer(rows)
    if model.classes is None:
        np.testing.assert_allclose([a["prediction"] for a in answers], model.predict(frame), rtol=1e-9)
        return
    assert [answer["prediction"] for answer in answers] == model.predict(frame).tolist()
    shares = np.array([list(answer["probabilities"].values()) for answer in answers])
    np.testing.assert_allclose(shares, model.predict_proba(frame), atol=1e-9)
    alone = np.array([list(opened.answer([row])[0]["probabilities"].values()) for row in rows[:20]])
    np.testing.assert_allclose(shares[:20], alone, atol=1e-12)


def test_its_page_names_what_was_tried_and_asks_nothing_of_the_network(found: tuple[pd.DataFrame, AutoML]) -> None:
    page = found[1].page()

    for kind in found[1].leaderboard:
        assert name_of(kind["kind"]) in page
    for column in ("city", "size"):
        assert column in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "Would more rows help?" in page
    assert "Would more rows help?" not in found[1].page(within=0.0)


def test_the_same_trials_and_seed_give_the_same_bundle(tmp_path: Path) -> None:
    frame = frame_of("binary")

    made = {fit(frame, "y", **QUICK).export(tmp_path / name) for name in ("one", "two")}

    assert 1 == len(made)


def test_a_line_whose_order_matters_is_judged_on_later_rows(tmp_path: Path) -> None:
    """Only rows that a fold held back have an out-of-fold prediction, and the card counts those."""
    frame = frame_of("regression")

    model = fit(frame, "y", **QUICK, time_column="sold")

    assert model.table.times is not None
    assert model.table.groups is None
    model.export(tmp_path / "b")
    card = json.loads((tmp_path / "b" / "card.json").read_text(encoding="utf-8"))
    assert 0 < card["metrics"]["segments"][0]["n"] < len(frame)


def _hold_whole_houses(read: table.Table, house: Any) -> None:
    """No fold of the search has rows of one house on both sides."""
    folds = api.words(read, seed=1)["folds"].folds
    assert len(folds) > 1
    for fold in folds:
        assert not set(house[fold.fit]) & set(house[fold.held])


def test_rows_of_a_group_stay_together() -> None:
    frame = frame_of("binary")
    frame["house"] = np.arange(len(frame)) // 4

    read = table.read(table.plain(frame), "y", options=ContractOptions(group_column="house"))

    assert "house" not in read.featurizer.names
    _hold_whole_houses(read, frame["house"].to_numpy())


def test_a_table_that_was_appended_to_itself_is_not_judged_on_rows_that_it_learned() -> None:
    frame = frame_of("binary")
    twice = pd.concat([frame, frame], ignore_index=True)
    read = table.read(table.plain(twice), "y")

    _hold_whole_houses(read, np.tile(np.arange(len(frame)), 2))
    assert any("held back together" in finding.message for finding in read.findings)


def test_in_time_order_rows_of_a_group_stay_together_too() -> None:
    frame = frame_of("binary")
    frame["house"] = np.arange(len(frame)) // 4

    read = table.read(table.plain(frame), "y", options=ContractOptions(group_column="house", time_column="sold"))

    assert read.times is not None
    _hold_whole_houses(read, frame["house"].to_numpy())


def test_a_score_of_labels_is_of_those_that_are_said() -> None:
    """A cut below one half is found where one class is rare and both count alike."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=900)
    frame = pd.DataFrame({"a": a, "y": np.where(a + rng.normal(size=900) > 2.0, "rare", "usual")})

    model = fit(frame, "y", metric="balanced_accuracy", **QUICK)

    assert model.found.threshold is not None
    said = model.predict(frame)
    truth = frame["y"].to_numpy()
    right = [float((said[truth == label] == label).mean()) for label in ("rare", "usual")]
    assert model.score(frame) == pytest.approx(np.mean(right))


def test_a_search_that_fitted_nothing_but_the_constant_says_so() -> None:
    trivial = fit(frame_of("binary"), "y", trials=1, kinds=("constant",))

    assert "nothing but the constant was fitted" in trivial.warnings[0]
    assert not any("nothing but" in word for word in fit(frame_of("binary"), "y", **QUICK).warnings)


def test_a_search_that_had_no_time_for_all_folds_says_so() -> None:
    whole = fit(frame_of("binary"), "y", **QUICK)
    board = [{**row, "state": "pruned"} for row in whole.found.leaderboard]
    hurried = replace(whole, found=replace(whole.found, leaderboard=board))

    assert "one fold only" in hurried.warnings[0]
    assert not any("one fold only" in word for word in whole.warnings)


def test_text_columns_are_told_by_their_words() -> None:
    read = table.read(table.plain(_texts()), "y")

    (words,) = word_columns(read.featurizer.names, read.featurizer.groups)
    assert all(".has." in read.featurizer.names[at] for at in words)
    assert len(words) == sum(".has." in name for name in read.featurizer.names)


def _texts() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    words = np.array(["blue", "green", "small", "large", "house", "river", "stone", "bread"])
    notes = [" ".join(rng.choice(words, 6)) for _ in range(120)]
    return pd.DataFrame({"note": notes, "n": rng.normal(size=120), "y": [("blue" in note) * 1 for note in notes]})


# ---------------------------------------------------------------- where a bundle may lie


def test_a_bundle_goes_nowhere_where_something_lies(found: tuple[pd.DataFrame, AutoML], tmp_path: Path) -> None:
    model = found[1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    first = model.export(tmp_path / "empty")

    for name, force in (("mine", False), ("mine", True), ("file", True), ("empty", False)):
        with pytest.raises(Refused) as caught:
            model.export(tmp_path / name, force=force)
        assert "place_taken" == caught.value.code
    assert first == model.export(tmp_path / "empty", force=True)
    assert "years of work" == (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8")
    assert {"mine", "file", "empty"} == {path.name for path in tmp_path.iterdir()}


def test_a_full_disk_leaves_nothing_and_the_former_bundle(
    found: tuple[pd.DataFrame, AutoML], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own refusal, by a limit on the size of files, which no process can pass."""
    import resource
    import signal

    model = found[1]
    first = model.export(tmp_path / "b")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OutsideError) as caught:
            model.export(tmp_path / "b", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)

    assert "disk_full" == caught.value.code
    assert ["b"] == [path.name for path in tmp_path.iterdir()]
    assert verify(tmp_path / "b", first)


def test_a_graph_that_answers_otherwise_is_never_written(found: tuple[pd.DataFrame, AutoML], tmp_path: Path) -> None:
    model = found[1]
    files, manifest = bundle_files.sealed_files(
        model.table, model.found, line=model.line, seed=model.seed, source=model.source
    )
    golden = json.loads(files["golden.json"])
    probabilities = golden["answers"][0].get("probabilities")
    if probabilities:
        probabilities[next(iter(probabilities))] += 0.001
    else:
        golden["answers"][0]["prediction"] += 1.0
    files["golden.json"] = dumped(golden)

    with pytest.raises(Refused) as caught:
        bundle_files.write(tmp_path / "b", files, manifest)

    assert "export_differs" == caught.value.code
    assert [] == list(tmp_path.iterdir())
