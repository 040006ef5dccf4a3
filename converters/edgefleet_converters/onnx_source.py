"""A model that is ONNX already: checked by loading and running it, passed on as it is.

`export` runs in a child process: an ONNX file can hang or exhaust the runtime that loads it.
"""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import (  # type: ignore[import-untyped]  # protobuf has no stubs
    DecodeError,
)
from numpy.typing import NDArray

from edgefleet_converters import onnx_files, runners
from edgefleet_converters.answers import class_names
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.exports import Export, Made
from edgefleet_converters.onnx_files import Ports
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.tables import Column, Table
from edgefleet_protocol.manifest import Task

# Rows of float32 probabilities add up to 1 within this.
_UNIT_TOLERANCE = 1e-3


def export(
    file: ModelFile, table: Table, labels: Column | None, classes: list[str] | None
) -> Export:
    """Check an ONNX model and run all rows through it.

    Columns fill the inputs by name if every input is named like a column, else in their order.

    Args:
        file: the model.
        table: feature rows, without the label.
        labels: of the rows, if there are any.
        classes: names of the classes, if they were given.

    Raises:
        BadInputError: no ONNX model, or one that does not load or does not fit the table.
        UnsupportedError: a form of model that cannot be shipped.
    """
    data = Path(file.path).read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BadInputError(f"{file.path}: truncated, or no ONNX model: {error}") from error
    if not model.graph.node:
        raise BadInputError(f"{file.path}: no ONNX model: it has no graph")
    external = [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    if external:
        raise UnsupportedError(
            f"{file.path}: the weights {', '.join(external[:5])} lie in other files; save the"
            " model as one file"
        )
    release = onnx_files.runtime_min(model)
    found = onnx_files.ports(model)
    columns = _columns(file, found, table)
    features = table.select(name for names in columns for name in names)
    unnamed = onnx_files.signature(found, columns, "score", [], 1)
    try:
        runner = runners.OnnxRunner(data, unnamed)
        scores = runners.scores(runner, unnamed, features.rows())
    except Exception as error:  # the runtime raises plain Exceptions of many kinds
        raise BadInputError(f"{file.path}: ONNX Runtime cannot run it: {error}") from error
    task = _task(found, scores, labels)
    names = class_names(scores.shape[1], labels, classes) if task == "classification" else []
    signature = onnx_files.signature(found, columns, task, names, scores.shape[1])
    return Export(
        task,
        features.names,
        names,
        scores,
        {"onnx-fp32": Made(data, signature, release)},
        quantizable=onnx_files.quantizable(model),
    )


def _columns(file: ModelFile, found: Ports, table: Table) -> list[list[str]]:
    names = [tensor.name for tensor in found.inputs]
    if all(name in table.columns for name in names):
        return [[name] for name in names]
    widths = [int(np.prod([size or 1 for size in tensor.shape[1:]])) for tensor in found.inputs]
    if sum(widths) != len(table.names):
        raise BadInputError(
            f"{file.path}: the inputs {', '.join(names)} take {sum(widths)} values a row;"
            f" {table.source} has {len(table.names)} columns besides the label"
        )
    columns, start = [], 0
    for width in widths:
        columns.append(table.names[start : start + width])
        start += width
    return columns


def _task(found: Ports, scores: NDArray[np.float64], labels: Column | None) -> Task:
    """Tell the task: a label output, probabilities, or several scores for one label classify."""
    width = scores.shape[1]
    if width == 1:
        # A label beside one score is what an outlier detector gives.
        return "regression" if found.label_output is None else "score"
    unit = (scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < _UNIT_TOLERANCE
    if found.label_output is not None or unit or labels is not None:
        return "classification"
    return "score"
