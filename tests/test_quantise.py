"""Int8 weights: what is rounded and what is left, that no answer depends on its neighbours or the processor, and the verdict."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from esteira.automl.kinds import make
from esteira.bundle import answerer, open_bundle, seal, verify
from esteira.cli import main
from esteira.features.contract import Column, TableContract, Target
from esteira.features.decode import ColumnDecoder, Decoder
from esteira.onnx.graph import Graph
from esteira.onnx.quantise import SMALLEST, quantise, weights_of
from serving.predictor import Deployment, load
from tests.small_bundle import make_bundle
from tests.test_kinds_smooth import fitted, rows

Floats = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------- one product


def _product(weights: Floats, *, relu: bool = False, shared: bool = False) -> bytes:
    """x (rows, inputs) times weights (inputs, outputs), or times each of (members, inputs, outputs); y (rows, outputs)."""
    graph = Graph(weights.shape[-2])
    value = graph.double("x")
    if weights.ndim == 3:
        value = graph.add("Unsqueeze", value, graph.constant([0], np.int64))
        if not shared:
            value = graph.add("Concat", *[value] * len(weights), axis=0)
    value = graph.add("Relu", value) if relu else value
    found = graph.add("MatMul", value, graph.constant(weights, np.float64))
    if weights.ndim == 3:
        found = graph.add("ReduceSum", found, graph.constant([0], np.int64), keepdims=0)
    return graph.finish(found, classes=weights.shape[-1])


def _by_hand(x: NDArray[np.float32], weights: Floats, *, relu: bool = False) -> Floats:
    """What the quantised product must give, in whole numbers of Python's width."""
    inputs = x.astype(np.float64)
    inputs, steps, zero = (np.maximum(inputs, 0.0), 255.0, 0) if relu else (inputs, 127.0, 128)
    size = np.maximum(np.abs(inputs).max(axis=-1, keepdims=True), 1e-30)
    given_ = np.floor(inputs * (steps / size) + (zero + 0.5)).astype(np.int64) - zero
    whole, scale = weights_of(weights)
    return np.asarray((given_ @ whole.astype(np.int64)) * size * (scale / steps))


def _run(content: bytes, x: NDArray[np.float32]) -> Floats:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: Floats = session.run(["y"], {"x": np.ascontiguousarray(x, np.float32)})[0]
    return found


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 70), outputs=st.integers(2, 40), members=st.integers(0, 3), relu=st.booleans(),
    shared=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_product_is_near_the_exact_one_and_a_row_is_answered_alone_as_among_others(
    inputs: int, outputs: int, members: int, relu: bool, shared: bool, seed: int
) -> None:
    """The error is at most half a step of each weight and input; alone and among others the answer is the same to the bit."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(members, inputs, outputs) if members else (inputs, outputs)) * rng.exponential()
    x = (rng.normal(size=(9, inputs)) * rng.exponential(10.0, size=(9, 1))).astype(np.float32)
    x[4] = 0.0
    made = quantise(_product(weights, relu=relu, shared=shared), smallest=1)
    assert [""] == [product.left for product in made.products]

    found = _run(made.content, x)

    inputs_ = np.maximum(x, 0.0) if relu else x
    exact = (inputs_.astype(np.float64) @ weights).reshape(-1, 9, outputs).sum(axis=0)
    by_hand = _by_hand(x, weights, relu=relu).reshape(-1, 9, outputs).sum(axis=0)
    np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-12 * (1 + np.abs(by_hand).max()))
    size = np.abs(inputs_).max(axis=1, keepdims=True).astype(np.float64)
    most = np.abs(weights).max(axis=-2, keepdims=True)
    bound = inputs * size * (most * (0.5 / 64) * (1 + 1 / 64) + most * (0.5 / (255 if relu else 127)))
    assert (np.abs(found - exact) <= bound.reshape(-1, 9, outputs).sum(axis=0) + 1e-12).all()
    assert (found[4] == 0).all()
    alone = np.concatenate([_run(made.content, x[at : at + 1]) for at in range(len(x))])
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("relu", [False, True], ids=["both signs", "never negative"])
def test_the_largest_sums_are_not_cut_off(relu: bool) -> None:
    """Processors that add pairs of products in 16 bits would cut off what 8 bits of both give; 7 of a weight fit."""
    weights = np.ones((300, 50)) * np.where(np.arange(50) % 2, 1.0, -1.0)
    x = np.full((3, 300), 5.0, np.float32)
    x[1] *= -1.0

    found = _run(quantise(_product(weights, relu=relu), smallest=1).content, x)

    np.testing.assert_allclose(found, np.maximum(x, 0) @ weights if relu else x @ weights, rtol=1e-9)


def test_it_answers_as_the_operators_definition_does() -> None:
    """ONNX's own evaluator in numpy, which shares no line with ONNX Runtime."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20, 30)).astype(np.float32)
    for weights in (rng.normal(size=(30, 40)), rng.normal(size=(2, 30, 40))):
        made = quantise(_product(weights), smallest=1)

        expected = ReferenceEvaluator(onnx.load_from_string(made.content)).run(None, {"x": x})[0]

        np.testing.assert_allclose(_run(made.content, x), expected, rtol=1e-9, atol=1e-12)


