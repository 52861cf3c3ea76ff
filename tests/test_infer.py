"""The contract that is inferred from cells is what a careful person would write, on small tables and on real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esteira.errors import ConfigError, DataError
from esteira.features.contract import Column, TableContract
from esteira.features.leaks import find_leaks
from families.tabular.contract import infer

ROWS = 60
LABEL = [("yes", "no", "no")[i % 3] for i in range(ROWS)]


def column_of(cells: list[Any], **options: Any) -> tuple[Column | None, str, list[str]]:
    """The inferred column of these cells, or None and why it is dropped; and the notes about it."""
    frame = pd.DataFrame({"x": cells, "other": [f"{i % 7}.5" for i in range(len(cells))], "y": LABEL[: len(cells)]})
    before = frame.copy()
    contract, notes = infer(frame, "y", "t", **options)
    pd.testing.assert_frame_equal(before, frame)
    assert contract == TableContract.from_yaml(contract.to_yaml())
    dropped = {item.name: item.reason for item in contract.dropped}
    said = [note.message for note in notes if note.column == "x"]
    return (None, dropped["x"], said) if "x" in dropped else (contract.column("x"), "", said)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        pytest.param([f"{i / 7:.3f}" for i in range(ROWS)], "number", id="decimals"),
        pytest.param([str(i % 30) for i in range(ROWS)], "integer", id="whole"),
        pytest.param([f"{i % 30}.0" for i in range(ROWS)], "integer", id="whole written with a point"),
        pytest.param([i % 2 == 0 for i in range(ROWS)], "boolean", id="typed booleans"),
        pytest.param(["True", "False"] * 30, "boolean", id="spelled booleans"),
        pytest.param(["t", "f"] * 30, "boolean", id="t and f"),
        pytest.param(["Yes", "No"] * 30, "category", id="yes and no are words"),
        pytest.param(["true", "false", "unknown"] * 20, "category", id="booleans and a third word"),
        pytest.param([f"2024-01-{i % 28 + 1:02d}" for i in range(ROWS)], "date", id="dates"),
        pytest.param([f"2024/01/{i % 28 + 1:02d} 10:00" for i in range(ROWS)], "date", id="times"),
        pytest.param([f"{i % 28 + 1}/01/2024" for i in range(ROWS)], "text", id="ambiguous dates stay text"),
        pytest.param([20240101 + i % 28 for i in range(ROWS)], "integer", id="pure numbers are no dates"),
        pytest.param(["red", "green", "blue"] * 20, "category", id="few words"),
        pytest.param([f"word{i % 19} and word{i}" for i in range(ROWS)], "text", id="sentences"),
        pytest.param([f"A/5 {i}" if i % 4 else str(17000 + i) for i in range(ROWS)], "text", id="scattered mix of numbers and text"),
        pytest.param([f"u{i % 10}{'xy'[i % 2]}" for i in range(ROWS)], "category", id="repeated codes"),
        pytest.param([f"0{i % 9}123" for i in range(ROWS)], "category", id="codes with leading zeros"),
        pytest.param([("1", "2", "3", "U")[i % 4] for i in range(ROWS)], "category", id="codes, some numbers"),
        pytest.param([("1", "2", "3")[i % 3] if i % 20 else "?" for i in range(ROWS)], "integer", id="? is an empty cell"),
        pytest.param([None if i % 3 else "only" for i in range(ROWS)], "category", id="one word or nothing"),
    ],
)  # fmt: skip
def test_kind(cells: list[Any], kind: str) -> None:
    """Each column gets the kind that its cells show."""
    column, why, _ = column_of(cells)
    assert column is not None, why
    assert kind == column.kind


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        pytest.param([f"cust-{i:04d}" for i in range(ROWS)], "identifier: 60 distinct codes", id="unique codes"),
        pytest.param([str(i + 1) for i in range(ROWS)], "counts the rows, 1 to 60", id="row numbers"),
        pytest.param([(i * 7) % 60 for i in range(ROWS)], "counts the rows, 0 to 59", id="shuffled row numbers"),
        pytest.param([None] * ROWS, "all cells are empty", id="null"),
        pytest.param([" "] * ROWS, "all cells are empty", id="blank"),
        pytest.param(["N/A"] * ROWS, "constant: every cell is 'N/A'", id="one word"),
        pytest.param([3.0] * ROWS, "constant: every cell is 3.0", id="constant"),
    ],
)
def test_useless_column_is_left_out_with_a_note(cells: list[Any], reason: str) -> None:
    """Identifiers, empty and constant columns are dropped, and both contract and notes say why."""
    column, why, notes = column_of(cells)
    assert column is None
    assert reason in why
    assert any(reason in note for note in notes)


def test_identifier_by_name_needs_unique_numbers() -> None:
    """`customerID` with gaps is an identifier by its name; the same numbers as `amount` or `paid` are not."""
    numbers = [i * i + 5 for i in range(ROWS)]
    frame = pd.DataFrame(dict.fromkeys(("customerID", "order_id", "amount", "paid"), numbers) | {"y": LABEL})
    contract, _ = infer(frame, "y", "t")
    assert ["customerID", "order_id"] == [dropped.name for dropped in contract.dropped]
    kept, _ = infer(frame, "y", "t", kinds={"order_id": "integer"})
    assert "order_id" in [column.name for column in kept.columns]


def test_ranges_categories_and_missing_share() -> None:
    """The contract says the range seen, the categories by frequency, and the share of empty cells."""
    column, _, _ = column_of([None, *[str(i % 28 + 2) for i in range(29)]])
    assert column is not None
    assert (2, 29, pytest.approx(1 / 30, abs=1e-6)) == (column.minimum, column.maximum, column.missing_share)
    column, _, notes = column_of([*(["b"] * 3), *(["a"] * 3), *(["c"] * 6), "d"])
    assert column is not None
    assert ("c", "a", "b", "d") == column.categories
    assert ["1 of 4 categories are seen once"] == notes
    column, _, _ = column_of(["2024-03-01", "2023-03-01T10:30:00Z"] * 10)
    assert column is not None
    assert ("2023-03-01T10:30:00.000000", "2024-03-01") == (column.minimum, column.maximum)


def test_a_few_bad_cells_do_not_change_the_kind() -> None:
    """Up to one cell in twenty may not parse; the note counts them and shows examples."""
    column, _, notes = column_of(["oops" if i == 30 else f"{i / 7:.2f}" for i in range(ROWS)])
    assert column is not None
    assert column.kind == "number"
    assert ["1 of 60 cells are not a number: 'oops'"] == notes


@pytest.mark.parametrize(
    ("cells", "row", "words"),
    [
        ([str(i / 4) if i < 40 else f"w{i}" for i in range(ROWS)], 41, "numbers before, text from there on"),
        ([f"w{i}" if i < 40 else str(i / 4) for i in range(ROWS)], 41, "text before, numbers from there on"),
        ([None, *[str(i / 4) if i < 57 else "late" for i in range(ROWS - 1)]], 59, "numbers before, text"),
    ],
)
def test_a_column_that_changes_type_half_way_is_refused(cells: list[Any], row: int, words: str) -> None:
    """Numbers up to a row and text after it (or the reverse) is a fault of the data, named by column and row; a person
    may say what the column is."""
    with pytest.raises(DataError, match=f"'x' changes type at row {row}") as caught:
        column_of(cells)
    assert words in caught.value.message
    assert "kinds" in caught.value.cure
    column, _, _ = column_of(cells, kinds={"x": "category"})
    assert column is not None


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["no", "yes"] * 30, "binary", ("no", "yes")),
        (["b", "a", "c"] * 20, "multiclass", ("a", "b", "c")),
        ([0, 1] * 30, "binary", (0, 1)),
        (["1.0", "0.0"] * 30, "binary", (0, 1)),
        ([-1, 1, 3] * 20, "multiclass", (-1, 1, 3)),
        ([True, False] * 30, "binary", (False, True)),
        (["False", "True"] * 30, "binary", (False, True)),
        (["1", "2", "3", "U"] * 15, "multiclass", ("1", "2", "3", "U")),
        ([f"{i % 25}" for i in range(ROWS)], "regression", None),
        ([f"{i % 5}.5" for i in range(ROWS)], "regression", None),
    ],
)
def test_task_and_classes(cells: list[Any], task: str, classes: Any) -> None:
    """Words and few whole numbers are classes in their own type and order; other numbers are a regression."""
    contract, _ = infer(pd.DataFrame({"x": np.arange(ROWS) % 7 / 2, "y": cells}), "y", "t")
    assert (task, classes) == (contract.target.task, contract.target.classes)
    assert [type(a) for a in classes or ()] == [type(a) for a in contract.target.classes or ()]


@pytest.mark.parametrize(
    ("cells", "options", "code"),
    [
        (["same"] * ROWS, {}, "one_class"),
        (["same", None] * 30, {}, "one_class"),
        ([7.5] * ROWS, {}, "one_class"),
        ([None] * ROWS, {}, "empty_target"),
        (["NaN"] * ROWS, {}, "empty_target"),
        ([f"name {i}" for i in range(ROWS)], {}, "too_many_classes"),
        (["a", "b", "c"] * 20, {"task": "binary"}, "not_binary"),
        (["a", "b", "c"] * 20, {"task": "regression"}, "label_not_numeric"),
    ],
)
def test_a_label_that_cannot_be_learned_is_refused(cells: list[Any], options: dict[str, Any], code: str) -> None:
    """One class, no value, as many classes as rows: each is refused with its name and a cure."""
    with pytest.raises(DataError) as caught:
        infer(pd.DataFrame({"x": np.arange(ROWS) % 7 / 2, "y": cells}), "y", "t", **options)
    assert code == caught.value.code
    assert "'y'" in caught.value.message or "y" in caught.value.where
    assert caught.value.cure


def test_missing_label_column_and_wrong_options_are_named() -> None:
    """A label that is not there gets the nearest name; options must name columns and kinds that there are."""
    frame = pd.DataFrame({"x": np.arange(ROWS) % 7 / 2, "label": LABEL})
    with pytest.raises(DataError, match="no 'lable'") as caught:
        infer(frame, "lable", "t")
    assert "did you mean 'label'?" == caught.value.cure
    for options in ({"drop": ["z"]}, {"time_column": "z"}, {"group_column": "label"}, {"kinds": {"x": "colour"}}):
        with pytest.raises(ConfigError):
            infer(frame, "label", "t", **options)
    with pytest.raises(DataError, match="one usable column"):
        infer(frame.assign(x=1), "label", "t")
    with pytest.raises(DataError, match="must have rows"):
        infer(frame.head(0), "label", "t")
    with pytest.raises(DataError, match="holds one value"):
        infer(frame.assign(x=[[1]] * ROWS), "label", "t")


def test_group_column_is_no_feature_and_time_column_stays_one() -> None:
    """The group column says which rows belong together; the time column is kept even if it counts the rows."""
    frame = pd.DataFrame({"who": [f"u{i % 5}" for i in range(ROWS)], "t": range(ROWS), "x": np.arange(ROWS) % 7 / 2})
    contract, _ = infer(frame.assign(y=LABEL), "y", "l", time_column="t", group_column="who")
    assert ["t", "x"] == [column.name for column in contract.columns]
    assert ["who"] == [dropped.name for dropped in contract.dropped]
    assert ("t", "who") == (contract.time_column, contract.group_column)


def read(public_data: Path, name: str) -> pd.DataFrame:
    """A public table as ingest gives it: text cells, blank ones empty."""
    (path,) = (public_data / f"tabular_{name}").glob("data.csv*")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return frame.apply(lambda series: series.str.strip()).replace("", None)


EXPECTED: dict[str, tuple[str, str, dict[str, str]]] = {
    "adult": ("income", "binary", {"age": "integer", "fnlwgt": "integer", "native_country": "category", "sex": "category"}),
    "telco_churn": ("Churn", "binary", {"SeniorCitizen": "integer", "Partner": "category", "TotalCharges": "number"}),
    "diamonds": ("price", "regression", {"carat": "number", "cut": "category", "color": "category", "z": "number"}),
    "vehicle": ("Class", "multiclass", {"Comp": "integer", "Holl.Ra": "integer"}),
    "titanic": (
        "survived",
        "binary",
        {"name": "text", "ticket": "text", "cabin": "text", "age": "number", "sex": "category", "embarked": "category"},
    ),
    "anneal": ("class", "multiclass", {"steel": "category", "carbon": "integer", "bf": "category"}),
    "kr_vs_kp": ("class", "binary", {"bkblk": "boolean", "katri": "category"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_public_table_is_read_sensibly(public_data: Path, name: str) -> None:
    """Real tables get the task and kinds a person would give, no column is wrongly dropped, and none is called a leak."""
    target, task, kinds = EXPECTED[name]
    frame = read(public_data, name)
    contract, _ = infer(frame, target, f"tabular@{name}")
    assert task == contract.target.task
    assert kinds == {column.name: column.kind for column in contract.columns if column.name in kinds}
    assert all("all cells are empty" in item.reason or "constant" in item.reason for item in contract.dropped)
    assert [] == find_leaks(frame, target, contract)


def test_missing_shares_of_real_tables(public_data: Path) -> None:
    """Blank cells count as missing: 77 % of titanic's cabins, 11 of telco's total charges; adult's too."""
    titanic, _ = infer(read(public_data, "titanic"), "survived", "t")
    assert 0.77 == pytest.approx(titanic.column("cabin").missing_share, abs=0.01)
    telco, _ = infer(read(public_data, "telco_churn"), "Churn", "t")
    assert 11 / 7043 == pytest.approx(telco.column("TotalCharges").missing_share, abs=1e-6)
    adult, _ = infer(read(public_data, "adult"), "income", "t")
    assert {"workclass", "occupation", "native_country"} == {c.name for c in adult.columns if c.missing_share}


