"""Graphs of PyTorch: exported programs (`.pt2`) and TorchScript (`.pt`). Child processes only.

1. Only graphs are opened. A pickled module needs its own Python code and runs it; `sources` refuses
   it. PyTorch unpickles parts of a program too, so it is held to tensors here, and a program with
   other objects is refused.
2. A program is exported by PyTorch's exporter of today (dynamo, with onnxscript), TorchScript by
   the one that was made for it.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import onnx_files, runners
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import ports
from edgefleet_converters.samples import Samples
from edgefleet_protocol.manifest import Tensor

_Arrays = Sequence[NDArray[np.generic]]
# Constants of a program whose file names begin otherwise are unpickled, or built as objects.
_TENSOR, _CONSTANTS = "tensor_", "/data/constants/"
_OBJECTS = "the program holds an object that is no tensor; to load it would run its code"


@dataclass(frozen=True)
class TorchGraph:
    """A graph that can be called and exported.

    Attributes:
        inputs: in order; None for sizes that it leaves free.
        output_names: in order; empty where the graph has none.
        batch: rows of a call; None for any.
        most_rows: of a call.
        call: tensors in order → tensors.
        export: arrays in order, output names, and the batch (None for any) → `onnx.ModelProto`.
    """

    inputs: list[Tensor]
    output_names: list[str]
    batch: int | None
    most_rows: int
    call: Callable[..., Any]
    export: Callable[[_Arrays, list[str], int | None], Any]


def import_torch(seed: int) -> Any:
    """Return the module `torch`, on the CPU, seeded, which unpickles nothing but tensors.

    Raises:
        UnsupportedError: PyTorch is not installed.
    """
    # Honoured by every torch.load, also by those within torch.export.load.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            "opening a PyTorch model needs PyTorch: install edgefleet-converters[pytorch] and"
            " torch, or export the model to ONNX where it was trained:"
            " torch.onnx.export(model.eval(), (example,), 'model.onnx', opset_version=18)"
        ) from error
    torch.manual_seed(seed)
    return torch


def load(torch: Any, path: str, samples: Samples) -> TorchGraph:
    """Return the graph in a file.

    Args:
        torch: the module, from `import_torch`.
        path: of an exported program or TorchScript.
        samples: give the sizes of TorchScript's inputs, which it does not know.

    Raises:
        BadInputError: PyTorch cannot load it.
        UnsupportedError: it holds more than a graph with tensors, or takes more than tensors.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    is_script = any(name.endswith("/constants.pkl") for name in names)
    for name in names:
        constant = name.partition(_CONSTANTS)[2]
        if constant and not constant.startswith(_TENSOR) and not constant.endswith(".json"):
            raise UnsupportedError(f"{path}: {_OBJECTS} ({name})")
    try:
        loaded = torch.jit.load(path, "cpu").eval() if is_script else torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise UnsupportedError(f"{path}: {_OBJECTS}") from error
    except Exception as error:  # PyTorch lets errors of zip, json, pickle and its own through
        raise BadInputError(
            f"{path}: PyTorch {torch.__version__} cannot load it: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:400]}"
        ) from error
    if is_script:
        return _of_script(torch, path, loaded, samples)
    return _of_program(torch, path, loaded)


def dtype(tensor: Any) -> str:
    """Return the type of a PyTorch tensor by numpy's name."""
    return str(tensor.dtype).removeprefix("torch.")


def _of_program(torch: Any, path: str, program: Any) -> TorchGraph:
    held = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    names = [str(name) for name in signature.user_inputs]
    inputs = []
    for name in names:
        value = held.get(name)
        if not isinstance(value, torch.Tensor) or not value.ndim:
            raise UnsupportedError(f"{path}: input {name!r} is no tensor with rows")
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        inputs.append(ports.tensor(path, name, dtype(value), sizes))
    batches = [held[name].shape[0] for name in names]
    limits = [_upper(limits) for limits in program.range_constraints.values()]

    def export(arrays: _Arrays, outputs: list[str], batch: int | None) -> Any:
        del arrays, outputs, batch  # the program knows its shapes and names
        return torch.onnx.export(
            program, dynamo=True, opset_version=onnx_files.OPSET, verbose=False
        ).model_proto

    return TorchGraph(
        inputs,
        [str(name) for name in signature.user_outputs],
        next((batch for batch in batches if isinstance(batch, int)), None),
        min([runners.BATCH_ROWS, *limits]),
        program.module(),
        export,
    )


def _upper(limits: Any) -> int:
    """Return the most that a free size may be, or what is enough for any batch here."""
    return int(limits.upper) if limits.upper < runners.BATCH_ROWS else runners.BATCH_ROWS


def _of_script(torch: Any, path: str, module: Any, samples: Samples) -> TorchGraph:
    values = list(module.graph.inputs())[1:]  # the first is the module itself
    names = [value.debugName().partition(".")[0] for value in values]
    for name, value in zip(names, values, strict=True):
        if str(value.type()) != "Tensor" and not str(value.type()).startswith(("Float", "Double")):
            raise UnsupportedError(f"{path}: input {name!r} is a {value.type()}; expected a tensor")

    def export(arrays: _Arrays, outputs: list[str], batch: int | None) -> Any:
        import onnx

        written = io.BytesIO()
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(array[: batch or 2]) for array in arrays),
            written,
            dynamo=False,
            opset_version=onnx_files.OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes=None if batch else {name: {0: "batch"} for name in (*names, *outputs)},
        )
        return onnx.load_model_from_string(written.getvalue())

    inputs = _script_inputs(path, names, samples)
    return TorchGraph(inputs, [], None, runners.BATCH_ROWS, module, export)


def _script_inputs(path: str, names: list[str], samples: Samples) -> list[Tensor]:
    """Return the inputs in the shape of the samples: a row of a table is a row of one input."""
    if samples.table is not None:
        if len(names) != 1:
            raise BadInputError(
                f"{path}: the inputs {', '.join(names)} need samples as .npz, with an array each"
            )
        return [Tensor(names[0], "float32", [None, len(samples.table.names)])]
    if len(names) != len(samples.tensors):
        raise BadInputError(
            f"{path}: the model has the inputs {', '.join(names)}; {samples.source} has the arrays"
            f" {', '.join(samples.tensors)}"
        )
    kinds = {
        name: "float32" if a.dtype.kind == "f" else a.dtype.name
        for name, a in samples.tensors.items()
    }
    by_name = set(names) == set(samples.tensors)
    given = names if by_name else list(samples.tensors)
    return [
        ports.tensor(path, name, kinds[array], [None, *samples.tensors[array].shape[1:]])
        for name, array in zip(names, given, strict=True)
    ]