def test_small_products_are_left_and_a_graph_gives_the_same_bytes_again() -> None:
    graph = Graph(128)
    wide = graph.add("MatMul", graph.double("x"), graph.constant(np.ones((128, 128)), np.float64))
    content = graph.finish(
        graph.add("MatMul", graph.add("Relu", wide), graph.constant(np.ones((128, 3)), np.float64)), classes=3
    )

    first, second = quantise(content), quantise(content)

    assert first.content == second.content
    assert [(128, 128), (128, 3)] == [product.shape for product in first.products]
    assert ["", f"fewer than {SMALLEST:,} weights"] == [product.left for product in first.products]
    operators = [node.op_type for node in onnx.load_from_string(first.content).graph.node]
    assert (1, 1) == (operators.count("MatMulInteger"), operators.count("MatMul"))
    assert len(first.content) < len(content) / 4


def test_a_large_product_takes_less_than_half_the_time_and_an_eighth_of_the_bytes() -> None:
    """It is a seventeenth of the time where nothing else runs; the two are asked by turns."""
    weights = np.random.default_rng(3).normal(size=(1024, 1024))
    contents = _product(weights), quantise(_product(weights)).content
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]) for content in contents
    ]
    x = np.ones((1, 1024), np.float32)
    taken: list[list[float]] = [[], []]

    for _ in range(60):
        for session, times in zip(sessions, taken, strict=True):
            began = time.perf_counter()
            session.run(["y"], {"x": x})
            times.append(time.perf_counter() - began)

    assert np.median(taken[1]) < np.median(taken[0]) / 2
    assert len(contents[1]) < len(contents[0]) / 7.5


def test_nearest_neighbours_keep_their_distances_and_trees_are_counted() -> None:
    for kind, count in (("nearest_neighbours", 0), ("lightgbm", 1)):
        x, y = rows("binary")
        model = make(kind, {}, task="binary", classes=2, categorical=[4], seed=0)
        model.fit(x, y)
        graph = Graph(x.shape[1])
        content = graph.finish(model.draw(graph, "x"), classes=2)

        made = quantise(content, smallest=1)

        assert all(product.left for product in made.products if product.weights > 500)
        assert (made.trees >= count) if count else made.trees == 0
        np.testing.assert_allclose(_run(made.content, x), _run(content, x), atol=0.05)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("members", [1, 2, 4])
