"""Which version of a TFLite operator its types and options need, recomputed from the content.

The version that stands in a file is what its converter wrote, and some write 1 whatever they do:
then an old runtime takes the operator and computes nonsense. The rules are those of LiteRT's
versioning (`op_version.cc`), as tables, with one difference: 16-bit activations need the later
version for a 32-bit bias only. LiteRT's rule asks for it wherever the file says of which type the
bias is; but one of 64 bits is what all releases expect, and tflite-runtime 2.14 computes it right.

A rule is `(version, condition)`; the first that holds gives the version; none gives the default.
"""

from collections.abc import Callable, Iterator

from msgspec import Struct

from edgefleet_converters.compatibility import probe_sums
from edgefleet_converters.compatibility.flatbuffer import Table

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


class Tensor(Struct, frozen=True):
    """A tensor as an operator sees it.

    Attributes:
        kind: name of its type.
        shape: sizes.
        scales: how many scales it is quantized by; 0 if it is not.
        quantized: whether the file gives any quantization for it, scales or not.
        dimension: along which the scales go.
        scale: the first.
        sparse: whether it is stored sparsely.
        constant: whether the file holds its data.
    """

    kind: str
    shape: list[int]
    scales: int = 0
    quantized: bool = False
    dimension: int = 0
    scale: float = 0.0
    sparse: bool = False
    constant: bool = False

    def per_channel(self, dimension: int) -> bool:
        """Tell whether each entry of a dimension has a scale of its own.

        One scale for one entry is that of the whole tensor, which every version takes.
        """
        return 1 < self.scales == (self.shape[dimension] if dimension < len(self.shape) else 0)


class Operator:
    """An operator with its tensors. Absent tensors have an empty type."""

    _ABSENT = Tensor("", [])

    def __init__(
        self,
        name: str,
        inputs: list[Tensor | None],
        outputs: list[Tensor | None],
        options: Table | None,
    ) -> None:
        self.name, self.inputs, self.outputs, self._options = name, inputs, outputs, options

    def input(self, index: int) -> Tensor:
        """Return an input."""
        held = self.inputs[index] if index < len(self.inputs) else None
        return held or self._ABSENT

    def output(self, index: int = 0) -> Tensor:
        """Return an output."""
        held = self.outputs[index] if index < len(self.outputs) else None
        return held or self._ABSENT

    def kind(self, index: int = 0) -> str:
        """Return the type of an input."""
        return self.input(index).kind

    def option(self, slot: int, kind: str = "bool") -> int:
        """Return an option; its default 0 where the file gives none."""
        return 0 if self._options is None else self._options.scalar(slot, kind)

    def is_all(self, first: str, second: str, result: str) -> bool:
        """Tell whether the first two inputs and the output are of these types."""
        return self.kind(0) == first and self.kind(1) == second and self.output().kind == result

    @property
    def is_hybrid(self) -> bool:
        """Whether float activations meet int8 weights."""
        return self.is_all("float32", "int8", "float32")

    @property
    def ranks(self) -> list[int]:
        """Number of dimensions of each input."""
        return [len(held.shape) for held in self.inputs if held is not None]

    @property
    def broadcasts_wide(self) -> bool:
        """Whether the first two inputs differ in shape, and one has more than four dimensions."""
        return self.input(0).shape != self.input(1).shape and max(self.ranks, default=0) > 4


Condition = Callable[[Operator], bool]
Rule = tuple[int, Condition]


def _types(*pairs: tuple[int, str], at: int = 0) -> list[Rule]:
    """Return rules by the type of one input: `(version, types, separated by blanks)`."""
    return [(version, _is_one(kinds, at)) for version, kinds in pairs]


def _is_one(kinds: str, at: int) -> Condition:
    allowed = frozenset(kinds.split())
    return lambda op: op.kind(at) in allowed


def _both(kind: str) -> Condition:
    return lambda op: op.kind(0) == kind == op.output().kind


def _either(*pairs: tuple[int | str, ...]) -> Iterator[Rule]:
    """Yield rules by the type of the first input or of the output: `(version, type, …)`."""

    def one_of(kinds: frozenset[int | str]) -> Condition:
        return lambda op: bool(kinds & {op.kind(), op.output().kind})

    for version, *kinds in pairs:
        yield int(version), one_of(frozenset(kinds))


_F8 = " ".join(FLOAT8)
_INT8, _INT16_8 = _types((2, "int8")), _types((3, "int16"), (2, "int8"))
_POOL: list[Rule] = [(3, _both("int16")), *_INT8]
_BATCH_SPACE: list[Rule] = [
    *_types((4, "int16")),
    (3, lambda op: len(op.input(0).shape) != 4),
    *_INT8,
]
_EXTREME: list[Rule] = [(4, _both("int16")), (3, lambda op: op.broadcasts_wide), *_INT8]
_PAD: list[Rule] = [
    *_types((6, _F8), (5, "bool")),
    (4, lambda op: len(op.input(0).shape) > 4),
    *_INT16_8,
]
_RESIZED = _types((4, "int16"))


