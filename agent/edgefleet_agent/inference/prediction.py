"""What a model gives back: a prediction for a row of features, an inference for tensors."""

from msgspec import Struct
from numpy import generic
from numpy.typing import NDArray

Cell = float | str | None


class Prediction(Struct, frozen=True):
    """The answer for one row.

    Attributes:
        id: for `Model.feedback`.
        label: predicted class, None if the model has no classes.
        score: probability of that class, or the value.
        scores: everything the model gave, in the order of its classes.
    """

    id: int
    model: str
    version: str
    release: int
    label: str | None
    score: float
    scores: list[float]


class Inference(Struct, frozen=True):
    """The outputs for tensors of `n` rows.

    Attributes:
        ids: one a row, for `Model.feedback`.
        labels: predicted classes `(n,)`, None if the model has no classes.
        outputs: by name, with the rows in front where the model takes batches.
    """

    ids: list[int]
    model: str
    version: str
    release: int
    labels: list[str] | None
    outputs: dict[str, NDArray[generic]]