def test_iris_is_honest() -> None:
    """The most telling honest column that we know, iris' petal width, is not called a copy of the species."""
    from sklearn.datasets import load_iris

    bunch = load_iris(as_frame=True)
    frame = bunch.data.assign(species=bunch.target_names[bunch.target])
    contract, _ = infer(frame, "species", "t")
    assert 4 == len(contract.columns)
    assert [] == find_leaks(frame, "species", contract)


def test_many_levels_are_a_category_while_they_repeat() -> None:
    """40 or 100 users in 600 rows are a category, 200 are text; so are 100 phrases; of 1,200 levels 1,000 are kept."""
    for count, kind in ((40, "category"), (100, "category"), (200, "text")):
        users = [f"u{i % count}" for i in range(600)]
        contract, _ = infer(pd.DataFrame({"x": users, "y": (LABEL * 10)}), "y", "t")
        assert kind == contract.column("x").kind, count
    phrases = [f"user {i % 100}" for i in range(600)]
    contract, _ = infer(pd.DataFrame({"x": phrases, "y": (LABEL * 10)}), "y", "t")
    assert "text" == contract.column("x").kind
    levels = [f"u{i % 1200}" for i in range(24000)]
    contract, notes = infer(pd.DataFrame({"x": levels, "y": (LABEL * 400)}), "y", "t")
    assert 1000 == len(contract.column("x").categories or ())
    assert ["levels"] == [note.rule for note in notes]


