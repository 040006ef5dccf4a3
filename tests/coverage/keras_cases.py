"""Layers and topologies of Keras that are tried, one small model each.

A case builds its model from the modules `keras` and `keras.layers`; weights are seeded, and layers
that hold statistics are adapted, or given some, so that nothing is trivially zero or one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Build = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: of the layer or topology.
        kind: of the layer, for the table.
        build: `(keras, layers) -> model`.
        inputs: shapes without the batch.
        words: number of different integers that the inputs take; 0 for floats.
        exported: whether it is given as a SavedModel: subclasses need code that is in no file.
    """

    name: str
    kind: str
    build: Build
    inputs: tuple[Shape, ...]
    words: int = 0
    exported: bool = False


def _chain(*make: Callable[[Any], Any], shape: Shape) -> Build:
    """Return what builds a Sequential of layers."""

    def build(keras: Any, layers: Any) -> Any:
        return keras.Sequential([layers.Input(shape), *(each(layers) for each in make)])

    return build


def _layer(
    name: str, kind: str, shape: Shape, make: Callable[[Any], Any], *, words: int = 0
) -> Case:
    return Case(name, kind, _chain(make, shape=shape), (shape,), words)


ROW, SERIES, PICTURE, VOLUME = (12,), (10, 6), (12, 12, 3), (6, 6, 6, 2)


def _adapted(keras: Any, layers: Any) -> Any:
    import numpy as np

    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(3).normal(4, 3, (64, *ROW)))
    return keras.Sequential([layers.Input(ROW), normalization, layers.Dense(4)])


def _with_statistics(make: Callable[[Any], Any], shape: Shape) -> Build:
    """Return what builds a normalization layer whose weights are neither zero nor one."""

    def build(keras: Any, layers: Any) -> Any:
        import numpy as np

        random = np.random.default_rng(5)
        model = keras.Sequential([layers.Input(shape), make(layers)])
        model.set_weights([random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
        return model

    return build


def _multi_input(keras: Any, layers: Any) -> Any:
    left, right = layers.Input((4,), name="zeta"), layers.Input((3,), name="alpha")
    joined = layers.Concatenate()([layers.Dense(8, activation="relu")(left), right])
    return keras.Model([left, right], layers.Dense(3, activation="softmax")(joined))


def _multi_output(keras: Any, layers: Any) -> Any:
    taken = layers.Input(ROW)
    hidden = layers.Dense(8, activation="relu")(taken)
    return keras.Model(
        taken,
        [layers.Dense(4, name="box")(hidden), layers.Dense(3, "softmax", name="scores")(hidden)],
    )


def _shared(keras: Any, layers: Any) -> Any:
    tower = layers.Dense(5, activation="relu")
    left, right = layers.Input((6,)), layers.Input((6,))
    return keras.Model([left, right], layers.Dot(axes=1)([tower(left), tower(right)]))


def _nested(keras: Any, layers: Any) -> Any:
    inner = keras.Sequential([layers.Input((8,)), layers.Dense(6, "relu"), layers.Dropout(0.3)])
    taken = layers.Input((8,))
    outer = layers.Dense(3, "softmax")(layers.Add()([inner(taken), layers.Dense(6)(taken)]))
    return keras.Model(taken, outer)


def _residual(keras: Any, layers: Any) -> Any:
    taken = layers.Input(PICTURE)
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(taken)
    second = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(first))
    joined = layers.ReLU()(layers.Add()([first, second]))
    return keras.Model(taken, layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(joined)))


def _inception(keras: Any, layers: Any) -> Any:
    taken = layers.Input(PICTURE)
    branches = [
        layers.Conv2D(4, 1, activation="relu")(taken),
        layers.Conv2D(4, 3, padding="same", activation="relu")(taken),
        layers.Conv2D(4, 5, padding="same", activation="relu")(taken),
        layers.Conv2D(4, 1)(layers.MaxPooling2D(3, 1, "same")(taken)),
    ]
    joined = layers.Flatten()(layers.Concatenate()(branches))
    return keras.Model(taken, layers.Dense(4)(joined))


def _unet(keras: Any, layers: Any) -> Any:
    taken = layers.Input(PICTURE)
    high = layers.Conv2D(6, 3, padding="same", activation="relu")(taken)
    low = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(high))
    back = layers.Conv2DTranspose(6, 2, strides=2, padding="same")(low)
    joined = layers.Concatenate()([high, back])
    return keras.Model(taken, layers.Conv2D(1, 1, activation="sigmoid")(joined))


