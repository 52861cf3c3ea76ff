"""Int8 weights for the large matrix products of a graph; every other node stays as it is. It judges nothing.

Weights are rounded once, inputs when a row is answered: each row by its own largest input, so that no answer depends on
which other rows are asked with it, as it would with one scale for all of them. In between are whole numbers, whose sums
are the same on every processor and in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

SMALLEST = 16_384
"""Weights of a product below which the nodes that round its inputs cost more than they save: 5 us for one row, on one core."""
MOST_MEMBERS = 16  # matrices of one product; each becomes a node of its own

# Of a weight, 7 bits and no more: AVX2 adds two products of a byte each in 16 bits, and cuts off what is above without a
# word. 2 x 255 x 64 fits. Processors with VNNI would take 127, and would answer otherwise than those without.
_HIGHEST = 64
_BOTH, _UP = 127.0, 255.0  # steps of an input: to either side of zero, and of one that is never negative
_TINY = 1e-30  # in place of the largest input of a row of zeros
_TYPES = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT: np.float32}


@dataclass(frozen=True)
class Product:
    """A matrix product with constant weights.

    Attributes:
        name: of its result in the graph.
        shape: of the weights, `(inputs, outputs)`, or `(members, inputs, outputs)`.
        left: why it was left as it is; empty when its weights are int8 now.
    """

    name: str
    shape: tuple[int, ...]
    left: str = ""

    @property
    def weights(self) -> int:
        """How many numbers they are."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Quantised:
    """A graph, and what became of it.

    Attributes:
        content: the graph; the same bytes for the same graph.
        products: all of its matrix products with constant weights, in the order of the graph.
        trees: how many trees it has; they are left as they are.
    """

    content: bytes
    products: tuple[Product, ...]
    trees: int


def quantise(content: bytes, *, smallest: int = SMALLEST) -> Quantised:
    """Replace the large matrix products of a graph by products of whole numbers.

    Args:
        content: the graph.
        smallest: weights that a product must have.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    leading = _leading(model)
    rounded: dict[str, _Rounded] = {}
    nodes: list[Any] = []
    tensors: list[Any] = []
    products: list[Product] = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or node.input[0] in weights:
            nodes.append(node)
            continue
        tensor = weights[node.input[1]]
        name, entry = node.output[0], node.input[0]
        left = _why_left(node, tensor, leading.get(entry), smallest, graph.node)
        products.append(Product(name, tuple(tensor.dims), left))
        if left:
            nodes.append(node)
            continue
        part = _Part(name, tensor.data_type)
        if entry not in rounded:
            rounded[entry] = part.rounded(entry, signed=not _from_relu(entry, graph.node))
        part.product(rounded[entry], numpy_helper.to_array(tensor), shared=leading.get(entry) == 1)
        nodes += part.nodes
        tensors += part.tensors
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *tensors])
    checker.check_model(model)
    return Quantised(model.SerializeToString(deterministic=True), tuple(products), _trees(graph.node))


def weights_of(values: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Weights (..., inputs, outputs) as whole numbers of 7 bits, and what one step is worth, a scale an output (..., 1, outputs)."""
    largest = np.abs(values).max(axis=-2, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, 1.0) / _HIGHEST
    return np.rint(values / scale).astype(np.int8), scale


def _leading(model: Any) -> dict[str, int]:
    """The first dimension of each value, where it is a number."""
    found = {}
    for value in shape_inference.infer_shapes(model).graph.value_info:
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].HasField("dim_value"):
            found[value.name] = int(shape.dim[0].dim_value)
    return found


def _why_left(node: Any, tensor: Any, leading: int | None, smallest: int, nodes: Sequence[Any]) -> str:
    count = int(np.prod(tensor.dims))
    if count < smallest:
        return f"fewer than {smallest:,} weights"
    if tensor.data_type not in _TYPES or len(tensor.dims) not in {2, 3}:
        return "no matrix of float32 or double"
    if len(tensor.dims) == 3 and (leading not in {1, tensor.dims[0]} or tensor.dims[0] > MOST_MEMBERS):
        return "its members cannot be told apart"
    if _ranks(node, nodes):
        return "distances are small differences of large numbers"
    return ""


