"""Where a bundle runs: the device that is asked for, the one that is named, and on a GPU the same answers as on the CPU.

Which session is made when is shown on a runtime of the same shape as ONNX Runtime; what needs a GPU is skipped without one.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from esteira.automl.kinds import make
from esteira.bundle import open_bundle, seal
from esteira.errors import ConfigError
from esteira.onnx.graph import Graph
from esteira.onnx.session import CPU, CUDA, left_to_cpu, start
from tests.test_kinds_smooth import rows


@dataclass(frozen=True)
class Node:
    """One operator, as ONNX Runtime names it."""

    op_type: str


@dataclass(frozen=True)
class Named:
    """An input or output."""

    name: str


@dataclass(frozen=True)
class Part:
    """Operators of one provider."""

    ep_name: str
    nodes: tuple[Node, ...]

    def get_nodes(self) -> Sequence[Node]:
        return self.nodes


class Session:
    """A session that knows where its operators went."""

    def __init__(self, runtime: "Runtime", options: "Options", providers: Sequence[str]) -> None:
        usable = [name for name in providers if name == CPU or runtime.driver]
        self._parts = []
        if "session.record_ep_graph_assignment_info" in options.entries:
            here = [op for op in runtime.operators if usable[0] == CUDA and op not in runtime.without_kernel]
            rest = [op for op in runtime.operators if op not in here]
            self._parts = [Part(CUDA, tuple(map(Node, here))), Part(CPU, tuple(map(Node, rest)))]
        self._providers = usable
        self.falls_back = True
        self._sess = self

    def get_inputs(self) -> list[Named]:
        return [Named("x")]

    def get_outputs(self) -> list[Named]:
        return [Named("y")]

    def run(self, outputs: Sequence[str], given: Mapping[str, Any], options: None) -> list[Any]:
        return [given["x"] for _ in outputs]

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self._parts

    def disable_fallback(self) -> None:
        self.falls_back = False


class Options:
    """What is asked of a session."""

    def __init__(self) -> None:
        self.intra_op_num_threads = self.inter_op_num_threads = self.log_severity_level = 0
        self.enable_cpu_mem_arena = True
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


@dataclass(eq=False)
class Runtime:
    """ONNX Runtime as far as a bundle asks for it.

    Attributes:
        gpu: whether it is the package for GPUs; it finds CUDA only once its libraries are loaded.
        driver: whether there is a GPU with its driver.
        operators: of every graph; those of `without_kernel` run on the CPU.
    """

    gpu: bool
    driver: bool
    operators: tuple[str, ...] = ("MatMul", "Add")
    without_kernel: tuple[str, ...] = ("TreeEnsemble",)
    loaded: int = 0
    made: list[Sequence[str]] = field(default_factory=list)
    __version__: str = "0.0"
    SessionOptions = Options

    def preload_dlls(self) -> None:
        print("a word of a library")
        self.loaded += 1

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU] if self.gpu and self.loaded else [CPU]

    def InferenceSession(self, content: bytes, options: Options, providers: Sequence[str]) -> Session:
        if content == b"bad":
            raise RuntimeError("INVALID_PROTOBUF")
        self.made.append(providers)
        return Session(self, options, providers)


def _start(runtime: Runtime, device: str, content: bytes = b"") -> Any:
    return start(runtime, content, folder=Path("bundle"), stage="graph.onnx", device=device)


TREES = ("TreeEnsemble", "Softmax")


@pytest.mark.parametrize(
    ("runtime", "device", "expected"),
    [
        (Runtime(gpu=False, driver=False), "cpu", "cpu"),
        (Runtime(gpu=False, driver=False), "auto", "cpu"),
        (Runtime(gpu=True, driver=False), "auto", "cpu"),
        (Runtime(gpu=True, driver=True), "auto", "cuda"),
        (Runtime(gpu=True, driver=True), "cuda", "cuda"),
        (Runtime(gpu=True, driver=True), "cpu", "cpu"),
        (Runtime(gpu=True, driver=True, operators=TREES), "auto", "cpu"),
        (Runtime(gpu=True, driver=True, operators=TREES), "cuda", "cuda"),
    ],
    ids=["no gpu, cpu", "no gpu, auto", "no driver, auto", "auto", "cuda", "cpu", "trees, auto", "trees, cuda"],
)
def test_auto_takes_the_gpu_only_where_all_of_the_graph_runs_there(
    runtime: Runtime, device: str, expected: str
) -> None:
    started = _start(runtime, device)

    assert expected == started.device
    assert (CUDA if expected == "cuda" else CPU) == started.session.get_providers()[0]


def test_a_session_on_the_gpu_never_moves_to_the_cpu_by_itself() -> None:
    """Its answers would go on to say `cuda`."""
    assert not _start(Runtime(gpu=True, driver=True), "cuda").session.falls_back


def test_what_has_no_kernel_on_the_gpu_is_named() -> None:
    session = _start(Runtime(gpu=True, driver=True, operators=TREES), "cuda").session

    assert ["TreeEnsemble"] == left_to_cpu(session)


@pytest.mark.parametrize("runtime", [Runtime(gpu=False, driver=False), Runtime(gpu=True, driver=False)])
def test_cuda_without_a_gpu_is_refused_with_its_cure(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="NVIDIA GPU") as caught:
        _start(runtime, "cuda")

    assert ("no_gpu", "ESTEIRA_DEVICE") == (caught.value.code, caught.value.where)


def test_a_graph_that_cannot_be_loaded_is_named_on_every_device() -> None:
    for device in ("cpu", "auto", "cuda"):
        with pytest.raises(ConfigError, match="INVALID_PROTOBUF") as caught:
            _start(Runtime(gpu=True, driver=True), device, b"bad")
        assert "bundle_graph" == caught.value.code


def test_the_libraries_of_the_gpu_are_loaded_once_and_say_nothing_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard output carries the READY line."""
    runtime = Runtime(gpu=True, driver=True)
    for _ in range(3):
        _start(runtime, "auto")

    said = capsys.readouterr()
    assert (1, "") == (runtime.loaded, said.out)
    assert "a word of a library" in said.err


