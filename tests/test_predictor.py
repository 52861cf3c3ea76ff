"""A model serves only if it answers its golden rows as it did when it was trained; and it says who it is and what it costs."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from esteira.errors import Refused
from esteira.family import Answer, Finding, Row
from serving.deployments import Deployment
from serving.predictor import Predictor, load
from tests.serving_fakes import LINE, Fake
from tests.small_bundle import OTHER, ROW, answers, make_bundle, resealed

ONE = Deployment(LINE, 1, "1" * 64)


# The golden pair


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle without golden answers."""
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def again(folder: Path, **files: Any) -> Deployment:
    """The bundle with these files; the deployment that it is now."""
    return Deployment(LINE, 1, resealed(folder, **files))


def native(folder: Path) -> list[dict[str, Any]]:
    return answers(folder, [ROW, OTHER])


def test_a_bundle_that_answers_its_golden_rows_is_loaded_and_tells_what_the_manifest_says(small: Path) -> None:
    wanted = native(small)
    predictor = load(
        small, again(small, golden={"rows": [ROW, OTHER], "answers": wanted}, record={"row_us": 30.5}), "cpu"
    )

    assert wanted == predictor.answer([ROW, OTHER])
    assert ({"row": ROW, "answer": wanted[0]}, 30.5, True) == (
        predictor.example, predictor.cost_us, predictor.deterministic
    )  # fmt: skip
    assert json.loads(predictor.head + b"}") == predictor.envelope
    assert "linear" == predictor.kind


def test_a_bundle_without_golden_answers_is_only_warmed_up(small: Path) -> None:
    predictor = load(small, Deployment(LINE, 1, ""), "cpu")

    assert ({"row": ROW, "answer": None}, None) == (predictor.example, predictor.cost_us)


def moved(pairs: list[dict[str, Any]], by: float) -> list[dict[str, Any]]:
    said = pairs[1]["probabilities"]
    return [pairs[0], {**pairs[1], "probabilities": {**said, "yes": said["yes"] + by}}]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: moved(said, 3e-6), "golden row 1 probabilities.yes"),
        (lambda said: [{**said[0], "prediction": "maybe"}, said[1]], "golden row 0 prediction"),
        (lambda said: said[:1], "2 golden rows and 1 answers"),
        (lambda said: [said[0], {**said[1], "probabilities": {"yes": 1.0}}], "golden row 1 probabilities"),
    ],
    ids=["a number off by more than 1e-6", "another label", "too few answers", "other classes"],
)
def test_a_bundle_that_answers_otherwise_than_it_was_trained_is_refused(
    small: Path, change: Callable[[Any], Any], why: str
) -> None:
    golden = {"rows": [ROW, OTHER], "answers": change(native(small))}
    with pytest.raises(Refused, match=why) as caught:
        load(small, again(small, golden=golden), "cpu")

    assert "golden_mismatch" == caught.value.code


def test_a_number_within_the_tolerance_is_the_same_answer(small: Path) -> None:
    load(small, again(small, golden={"rows": [ROW, OTHER], "answers": moved(native(small), 5e-7)}), "cpu")


def test_a_bundle_that_cannot_answer_its_golden_rows_is_refused(small: Path) -> None:
    golden = {"rows": [{**ROW, "visits": "three"}], "answers": []}
    with pytest.raises(Refused, match="they end in") as caught:
        load(small, again(small, golden=golden), "cpu")

    assert "golden_mismatch" == caught.value.code


# A predictor


class Careful(Fake):
    """Takes what was found, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def answer(self, rows: Sequence[Row], findings: Sequence[Finding] | None = None) -> list[Answer]:
        self.given.append(findings)
        return super().answer(rows)


def test_findings_are_passed_on_only_to_a_family_that_takes_them() -> None:
    careful, plain = Careful(), Fake()
    found = [Finding("range", "a", 0, "was 1 to 2", "warning")]
    with_them, without = (Predictor(ONE, answerer, {}, "cpu") for answerer in (careful, plain))

    with_them.answer([{}], found)
    with_them.answer([{}])
    assert 1 == len(without.answer([{}], found))
    assert [found, None] == careful.given


def test_what_is_simulated_or_sampled_is_not_deterministic() -> None:
    assert Predictor(ONE, Fake(), {}, "cpu").deterministic
    assert not Predictor(ONE, Fake(), {"simulated": True}, "cpu").deterministic
    assert not Predictor(ONE, Fake(), {}, "cpu", deterministic=False).deterministic


def test_a_family_that_samples_is_loaded_as_one_that_does(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import families.tabular

    monkeypatch.setattr(families.tabular, "FAMILY", dataclasses.replace(families.tabular.FAMILY, deterministic=False))

    assert not load(small, Deployment(LINE, 1, ""), "cpu").deterministic
