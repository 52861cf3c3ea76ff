"""The family protocol holds for every family: `tabular`, a toy with nested rows and a toy policy."""

import hashlib
import sys
import timeit
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.register_assert_rewrite("tests.conformance")

from esteira import golden  # noqa: E402
from esteira.automl import search as engine  # noqa: E402
from esteira.datasets import SHA256, write_data  # noqa: E402
from esteira.errors import ConfigError, DataError  # noqa: E402
from esteira.family import Family, Search, load_family  # noqa: E402
from esteira.features.answers import post_of  # noqa: E402
from esteira.features.contract import Target  # noqa: E402
from esteira.features.decode import ColumnDecoder, Decoder, fit_decoder, json_rows  # noqa: E402
from families.tabular import FAMILY, Params  # noqa: E402
from families.tabular.answer import TableAnswerer  # noqa: E402
from families.tabular.contract import infer  # noqa: E402
from tests.conformance import FamilyConformance  # noqa: E402
from tests.toys import nested, policy  # noqa: E402


@pytest.fixture(scope="module")
def search() -> Search:
    return engine


# Every folder below families/ joins by being there.
FOLDERS = sorted(path.parent.name for path in (Path(__file__).parents[1] / "families").glob("*/__init__.py"))
EVERY = [*(load_family(name) for name in FOLDERS), nested.FAMILY, policy.FAMILY]


@pytest.fixture(scope="module", params=EVERY, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


class TestConformance(FamilyConformance):
    """The suite over every family."""


def test_unknown_family_is_refused_with_a_cure() -> None:
    """A family that is no folder is a configuration error that says how to see what there is."""
    with pytest.raises(ConfigError, match="no 'teapot'") as caught:
        load_family("teapot")
    assert "esteira families" in caught.value.cure
    assert load_family("tabular") is FAMILY


def test_a_sample_that_cannot_be_answered_ends_in_a_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        golden.write(tmp_path, "teapot", rows=[], broken=[])

    assert 2 == ended.value.code
    assert ["error:", "where:", "cure:"] == [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("files", "place", "said"),
    [
        ({"__init__": "from families.planted import model", "model": "x = 1\ndef (\n"}, "model.py, line 2", "SyntaxError"),
        ({"__init__": "import no_such_library"}, "__init__.py, line 1", "no_such_library"),
        ({"__init__": "from families.planted import model", "model": "y = 1\n\nz = [][0]"}, "model.py, line 3", "IndexError"),
        ({"__init__": "x = 1"}, "__init__.py", "FAMILY"),
        ({}, "__init__.py", "FAMILY"),
    ],
)  # fmt: skip
def test_a_family_that_cannot_be_imported_is_its_writers_letter_with_the_line(
    files: dict[str, str], place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import families

    folder = tmp_path / "families" / "planted"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder.parent)])

    with pytest.raises(ConfigError) as caught:
        load_family("planted")
    for name in [name for name in sys.modules if name.startswith("families.planted")]:
        del sys.modules[name]

    assert ("broken_family", f"families/planted/{place}") == (caught.value.code, caught.value.where)
    assert said in caught.value.message


def table(rows: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    size = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "heavy": rng.random(rows) < 0.5,
            "kind": np.where(size < -0.5, 1, np.where(size > 0.5, 3, 2)),
            "flag": size > 0,
            "price": 10 * size + rng.normal(size=rows),
        }
    )


def test_a_table_fits_as_its_rows_do(search: Search) -> None:
    """A DataFrame is a faster batch of rows: the same export and the same answers."""
    frame = table()
    features, truths = frame[["size", "colour", "heavy"]], frame["flag"].tolist()
    rows = [{k: None if v != v else v for k, v in row.items()} for row in features.to_dict("records")]
    params = Params(trials=1)
    by_table = FAMILY.fit(features, truths, params=params, seed=1, search=search)
    by_rows = FAMILY.fit(rows, truths, params=params, seed=1, search=search)
    assert by_table.export() == by_rows.export()
    assert by_table.answer(rows) == by_rows.answer(rows)
    assert FAMILY.features(features, by_table).tobytes() == FAMILY.features(rows, by_table).tobytes()


