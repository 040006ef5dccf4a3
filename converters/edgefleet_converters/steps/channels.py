"""Channels of a Keras model: which belong together, and the same model with fewer of them.

Every value along the last axis of every tensor has a channel. Layers pass channels on, make new
ones or tie them; a channel goes from all tensors at once or from none. Rules:

1. Convolutions and dense layers make channels. Normalization, activation, pooling and padding pass
   them on, depthwise convolutions repeat and Flatten tiles them.
2. Adding or multiplying ties the channels of both sides: residual branches share their choice.
3. Inputs and outputs keep theirs, and so does whatever touches a layer that is not in these rules,
   that is called more than once, or that mixes along the last axis (softmax, layer norm).
4. The smaller model is a new Keras model of the same layers and names, with the weights of the
   channels that stay.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Producer = tuple[str, int]

_MAKES = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "SeparableConv1D", "SeparableConv2D")
_PASSES = (
    "BatchNormalization",
    "Activation",
    "ReLU",
    "LeakyReLU",
    "ELU",
    "PReLU",
    "Dropout",
    "GaussianNoise",
    "Identity",
    *(f"SpatialDropout{n}D" for n in (1, 2, 3)),
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
)
_REPEATS = ("DepthwiseConv1D", "DepthwiseConv2D")
_TIES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


@dataclass
class Channels:
    """The channels of a model.

    Attributes:
        made_by: channel → the places `(layer, position)` that make it; tied ones together.
        inputs: layer → channels of its first input's last axis, `outputs` of its first output's.
    """

    made_by: dict[int, list[Producer]] = field(default_factory=dict)
    inputs: dict[str, Index] = field(default_factory=dict)
    outputs: dict[str, Index] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    def fresh(self, count: int) -> Index:
        """Return new channels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def fix(self, channels: Index) -> None:
        """Keep channels whatever happens."""
        self._fixed.update(int(channel) for channel in channels)

    def tie(self, one: Index, other: Index) -> None:
        """Make two rows of channels the same."""
        for a, b in zip(one, other, strict=True):
            self._parents[self.root(int(b))] = self.root(int(a))

    def root(self, channel: int) -> int:
        """Return the channel that stands for all that are tied to this one."""
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    @property
    def free(self) -> dict[int, list[Producer]]:
        """Channels that may go → the places that make them."""
        fixed = {self.root(channel) for channel in self._fixed}
        free: dict[int, list[Producer]] = {}
        for channel, places in self.made_by.items():
            if self.root(channel) not in fixed:
                free.setdefault(self.root(channel), []).extend(places)
        return free

    def kept(self, channels: Index, gone: Collection[int]) -> Index:
        """Return the positions, among `channels`, of those that are not gone."""
        return np.array(
            [
                place
                for place, channel in enumerate(channels)
                if self.root(int(channel)) not in gone
            ],
            np.int64,
        )


def trace(model: Any) -> Channels:
    """Return the channels of a functional Keras model."""
    found = Channels()
    rows: dict[int, Index] = {}
    nodes = [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
    ]
    calls: dict[str, int] = {}
    for node in nodes:
        calls[node.operation.name] = calls.get(node.operation.name, 0) + 1
    for node in nodes:
        layer = node.operation
        taken = [rows[id(tensor)] for tensor in node.input_tensors]
        given = None if calls[layer.name] > 1 else _follow(found, layer, node, taken)
        if given is None:
            for row in taken:
                found.fix(row)
        for tensor in node.output_tensors:
            if given is None:
                rows[id(tensor)] = found.fresh(int(tensor.shape[-1] or 1) if tensor.shape else 1)
                found.fix(rows[id(tensor)])
            else:
                rows[id(tensor)] = given
        if taken:
            found.inputs[layer.name] = taken[0]
        found.outputs[layer.name] = rows[id(node.output_tensors[0])]
    for tensor in model.outputs:
        found.fix(rows[id(tensor)])
    return found


