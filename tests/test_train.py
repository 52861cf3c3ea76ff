"""The step `train`: what it leaves, that it leaves the same twice, and that its export answers as the native model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import featurize, train
from esteira.automl.question import of_kinds
from esteira.bundle import answerer, open_bundle, seal
from esteira.errors import ConfigError, Refused
from esteira.family import Candidate, Score
from esteira.features.contract import Column, TableContract, Target, Task
from esteira.features.decode import Decoder, json_rows
from families.tabular import manifest_of
from families.tabular.metrics import scores

LINE = "tabular@toy-y"
FAST = train.Params(trials=5, kinds=("lightgbm", "linear", "constant"), reference_rows=50)
COLUMNS = (
    Column(name="size", kind="number"),
    Column(name="rooms", kind="integer"),
    Column(name="heated", kind="boolean"),
    Column(name="city", kind="category", categories=("Porto", "Lisboa", "Faro")),
    Column(name="sold", kind="date"),
    Column(name="note", kind="text"),
)


def _frame(task: Task, rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    size, city = rng.normal(80, 20, rows), rng.choice(["Porto", "Lisboa", "Faro"], rows, p=[0.5, 0.3, 0.2])
    z = (size - 80) / 20 + (city == "Lisboa") + rng.normal(size=rows) * 0.5
    y: Any = {
        "binary": np.where(z > 0.3, "yes", "no"),
        "multiclass": np.digitize(z, [-0.3, 0.9]) + 1,
        "regression": z * 1000.0,
    }[task]
    days = pd.to_datetime("2024-01-01", utc=True) + pd.to_timedelta(rng.integers(0, 500, rows), unit="D")
    frame = pd.DataFrame(
        {
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "rooms": rng.integers(1, 6, rows).astype(float),
            "heated": pd.array(rng.random(rows) < 0.5, dtype="boolean"),
            "city": pd.Series(city, dtype="str").where(rng.random(rows) > 0.05),
            "sold": days.astype("datetime64[us, UTC]"),
            "note": pd.Series(rng.choice(["quiet street", "near the sea", "old house"], rows), dtype="str"),
            "y": y,
        }
    )
    frame["__row__"] = np.arange(1, rows + 1)
    return frame


def _contract(task: Task, **more: Any) -> TableContract:
    classes: Mapping[str, Any] = {"binary": ("no", "yes"), "multiclass": (1, 2, 3), "regression": None}
    return TableContract(line=LINE, target=Target(name="y", task=task, classes=classes[task]), columns=COLUMNS, **more)


def _prepared(folder: Path, task: Task, **more: Any) -> Path:
    """Rows, contract and features below a folder, as the steps before leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    _frame(task).to_parquet(folder / "rows.parquet", index=False)
    (folder / "contract.yaml").write_text(_contract(task, **more).to_yaml(), encoding="utf-8")
    featurize.run(rows=folder / "rows.parquet", contract=folder / "contract.yaml", out=folder / "features", seed=42)
    return folder


def _trained(folder: Path, out: str = "trained", params: train.Params = FAST, line: str = LINE) -> train.Report:
    return train.run(
        features=folder / "features", contract=folder / "contract.yaml", line=line, out=folder / out, params=params
    )


def _bundle(folder: Path, task: Task) -> Path:
    """The model's folder sealed, as evaluate does it."""
    model = folder / "trained" / "model"
    post = json.loads((model / "post.json").read_text(encoding="utf-8"))
    seal(model, manifest={"family": "tabular", "line": LINE, **manifest_of(_contract(task), post)})
    return model


def _copied(folder: Path, to: Path) -> Path:
    """A trained folder that a test may seal."""
    shutil.copytree(folder, to)
    return to


