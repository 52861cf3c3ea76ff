"""Many rows are read a column at a time, and get the very features and findings that each row gets alone."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import DataError
from esteira.features import columns
from esteira.features.columns import MANY
from esteira.features.decode import LARGEST, ColumnDecoder, Decoder

DECODER = Decoder(
    columns=(
        ColumnDecoder("price", "number", minimum=-10.0, maximum=1e6),
        ColumnDecoder("open", "number"),
        ColumnDecoder("rooms", "integer", minimum=0.0, maximum=9.0),
        ColumnDecoder("sunny", "boolean"),
        ColumnDecoder("city", "category", levels=("Rio", "São Paulo", "1")),
        ColumnDecoder("since", "date", minimum=0.0, maximum=1.8e15, parts=("days", "month", "hour")),
        ColumnDecoder("note", "text", tokens=("sea", "view")),
        ColumnDecoder("plan", "object"),
        ColumnDecoder("more", "number", required=False),
    ),
    label="sold",
    ignored=("id",),
)

PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "price": st.floats(-10, 1e6) | st.integers(-10, 10**6),
    "open": st.floats(-1e30, 1e30) | st.integers(-(2**70), 2**70),
    "rooms": st.integers(0, 9),
    "sunny": st.booleans(),
    "city": st.sampled_from(["Rio", "São Paulo", "1"]),
    "since": st.sampled_from(["2024-01-31", "2001-05-06T07:08:09+02:00", "1970/01/01"]),
    "note": st.sampled_from(["Sea view", "x", " garden "]),
    "plan": st.just({"a": [1]}),
    "more": st.floats(0, 1),
}
ODD = st.sampled_from(
    [None, "", " ", "na", "12.5", " 7 ", "x", True, False, 0, 1, 3, 3.0, 2.5, -11, 1e7, 1e300, -1e39, LARGEST, 10**400, [], {},
     {"a": 1}, [1], "2024-02-30", "2030-01-01", "Porto", float("nan"), float("inf"), -0.0, np.float64(2), np.str_("Rio")]
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of plain cells, of which some are replaced, left out, or joined by others."""
    few = draw(st.lists(st.fixed_dictionaries(PLAIN), min_size=1, max_size=5))
    rows = [dict(few[at % len(few)]) for at in range(draw(st.integers(MANY, MANY + 9)))]
    for at, name, cell in draw(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(list(PLAIN)), ODD), max_size=6)):
        rows[at % len(rows)][name] = cell
    for at, change in draw(
        st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["label", "extra", "less"])), max_size=2)
    ):
        row = rows[at % len(rows)]
        if change == "less":
            row.pop(draw(st.sampled_from(list(PLAIN))), None)
        else:
            row["sold" if change == "label" else "unheard of"] = 1
    return rows


def alone(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What is found of each row alone."""
    return [
        dataclasses.astuple(dataclasses.replace(finding, row=at))
        for at, row in enumerate(rows)
        for finding in DECODER.check([row])
    ]


@given(tables())
def test_findings_of_many_rows_are_those_of_each_row_alone_in_their_order(rows: list[dict[str, Any]]) -> None:
    assert alone(rows) == [dataclasses.astuple(finding) for finding in DECODER.check(rows)]


@given(tables())
def test_features_of_many_rows_are_those_of_each_row_alone_bit_for_bit(rows: list[dict[str, Any]]) -> None:
    good = set(range(len(rows))) - {finding[2] for finding in alone(rows) if finding[4] == "error"}
    kept = [rows[at] for at in sorted(good)]
    kept = (kept * MANY)[: max(len(kept), MANY)] if kept else []

    expected = [DECODER.rows([row]) for row in kept]
    assert not kept or np.concatenate(expected).tobytes() == DECODER.rows(kept).tobytes()


def row(**changes: Any) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "price": 1.5, "open": 2, "rooms": 3, "sunny": True, "city": "Rio", "since": "2024-01-31", "note": "sea", "plan": [],
        "more": 0.5,
    }  # fmt: skip
    return {**cells, **changes}


@pytest.mark.parametrize("name", ["price", "rooms", "sunny", "since", "note"])
def test_a_cell_that_cannot_be_read_is_named_by_its_first_row(name: str) -> None:
    rows = [row() for _ in range(MANY + 2)]
    rows[7][name] = rows[3][name] = ["no"]
    rows[5] = row(price=["no"])

    with pytest.raises(DataError) as caught:
        DECODER.rows(rows)
    assert f"column {name}, row 3" == caught.value.where


def test_plain_rows_need_no_look_at_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large request costs little: only what cannot be told of a column at once is looked at cell by cell."""
    decoder = Decoder(DECODER.columns[:5], "sold")
    looked: list[str] = []
    for part in ("_inspectors", "_decoders"):
        kept = getattr(decoder, part)
        counted = tuple(
            (name, lambda cell, inner=function, name=name: looked.append(name) or inner(cell), *more)  # type: ignore[func-returns-value]
            for name, function, *more in kept
        )
        object.__setattr__(decoder, part, counted)
    names = [column.name for column in decoder.columns]
    rows = [{name: cell for name, cell in row().items() if name in names} for _ in range(MANY)]

    assert [] == decoder.check(rows)
    assert (MANY, 5) == decoder.rows(rows).shape
    assert [] == looked

    rows[4] |= {"city": "Porto"}
    assert ["category"] == [finding.rule for finding in decoder.check(rows)]
    decoder.rows(rows)
    assert {"city"} == set(looked)


def test_one_column_and_few_rows_are_read_row_by_row() -> None:
    single = Decoder((ColumnDecoder("a", "number"),), "y")

    assert columns.cells_of([{"a": 1}] * MANY, ["a"]) is None
    assert [[1.0]] * MANY == single.rows([{"a": 1}] * MANY).tolist()
    assert (MANY, "unknown") == (len(found := single.check([{"a": 1, "b": 2}] * MANY)), found[0].rule)
