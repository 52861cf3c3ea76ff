"""Validate types good rows, sets bad ones aside with a reason each, and scores what it saw."""

import json
import math
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import ingest, validate
from esteira import checks, expectations
from esteira.checks import CrossRule
from esteira.errors import ConfigError, DataError, EsteiraError, Refused, SourceError
from esteira.features.contract import Column, TableContract, Target

LINE = "tabular@t"


def _contract(*columns: Column, classes: tuple[str, ...] | None = ("no", "yes"), **fields: Any) -> TableContract:
    target = Target(name="y", task="binary" if classes else "regression", classes=classes)
    return TableContract(line=LINE, target=target, columns=columns, **fields)


def _write(folder: Path, frame: pd.DataFrame | str, target: str = "y") -> Path:
    """Rows as ingest leaves them."""
    path = folder / "t.csv"
    path.write_text(frame if isinstance(frame, str) else frame.to_csv(index=False))
    ingest.run(source=str(path), target=target, line=LINE, out=folder / "in", params=ingest.Params())
    return folder / "in"


def _validate(
    ingested: Path,
    out: Path,
    *,
    target: str = "y",
    champion: Path | str = "",
    expectations: bool = False,
    **params: Any,
) -> validate.Report:
    return validate.run(
        rows=ingested / "rows.parquet", dataset=ingested / "dataset.json", target=target, line=LINE, champion=str(champion),
        out=out, params=validate.Params(expectations=expectations, **params),
    )  # fmt: skip


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"), parse_constant=lambda word: pytest.fail(f"{path.name} holds {word}"))


