"""A small builder of ONNX graphs with pinned versions, so that a graph reads as the formula it is."""

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

OPSET = 18
ML_OPSET = 5
IR_VERSION = 10


class Graph:
    """A graph under construction: every method adds nodes and returns the name of a value.

    Args:
        features: width of the input `x`.
    """

    def __init__(self, features: int) -> None:
        self._features = features
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    @property
    def nodes(self) -> int:
        """Operators so far."""
        return len(self._nodes)

    @property
    def bytes(self) -> int:
        """What the constants so far weigh."""
        return sum(len(tensor.raw_data) for tensor in self._constants)

    def constant(self, value: Any, dtype: type | None = None) -> str:
        """A constant tensor."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype=dtype)), name))
        return name

    def scalar(self, value: Any, dtype: type) -> str:
        """A constant of rank 0."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One node with one output."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def add_all(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """One node with several outputs."""
        names = [f"v{len(self._nodes)}_{at}" for at in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def double(self, value: str) -> str:
        """Cast to double."""
        return self.add("Cast", value, to=TensorProto.DOUBLE)

    def columns(self, value: str, indexes: Sequence[int], width: int | None = None) -> str:
        """Some columns of a (rows, width) value, in the given order; width is that of the input by default."""
        if list(indexes) == list(range(self._features if width is None else width)):
            return value
        return self.add("Gather", value, self.constant(indexes, np.int64), axis=1)

    def probabilities(self, margin: str, classes: int, present: Sequence[int] | None = None) -> str:
        """Margins to probabilities: a sigmoid of (rows, 1) for two classes, a softmax of (rows, k) for more.

        Args:
            classes: width of the result.
            present: the classes that the k margins are of, when they are not all; the others get 0.
        """
        k = classes if present is None else len(present)
        if k > 2:
            found = self.add("Softmax", margin, axis=1)
        else:
            positive = self.add("Sigmoid", margin)
            negative = self.add("Sub", self.scalar(1.0, np.float64), positive)
            found = self.add("Concat", negative, positive, axis=1)
        return found if present is None else self.scattered(found, classes, present)

    def scattered(self, found: str, classes: int, present: Sequence[int]) -> str:
        """Probabilities of the classes that are present as probabilities of all; the others get 0."""
        if len(present) == classes:
            return found
        # No product with a matrix of ones and zeros: ONNX Runtime melts a scalar beside a MatMul into it as a float32.
        wider = self.add("Pad", found, self.constant([0, 0, 0, 1], np.int64))
        where = {code: at for at, code in enumerate(present)}
        return self.add(
            "Gather", wider, self.constant([where.get(c, len(present)) for c in range(classes)], np.int64), axis=1
        )

    def values(self, column: str, scale: float = 1.0, offset: float = 0.0) -> str:
        """(rows, 1) to (rows,), times scale, plus offset, each rounded on its own."""
        flat = self.add("Reshape", column, self.constant([-1], np.int64))
        if scale != 1.0:
            flat = self.add("Mul", flat, self.scalar(scale, np.float64))
        return self.add("Add", flat, self.scalar(offset, np.float64)) if offset != 0.0 else flat

    def finish(self, output: str, *, classes: int | None) -> builtins.bytes:
        """The checked model's bytes; `output` becomes `y`, of shape (rows, classes), or (rows,) when classes is None."""
        self._nodes.append(helper.make_node("Identity", [output], ["y"]))
        shape: list[Any] = ["rows"] if classes is None else ["rows", classes]
        graph = helper.make_graph(
            self._nodes,
            "esteira",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", self._features])],
            [helper.make_tensor_value_info("y", TensorProto.DOUBLE, shape)],
            self._constants,
        )
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
            producer_name="esteira",
        )
        checker.check_model(model)
        content: builtins.bytes = model.SerializeToString(deterministic=True)
        return content


def sigmoid(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of two classes, shape (rows, 2), of margins of shape (rows,), without overflow."""
    positive = np.where(margin >= 0, 1.0, np.exp(np.minimum(margin, 0.0))) / (1.0 + np.exp(-np.abs(margin)))
    return np.column_stack([1.0 - positive, positive])


def softmax(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of margins of shape (rows, classes)."""
    powers = np.exp(margins - margins.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