def _separable_stack(keras: Any, layers: Any) -> Any:
    taken = layers.Input(PICTURE)
    hidden = taken
    for width in (8, 12):
        hidden = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
        hidden = layers.Conv2D(width, 1)(hidden)
    return keras.Model(taken, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))


def _squeeze_excite(keras: Any, layers: Any) -> Any:
    taken = layers.Input(PICTURE)
    hidden = layers.Conv2D(8, 3, padding="same", activation="swish")(taken)
    weight = layers.Dense(8, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(hidden))
    return keras.Model(taken, layers.GlobalMaxPooling2D()(layers.Multiply()([hidden, weight])))


def _transformer(keras: Any, layers: Any) -> Any:
    taken = layers.Input(SERIES)
    seen = layers.MultiHeadAttention(2, 4)(taken, taken)
    hidden = layers.LayerNormalization()(layers.Add()([taken, seen]))
    wide = layers.Dense(6)(layers.Dense(12, activation="gelu")(hidden))
    out = layers.LayerNormalization()(layers.Add()([hidden, wide]))
    return keras.Model(taken, layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(out)))


def _text(keras: Any, layers: Any) -> Any:
    taken = layers.Input((9,), dtype="int32")
    hidden = layers.Bidirectional(layers.LSTM(5))(layers.Embedding(20, 6)(taken))
    return keras.Model(taken, layers.Dense(1, "sigmoid")(hidden))


def _convlstm_stack(keras: Any, layers: Any) -> Any:
    taken = layers.Input((40, 4))
    hidden = layers.MaxPooling1D(2)(layers.Conv1D(8, 5, activation="relu")(taken))
    return keras.Model(taken, layers.Dense(3, "softmax")(layers.GRU(6)(hidden)))


def _tcn(keras: Any, layers: Any) -> Any:
    taken = hidden = layers.Input((24, 4))
    for rate in (1, 2, 4):
        hidden = layers.Conv1D(4, 3, padding="causal", dilation_rate=rate, activation="relu")(
            hidden
        )
        hidden = layers.Add()([taken, hidden])
    return keras.Model(taken, layers.Dense(2)(layers.Flatten()(hidden)))


def _autoencoder(keras: Any, layers: Any) -> Any:
    widths = [8, 3, 8]
    make = [lambda built, w=w: built.Dense(w, activation="relu") for w in widths]
    return _chain(*make, lambda built: built.Dense(12), shape=ROW)(keras, layers)


def _operations(keras: Any, layers: Any) -> Any:
    taken = layers.Input(ROW)
    hidden = keras.ops.sqrt(keras.ops.abs(taken) + 1.0) * keras.ops.sin(taken)
    low = keras.ops.where(taken > 0, hidden, -hidden)
    return keras.Model(taken, keras.ops.mean(low, axis=-1, keepdims=True))


def _spectrum(keras: Any, layers: Any) -> Any:
    return keras.Sequential(
        [layers.Input((64, 1)), layers.STFTSpectrogram("magnitude", 16, 8, 16), layers.Flatten()]
    )


def _subclass(keras: Any, layers: Any) -> Any:
    class Gate(keras.Model):  # type: ignore[misc]  # Keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate = layers.Dense(6), layers.Dense(6, activation="sigmoid")

        def call(self, given: Any) -> Any:
            return self.value(given) * self.gate(given)

    model = Gate()
    model(keras.ops.zeros((1, *ROW)))
    return model


def _lambda(keras: Any, layers: Any) -> Any:
    return keras.Sequential(
        [layers.Input(ROW), layers.Lambda(lambda given: given * given), layers.Dense(2)]
    )


def _activations() -> list[Case]:
    names = "relu relu6 sigmoid tanh softplus softsign elu selu gelu silu mish exponential"
    names += " hard_sigmoid hard_silu leaky_relu log_softmax celu glu squareplus hard_tanh"
    return [
        _layer(name, "activation", ROW, lambda built, name=name: built.Dense(8, activation=name))
        for name in names.split()
    ]