def _follow(found: Channels, layer: Any, node: Any, taken: list[Index]) -> Index | None:
    """Return the channels that a layer gives; None if the rules do not hold for it."""
    kind = type(layer).__name__
    if getattr(layer, "data_format", "channels_last") != "channels_last" or not taken:
        return None
    shape = node.output_tensors[0].shape
    if kind == "Dense" or (kind in _MAKES and getattr(layer, "groups", 1) == 1):
        made = found.fresh(int(shape[-1]))
        found.made_by |= {int(one): [(layer.name, place)] for place, one in enumerate(made)}
        if _mixes(layer):
            found.fix(made)
        return made
    if _mixes(layer) or (kind == "BatchNormalization" and layer.axis not in (-1, len(shape) - 1)):
        return None
    if kind in _PASSES:
        return taken[0]
    if kind in _REPEATS:
        return np.repeat(taken[0], layer.depth_multiplier)
    if kind in _TIES and len({len(row) for row in taken}) == 1:
        for row in taken[1:]:
            found.tie(taken[0], row)
        return taken[0]
    if kind == "Concatenate":
        return _concatenated(found, layer, taken, len(shape))
    if kind in ("Flatten", "Reshape") and None not in shape[1:]:
        return _reshaped(taken[0], node.input_tensors[0].shape, shape)
    return None


def _mixes(layer: Any) -> bool:
    return getattr(getattr(layer, "activation", None), "__name__", "") in ("softmax", "log_softmax")


def _concatenated(found: Channels, layer: Any, taken: list[Index], rank: int) -> Index:
    if layer.axis in (-1, rank - 1):
        return np.concatenate(taken)
    for row in taken[1:]:
        found.tie(taken[0], row)
    return taken[0]


def _reshaped(row: Index, before: tuple[int, ...], after: tuple[int, ...]) -> Index | None:
    if after[-1] == before[-1]:
        return row
    if len(after) == 2 and after[-1] % before[-1] == 0:
        return np.tile(row, after[-1] // before[-1])  # channels vary fastest
    return None


def without(
    keras: Any, model: Any, channels: Channels, gone: Collection[int], *, with_weights: bool = True
) -> Any:
    """Return the model without some channels.

    Args:
        keras: the module.
        model: a functional model.
        channels: of it.
        gone: channels out of `channels.free`.
        with_weights: whether the channels that stay keep their weights, or begin anew.
    """

    def smaller(layer: Any) -> Any:
        config = layer.get_config()
        kept = len(channels.kept(channels.outputs[layer.name], gone))
        if "filters" in config:
            config["filters"] = kept
        elif "units" in config and type(layer).__name__ == "Dense":
            config["units"] = kept
        elif "target_shape" in config and layer.name in channels.outputs:
            config["target_shape"] = (*config["target_shape"][:-1], kept)
        return type(layer).from_config(config)

    made = keras.models.clone_model(model, clone_function=smaller)
    for layer in model.layers if with_weights else []:
        if layer.weights:
            weights = _weights(layer, channels, gone)
            made.get_layer(layer.name).set_weights(weights)
    return made


def _weights(layer: Any, channels: Channels, gone: Collection[int]) -> list[NDArray[np.float32]]:
    """Return the weights of a layer for the channels that stay."""
    rows = channels.inputs[layer.name], channels.outputs[layer.name]
    taken, given = (channels.kept(row, gone) for row in rows)
    if (len(taken), len(given)) == (len(rows[0]), len(rows[1])):
        return [np.asarray(weight) for weight in layer.weights]
    return [_sliced(layer, weight, taken, given) for weight in layer.weights]


def _sliced(layer: Any, weight: Any, taken: Index, given: Index) -> NDArray[np.float32]:
    """Return a weight of a layer for the input and output channels that stay."""
    values = np.asarray(weight)
    kind = type(layer).__name__
    name = weight.name
    if kind in _REPEATS and name == "kernel":
        return values[..., taken, :]
    if name == "depthwise_kernel":
        return values[..., taken, :]
    if name == "pointwise_kernel":
        repeats = layer.depth_multiplier
        repeated = (taken[:, None] * repeats + np.arange(repeats)).reshape(-1)
        return values[..., repeated, :][..., given]
    if kind == "Conv2DTranspose" and name == "kernel":
        return values[..., given, :][..., taken]
    if name == "kernel" and (kind == "Dense" or kind in _MAKES):
        return values[..., taken, :][..., given]
    if kind == "Dense" or kind in (*_MAKES, *_REPEATS, "BatchNormalization", "PReLU"):
        return values[..., given]
    return values
