"""Quantized integers ↔ the numbers that they stand for, the same on the device and at conversion.

A quantized tensor holds integers q that stand for (q - zero point) · scale. Where people and
programs deal in numbers, the edge of the model converts (Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, equation 1).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def quantize(
    values: NDArray[np.generic], dtype: np.dtype[Any], scale: float, zero_point: int
) -> NDArray[np.generic]:
    """Return floats as the integers that a model takes; integers as they are.

    What is out of range becomes the nearest integer in range, NaN becomes 0.

    Args:
        values: of any shape.
        dtype: integers of the model's input.
        scale: of the input; 0 where it is not quantized, and then nothing is changed.
        zero_point: of the input.
    """
    if not scale or values.dtype.kind != "f":
        return values
    limits = np.iinfo(dtype)
    steps = np.rint(values.astype(np.float32) / scale) + zero_point
    quantized: NDArray[np.generic] = np.clip(np.nan_to_num(steps), limits.min, limits.max).astype(
        dtype
    )
    return quantized


def dequantize(values: NDArray[np.generic], scale: float, zero_point: int) -> NDArray[np.generic]:
    """Return the numbers that quantized integers stand for; anything else as it is.

    Args:
        values: of any shape.
        scale: of the output; 0 where it is not quantized.
        zero_point: of the output.
    """
    if not scale:
        return values
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
