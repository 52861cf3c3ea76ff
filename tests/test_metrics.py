"""Scores equal scikit-learn's, say why they are undefined, stand beside a trivial baseline, and come with intervals."""

import itertools
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.features import metrics
from esteira.features.metrics import HIGHER_IS_BETTER, Classified, Estimated
from families.tabular import metrics as tabular


def classified(truth: list[int], probabilities: NDArray[np.float64], predicted: list[int] | None = None) -> Classified:
    codes = probabilities.argmax(axis=1) if predicted is None else np.array(predicted)
    classes = tuple("abcdefghij"[: probabilities.shape[1]])
    return Classified(np.array(truth, dtype=np.int64), probabilities, codes.astype(np.int64), classes)


def some(rows: int, classes: int, seed: int, *, digits: int = 9) -> Classified:
    """A classifier that knows something; few `digits` make ties."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    logits = rng.normal(size=(rows, classes)) + 1.2 * (truth[:, None] == np.arange(classes))
    p = np.round(np.exp(logits), digits) + 1e-9
    return classified(truth.tolist(), p / p.sum(axis=1, keepdims=True))


def values(y: metrics.Predictions) -> dict[str, float | None]:
    return {name: score.value for name, score in metrics.scores(y).items()}


def sklearn_classification(y: Classified) -> dict[str, float]:
    """What scikit-learn says of the same predictions."""
    from sklearn import metrics as sk

    t, p, k = y.truth, y.predicted, len(y.classes)
    labels = list(range(k))
    said = {
        "accuracy": sk.accuracy_score(t, p),
        "precision": sk.precision_score(t, p, average="weighted", zero_division=0),
        "recall": sk.recall_score(t, p, average="weighted", zero_division=0),
        "f1": sk.f1_score(t, p, average="weighted", zero_division=0),
        "f1_macro": sk.f1_score(t, p, average="macro", zero_division=0),
        "log_loss": sk.log_loss(t, y.probabilities, labels=labels),
        "balanced_accuracy": np.mean(sk.recall_score(t, p, labels=sorted(set(t)), average=None, zero_division=0)),
        "roc_auc": sk.roc_auc_score(t, y.probabilities[:, 1])
        if k == 2
        else sk.roc_auc_score(t, y.probabilities, multi_class="ovr", labels=labels),
    }
    if k == 2:
        said["average_precision"] = sk.average_precision_score(t, y.probabilities[:, 1])
        said["brier"] = sk.brier_score_loss(t, y.probabilities[:, 1])
    return said


class TestK50:
    """K-50 Done when: results equal scikit-learn on fixtures, including a class never predicted."""

    @pytest.mark.requirement("K-50")
    @pytest.mark.parametrize(
        "y",
        [
            pytest.param(some(200, 2, 0), id="two-classes"),
            pytest.param(some(300, 2, 1, digits=1), id="two-classes-tied-scores"),
            pytest.param(some(250, 5, 2), id="five-classes"),
            pytest.param(some(400, 3, 3, digits=0), id="three-classes-tied-scores"),
            pytest.param(
                classified(
                    [0, 0, 1, 1, 2, 2, 2],
                    np.array([[8, 1, 1], [5, 4, 1], [6, 3, 1], [7, 2, 1], [4, 3, 3], [1, 2, 7], [2, 2, 6]]) / 10,
                ),
                id="class-b-never-predicted",
            ),
            pytest.param(classified([0, 1, 0, 1], np.tile([0.9, 0.1], (4, 1))), id="constant-so-b-never-predicted"),
        ],
    )
    def test_classification_equals_scikit_learn(self, y: Classified) -> None:
        """K-50 Done when: results equal scikit-learn on fixtures, including a class never predicted."""
        found = values(y)
        for name, expected in sklearn_classification(y).items():
            assert expected == pytest.approx(found[name], rel=1e-12, abs=1e-14), name

    @pytest.mark.requirement("K-50")
    def test_per_class_table_and_confusion_equal_scikit_learn(self) -> None:
        """K-50 Done when: results equal scikit-learn on fixtures, including a class never predicted."""
        from sklearn import metrics as sk

        y = some(120, 4, 5)
        y = Classified(y.truth, y.probabilities, np.where(y.predicted == 2, 0, y.predicted), y.classes)
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            y.truth, y.predicted, labels=range(4), zero_division=0
        )
        table = metrics.per_class(y)

        assert np.array_equal(sk.confusion_matrix(y.truth, y.predicted, labels=range(4)), metrics.confusion(y))
        assert precision.tolist() == pytest.approx([row["precision"] for row in table], rel=1e-12)
        assert recall.tolist() == pytest.approx([row["recall"] for row in table], rel=1e-12)
        assert f1.tolist() == pytest.approx([row["f1"] for row in table], rel=1e-12)
        assert support.tolist() == [row["support"] for row in table]
        assert "never predicted: precision is 0/0, counted as 0" == table[2]["warning"]
        assert "" == table[0]["warning"]

    @pytest.mark.requirement("K-50")
    def test_a_zero_division_counts_as_0_and_says_so(self) -> None:
        """K-50 Done when: results equal scikit-learn on fixtures, including a class never predicted (0 with a warning)."""
        y = classified([0, 0, 1], np.tile([0.9, 0.1], (3, 1)))
        scores = metrics.scores(y)

        assert pytest.approx(4 / 9) == scores["precision"].value
        assert "'b'" in scores["precision"].reason
        assert "0/0 counts as 0" in scores["precision"].reason

    @pytest.mark.requirement("K-50")
    @pytest.mark.parametrize("seed", [0, 1])
    def test_regression_equals_scikit_learn(self, seed: int) -> None:
        """K-50 Done when: results equal scikit-learn on fixtures."""
        from sklearn import metrics as sk

        rng = np.random.default_rng(seed)
        truth = rng.normal(1e6, 3.0, 400)
        predicted = truth + rng.normal(0, 1.5, 400)
        found = values(Estimated(truth, predicted))

        assert sk.mean_squared_error(truth, predicted) == pytest.approx(found["mse"], rel=1e-12)
        assert sk.root_mean_squared_error(truth, predicted) == pytest.approx(found["rmse"], rel=1e-12)
        assert sk.mean_absolute_error(truth, predicted) == pytest.approx(found["mae"], rel=1e-12)
        assert sk.r2_score(truth, predicted) == pytest.approx(found["r2"], rel=1e-9)

    @pytest.mark.requirement("K-50")
    @pytest.mark.parametrize(
        ("truth", "predicted"),
        [
            pytest.param([3.0], [2.0], id="one-row"),
            pytest.param([0.1] * 7, [0.1, 0.2] * 3 + [0.3], id="a-truth-that-does-not-vary"),
            pytest.param([], [], id="no-rows"),
        ],
    )
    def test_r2_is_null_when_undefined(self, truth: list[float], predicted: list[float]) -> None:
        """K-50: R2 is null with fewer than 2 rows or zero target variance."""
        score = metrics.scores(Estimated(np.array(truth), np.array(predicted)))["r2"]

        assert score.value is None
        assert score.reason

    @pytest.mark.requirement("K-50")
    def test_clustering_equals_scikit_learn(self) -> None:
        """K-50 Done when: results equal scikit-learn on fixtures (silhouette, Davies-Bouldin)."""
        from sklearn import metrics as sk

        rng = np.random.default_rng(3)
        for labels in (rng.integers(0, 4, 150), np.repeat([0, 1], 75), [*range(3), *([3] * 147)]):
            x = rng.normal(size=(150, 3)) + 2.0 * np.asarray(labels)[:, None]
            found = metrics.clustering(x, labels)
            assert sk.silhouette_score(x, labels) == pytest.approx(found["silhouette"].value, rel=1e-9)
            assert sk.davies_bouldin_score(x, labels) == pytest.approx(found["davies_bouldin"].value, rel=1e-9)

    @pytest.mark.requirement("K-50")
    @pytest.mark.parametrize("labels", [[0] * 5, [0, 1, 2, 3, 4]], ids=["one-cluster", "a-cluster-a-row"])
    def test_a_clustering_without_two_clusters_has_no_score(self, labels: list[int]) -> None:
        """K-50: null with a reason where scikit-learn refuses."""
        found = metrics.clustering(np.arange(10.0).reshape(5, 2), labels)

        assert [None, None] == [score.value for score in found.values()]
        assert all("2 to rows - 1 clusters" in score.reason for score in found.values())

    @pytest.mark.requirement("K-50")
    def test_the_trivial_baseline_is_scikit_learns_dummy(self) -> None:
        """K-50: always report a trivial baseline (majority class / mean); here it equals scikit-learn's dummies."""
        from sklearn.dummy import DummyClassifier, DummyRegressor

        rng = np.random.default_rng(0)
        y_train = rng.choice(3, 200, p=[0.2, 0.5, 0.3])
        y = some(60, 3, 8)
        dummy = DummyClassifier(strategy="prior").fit(np.zeros((200, 1)), y_train)
        trivial = metrics.baseline(y_train, y)
        assert isinstance(trivial, Classified)
        assert dummy.predict(np.zeros((60, 1))).tolist() == trivial.predicted.tolist()
        assert np.allclose(dummy.predict_proba(np.zeros((60, 1))), trivial.probabilities)
        assert pytest.approx(0.5) == values(trivial)["roc_auc"]

        numbers = rng.normal(size=50)
        constant = metrics.baseline(numbers, Estimated(np.arange(9.0), np.arange(9.0)))
        assert isinstance(constant, Estimated)
        expected = DummyRegressor().fit(np.zeros((50, 1)), numbers).predict(np.zeros((9, 1)))
        assert expected.tolist() == pytest.approx(constant.predicted.tolist())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(6, 60), k=st.integers(2, 5), digits=st.integers(0, 3))
