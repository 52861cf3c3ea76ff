"""The mathematics of a small network for tables: forward, backward, AdamW; on numpy arrays, or on torch tensors of a GPU.

Written once over the operators that both libraries share, with gradients by hand. What it takes after, because it matters on
tables: periodic embeddings of the numbers and a learned scale of each column (RealMLP, Holzmüller et al. 2024; Gorishniy et
al. 2022) and several members that are trained side by side and answer by their mean (TabM, Gorishniy et al. 2025).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, Any]

DECAYED = ("hidden", "out")  # beginnings of the names of weights that decay: matrices, no biases and no scales
SLOW = ("frequency", "phase")  # and of those that learn at a tenth of the rate
FAST = ("scale",)
MEMORY = 3  # epochs over which the weights that answer are averaged: what slow learning would give, an epoch early


@dataclass(frozen=True)
class Shape:
    """Sizes of a network.

    Attributes:
        numbers, others: columns that are numbers, and columns of 0 and 1.
        waves, embedded: cosines per number, and the columns that are made of them beside the number itself; 0 for none.
        hidden: width of each layer.
        outputs: classes, or 1.
        members: networks trained side by side.
    """

    numbers: int
    others: int
    waves: int
    embedded: int
    hidden: tuple[int, ...]
    outputs: int
    members: int

    @property
    def inputs(self) -> int:
        """Width of the first layer's input."""
        return self.numbers * (1 + self.embedded) + self.others

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""
        found: dict[str, tuple[int, ...]] = {}
        if self.embedded and self.numbers:
            found["frequency"] = found["phase"] = (self.numbers, 1, self.waves)
            found["mix"] = (self.numbers, self.waves, self.embedded)
            found["mix_bias"] = (self.numbers, 1, self.embedded)
        found["scale"] = (self.members, 1, self.inputs)
        widths = [self.inputs, *self.hidden]
        for at, (before, after) in enumerate(pairwise(widths)):
            found[f"hidden{at}"] = (self.members, before, after)
            found[f"bias{at}"] = (self.members, 1, after)
        found["out"] = (self.members, widths[-1], self.outputs)
        found["out_bias"] = (self.members, 1, self.outputs)
        return found


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs, batch, rate, decay, dropout: rate is AdamW's at its highest; decay is per step times the rate.
        smoothing: share of a label that is spread over all classes.
        seed: of the first weights, of the order of rows and of dropout.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    dropout: float
    smoothing: float
    seed: int


