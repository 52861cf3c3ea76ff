"""A declared family: the contract is what the code says, and a model never answers with other code than it learned from."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from esteira.automl import search
from esteira.errors import ConfigError, DataError
from esteira.family import Candidate, Finding, Row, Trainable
from esteira.features.contract import Column, ContractOptions, TableContract, Target
from esteira.features.declared import DeclaredFamily, Params
from esteira.features.stateless import PROBE
from families.tabular import metrics

CONTRACT = TableContract(
    line="trips",
    target=Target(name="late", task="binary", classes=(False, True)),
    columns=(
        Column(name="km", kind="number", minimum=0, maximum=100, unit="kilometres"),
        Column(name="day", kind="date", minimum="2024-01-01", maximum="2024-12-31"),
        Column(name="depot", kind="category", categories=("north", "south")),
        Column(name="stops", kind="object", required=False),
    ),
)


def check(rows: Sequence[Row]) -> list[Finding]:
    """A trip of no kilometres has no stops."""
    return [
        Finding("stops", "stops", at, "a trip of 0 km has none") for at, row in enumerate(rows)
        if row["km"] == 0 and row["stops"]
    ]  # fmt: skip


def features(rows: Sequence[Row]) -> NDArray[np.float32]:
    nan = float("nan")
    return np.array(
        [
            [nan if row["km"] is None else row["km"], {"north": 1, "south": 2}.get(row["depot"], 0), len(row["stops"] or ())]
            for row in rows
        ],
        dtype=np.float32,
    ).reshape(len(rows), 3)  # fmt: skip


MADE_OF: Mapping[str, Sequence[str]] = {"km": ("km",), "depot": ("depot",), "stops": ("stops", "km")}


def family(contract: TableContract = CONTRACT, **changed: Any) -> DeclaredFamily:
    """The family, some of whose code may be another."""
    computed = {"features": features, "MADE_OF": MADE_OF, "CODES": ("depot",), **changed}
    candidates = [Candidate("linear", defaults={"alpha": 1.0})]
    return DeclaredFamily(
        name="trips",
        package="tests",
        contract_py=SimpleNamespace(CONTRACT=contract, check=check),
        features_py=SimpleNamespace(**computed),
        model_py=SimpleNamespace(METRIC="roc_auc", candidates=lambda _: candidates),
        metrics_py=SimpleNamespace(scores=metrics.scores, outcome=metrics.outcome),
    )


def frame(rows: int = 60) -> pd.DataFrame:
    """Typed rows as validate writes them."""
    rng = np.random.default_rng(2)
    return pd.DataFrame(
        {
            "km": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(1, 90, rows)),
            "day": pd.to_datetime("2024-01-01", utc=True) + pd.to_timedelta(rng.integers(0, 300, rows), unit="D"),
            "depot": pd.array(rng.choice(["north", "south", None], rows).tolist(), dtype="str"),
            "stops": pd.array([json.dumps([1] * int(n)) for n in rng.integers(0, 5, rows)], dtype="str"),
        }
    )


def row(**changed: Any) -> dict[str, Any]:
    return {"km": 5, "day": "2024-02-03", "depot": "north", "stops": [1, 2], **changed}


class Opened:
    """A bundle of the family as the steps leave it."""

    def __init__(self, made_by: DeclaredFamily) -> None:
        table = frame()
        self.files = dict(made_by.featurizer(table, made_by.declared).files())
        self.manifest = {"line": "trips", **made_by.manifest(made_by.declared, {"classes": [False, True]})}

    def read(self, name: str) -> bytes:
        return self.files[name]

    def run(self, stage: str, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        assert "graph.onnx" == stage
        return {"y": np.tile([0.25, 0.75], (len(x), 1))}


def test_it_has_every_word_that_the_steps_need() -> None:
    assert isinstance(family(), Trainable)


@pytest.mark.parametrize(
    ("changed", "rule", "column", "severity"),
    [
        ({"km": "far"}, "type", "km", "error"),
        ({"km": 400}, "range", "km", "warning"),
        ({"day": "2031-01-01"}, "range", "day", "warning"),
        ({"depot": "moon"}, "category", "depot", "warning"),
        ({"stops": "many"}, "type", "stops", "error"),
        ({"km": 0}, "stops", "stops", "error"),
        ({"colour": "red"}, "unknown", "colour", "error"),
    ],
)
def test_columns_and_rules_are_held_against_what_is_declared(
    changed: dict[str, Any], rule: str, column: str, severity: str
) -> None:
    """Each finding names the row in the batch, and its words do not speak of a training that declared nothing."""
    (found,) = family().check([row(), row(**changed), row()])

    assert (rule, column, 1, severity) == (found.rule, found.column, found.row, found.severity)
    assert "training" not in found.message


def test_a_rule_on_whole_rows_is_not_asked_about_rows_with_wrong_cells() -> None:
    """A text where a number belongs would break the rule's code; the row has its error already."""
    found = family().check([row(km="far"), row(km=0), row(km="far")])

    assert [("type", 0), ("type", 2), ("stops", 1)] == [(one.rule, one.row) for one in found]