def _people(rows: int = 100) -> pd.DataFrame:
    """A table without a fault: an integer, a number, a category, a boolean, a date and a two-valued label."""
    return pd.DataFrame(
        {
            "age": [20 + (i * 7) % 50 for i in range(rows)],
            "income": [1000.5 + 13.25 * i for i in range(rows)],
            "city": [["Recife", "Olinda", "Natal"][i % 3] for i in range(rows)],
            "owner": [["true", "false"][(i // 3) % 2] for i in range(rows)],
            "since": [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(rows)],
            "y": [["yes", "no"][(i // 2) % 2] for i in range(rows)],
        }
    )


# ---------------------------------------------------------------- the quality score


@pytest.mark.requirement("K-43")
def test_a_frame_with_a_tenth_of_its_cells_missing_and_no_other_fault_scores_0_96(tmp_path: Path) -> None:
    """K-43. Done when: a frame with 10 % missing cells, no other fault, scores 0.96.

    From raw rows through both steps, with the whole of the entry: the profile of every column, the schema check, errors
    that block, warnings that are reported.
    """
    frame = _people().astype(object)
    for i in range(60):  # 60 of 600 cells, never the label
        frame.iloc[i, i % 5] = None
    assert 60 == int(frame.isna().sum().sum())

    report = _validate(_write(tmp_path, frame), tmp_path / "out", expectations=True)
    profile = _json(tmp_path / "out" / "profile.json")

    assert 0.96 == report.quality_score == profile["quality_score"]
    assert (0.9, 1.0, 1.0, 1.0) == tuple(
        profile[part] for part in ("completeness", "validity", "uniqueness", "consistency")
    )
    assert (0, 100) == (report.quarantined_rows, report.good_rows)
    # Per column: type, count, missing share, distinct count, min, max, mean, standard deviation, quantiles, top values.
    income = next(column for column in profile["columns"] if column["name"] == "income")
    values = pd.to_numeric(frame["income"]).dropna()
    assert ("number", len(values), 1 - len(values) / 100, values.nunique()) == (  # type: ignore[comparison-overlap]
        income["type"], income["count"], pytest.approx(income["missing_share"]), income["distinct"],
    )  # fmt: skip
    assert (values.min(), values.max()) == (income["minimum"], income["maximum"])
    assert (values.mean(), values.std()) == pytest.approx((income["mean"], income["standard_deviation"]))
    assert values.quantile(0.25) == pytest.approx(income["quantiles"]["0.25"])
    city = next(column for column in profile["columns"] if column["name"] == "city")
    assert frame["city"].value_counts().iloc[0] == city["top"][0]["count"]
    assert frame.columns.tolist() == [column["name"] for column in profile["columns"]]

    # Schema check: a later table that misses a column, and any table that misses the label, is refused.
    later = _write(tmp_path, frame.drop(columns="income"))
    with pytest.raises(DataError, match="1 of 5 are missing: 'income'"):
        _validate(later, tmp_path / "later", champion=tmp_path / "out" / "contract.yaml")
    with pytest.raises(DataError, match="the label column must be in the table"):
        _write(tmp_path, frame.drop(columns="y"))

    # Warnings are reported, and the row goes on.
    warned = pd.DataFrame({"x": ["1"] * 10, "m": [None] * 6 + ["a"] * 4, "y": ["yes"] * 8 + ["no"] * 2})
    made = checks.typed(warned, _contract(Column(name="x", kind="integer"), Column(name="m", kind="category")))
    rules = {found["rule"] for found in checks.table_findings(warned, made.frame, _contract())}
    assert {"constant", "mostly_missing", "duplicated_rows", "small_class"} == rules

    # An empty dataset scores 0 and cannot be trained on.
    empty = _people(0)
    assert 0.0 == checks.quality(empty, checks.typed(empty, _contract())).score
    with pytest.raises(DataError, match="only a header"):
        _write(tmp_path, empty)


@pytest.mark.parametrize(
    ("change", "rules", "parts"),
    [
        pytest.param({}, (), (1.0, 1.0, 1.0, 1.0), id="no fault"),
        pytest.param({"a": ["1", "2", None, None]}, (), (10 / 12, 1.0, 1.0, 1.0), id="missing"),
        pytest.param({"a": ["1", "x", "3", "4"]}, (), (1.0, 11 / 12, 1.0, 1.0), id="wrong type"),
        pytest.param({"a": ["1", "2", "3", "400"]}, (), (1.0, 11 / 12, 1.0, 1.0), id="out of range"),
        pytest.param({"a": ["1", "inf", "3", None]}, (), (11 / 12, 10 / 11, 1.0, 1.0), id="infinite and missing"),
        pytest.param({"a": ["1", "1", "3", "4"], "b": ["5", "5", "7", "8"], "y": ["no"] * 4}, (),
                     (1.0, 1.0, 0.75, 1.0), id="a row twice"),
        pytest.param({}, ("a < b", "a > b"), (1.0, 1.0, 1.0, 0.5), id="one cross-column rule of two"),
        pytest.param({"a": ["?", "NA", "3", "4"]}, (), (10 / 12, 1.0, 1.0, 1.0), id="words for an empty cell"),
    ],
)  # fmt: skip
def test_each_part_of_the_score_falls_by_what_it_measures(
    change: dict[str, Any], rules: tuple[str, ...], parts: tuple[float, ...]
) -> None:
    frame = pd.DataFrame({"a": list("1234"), "b": list("5678"), "y": ["no", "yes", "no", "yes"], **change})
    contract = _contract(
        Column(name="a", kind="number", minimum=1, maximum=4), Column(name="b", kind="number", minimum=5, maximum=8)
    )
    cross = [CrossRule.parse(rule) for rule in rules]

    quality = checks.quality(frame, checks.typed(frame, contract, rules=cross), cross)

    assert parts == pytest.approx((quality.completeness, quality.validity, quality.uniqueness, quality.consistency))
    assert quality.score == round(0.4 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2] + 0.1 * parts[3], 4)


@given(st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=4), st.floats().map(str)), st.booleans()), max_size=20))
@settings(max_examples=80, deadline=None)
def test_the_score_stays_within_0_and_1(rows: list[tuple[str | None, bool]]) -> None:
    frame = pd.DataFrame({"a": [a for a, _ in rows], "y": ["yes" if y else "no" for _, y in rows]}, dtype=object)
    made = checks.typed(frame, _contract(Column(name="a", kind="number", minimum=0, maximum=1)))
    quality = checks.quality(frame, made)

    assert all(0.0 <= part <= 1.0 for part in quality.to_dict().values())


@given(
    st.lists(
        st.one_of(st.none(), st.text(max_size=6), st.floats().map(str), st.integers().map(str)), min_size=1, max_size=12
    )
)
@settings(max_examples=150, deadline=None)
def test_a_column_reads_as_its_cells_do_one_by_one(cells: list[str | None]) -> None:
    """The fast way over a whole column gives bit for bit what `parse.number` gives for each cell."""
    from esteira.features import parse

    cells = [None if cell is None or not cell.strip() else cell for cell in cells]
    frame = pd.DataFrame({"a": cells, "y": ["yes"] * len(cells)}, dtype="str")
    made = checks.typed(frame, _contract(Column(name="a", kind="number")))
    for cell, value, unread in zip(cells, made.frame["a"], made.unread["a"], strict=True):
        try:
            expected = parse.number(cell)
        except ValueError:
            assert unread
            assert math.isnan(value)
        else:
            assert not unread
            assert expected == value or (math.isnan(expected) and math.isnan(value))


# ---------------------------------------------------------------- good rows and quarantine


def test_good_rows_are_typed_by_the_contract_and_keep_their_number(tmp_path: Path) -> None:
    frame = _people()
    frame.loc[41, "y"] = None

    report = _validate(_write(tmp_path, frame), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "rows.parquet")

    assert {"age": "double", "income": "double", "city": "string", "owner": "bool", "since": "timestamp[us, tz=UTC]",
            "y": "string", "__row__": "int64"} == {field.name: str(field.type) for field in table.schema}  # fmt: skip
    assert [number for number in range(1, 101) if number != 42] == table["__row__"].to_pylist()
    assert datetime(2024, 1, 1, tzinfo=UTC) == table["since"][0].as_py()
    assert (99, 1, "binary") == (report.good_rows, report.quarantined_rows, report.task)
    assert [column.name for column in TableContract.from_yaml((tmp_path / "out" / "contract.yaml").read_text()).columns] == [
        "age", "income", "city", "owner", "since",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "kind"), [(["0", "1"], "int64"), (["true", "false"], "bool"), (["a", "b"], "string"), (None, "double")]
)
def test_the_label_keeps_its_own_type(tmp_path: Path, labels: list[str] | None, kind: str) -> None:
    frame = _people()
    frame["y"] = [labels[i % 2] for i in range(100)] if labels else [f"{math.sin(i):.6f}" for i in range(100)]

    _validate(_write(tmp_path, frame), tmp_path / "out")

    assert kind == str(pq.read_table(tmp_path / "out" / "rows.parquet")["y"].type)


