"""What every route hands on: the original model's answers, and the files made from it."""

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edgefleet_protocol.manifest import Signature, Task


class Made(Struct, frozen=True):
    """A model file in its target format, not yet verified.

    Attributes:
        runtime_min: oldest runtime that loads it.
    """

    model: bytes
    signature: Signature
    runtime_min: str


class Export(Struct, frozen=True):
    """The outcome of one route.

    Attributes:
        columns: features that the model takes, in its order.
        classes: in the order of the scores (classification), else empty.
        scores: of the original model for all rows, `(n, width)` float64.
        made: variant → file.
        refused: variant → why it could not be made.
        quantizable: whether int8 has something to work on in `onnx-fp32`.
        timings_s: step → seconds.
    """

    task: Task
    columns: list[str]
    classes: list[str]
    scores: NDArray[np.float64]
    made: dict[str, Made]
    refused: dict[str, str] = field(default_factory=dict)
    quantizable: bool = False
    timings_s: dict[str, float] = field(default_factory=dict)
