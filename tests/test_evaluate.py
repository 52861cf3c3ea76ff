"""Evaluation measures what will be served, writes everything down, and lets nothing pass that was not measured."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from components import evaluate as step
from components.evaluation import heldback, measuring
from esteira import bundle as bundles
from esteira import probe, slices
from esteira.errors import ConfigError, GateHeld, SourceError
from esteira.family import Score
from esteira.features.contract import Column, TableContract, Target
from esteira.features.decode import ColumnDecoder, Decoder
from esteira.features.metrics import Classified, Estimated
from esteira.gate import Rule
from families.tabular.metrics import scores

LINE = "tabular@club"
CITIES = ("Porto", "Lisboa")

# A server of the same shape as `python -m serving`, in a tenth of a second: answers by the real answerer, or misbehaves.
FAKE = """
import http.server, json, pathlib, sys, time
from esteira.bundle import answerer, open_bundle

how, folder = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--bundle") + 1])
assert sys.argv[2] == "serve" and sys.argv[-2:] == ["--port", "0"]
if how == "dies":
    sys.exit("no model could be loaded")
if how == "sleeps":
    time.sleep(600)
opened = open_bundle(folder, "cpu")
model = answerer(opened)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["rows"]
        answers = model.answer(rows)
        if how == "lies":
            for answer in answers:
                answer["probabilities"] = {name: 1 - p for name, p in answer["probabilities"].items()}
        if how == "slow" and len(rows) == 1:
            time.sleep(0.03)
        status = 500 if how == "breaks" else 200
        told = "f" * 64 if how == "another" else opened.bundle_id
        body = json.dumps({"bundle_id": told, "device": "cpu", "rows": answers}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    # Otherwise a small answer waits 40 ms for the client's acknowledgement.
    def get_request(self):
        import socket
        request, address = super().get_request()
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return request, address


server = Server(("127.0.0.1", 0), Handler)
print(f"READY http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def fake(how: str = "answers") -> tuple[str, ...]:
    return (sys.executable, "-c", FAKE, how)


def contract(task: str) -> TableContract:
    targets = {
        "binary": Target(name="buys", task="binary", classes=("no", "yes")),
        "multiclass": Target(name="buys", task="multiclass", classes=(0, 1, 2)),
        "regression": Target(name="spends", task="regression", minimum=0.0, maximum=100.0),
    }
    return TableContract(
        line=LINE,
        target=targets[task],
        columns=(
            Column(name="age", kind="number", minimum=18, maximum=90),
            Column(name="city", kind="category", categories=CITIES),
            Column(name="since", kind="date"),
        ),
    )


DECODER = Decoder(
    columns=(
        ColumnDecoder("age", "number", minimum=18.0, maximum=90.0),
        ColumnDecoder("city", "category", levels=CITIES),
        ColumnDecoder("since", "date", minimum=1.5e15, maximum=1.8e15, parts=("days",)),
    ),
    label="buys",
)


class Made:
    """The folders of the steps before evaluate, made by hand: a linear model that knows `weight` of the truth."""

    def __init__(
        self, root: Path, *, task: str = "binary", weight: float = 0.2, rows: int = 240, native: float = 0.0
    ) -> None:
        self.root, self.contract = root, contract(task)
        rng = np.random.default_rng(7)
        train, test = self._table(rng, 300), self._table(rng, rows)
        y_train, y_test = self._truth(rng, train, task), self._truth(rng, test, task)
        x_test = DECODER.rows(test)
        files: dict[str, bytes] = {"decoder.json": DECODER.to_json().encode(), "graph.onnx": self._graph(task, weight)}
        post = self._post(task)
        files["post.json"] = json.dumps(post).encode()
        draft = self._write(root / "draft", files)
        manifest = {"family": "tabular", "line": LINE, **_manifest_of(self.contract, post)}
        bundles.seal(draft, manifest=manifest)
        opened = bundles.open_bundle(draft, "cpu")
        golden = [*test[:9], dict.fromkeys(test[0])]
        answers = bundles.answerer(opened).answer(golden)
        files["golden.json"] = json.dumps({"rows": golden, "answers": answers}).encode()
        files["record.json"] = json.dumps({"row_us": 20.0, "row_us_limit": 100.0}).encode()
        board = [
            {"number": 1, "kind": "linear", "params": {"C": 1.0}, "score": 0.8, "deviation": 0.01},
            {"number": 2, "kind": "constant", "params": {}, "score": 0.5, "deviation": 0.0},
        ]
        self._write(root / "trained" / "model", files)
        exported = opened.run("graph.onnx", x_test)["y"] + native
        self._write(
            root / "trained", {"leaderboard.json": json.dumps(board).encode(), "native_test.npy": _npy(exported)}
        )
        self._write(
            root / "features",
            {
                "x_test.npy": _npy(x_test),
                "y_test.npy": _npy(y_test),
                "y_train.npy": _npy(y_train),
                "rows_test.parquet": _parquet(test),
                "features.json": json.dumps({"groups": DECODER.groups}).encode(),
            },
        )
        (root / "contract.yaml").write_text(self.contract.to_yaml(), encoding="utf-8")
        data = {"name": "club", "source": ".../club.csv", "content_hash": "ab" * 32, "row_count": 300 + rows}
        (root / "dataset.json").write_text(json.dumps(data), encoding="utf-8")

    def evaluate(
        self,
        out: str = "out",
        *,
        server: Sequence[str] = (),
        champion: Path | None = None,
        params: step.Params | None = None,
    ) -> step.Report:
        return step.evaluate(
            features=self.root / "features",
            trained=self.root / "trained",
            contract=self.root / "contract.yaml",
            dataset=self.root / "dataset.json",
            champion=champion,
            line=LINE,
            out=self.root / out,
            params=params or step.Params(calls=50, resamples=200, code_revision="test"),
            seed=42,
            server=server or fake(),
        )

    def read(self, name: str, out: str = "out") -> Any:
        return json.loads((self.root / out / name).read_text(encoding="utf-8"))

    def outcome(self, rule: str, out: str = "out") -> dict[str, Any]:
        found: dict[str, Any] = next(part for part in self.read("gate.json", out)["rules"] if part["rule"] == rule)
        return found

    @staticmethod
    def _table(rng: np.random.Generator, rows: int) -> list[dict[str, Any]]:
        return [
            {
                "age": None if rng.random() < 0.05 else round(float(rng.uniform(18, 90)), 1),
                "city": None if rng.random() < 0.05 else CITIES[int(rng.integers(2))],
                "since": f"20{int(rng.integers(19, 25))}-0{int(rng.integers(1, 9))}-10T00:00:00+00:00",
            }
            for _ in range(rows)
        ]

    @staticmethod
    def _truth(rng: np.random.Generator, rows: list[dict[str, Any]], task: str) -> NDArray[Any]:
        age = np.array([row["age"] or 50.0 for row in rows])
        margin = (age - 50) / 12 + rng.normal(0, 0.8, len(rows))
        if task == "regression":
            return 50 + 10 * margin
        return np.digitize(margin, [0.0] if task == "binary" else [-0.8, 0.8]).astype(np.int64)

    @staticmethod
    def _graph(task: str, weight: float) -> bytes:
        from tests.small_graph import Linear, graph

        columns = {"binary": [[weight]], "multiclass": [[-weight, 0.0, weight]], "regression": [[weight * 10]]}[task]
        weights = np.vstack([np.array(columns), np.zeros((1, len(columns[0])))])
        targets = weights.shape[1]
        model = Linear(
            numeric=(0, 2),
            median=np.array([50.0, 0.0]),
            mean=np.array([50.0, 0.0]),
            scale=np.ones(2) * np.array([2.4, 1.0]),
            weights=weights,
            missing_weights=np.zeros((2, targets)),
            categorical=(1,),
            levels=(2,),
            tables=(np.zeros((4, targets)),),
            intercept=np.full(targets, 50.0 if task == "regression" else 0.0),
        )
        return graph(model, features=3, classes={"binary": 2, "multiclass": 3, "regression": None}[task])

    def _post(self, task: str) -> dict[str, Any]:
        if task == "regression":
            return {"interval_quantile": 15.0, "interval_level": 0.9, "confidence_kind": "calibrated"}
        assert self.contract.target.classes is not None
        return {"classes": list(self.contract.target.classes), "confidence_kind": "heuristic"}

    @staticmethod
    def _write(folder: Path, files: dict[str, bytes]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder


def _manifest_of(agreed: TableContract, post: dict[str, Any]) -> dict[str, Any]:
    from families.tabular import manifest_of

    return manifest_of(agreed, post)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    dates = pc.strptime(pc.utf8_slice_codeunits(table["since"], 0, 10), "%Y-%m-%d", "us")
    table = table.set_column(2, "since", pc.assume_timezone(dates, "UTC"))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A binary line, evaluated once and released."""
    made = Made(tmp_path_factory.mktemp("released"))
    made.evaluate()
    return made


class TestReleased:
    def test_every_output_is_there_and_nothing_else(self, released: Made) -> None:
        expected = {"bundle", "metrics.json", "gate.json", "serving.json", "report.html"}
        assert expected == {path.name for path in (released.root / "out").iterdir()}
        assert "pass" == released.read("gate.json")["verdict"]

    def test_the_bundle_is_sealed_with_card_and_leaderboard(self, released: Made) -> None:
        folder = released.root / "out" / "bundle"
        manifest = bundles.verify(folder, released.read("gate.json")["bundle_id"])

        stages = {"graph.onnx", "decoder.json", "post.json", "golden.json", "record.json"}
        assert stages | {"leaderboard.json", "card.json", "card.md"} == set(manifest["files"])
        assert (LINE, "linear", "ab" * 32, "test") == tuple(
            manifest[key] for key in ("line", "method", "data_hash", "code_revision")
        )
        assert manifest["metrics"] == released.read("metrics.json")["metrics"]

    def test_the_card_names_segments_and_its_page_is_beside_it(self, released: Made) -> None:
        card = json.loads((released.root / "out/bundle/card.json").read_text(encoding="utf-8"))
        names = {part["segment"] for part in card["metrics"]["segments"]}

        assert {"city=Porto", "city=(missing)", "true class=no"} <= names
        assert "`buys`" in card["purpose"]

    def test_the_same_inputs_give_the_same_bundle_and_the_same_metrics(self, released: Made) -> None:
        """No wall time and no random draw enters what is hashed."""
        released.evaluate("again")

        assert released.read("gate.json")["bundle_id"] == released.read("gate.json", "again")["bundle_id"]
        once, again = (released.root / folder / "metrics.json" for folder in ("out", "again"))
        assert once.read_bytes() == again.read_bytes()

    def test_scores_stand_beside_a_trivial_baseline_with_size_and_interval(self, released: Made) -> None:
        document = released.read("metrics.json")

        assert set(document["metrics"]) == set(document["baseline"])
        low, high = document["intervals"]["roc_auc"]
        assert low < document["metrics"]["roc_auc"] < high
        assert 0.5 == document["baseline"]["roc_auc"]
        assert document["against_baseline"]["roc_auc"]["interval"][0] > 0
        assert 240 == document["rows"]["test"]

    def test_what_matters_is_seen_to_matter(self, released: Made) -> None:
        columns = released.read("metrics.json")["importance"]["columns"]

        assert "age" == columns[0]["column"]
        assert {"age", "city", "since"} == {column["column"] for column in columns}
        assert 0.0 == columns[-1]["value"]

    def test_it_starts_without_pandas_and_scikit_learn(self) -> None:
        """They cost 5 s of import and nothing here needs them."""
        code = "import sys, components.evaluate; print([m for m in ('sklearn', 'pandas', 'matplotlib') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

        assert "[]" == done.stdout.strip()


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_are_released_too(tmp_path: Path, task: str) -> None:
    made = Made(tmp_path, task=task)
    report = made.evaluate()

    assert "pass" == report.verdict
    assert {"multiclass": "f1_macro", "regression": "r2"}[task] == report.primary
    page = Page.of(tmp_path / "out" / "report.html")
    assert page.charts
    if task == "regression":
        assert 0.7 < made.read("metrics.json")["coverage"]["coverage"] <= 1.0


class TestHeld:
    def test_a_model_that_knows_nothing_is_held_and_everything_is_written(self, tmp_path: Path) -> None:
        made = Made(tmp_path, weight=0.0)
        with pytest.raises(GateHeld, match="better_than_baseline FAIL") as caught:
            made.evaluate()

        assert (1, "gate_held") == (caught.value.exit_code, caught.value.code)
        assert "held" == made.read("gate.json")["verdict"]
        assert {"bundle", "metrics.json", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}

    def test_an_export_that_answers_otherwise_is_held(self, tmp_path: Path) -> None:
        made = Made(tmp_path, native=2e-6)
        with pytest.raises(GateHeld, match="export_answers_as_native FAIL"):
            made.evaluate()

        assert 2e-6 == pytest.approx(made.outcome("export_answers_as_native")["value"], rel=1e-3)

    @pytest.mark.parametrize(
        ("how", "rule", "outcome", "said"),
        [
            ("lies", "served_answers_equal", "FAIL", "golden_differing is"),
            ("breaks", "served_answers_equal", "NO_DATA", "HTTP 500"),
            ("another", "served_answers_equal", "NO_DATA", "serves bundle 'ffffffffffff'"),
            ("dies", "served_answers_equal", "NO_DATA", "no model could be loaded"),
            ("dies", "served_in_time", "NO_DATA", "no model could be loaded"),
        ],
    )
    def test_a_server_that_does_not_answer_as_promised_holds(
        self, tmp_path: Path, how: str, rule: str, outcome: str, said: str
    ) -> None:
        made = Made(tmp_path, rows=60)
        with pytest.raises(GateHeld):
            made.evaluate(server=fake(how))

        found = made.outcome(rule)
        assert outcome == found["outcome"]
        assert said in found["reason"]

    def test_a_server_that_is_too_slow_is_held_by_a_stricter_rule(self, tmp_path: Path) -> None:
        made = Made(tmp_path, rows=60)
        strict = Rule(rule="served_in_time", metric="latency_p95_ms", op="<=", threshold=20, min_n=10)
        with pytest.raises(GateHeld, match="latency_p95_ms is 3"):
            made.evaluate(server=fake("slow"), params=step.Params(calls=10, resamples=200, rules=(strict,)))

    def test_too_few_rows_are_no_data(self, tmp_path: Path) -> None:
        made = Made(tmp_path, rows=20)
        with pytest.raises(GateHeld):
            made.evaluate()

        assert "NO_DATA" == made.outcome("better_than_baseline")["outcome"]

    def test_an_unknown_profile_is_refused_before_anything_is_done(self, tmp_path: Path) -> None:
        made = Made(tmp_path, rows=40)
        with pytest.raises(ConfigError, match="kryonix"):
            made.evaluate(params=step.Params(profile="no-such"))

        assert not (tmp_path / "out").exists()

    def test_a_missing_input_is_named(self, tmp_path: Path) -> None:
        made = Made(tmp_path, rows=40)
        (tmp_path / "trained" / "native_test.npy").unlink()
        with pytest.raises(SourceError, match=r"native_test\.npy"):
            made.evaluate()


class TestChampion:
    def test_a_worse_candidate_is_held_against_its_champion(self, released: Made, tmp_path: Path) -> None:
        """It beats the constant, and loses more than 0.01 on the same rows."""
        worse = Made(tmp_path, weight=0.2)
        spoiled = _noisy(worse)
        with pytest.raises(GateHeld, match="not_worse_than_champion FAIL"):
            spoiled.evaluate(champion=released.root / "out" / "bundle")

        rule = spoiled.outcome("not_worse_than_champion")
        assert rule["value"] < -0.01 == rule["bound"]
        assert rule["interval"][0] < rule["value"] < rule["interval"][1]
        assert "PASS" == spoiled.outcome("better_than_baseline")["outcome"]

    def test_an_equal_candidate_is_released_and_its_card_remembers(self, released: Made) -> None:
        champion = released.root / "out" / "bundle"
        released.evaluate("second", champion=champion)

        assert 0.0 == released.outcome("not_worse_than_champion", "second")["value"]
        card = json.loads((released.root / "second/bundle/card.json").read_text(encoding="utf-8"))
        assert [released.read("gate.json")["bundle_id"]] == [entry["bundle_id"] for entry in card["history"]]

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda folder: (folder / "graph.onnx").write_bytes(b"changed"), "graph.onnx"),
            (lambda folder: (folder / "graph.onnx").unlink(), "graph.onnx"),
        ],
        ids=["changed", "missing"],
    )
    def test_a_champion_that_cannot_be_compared_with_holds(
        self, released: Made, tmp_path: Path, spoil: Any, said: str
    ) -> None:
        """NO_DATA, never a silent pass."""
        import shutil

        broken = tmp_path / "champion"
        shutil.copytree(released.root / "out" / "bundle", broken)
        spoil(broken)
        made = Made(tmp_path / "made", rows=60)
        with pytest.raises(GateHeld, match="not_worse_than_champion NO_DATA"):
            made.evaluate(champion=broken)

        assert said in made.read("metrics.json")["champion"]["reason"]


def _noisy(made: Made) -> Made:
    """The same rows, answered by a model that also listens to noise: the date."""
    from tests.small_graph import Linear, graph

    model = Linear(
        numeric=(0, 2), median=np.array([50.0, 18500.0]), mean=np.array([50.0, 18800.0]), scale=np.array([12.0, 600.0]),
        weights=np.array([[1.0], [2.0]]), missing_weights=np.zeros((2, 1)), categorical=(1,), levels=(2,),
        tables=(np.zeros((4, 1)),), intercept=np.zeros(1),
    )  # fmt: skip
    trained = made.root / "trained"
    (trained / "model" / "graph.onnx").write_bytes(graph(model, features=3, classes=2))
    draft = made.root / "noisy"
    made._write(draft, {p.name: p.read_bytes() for p in (trained / "model").iterdir() if p.name != "golden.json"})
    post = json.loads((draft / "post.json").read_text(encoding="utf-8"))
    bundles.seal(draft, manifest={"family": "tabular", "line": LINE, **_manifest_of(made.contract, post)})
    opened = bundles.open_bundle(draft, "cpu")
    golden = json.loads((trained / "model" / "golden.json").read_text(encoding="utf-8"))
    golden["answers"] = bundles.answerer(opened).answer(golden["rows"])
    (trained / "model" / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    x = np.load(made.root / "features" / "x_test.npy", allow_pickle=False)
    (trained / "native_test.npy").write_bytes(_npy(opened.run("graph.onnx", x)["y"]))
    return made


class Page(HTMLParser):
    """A report, checked: every tag closes, nothing is loaded from outside, every chart is well-formed XML."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    @classmethod
    def of(cls, path: Path) -> "Page":
        page = cls()
        raw = path.read_text(encoding="utf-8")
        page.feed(raw)
        assert [] == page.open
        parts = [part.partition("</svg>")[0] for part in raw.split("<svg ")[1:]]
        page.charts = [ElementTree.fromstring(f"<svg {part}</svg>") for part in parts]
        return page

    charts: list[ElementTree.Element]


class TestReport:
    def test_the_page_is_whole_and_needs_nothing_from_outside(self, released: Made) -> None:
        page = Page.of(released.root / "out" / "report.html")

        assert [] == page.links
        for shown in ("tabular@club", "passed", "ROC", "By segment", "What it looks at", "What was tried", "Over HTTP"):
            assert shown in page.text
        assert len(page.charts) >= 8

    def test_every_mark_lies_inside_its_chart(self, released: Made) -> None:
        for chart in Page.of(released.root / "out" / "report.html").charts:
            _, _, width, height = map(float, chart.attrib["viewBox"].split())
            for mark in chart.iter():
                for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                    if name in mark.attrib:
                        assert -1 <= float(mark.attrib[name]) <= limit + 1, mark.attrib

    def test_names_from_the_data_cannot_break_out_of_the_page(self, tmp_path: Path) -> None:
        """A class called like a tag is shown, not run."""
        from esteira.report import render

        bad = "<script>alert(1)</script>"
        y = Classified(
            np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 1]), (bad, "b")
        )
        table = heldback.TestTable(
            rows=[{"city": bad}] * 3, truths=[bad, "b", "b"], x=np.zeros((3, 1), np.float32),
            y_train=np.array([0, 1]), groups=None,
        )  # fmt: skip
        agreed = TableContract(
            line=LINE, target=Target(name=bad, task="binary", classes=(bad, "b")),
            columns=(Column(name="city", kind="category"),),
        )  # fmt: skip
        answers = [
            {"prediction": y.classes[code], "probabilities": dict(zip(y.classes, row, strict=True))}
            for code, row in zip(y.predicted.tolist(), y.probabilities.tolist(), strict=True)
        ]
        own = scores(table.truths, answers)
        measured = measuring.measure(table, answers, agreed, own, resamples=200, seed=0)
        (tmp_path / "page.html").write_text(
            render(
                {**measured.document, "champion": None}, {"verdict": "held", "summary": bad, "rules": []}, measured.y
            ),
            encoding="utf-8",
        )

        page = Page.of(tmp_path / "page.html")
        assert bad in page.text


class TestSlices:
    ROWS: tuple[dict[str, Any], ...] = tuple(
        {"age": float(k), "city": "Porto" if k % 2 else None, "flat": 1.0, "note": "text"} for k in range(100)
    )
    COLUMNS = (
        Column(name="age", kind="number"),
        Column(name="city", kind="category"),
        Column(name="flat", kind="number"),
        Column(name="note", kind="text"),
    )

    def test_every_row_lies_in_one_slice_of_each_column(self) -> None:
        parts = slices.cut(self.COLUMNS, self.ROWS)

        assert {"age", "city"} == {part.column for part in parts}, "a constant and a text are not cut"
        for column in ("age", "city"):
            index = np.concatenate([part.index for part in parts if part.column == column])
            assert list(range(100)) == sorted(index.tolist())
        assert ["age in [0, 24]", "age in [25, 49]", "age in [50, 74]", "age in [75, 99]"] == [
            part.name for part in parts if part.column == "age"
        ]

    def test_a_group_that_is_clearly_worse_is_weak(self) -> None:
        truth = np.arange(100) % 2
        p = np.where(np.arange(100) < 75, truth, 1 - truth) * 0.8 + 0.1
        y = Classified(truth, np.column_stack([1 - p, p]), (p > 0.5).astype(np.int64), ("a", "b"))
        table = slices.score(slices.cut(self.COLUMNS, self.ROWS), y, "accuracy", 0.75, seed=0, min_n=20)

        assert ["age in [75, 99]"] == [part["segment"] for part in table if part["weak"]]

    def test_a_score_that_a_group_does_not_define_is_null_with_a_reason(self) -> None:
        y = Classified(np.zeros(100, np.int64), np.tile([0.6, 0.4], (100, 1)), np.zeros(100, np.int64), ("a", "b"))
        table = slices.score(slices.cut(self.COLUMNS, self.ROWS), y, "roc_auc", None, seed=0)

        assert all(part["value"] is None and part["reason"] for part in table)

    def test_an_error_is_weak_when_it_is_larger(self) -> None:
        y = Estimated(np.zeros(100), np.where(np.arange(100) < 50, 1.0, 3.0) + np.arange(100) % 3 * 0.1)
        table = slices.score(slices.cut(self.COLUMNS, self.ROWS), y, "mae", 2.1, seed=0, min_n=20)

        assert ["age in [50, 74]", "age in [75, 99]"] == [part["segment"] for part in table if part["weak"]]


class TestDifference:
    NATIVE: ClassVar[dict[str, Any]] = {
        "prediction": "yes",
        "probabilities": {"no": 0.25, "yes": 0.75},
        "interval": None,
    }

    @pytest.mark.parametrize(
        "got",
        [
            {
                "prediction": "yes",
                "probabilities": {"no": 0.25, "yes": 0.75 + 9e-7},
                "interval": None,
                "warnings": ["x"],
            },
            {"prediction": "yes", "probabilities": {"yes": 0.75, "no": 0.25}, "interval": None},
        ],
        ids=["within-the-tolerance", "another-order"],
    )
    def test_what_agrees(self, got: dict[str, Any]) -> None:
        assert "" == probe.difference(self.NATIVE, got, 1e-6)

    @pytest.mark.parametrize(
        ("got", "said"),
        [
            ({**NATIVE, "prediction": "no"}, "prediction"),
            ({**NATIVE, "prediction": True}, "prediction"),
            ({**NATIVE, "probabilities": {"no": 0.25, "yes": 0.75 + 2e-6}}, "probabilities.yes"),
            ({**NATIVE, "probabilities": {"yes": 0.75}}, "probabilities"),
            ({"prediction": "yes"}, "probabilities"),
            ({**NATIVE, "interval": [0, 1]}, "interval"),
        ],
    )
    def test_what_differs_is_named(self, got: dict[str, Any], said: str) -> None:
        assert probe.difference(self.NATIVE, got, 1e-6).startswith(said)

    def test_a_value_is_compared_relative_to_its_size(self) -> None:
        assert "" == probe.difference({"prediction": 1e6}, {"prediction": 1e6 + 0.5}, 1e-6)
        assert probe.difference({"prediction": 1e6}, {"prediction": 1e6 + 2}, 1e-6)
        assert "" == probe.difference({"prediction": 5.0}, {"prediction": 5}, 1e-6), "JSON may drop a point"

    @pytest.mark.parametrize(("native", "exported"), [((2, 3), (2, 2)), ((4,), (4, 1))])
    def test_outputs_of_another_shape_are_infinitely_far(
        self, native: tuple[int, ...], exported: tuple[int, ...]
    ) -> None:
        assert (float("inf"), native[0]) == measuring.parity(np.zeros(native), np.zeros(exported), {})

    def test_one_label_that_differs_is_counted(self) -> None:
        a, b = np.array([[0.5000001, 0.4999999], [0.9, 0.1]]), np.array([[0.4999999, 0.5000001], [0.9, 0.1]])

        assert 1 == measuring.parity(a, b, {})[1]


class TestServerLife:
    def test_it_is_stopped_on_every_way_out(self, released: Made) -> None:
        server = probe.Server(released.root / "out" / "bundle", command=fake("sleeps"))

        def fail_in_the_middle() -> None:
            with server:
                raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            fail_in_the_middle()

        assert not _lives(server._process.pid)

    def test_a_server_that_never_says_ready_is_not_waited_for(self, released: Made) -> None:
        with probe.Server(released.root / "out" / "bundle", patience=0.5, command=fake("sleeps")) as server:
            measured = server.measure([], [], calls=1)

        assert "not ready after 0.5 s" in measured.reason
        assert measured.percentile(0.95) is None

    def test_percentiles_are_nearest_ranks(self) -> None:
        measured = probe.Measured(milliseconds=tuple(float(k) for k in range(100, 0, -1)))

        assert (50.0, 95.0, 100.0) == tuple(measured.percentile(share) for share in (0.5, 0.95, 1.0))


def _lives(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected by whoever inherited it does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


class TestRealServer:
    """One boot of the real Bento, as a separate process on a real socket."""

    def test_the_real_server_answers_the_golden_rows_as_the_native_model_does(self, tmp_path: Path) -> None:
        made = Made(tmp_path)
        report = made.evaluate(server=probe.COMMAND)

        assert "pass" == report.verdict
        serving = made.read("serving.json")
        assert (10, 0, 50) == (serving["golden"], serving["differing"], serving["calls"])
        assert "cpu" == serving["device"]
        assert serving["p95_ms"] < 100

    def test_kill_9_of_the_step_leaves_no_server(self, tmp_path: Path, released: Made) -> None:
        """The server's whole tree ends with the process that asked for it."""
        code = (
            "import pathlib, sys, time\nfrom esteira import probe\n"
            "with probe.Server(pathlib.Path(sys.argv[1])) as server:\n"
            "    server.measure([], [], calls=0)\n    print(server._process.pid, flush=True)\n    time.sleep(600)\n"
        )
        asking = subprocess.Popen(
            [sys.executable, "-c", code, str(released.root / "out" / "bundle")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        with asking:
            assert asking.stdout is not None
            pid = int(asking.stdout.readline())
            asking.send_signal(signal.SIGKILL)
        until = time.monotonic() + 20
        while _lives(pid) and time.monotonic() < until:
            time.sleep(0.1)

        assert not _lives(pid)


class TestOwnScores:
    """A family says what counts first, and may add scores that nobody else knows."""

    def _measured(self, own: dict[str, Score]) -> measuring.Measurement:
        rng = np.random.default_rng(1)
        truths = rng.normal(size=60)
        answers = [{"prediction": float(y), "interval": None} for y in truths + rng.normal(size=60) * 0.1]
        table = heldback.TestTable(
            rows=[{"age": 1.0}] * 60, truths=truths.tolist(), x=np.zeros((60, 1), np.float32),
            y_train=rng.normal(size=90), groups=None,
        )  # fmt: skip
        return measuring.measure(table, answers, contract("regression"), own, resamples=200, seed=0)

    def test_the_familys_first_score_is_what_the_gate_judges(self) -> None:
        document = self._measured({"mae": Score(0.1, False)}).document

        assert ["mae", "r2", "rmse", "mse"] == list(document["metrics"])
        assert "mae" == document["primary"]
        low, high = document["intervals"]["mae"]
        assert low < document["metrics"]["mae"] < high
        assert document["against_baseline"]["mae"]["value"] > 0.5, "less error is a gain"

    def test_a_score_of_its_own_is_kept_as_it_says(self) -> None:
        own = {"r2": Score(0.9), "within_a_metre": Score(0.25), "lost": Score(None, False, "nobody got lost")}
        document = self._measured(own).document

        assert (0.25, None) == (document["metrics"]["within_a_metre"], document["metrics"]["lost"])
        assert (True, False) == tuple(document["higher_is_better"][name] for name in ("within_a_metre", "lost"))
        assert "nobody got lost" == document["reasons"]["lost"]

    def test_a_first_score_that_cannot_be_resampled_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="is one of r2, rmse, mae, mse, but that of tabular@club is 'charm'"):
            self._measured({"charm": Score(1.0)})

    def test_what_matters_for_an_error_is_what_makes_it_grow(self) -> None:
        """Importance is positive for a column that helps, whichever way the score counts."""

        class Summing:
            def run(self, _stage: str, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
                return {"y": x[:, 0].astype(np.float64)}

        x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        y = Estimated(x[:, 0].astype(np.float64), x[:, 0].astype(np.float64))
        found = measuring.importance(Summing(), x, y, {"used": [0], "idle": [1]}, "mae", seed=0)  # type: ignore[arg-type]

        assert ["used", "idle"] == [entry["column"] for entry in found["columns"]]
        assert found["columns"][0]["value"] > 0.5 > found["columns"][1]["value"] == 0