def test_a_bad_row_is_set_aside_with_every_reason_and_its_raw_values(tmp_path: Path) -> None:
    frame = _people().astype(object)
    frame.loc[2, "age"] = "young"
    frame.loc[2, "since"] = "tomorrow"
    frame.loc[9, "income"] = "inf"
    frame.loc[20, "y"] = "NaN"

    _validate(_write(tmp_path, frame), tmp_path / "out")
    entries = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]

    assert [
        (3, [("type", "age", "young"), ("type", "since", "tomorrow")]),
        (10, [("infinite", "income", "inf")]),
        (21, [("label_missing", "y", "NaN")]),
    ] == [(e["row"], [(r["rule"], r["column"], r["value"]) for r in e["reasons"]]) for e in entries]
    assert "must be a finite number, but got 'young'" == entries[0]["reasons"][0]["message"]
    assert "must have a label, but got 'NaN'" == entries[2]["reasons"][0]["message"]
    assert {"age": "young", "city": "Natal", "y": "no"}.items() <= entries[0]["values"].items()


def test_rows_that_break_a_rule_between_columns_are_set_aside(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"start": range(100), "end": [i + (-1 if i == 7 else 5) for i in range(100)], "y": ["a", "b"] * 50}
    )

    report = _validate(
        _write(tmp_path, frame),
        tmp_path / "out",
        rules=("start <= end", "start != end"),
        kinds={"start": "integer", "end": "integer"},
    )
    entry = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())

    assert (8, "start <= end must hold, but got 7 and 6") == (entry["row"], entry["reasons"][0]["message"])
    assert 0.95 == report.quality_score
    assert 0.5 == _json(tmp_path / "out" / "profile.json")["consistency"]


@pytest.mark.parametrize("rule", ["start<=", "start <= nothing", "city < start"])
def test_a_rule_that_cannot_be_read_is_a_wrong_argument(tmp_path: Path, rule: str) -> None:
    frame = _people().rename(columns={"age": "start"})

    with pytest.raises(ConfigError, match="cross-column rule"):
        _validate(_write(tmp_path, frame), tmp_path / "out", rules=(rule,))