def test_a_cpu_is_asked_for_nothing_of_a_gpu() -> None:
    runtime = Runtime(gpu=True, driver=True)

    _start(runtime, "cpu")

    assert (0, [[CPU]]) == (runtime.loaded, runtime.made)


def test_onnx_runtime_tells_which_operators_run_where() -> None:
    """What the choice of the device stands on; the CPU's own are told without a GPU too."""
    graph = Graph(3)
    product = graph.add("MatMul", graph.double("x"), graph.constant(np.eye(3), np.float64))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    session = onnxruntime.InferenceSession(graph.finish(product, classes=3), options, providers=[CPU])

    assert "MatMul" in left_to_cpu(session)


def test_the_call_below_a_sessions_own_is_there_and_answers_alike() -> None:
    """The seam by which a bundle runs: when ONNX Runtime changes its inside, this says so."""
    content = _identity()
    started = start(onnxruntime, content, folder=Path("bundle"), stage="graph.onnx", device="cpu")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)

    found = started.run(started.outputs, {started.entry: x}, None)

    assert ("x", ("y",)) == (started.entry, started.outputs)
    np.testing.assert_array_equal(started.session.run(["y"], {"x": x})[0], found[0])
    with pytest.raises(Exception, match="Got invalid dimensions"):
        started.run(started.outputs, {started.entry: x[:, :2]}, None)


def test_memory_of_a_large_batch_is_given_back() -> None:
    """A service that once answered many rows at once does not stay as large; measured in a process of its own."""
    script = (
        "import resource, sys, psutil, numpy as np, onnxruntime\n"
        "from pathlib import Path\n"
        "from esteira.onnx.session import start\n"
        "from tests.test_gpu import _wide\n"
        "started = start(onnxruntime, _wide(), folder=Path('b'), stage='graph.onnx', device='cpu')\n"
        "held = lambda: psutil.Process().memory_info().rss / 1e6\n"
        "before = held()\n"
        "started.run(started.outputs, {started.entry: np.zeros((100_000, 3), np.float32)}, None)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        "print(peak - before, held() - before)"
    )
    root = Path(__file__).resolve().parents[1]

    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)

    grown, kept = map(float, done.stdout.split())
    assert grown > 100, "the batch takes memory, or nothing is shown"
    assert kept < grown / 3


def _identity() -> bytes:
    graph = Graph(3)
    return graph.finish(graph.double("x"), classes=3)


def _wide() -> bytes:
    graph = Graph(3)
    wide = graph.add("MatMul", graph.double("x"), graph.constant(np.ones((3, 200)), np.float64))
    narrow = graph.add("MatMul", graph.add("Relu", wide), graph.constant(np.ones((200, 3)), np.float64))
    return graph.finish(narrow, classes=3)


@pytest.fixture
def gpu() -> None:
    """A GPU that ONNX Runtime can use."""
    onnxruntime.preload_dlls()
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu: this ONNX Runtime answers on the CPU only")
    graph = Graph(1)
    content = graph.finish(graph.double("x"), classes=1)
    if onnxruntime.InferenceSession(content, providers=[CUDA, CPU]).get_providers()[0] != CUDA:
        pytest.skip("needs an NVIDIA GPU with its driver")


KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "neural_network": {"epochs": 3},
    "nearest_neighbours": {},
    "lightgbm": {},
    "extra_trees": {},
}


def _sealed(folder: Path, kind: str, task: str) -> Path:
    x, y = rows(task, 400)
    classes = {"binary": 2, "multiclass": 3, "regression": None}[task]
    made = make(kind, KINDS[kind], task=task, classes=classes, categorical=[4], seed=7)
    made.fit(x, y)
    graph = Graph(x.shape[1])
    folder.mkdir()
    (folder / "graph.onnx").write_bytes(graph.finish(made.draw(graph, "x"), classes=classes))
    seal(folder, manifest={"family": "tabular", "line": "tabular", "stages": ["graph.onnx"]})
    return folder


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_answers_as_the_cpu_does(kind: str, task: str, tmp_path: Path) -> None:
    """Within 1e-6 of a probability or of a value's size, and with the same labels; alone and among others."""
    folder = _sealed(tmp_path / "b", kind, task)
    here, there = open_bundle(folder, "cpu"), open_bundle(folder, "cuda")
    assert ("cpu", "cuda") == (here.device, there.device)

    x, _ = rows(task, 1000, seed=3)
    expected, found = (opened.run("graph.onnx", x)["y"] for opened in (here, there))
    alone = np.concatenate([there.run("graph.onnx", x[at : at + 1])["y"] for at in range(50)])

    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(alone, expected[:50], rtol=1e-6, atol=1e-6)
    if task != "regression":
        np.testing.assert_array_equal(expected.argmax(axis=1), found.argmax(axis=1))


@pytest.mark.usefixtures("gpu")
def test_trees_stay_on_the_cpu_where_the_device_is_left_open(tmp_path: Path) -> None:
    assert "cpu" == open_bundle(_sealed(tmp_path / "trees", "lightgbm", "binary"), "auto").device
    assert "cuda" == open_bundle(_sealed(tmp_path / "linear", "linear", "binary"), "auto").device