@pytest.mark.parametrize(
    ("label", "keys", "kind"),
    [("flag", ["false", "true"], bool), ("kind", ["1", "2", "3"], int)],
    ids=["binary", "multiclass"],
)
def test_a_class_is_answered_in_its_own_type(search: Search, label: str, keys: list[str], kind: type) -> None:
    """The prediction has the label's type, probabilities have text keys and sum to 1, confidence says it is heuristic."""
    frame = table()
    fitted = FAMILY.fit(frame[["size", "colour"]], frame[label], params=Params(trials=1), seed=1, search=search)
    (answer,) = fitted.answer([{"size": 9.5, "colour": "pink"}])
    assert type(answer["prediction"]) is kind
    assert keys == list(answer["probabilities"])
    assert 1 == pytest.approx(sum(answer["probabilities"].values()), abs=1e-6)
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert "heuristic" == answer["confidence_kind"]
    assert [("range", "size"), ("category", "colour")] == [(w["rule"], w["column"]) for w in answer["warnings"]]
    scores = FAMILY.metrics(frame[label].tolist(), fitted.answer(frame[["size", "colour"]].to_dict("records")))
    assert ("roc_auc" if kind is bool else "f1_macro") == next(iter(scores))


def test_a_number_is_answered_with_its_interval(search: Search) -> None:
    """The interval is centred on the prediction and covers about nine of ten new truths."""
    frame = table(400)
    train, new = frame[:300], frame[300:]
    fitted = FAMILY.fit(train[["size", "colour"]], train["price"], params=Params(trials=3), seed=1, search=search)
    answers = fitted.answer(new[["size", "colour"]].to_dict("records"))
    assert {("calibrated", 0.9)} == {(answer["confidence_kind"], answer["confidence"]) for answer in answers}
    inside = [a["interval"][0] <= truth <= a["interval"][1] for a, truth in zip(answers, new["price"], strict=True)]
    assert 0.8 <= np.mean(inside) <= 0.98
    assert "r2" == next(iter(FAMILY.metrics(new["price"].tolist(), answers)))


def test_an_interval_needs_twenty_errors() -> None:
    """Without enough out-of-fold errors there is no interval and no confidence: nothing is invented."""
    target = Target(name="y", task="regression")
    post = post_of(target, np.arange(19.0), np.zeros(19))
    assert post["interval_quantile"] is None
    decoder = Decoder((ColumnDecoder("x", "number"),), "y")
    (answer,) = TableAnswerer(decoder, post, lambda x: x[:, 0].astype(np.float64)).answer([{"x": 3}])
    assert (3.0, None, None) == (answer["prediction"], answer["interval"], answer["confidence"])
    assert 18.0 == post_of(target, np.arange(20.0), np.zeros(20))["interval_quantile"]


def test_one_row_is_answered_in_little_more_than_its_graph() -> None:
    """Decoding, checking and saying the answer to one row of 15 columns takes under 100 us beside the graph's own time."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"n{i}": rng.normal(size=200) for i in range(8)})
    frame = frame.assign(**{f"c{i}": rng.choice(["a", "b", "c"], 200) for i in range(7)})
    contract, _ = infer(frame.assign(y=frame["n0"] > 0), "y", "t")
    decoder = fit_decoder(frame, contract)
    y = np.array([[0.25, 0.75]])
    answerer = TableAnswerer(decoder, {"classes": [False, True]}, lambda _: y)
    row = json_rows(frame, decoder)[:1]
    seconds = min(timeit.repeat(lambda: (answerer.check(row), answerer.answer(row)), number=200, repeat=15)) / 200
    assert seconds < 100e-6, f"{seconds * 1e6:.1f} us"


def test_bundled_data_are_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """`write_data` writes three real tables whose hashes are known, again without change, and they are learnable."""
    first = write_data(tmp_path / "a")
    second = write_data(tmp_path / "b")
    assert ["breast_cancer", "diabetes", "wine"] == [entry["name"] for entry in first]
    assert [entry["sha256"] for entry in first] == [entry["sha256"] for entry in second]
    for entry, other in zip(first, second, strict=True):
        data = Path(entry["path"]).read_bytes()
        assert data == Path(other["path"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        frame = pd.read_csv(entry["path"], dtype=str)
        contract, _ = infer(frame, entry["label"], "t")
        assert (entry["rows"], entry["task"]) == (len(frame), contract.target.task)
        assert contract.dropped == ()
    assert {"malignant", "benign"} == set(pd.read_csv(tmp_path / "a" / "breast_cancer.csv")["diagnosis"])


def test_other_data_than_recorded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scikit-learn that bundles other numbers is refused by name, and nothing is written."""
    monkeypatch.setitem(SHA256, "wine.csv", "0" * 64)
    with pytest.raises(DataError, match=r"wine\.csv"):
        write_data(tmp_path / "data")
    assert not (tmp_path / "data").exists()