def start(shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
    """First weights, all in one vector."""
    parts = []
    for name, size in shape.sizes().items():
        if name == "frequency":
            part = rng.normal(0.0, 0.3, size)
        elif name == "phase":
            part = rng.uniform(-math.pi, math.pi, size)
        elif name == "scale":
            part = np.ones(size)
        elif name in {"mix_bias", "out_bias"}:
            part = np.zeros(size)
        elif name == "out":
            part = rng.normal(0.0, 0.1 / math.sqrt(size[1]), size)
        elif name.startswith("bias"):
            part = rng.uniform(-0.5, 0.5, size)
        else:
            part = rng.normal(0.0, math.sqrt((2.0 if name.startswith("hidden") else 1.0) / size[1]), size)
        parts.append(part.astype(np.float32).ravel())
    return np.concatenate(parts)


def views(shape: Shape, flat: Any) -> Arrays:
    """The weights in a vector, by name, without a copy."""
    found, at = {}, 0
    for name, size in shape.sizes().items():
        found[name] = flat[at : at + math.prod(size)].reshape(size)
        at += math.prod(size)
    return found


def forward(xp: Any, shape: Shape, w: Arrays, numbers: Any, others: Any, masks: Any = None) -> tuple[Any, Arrays]:
    """Margins (members, rows, outputs), and what `backward` needs.

    Args:
        numbers: (rows, numbers). others: (rows, others).
        masks: per layer what the activations (members, rows, width) are multiplied by, or None.
    """
    kept: Arrays = {}
    parts = [numbers]
    if "mix" in w:
        column = numbers.T[:, :, None]
        angle = column * (w["frequency"] * (2.0 * math.pi)) + w["phase"]
        waves = xp.cos(angle)
        mixed = waves @ w["mix"] + w["mix_bias"]  # (numbers, rows, embedded)
        parts.append(mixed.swapaxes(0, 1).reshape(len(numbers), shape.numbers * shape.embedded))
        kept |= {"column": column, "angle": angle, "waves": waves}
    inputs = xp.concatenate([*parts, others], axis=1)
    layer = inputs * w["scale"]
    kept |= {"inputs": inputs, "layers": [layer], "open": []}
    for at in range(len(shape.hidden)):
        margin = layer @ w[f"hidden{at}"] + w[f"bias{at}"]
        opened = margin > 0
        opened = opened * masks[at] if masks is not None else opened
        layer = margin * opened
        kept["open"].append(opened)
        kept["layers"].append(layer)
    return layer @ w["out"] + w["out_bias"], kept


def backward(xp: Any, shape: Shape, w: Arrays, g: Arrays, slope: Any, kept: Arrays) -> None:
    """Write the gradient of every weight into `g`.

    Args:
        slope: derivative of the loss by the margins (members, rows, outputs).
    """
    layers = kept["layers"]
    g["out"][...] = layers[-1].swapaxes(1, 2) @ slope
    g["out_bias"][...] = slope.sum(axis=1, keepdims=True)
    slope = slope @ w["out"].swapaxes(1, 2)
    for at in reversed(range(len(shape.hidden))):
        slope = slope * kept["open"][at]
        g[f"hidden{at}"][...] = layers[at].swapaxes(1, 2) @ slope
        g[f"bias{at}"][...] = slope.sum(axis=1, keepdims=True)
        slope = slope @ w[f"hidden{at}"].swapaxes(1, 2)
    g["scale"][...] = (slope * kept["inputs"]).sum(axis=1, keepdims=True)
    if "mix" not in w:
        return
    slope = (slope * w["scale"]).sum(axis=0)
    made = slope[:, shape.numbers : shape.numbers * (1 + shape.embedded)]
    mixed = made.reshape(len(made), shape.numbers, shape.embedded).swapaxes(0, 1)
    g["mix"][...] = kept["waves"].swapaxes(1, 2) @ mixed
    g["mix_bias"][...] = mixed.sum(axis=1, keepdims=True)
    turned = -xp.sin(kept["angle"]) * (mixed @ w["mix"].swapaxes(1, 2))
    g["phase"][...] = turned.sum(axis=1, keepdims=True)
    g["frequency"][...] = (turned * kept["column"]).sum(axis=1, keepdims=True) * (2.0 * math.pi)


def softmax(xp: Any, margins: Any) -> Any:
    """Probabilities along the last axis."""
    powers = xp.exp(margins - xp.amax(margins, -1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def train(
    device: "Device",
    shape: Shape,
    plan: Plan,
    numbers: NDArray[np.float32],
    others: NDArray[np.float32],
    targets: NDArray[np.float32],
    *,
    after: Callable[[int, Arrays], bool],
) -> None:
    """Train from scratch.

    Args:
        targets: one-hot classes (rows, outputs) for log loss, or values (rows, 1) for squared error.
        after: called with (epochs done, weights by name) after each epoch; False stops.
    """
    xp, rows, rng = device.xp, len(numbers), np.random.default_rng(plan.seed)
    flat = device.put(start(shape, rng))
    w = views(shape, flat)
    gradient, first, second = (device.put(np.zeros(len(flat), np.float32)) for _ in range(3))
    g = views(shape, gradient)
    mean = device.put(device.get(flat))
    rates, decays = (device.put(_spread(shape, of)) for of in (_rate_of, _decay_of))
    if shape.outputs > 1:
        targets = targets * np.float32(1 - plan.smoothing) + np.float32(plan.smoothing / shape.outputs)
    data = [device.put(part) for part in (numbers, others, targets)]
    batch = min(plan.batch, rows)
    steps = max(1, rows // batch)  # what is left over of an epoch comes in another one, as each has its own order
    done, total = 0, steps * plan.epochs
    for epoch in range(1, plan.epochs + 1):
        order = rng.permutation(rows)
        for step in range(steps):
            picked = device.index(order[step * batch : (step + 1) * batch])
            some, more, wanted = (part[picked] for part in data)
            done += 1
            # Up in the first twentieth, then down along a cosine; dropout leaves with it.
            phase = done / total
            rate = plan.rate * min(1.0, 20 * phase) * 0.5 * (1 + math.cos(math.pi * phase))
            masks = list(_masks(device, shape, batch, plan.dropout, rng)) if plan.dropout > 0 else None
            margins, kept = forward(xp, shape, w, some, more, masks)
            answer = softmax(xp, margins) if shape.outputs > 1 else margins
            backward(xp, shape, w, g, (answer - wanted) * (1.0 / batch), kept)
            first *= 0.9
            first += gradient * 0.1
            second *= 0.99
            gradient *= gradient
            gradient *= 0.01
            second += gradient
            size = xp.sqrt(second * (1 / (1 - 0.99**done)))
            size += 1e-8
            flat -= (first / size) * (rates * (rate / (1 - 0.9**done)))
            flat -= flat * (decays * (rate * plan.decay))
            mean += (flat - mean) * (1 / min(done, 1 + MEMORY * steps))
        if not after(epoch, views(shape, mean)):
            return


def _rate_of(name: str) -> float:
    return 0.1 if name.startswith(SLOW) else 5.0 if name.startswith(FAST) else 1.0


def _decay_of(name: str) -> float:
    return float(name.startswith(DECAYED) and "bias" not in name)


def _spread(shape: Shape, of: Callable[[str], float]) -> NDArray[np.float32]:
    return np.concatenate([np.full(math.prod(size), of(name), np.float32) for name, size in shape.sizes().items()])


def _masks(device: "Device", shape: Shape, rows: int, dropout: float, rng: np.random.Generator) -> Iterator[Any]:
    """Per layer 0 where an activation is left out, and what makes up for it elsewhere; the share in 256ths: bytes are cheap."""
    closed = round(dropout * 256)
    factor = np.float32(256 / (256 - closed))
    for width in shape.hidden:
        drawn = np.frombuffer(rng.bytes(shape.members * rows * width), np.uint8)
        yield device.put((drawn >= closed) * factor).reshape(shape.members, rows, width)


class Device:
    """Where arrays live: numpy's, or a torch device."""

    def __init__(self, name: str = "cpu") -> None:
        self.name = name
        self.xp: Any = np
        if name != "cpu":
            import torch  # type: ignore[import-not-found,unused-ignore]

            self.xp = torch

    def put(self, array: NDArray[Any]) -> Any:
        """The array there, in single precision."""
        values = np.ascontiguousarray(array, np.float32)
        return values if self.xp is np else self.xp.from_numpy(values).to(self.name.removeprefix("torch:"))

    def index(self, positions: NDArray[np.int64]) -> Any:
        """Row positions there."""
        return positions if self.xp is np else self.xp.from_numpy(positions).to(self.name.removeprefix("torch:"))

    def get(self, array: Any) -> NDArray[Any]:
        """A copy here."""
        return np.array(array if self.xp is np else array.cpu().numpy())


def best_device() -> Device:
    """A GPU where torch and CUDA are there, else numpy."""
    try:
        import torch
    except ImportError:
        return Device()
    return Device("cuda") if torch.cuda.is_available() else Device()