def _ranks(node: Any, nodes: Sequence[Any]) -> bool:
    """Whether rows are picked by the product: nearest neighbours."""
    after = {name for other in nodes if node.output[0] in other.input for name in other.output}
    return any(other.op_type == "TopK" and after & set(other.input) for other in nodes)


def _from_relu(name: str, nodes: Sequence[Any]) -> bool:
    return any(name in node.output and node.op_type == "Relu" for node in nodes)


def _trees(nodes: Sequence[Any]) -> int:
    lists = [part for node in nodes if node.op_type == "TreeEnsemble" for part in node.attribute]
    return sum(len(part.ints) for part in lists if part.name == "tree_roots")


@dataclass(frozen=True)
class _Rounded:
    """A value in bytes: `(size / steps) * (value - zero)` is nearly what it was; `size` is each row's largest input."""

    value: str
    size: str
    steps: float
    zero: str


class _Part:
    """Nodes and constants that take the place of one product."""

    def __init__(self, name: str, kind: int) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._name, self._kind, self._type = name, kind, _TYPES[kind]

    def rounded(self, value: str, *, signed: bool) -> _Rounded:
        """Each row of a value as bytes around 128, or from 0 up."""
        size = self._add("Abs", value) if signed else value
        size = self._add("ReduceMax", size, self._constant([-1], np.int64), keepdims=1)
        size = self._add("Max", size, self._constant(_TINY))
        steps = _BOTH if signed else _UP
        scaled = self._add("Mul", value, self._add("Div", self._constant(steps), size))
        # A cast cuts the fraction off; half a step before it makes that the nearest step.
        shifted = self._add("Add", scaled, self._constant(128.5 if signed else 0.5))
        found = self._add("Cast", shifted, to=TensorProto.UINT8)
        return _Rounded(found, size, steps, self._constant(128, np.uint8) if signed else "")

    def product(self, given: _Rounded, values: NDArray[Any], *, shared: bool) -> None:
        """The product with weights (inputs, outputs) or (members, inputs, outputs), under the name of the one that it replaces.

        Args:
            shared: all members take the same input, of shape (1, rows, inputs).
        """
        whole, scale = weights_of(values)
        if values.ndim == 2:
            sums, scale = self._sum(given.value, whole, given.zero), scale[0]
        else:
            count = len(values)
            parts = [given.value] * count if shared else self._split(given.value, count)
            # ONNX Runtime packs a matrix once and for all; three dimensions it would pack at every call.
            found = [self._sum(part, one, given.zero) for part, one in zip(parts, whole, strict=True)]
            sums = found[0] if count == 1 else self._add("Concat", *found, axis=0)
        sized = self._add("Mul", self._add("Cast", sums, to=self._kind), given.size)
        worth = self._constant(scale / given.steps)
        self.nodes.append(helper.make_node("Mul", [sized, worth], [self._name]))

    def _sum(self, value: str, weights: NDArray[np.int8], zero: str) -> str:
        return self._add("MatMulInteger", value, self._constant(weights, np.int8), *([zero] if zero else []))

    def _split(self, value: str, count: int) -> list[str]:
        if count == 1:
            return [value]
        names = [f"{self._name}.{len(self.nodes)}.{at}" for at in range(count)]
        self.nodes.append(helper.make_node("Split", [value], names, axis=0, num_outputs=count))
        return names

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._name}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def _constant(self, value: Any, dtype: type[Any] | None = None) -> str:
        name = f"{self._name}.c{len(self.tensors)}"
        array = np.ascontiguousarray(np.asarray(value, dtype or self._type))
        # A number becomes an array of one dimension on the way; a scalar stays one.
        self.tensors.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name