def test_findings_are_bounded_to_five_examples(tmp_path: Path) -> None:
    frame = _people(400).astype(object)
    for i in range(15):
        frame.loc[i * 20, "age"] = f"bad{i}"

    _validate(_write(tmp_path, frame), tmp_path / "out")
    found = _json(tmp_path / "out" / "findings.json")["findings"][0]

    assert ("type", "age", "error", 15) == (found["rule"], found["column"], found["severity"], found["count"])
    assert [{"row": i * 20 + 1, "value": f"bad{i}"} for i in range(5)] == found["examples"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    ingested = _write(tmp_path, _people())
    for name in ("one", "two"):
        _validate(ingested, tmp_path / name, expectations=True)

    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_changed_rows_of_ingest_are_refused(tmp_path: Path) -> None:
    ingested = _write(tmp_path, _people())
    data = bytearray((ingested / "rows.parquet").read_bytes())
    data[100] ^= 1
    (ingested / "rows.parquet").write_bytes(data)

    with pytest.raises(Refused, match="it was changed"):
        _validate(ingested, tmp_path / "out")

    (ingested / "rows.parquet").unlink()
    with pytest.raises(SourceError, match="No such file"):
        _validate(ingested, tmp_path / "out")


# ---------------------------------------------------------------- later data of the same line


def _accepted(tmp_path: Path) -> Path:
    _validate(_write(tmp_path, _people()), tmp_path / "first")
    return tmp_path / "first" / "contract.yaml"


def test_later_data_with_new_categories_and_ranges_pass_with_warnings(tmp_path: Path) -> None:
    contract = _accepted(tmp_path)
    frame = _people()
    frame.loc[0, "city"] = "Belém"
    frame.loc[1, "age"] = 119
    frame.loc[2, "since"] = "2031-01-01"
    frame["extra"] = 1

    report = _validate(_write(tmp_path, frame), tmp_path / "out", champion=contract, expectations=True)
    found = {(f["rule"], f["column"]): f for f in _json(tmp_path / "out" / "findings.json")["findings"]}

    assert 0 == report.quarantined_rows
    assert {("category", "city"), ("range", "age"), ("range", "since"), ("unknown", "extra")} <= found.keys()
    assert [{"row": 1, "value": "Belém"}] == found["category", "city"]["examples"]
    assert "was 20 to 69, but got '119'" == found["range", "age"]["message"]
    assert contract.read_bytes() == (tmp_path / "out" / "contract.yaml").read_bytes()
    unmet = [r for r in _json(tmp_path / "out" / "expectations.json")["results"] if not r["success"]]
    assert {("range", "age"), ("range", "since"), ("category", "city")} == {(r["rule"], r["column"]) for r in unmet}


def test_later_data_without_a_column_are_refused(tmp_path: Path) -> None:
    contract = _accepted(tmp_path)

    with pytest.raises(DataError) as refused:
        _validate(
            _write(tmp_path, _people().rename(columns={"income": "revenue"})), tmp_path / "out", champion=contract
        )

    assert "1 of 5 are missing: 'income'; the table has 'revenue' instead" in refused.value.message
    assert "missing_column" == refused.value.code


def test_later_data_whose_column_drifts_in_type_are_refused(tmp_path: Path) -> None:
    contract = _accepted(tmp_path)
    frame = _people()
    frame["income"] = frame["income"].map("R$ {:.2f}".format)

    with pytest.raises(DataError, match="another type than the line's contract says") as refused:
        _validate(_write(tmp_path, frame), tmp_path / "out", champion=contract)

    assert "type_drift" == refused.value.code
    assert "data row 1: 'R$ 1000.50'" in refused.value.message
    assert refused.value.where.endswith("column 'income', data row 1")


def test_later_data_with_a_new_class_set_those_rows_aside(tmp_path: Path) -> None:
    contract = _accepted(tmp_path)
    frame = _people()
    frame.loc[5, "y"] = "maybe"

    _validate(_write(tmp_path, frame), tmp_path / "out", champion=contract, expectations=True)
    entry = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())

    assert (6, "label_class", "maybe") == (entry["row"], entry["reasons"][0]["rule"], entry["reasons"][0]["value"])


def test_the_contract_is_taken_from_the_champions_bundle(tmp_path: Path) -> None:
    contract = TableContract.from_yaml(_accepted(tmp_path).read_text())
    (tmp_path / "bundle").mkdir()
    schema = contract.model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({"schema": schema}))

    _validate(_write(tmp_path, _people()), tmp_path / "out", champion=tmp_path / "bundle")

    assert contract == TableContract.from_yaml((tmp_path / "out" / "contract.yaml").read_text())


