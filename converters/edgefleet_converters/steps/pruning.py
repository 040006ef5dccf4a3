"""Pruning of Keras models: of single weights, of whole channels, and of two weights in four.

Only the pruning of channels makes a model smaller and faster by itself. The other two set weights
to zero: the file is as large as before and its kernels compute the zeros too, but it compresses
better, and it is the compressed file that travels.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgefleet_converters import keras_files
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import channel_importance, channels, training
from edgefleet_converters.steps.registry import Context, Model, step
from edgefleet_converters.steps.training import Epochs, Rate, Settings, Share

# Kernels with fewer weights do not pay: compression gains below a hundred bytes.
_MIN_WEIGHTS = 64
# Masks are drawn anew this often while the sparsity rises, over this share of the steps.
_REDRAWN_EVERY = 8
_RISING = 2 / 3


class MagnitudeOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to prune single weights.

    Attributes:
        sparsity: share of each kernel that becomes zero.
        epochs: of fine-tuning, while the sparsity rises and after.
        learning_rate: at the start.
        label_weight: share of the labels in the loss.
    """

    sparsity: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    epochs: Epochs = 10
    learning_rate: Rate = 1e-3
    label_weight: Share = 0.0


class ChannelOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to prune channels.

    Attributes:
        keep: share of the channels that stay.
        scope: that share of each layer, or of the whole network, where layers that matter less
            lose more.
        importance: of a channel: size of its weights (`l1`), size of its scale in the batch
            normalization that follows (`bn-gamma`), or first-order effect on the loss (`taylor`).
        multiple: channels of a layer are kept in multiples of it, where it has as many.
        epochs: of fine-tuning.
        learning_rate: at the start.
        label_weight: share of the labels in the loss.
    """

    keep: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    scope: Literal["layer", "network"] = "layer"
    importance: channel_importance.Kind = "l1"
    multiple: Annotated[int, Meta(ge=1, le=64)] = 1
    epochs: Epochs = 30
    learning_rate: Rate = 2e-3
    label_weight: Share = 0.3


class TwoInFourOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to fine-tune after pruning two weights in four.

    Attributes:
        epochs: of fine-tuning.
        learning_rate: at the start.
        label_weight: share of the labels in the loss.
    """

    epochs: Epochs = 10
    learning_rate: Rate = 1e-3
    label_weight: Share = 0.0


