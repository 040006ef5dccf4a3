"""Recurrent layers of Keras for TFLite, whose converter knows no loop over a free batch.

A loop with a free batch becomes operators on lists of tensors, which LiteRT does not have. Two ways
lead around them:

1. Few steps are unrolled: the graph holds each of them, takes any batch and can be quantized.
2. More steps stay a loop, and the model takes one row a call. Unrolled they would make the file
   large, and the converter slow: both grow with the steps.
"""

from typing import Any

# 64 steps of a small LSTM take about 3 s to convert, and 100 KB of graph.
MAX_UNROLLED_STEPS = 64


def prepare(source: Any) -> int | None:
    """Unroll the recurrent layers of a Keras model, if all are short enough.

    Args:
        source: functional model; its layers are changed.

    Returns:
        The number of rows that the model must be converted for; None for any.
    """
    import keras

    layers = [layer for layer in source._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    steps = [_steps(layer) for layer in layers]
    if any(count is None or count > MAX_UNROLLED_STEPS for count in steps):
        return 1
    for layer in layers:
        layer.unroll = True
    return None


def _steps(layer: Any) -> int | None:
    """Return the number of steps of a layer that was built; None if it is not fixed."""
    shapes = [shape for shape in (layer.get_build_config() or {}).values() if shape]
    count = shapes[0][1] if shapes else None
    return None if count is None else int(count)