def _measured(bundle: Path, folder: Path) -> dict[str, Score]:
    """Every metric of a sealed model on the rows held back."""
    test = pd.read_parquet(folder / "features" / "rows_test.parquet")
    opened = open_bundle(bundle)
    rows = json_rows(test, Decoder.from_json(opened.read("decoder.json")))
    return scores(test["y"].tolist(), answerer(opened).answer(rows))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, train.Report]]:
    """One trained folder a task; tests read them only."""
    made: dict[str, tuple[Path, train.Report]] = {}
    for task in TASKS:
        folder = _prepared(tmp_path_factory.mktemp(task), task)
        made[task] = (folder, _trained(folder))
    return made


@pytest.mark.parametrize("task", TASKS)
def test_it_leaves_the_model_the_leaderboard_and_the_native_answers(
    homes: dict[str, tuple[Path, train.Report]], task: Task
) -> None:
    folder, report = homes[task]
    out = folder / "trained"

    files = {
        f"model/{name}"
        for name in ("graph.onnx", "decoder.json", "post.json", "golden.json", "reference.json", "record.json")
    }
    assert files | {"leaderboard.json", "native_test.npy", "search.html"} == set(_bytes(out))
    assert (out / "model" / "decoder.json").read_bytes() == (folder / "features" / "decoder.json").read_bytes()
    board = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    assert 5 == sum(row["kind"] != "blend" for row in board) == report.trials
    assert (report.kind, report.params, report.metric) == (board[0]["kind"], board[0]["params"], board[0]["metric"])
    assert {"number", "kind", "params", "metric", "score", "deviation", "folds", "row_us", "weight"} <= set(board[0])
    assert report.baseline is not None
    assert report.score > report.baseline + 0.2


@pytest.mark.parametrize("task", TASKS)
def test_the_sealed_model_answers_golden_and_test_rows_as_the_native_model(
    homes: dict[str, tuple[Path, train.Report]], task: Task, tmp_path: Path
) -> None:
    folder, _ = homes[task]
    bundle = open_bundle(_bundle(_copied(folder, tmp_path / "copy"), task))
    golden = json.loads(bundle.read("golden.json"))
    model = answerer(bundle)

    for answers in (model.answer(golden["rows"]), [model.answer([row])[0] for row in golden["rows"]]):
        for expected, answer in zip(golden["answers"], answers, strict=True):
            assert expected["warnings"] == answer["warnings"]
            numbers = {"probabilities", "interval", "confidence"} & set(expected)
            if task == "regression":
                numbers.add("prediction")
            else:
                assert expected["prediction"] == answer["prediction"]
            for key in numbers:
                assert expected[key] == pytest.approx(answer[key], rel=1e-9, abs=1e-12)
    x = np.load(folder / "features" / "x_test.npy")
    native = np.load(folder / "trained" / "native_test.npy")
    np.testing.assert_allclose(native, bundle.run("graph.onnx", x)["y"], rtol=1e-12, atol=1e-12)
    assert len(native) == 80


@pytest.mark.parametrize("task", TASKS)
def test_golden_rows_hold_gaps_an_unseen_category_and_an_empty_row(
    homes: dict[str, tuple[Path, train.Report]], task: Task
) -> None:
    folder, _ = homes[task]
    golden = json.loads((folder / "trained" / "model" / "golden.json").read_text(encoding="utf-8"))

    assert 22 == len(golden["rows"]) == len(golden["answers"])
    assert all({column.name for column in COLUMNS} == set(row) for row in golden["rows"])
    assert any(row["size"] is None and row["city"] is not None for row in golden["rows"])
    unseen, empty = golden["answers"][-2:]
    assert ("category", "city") in [(note["rule"], note["column"]) for note in unseen["warnings"]]
    assert set(golden["rows"][-1].values()) == {None}
    assert len(empty["warnings"]) == 6


