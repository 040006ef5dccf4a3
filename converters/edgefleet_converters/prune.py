"""Magnitude pruning with a short fine-tuning, for `keras_export`.

The smallest weights of each layer become zero and stay zero. That changes neither the size of the
file nor its speed, but the file compresses better, and it is the compressed file that travels: it
pays on the wire.

The fine-tuning teaches the model the original's own answers on the training rows. That needs no
labels, works alike for classes and values, and pulls towards what verification asks for.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_protocol.manifest import Task

# Layers with fewer weights than this do not pay: zstd's gain is below a hundred bytes.
MIN_WEIGHTS = 64
EPOCHS = 6
BATCH_ROWS = 64
LEARNING_RATE = 1e-3


def prune(
    model: Any,
    rows: NDArray[np.float32],
    scores: NDArray[np.float64],
    task: Task,
    sparsity: float,
) -> None:
    """Set the smallest weights of each layer to zero and fine-tune the others, in place.

    Args:
        model: Keras model, probabilities or values as its output.
        rows: `(n, …)` training rows.
        scores: `(n, width)` of the original model.
        task: of the model.
        sparsity: share of each layer's kernel that becomes zero.
    """
    import keras

    kernels = [
        weight
        for weight in model.trainable_weights
        if len(weight.shape) >= 2 and int(np.prod(weight.shape)) >= MIN_WEIGHTS
    ]
    masks = [mask(np.asarray(kernel), sparsity) for kernel in kernels]

    class KeepZeros(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            del batch, logs
            for kernel, kept in zip(kernels, masks, strict=True):
                kernel.assign(kernel * kept)

    keep = KeepZeros()
    keep.on_train_batch_end(0)
    loss = "categorical_crossentropy" if task == "classification" else "mse"
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
    model.fit(
        rows,
        scores.astype(np.float32),
        epochs=EPOCHS,
        batch_size=BATCH_ROWS,
        verbose=0,
        callbacks=[keep],
    )


def mask(weights: NDArray[np.floating], sparsity: float) -> NDArray[np.float32]:
    """Return 1 for the weights that stay and 0 for the `sparsity` share of smallest magnitude.

    Ties are broken by position, so the share is met exactly (rounded down).
    """
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    kept = np.ones(weights.size, np.float32)
    kept[order[: int(weights.size * sparsity)]] = 0
    return kept.reshape(weights.shape)