def test_any_predictions_get_what_scikit_learn_says(seed: int, rows: int, k: int, digits: int) -> None:
    """Whatever the ties, the absent predictions and the number of classes."""
    y = some(rows, k, seed, digits=digits)
    found = values(y)
    for name, expected in sklearn_classification(y).items():
        assert expected == pytest.approx(found[name], rel=1e-9, abs=1e-12), name


class TestUndefined:
    def test_roc_auc_without_a_class_is_null_and_names_it(self) -> None:
        """Undefined is null with a reason, never zero."""
        score = metrics.scores(classified([0, 0], np.array([[0.7, 0.3], [0.2, 0.8]])))["roc_auc"]

        assert score.value is None
        assert "'b' does not" in score.reason

    def test_a_label_that_the_model_does_not_know_is_always_wrong(self) -> None:
        y = classified([0, 1, -1], np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]))
        found = values(y)

        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["log_loss"] is not None
        assert found["log_loss"] > 10, "its probability is none"
        assert metrics.confusion(y).sum() == 2

    def test_every_score_has_a_direction(self) -> None:
        for y in (some(20, 2, 0), some(20, 3, 0), Estimated(np.arange(5.0), np.arange(5.0))):
            assert set(metrics.names(y)) <= set(HIGHER_IS_BETTER)

    @pytest.mark.parametrize(
        ("y", "primary"),
        [(some(20, 2, 0), "roc_auc"), (some(20, 3, 0), "f1_macro"), (Estimated(np.ones(3), np.ones(3)), "r2")],
        ids=["binary", "multiclass", "regression"],
    )
    def test_the_primary_score_comes_first(self, y: metrics.Predictions, primary: str) -> None:
        assert primary == next(iter(metrics.scores(y)))


