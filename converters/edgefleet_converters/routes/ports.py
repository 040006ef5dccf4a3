"""What the inputs and outputs of a model mean: columns, scores, and the kind of answer. Pure.

For formats that say nothing of it (all but scikit-learn's). Rules:

1. Columns fill the inputs by name if every input is named like a column, else in their order; and
   so do arrays.
2. The score is the output that the person named; else the only one of floats; else the one named
   like `prob…` or `score…`; else the last.
3. Several scores a row classify if they are probabilities, or if there are labels. One score is a
   value (`regression`). Everything else is a `score` without an answer of its own.
4. An output of the shape of the only input, with labels 0 and 1, is a reconstruction: its error is
   the score, not its values.
"""

import math
from collections.abc import Sequence
from typing import cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.answers import class_names
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import DType, Signature, Task, Tensor

# Rows of float32 probabilities add up to 1 within this.
_UNIT_TOLERANCE = 1e-3
# What formats call text.
_DTYPES = {"object": "string", "bytes": "string", "str": "string", "bytes_": "string"}


def tensor(source: str, name: str, dtype: str, sizes: Sequence[int | None]) -> Tensor:
    """Return a port of a model: the first size, free or fixed, is the batch.

    Args:
        source: name of the model, for error texts.
        name: of the port.
        dtype: by numpy's name (`object` and `bytes` for text).
        sizes: None for free ones.

    Raises:
        UnsupportedError: a type that devices do not take.
    """
    known = _DTYPES.get(dtype, dtype)
    if known not in get_args(DType):
        raise UnsupportedError(
            f"{source}: {name!r} holds {dtype}; expected one of {', '.join(get_args(DType))}"
        )
    return Tensor(name, cast("DType", known), [None, *sizes[1:]] if sizes else [])


def fill(source: str, inputs: Sequence[Tensor], samples: Samples) -> list[Tensor]:
    """Return the inputs with the columns that fill them, or with the sizes of the sample tensors.

    Args:
        source: name of the model, for error texts.
        inputs: as the model declares them; None for sizes that it leaves free.
        samples: rows or tensors.

    Raises:
        BadInputError: the samples do not fit the inputs.
        UnsupportedError: an input has a size that nothing fixes.
    """
    if samples.table is None:
        return _sized(source, inputs, samples)
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise UnsupportedError(
                f"{source}: input {tensor.name!r} has the shape {tensor.shape}; expected fixed"
                " sizes after the batch for rows of a table (give samples as .npz)"
            )
    names = samples.table.names
    if all(tensor.name in samples.table.columns for tensor in inputs):
        return [msgspec.structs.replace(tensor, columns=[tensor.name]) for tensor in inputs]
    widths = [math.prod(size or 1 for size in tensor.shape[1:]) for tensor in inputs]
    if sum(widths) != len(names):
        listed = ", ".join(tensor.name for tensor in inputs)
        raise BadInputError(
            f"{source}: the inputs {listed} take {sum(widths)} values a row;"
            f" {samples.source} has {len(names)} columns besides the label"
        )
    filled, start = [], 0
    for tensor, width in zip(inputs, widths, strict=True):
        filled.append(msgspec.structs.replace(tensor, columns=names[start : start + width]))
        start += width
    return filled


def _sized(source: str, inputs: Sequence[Tensor], samples: Samples) -> list[Tensor]:
    if len(samples.tensors) != len(inputs):
        raise BadInputError(
            f"{source}: the model has the inputs {', '.join(tensor.name for tensor in inputs)};"
            f" {samples.source} has the arrays {', '.join(samples.tensors)}"
        )
    names = list(samples.tensors)
    if set(names) == {tensor.name for tensor in inputs}:
        # Some formats do not keep the order of their inputs; that of the arrays is a person's.
        inputs = sorted(inputs, key=lambda tensor: names.index(tensor.name))
    sized = []
    for tensor, (name, values) in zip(inputs, samples.tensors.items(), strict=True):
        given = list(values.shape[1:])
        wanted = tensor.shape[1:]
        if len(given) != len(wanted) or any(
            size not in (None, found) for size, found in zip(wanted, given, strict=True)
        ):
            raise BadInputError(
                f"{samples.source}: {name!r} has rows of the shape {given}; the input"
                f" {tensor.name!r} of {source} takes {wanted}"
            )
        sized.append(msgspec.structs.replace(tensor, shape=[None, *given]))
    return sized


