"""ONNX Runtime sessions of a bundle's stages: their options, and the device that they really run on. Imports no `onnx`."""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esteira.errors import ConfigError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Run = Callable[[Sequence[str], Mapping[str, Any], None], Sequence[Any]]


@dataclass(frozen=True)
class Started:
    """A session that is ready, and where it runs.

    Attributes:
        entry, outputs: names of its input and of its outputs.
        run: `(outputs, {entry: x}, None)` to one array an output. It is the call below the session's own `run`, whose checks of
            names that are always the same take 1.2 us of the 9 that a hundred trees take.
    """

    session: Any
    device: Literal["cpu", "cuda"]
    entry: str
    outputs: tuple[str, ...]
    run: Run


def start(runtime: Any, content: bytes, *, folder: Path, stage: str, device: str) -> Started:
    """A session for one stage.

    Args:
        runtime: the module `onnxruntime`.
        content: the graph.
        folder: of the bundle.
        stage: name of the graph, for errors.
        device: `cpu`; `cuda`; or `auto`, which takes the GPU where there is one and it has a kernel for every operator
            of the graph. Trees have none, and a graph that goes to and fro is slower than one that stays.

    Raises:
        ConfigError: the graph cannot be loaded, or `cuda` is wanted and there is no GPU that can be used.
    """
    try:
        if device != "cpu" and _has_gpu(runtime):
            session = _on_gpu(runtime, content, folder)
            if session is not None and (device == "cuda" or not left_to_cpu(session)):
                return _started(session, "cuda")
        if device == "cuda":
            raise ConfigError(
                "device cuda needs an NVIDIA GPU that ONNX Runtime can use, but there is none here",
                code="no_gpu",
                where="ESTEIRA_DEVICE",
                cure="set ESTEIRA_DEVICE=cpu or auto, or install onnxruntime-gpu on a machine with a GPU",
            )
        return _started(runtime.InferenceSession(content, _options(runtime, folder), providers=[CPU]), "cpu")
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no public root
        raise ConfigError(
            f"a stage must load in ONNX Runtime {runtime.__version__}, but {str(error)[:300]}",
            code="bundle_graph", where=f"{folder}, {stage}", cure="export the model again with this version's esteira.onnx",
        ) from error  # fmt: skip


def left_to_cpu(session: Any) -> list[str]:
    """Operators of a session on a GPU that run on the CPU all the same, because no kernel of the GPU takes them."""
    parts = session.get_provider_graph_assignment_info()
    return sorted({node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()})


def _started(session: Any, device: Literal["cpu", "cuda"]) -> Started:
    outputs = tuple(output.name for output in session.get_outputs())
    return Started(session, device, session.get_inputs()[0].name, outputs, session._sess.run)


def _options(runtime: Any, folder: Path) -> Any:
    options = runtime.SessionOptions()
    # One row is too little work to share, and a service scales by workers. More threads would also add float32 trees up
    # in another order: 7e-3 off in a diamond's price, where one thread is equal to the last bit.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The arena keeps for good what the largest batch took (430 MB of 40,000 rows of a network), and is not faster for it.
    options.enable_cpu_mem_arena = False
    # A graph may point to weights in other files; those would escape the manifest, so they are looked for nowhere.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    return options


def _on_gpu(runtime: Any, content: bytes, folder: Path) -> Any | None:
    """A session whose first provider is the GPU; None where it cannot be used, such as without a driver."""
    options = _options(runtime, folder)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # What fails here is printed, and standard output is not ours to write to.
    with contextlib.redirect_stdout(sys.stderr):
        session = runtime.InferenceSession(content, options, providers=[CUDA, CPU])
    if session.get_providers()[0] != CUDA:
        return None
    # Else a fault of the GPU would move the session to the CPU without a word, and answers would go on to say `cuda`.
    session.disable_fallback()
    return session


@functools.cache
def _has_gpu(runtime: Any) -> bool:
    """Whether this ONNX Runtime is one for GPUs, with its libraries loaded; a driver may still be missing.

    CUDA and cuDNN come as Python packages, into which the loader of shared libraries does not look by itself.
    """
    with contextlib.redirect_stdout(sys.stderr):
        runtime.preload_dlls()
    return CUDA in runtime.get_available_providers()