def _rnn(asymmetric: int) -> list[Rule]:
    """Return the rules of recurrent layers with int8 weights in input 1."""

    def hybrid(op: Operator) -> bool:
        return op.kind(1) == "int8" and op.output().kind == "float32"

    return [(3, lambda op: hybrid(op) and bool(op.option(asymmetric))), (2, hybrid)]


def _hybrid_at(weights: int) -> Condition:
    return lambda op: (op.kind(0), op.kind(weights), op.output().kind) == (
        "float32", "int8", "float32",
    )  # fmt: skip


def _int16_weights8(op: Operator) -> bool:
    return (op.kind(0), op.kind(2), op.output().kind) == ("int16", "int8", "int16")


_RULES: dict[str, list[Rule]] = {
    "CONV_2D": [
        (8, lambda op: op.is_all("int16", "int8", "int16") and op.kind(2) == "int32"),
        (6, lambda op: _last(op.input(0)) != _last(op.input(1))),
        (4, lambda op: op.is_all("int16", "int16", "int16")),
        (3, lambda op: op.is_all("int8", "int8", "int8")),
        (7, lambda op: op.is_all("int8", "int4", "int8")),
        (5, lambda op: op.is_hybrid and op.input(1).per_channel(0)),
        (2, lambda op: op.is_hybrid),
    ],
    "DEPTHWISE_CONV_2D": [
        (5, lambda op: op.is_all("int16", "int16", "int16")),
        (6, lambda op: op.is_hybrid and op.input(1).per_channel(3)),
        (4, lambda op: op.is_hybrid),
        (3, lambda op: op.is_all("int8", "int8", "int8")),
        (7, lambda op: op.is_all("int8", "int4", "int8")),
        # The file's default for a dilation is 1, and 0 here stands for "not given".
        (2, lambda op: op.option(5, "int32") > 1 or op.option(6, "int32") > 1),
    ],
    "EMBEDDING_LOOKUP": [
        (4, lambda op: op.kind(1) == "int4" or op.input(1).per_channel(0)),
        *_types((5, "int2"), at=1),
    ],
    "FAKE_QUANT": [(2, lambda op: bool(op.option(3)))],
    "FULLY_CONNECTED": [
        *_types((14, "int2"), at=1),
        (13, lambda op: op.is_all("int16", "int4", "int16")),
        (12, lambda op: op.is_hybrid and op.input(1).per_channel(0)),
        (11, lambda op: op.is_all("int16", "int8", "int16") and op.kind(2) == "int32"),
        (8, lambda op: op.input(1).sparse),
        (7, lambda op: op.is_all("int16", "int16", "int16")),
        (6, lambda op: len(op.inputs) == 2),
        (5, lambda op: bool(op.option(2))),
        (4, lambda op: op.is_all("int8", "int8", "int8")),
        (10, lambda op: op.is_all("int8", "int4", "int8")),
        (9, lambda op: op.is_hybrid and bool(op.option(3))),
        (3, lambda op: op.is_hybrid),
        (2, lambda op: op.option(1, "int8") == 1),
    ],
    "GATHER": [
        *_types((8, _F8), (7, "int4")),
        *_types((6, "int16"), at=1),
        (5, lambda op: bool(op.option(1, "int32"))),
        *_types((4, "int16"), (3, "bool"), (2, "int8")),
    ],
    "SVDF": [
        *_types((3, "int8")),
        (4, lambda op: op.is_hybrid and bool(op.option(2))),
        (2, lambda op: op.is_hybrid),
    ],
    "SIGN": _types((2, "int32")),
    "SIN": _types((2, "float16")),
    "COS": _types((2, "float16")),
    "MUL": [
        *_types((8, "float16"), (7, "uint32")),
        (
            7,
            lambda op: (
                op.kind() == "int16" and not (op.input(0).quantized or op.input(1).quantized)
            ),
        ),
        *_types((6, "complex64"), (5, "int64"), (4, "int16")),
        (3, lambda op: op.input(0).scale * op.input(1).scale >= op.output().scale > 0),
        *_INT8,
    ],
    "MAX_POOL_2D": _POOL,
    "AVERAGE_POOL_2D": _POOL,
    "TRANSPOSE": [
        *_types((9, "float16"), (8, "bfloat16")),
        (8, lambda op: len(op.input(0).shape) > 6),
        *_types((7, "int4")),
        (6, lambda op: len(op.input(0).shape) > 5),
        *_types((5, "int16")),
        (4, lambda op: len(op.input(0).shape) > 4),
        *_types((3, "bool"), (2, "int8")),
    ],
    "TRANSPOSE_CONV": [
        (5, lambda op: (op.kind(2), op.kind(1), op.kind(3)) == ("int16", "int8", "int32")),
        (4, lambda op: bool(op.option(3, "int8"))),
        (3, lambda op: len(op.inputs) == 4 and bool(op.kind(3))),
        *_types((2, "int8"), at=1),
    ],
    "LSTM": [
        (5, lambda op: op.option(3, "int8") == 0 and _int16_weights8(op)),
        (4, lambda op: op.option(3, "int8") == 0 and _hybrid_at(2)(op) and bool(op.option(4))),
        (3, lambda op: op.option(3, "int8") == 0 and _hybrid_at(2)(op)),
        (2, lambda op: op.option(3, "int8") == 1),
    ],
    "UNIDIRECTIONAL_SEQUENCE_LSTM": [
        (5, _int16_weights8),
        (4, lambda op: bool(op.option(5))),
        (3, lambda op: _hybrid_at(2)(op) and bool(op.option(4))),
        (2, _hybrid_at(2)),
    ],
    "SPLIT": _types((5, _F8), (4, "int16"), (3, "int32"), (2, "int8"), at=1),
    "SPARSE_TO_DENSE": _types((3, "int8 uint8"), (2, "int64"), at=2),
    "SLICE": [
        *_types((8, "float16"), (7, "int4"), (6, "uint32")),
        (5, lambda op: len(op.input(0).shape) > 4),
        *_types((4, "int16"), (3, "string"), (2, "int8")),
    ],
    "UNPACK": [
        *_types((6, _F8), (2, "int8 uint8"), (3, "bool")),
        (4, _both("int16")),
        *_types((5, "float16 bfloat16")),
    ],
    "DEQUANTIZE": [
        *_types((9, _F8), (8, "uint4"), (7, "int2"), (6, "int4"), (3, "int16 float16")),
        (5, lambda op: op.kind() == "int8" and op.input(0).per_channel(op.input(0).dimension)),
        *_INT8,
    ],
    "QUANTIZE": [
        (5, lambda op: "uint4" in (op.kind(), op.output().kind)),
        (4, lambda op: "int4" in (op.kind(), op.output().kind)),
        (3, lambda op: op.output().per_channel(op.output().dimension)),
        (2, lambda op: op.output().kind == "int16"),
    ],
    "FLOOR_DIV": _types((3, "int16 int8"), (2, "float32")),
    "FLOOR_MOD": _types((2, "int16 int8")),
    "L2_NORMALIZATION": [(2, lambda op: op.output().kind == "int8")],
    "ABS": [
        *_types((5, "int32")),
        (3, lambda op: op.kind() == "int16" and op.input(0).quantized),
        *_types((4, "int16"), (2, "int8 uint8")),
    ],
    "RELU": _types((3, "int16"), (2, "int8 uint8")),
    "STRIDED_SLICE": [
        (8, lambda op: bool(op.option(5))),
        *_types((7, "uint32")),
        (6, lambda op: bool(op.option(2, "int32") or op.option(3, "int32"))),
        *_types((5, "string")),
        (4, lambda op: len(op.input(0).shape) > 4),
        *_types((3, "bool"), (2, "int8")),
    ],
    "REVERSE_V2": _types((4, _F8), (3, "int8"), (2, "bool")),
    "RESIZE_BILINEAR": [*_RESIZED, (3, lambda op: bool(op.option(3))), *_INT8],
    "RESIZE_NEAREST_NEIGHBOR": [
        *_RESIZED,
        (3, lambda op: bool(op.option(0) or op.option(1))),
        *_INT8,
    ],
    "MAXIMUM": _EXTREME,
    "MINIMUM": _EXTREME,
    "PACK": [
        *_types((5, _F8), (2, "int8")),
        (3, _both("int16")),
        *_types((4, "uint32")),
    ],
    "TILE": _types((3, "int8"), (2, "string")),
    "SQUEEZE": _types((2, "string")),
    "SPACE_TO_BATCH_ND": _BATCH_SPACE,
    "BATCH_TO_SPACE_ND": _BATCH_SPACE,
    "ADD": [
        *_types((6, "float16")),
        (5, lambda op: op.kind() == "int16" and not op.input(0).quantized),
        *_types((4, "int64")),
        (3, lambda op: _both("int16")(op) and not op.option(1)),
        *_INT8,
    ],
    "SUB": [
        (5, lambda op: _both("int16")(op) and not op.option(1)),
        *_types((4, "int64")),
        (3, lambda op: op.broadcasts_wide),
        *_INT8,
    ],
    "GATHER_ND": [
        *_types((6, _F8), (5, "bool")),
        *_types((4, "int16"), at=1),
        *_types((3, "int16"), (2, "string")),
    ],
    "DIV": [(2, lambda op: op.broadcasts_wide)],
    "TANH": _POOL,
    "LOGISTIC": _POOL,
    "FILL": _types((5, _F8), (4, "float16"), (3, "int8 int16"), (2, "bool string"), at=1),
    "EQUAL": _types((5, "int16"), (3, "string"), (2, "int8")),
    "NOT_EQUAL": _types((4, "int16"), (3, "string"), (2, "int8")),
    "LEAKY_RELU": _types((2, "int16")),
    "RANGE": _types((2, "int64")),
    "BATCH_MATMUL": [*_INT16_8, (4, lambda op: op.is_hybrid and bool(op.option(2)))],
    "PAD": _PAD,
    "PADV2": _PAD,
    "CONCATENATION": _types(
        (7, _F8), (6, "float16"), (5, "int4"), (4, "uint32"), (3, "int16"), (2, "int8")
    ),
    "SOFTMAX": _types((4, "float16"), (3, "int16"), (2, "int8")),
    **dict.fromkeys(
        (
            "MEAN",
            "MIRROR_PAD",
            "REDUCE_MAX",
            "REDUCE_MIN",
            "RELU6",
            "RSQRT",
            "LESS",
            "GREATER_EQUAL",
        ),
        _INT16_8,
    ),
    "RNN": _rnn(1),
    "UNIDIRECTIONAL_SEQUENCE_RNN": _rnn(2),
    "BIDIRECTIONAL_SEQUENCE_RNN": _rnn(3),
    "BIDIRECTIONAL_SEQUENCE_LSTM": _rnn(5),
    "ARG_MAX": _types((3, "bool"), (2, "int8")),
    "ARG_MIN": _types((3, "bool"), (2, "int8")),
    "SELECT": [
        *_types((4, "uint32")),
        (3, lambda op: 5 in op.ranks[:3]),
        *_INT8,
    ],
    "SELECT_V2": _types((2, "uint32")),
    "SPLIT_V": _types((3, _F8), (2, "int8")),
    **dict.fromkeys(
        (
            "SPACE_TO_DEPTH",
            "SUM",
            "LOG_SOFTMAX",
            "GREATER",
            "LESS_EQUAL",
            "SQUARED_DIFFERENCE",
            "DEPTH_TO_SPACE",
        ),
        _INT8,
    ),
    "TOPK_V2": [
        (3, lambda op: "int16" in (op.kind(0), op.kind(1), op.output(1).kind)),
        *_INT8,
    ],
    **dict.fromkeys(("EXP", "LOG", "REDUCE_PROD", "SQRT"), _types((2, "int8 int16"))),
    "DYNAMIC_UPDATE_SLICE": [
        *_types((6, "bfloat16"), (5, "int4"), (4, "int16"), (3, "float16")),
        *_types((2, "int64"), at=2),
    ],
    "BROADCAST_TO": _types((4, _F8), (3, "int8 int16")),
    "CAST": [
        *_either((9, *FLOAT8), (8, "int2", "uint4"), (7, "bfloat16"), (6, "int4")),
        *_either((5, "float64", "float16"), (4, "uint16"), (3, "int8"), (2, "uint32")),
    ],
    "WHERE": [(2, lambda op: op.kind() != "bool")],
    "GELU": _types((3, "float16"), (2, "int8 uint8")),
}
# The first version of this operator was withdrawn.
_LOWEST = {"BROADCAST_TO": 2}


def needed(op: Operator) -> int:
    """Return the version that an operator needs."""
    for version, holds in _RULES.get(op.name, []):
        if holds(op):
            return version
    return _LOWEST.get(op.name, 1)


def layer(op: Operator) -> str:
    """Return the kind of a layer with weights, as `probe_sums` names it; empty for others."""
    weights = op.input(1)
    if (
        op.name not in probe_sums.LAYERS
        or op.kind() not in probe_sums.ACTIVATIONS
        or weights.kind not in probe_sums.WEIGHTS
    ):
        return ""
    per_channel = weights.per_channel(3 if op.name == "DEPTHWISE_CONV_2D" else 0)
    return probe_sums.name_of(op.name, op.kind(), weights.kind, per_channel=per_channel)


def _last(tensor: Tensor) -> int:
    """Return the number of channels; 0 where the shape is not told."""
    return tensor.shape[3] if len(tensor.shape) == 4 else 0
