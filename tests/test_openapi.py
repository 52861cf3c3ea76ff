"""The document of the API is true: schemathesis asks the running service by it and finds nothing, and a row's schema is the decoder's."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from esteira.features.decode import ColumnDecoder, Decoder
from serving import shapes
from serving.asked import asked_as
from serving.jobs import _Asked
from serving.openapi import describe_api
from serving.problems import Problem
from serving.row_schema import row_schema
from tests.serving_process import KEY, Service
from tests.small_bundle import OTHER, ROW, make_bundle

LINE = "tabular@shop-buys"
KINDS = ("number", "integer", "boolean", "category", "date", "text", "object")
COLUMNS = [
    {"name": "age", "kind": "number", "unit": "years", "minimum": 18.0, "maximum": 90.0},
    {"name": "city", "kind": "category", "categories": ["Porto", "Lisboa"]},
    {"name": "note", "kind": "text", "required": False},
]
SCHEMA = {
    "columns": COLUMNS,
    "target": {"name": "buys", "task": "binary"},
    "dropped": [{"name": "id", "reason": "identifier"}],
}


# The document by itself


@pytest.mark.parametrize("more", [False, True])
def test_the_document_is_openapi_3_1(more: bool) -> None:
    pair = {"row": ROW, "answer": {"prediction": "yes", "confidence": 0.9, "warnings": []}, "envelope": {"line": LINE}}
    document = describe_api(
        {LINE: SCHEMA, "toy": None}, 1000, examples={LINE: pair, "toy": None}, health=more, jobs=more, control=more
    )

    validate(json.loads(json.dumps(document)))
    assert more is ("/v1/models" in document["paths"]) is ("/v1/toy/rollout/start" in document["paths"])
    assert more is ("/health" in document["paths"]) is ("/v1/batch-predictions/{id}" in document["paths"])
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


def test_a_row_has_its_columns_the_label_and_what_the_contract_dropped_and_nothing_else() -> None:
    row = row_schema(SCHEMA)

    assert ["age", "city"] == row["required"]
    assert {"age", "city", "note", "buys", "id"} == set(row["properties"])
    assert row["additionalProperties"] is False
    assert "unit: years" in row["properties"]["age"]["description"]
    assert "18.0 to 90.0" in row["properties"]["age"]["description"]
    assert ["Porto", "Lisboa"] == row["properties"]["city"]["examples"]


@pytest.mark.parametrize("schema", [None, {}, {"rows": "plans"}])
def test_a_line_that_is_no_table_takes_any_object(schema: dict[str, Any] | None) -> None:
    assert {"type": "object"} == row_schema(schema)


def test_a_golden_row_and_its_answer_are_the_examples_and_obey_what_they_are_examples_of() -> None:
    envelope = {
        "line": LINE, "version": 3, "bundle_id": "b" * 64, "model_id": "b" * 64, "device": "cpu", "method": "linear",
        "simulated": False, "confidence_kind": "heuristic",
    }  # fmt: skip
    golden = {"prediction": "yes", "probabilities": {"no": 0.1, "yes": 0.9}, "confidence": 0.9, "warnings": []}
    row = {"age": 41.5, "city": "Porto"}
    pair = {"row": row, "answer": golden, "envelope": envelope}
    document = describe_api({LINE: SCHEMA}, 1000, examples={LINE: pair})
    operation = document["paths"]["/v1/predict"]["post"]

    body = operation["requestBody"]["content"]["application/json"]
    assert {"rows": [row]} == body["examples"]["golden"]["value"]
    Draft202012Validator(body["schema"]).validate(body["examples"]["golden"]["value"])
    answer = operation["responses"]["200"]["content"]["application/json"]["examples"]["golden"]["value"]
    assert envelope.items() <= answer.items()
    assert [golden] == answer["rows"]
    Draft202012Validator(document["components"]["schemas"]["Answer"]).validate(answer)


# A cell's schema against its decoder

WORDS = [
    "", " ", "\t\n", "\x1c", "\x85", "\u00a0", "na", "NA", "n/a", "NaN", "nan", "null", "None", "nil", "?", "-", "<NA>", "NaT",
    "true", "T", "yes", "Y", "no", "FALSE", "0", "1", "1.0", "0.0", "2", "-1", "+1.5e3", ".5", "5.", ".", "1e", "e1", "1_000",
    "1,5", "0x10", "inf", "Infinity", " 7 ", "١", "2024-01-31", "2024-02-30", "2024-01-31T10:20:30Z", "{}", "[]", "{", "[1",
    "maybe", "naa", "--", "??",
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3)
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 2),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.builds("{}{}{}".format, *[st.sampled_from(["", " ", "-", "1", "0", "e", ".", "n", "a", "T"])] * 3),
    st.dates().map(str),
    st.datetimes(timezones=st.just(None)).map(lambda moment: moment.isoformat() + "Z"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def decoder(kind: Any) -> Decoder:
    return Decoder((ColumnDecoder("cell", kind, parts=("days",) if kind == "date" else ()),), label="label")


def validator(kind: str) -> Draft202012Validator:
    checker = Draft202012Validator.FORMAT_CHECKER
    return Draft202012Validator(row_schema({"columns": [{"name": "cell", "kind": kind}]}), format_checker=checker)


VALIDATORS = {kind: validator(kind) for kind in KINDS}
DECODERS = {kind: decoder(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(value=JSON_VALUES)
def test_what_the_document_allows_the_decoder_takes_and_what_it_forbids_is_refused(kind: str, value: Any) -> None:
    row = {"cell": value}

    allowed = VALIDATORS[kind].is_valid(row)
    taken = not any(finding.severity == "error" for finding in DECODERS[kind].check([row]))

    if kind in ("date", "object") and isinstance(value, str):
        # More forms of text are taken than a schema can say.
        assert taken or not allowed
    else:
        assert allowed == taken, value
    if allowed:
        assert (1, len(DECODERS[kind].names)) == DECODERS[kind].rows([row]).shape


@pytest.mark.parametrize("kind", ["number", "integer", "boolean"])
@given(data=st.data())
def test_every_text_that_the_pattern_of_a_cell_matches_is_taken(kind: str, data: st.DataObject) -> None:
    pattern = row_schema({"columns": [{"name": "cell", "kind": kind}]})["properties"]["cell"]["pattern"]
    text = data.draw(st.from_regex(pattern))

    assert [] == [one for one in DECODERS[kind].check([{"cell": text}]) if one.severity == "error"]


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"data": st.just("/data/rows.csv")},
        optional={
            "out": st.none() | st.just("s3://a/b") | SCALARS,
            "format": st.sampled_from(["parquet", "csv", "jsonl", "xml"]) | SCALARS,
            "rows_per_part": st.sampled_from([0, 1, 999, 1000, 1000.0, 1000.5, 60_000, 60_001]) | SCALARS,
            "max_bad_share": st.sampled_from([0, 0.05, 1, 1.1]) | SCALARS,
            "rate": st.sampled_from([0, 0.1, 0.99, 1, 10, 1e9, 2e9]) | SCALARS,
            "keep": st.lists(st.text(max_size=3) | SCALARS, max_size=3) | st.just(["a"] * 101) | SCALARS,
            "delimiter": st.text(max_size=2) | st.sampled_from([",", ";", "\t", '"', "\n", "é"]) | SCALARS,
            "more": SCALARS,
        },
    )
)
def test_the_body_of_a_batch_prediction_is_taken_just_when_the_document_allows_it(body: dict[str, Any]) -> None:
    asked = {**body, "out": "/out"} if isinstance(body.get("out"), str) else body  # addresses are judged elsewhere
    try:
        asked_as(_Asked, json.dumps(asked).encode())
        taken = True
    except Problem:
        taken = False

    # In Python, unlike in JSON Schema, $ also stands before a line end.
    allowed = Draft202012Validator(shapes.JOB_REQUEST).is_valid(asked) and asked.get("delimiter") != "\n"
    assert allowed == taken


# The running service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openapi")
    make_bundle(folder / "bundle")
    (folder / "data").mkdir()
    env = {"ESTEIRA_HOME": str(folder / "home"), "ESTEIRA_BATCH_ROOTS": str(folder / "data")}
    running = Service(["--bundle", str(folder / "bundle"), "--port", "0"], env=env, log=folder / "log")
    try:
        yield running.wait_ready()
    finally:
        running.stop()


@pytest.mark.slow
def test_schemathesis_finds_nothing_on_the_running_service(service: Service, tmp_path: Path) -> None:
    """Statuses, content types, headers and shapes are as described; what is described is taken and what breaks it refused.

    Nothing is an error of the server, the key is asked for, and other methods get 405 with Allow.
    """
    # Its command line, because its pytest plugin reaches into pytest. It leaves a memory of failures in its folder.
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://{service.address}/openapi.json",
         "-H", f"Authorization: Bearer {KEY}", "--seed", "42", "--max-examples", "60", "--continue-on-failure"],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout[-6000:] + done.stderr[-1000:]
    # All but the one that gives the document itself, which it leaves out.
    operations = sum(len(methods) for methods in service.ask("/openapi.json")[1]["paths"].values()) - 1
    assert re.search(rf"Tested:\s+{operations}\b", done.stdout), done.stdout[-3000:]


@pytest.mark.slow
def test_the_examples_of_the_document_are_answered_as_it_says(service: Service) -> None:
    _, document, _ = service.ask("/openapi.json")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for example in _examples(operation):
                status, answer, _ = service.ask(path, example)
                assert 200 == status
                assert len(example["rows"]) == len(answer["rows"])
    assert any(_examples(operation) for methods in document["paths"].values() for operation in methods.values())


def _examples(operation: dict[str, Any]) -> list[Any]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [example["value"] for example in content.get("examples", {}).values()]


@pytest.mark.slow
def test_every_route_is_described_and_every_described_route_is_there(service: Service) -> None:
    _, document, _ = service.ask("/openapi.json")

    assert {
        "/v1/predict",
        f"/v1/{LINE}/predict",
        f"/v1/{LINE}/model",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
    } <= set(document["paths"])
    for path, methods in document["paths"].items():
        for method in methods:
            asked = path.replace("{model}", LINE).replace("{id}", "none")
            status, _, headers = service.ask(asked, {"rows": [ROW, OTHER]} if method == "post" else None)
            described = document["paths"][path][method]["responses"]
            assert str(status) in described, (path, status)
            assert 405 == service.ask(asked, method="DELETE")[0]
            if described[str(status)].get("headers", {}).get("X-Request-Id"):
                assert headers["x-request-id"]