def test_a_champion_without_a_readable_contract_refuses(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()

    with pytest.raises(Refused, match="accepted contract must be readable"):
        _validate(_write(tmp_path, _people()), tmp_path / "out", champion=tmp_path / "bundle")


def test_a_contract_of_another_label_is_a_wrong_argument(tmp_path: Path) -> None:
    contract = _accepted(tmp_path)

    with pytest.raises(ConfigError, match="the label must be the contract's, 'y', but got 'owner'"):
        _validate(_write(tmp_path, _people()), tmp_path / "out", champion=contract, target="owner")


# ---------------------------------------------------------------- leaks


def test_a_near_copy_of_the_label_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    frame = _people()
    frame["outcome"] = frame["y"].map({"yes": "won", "no": "lost"})
    ingested = _write(tmp_path, frame)

    with pytest.raises(DataError) as refused:
        _validate(ingested, tmp_path / "out")

    assert ("leak", 1) == (refused.value.code, refused.value.exit_code)
    assert "'outcome'" in refused.value.message
    assert "--allow-leak outcome" in refused.value.cure
    assert not (tmp_path / "out" / "rows.parquet").exists()
    assert 100 == _validate(ingested, tmp_path / "out", allow_leak=("outcome",)).good_rows


# ---------------------------------------------------------------- Great Expectations and the page


def test_great_expectations_counts_what_our_checks_count(tmp_path: Path) -> None:
    """Rows 3, 10 and 21 are bad for both; the step would stop if one of them counted otherwise."""
    frame = _people().astype(object)
    frame.loc[2, "age"] = "young"
    frame.loc[9, "income"] = "-Infinity"
    frame.loc[20, "y"] = None
    frame.loc[50, "owner"] = "perhaps"

    _validate(_write(tmp_path, frame), tmp_path / "out", expectations=True, kinds={"owner": "boolean"})
    document = _json(tmp_path / "out" / "expectations.json")
    unmet = {(r["column"], r["rule"]): r for r in document["results"] if not r["success"]}

    assert {("age", "unread"), ("income", "unread"), ("owner", "unread"), ("y", "label_missing")} == unmet.keys()
    assert [{"row": 3, "value": "young"}] == unmet["age", "unread"]["examples"]
    assert [{"row": 21, "value": None}] == unmet["y", "label_missing"]["examples"]
    assert "expect_column_values_to_be_null" == unmet["age", "unread"]["expectation"]


def test_a_disagreement_of_the_two_stops_the_step() -> None:
    result = {"column": "age", "rule": "range", "unexpected_count": 2}

    with pytest.raises(RuntimeError, match=r"broken by 0 cells for esteira\.checks, but by 2 for Great Expectations"):
        expectations.require_agreement([result], [])


class _Page(HTMLParser):
    """Collects what a browser would fetch, and tags that are never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "br", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_needs_nothing_else_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    frame = _people().rename(columns={"city": "<script>alert(1)</script>"}).astype(object)
    frame.loc[2, "age"] = "<b>young</b>"

    _validate(_write(tmp_path, frame), tmp_path / "out", expectations=True)
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = _Page()
    page.feed(html)

    assert ([], []) == (page.fetched, page.open)
    assert "<script>" not in html
    assert "<b>young" not in html
    for words in (
        "Accepted.",
        "Quality",
        "Findings",
        "Columns",
        "Rows in quarantine",
        "Expectations",
        "<script>alert(1)",
    ):
        assert words in page.text


def test_a_refused_table_leaves_its_page_and_quarantine_but_no_rows(tmp_path: Path) -> None:
    frame = _people().astype(object)
    frame.loc[:5, "y"] = None

    with pytest.raises(DataError):
        _validate(_write(tmp_path, frame), tmp_path / "out")

    assert ["expectations.json", "findings.json", "profile.json", "quarantine.jsonl", "report.html"] == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    assert "Refused." in (tmp_path / "out" / "report.html").read_text()
    assert "refused" == _json(tmp_path / "out" / "findings.json")["verdict"]


@pytest.mark.parametrize(
    ("name", "target", "task", "features"),
    [
        ("tabular_telco_churn", "Churn", "binary", 19),
        ("tabular_titanic", "survived", "binary", None),
        ("tabular_vehicle", "Class", "multiclass", 18),
        ("tabular_diamonds", "price", "regression", 9),
        ("tabular_adult", "income", "binary", 14),
    ],
)
def test_public_tables_pass(
    public_data: Path, tmp_path: Path, name: str, target: str, task: str, features: int | None
) -> None:
    path = next((public_data / name).glob("data.csv*"))
    ingest.run(source=str(path), target=target, line=LINE, out=tmp_path / "in", params=ingest.Params())

    report = _validate(tmp_path / "in", tmp_path / "out", target=target, expectations=True)

    assert (task, 0) == (report.task, report.quarantined_rows)
    assert features in {None, report.feature_columns}
    assert report.quality_score > 0.9


@pytest.mark.parametrize(
    "params", [{"max_bad_share": 2}, {"min_rows": 1}, {"allow_leaks": ["a"]}, {"kinds": {"a": "colour"}}]
)
def test_unknown_and_impossible_params_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        validate.Params(**params)


def test_an_allowed_leak_must_be_a_column(tmp_path: Path) -> None:
    with pytest.raises(EsteiraError, match="'outcme' is none"):
        _validate(_write(tmp_path, _people()), tmp_path / "out", allow_leak=("outcme",))
