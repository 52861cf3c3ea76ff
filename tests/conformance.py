"""What every family must keep, as one suite: a test module gives it a family and an engine, and every claim runs.

Subclass `FamilyConformance` with fixtures `family` and `search` (module scoped); see tests/test_families.py.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from esteira.bundle import open_bundle, seal
from esteira.checks import typed
from esteira.family import Answer, Answerer, Family, Fitted, Search, Trainable
from esteira.features import parse
from esteira.features.contract import TableContract
from esteira.features.decode import json_rows

SEED = 42
TOLERANCE = 1e-6
SAFE = {".onnx", ".json", ".txt", ".ubj", ".safetensors", ".md"}
FORBIDDEN = ("kfp", "mlflow", "bentoml", "sqlalchemy", "sklearn", "xgboost", "pandas", "onnx", "optuna")


def assert_same_answers(expected: Sequence[Answer], actual: Sequence[Answer], tolerance: float = TOLERANCE) -> None:
    """Equal in every word and label; numbers within the tolerance, relative to their size where that is above 1."""
    assert len(expected) == len(actual)
    for row, (one, other) in enumerate(zip(expected, actual, strict=True)):
        _same(one, other, tolerance, f"row {row}")


def _same(one: Any, other: Any, tolerance: float, where: str) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            _same(one[key], other[key], tolerance, f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _same(a, b, tolerance, f"{where}.{index}")
    elif isinstance(one, float) and isinstance(other, float):
        assert abs(one - other) <= tolerance * max(1.0, abs(one)), f"{where}: {one} is not {other}"
    else:
        assert one == other, where
        assert type(one) is type(other), where


class FamilyConformance:
    """Every claim is about `family`; `fitted` is fitted on its sample with its default params."""

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls, family: Family, search: Search) -> Fitted:
        sample = family.sample()
        return family.fit(sample.rows, sample.truths, params=family.params(), seed=SEED, search=search)

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, family: Family, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Answerer:
        folder = tmp_path_factory.mktemp("conformance") / "bundle"
        folder.mkdir()
        for name, data in fitted.export().items():
            (folder / name).write_bytes(data)
        manifest = {"family": family.name, "line": family.name, **fitted.manifest()}
        bundle_id = seal(folder, manifest=manifest)
        return family.open(open_bundle(folder, device="cpu", bundle_id=bundle_id))

    def test_family_has_the_words_of_the_protocol(self, family: Family, fitted: Fitted) -> None:
        """Family and what it fits have every word of the protocol; the manifest's part has its five keys."""
        assert isinstance(family, Family)
        assert isinstance(fitted, Fitted)
        assert isinstance(family.baseline(family.sample().rows, family.sample().truths), Answerer)
        assert {"task", "schema", "units", "stages", "post"} == set(fitted.manifest())

    def test_sample_obeys_its_rules(self, family: Family, fitted: Fitted) -> None:
        """No row of the sample is refused, and every row has its truth."""
        sample = family.sample()
        assert len(sample.rows) == len(sample.truths) >= 10
        assert [] == [finding for finding in fitted.check(sample.rows) if finding.severity == "error"]

    def test_broken_row_is_named_by_column_and_row(self, family: Family, fitted: Fitted, opened: Answerer) -> None:
        """A broken row among good ones yields an error finding with its column and its row, natively and exported."""
        sample = family.sample()
        assert sample.broken
        for broken, column in sample.broken:
            rows = [sample.rows[0], broken, sample.rows[1]]
            for answerer in (fitted, opened):
                errors = [finding for finding in answerer.check(rows) if finding.severity == "error"]
                assert [(column, 1)] == [(finding.column, finding.row) for finding in errors], broken
                assert all(finding.message and finding.rule for finding in errors)

    def test_a_row_that_comes_again_gets_the_same_answer_unless_the_family_samples(
        self, family: Family, opened: Answerer
    ) -> None:
        """A service may keep the answers of a family that says it is deterministic."""
        rows = list(family.sample().rows)
        assert isinstance(family.deterministic, bool)
        if family.deterministic:
            assert opened.answer(rows) == opened.answer(rows)

    def test_row_alone_gets_the_features_of_its_batch(self, family: Family, fitted: Fitted) -> None:
        """Features of one row alone are those it gets in a batch, bit for bit, whatever the order."""
        rows = list(family.sample().rows)
        batch = family.features(rows, fitted)
        assert batch.dtype == np.float32
        assert batch.shape[0] == len(rows)
        alone = np.concatenate([family.features([row], fitted) for row in rows])
        assert batch.tobytes() == alone.tobytes()
        assert batch[::-1].tobytes() == family.features(rows[::-1], fitted).tobytes()

    def test_the_steps_see_the_features_of_the_service(self, family: Family, fitted: Fitted) -> None:
        """Typed rows of a table and JSON rows of a request get the same features, bit for bit, each with its name.

        Said of a family that the DAG can run; another one says by its kind of artefact that it cannot.
        """
        if not isinstance(family, Trainable):
            assert family.artefact_kind != "onnx"
            return
        sample = family.sample()
        contract = TableContract.model_validate(fitted.manifest()["schema"])
        raw = pd.DataFrame([dict(row) for row in sample.rows])
        for column in contract.columns:
            if column.kind == "object":
                raw[column.name] = raw[column.name].map(parse.nested_text)
        made = typed(raw.assign(**{contract.target.name: list(sample.truths)}), contract)
        assert [] == [fault for fault in made.faults if fault.severity == "error"]

        featurizer = family.featurizer(made.frame, contract)
        x = featurizer.frame(made.frame)

        assert (np.float32, (len(sample.rows), len(featurizer.names))) == (x.dtype, x.shape)
        assert x.tobytes() == featurizer.rows(json_rows(made.frame, contract)).tobytes()
        assert x.tobytes() == family.features(sample.rows, fitted).tobytes()
        assert {column.name for column in contract.columns} == set(featurizer.groups)
        used = {position for positions in featurizer.groups.values() for position in positions}
        assert set(range(len(featurizer.names))) == used, "every feature is made of a column"
        assert set(featurizer.categorical) <= used
        assert {Path(name).suffix for name in featurizer.files()} <= SAFE
        assert next(iter(family.metrics(sample.truths, fitted.answer(sample.rows)))) == family.metric(
            contract.target.task
        )
        assert len(family.candidates(contract.target.task, len(x))) > 0

    def test_n_rows_in_n_answers_out(self, family: Family, opened: Answerer) -> None:
        """As many answers as rows, in their order, of plain JSON values; no row is no answer."""
        rows = list(family.sample().rows)
        answers = opened.answer(rows)
        assert_same_answers(answers[::-1], opened.answer(rows[::-1]), 1e-12)
        assert_same_answers(answers, [opened.answer([row])[0] for row in rows], 1e-12)
        assert [] == opened.answer([])
        assert answers == json.loads(json.dumps(answers, allow_nan=False))
        assert {"prediction", "confidence", "confidence_kind", "warnings"} <= set(answers[0])

    def test_predictions_survive_save_and_load(self, family: Family, fitted: Fitted, opened: Answerer) -> None:
        """What was sealed, verified and opened answers as the native model: every label, numbers within 1e-6."""
        rows = family.sample().rows
        assert_same_answers(fitted.answer(rows), opened.answer(rows))

    def test_export_holds_safe_formats_only(self, family: Family, fitted: Fitted) -> None:
        """Every exported stage is of a safe format, and a stage that is a file is there."""
        files = fitted.export()
        assert {Path(name).suffix for name in files} <= SAFE
        assert {stage for stage in fitted.manifest()["stages"] if "." in stage} <= set(files)
        assert not any(data.startswith((b"\x80\x04", b"\x80\x05")) for data in files.values())

    def test_golden_pair_holds(self, family: Family, fitted: Fitted) -> None:
        """The native model, fitted again on the sample, answers what is written beside it."""
        assert_same_answers(family.golden(), fitted.answer(family.sample().rows))

    def test_same_seed_same_answers(self, family: Family, fitted: Fitted, search: Search) -> None:
        """Fitting again with the same rows, params and seed gives the same exported bytes."""
        sample = family.sample()
        again = family.fit(sample.rows, sample.truths, params=family.params(), seed=SEED, search=search)
        assert fitted.export() == again.export()

    def test_model_beats_the_constant_baseline(self, family: Family, search: Search) -> None:
        """Fitted on every other row, the model beats the constant answer on the rest, by the primary metric."""
        sample = family.sample()
        rows, truths = list(sample.rows), list(sample.truths)
        model = family.fit(rows[::2], truths[::2], params=family.params(), seed=SEED, search=search)
        constant = family.baseline(rows[::2], truths[::2])
        primary = next(iter(family.metrics(truths[1::2], model.answer(rows[1::2])).items()))
        trivial = family.metrics(truths[1::2], constant.answer(rows[1::2]))[primary[0]]
        ours = primary[1]
        assert ours.value is not None
        assert trivial.value is not None
        assert (ours.value > trivial.value) == ours.higher_is_better
        assert ours.value != trivial.value

    def test_outcome_is_between_0_and_1(self, family: Family, fitted: Fitted) -> None:
        """The per-unit outcome is in [0, 1], and on its own sample the model's mean is above a half of the best."""
        sample = family.sample()
        outcomes = [family.outcome(t, a) for t, a in zip(sample.truths, fitted.answer(sample.rows), strict=True)]
        assert all(0 <= outcome <= 1 for outcome in outcomes)
        assert np.mean(outcomes) > 0.5

    def test_unknown_params_are_refused(self, family: Family) -> None:
        """A parameter that the family does not know is refused and named, and params are frozen."""
        with pytest.raises(ValidationError, match="no_such_parameter"):
            family.params.model_validate({"no_such_parameter": 1})
        name = next(iter(family.params.model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(family.params(), name, None)

    def test_importing_the_family_is_light(self, family: Family) -> None:
        """Importing the family's module loads no orchestrator, tracker, server, database or training library."""
        # A family may be an object of a class that lies elsewhere, so its own module is looked for by its name.
        module = next(
            name for name, module in list(sys.modules.items())
            if name.rsplit(".", 1)[-1] == family.name and getattr(module, "FAMILY", None) is family
        )  # fmt: skip
        code = f"import sys, {module}; print([m for m in {FORBIDDEN!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout.strip() == "[]", done.stdout + done.stderr
