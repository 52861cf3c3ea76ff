"""A rehearsal before live traffic: the same requests to candidate and champion, on the real server, judged and written down."""

import gzip
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esteira import gate, ledger
from esteira.access import Actor
from esteira.errors import GateHeld, Refused
from esteira.gate import Outcome
from esteira.registry import Registry
from esteira.release import rehearsal, replay
from esteira.release.rehearsal import (
    RULES,
    Options,
    Rehearsal,
    assess,
    facts,
    furthest,
    perform,
    rehearse,
    rules_of,
    undecided,
)
from esteira.release.replay import Call, Requests, Said
from esteira.release.spans import Spans, exporter
from esteira.settings import Settings, load_settings
from esteira.store import Store
from tests.serving_fakes import LINE
from tests.serving_lines import add_version, point_champion
from tests.small_bundle import OTHER, ROW, make_bundle

ANA = Actor("ana", "data_scientist", keyed=True)

FAKE = (sys.executable, str(Path(__file__).with_name("rehearsal_server.py")))
QUICK = Options(calls=40, request_seconds=0.5, patience_s=20, trace_seconds=0)


def said(prediction: Any = 1.0, ms: float = 1.0, *, status: int | None = 200, fault: str = "") -> Said:
    rows = () if fault else ({"prediction": prediction, "probabilities": {"yes": prediction}},)
    return Said(ms / 1e3, status, rows, fault)


def asked(count: int = 1) -> Requests:
    return Requests(tuple(({"a": k},) for k in range(count)), "log")


def verdict(done: Rehearsal, *, has_champion: bool = True) -> dict[str, Outcome]:
    return {
        result.rule: result.outcome
        for result in gate.judge(RULES, facts(done, has_champion=has_champion), "canary").results
    }


# What the calls show: values in, values out


def test_equal_answers_do_not_differ_and_equal_times_gain_nothing() -> None:
    done = assess(asked(30), [Call(k, said(ms=20), said(ms=20)) for k in range(30)], Options())

    assert (30, 30, 30, 0, 0.0, 0) == (
        done.requests,
        done.calls,
        done.compared,
        done.differing,
        done.max_difference,
        done.errors,
    )
    assert 0.0 == done.gain
    assert (0.0, 0.0) == done.interval


def test_differences_are_counted_once_a_row_though_a_request_comes_again() -> None:
    calls = [Call(k % 2, said(1.5 if k % 2 else 1.0), said(1.0)) for k in range(40)]

    done = assess(asked(2), calls, Options())

    assert (2, 40, 2, 1, 0.5) == (done.requests, done.calls, done.compared, done.differing, done.max_difference)


def test_another_label_differs_and_a_probability_that_moved_does_not() -> None:
    def answer(label: str, probability: float) -> Said:
        return Said(0.001, 200, ({"prediction": label, "probabilities": {"yes": probability}},))

    calls = [Call(0, answer("no", 0.4), answer("yes", 0.6)), Call(1, answer("no", 0.3), answer("no", 0.2))]
    done = assess(asked(2), calls, Options())

    assert (2, 1) == (done.compared, done.differing)
    assert 0.2 == pytest.approx(done.max_difference)


@pytest.mark.parametrize(
    ("ours", "theirs", "errors"),
    [
        (said(status=422, fault="HTTP 422: x"), None, 1),
        (said(status=422, fault="HTTP 422: x"), said(), 1),
        (said(status=422, fault="HTTP 422: x"), said(status=422, fault="HTTP 422: y"), 0),
        (said(status=500, fault="HTTP 500"), said(status=500, fault="HTTP 500"), 1),
        (said(status=None, fault="no answer"), said(status=None, fault="no answer"), 1),
        (said(fault="row 0: prediction is no number"), said(fault="row 0: prediction is no number"), 0),
        (said(fault="row 0: prediction is no number"), said(), 1),
        (said(), said(status=500, fault="HTTP 500"), 0),
    ],
    ids=[
        "alone",
        "champion-answers",
        "both-refuse",
        "both-fail",
        "both-hang",
        "both-undefined",
        "undefined",
        "champion-fails",
    ],
)
def test_an_error_is_the_candidates_unless_the_champion_refuses_the_request_likewise(
    ours: Said, theirs: Said | None, errors: int
) -> None:
    done = assess(asked(), [Call(0, ours, theirs)], Options())

    assert errors == done.errors
    assert bool(done.examples) == bool(errors)


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [(23.9, 20, True), (24.0, 20, True), (24.1, 20, False), (100.0, 20, False), (4.9, 0.5, True), (6.0, 0.5, True), (6.1, 0.5, False),
     (0.5, 20, True)],
)  # fmt: skip
def test_a_candidate_may_take_a_fifth_longer_than_the_champion_and_below_5_ms_nobody_counts(
    ours: float, theirs: float, passes: bool
) -> None:
    done = assess(asked(50), [Call(k, said(ms=ours), said(ms=theirs)) for k in range(50)], Options())

    outcomes = verdict(replace(done, traces_missing=0))

    assert passes == (outcomes["rehearsal_not_slower_than_champion"] is Outcome.PASS)