# Leaks.


def leaking(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    truth = rng.random(rows) < 0.3
    noise = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "honest": truth * 1.0 + noise,
            "copy": np.where(truth, "1", "0"),
            "scaled": truth * 100.0 + noise,
            "flipped": np.where((rng.random(rows) < 0.01) != truth, 1.0, 0.0),
            "renamed": np.where(rng.random(rows) < 0.002, "?", np.where(truth, "won", "lost")),
            "code": [f"{'w' if t else 'l'}{i % 5}" for i, t in enumerate(truth)],
            "y": np.where(truth, "yes", "no"),
        }
    )


def test_near_copies_of_a_class_are_found() -> None:
    """A copy, one with 1 % flipped, a number that separates the classes and a renamed label are found; an honest column is not."""
    frame = leaking()
    contract, _ = infer(frame, "y", "t")
    findings = find_leaks(frame, "y", contract)
    assert {"copy", "scaled", "flipped", "renamed", "code"} == {finding.column for finding in findings}
    assert all(finding.rule == "leak" and finding.severity == "error" for finding in findings)
    assert "'copy' nearly copies 'y'" in next(f.message for f in findings if f.column == "copy")


def test_near_copies_of_a_number_are_found() -> None:
    """A rescaled label and a monotone transform of it are found; a merely good column is not."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    frame = pd.DataFrame(
        {
            "good": truth + 0.2 * rng.normal(size=300),
            "cents": 100 * truth + 3,
            "cubed": np.exp(3 * truth),
            "sparse": np.where(np.arange(300) < 40, truth, np.nan),
            "word": np.where(truth > 0, "up", "down"),
            "y": truth,
        }
    )
    contract, _ = infer(frame, "y", "t")
    assert ["cents", "cubed"] == sorted(finding.column for finding in find_leaks(frame, "y", contract))


def test_chance_is_not_called_a_leak() -> None:
    """Random columns on few rows explain the label by chance; none of them is called a near-copy."""
    rng = np.random.default_rng(1)
    for rows in (20, 30, 60, 200):
        frame = pd.DataFrame({f"x{i}": rng.normal(size=rows) for i in range(20)})
        frame["c"] = [f"k{i}" for i in rng.integers(0, rows // 2, rows)]
        frame["y"] = np.where(rng.random(rows) < 0.4, "a", "b")
        contract, _ = infer(frame, "y", "t")
        assert [] == find_leaks(frame, "y", contract)