def test_a_regression_learns_an_interval_that_holds_on_rows_it_never_saw(
    homes: dict[str, tuple[Path, train.Report]],
) -> None:
    """The half width is a quantile of out-of-fold errors, so it covers about 90 % of the test rows."""
    folder, _ = homes["regression"]
    post = json.loads((folder / "trained" / "model" / "post.json").read_text(encoding="utf-8"))
    errors = np.abs(np.load(folder / "features" / "y_test.npy") - np.load(folder / "trained" / "native_test.npy"))

    assert 0.9 == post["interval_level"]
    assert 0.8 <= (errors <= post["interval_quantile"]).mean() <= 0.98


def test_a_classifier_keeps_the_labels_in_their_own_type(homes: dict[str, tuple[Path, train.Report]]) -> None:
    def post(task: str) -> Any:
        return json.loads((homes[task][0] / "trained" / "model" / "post.json").read_text(encoding="utf-8"))

    assert ["no", "yes"] == post("binary")["classes"]
    assert [1, 2, 3] == post("multiclass")["classes"]


def test_the_reference_is_a_sample_of_training_rows_by_column(homes: dict[str, tuple[Path, train.Report]]) -> None:
    folder, _ = homes["binary"]
    found = json.loads((folder / "trained" / "model" / "reference.json").read_text(encoding="utf-8"))

    assert (1, 50, "y") == (found["version"], found["rows"], found["label"]["name"])
    assert [(column.name, column.kind) for column in COLUMNS] == [(c["name"], c["kind"]) for c in found["columns"]]
    assert {50} == {len(column["values"]) for column in found["columns"]} | {len(found["label"]["values"])}
    assert {"no", "yes"} == set(found["label"]["values"])


@pytest.mark.requirement("K-48")
@pytest.mark.parametrize("task", TASKS)
def test_same_data_parameters_and_seed_give_the_same_model_which_serves_nothing_before_the_gate(
    homes: dict[str, tuple[Path, train.Report]], task: Task, tmp_path: Path, esteira_home: Path
) -> None:
    """Done when: same data, parameters and seed give bit-identical metrics; a fresh model never serves traffic before
    passing the gate."""
    from esteira.registry import Registry
    from esteira.settings import load_settings
    from serving.deployments import Folder, FromRegistry

    folder, report = homes[task]
    again = _prepared(tmp_path / "again", task)

    assert report == _trained(again)
    assert _bytes(folder / "features") == _bytes(again / "features")
    assert _bytes(folder / "trained") == _bytes(again / "trained")

    # A fresh model is no bundle yet, so no service takes its folder.
    with pytest.raises(Refused) as unsealed:
        Folder(again / "trained" / "model")
    assert "bundle_unsealed" == unsealed.value.code

    first = _copied(folder, tmp_path / "first")
    bundle = _bundle(again, task)
    assert _measured(_bundle(first, task), first) == _measured(bundle, again)

    # And without a passed verdict it gets no version and no alias, so its line answers nobody.
    registry = Registry(load_settings())
    for verdict in ({}, {"verdict": "held", "bundle_id": "", "rules": []}):
        with pytest.raises(Refused):
            registry.register(
                LINE,
                bundle,
                run_id="r1",
                data_hash="d",
                code_revision="c",
                params_hash="p",
                metrics={},
                verdict=verdict,
            )
    assert registry.versions(LINE) == []
    assert FromRegistry(registry, [LINE]).current(LINE) is None


def test_nothing_of_this_machine_or_this_hour_is_in_what_it_leaves(
    homes: dict[str, tuple[Path, train.Report]],
) -> None:
    folder, _ = homes["binary"]

    for name, content in _bytes(folder / "trained").items():
        assert str(folder).encode() not in content, name
        assert b"seconds" not in content, name