@examples(max_examples=25)
@given(st.lists(st.tuples(st.floats(0.1, 200), st.floats(0.1, 200)), min_size=20, max_size=60))
def test_the_interval_of_the_gain_is_in_order_and_the_same_each_time(pairs: list[tuple[float, float]]) -> None:
    calls = [Call(k, said(ms=a), said(ms=b)) for k, (a, b) in enumerate(pairs)]

    first, again = (assess(asked(len(pairs)), calls, Options()) for _ in range(2))

    assert first == again
    assert first.interval is not None
    assert first.interval[0] <= first.interval[1] <= 1


@pytest.mark.parametrize(
    ("interval", "more"), [((-0.5, 0.1), True), ((-0.1, 0.3), False), ((-0.9, -0.3), False), (None, False)]
)
def test_there_are_more_calls_only_where_these_do_not_tell(interval: tuple[float, float] | None, more: bool) -> None:
    assert more == undecided(Rehearsal("log", interval=interval))


def test_without_a_champion_there_is_none_to_be_slower_than() -> None:
    done = replace(assess(asked(50), [Call(k, said(ms=90), None) for k in range(50)], Options()), traces_missing=0)

    assert {Outcome.PASS} == set(verdict(done, has_champion=False).values())


@pytest.mark.parametrize(
    ("change", "rule", "outcome"),
    [
        ({"errors": 1}, "rehearsal_without_errors", Outcome.FAIL),
        ({"traces_missing": 1}, "rehearsal_traced", Outcome.FAIL),
        ({"traces_missing": None, "traces_reason": "no exporter"}, "rehearsal_traced", Outcome.NO_DATA),
        ({"gain": None, "champion_reason": "it ended"}, "rehearsal_not_slower_than_champion", Outcome.NO_DATA),
        ({"reason": "the server ended"}, "rehearsal_took_place", Outcome.NO_DATA),
        ({"candidate": rehearsal.Pace(50, 60.0, 101.0)}, "rehearsal_in_time", Outcome.FAIL),
        ({"candidate": rehearsal.Pace(19, 1.0, 1.0)}, "rehearsal_in_time", Outcome.NO_DATA),
    ],
    ids=["error", "trace", "no-exporter", "no-champion", "no-server", "slow", "too-few"],
)
def test_each_rule_holds_for_its_own_reason(change: dict[str, Any], rule: str, outcome: Outcome) -> None:
    good = assess(asked(50), [Call(k, said(ms=10), said(ms=10)) for k in range(50)], Options())

    assert {Outcome.PASS} == set(verdict(replace(good, traces_missing=0)).values())
    outcomes = verdict(replace(good, **{"traces_missing": 0, **change}))

    assert outcome is outcomes[rule]


@given(
    st.recursive(
        st.floats(-1e6, 1e6) | st.text(max_size=3) | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3),
    )
)
def test_nothing_is_apart_from_itself(value: Any) -> None:
    assert 0.0 == furthest(value, value)


def test_a_family_may_replace_a_rule_and_add_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {rule.rule for rule in RULES} <= {rule.rule for rule in rules_of(LINE)}
    (tmp_path / "gate.yaml").write_text(
        "rules:\n"
        "- {rule: rehearsal_in_time, metric: rehearsal_p95_ms, op: '<=', threshold: 7, moment: canary}\n"
        "- {rule: few_differ, metric: rehearsal_differing_share, op: '<=', threshold: 0.1, moment: canary}\n"
        "- {rule: another_moment, metric: x, threshold: 1}\n"
    )
    monkeypatch.setattr(rehearsal.resources, "files", lambda _: tmp_path)

    found = {rule.rule: rule for rule in rules_of(LINE)}

    assert 7 == found["rehearsal_in_time"].threshold
    assert {rule.rule for rule in RULES} | {"few_differ"} == set(found)


# What is replayed


