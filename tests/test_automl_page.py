"""The page of a search shows what was tried and how it answers, whole in one file, whatever is missing."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from esteira import slices
from esteira.automl import calibrate, importance
from esteira.automl.page import Record, render
from esteira.features.metrics import Classified, Estimated
from esteira.onnx.graph import softmax

VOID = {"meta", "br", "line", "circle", "rect", "polyline"}


class Balanced(HTMLParser):
    """Every tag that opens closes, in order; collects the names of tags and of attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], set()
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert tag == self.open.pop()


def board(metric_sign=1.0, trials=40):
    """A leaderboard as the engine writes one: a blend, trials of three kinds, one cut, one left out, one refused kind."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, trials + 1):
        kind = ("lightgbm", "linear", "extra_trees")[number % 3]
        params = {"learning_rate": float(10 ** rng.uniform(-2, -0.5)), "leaves": int(rng.integers(4, 60))}
        rows.append(
            {
                "number": number, "kind": kind, "params": params, "recipe": {"ratios": number % 2}, "origin": "tpe",
                "score": metric_sign * float(0.8 + 0.1 * rng.random()), "deviation": 0.01, "folds": [0.8, 0.9],
                "row_us": float(rng.uniform(5, 400)), "bytes": int(rng.integers(1e4, 5e6)),
                "state": "complete", "why": "", "fit_seconds": 1.5, "weight": 0.5 if number in (3, 8) else 0.0, "form": "",
            }
        )  # fmt: skip
    rows.append({**rows[0], "number": 41, "kind": "constant", "params": {}, "score": metric_sign * 0.1, "weight": 0.0})
    rows.append({**rows[0], "number": 42, "state": "pruned", "why": "behind after one fold", "weight": 0.0})
    rows.sort(key=lambda row: -metric_sign * row["score"])
    blend = {**rows[0], "number": 43, "kind": "blend", "weight": 1.0, "recipe": {}}
    blend["params"] = {
        "members": [{"number": 3, "weight": 0.5, "form": "all"}, {"number": 8, "weight": 0.5, "form": "all"}]
    }
    refused = {
        **rows[0],
        "number": None,
        "kind": "nearest_neighbours",
        "score": None,
        "deviation": None,
        "row_us": None,
    }
    refused |= {
        "bytes": None,
        "state": "refused",
        "why": "more than 3,000 rows <would be kept>",
        "params": {},
        "weight": 0.0,
    }
    return [blend, *rows, refused]


SUMMARY = {
    "members": [{"number": 3, "weight": 0.5, "form": "all"}, {"number": 8, "weight": 0.5, "form": "all"}],
    "row_us": 61.2, "row_us_limit": 100.0, "bytes": 2_400_000, "trials": 42,
    "folds": {"kind": "stratified", "count": 10, "repeats": 2},
    "catalogue": [
        {"name": "a / b", "transformation": "ratio", "made_of": ["a", "b"], "missing": 0.01, "mean": 1.5, "deviation": 0.2,
         "correlation": None},
    ],
}  # fmt: skip


def record(classes=("no", "yes"), **changed):
    rng = np.random.default_rng(1)
    if classes:
        margins = rng.normal(size=(1500, len(classes))) * 2
        truth = softmax(margins)
        codes = np.minimum((truth.cumsum(axis=1) < rng.random((1500, 1))).sum(axis=1), len(classes) - 1)
        raw = softmax(margins * 2.5)
        raw[:20] = np.nan
        found = calibrate.choose(raw, codes, seed=0, keeps_order=False)
        assert found is not None
        answers = {"truth": codes, "out_of_fold": found.cross_fitted, "uncalibrated": raw}
        y = Classified(codes[20:], found.cross_fitted[20:], found.cross_fitted[20:].argmax(axis=1), tuple(classes))
        summary = {**SUMMARY, "calibration": found.named()}
        task, metric = ("binary" if len(classes) == 2 else "multiclass"), "accuracy"
    else:
        truth = rng.normal(size=1500) * 10
        out = truth + rng.normal(size=1500)
        out[:20] = np.nan
        answers = {"truth": truth, "out_of_fold": out}
        y, summary, task, metric = Estimated(truth[20:], out[20:]), SUMMARY, "regression", "rmse"
    tried = board(1.0 if classes else -1.0)
    tried = [{**row, "score": None if row["score"] is None else abs(row["score"])} for row in tried]
    given = {
        "title": "tabular@<customers>", "target": "churned & lost", "task": task, "metric": metric, "leaderboard": tried,
        "summary": summary, "rows": 1500, "features": 14, "seconds": 61.0, "classes": classes,
        "permutation": [
            {"column": "age", "value": 0.05, "low": 0.03, "high": 0.07, "rows": 700},
            {"column": "<b>plan</b>", "value": -0.001, "low": -0.004, "high": 0.002, "rows": 700},
        ],
        "parameters": importance.parameters(tried, higher_is_better=bool(classes)),
        "learning": [
            {"rows": 100, "score": 0.7, "deviation": None, "folds": 1}, {"rows": 1000, "score": 0.8, "deviation": None, "folds": 1}
        ],
        "slices": slices.score(slices.by_class(y), y, metric, 0.8, seed=0), "overall": 0.8,
        "findings": ["'id' <orders> the label"], **answers,
    }  # fmt: skip
    return Record(**{**given, **changed})


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "<c>"), ()], ids=["binary", "multiclass", "regression"])
def test_a_page_is_whole_in_one_file_and_nothing_of_the_table_becomes_markup(classes):
    page = render(record(classes))
    read = Balanced(page)
    assert not {"script", "link", "img", "iframe", "b-plan"} & set(read.tags)
    assert not {"src", "href", "onload"} & read.attributes
    assert not re.findall(r"(?:https?:|url\(|@import)", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert "<customers>" not in page
    assert "<b>plan</b>" not in page
    assert "nan" not in re.findall(r">([^<]*)<", page.lower())
    assert not re.search(r'="[^"]*\b(?:nan|inf)\b[^"]*"', page)


def test_everything_that_a_record_holds_is_on_the_page():
    page = render(record(threshold=0.31))
    for title in (
        "The search", "What a better score costs", "The best of each kind", "Where it errs", "Does 70 % mean 70 %?",
        "Columns", "The weakest segments", "Would more rows help?", "Features that were made", "Left out",
        "To look at first",
    ):  # fmt: skip
        assert title in page, title
    for words in (
        "0.50 of #3, 0.50 of #8", "budget 100 \u00b5s", "more than 3,000 rows &lt;would be kept&gt;",
        "behind after one fold", "a / b", "by temperature", "5 stratified folds, 2 times", "0.31", "constant",
        "&#x27;id&#x27; &lt;orders&gt; the label", "61.2 \u00b5s", "2.4 MB",
    ):  # fmt: skip
        assert words in page, words


def test_members_far_down_the_leaderboard_are_shown():
    tried = board(trials=60)
    weighted = [row["number"] for row in tried if row["weight"]]
    page = render(record(leaderboard=tried))
    for number in weighted:
        assert f'<td class="n">{number}</td>' in page


@pytest.mark.parametrize("classes", [("no", "yes"), ()])
def test_a_search_of_one_trial_that_no_one_looked_into_has_a_page(classes):
    one = [row for row in board(trials=3) if row["number"] == 3]
    page = render(
        record(
            classes,
            leaderboard=one,
            summary={},
            permutation=(),
            parameters=None,
            learning=(),
            slices=(),
            findings=(),
            uncalibrated=None,
            overall=None,
        )
    )
    Balanced(page)
    assert "Left out" not in page
    assert "The search" not in page


def test_a_page_without_any_row_held_out_has_no_answers():
    nothing = np.full((1500, 2), np.nan)
    Balanced(render(record(out_of_fold=nothing, uncalibrated=None)))
    Balanced(render(record((), out_of_fold=np.full(1500, np.nan))))


def test_equal_records_give_equal_bytes():
    assert render(record()) == render(record())