def test_a_cell_means_the_same_in_a_batch_and_in_a_request() -> None:
    """A number sent as text, a date without zone, an absent optional column: features see what training saw."""
    model = family()
    table = pd.DataFrame(
        {
            "km": [7.5],
            "day": pd.to_datetime(["2024-02-03"], utc=True),
            "depot": pd.array(["south"], dtype="str"),
            "stops": pd.array([None], dtype="str"),
        }
    )
    seen: list[Row] = []
    spying = family(features=lambda rows: seen.extend(rows) or features(rows))  # type: ignore[func-returns-value]

    batch = spying.featurizer(table, CONTRACT).frame(table)
    request = spying.made_of_rows([{"km": " 7.5 ", "day": "2024/02/03", "depot": "south ", "extra": 1}])

    assert batch.tobytes() == request.tobytes()
    assert seen[-1] == seen[-2] == {"km": 7.5, "day": "2024-02-03", "depot": "south", "stops": None}
    with pytest.raises(DataError, match="'km' must be a finite number"):
        model.made_of_rows([row(km="far")])


def test_a_feature_may_be_made_of_several_columns() -> None:
    made = family().featurizer(frame(), CONTRACT)

    assert (("km", "depot", "stops"), (1,)) == (made.names, made.categorical)
    assert {"km": (0, 2), "day": (), "depot": (1,), "stops": (2,)} == made.groups


@pytest.mark.parametrize(
    "wrong", [{"MADE_OF": {**MADE_OF, "speed": ("kmh",)}}, {"CODES": ("colour",)}], ids=["column", "code"]
)
def test_features_of_columns_that_are_not_declared_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="MADE_OF names columns of the contract"):
        family(**wrong).featurizer(frame(), CONTRACT)


def test_a_bundle_opens_with_the_code_it_was_made_with() -> None:
    (answer,) = family().open(Opened(family())).answer([row()])

    assert (True, {"false": 0.25, "true": 0.75}) == (answer["prediction"], answer["probabilities"])


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"features": lambda rows: features(rows) * np.float32(2)}, "makes 'km'"),
        ({"MADE_OF": {"km": ("km",), "place": ("depot",), "stops": ("stops",)}, "CODES": ()}, "makes km, place, stops"),
        ({"contract": CONTRACT.model_copy(update={"columns": CONTRACT.columns[:3]})}, "other columns"),
    ],
    ids=["other values", "other names", "another contract"],
)
def test_code_that_has_moved_on_does_not_answer_for_the_model(now: dict[str, Any], said: str) -> None:
    """What the code is recognised by travels in the bundle: some training rows with their features."""
    bundle = Opened(family())

    with pytest.raises(ConfigError, match=said) as caught:
        family(**now).open(bundle)

    assert "other_code" == caught.value.code
    assert "--as NAME" in caught.value.cure


def test_the_probe_has_rows_with_gaps_and_says_missing_as_null() -> None:
    probe = json.loads(family().featurizer(frame(), CONTRACT).files()[PROBE])

    assert 16 <= len(probe["rows"]) == len(probe["features"]) <= 20
    assert any(values[0] is None for values in probe["features"])
    assert {"km", "day", "depot", "stops"} == set(probe["rows"][0])


def test_the_declared_contract_is_taken_for_the_line_and_what_it_says_cannot_be_said_elsewhere() -> None:
    model = family()
    options = ContractOptions(time_column="day", max_bad_share=0.2)

    contract, notes = model.contract(frame(), "late", "trips@may", options)

    assert ("trips@may", "day", 0.2, CONTRACT.columns) == (
        contract.line, contract.time_column, contract.max_bad_share, contract.columns,
    )  # fmt: skip
    assert [] == notes
    with pytest.raises(ConfigError, match="the label of family 'trips' is declared, 'late', but got 'delay'"):
        model.contract(frame(), "delay", "trips", ContractOptions())
    with pytest.raises(ConfigError, match=r"so it takes no validate\.kinds"):
        model.contract(frame(), "late", "trips", ContractOptions(kinds={"km": "text"}))


def test_it_fits_in_one_go_and_beats_its_baseline() -> None:
    model, table = family(), frame(120)
    rows = [row(km=None if km != km else km, stops=[]) for km in table["km"]]
    truths = [bool(km > 40) for km in table["km"].fillna(0)]

    fitted = model.fit(rows, truths, params=Params(trials=1), seed=1, search=search)
    ours, trivial = (
        metrics.scores(truths, one.answer(rows))["roc_auc"].value for one in (fitted, model.baseline(rows, truths))
    )

    assert ours is not None
    assert ours > 0.95
    assert 0.5 == trivial
    assert ["graph.onnx"] == list(fitted.export())