def test_the_last_requests_of_the_log_are_taken_and_a_cut_line_is_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"at": "x", "request_id": str(k), "rows": [{"a": k}]}) for k in range(5)]
    odd = ['{"rows": [{"a": NaN}]}', '{"rows": 3}', '{"rows": []}', '["rows"]', "[" * 100_000, '{"rows": [{"a": ']
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / f"{LINE}.jsonl").write_text("\n".join([*lines[:3], *odd[:5], *lines[3:], odd[5]]))

    found = replay.logged(tmp_path, LINE, 2)

    assert ((({"a": 3},), ({"a": 4},)), "log", 6) == (found.rows, found.source, found.skipped)
    assert () == replay.logged(tmp_path, "tabular@other", 2).rows


def test_golden_rows_are_a_request_each(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")

    assert (((ROW,), (OTHER,)), "golden") == ((found := replay.golden(tmp_path / "bundle", 10)).rows, found.source)
    assert ((ROW,),) == replay.golden(tmp_path / "bundle", 1).rows
    assert () == replay.golden(tmp_path, 1).rows


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"rows": [{"prediction": NaN}]}', "NaN is not JSON"),
        (b'{"rows": [{"prediction": -Infinity}]}', "-Infinity is not JSON"),
        (b'{"rows": [{"prediction": 1e999}]}', "row 0: prediction is no number and no label"),
        (
            b'{"rows": [{"prediction": "a", "probabilities": {"a": 1, "b": null}}]}',
            "row 0: probabilities.b is no number",
        ),
        (b'{"rows": [{"prediction": 1, "interval": [0, null]}]}', "row 0: interval.1 is no number"),
        (b'{"rows": [{"prediction": {"action": [1, null]}}]}', "row 0: prediction.action.1 is no number"),
        (b'{"rows": [{"prediction": null}]}', "row 0: prediction is no number"),
        (b'{"rows": []}', "1 rows were asked, but 0 answered"),
        (b'{"row": []}', "no list `rows`"),
        (b'{"rows": [1]}', "no list `rows`"),
        (b"<html>", "no JSON"),
        (b"\xff", "no JSON"),
    ],
)
def test_an_answer_without_a_number_or_label_is_none(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=r".*") as refused:
        replay.answers(content, 1)
    assert why in str(refused.value)


@pytest.mark.parametrize("prediction", ["yes", 1, 0.5, False, {"action": "stop"}, ["a"]])
def test_labels_numbers_and_policies_are_answers(prediction: Any) -> None:
    content = json.dumps({"rows": [{"prediction": prediction, "interval": None, "confidence": None}]}).encode()

    assert prediction == replay.answers(content, 1)[0]["prediction"]


# Spans


def test_spans_are_kept_as_a_file_of_traces_with_ids_in_digits() -> None:
    import urllib3
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    trace, span = bytes(range(16)), bytes(range(8))
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    one = scope.spans.add(trace_id=trace, span_id=span, parent_span_id=span, name="POST /v1/{line}/predict", kind=2)
    one.links.add(trace_id=trace, span_id=span)
    body = request.SerializeToString()
    with Spans() as spans:
        address = spans.environment("test")["OTEL_EXPORTER_OTLP_ENDPOINT"]
        pool = urllib3.PoolManager(retries=False)
        for path, sent, headers, status in (
            ("/v1/traces", body, {}, 200),
            ("/v1/traces", gzip.compress(body), {"Content-Encoding": "gzip"}, 200),
            ("/v1/traces", body, {"Content-Encoding": "gzip"}, 400),
            ("/v1/traces", b"\xff\xff", {}, 400),
            ("/v1/metrics", body, {}, 400),
        ):
            assert status == pool.request("POST", f"{address}{path}", body=sent, headers=headers).status
        pool.clear()
        assert [] == spans.missing([trace.hex()], 1)
        assert ["0" * 32] == spans.missing([trace.hex(), "0" * 32], 0.05)
        assert 2 == spans.count([trace.hex()])
    (first, second) = (json.loads(line) for line in spans.file().splitlines())
    assert first == second
    (kept,) = first["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (trace.hex(), span.hex(), span.hex(), 2) == (
        kept["traceId"],
        kept["spanId"],
        kept["parentSpanId"],
        kept["kind"],
    )
    assert {"traceId": trace.hex(), "spanId": span.hex()} == kept["links"][0]


