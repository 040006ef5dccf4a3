"""How much each channel of a Keras model matters, for pruning.

Every measure is divided by its mean over the layer, so that layers can be compared.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.steps.channels import Channels
from edgefleet_converters.steps.registry import Context

Kind = Literal["l1", "bn-gamma", "taylor"]
Measures = dict[str, NDArray[np.float64]]

_BATCH_ROWS = 64
# More rows than these change the order of channels little.
_ROWS = 1024
_TINY = 1e-12


def rank(
    network: Any,
    found: Channels,
    rows: list[NDArray[np.generic]],
    context: Context,
    kind: Kind,
) -> dict[int, float]:
    """Return the importance of each free channel: 1 for the mean of the layer that makes it.

    Args:
        network: Keras model.
        found: its channels.
        rows: training rows, one array for each input.
        context: of these rows.
        kind: of measure.
    """
    names = {layer for places in found.free.values() for layer, _ in places}
    layers = [layer for layer in network.layers if layer.name in names]
    if kind == "taylor":
        made = _effects(network, layers, rows, context)
    else:
        made = {layer.name: _sizes(layer) for layer in layers}
    if kind == "bn-gamma":
        made |= _scales(network, found, layers)
    relative = {name: values / max(float(values.mean()), _TINY) for name, values in made.items()}
    return {
        channel: float(np.mean([relative[layer][place] for layer, place in places]))
        for channel, places in found.free.items()
    }


def _kernel(layer: Any) -> Any:
    return layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel


def _outputs_last(layer: Any, values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.moveaxis(values, -2, -1) if type(layer).__name__.endswith("Transpose") else values


def _sizes(layer: Any) -> NDArray[np.float64]:
    """Return the sum of the absolute weights that make each channel (Li et al. 2017)."""
    values = _outputs_last(layer, np.asarray(_kernel(layer)))
    sizes: NDArray[np.float64] = np.abs(values).reshape(-1, values.shape[-1]).sum(0, np.float64)
    return sizes


def _scales(network: Any, found: Channels, layers: list[Any]) -> Measures:
    """Return |gamma| of the batch normalization behind each layer with one (Liu et al. 2017)."""
    scales: dict[int, float] = {}
    for layer in network.layers:
        if type(layer).__name__ == "BatchNormalization" and layer.gamma is not None:
            gammas = np.abs(np.asarray(layer.gamma, np.float64))
            for channel, gamma in zip(found.outputs[layer.name], gammas, strict=True):
                scales[int(channel)] = float(gamma)
    made: Measures = {}
    for layer in layers:
        behind = [scales.get(int(channel)) for channel in found.outputs[layer.name]]
        if None not in behind:
            made[layer.name] = np.array(behind, np.float64)
    return made


def _effects(
    network: Any, layers: list[Any], rows: list[NDArray[np.generic]], context: Context
) -> Measures:
    """Return the square of Σ w·∂L/∂w over the weights of each channel (Molchanov et al. 2019).

    The loss is that of the labels, or of the original's own answer where there are none; of values,
    the mean of their squares: the distance to the original's scores has no slope at the start.
    """
    import tensorflow as tf

    kernels = [_kernel(layer).value for layer in layers]
    totals: Measures = {}
    answers = context.scores.argmax(axis=1) if context.labels is None else context.labels
    count = min(len(context.scores), _ROWS)
    for start in range(0, count, _BATCH_ROWS):
        part = slice(start, min(start + _BATCH_ROWS, count))
        batch = [tf.convert_to_tensor(values[part]) for values in rows]
        with tf.GradientTape() as tape:
            given = network(batch if len(batch) > 1 else batch[0], training=False)
            if context.task == "classification":
                right = tf.gather(given, answers[part].astype(np.int64), axis=1, batch_dims=1)
                loss = -tf.reduce_mean(tf.math.log(tf.maximum(right, 1e-7)))
            else:
                loss = tf.reduce_mean(given**2)
        for layer, kernel, slope in zip(layers, kernels, tape.gradient(loss, kernels), strict=True):
            effect = _outputs_last(layer, np.asarray(kernel * slope, np.float64))
            sums = effect.reshape(-1, effect.shape[-1]).sum(axis=0) ** 2
            totals[layer.name] = totals.get(layer.name, np.zeros(len(sums))) + sums
    return totals