def choose_score(source: str, outputs: Sequence[Tensor], asked: str | None) -> str:
    """Return the name of the output that holds the scores.

    Args:
        source: name of the model, for error texts.
        outputs: of the model, in order.
        asked: the name that a person gave.

    Raises:
        BadInputError: no output has the name that was given.
        UnsupportedError: no output holds floats.
    """
    names = [tensor.name for tensor in outputs]
    if asked is not None:
        if asked not in names:
            raise BadInputError(
                f"{source}: no output {asked!r}; there are {', '.join(names) or 'none'}"
            )
        return asked
    floats = [tensor.name for tensor in outputs if tensor.dtype.startswith("float")]
    if not floats:
        raise UnsupportedError(
            f"{source}: no output holds scores as a float tensor with the batch first (outputs:"
            f" {', '.join(names) or 'none'})"
        )
    named = [name for name in floats if name.lower().startswith(("prob", "score"))]
    return (named or floats[-1:])[0]


def task_of(
    signature: Signature, scores: NDArray[np.float64], hints: Hints, resolution: float = 0.0
) -> Task:
    """Tell what kind of answer the scores are.

    Args:
        signature: of the model; its task is not read.
        scores: of the original for the samples, `(n, width)`.
        hints: with the labels, if there are any.
        resolution: as of `are_probabilities`.
    """
    if scores.shape[1] == 1:
        # A label beside one score is what an outlier detector gives.
        return "regression" if signature.label_output is None else "score"
    if signature.label_output is not None or are_probabilities(scores, resolution):
        return "classification"
    (given,) = (t for t in signature.outputs if t.name == signature.score_output)
    is_row = sum(size != 1 for size in given.shape[1:]) <= 1
    if hints.labels is None or not is_row or is_reconstruction(signature, hints):
        return "score"
    return "classification"


def are_probabilities(scores: NDArray[np.float64], resolution: float = 0.0) -> bool:
    """Return whether each row of scores is a distribution over several classes.

    Args:
        scores: `(n, width)`.
        resolution: least difference between two scores, where the output is quantized. Each is off
            by up to half of it.
    """
    width = scores.shape[1]
    if width < 2 or not len(scores):
        return False
    tolerance = _UNIT_TOLERANCE + width * resolution / 2
    return bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < tolerance)


def is_reconstruction(signature: Signature, hints: Hints) -> bool:
    """Return whether a model with one input gives it back, as rule 4 says."""
    if len(signature.inputs) != 1 or hints.labels is None:
        return False
    (taken,) = signature.inputs
    given = next(t for t in signature.outputs if t.name == signature.score_output)
    same = given.shape[1:] == taken.shape[1:] and math.prod(s or 1 for s in given.shape[1:]) > 2
    labels = set(np.unique(hints.labels.astype(str)))
    return same and labels <= {"0", "1", "0.0", "1.0"}


def opened(
    model: Model,
    scores: NDArray[np.float64],
    hints: Hints,
    timings_s: dict[str, float],
    resolution: float = 0.0,
) -> Opened:
    """Return what a route hands on, of its one base and the original's scores.

    Args:
        model: the base; task and classes of its signature are filled in here.
        scores: of the original for all samples, `(n, width)`.
        hints: of the person.
        timings_s: of the route.
        resolution: least difference between two scores, where the output is quantized.

    Raises:
        BadInputError: scores that are not finite, or classes that do not fit them.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise BadInputError(
            "the original model gives scores that are not finite for rows of the sample; the"
            f" first is row {row + 1}"
        )
    task = task_of(model.signature, scores, hints, resolution)
    classes = (
        class_names(scores.shape[1], hints.labels, hints.classes)
        if task == "classification"
        else []
    )
    signature = msgspec.structs.replace(model.signature, task=task, classes=classes)
    base = msgspec.structs.replace(model, signature=signature)
    return Opened(task, signature.columns, classes, scores, {model.format: base}, timings_s)