def test_a_server_exports_to_the_rehearsal_whatever_our_own_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector.example.org")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("NO_PROXY", "example.org")
    with Spans() as spans:
        found = spans.environment("candidate")

    assert found["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] is None
    assert "parentbased_always_on" == found["OTEL_TRACES_SAMPLER"]
    assert "example.org,127.0.0.1" == found["NO_PROXY"]


# Candidates that misbehave, on a server that is told to


def folder(path: Path, **behaviour: Any) -> Path:
    path.mkdir()
    (path / "behaviour.json").write_text(json.dumps(behaviour))
    return path


def performed(candidate: Path, champion: Path | None = None, options: Options = QUICK, count: int = 4) -> Rehearsal:
    with Spans() as spans:
        done = perform(asked(count), candidate, champion, spans, options=options, command=FAKE)
    # The small server exports none.
    return replace(done, traces_missing=0)


def test_a_candidate_as_good_as_the_champion_passes(tmp_path: Path) -> None:
    # A floor so high that the noise of this machine is none.
    options = QUICK.model_copy(update={"floor_ms": 10_000.0})
    candidate, champion = (
        folder(tmp_path / name, does="answers", value=value) for name, value in (("a", 1.5), ("b", 1.0))
    )
    done = performed(candidate, champion, options, count=50)

    assert (50, 50, 50, 50, 0) == (done.requests, done.calls, done.compared, done.differing, done.errors)
    assert 0.5 == pytest.approx(done.max_difference)
    assert done.champion is not None
    assert 50 == done.candidate.n == done.champion.n
    assert {Outcome.PASS} == set(verdict(done).values())


@pytest.mark.parametrize(
    ("behaviour", "rule", "why"),
    [
        ({"does": "hangs", "after": 30}, "rehearsal_without_errors", "no answer within 0.5 s"),
        ({"does": "hangs"}, "rehearsal_without_errors", "no answer within 0.5 s"),
        ({"does": "crashes", "after": 30}, "rehearsal_without_errors", "the server ended with 139"),
        ({"does": "nan"}, "rehearsal_without_errors", "NaN is not JSON"),
        ({"does": "infinite"}, "rehearsal_without_errors", "Infinity is not JSON"),
        ({"does": "null"}, "rehearsal_without_errors", "prediction is no number and no label"),
        ({"does": "refuses"}, "rehearsal_without_errors", "HTTP 422: bad_row, column a, row 0"),
        ({"does": "fails"}, "rehearsal_without_errors", "HTTP 500"),
        ({"does": "short"}, "rehearsal_without_errors", "1 rows were asked, but 0 answered"),
        ({"does": "html"}, "rehearsal_without_errors", "no JSON"),
        ({"does": "answers", "seconds": 0.05}, "rehearsal_not_slower_than_champion", "beyond the tolerance"),
        ({"does": "ends"}, "rehearsal_took_place", "ended with 3: the model cannot be loaded"),
        ({"does": "is never ready"}, "rehearsal_took_place", "was not ready after 1 s"),
    ],
    ids=[
        "hangs-later",
        "hangs",
        "crashes",
        "nan",
        "infinite",
        "null",
        "refuses",
        "fails",
        "short",
        "html",
        "slow",
        "ends",
        "never-ready",
    ],
)
def test_a_candidate_that_misbehaves_is_refused_with_its_reason(
    tmp_path: Path, behaviour: dict[str, Any], rule: str, why: str
) -> None:
    options = QUICK.model_copy(update={"patience_s": 1.0}) if behaviour["does"] == "is never ready" else QUICK
    champion = folder(tmp_path / "champion", does="answers")
    done = performed(folder(tmp_path / "candidate", **behaviour), champion, options)
    judged = gate.judge(RULES, facts(done, has_champion=True), "canary")

    assert not judged.released
    letter = rehearsal.held(judged, done, LINE, 2)
    assert rule in {result.rule for result in judged.held_by}
    assert why in f"{letter.message}"
    assert "rehearsal_failed" == letter.code
    assert letter.cure


@pytest.mark.parametrize("does", ["refuses", "fails", "html", "crashes", "short", "null"])
def test_nothing_that_a_caller_sent_is_said_of_a_candidate_that_misbehaves(tmp_path: Path, does: str) -> None:
    """L-35: what a rehearsal says stays in the ledger for ever, and the requests are callers' own."""
    private = 12345678909
    requests = Requests((({"a": private},),), "log")
    with Spans() as spans:
        done = perform(
            requests, folder(tmp_path / "a", does=does), None, spans, options=QUICK.model_copy(update={"calls": 20}),
            command=FAKE,
        )  # fmt: skip
    judged = gate.judge(RULES, facts(done, has_champion=False), "canary")

    assert done.errors > 0
    assert done.examples
    told = json.dumps(rehearsal.evidence(done, judged)) + rehearsal.held(judged, done, LINE, 2).message
    assert str(private) not in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"error": {"code": "wrong_type", "message": "1", "field": "cpf", "row": 3}}', ": wrong_type, column cpf, row 3"),
        (b'{"error": {"code": "busy", "message": "1", "field": null, "row": null}}', ": busy"),
        (b'{"error": {"code": "123.456.789-09", "message": "1"}}', ""),
        (b'{"error": "123.456.789-09"}', ""),
        (b'["123.456.789-09"]', ""),
        (b"123.456.789-09", ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_of_a_refusal_only_code_column_and_row_are_kept(content: bytes, expected: str) -> None:
    assert expected == replay._letter(content)


def test_a_server_that_answers_no_more_is_not_asked_for_ever(tmp_path: Path) -> None:
    """Three requests in a row without an answer, each given up after its time."""
    done = performed(folder(tmp_path / "a", does="hangs", after=25), options=QUICK)

    assert done.calls < 12
    assert 3 == done.errors


def test_a_champion_that_cannot_be_asked_is_said_and_nothing_is_said_against_it(tmp_path: Path) -> None:
    done = performed(folder(tmp_path / "a", does="answers"), folder(tmp_path / "b", does="ends"))

    assert done.champion is None
    assert "the champion could not be asked: the server ended with 3" in done.champion_reason
    judged = gate.judge(RULES, facts(done, has_champion=True), "canary")
    assert ["rehearsal_not_slower_than_champion"] == [result.rule for result in judged.held_by]
    assert "the model cannot be loaded" in judged.summary()
    assert "roll back the champion" in rehearsal.held(judged, done, LINE, 2).cure


def test_without_a_request_there_is_no_rehearsal(tmp_path: Path) -> None:
    with Spans() as spans:
        done = perform(Requests((), "golden"), tmp_path, None, spans, options=QUICK, command=("false",))

    assert "no request to replay" in done.reason
    assert verdict(done)["rehearsal_took_place"] is Outcome.NO_DATA


# The real server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"ESTEIRA_HOME": str(tmp_path / "home"), "ESTEIRA_ACTOR": "the tests"}, file=None)


def registered(settings: Settings, tmp_path: Path, *weights: float) -> tuple[Registry, list[str]]:
    """A line with a version for each weight; the first is its champion."""
    store = Store.open(settings.database_url, settings.tenant)
    ids = []
    for number, weight in enumerate(weights, start=1):
        ids.append(make_bundle(tmp_path / f"made{number}", weight=weight))
        add_version(store, settings, tmp_path / f"made{number}", number, ids[-1])
    if len(weights) > 1:
        point_champion(store, 1, ids[0])
    return Registry(settings, store), ids


def log_requests(settings: Settings, requests: Sequence[Sequence[Any]]) -> None:
    place = settings.home / replay.FOLDER
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{LINE}.jsonl").write_text("".join(json.dumps({"rows": rows}) + "\n" for rows in requests))


@pytest.mark.slow
def test_logged_requests_are_replayed_on_both_real_servers_and_every_answer_left_its_trace(
    settings: Settings, tmp_path: Path
) -> None:
    """S-20 in part: a release runs in staging first with full traces, and the ledger says so before anything moves."""
    registry, ids = registered(settings, tmp_path, 0.05, -0.05)
    requests = [[ROW], [OTHER, ROW], [{**ROW, "age": 80.0}], [{**OTHER, "visits": None}]]
    log_requests(settings, requests)
    assert rehearsal.rehearsed(registry.store, LINE, 2, ids[1]) is None
    with pytest.raises(Refused) as unrehearsed:
        rehearsal.require(registry.store, LINE, 2, ids[1])
    assert "not_rehearsed" == unrehearsed.value.code

    # Two servers at once on a machine that has other work: how long they take is not what this test is about.
    report = rehearse(
        registry, LINE, 2, settings=settings, actor=ANA, options=Options(calls=60, floor_ms=10_000.0)
    )  # fmt: skip

    done = report.rehearsal
    assert ("log", 4, 60, 5, 0, 5) == (done.source, done.requests, done.calls, done.rows, done.errors, done.compared)
    assert done.differing > 0, "another model"
    assert done.max_difference is not None
    assert done.max_difference > 0
    assert done.champion is not None
    (entry,) = [entry for entry in ledger.log(registry.store) if entry.kind == "rehearsal"]
    assert (report.ledger_seq, LINE, 2, ids[1], "ana") == (
        entry.seq,
        entry.line,
        entry.version,
        entry.bundle_id,
        entry.actor,
    )
    told = entry.evidence
    assert ANA.told().items() <= told.items()
    assert ("pass", 4, done.differing, 0) == (told["verdict"], told["requests"], told["differing"], told["errors"])
    assert (1, ids[0]) == (told["champion"]["version"], told["champion"]["bundle_id"])
    for side in ("candidate", "champion"):
        assert 0 < told[side]["p50_ms"] <= told[side]["p95_ms"]
    assert {rule.rule for rule in RULES} == {rule["rule"] for rule in told["rules"]}
    assert ledger.verify(registry.store).ok
    rehearsal.require(registry.store, LINE, 2, ids[1])
    assert rehearsal.rehearsed(registry.store, LINE, 2, ids[0]) is None, "of exactly this bundle"

    assert (0, 60) == (told["traces"]["missing"], told["traces"]["spans"])
    assert settings.home / told["traces"]["file"] == report.traces
    spans = []
    for line in report.traces.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            named = {pair["key"]: pair["value"] for pair in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                spans += [(named["service.name"]["stringValue"], span) for span in scope["spans"]]
    ours = [span for name, span in spans if name == "esteira-rehearsal-candidate" and "predict" in span["name"]]
    assert 60 == len(ours)
    for span in ours:
        attributes = {pair["key"]: pair["value"] for pair in span["attributes"]}
        assert (
            ids[1] == attributes["esteira.bundle_id"]["stringValue"]
            if "stringValue" in attributes["esteira.bundle_id"]
            else True
        )
        assert "200" == attributes["http.response.status_code"]["intValue"]


@pytest.mark.slow
def test_a_real_candidate_that_answers_nan_is_refused_and_the_ledger_keeps_why(
    settings: Settings, tmp_path: Path
) -> None:
    registry, ids = registered(settings, tmp_path, 0.05, float("nan"))

    with pytest.raises(GateHeld) as held:
        rehearse(registry, LINE, 2, settings=settings, actor=ANA, options=Options(calls=20))

    assert "rehearsal_failed" == held.value.code
    found = rehearsal.rehearsed(registry.store, LINE, 2, ids[1])
    assert found is not None
    assert "held" == found["verdict"]
    assert found["errors"] > 0 or found["reason"]
    with pytest.raises(Refused) as refused:
        rehearsal.require(registry.store, LINE, 2, ids[1])
    assert "not_rehearsed" == refused.value.code
    assert "golden" == found["source"], "no request was logged"


def test_a_later_rehearsal_leaves_the_evidence_of_an_earlier_one_as_it_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever approved saw the first: what its entry names by its SHA-256 is still there, and is that."""

    class Numbered(Spans):
        """The small server exports none, so each rehearsal's file is its number."""

        number = 0

        def file(self) -> bytes:
            Numbered.number += 1
            return b"%d\n" % Numbered.number

    registry, _ = registered(settings, tmp_path, 0.05)
    monkeypatch.setattr(rehearsal, "Spans", Numbered)
    monkeypatch.setenv("BEHAVES_AS", str(folder(tmp_path / "behaves", does="answers")))
    for _ in range(2):
        with pytest.raises(GateHeld):  # for the traces that are not there
            rehearse(registry, LINE, 1, settings=settings, actor=ANA, options=QUICK, command=FAKE)

    told = [entry.evidence["traces"] for entry in ledger.log(registry.store) if entry.kind == "rehearsal"]
    assert 2 == len(told)
    for one in told:
        assert one["sha256"] == hashlib.sha256((settings.home / one["file"]).read_bytes()).hexdigest()


def test_an_unknown_version_and_a_second_rehearsal_at_once_are_refused(settings: Settings, tmp_path: Path) -> None:
    from esteira import locks

    registry, _ = registered(settings, tmp_path, 0.05)
    with pytest.raises(Refused) as unknown:
        rehearse(registry, LINE, 9, settings=settings, actor=ANA)
    assert "unknown_version" == unknown.value.code
    with locks.hold(settings.home, f"rehearsal {LINE}"), pytest.raises(Refused) as locked:
        rehearse(registry, LINE, 1, settings=settings, actor=ANA)
    assert "locked" == locked.value.code
    assert not ledger.log(registry.store)


def test_this_installation_can_export_spans() -> None:
    assert "" == exporter()
