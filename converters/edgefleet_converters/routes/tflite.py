"""Models that are TFLite already: float or quantized, run in LiteRT, passed on as they are.

Names are those of the model's first signature, or of its tensors where it has none. An input of
quantized integers takes float32 here as on a device, unless the samples are integers already.
"""

from pathlib import Path

from edgefleet_converters import runners, tflite_ports
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import admission, ports
from edgefleet_converters.routes.clock import Clock
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.tflite_ports import Port
from edgefleet_protocol.manifest import Signature, Tensor


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Open a TFLite model and predict all samples with it. Call this in a child process.

    Args:
        file: the model.
        samples: rows, or tensors named like its inputs.
        hints: of the person.

    Raises:
        BadInputError: LiteRT does not load or run it, or it does not fit the samples.
        UnsupportedError: a form of model that cannot be shipped.
    """
    clock = Clock()
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UnsupportedError(
            "opening a TFLite model needs LiteRT: install edgefleet-converters[keras]"
        ) from error
    clock.lap("import LiteRT")
    data = Path(file.path).read_bytes()
    admission.admit(file, data)
    clock.lap("look")
    try:
        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        taken, given = tflite_ports.read(interpreter)
    except (RuntimeError, ValueError) as error:
        raise BadInputError(f"{file.path}: LiteRT cannot load it: {error}") from error
    declared = [_input(file, samples, *port) for port in taken.items()]
    outputs = [_tensor(file, *port) for port in given.items()]
    score = ports.choose_score(file.path, outputs, hints.score_output)
    signature = Signature("score", ports.fill(file.path, declared, samples), outputs, score)
    clock.lap("load")
    tensors = samples.bind(signature)
    try:
        runner = runners.LiteRtRunner(data, signature)
        scores = runners.scores(runner, tensors)
    except (RuntimeError, ValueError) as error:
        raise BadInputError(f"{file.path}: LiteRT cannot run it: {error}") from error
    clock.lap("predict")
    return ports.opened(
        Model("tflite", data, signature), scores, hints, clock.seconds, given[score].scale
    )


def _input(file: ModelFile, samples: Samples, name: str, port: Port) -> Tensor:
    are_integers = samples.table is None and all(
        array.dtype.kind in "iu" for array in samples.tensors.values()
    )
    if not port.sizes:
        raise UnsupportedError(f"{file.path}: input {name!r} is one number; expected rows")
    return _tensor(file, name, port, as_floats=not are_integers)


def _tensor(file: ModelFile, name: str, port: Port, *, as_floats: bool = True) -> Tensor:
    """Return a port, quantized integers as the floats that they stand for if wanted."""
    dtype = "float32" if as_floats and port.scale else port.dtype
    return ports.tensor(file.path, name, dtype, port.sizes)
