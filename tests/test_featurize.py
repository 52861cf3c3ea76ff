"""Step featurize: the split leaks nothing, what is fitted sees training rows only, and the outputs appear whole."""

import hashlib
import json
import timeit
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from components import featurize
from components.featurize import Params, split
from esteira.automl import search
from esteira.errors import DataError
from esteira.family import Candidate, Searched
from esteira.features import table
from esteira.features.answers import post_of
from esteira.features.contract import TableContract
from esteira.features.decode import Decoder, json_rows
from families.tabular.answer import TableAnswerer
from families.tabular.contract import infer

FILES = {
    "decoder.json", "x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy",
    "rows_train.parquet", "rows_test.parquet", "split.json", "features.json",
}  # fmt: skip


def deliveries(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Typed good rows as validate writes them, every kind of column, with missing cells."""
    rng = np.random.default_rng(seed)
    distance = rng.lognormal(2, 0.5, rows)
    late = distance + rng.normal(0, 2, rows) > 9
    return pd.DataFrame(
        {
            "distance": np.where(rng.random(rows) < 0.1, np.nan, distance),
            "stops": rng.integers(1, 30, rows).astype(float),
            "express": rng.random(rows) < 0.3,
            "depot": pd.array(rng.choice(["north", "south", None], rows).tolist(), dtype="str"),
            "day": pd.to_datetime("2024-01-01", utc=True) + pd.to_timedelta(rng.integers(0, 300, rows), unit="D"),
            "note": pd.array(rng.choice(["ring twice", "leave it here", None], rows).tolist(), dtype="str"),
            "driver": pd.array([f"d{i}" for i in rng.integers(0, 15, rows)], dtype="str"),
            "late": np.where(late, "late", "on time"),
            "__row__": np.arange(1, rows + 1),
        }
    )


def agreed(frame: pd.DataFrame, target: str = "late", **options: Any) -> TableContract:
    contract, _ = infer(frame.drop(columns="__row__"), target, "tabular@deliveries", **options)
    return contract


def written(folder: Path, frame: pd.DataFrame, contract: TableContract) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "rows.parquet", index=False)
    (folder / "contract.yaml").write_text(contract.to_yaml(), encoding="utf-8")
    return {"rows": folder / "rows.parquet", "contract": folder / "contract.yaml", "out": folder / "out"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def linear(folder: Path, contract: TableContract, decoder: Decoder) -> Searched:
    """The linear model, whose graph holds the fitted preparation: medians, scaler, one-hot."""
    return search(
        np.load(folder / "x_train.npy"),
        np.load(folder / "y_train.npy"),
        task=contract.target.task,
        categorical=decoder.categorical,
        candidates=[Candidate("linear", defaults={"alpha": 1.0})],
        metric="roc_auc",
        trials=1,
        seed=42,
    )


def test_outputs_are_whole_typed_and_the_same_twice(tmp_path: Path) -> None:
    """All outputs are there with their shapes and types; running again gives the same bytes."""
    frame = deliveries()
    paths = written(tmp_path, frame, agreed(frame))
    report = featurize.run(**paths, params=Params(), seed=42)
    out = paths["out"]
    assert {path.name for path in out.iterdir()} == FILES
    x_train, x_test = np.load(out / "x_train.npy"), np.load(out / "x_test.npy")
    y_train, y_test = np.load(out / "y_train.npy"), np.load(out / "y_test.npy")
    assert ((160, report.features), (40, report.features)) == (x_train.shape, x_test.shape)
    assert (np.float32, np.int64) == (x_train.dtype, y_train.dtype)
    assert ((160,), (40,)) == (y_train.shape, y_test.shape)
    assert report.model_dump(mode="json") == json.loads((out / "split.json").read_text())
    assert {"late": (int((y_train == 0).sum()), int((y_test == 0).sum()))}.items() <= (report.classes or {}).items()
    train, test = pd.read_parquet(out / "rows_train.parquet"), pd.read_parquet(out / "rows_test.parquet")
    assert sorted([*train["__row__"], *test["__row__"]]) == list(range(1, 201))
    assert train["__row__"].is_monotonic_increasing
    decoder = Decoder.from_json((out / "decoder.json").read_bytes())
    assert x_test.tobytes() == decoder.frame(test).tobytes() == decoder.rows(json_rows(test, decoder)).tobytes()
    before = digests(out)
    featurize.run(**paths, params=Params(), seed=42)
    assert before == digests(out)
    featurize.run(**paths, params=Params(), seed=43)
    assert before["rows_test.parquet"] != digests(out)["rows_test.parquet"]


@pytest.mark.requirement("K-44")
def test_preparation_is_fitted_on_training_rows_only_and_one_record_equals_the_batch(tmp_path: Path) -> None:
    """K-44. Done when: fitting on train only is proven by an intentional test-set outlier not changing the fitted scaler,
    and serving one record equals the batch result.

    A table, and the same table with an outlier, a new category and new words in the rows that the split holds back: the
    decoder and the graph (median, indicator, scaler, one-hot) are the same to the last byte, the test features are not.
    Then the sealed bundle answers each row alone as in the batch.
    """
    from esteira.bundle import open_bundle, seal
    from families.tabular import FAMILY, manifest_of

    frame = deliveries()
    contract = agreed(frame)
    clean = written(tmp_path / "clean", frame, contract)
    featurize.run(**clean, seed=42)
    held = pd.read_parquet(clean["out"] / "rows_test.parquet")["__row__"]
    odd = frame.copy()
    where = odd["__row__"].isin(held)
    odd.loc[where, "distance"] = 1e9
    odd.loc[where, "stops"] = np.nan
    odd.loc[where, "depot"] = "the moon"
    odd.loc[where, "note"] = "beam it up"
    odd.loc[where, "day"] = pd.Timestamp("2999-12-31", tz="UTC")
    dirty = written(tmp_path / "dirty", odd, contract)
    featurize.run(**dirty, seed=42)

    same = {"decoder.json", "x_train.npy", "y_train.npy", "y_test.npy", "rows_train.parquet", "split.json"}
    first, second = digests(clean["out"]), digests(dirty["out"])
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
    assert first["x_test.npy"] != second["x_test.npy"]
    decoder = Decoder.from_json((clean["out"] / "decoder.json").read_bytes())
    models = [linear(paths["out"], contract, decoder) for paths in (clean, dirty)]
    assert models[0].graph() == models[1].graph()

    # One record equals the batch result, natively and from the bundle that a service opens.
    post = post_of(contract.target, np.load(clean["out"] / "y_train.npy"), models[0].out_of_fold)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "graph.onnx").write_bytes(models[0].graph())
    (bundle / "decoder.json").write_bytes((clean["out"] / "decoder.json").read_bytes())
    bundle_id = seal(bundle, manifest={"family": "tabular", "line": contract.line, **manifest_of(contract, post)})
    rows = json_rows(pd.concat([frame.head(60), odd.loc[where].head(5)]), decoder)
    for answerer in (
        FAMILY.open(open_bundle(bundle, device="cpu", bundle_id=bundle_id)),
        TableAnswerer(decoder, post, models[0].predict),
    ):
        batch = answerer.answer(rows)
        alone = [answerer.answer([row])[0] for row in rows]
        assert [answer["prediction"] for answer in batch] == [answer["prediction"] for answer in alone]
        assert [answer["warnings"] for answer in batch] == [answer["warnings"] for answer in alone]
        values = [[list(answer["probabilities"].values()) for answer in answers] for answers in (batch, alone)]
        np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-12)


def shares(y: np.ndarray, test: np.ndarray) -> dict[int, float]:
    return {int(code): float((y[test] == code).mean()) for code in np.unique(y)}


def test_split_is_stratified_and_holds_back_a_fifth(tmp_path: Path) -> None:
    """K-48's split: 20 % held back, each class with its share; a class of one row trains, one of five is tested."""
    frame = deliveries(500)
    contract = agreed(frame)
    y = np.repeat([0, 1, 2, 3], [400, 94, 5, 1])
    chosen = split(frame, y, contract, test_size=0.2, seed=42)
    assert ("stratified", 100) == (chosen.method, len(chosen.test))
    assert {0: 80, 1: 19, 2: 1} == {code: int((y[chosen.test] == code).sum()) for code in (0, 1, 2)}
    assert 3 in y[chosen.train]
    assert sorted([*chosen.train, *chosen.test]) == list(range(500))
    again = split(frame, y, contract, test_size=0.2, seed=42)
    other = split(frame, y, contract, test_size=0.2, seed=7)
    assert chosen.test.tolist() == again.test.tolist() != other.test.tolist()


def test_regression_is_split_at_random() -> None:
    """A number cannot be stratified by value: a fifth at random, with seed."""
    frame = deliveries()
    contract = agreed(frame.drop(columns="late"), target="distance")
    chosen = split(frame, frame["distance"].to_numpy(), contract, test_size=0.2, seed=1)
    assert ("random", 40) == (chosen.method, len(chosen.test))


@pytest.mark.parametrize("column", ["day", "stops"])
def test_split_by_time_tests_on_the_future_only(tmp_path: Path, column: str) -> None:
    """Every test row is later than every training row, also where many share a moment; rows without a time train."""
    frame = deliveries(300)
    frame.loc[:9, column] = None
    contract = agreed(frame, time_column=column)
    paths = written(tmp_path, frame, contract)
    report = featurize.run(**paths, params=Params(), seed=42)
    train = pd.read_parquet(paths["out"] / "rows_train.parquet")
    test = pd.read_parquet(paths["out"] / "rows_test.parquet")
    assert report.method == "time"
    assert train[column].max() < test[column].min()
    assert set(range(1, 11)) <= set(train["__row__"])
    assert abs(len(test) - 60) <= 10
    assert train[column].dropna().is_monotonic_increasing
    assert test[column].is_monotonic_increasing
    if column == "day":
        assert report.boundary is not None
        assert pd.Timestamp(report.boundary) == test[column].min()


def test_split_by_time_moves_the_boundary_back_when_the_last_moment_is_wide() -> None:
    """When most rows share the last moment, that moment is the test part."""
    frame = deliveries(100)
    frame["day"] = pd.to_datetime(["2024-01-01"] * 40 + ["2024-01-02"] * 60, utc=True)
    chosen = split(frame, np.arange(100) % 2, agreed(frame, time_column="day"), test_size=0.2, seed=0)
    assert list(range(40)) == chosen.train.tolist()
    frame["day"] = pd.Timestamp("2024-01-01", tz="UTC")
    frozen = agreed(deliveries(100), time_column="day")
    with pytest.raises(DataError, match="both parts"):
        split(frame, np.arange(100) % 2, frozen, test_size=0.2, seed=0)


def test_split_by_group_keeps_groups_whole(tmp_path: Path) -> None:
    """No group is on both sides, the held back share is near a fifth, and the group is no feature."""
    frame = deliveries(300)
    contract = agreed(frame, group_column="driver")
    paths = written(tmp_path, frame, contract)
    report = featurize.run(**paths, params=Params(), seed=42)
    train = pd.read_parquet(paths["out"] / "rows_train.parquet")
    test = pd.read_parquet(paths["out"] / "rows_test.parquet")
    assert not set(train["driver"]) & set(test["driver"])
    assert ("group", (train["driver"].nunique(), test["driver"].nunique())) == (report.method, report.groups)
    assert 0.12 <= len(test) / 300 <= 0.28
    assert "driver" not in [c.name for c in Decoder.from_json((paths["out"] / "decoder.json").read_bytes()).columns]
    with pytest.raises(DataError, match="'driver' is absent"):
        split(frame.drop(columns="driver"), np.zeros(300), contract, test_size=0.2, seed=0)


def test_wrong_params_and_too_few_rows_are_refused(tmp_path: Path) -> None:
    """Unknown and impossible parameters are refused by name; so is a table that cannot be split."""
    for wrong in ({"test_siz": 0.2}, {"test_size": 0}, {"test_size": 1.0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Params.model_validate(wrong)
    frame = deliveries(30)
    contract = agreed(frame)
    paths = written(tmp_path, frame.groupby("late").head(1), contract)
    with pytest.raises(DataError, match="both parts of a split need rows"):
        featurize.run(**paths, params=Params(), seed=42)
    assert not paths["out"].exists()


# ---------------------------------------------------------------- the features are looked at


def looked_at(x: Any, test: Any = None, names: tuple[str, ...] = ("a", "b")) -> tuple[list[dict[str, Any]], list[Any]]:
    train = np.asarray(x, dtype=np.float32).reshape(-1, 2)
    held = train if test is None else np.asarray(test, dtype=np.float32).reshape(-1, 2)
    parts = {"train": (train, np.arange(1, len(train) + 1)), "test": (held, np.arange(101, 101 + len(held)))}
    return table.examine(names, parts, "tabular@t, step featurize")


def test_an_infinite_feature_is_named_with_its_data_row() -> None:
    with pytest.raises(DataError, match="'b' is inf in data row 102 and in 1 cells") as caught:
        looked_at([[1, 2], [3, 4]], [[1, 2], [3, np.inf]])
    assert "bad_features" == caught.value.code
    assert caught.value.where.endswith("feature 'b', data row 102")


@pytest.mark.parametrize(
    ("names", "x", "words"),
    [
        (("a", "a"), np.zeros((2, 2), np.float32), "a name of its own, but 'a' is there twice"),
        (("a", "b"), np.zeros((2, 2)), r"those of the train rows are float64 of shape \(2, 2\)"),
        (("a",), np.zeros((2, 2), np.float32), r"\(2, 1\), but those of the train rows are float32 of shape \(2, 2\)"),
    ],
    ids=["names", "type", "shape"],
)
def test_features_of_another_form_are_refused(names: tuple[str, ...], x: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        table.examine(names, {"train": (x, np.arange(2))}, "here")


def test_constant_missing_and_differently_missing_features_are_findings() -> None:
    nan = np.nan
    assert [("a", "constant")] == [(f.column, f.rule) for f in looked_at([[1, 2], [1, 4]])[1]]
    assert [("b", "all_missing")] == [(f.column, f.rule) for f in looked_at([[1, nan], [2, nan]])[1]]
    (far,) = looked_at([[1, 2], [2, 3], [3, 4]], [[1, nan], [2, nan]])[1]
    assert ("b", "missing_apart", "warning") == (far.column, far.rule, far.severity)
    assert "0.0% of the training rows and 100.0% of the test rows" in far.message
    assert [] == looked_at([[1, 2], [1, nan], [nan, 4]])[1][1:], "a value and gaps tell something"


def test_the_record_says_of_each_feature_what_there_is_and_of_each_column_its_features(tmp_path: Path) -> None:
    """features.json: names, groups, shares of missing cells and the ends of the range in both parts."""
    frame = deliveries()
    frame["stops"] = 3.0
    contract = agreed(deliveries())
    paths = written(tmp_path, frame, contract)

    featurize.run(**paths)

    told = json.loads((paths["out"] / "features.json").read_text(encoding="utf-8"))
    x = np.load(paths["out"] / "x_train.npy")
    decoder = Decoder.from_json((paths["out"] / "decoder.json").read_text(encoding="utf-8"))
    assert (list(decoder.names), list(decoder.categorical), ["decoder.json"]) == (
        told["names"], told["categorical"], told["files"],
    )  # fmt: skip
    assert list(range(x.shape[1])) == [position for positions in told["groups"].values() for position in positions]
    assert [column.name for column in contract.columns] == list(told["groups"])
    assert [("constant", "stops")] == [(found["rule"], found["column"]) for found in told["findings"]]
    distance = told["features"][told["groups"]["distance"][0]]
    assert "distance" == distance["name"]
    assert np.isnan(x[:, 0]).mean() == pytest.approx(distance["train"]["missing_share"], abs=1e-6)
    assert (np.nanmin(x[:, 0]), np.nanmax(x[:, 0])) == (distance["train"]["minimum"], distance["train"]["maximum"])


def test_looking_at_a_hundred_features_of_fifty_thousand_rows_takes_half_a_second_at_most() -> None:
    x = np.random.default_rng(0).normal(size=(50_000, 100)).astype(np.float32)
    rows, names = np.arange(len(x)), [f"f{i}" for i in range(100)]
    parts = {"train": (x, rows), "test": (x[:9], rows[:9])}

    seconds = min(timeit.repeat(lambda: table.examine(names, parts, ""), number=1, repeat=3))

    assert seconds < 0.5, f"{seconds:.2f} s"