def test_a_networks_answers_stay_near_and_do_not_depend_on_the_batch(task: str, members: int) -> None:
    x, y = rows(task, 300, seed=2)
    classes = {"binary": 2, "multiclass": 3, "regression": None}[task]
    network = fitted("neural_network", task, epochs=20, width=64, members=members, rate=0.01)
    graph = Graph(x.shape[1])
    content = graph.finish(network.draw(graph, "x"), classes=classes)

    made = quantise(content, smallest=1000)

    assert [product for product in made.products if not product.left]
    before, after = _run(content, x), _run(made.content, x)
    spread = float(np.std(y)) if task == "regression" else 1.0
    assert np.abs(before - after).mean() < 0.03 * spread
    alone = np.concatenate([_run(made.content, x[at : at + 1]) for at in range(30)])
    np.testing.assert_allclose(after[:30], alone, rtol=1e-9, atol=1e-12)
    assert len(made.content) < 0.7 * len(content)


# ---------------------------------------------------------------------------------------------- a bundle


def _wide(task: str, *, fine: bool = True) -> bytes:
    """Four times the second of two inputs, by a wide layer; when not `fine`, the first is so large that rounding hides it."""
    hidden, copies = 128, 64
    signs = np.where(np.arange(hidden) % 2, 1.0, -1.0)
    graph = Graph(2)
    values = graph.double("x")
    if fine:
        values = graph.add("Mul", values, graph.constant([[1e-6, 1.0]], np.float64))
    weights = np.tile(np.stack([np.zeros(hidden), signs / copies]), (copies, 1))
    many = graph.add("Concat", *[values] * copies, axis=1)
    layer = graph.add("Relu", graph.add("MatMul", many, graph.constant(weights, np.float64)))
    margin = graph.add("MatMul", layer, graph.constant(signs[:, None] * 8 / hidden, np.float64))
    if task == "regression":
        return graph.finish(graph.values(margin), classes=None)
    return graph.finish(graph.probabilities(margin, 2), classes=2)


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder with `fine`, `coarse` and `number` (bundles) and `rows.csv`, `values.csv` (labelled rows)."""
    rng = np.random.default_rng(11)
    first, second = rng.uniform(0, 1e6, 400), rng.uniform(-1, 1, 400)
    label = np.where((second > 0) ^ (rng.random(400) < 0.05), "yes", "no")
    table = {"rows.csv": label, "values.csv": 4 * second + rng.normal(size=400) * 0.2}
    for name, truth in table.items():
        lines = [f"{a!r},{b!r},{c}" for a, b, c in zip(first.tolist(), second.tolist(), truth.tolist(), strict=True)]
        (tmp_path / name).write_text("\n".join(["<big>,small,y", *lines]) + "\n", encoding="utf-8")
    _bundle(tmp_path / "fine", "binary", _wide("binary"))
    _bundle(tmp_path / "coarse", "binary", _wide("binary", fine=False))
    _bundle(tmp_path / "number", "regression", _wide("regression"))
    _bundle(tmp_path / "coarse number", "regression", _wide("regression", fine=False))
    return tmp_path


def _bundle(folder: Path, task: Any, graph: bytes) -> str:
    from families.tabular import manifest_of

    names, classes = ("<big>", "small"), ("no", "yes") if task == "binary" else None
    contract = TableContract(
        line="tabular@yard",
        target=Target(name="y", task=task, classes=classes),
        columns=tuple(Column(name=name, kind="number") for name in names),
    )
    decoder = Decoder(columns=tuple(ColumnDecoder(name, "number") for name in names), label="y")
    post: dict[str, Any] = {"classes": list(classes), "confidence_kind": "heuristic"} if classes else {}
    golden = {"rows": [{"<big>": 5.0, "small": 0.25}, {"<big>": 9e5, "small": -0.75}], "answers": []}
    folder.mkdir()
    (folder / "graph.onnx").write_bytes(graph)
    (folder / "decoder.json").write_text(decoder.to_json(), encoding="utf-8")
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps({"limits": "It is a test's."}), encoding="utf-8")
    said = {"family": "tabular", "line": "tabular@yard", "artefact_kind": "onnx", "metrics": {"accuracy": 0.5}}
    return seal(folder, manifest={**said, **manifest_of(contract, post)})


def _quantise(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["quantise", *words, "--calls", "30", "--json"])
    said = capsys.readouterr()
    assert code == ended.value.code, said
    return json.loads(said.out)


def _words(yard: Path, bundle: str, data: str = "rows.csv", out: str = "out") -> tuple[str, ...]:
    return ("--bundle", str(yard / bundle), "--data", str(yard / data), "--out", str(yard / out))


@pytest.mark.requirement("S-24")
@pytest.mark.parametrize(("bundle", "data"), [("fine", "rows.csv"), ("number", "values.csv")])
def test_the_report_shows_latency_and_accuracy_before_and_after(
    bundle: str, data: str, yard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-24: the report shows latency and accuracy before/after."""
    said = _quantise(capsys, *_words(yard, bundle, data))

    report = json.loads((yard / "out" / "report.json").read_text(encoding="utf-8"))
    page = (yard / "out" / "report.html").read_text(encoding="utf-8")
    assert said == report
    metric = "accuracy" if bundle == "fine" else "r2"
    assert (True, metric, 0.01) == (report["accepted"], *report["rule"].values())
    was, now = report["before"], report["after"]
    assert report["lost"] == pytest.approx(was["scores"][metric] - now["scores"][metric])
    assert report["lost"] <= 0.01
    assert 0.9 < was["scores"][metric]
    assert report["interval"][0] <= report["lost"] <= report["interval"][1]
    for side in (was, now):
        for part in ("one_row_us", "1000_rows_us"):
            for what in ("answer", "graph"):
                assert 0 < side[part][what]["p50"] <= side[part][what]["p95"]
            assert side[part]["graph"]["p50"] < side[part]["answer"]["p50"]
        assert f"{side['scores'][metric]:.4g}" in page
    assert now["bytes"] < was["bytes"]
    for words in ("One row", "1,000 rows at once", "Before and after", "accepted"):
        assert words in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)