@pytest.mark.parametrize("contract", [{"time_column": "sold"}, {"group_column": "city"}], ids=["time", "group"])
def test_rows_split_by_time_or_group_are_searched_by_time_or_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: dict[str, Any]
) -> None:
    import esteira.automl

    seen: list[esteira.automl.Folds] = []
    original = esteira.automl.search

    def listening(*rows: Any, **wanted: Any) -> esteira.automl.Result:
        seen.append(wanted["folds"])
        return original(*rows, **wanted)

    monkeypatch.setattr(esteira.automl, "search", listening)
    folder = _prepared(tmp_path, "binary", **contract)
    _trained(folder, params=train.Params(trials=1, kinds=("linear",)))

    rows = pd.read_parquet(folder / "features" / "rows_train.parquet")
    for fold in seen[0].folds:
        fitted, held = rows.iloc[fold.fit], rows.iloc[fold.held]
        if "time_column" in contract:
            assert held["sold"].min() > fitted["sold"].max()
        else:
            assert not set(held["city"].fillna("?")) & set(fitted["city"].fillna("?"))


def test_a_person_chooses_kinds_metric_and_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _prepared(tmp_path, "binary")
    report = _trained(folder, params=train.Params(trials=3, kinds=("constant", "linear"), metric="log_loss"))

    assert ("log_loss", False, 3) == (report.metric, report.higher_is_better, report.trials)
    assert report.kind in {"linear", "blend"}
    heard = capsys.readouterr()
    assert "" == heard.out
    assert 3 == heard.err.count("trial ")
    assert "trial 1/3 constant: " in heard.err


@pytest.mark.parametrize(
    ("params", "line", "words"),
    [
        ({"kinds": ("forest",)}, LINE, r"a kind of estimator is one of lightgbm"),
        ({"metric": "r2"}, LINE, "a metric of binary is one of roc_auc"),
        ({}, "no_such_family@x", "no_such_family"),
    ],
    ids=["kind", "metric", "family"],
)
def test_what_is_not_offered_is_refused_and_nothing_is_left(
    homes: dict[str, tuple[Path, train.Report]], params: dict[str, Any], line: str, words: str
) -> None:
    folder, _ = homes["binary"]

    with pytest.raises(ConfigError, match=words):
        _trained(folder, "refused", train.Params(**params), line)
    assert not (folder / "refused").exists()


def test_unknown_params_are_refused() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        train.Params.model_validate({"trails": 3})
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        train.Params(trials=0)


def test_candidates_keep_the_familys_order() -> None:
    offered = [Candidate("xgboost"), Candidate("linear"), Candidate("constant")]

    assert offered == of_kinds(offered, (), where="here")
    assert ["xgboost", "constant"] == [c.kind for c in of_kinds(offered, ("constant", "xgboost"), where="here")]


@pytest.mark.slow
def test_adult_is_searched_in_seconds_and_found_as_well_as_by_hand(public_data: Path, tmp_path: Path) -> None:
    """26,000 rows of 14 columns, 8 trials: a ROC AUC that boosted trees reach there, from an export equal to the model."""
    from families.tabular.contract import infer

    frame = pd.read_csv(public_data / "tabular_adult" / "data.csv.gz")
    contract, _ = infer(frame, "income", "tabular@adult-income")
    frame.assign(__row__=np.arange(1, len(frame) + 1)).to_parquet(tmp_path / "rows.parquet", index=False)
    (tmp_path / "contract.yaml").write_text(contract.to_yaml(), encoding="utf-8")
    featurize.run(
        rows=tmp_path / "rows.parquet", contract=tmp_path / "contract.yaml", out=tmp_path / "features", seed=42
    )
    report = _trained(tmp_path, params=train.Params(), line=contract.line)

    assert report.score > 0.92
    assert 8 == report.trials
    model = tmp_path / "trained" / "model"
    post = json.loads((model / "post.json").read_text(encoding="utf-8"))
    seal(model, manifest={"family": "tabular", "line": contract.line, **manifest_of(contract, post)})
    exported = open_bundle(model).run("graph.onnx", np.load(tmp_path / "features" / "x_test.npy"))["y"]
    native = np.load(tmp_path / "trained" / "native_test.npy")
    np.testing.assert_allclose(native, exported, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(native.argmax(axis=1), exported.argmax(axis=1))
