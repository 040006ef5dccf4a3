"""Cross-layer equalization of TFLite files: layers whose channels are all of one size.

Two layers that follow each other, with ReLU or nothing between them, answer the same if the
weights and the bias of a channel of the first are divided by s and the second's weights for that
channel are multiplied by s, for any s > 0: relu(x / s) · s = relu(x) (Nagel et al. 2019, section
4.1). So the channels of a layer can be made equal, and one scale then serves all of them.

1. s = √(r₁ / r₂), where r₁ and r₂ are the largest absolute weights of the channel in the first and
   in the second layer: both become √(r₁ · r₂).
2. A layer stands in two pairs, so all pairs are gone through until no factor is more than 0.1 %
   from 1, or 100 times.
3. A channel whose weights are under 1/1024 of the layer's largest is as good as dead; it is left
   alone, or its bias would grow without bounds.
4. Pooling, ReLU and means over other axes than the channels may lie between, and before a dense
   layer a reshape: they take every channel alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import tflite_files
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import tflite_compaction, tflite_graph
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step

_NAGEL = "https://arxiv.org/abs/1906.04721 (Nagel et al. 2019: data-free quantization)"
_ROUNDS = 100
_SETTLED = 1e-3
_DEAD = 2.0**-10
# Of the schema's BuiltinOperator.
_AVERAGE_POOL, _MAX_POOL, _RELU, _RESHAPE, _MEAN = 1, 17, 19, 22, 40
# Of the schema's ActivationFunctionType: none, and ReLU.
_HOMOGENEOUS = (0, 1)

Values = NDArray[np.float64]


@dataclass
class Layer:
    """What is scaled of a layer, changed in place.

    Attributes:
        weights: all of them.
        bias: `(channels that it gives,)`; None without one.
        gives: axis of the weights for the channels that it gives.
        takes: axis for those that it takes; longer by a whole factor if pixels were flattened.
    """

    weights: Values
    bias: Values | None
    gives: int
    takes: int

    def given(self) -> Values:
        """Return the largest absolute weight of each channel that it gives."""
        return _largest(self.weights, self.gives)

    def taken(self, channels: int) -> Values:
        """Return the largest absolute weight of each of the channels that it takes."""
        return np.asarray(_largest(self.weights, self.takes).reshape(-1, channels).max(axis=0))

    def scale_given(self, factors: Values) -> None:
        """Multiply the channels that it gives."""
        self.weights *= _along(factors, self.weights.ndim, self.gives)
        if self.bias is not None:
            self.bias *= factors

    def scale_taken(self, factors: Values) -> None:
        """Multiply the weights for the channels that it takes."""
        every = np.tile(factors, self.weights.shape[self.takes] // len(factors))
        self.weights *= _along(every, self.weights.ndim, self.takes)


Pair = tuple[Layer, Layer]


@step("tflite-equalize", takes="tflite", gives="tflite", reference=_NAGEL, exact=True)
def equalize(model: Model, options: NoOptions, context: Context) -> Model:
    """Scale channels between layers so that one scale serves a whole layer.

    Pays before steps that give a layer one scale, above all where depthwise convolutions have
    channels of very different sizes; the answers stay. Without samples. It does not pay before
    scales per channel, and where weights were rounded before it loses their exact values: stored in
    8 bits anew, MLPerf Tiny's keyword spotter is four times as far off as without (a relative
    squared error of 0.00013 instead of 0.00003), but ten layers need ten scales instead of 262.

    Raises:
        UnsupportedError: no two layers follow each other so, or the file computes in integers.
    """
    del options, context
    graph = tflite_graph.read(tflite_graph.with_float_weights(model.data))
    count = sum(_equalize_part(graph, part) for part in graph.subgraphs)
    if not count:
        raise UnsupportedError(
            "no two layers follow each other with nothing but ReLU, pooling or a reshape between"
        )
    data = tflite_compaction.compact(tflite_graph.write(graph))
    made = tflite_files.renamed(model, data)
    return msgspec.structs.replace(made, notes=made.notes | {"tflite-equalize": {"pairs": count}})


def even_out(pairs: Sequence[Pair]) -> int:
    """Equalize the channels between layers, in place; return the number of rounds.

    Args:
        pairs: first and second layer; one that stands in two pairs is the same object in both.
    """
    for done in range(1, _ROUNDS + 1):
        furthest = 1.0
        for first, second in pairs:
            factors = _factors(first.given(), second.taken(first.weights.shape[first.gives]))
            first.scale_given(1 / factors)
            second.scale_taken(factors)
            furthest = max(furthest, float(factors.max()), float(1 / factors.min()))
        if furthest <= 1 + _SETTLED:
            return done
    return _ROUNDS


def _factors(given: Values, taken: Values) -> Values:
    alive = (given > _DEAD * given.max()) & (taken > _DEAD * taken.max())
    return np.sqrt(np.divide(given, taken, out=np.ones_like(given), where=alive))


def _largest(weights: Values, axis: int) -> Values:
    flat = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return np.asarray(np.abs(flat).max(axis=1))


def _along(factors: Values, dimensions: int, axis: int) -> Values:
    shape = [1] * dimensions
    shape[axis] = -1
    return factors.reshape(shape)


def _equalize_part(graph: Any, part: Any) -> int:
    """Equalize a subgraph in place; return the number of pairs."""
    held: dict[int, Layer] = {}
    pairs = [
        (_layer(graph, part, first, held), _layer(graph, part, second, held))
        for first, second in _following(graph, part)
    ]
    even_out(pairs)
    for index, layer in held.items():
        operator = part.operators[index]
        weights = part.tensors[operator.inputs[1]]
        tflite_graph.replace(graph, weights, layer.weights.astype(np.float32))
        bias = tflite_graph.bias_of(graph, operator)
        if bias is not None and layer.bias is not None:
            tflite_graph.replace(graph, part.tensors[bias], layer.bias.astype(np.float32))
    return len(pairs)


def _layer(graph: Any, part: Any, place: int, held: dict[int, Layer]) -> Layer:
    """Return the layer of an operator, the same one every time."""
    if place not in held:
        operator = part.operators[place]
        bias = tflite_graph.bias_of(graph, operator)
        gives, takes = tflite_graph.AXES[tflite_graph.kind_of(graph, operator)]
        held[place] = Layer(
            _values(graph, part, operator.inputs[1]),
            None if bias is None else _values(graph, part, bias),
            gives,
            takes,
        )
    return held[place]


def _values(graph: Any, part: Any, index: int) -> Values:
    held = tflite_graph.constant(graph, part.tensors[index])
    assert held is not None  # `_following` has looked
    return held.astype(np.float64)


def _following(graph: Any, part: Any) -> Iterator[tuple[int, int]]:
    """Yield the places of the operators of each pair."""
    readers = tflite_graph.readers(part)
    for place, operator in enumerate(part.operators):
        if not _is_own(graph, part, operator, readers) or not _is_homogeneous(operator):
            continue
        channels = int(part.tensors[operator.outputs[0]].shape[-1])
        second = _next(graph, part, int(operator.outputs[0]), readers)
        if second is None or not _is_own(graph, part, part.operators[second], readers):
            continue
        other = part.operators[second]
        kind = tflite_graph.kind_of(graph, other)
        width = int(part.tensors[other.inputs[1]].shape[tflite_graph.AXES[kind][1]])
        # A dense layer takes flattened pixels; other kinds with another width have groups.
        if width == channels or (kind == tflite_graph.DENSE and width % channels == 0):
            yield place, second


def _next(graph: Any, part: Any, tensor: int, readers: dict[int, list[int]]) -> int | None:
    """Return the one layer that a tensor leads to by operators that take every channel alike."""
    flattened = False
    while tensor not in part.outputs and len(readers.get(tensor, [])) == 1:
        place = readers[tensor][0]
        operator = part.operators[place]
        kind = tflite_graph.kind_of(graph, operator)
        if operator.inputs[0] != tensor:
            return None
        if kind in tflite_graph.AXES:
            return place if kind == tflite_graph.DENSE or not flattened else None
        if kind == _RESHAPE:
            flattened = True
        elif flattened or not _keeps_channels(graph, part, operator, kind):
            return None
        tensor = int(operator.outputs[0])
    return None


def _keeps_channels(graph: Any, part: Any, operator: Any, kind: int) -> bool:
    if kind == _MEAN:
        source, axes = (part.tensors[index] for index in operator.inputs[:2])
        held = graph.buffers[axes.buffer].data
        if held is None:
            return False
        rank = len(source.shape)
        along = np.frombuffer(bytes(held), np.int32) % rank
        return rank - 1 not in along
    return kind == _RELU or (kind in (_AVERAGE_POOL, _MAX_POOL) and _is_homogeneous(operator))


def _is_homogeneous(operator: Any) -> bool:
    return getattr(operator.builtinOptions, "fusedActivationFunction", 0) in _HOMOGENEOUS


def _is_own(graph: Any, part: Any, operator: Any, readers: dict[int, list[int]]) -> bool:
    """Tell whether an operator is a layer with float constants that no other one reads."""
    if tflite_graph.kind_of(graph, operator) not in tflite_graph.AXES:
        return False
    bias = tflite_graph.bias_of(graph, operator)
    for index in [int(operator.inputs[1]), *([] if bias is None else [bias])]:
        values = tflite_graph.constant(graph, part.tensors[index])
        if values is None or values.dtype != np.float32 or len(readers[index]) != 1:
            return False
    return True