class TestBootstrap:
    def test_each_resample_is_the_score_of_the_drawn_rows(self) -> None:
        """The weighted formula is the plain score of the table that was drawn, for every score."""
        for y in (some(40, 2, 4, digits=1), some(40, 3, 4), Estimated(np.arange(40.0) % 7, np.arange(40.0) % 5)):
            drawn = metrics.bootstrap({n: metrics.statistic(n, y) for n in metrics.names(y)}, 40, count=20, seed=1)
            weights = np.concatenate(list(metrics.resamples(40, count=20, seed=1)))
            for k, name in itertools.product(range(20), metrics.names(y)):
                part = y.take(np.repeat(np.arange(40), weights[k].astype(int)))
                expected = metrics.scores(part)[name].value
                if expected is None:
                    assert np.isnan(drawn[name][k])
                else:
                    assert expected == pytest.approx(drawn[name][k], rel=1e-9), name

    def test_the_same_seed_draws_the_same_rows(self) -> None:
        """Two models compared in two passes are compared on the same resamples."""
        one = np.concatenate(list(metrics.resamples(50, count=30, seed=9)))
        again = np.concatenate(list(metrics.resamples(50, count=30, seed=9)))

        assert np.array_equal(one, again)
        assert (one.sum(axis=1) == 50).all()
        assert not np.array_equal(one, np.concatenate(list(metrics.resamples(50, count=30, seed=10))))

    def test_rows_of_one_group_are_drawn_together(self) -> None:
        groups = np.array(["x", "y", "x", "z", "y"])
        weights = np.concatenate(list(metrics.resamples(5, count=50, seed=0, groups=groups)))

        assert np.array_equal(weights[:, 0], weights[:, 2])
        assert np.array_equal(weights[:, 1], weights[:, 4])

    def test_the_interval_covers_the_truth_about_19_times_of_20(self) -> None:
        """A 95 % interval of an accuracy of 0.7 on 200 rows, 200 times over."""
        rng = np.random.default_rng(0)
        covered = 0
        for seed in range(200):
            right = rng.random(200) < 0.7
            y = Estimated(np.zeros(200), right.astype(float))
            drawn = metrics.bootstrap({"mae": metrics.mae(y)}, 200, count=300, seed=seed)["mae"]
            span = metrics.interval(drawn)
            assert span is not None
            covered += span[0] <= 0.7 <= span[1]

        assert 180 <= covered <= 199

    def test_an_interval_of_mostly_undefined_resamples_is_none(self) -> None:
        assert metrics.interval(np.array([0.5] * 50 + [np.nan] * 50)) is None
        assert metrics.interval(np.empty(0)) is None

    def test_a_thousand_resamples_of_6500_rows_take_about_a_second(self) -> None:
        """The budget of an evaluation; measured 0.15 to 0.3 s, five times that passes on a busy machine."""
        y = some(6500, 2, 0)
        start = time.process_time()
        metrics.bootstrap({"roc_auc": metrics.roc_auc(y)}, len(y), seed=0)

        assert time.process_time() - start < 1.5