def test_an_accepted_bundle_is_sealed_answers_its_own_golden_rows_and_says_what_it_was_made_of(
    yard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = verify(yard / "fine")

    said = _quantise(capsys, *_words(yard, "fine"))

    folder = yard / "out" / "bundle"
    manifest = verify(folder, said["bundle_id"])
    origin = (yard / "fine" / "manifest.sha256").read_text(encoding="utf-8").strip()
    assert (origin, "int8", 1, 400) == tuple(
        manifest["quantised"][name] for name in ("from", "weights", "products", "rows")
    )
    assert said["after"]["scores"] == manifest["metrics"]
    assert former == verify(yard / "fine", origin), "the given bundle stays as it is"
    assert former["schema"] == manifest["schema"]
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    assert golden["answers"] == answerer(open_bundle(folder, "cpu")).answer(golden["rows"])
    assert said["bundle_id"] == load(folder, Deployment("", None, said["bundle_id"])).deployment.bundle_id
    limits = json.loads((folder / "card.json").read_text(encoding="utf-8"))["limits"]
    assert "It is a test's." == limits[0]
    assert f"bundle {origin[:12]}" in limits[1]
    assert {"bundle", "report.html", "report.json"} == {path.name for path in (yard / "out").iterdir()}


def test_the_same_rows_give_the_same_bundle_again(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times stand in the report only."""
    ids = [_quantise(capsys, *_words(yard, "fine", out=out))["bundle_id"] for out in ("one", "two")]

    assert ids[0] == ids[1]


@pytest.mark.parametrize(("bundle", "data"), [("coarse", "rows.csv"), ("coarse number", "values.csv")])
def test_a_bundle_whose_score_falls_by_more_is_refused_with_the_figures(
    bundle: str, data: str, yard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _quantise(capsys, *_words(yard, bundle, data), code=1)["error"]

    assert "score_fell" == error["code"]
    assert re.search(r"before, \S+ after on 400 rows: more than 0\.01 lost, so it is refused", error["message"])
    assert {"report.html", "report.json"} == {path.name for path in (yard / "out").iterdir()}
    report = json.loads((yard / "out" / "report.json").read_text(encoding="utf-8"))
    assert (False, None) == (report["accepted"], report["bundle_id"])
    assert report["lost"] > 0.3
    assert "refused" in (yard / "out" / "report.html").read_text(encoding="utf-8")


def test_a_bundle_without_large_products_is_left_and_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "small")
    (tmp_path / "rows.csv").write_text("buys\nyes\n", encoding="utf-8")

    error = _quantise(capsys, *_words(tmp_path, "small"), code=1)["error"]

    assert "nothing_to_quantise" == error["code"]
    assert "the largest of 9 weights, and 0 trees" in error["message"]
    assert not (tmp_path / "out").exists()


BAD: dict[str, tuple[dict[str, str], str, int, str]] = {
    "no such bundle": ({"--bundle": "gone"}, "missing_bundle", 2, "gone"),
    "no such file": ({"--data": "gone.csv"}, "missing_file", 2, "gone.csv"),
    "no such label": ({"--target": "z"}, "missing_label", 1, "small"),
    "a label that is none of the classes": ({"--target": "small"}, "bad_label", 1, "no, yes"),
    "no rows": ({"--data": "empty.csv"}, "empty", 1, "empty.csv"),
    "a row that breaks the contract": ({"--data": "broken.csv"}, "row_type", 1, "row 1"),
    "a label that is empty": ({"--data": "unlabelled.csv"}, "bad_label", 1, "row 0"),
    "rows on which R2 is not defined": ({"--bundle": "number", "--data": "one.csv"}, "undefined_score", 1, "two rows"),
    "a place that is taken": ({"--out": "taken"}, "place_taken", 1, "taken"),
    "a place within the bundle": ({"--out": "fine"}, "page_in_bundle", 2, "elsewhere"),
    "too few calls": ({"--calls": "3"}, "usage", 2, "10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_letter_and_leaves_nothing(
    case: str, yard: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, code, status, word = BAD[case]
    monkeypatch.chdir(yard)
    (yard / "empty.csv").write_text("<big>,small,y\n", encoding="utf-8")
    (yard / "broken.csv").write_text("<big>,small,y\nmany,0.5,yes\n", encoding="utf-8")
    (yard / "unlabelled.csv").write_text("<big>,small,y\n1,0.5,\n", encoding="utf-8")
    (yard / "one.csv").write_text("<big>,small,y\n1,0.5,3\n", encoding="utf-8")
    (yard / "taken" / "bundle").mkdir(parents=True)
    (yard / "taken" / "bundle" / "note.txt").write_text("mine", encoding="utf-8")
    words = {"--bundle": "fine", "--data": "rows.csv", "--out": "out", "--calls": "20", **changed}
    before = sorted(yard.rglob("*"))

    with pytest.raises(SystemExit) as ended:
        main(["quantise", *(part for pair in words.items() for part in pair), "--json"])

    error = json.loads(capsys.readouterr().out)["error"]
    assert (status, code) == (ended.value.code, error["code"]), error
    assert word in " ".join(error.values())
    assert before == sorted(yard.rglob("*"))


def test_a_person_is_told_both_sides_and_when_it_got_slower(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quantise", *_words(yard, "fine"), "--calls", "30"])

    said, warned = capsys.readouterr()
    assert "accuracy" in said
    assert re.search(r"one row: [\d,]+ us before, [\d,]+ after; graph: [\d,]+ bytes before, [\d,]+ after", said)
    assert ("warning:" in warned) == ("times as long as before" in warned)


def test_names_of_other_people_do_not_become_markup(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (yard / "<b>rows.csv").write_bytes((yard / "rows.csv").read_bytes())

    _quantise(capsys, *_words(yard, "fine", "<b>rows.csv"))

    page = (yard / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;rows.csv" in page
    assert "<b>rows.csv" not in page