@step(
    "prune-weights",
    takes="keras",
    gives="keras",
    reference="https://arxiv.org/abs/1710.01878",
    options=MagnitudeOptions,
)
def weights(model: Model, options: MagnitudeOptions, context: Context) -> Model:
    """Set the smallest weights of each kernel to zero, more and more of them while fine-tuning.

    Buys bytes on the wire only: the file keeps its size and speed, and compresses to about 60 % at
    half and 20 % at nine tenths of the weights.
    """
    network = training.read(model, context)
    kernels = _kernels(network)
    rows = training.inputs_of(model, context)
    settings = _settings(options)
    steps = settings.epochs * -(-len(rows[0]) // settings.batch_rows)
    risen = max(1, int(steps * _RISING))

    def masks(done: int) -> list[NDArray[np.float32]] | None:
        if done > risen or (done % _REDRAWN_EVERY and done < risen):
            return None
        sparsity = options.sparsity * (1 - (1 - done / risen) ** 3)
        return [magnitude_mask(np.asarray(kernel), sparsity) for kernel in kernels]

    zeros = _masked(kernels, masks)
    training.train(network, rows, context, settings, [zeros])
    _apply(kernels, [magnitude_mask(np.asarray(kernel), options.sparsity) for kernel in kernels])
    return _made(model, network, "prune-weights", {"sparsity": options.sparsity})


@step(
    "prune-2-in-4",
    takes="keras",
    gives="keras",
    reference="https://arxiv.org/abs/2104.08378",
    options=TwoInFourOptions,
)
def two_in_four(model: Model, options: TwoInFourOptions, context: Context) -> Model:
    """Set the two smallest of every four weights along a kernel's input to zero, and fine-tune.

    Hardware with sparse kernels (Ampere GPUs, so Jetson Orin) computes such weights twice as fast;
    CPUs gain nothing but a better compressed file.
    """
    network = training.read(model, context)
    kernels = [kernel for kernel in _kernels(network) if kernel.shape[-2] % 4 == 0]
    if not kernels:
        raise UnsupportedError("no kernel has a number of inputs that is a multiple of 4")
    fixed = [two_in_four_mask(np.asarray(kernel)) for kernel in kernels]
    _apply(kernels, fixed)
    zeros = _masked(kernels, lambda done: None if done else fixed)
    rows = training.inputs_of(model, context)
    training.train(network, rows, context, _settings(options), [zeros])
    return _made(model, network, "prune-2-in-4", {"kernels": len(kernels)})


@step(
    "prune-channels",
    takes="keras",
    gives="keras",
    reference="https://arxiv.org/abs/1608.08710",
    options=ChannelOptions,
)
def channels_away(model: Model, options: ChannelOptions, context: Context) -> Model:
    """Take the least important channels out of the network, and fine-tune what is left.

    Buys size and time on every runtime, because the result is an ordinary, smaller network: with
    half of the channels about a quarter of the weights. Combines with quantization.
    """
    keras = keras_files.import_keras(context.seed)
    network = training.read(model, context)
    rows = training.inputs_of(model, context)
    found = channels.trace(network)
    if not found.free:
        raise UnsupportedError("no layer of the model has channels that can be taken out")
    importance = channel_importance.rank(network, found, rows, context, options.importance)
    gone = choose(found.free, importance, options)
    if not gone:
        raise UnsupportedError("its layers have too few channels to take any out")
    smaller = channels.without(keras, network, found, gone)
    training.train(smaller, rows, context, _settings(options))
    facts = {
        "channels": len(found.free),
        "kept": len(found.free) - len(gone),
        "weights": int(network.count_params()),
        "weights_kept": int(smaller.count_params()),
    }
    return _made(model, smaller, "prune-channels", facts)


def magnitude_mask(values: NDArray[np.floating], sparsity: float) -> NDArray[np.float32]:
    """Return 1 for the weights that stay and 0 for the `sparsity` share of smallest magnitude.

    Ties are broken by position, so the share is met exactly (rounded down).
    """
    order = np.argsort(np.abs(values), axis=None, kind="stable")
    kept = np.ones(values.size, np.float32)
    kept[order[: int(values.size * sparsity)]] = 0
    return kept.reshape(values.shape)


def two_in_four_mask(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return 0 for the two smallest weights of every four along the axis before the last.

    Args:
        values: kernel `(…, inputs, outputs)` with inputs in multiples of 4.
    """
    *front, inputs, outputs = values.shape
    fours = np.abs(values).reshape(*front, inputs // 4, 4, outputs)
    order = np.argsort(np.argsort(fours, axis=-2, kind="stable"), axis=-2, kind="stable")
    return (order >= 2).astype(np.float32).reshape(values.shape)


def choose(
    free: dict[int, list[channels.Producer]],
    importance: dict[int, float],
    options: ChannelOptions,
) -> set[int]:
    """Return the channels that go.

    Channels that the same layers make are one group; a group keeps at least one channel, and a
    tenth of its channels when the whole network is the scope.

    Args:
        free: channel → the places that make it.
        importance: of each channel; the sizes are comparable between groups.
        options: how many stay.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for channel, places in free.items():
        groups.setdefault(frozenset(layer for layer, _ in places), []).append(channel)
    ranked = sorted(free, key=lambda channel: (-importance[channel], channel))
    survivors = set(ranked[: round(len(ranked) * options.keep)])
    gone: set[int] = set()
    for members in groups.values():
        if options.scope == "layer":
            count = len(members) * options.keep
        else:
            count = max(sum(one in survivors for one in members), len(members) / 10)
        whole = -(-int(np.ceil(count - 1e-9)) // options.multiple) * options.multiple
        order = sorted(members, key=lambda channel: (-importance[channel], channel))
        gone |= set(order[max(1, whole) :])
    return gone


def _kernels(network: Any) -> list[Any]:
    """Return the trainable weights of two axes and more that are worth pruning."""
    return [
        weight
        for weight in network.trainable_weights
        if len(weight.shape) >= 2 and int(np.prod(weight.shape)) >= _MIN_WEIGHTS
    ]


def _apply(kernels: list[Any], masks: list[NDArray[np.float32]]) -> None:
    for kernel, mask in zip(kernels, masks, strict=True):
        kernel.assign(kernel * mask)


def _masked(kernels: list[Any], masks: Callable[[int], list[NDArray[np.float32]] | None]) -> Any:
    """Return a callback of Keras that keeps pruned weights at zero.

    Args:
        kernels: that are pruned.
        masks: number of steps done → new masks, or None to keep the last ones.
    """
    import keras

    class Masked(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
        def __init__(self) -> None:
            super().__init__()
            self._done = 0
            self._last = masks(0) or []

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            del batch, logs
            self._done += 1
            self._last = masks(self._done) or self._last
            _apply(kernels, self._last)

    return Masked()


def _settings(options: MagnitudeOptions | TwoInFourOptions | ChannelOptions) -> Settings:
    return Settings(options.epochs, options.learning_rate, options.label_weight)


def _made(model: Model, network: Any, name: str, facts: Mapping[str, float]) -> Model:
    return msgspec.structs.replace(
        model, data=keras_files.write(network), notes=model.notes | {name: dict(facts)}
    )
