"""SavedModels: what TensorFlow exports, and Keras's `model.export(folder)`, also of subclasses.

The signature `serving_default` is the model. Its inputs have no order, so several are filled by
name, and where names do not fit in the order of their names.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import keras_files, runners, saved_models, tensorflow_graphs
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes import ports
from edgefleet_converters.routes.clock import Clock
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.rows import Tensors


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Open a SavedModel and predict all samples with it. Call this in a child process.

    Args:
        file: its folder, or a zip or tar archive of it.
        samples: rows, or tensors named like its inputs.
        hints: of the person.

    Raises:
        BadInputError: the file or the samples cannot be used.
        UnsupportedError: a form of model that cannot be shipped.
    """
    clock = Clock()
    data = saved_models.pack(file.path)
    clock.lap("pack")
    keras_files.import_keras(hints.seed)
    clock.lap("import TensorFlow")
    loaded = tensorflow_graphs.load(data)
    clock.lap("load")
    specs = loaded.structured_input_signature[1]
    inputs = ports.fill(file.path, _tensors(file, specs), samples)
    outputs = _tensors(file, loaded.structured_outputs)
    signature = Signature(
        "score", inputs, outputs, ports.choose_score(file.path, outputs, hints.score_output)
    )
    batches = [specs[tensor.name].shape[0] for tensor in inputs]
    scores = _predict(loaded, batches, signature, samples.bind(signature))
    clock.lap("predict")
    return ports.opened(Model("savedmodel", data, signature), scores, hints, clock.seconds)


def _tensors(file: ModelFile, specs: dict[str, Any]) -> list[Tensor]:
    found = []
    for name in sorted(specs):
        spec = specs[name]
        if spec.shape.rank is None or spec.shape.rank < 1:
            raise UnsupportedError(
                f"{file.path}: {name!r} has the shape {spec.shape}; expected the batch and then"
                " known sizes"
            )
        found.append(ports.tensor(file.path, name, spec.dtype.name, list(spec.shape)))
    return found


def _predict(
    loaded: Any, batches: list[int | None], signature: Signature, tensors: Tensors
) -> NDArray[np.float64]:
    import tensorflow as tf

    def run(piece: Tensors) -> NDArray[np.generic]:
        given = {name: tf.constant(array) for name, array in piece.items()}
        answer: NDArray[np.generic] = loaded(**given)[signature.score_output].numpy()
        return answer

    fixed = next((batch for batch in batches if batch), None)
    rows = len(next(iter(tensors.values())))
    return runners.in_pieces(tensors, fixed or min(rows, runners.BATCH_ROWS), run)