class TestCalibration:
    def test_probabilities_that_come_true_have_no_error(self) -> None:
        y = classified([1] * 7 + [0] * 3, np.tile([0.3, 0.7], (10, 1)))

        assert metrics.calibration(y)["ece"] == pytest.approx(0.0, abs=1e-12)

    def test_too_sure_is_an_error_of_the_distance(self) -> None:
        y = classified([1] * 5 + [0] * 5, np.tile([0.1, 0.9], (10, 1)))
        found = metrics.calibration(y)

        assert found["ece"] == pytest.approx(0.4)
        assert [{"low": 0.9, "high": 1.0, "mean": pytest.approx(0.9), "share": 0.5, "n": 10}] == found["bins"]

    def test_coverage_counts_truths_inside(self) -> None:
        y = Estimated(np.arange(4.0), np.zeros(4), low=np.full(4, -1.0), high=np.full(4, 1.0))

        assert {"coverage": 0.5, "mean_width": 2.0, "n": 4} == metrics.coverage(y)
        assert metrics.coverage(Estimated(np.arange(4.0), np.zeros(4)))["coverage"] is None


class TestAnswers:
    """From answers of a service to arrays."""

    @pytest.mark.parametrize(
        ("truths", "keys", "predictions"),
        [
            (["yes", "no"], ["no", "yes"], ["yes", "no"]),
            ([1, 0], ["0", "1"], [1, 0]),
            ([True, False], ["false", "true"], [True, False]),
        ],
        ids=["text", "integers", "booleans"],
    )
    def test_labels_of_any_type_find_their_probability(
        self, truths: list[Any], keys: list[str], predictions: list[Any]
    ) -> None:
        answers = [
            {"prediction": predictions[0], "probabilities": {keys[0]: 0.2, keys[1]: 0.8}},
            {"prediction": predictions[1], "probabilities": {keys[0]: 0.9, keys[1]: 0.1}},
        ]
        y = metrics.predictions(truths, answers)

        assert isinstance(y, Classified)
        assert [1, 0] == y.truth.tolist() == y.predicted.tolist()
        assert 1.0 == tabular.scores(truths, answers)["roc_auc"].value

    def test_values_bring_their_intervals(self) -> None:
        y = metrics.predictions(
            [1.0, 2.0], [{"prediction": 1, "interval": [0, 2]}, {"prediction": 3, "interval": [2, 4]}]
        )

        assert isinstance(y, Estimated)
        assert y.low is not None
        assert [0.0, 2.0] == y.low.tolist()

    def test_a_missing_answer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="2 truths and 1 answers"):
            metrics.predictions([1, 2], [{"prediction": 1}])

    @pytest.mark.parametrize(
        ("truth", "prediction", "expected"),
        [(100, 105, 1.0), (100, 115, 0.5), (100, 130, 0.0), (-50, -54, 1.0), (0, 0.05, 1.0), (0, 5, 0.0)],
    )
    def test_the_outcome_of_a_value_falls_with_its_error(
        self, truth: float, prediction: float, expected: float
    ) -> None:
        assert expected == pytest.approx(tabular.outcome(truth, {"prediction": prediction}))

    def test_the_outcome_of_a_class_is_right_or_wrong(self) -> None:
        answer = {"prediction": "a", "probabilities": {"a": 0.6, "b": 0.4}}

        assert [1.0, 0.0] == [tabular.outcome("a", answer), tabular.outcome("b", answer)]


def test_no_training_library_is_imported() -> None:
    """Scores are computed with numpy alone: scikit-learn costs 3 s, pandas 1.5 s."""
    code = (
        "import sys, esteira.features.metrics; print([m for m in ('sklearn', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert "[]" == done.stdout.strip()