CASES: list[Case] = [
    _layer("Dense", "core", ROW, lambda built: built.Dense(5)),
    _layer("EinsumDense", "core", SERIES, lambda b: b.EinsumDense("abc,cd->abd", (None, 7))),
    _layer("Embedding", "core", (9,), lambda built: built.Embedding(20, 6), words=20),
    *_activations(),
    Case("PReLU", "activation", _with_statistics(lambda b: b.PReLU(), ROW), (ROW,)),
    _layer("LeakyReLU", "activation", ROW, lambda built: built.LeakyReLU(0.2)),
    _layer("ELU", "activation", ROW, lambda built: built.ELU()),
    _layer("Softmax", "activation", ROW, lambda built: built.Softmax()),
    _layer("Conv1D", "convolution", SERIES, lambda b: b.Conv1D(5, 3, padding="same", strides=2)),
    _layer("Conv1D causal", "convolution", SERIES, lambda b: b.Conv1D(5, 3, padding="causal")),
    _layer("Conv2D", "convolution", PICTURE, lambda b: b.Conv2D(5, 3, strides=2)),
    _layer("Conv2D dilated", "convolution", PICTURE, lambda b: b.Conv2D(5, 3, dilation_rate=2)),
    _layer("Conv2D grouped", "convolution", PICTURE, lambda b: b.Conv2D(6, 3, groups=3)),
    _layer("Conv3D", "convolution", VOLUME, lambda b: b.Conv3D(3, 3, padding="same")),
    _layer("DepthwiseConv1D", "convolution", SERIES, lambda b: b.DepthwiseConv1D(3)),
    _layer("DepthwiseConv2D", "convolution", PICTURE, lambda b: b.DepthwiseConv2D(3)),
    _layer("SeparableConv1D", "convolution", SERIES, lambda b: b.SeparableConv1D(5, 3)),
    _layer("SeparableConv2D", "convolution", PICTURE, lambda b: b.SeparableConv2D(5, 3)),
    _layer("Conv1DTranspose", "convolution", SERIES, lambda b: b.Conv1DTranspose(4, 3, 2)),
    _layer("Conv2DTranspose", "convolution", PICTURE, lambda b: b.Conv2DTranspose(4, 3, 2, "same")),
    _layer("Conv3DTranspose", "convolution", VOLUME, lambda b: b.Conv3DTranspose(3, 2, 2)),
    _layer("MaxPooling1D", "pooling", SERIES, lambda b: b.MaxPooling1D(2)),
    _layer("MaxPooling2D", "pooling", PICTURE, lambda b: b.MaxPooling2D(3, 2, "same")),
    _layer("MaxPooling3D", "pooling", VOLUME, lambda b: b.MaxPooling3D(2)),
    _layer("AveragePooling1D", "pooling", SERIES, lambda b: b.AveragePooling1D(2)),
    _layer("AveragePooling2D", "pooling", PICTURE, lambda b: b.AveragePooling2D(3, 2, "same")),
    _layer("AveragePooling3D", "pooling", VOLUME, lambda b: b.AveragePooling3D(2)),
    _layer("GlobalAveragePooling1D", "pooling", SERIES, lambda b: b.GlobalAveragePooling1D()),
    _layer("GlobalAveragePooling2D", "pooling", PICTURE, lambda b: b.GlobalAveragePooling2D()),
    _layer("GlobalMaxPooling2D", "pooling", PICTURE, lambda b: b.GlobalMaxPooling2D()),
    _layer("AdaptiveAveragePooling2D", "pooling", PICTURE, lambda b: b.AdaptiveAveragePooling2D(4)),
    Case(
        "BatchNormalization",
        "normalization",
        _with_statistics(lambda b: b.BatchNormalization(), PICTURE),
        (PICTURE,),
    ),
    Case(
        "LayerNormalization",
        "normalization",
        _with_statistics(lambda b: b.LayerNormalization(), SERIES),
        (SERIES,),
    ),
    Case(
        "RMSNormalization",
        "normalization",
        _with_statistics(lambda b: b.RMSNormalization(), SERIES),
        (SERIES,),
    ),
    Case(
        "GroupNormalization",
        "normalization",
        _with_statistics(lambda b: b.GroupNormalization(3), PICTURE),
        (PICTURE,),
    ),
    _layer("UnitNormalization", "normalization", ROW, lambda b: b.UnitNormalization()),
    Case("Normalization", "preprocessing", _adapted, (ROW,)),
    _layer("Rescaling", "preprocessing", PICTURE, lambda b: b.Rescaling(1 / 255, -0.5)),
    _layer("Resizing", "preprocessing", PICTURE, lambda b: b.Resizing(7, 9)),
    _layer("CenterCrop", "preprocessing", PICTURE, lambda b: b.CenterCrop(8, 8)),
    _layer("RandomFlip (off)", "preprocessing", PICTURE, lambda b: b.RandomFlip()),
    _layer(
        "Discretization",
        "preprocessing",
        ROW,
        lambda b: b.Discretization([-1.0, 0.0, 1.0], output_mode="one_hot"),
    ),
    _layer(
        "CategoryEncoding",
        "preprocessing",
        (4,),
        lambda b: b.CategoryEncoding(6, output_mode="multi_hot"),
        words=6,
    ),
    Case("STFTSpectrogram", "preprocessing", _spectrum, ((64, 1),)),
    _layer("LSTM", "recurrent", SERIES, lambda b: b.LSTM(5)),
    _layer("LSTM, all steps", "recurrent", SERIES, lambda b: b.LSTM(5, return_sequences=True)),
    _layer("LSTM, backwards", "recurrent", SERIES, lambda b: b.LSTM(5, go_backwards=True)),
    _layer("GRU", "recurrent", SERIES, lambda b: b.GRU(5)),
    _layer("GRU, reset before", "recurrent", SERIES, lambda b: b.GRU(5, reset_after=False)),
    _layer("SimpleRNN", "recurrent", SERIES, lambda b: b.SimpleRNN(5)),
    _layer("Bidirectional LSTM", "recurrent", SERIES, lambda b: b.Bidirectional(b.LSTM(4))),
    _layer("Bidirectional GRU", "recurrent", SERIES, lambda b: b.Bidirectional(b.GRU(4))),
    _layer("RNN of cells", "recurrent", SERIES, lambda b: b.RNN([b.LSTMCell(4), b.GRUCell(3)])),
    _layer("ConvLSTM1D", "recurrent", (5, 8, 2), lambda b: b.ConvLSTM1D(3, 3, padding="same")),
    _layer("TimeDistributed", "recurrent", SERIES, lambda b: b.TimeDistributed(b.Dense(4))),
    _layer("Flatten", "shape", SERIES, lambda b: b.Flatten()),
    _layer("Reshape", "shape", ROW, lambda b: b.Reshape((3, 4))),
    _layer("Permute", "shape", SERIES, lambda b: b.Permute((2, 1))),
    _layer("RepeatVector", "shape", ROW, lambda b: b.RepeatVector(3)),
    _layer("Cropping2D", "shape", PICTURE, lambda b: b.Cropping2D(2)),
    _layer("ZeroPadding2D", "shape", PICTURE, lambda b: b.ZeroPadding2D(2)),
    _layer("UpSampling2D nearest", "shape", PICTURE, lambda b: b.UpSampling2D(2)),
    _layer(
        "UpSampling2D bilinear",
        "shape",
        PICTURE,
        lambda b: b.UpSampling2D(2, interpolation="bilinear"),
    ),
    _layer("Dropout (off)", "regularization", ROW, lambda b: b.Dropout(0.5)),
    _layer("SpatialDropout2D (off)", "regularization", PICTURE, lambda b: b.SpatialDropout2D(0.5)),
    _layer("GaussianNoise (off)", "regularization", ROW, lambda b: b.GaussianNoise(0.5)),
    Case("multi-input", "topology", _multi_input, ((4,), (3,))),
    Case("multi-output", "topology", _multi_output, (ROW,)),
    Case("shared layers", "topology", _shared, ((6,), (6,))),
    Case("nested models", "topology", _nested, ((8,),)),
    Case("residual", "topology", _residual, (PICTURE,)),
    Case("inception", "topology", _inception, (PICTURE,)),
    Case("U-Net", "topology", _unet, (PICTURE,)),
    Case("MobileNet block", "topology", _separable_stack, (PICTURE,)),
    Case("squeeze and excite", "topology", _squeeze_excite, (PICTURE,)),
    Case("transformer block", "topology", _transformer, (SERIES,)),
    Case("text: Embedding, BiLSTM", "topology", _text, ((9,),), words=20),
    Case("CNN and GRU", "topology", _convlstm_stack, ((40, 4),)),
    Case("temporal convolutions", "topology", _tcn, ((24, 4),)),
    Case("auto-encoder", "topology", _autoencoder, (ROW,)),
    Case("keras.ops", "topology", _operations, (ROW,)),
    Case("subclass", "topology", _subclass, (ROW,), exported=True),
    Case("Lambda", "topology", _lambda, (ROW,), exported=True),
]
