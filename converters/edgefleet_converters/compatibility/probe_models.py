"""The smallest models that need just one thing, for asking a runtime whether it has that."""

from typing import Any

from edgefleet_converters.compatibility import probe_sums
from edgefleet_converters.compatibility.tflite_schema import (
    CUSTOM,
    OPERATORS,
    SCHEMA_VERSION,
    CodeField,
    ModelField,
    OperatorField,
    SubgraphField,
)

# Above what any release has today, so that a table that reaches the end shows.
_HIGHEST_OPSET, _HIGHEST_IR, _HIGHEST_ML = 40, 20, 10
_HIGHEST_OPERATOR, _HIGHEST_VERSION = len(OPERATORS) + 10, 20
# What the sources of the runtimes register besides the built-in operators.
CUSTOM_OPERATORS = (
    "AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess",
    "aeq.hadamard_rotation",
)  # fmt: skip
_NORMALIZER, _SIGMOID = "Normalizer", "Sigmoid"
_OLD_CODE_LIMIT = 127


def onnx_questions() -> dict[str, dict[int, str]]:
    """Return limit → version → a model that needs just that version, in hexadecimal."""
    return {
        "opset": {n: onnx_model(opset=n, ir=3).hex() for n in range(7, _HIGHEST_OPSET)},
        "ir": {n: onnx_model(opset=7, ir=n).hex() for n in range(3, _HIGHEST_IR)},
        "ml": {n: onnx_model(opset=7, ir=3, ml=n).hex() for n in range(1, _HIGHEST_ML)},
    }


def onnx_model(opset: int, ir: int, ml: int = 0) -> bytes:
    """Return an ONNX model of one operator that every release runs, with these versions."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node: Any = helper.make_node(_SIGMOID, ["x"], ["y"])
    imports = [helper.make_opsetid("", opset)]
    if ml:
        node = helper.make_node(_NORMALIZER, ["x"], ["y"], domain="ai.onnx.ml", norm="L2")
        imports.append(helper.make_opsetid("ai.onnx.ml", ml))
    graph = helper.make_graph([node], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = ir
    return bytes(model.SerializeToString())


def tflite_questions() -> dict[str, dict[Any, Any]]:
    """Return the questions of `probe_tflite`: a model for each thing that it is asked."""
    return {
        "builtin": {
            code: {
                version: tflite_model(code, version).hex() for version in range(1, _HIGHEST_VERSION)
            }
            for code in range(_HIGHEST_OPERATOR)
            if code != CUSTOM
        },
        "custom": {name: tflite_model(CUSTOM, 1, name).hex() for name in CUSTOM_OPERATORS},
        "sums": probe_sums.questions(),
    }


def tflite_model(code: int, version: int, custom: str = "") -> bytes:
    """Return a TFLite model that names one operator.

    A custom one is also put into the graph, without inputs and outputs; of built-in ones the list
    of operators alone is enough for an interpreter to look them up.
    """
    import flatbuffers

    builder = flatbuffers.Builder(256)

    def vector(offsets: list[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def table(slots: int, offsets: dict[int, int], numbers: dict[int, int]) -> int:
        builder.StartObject(slots)
        for slot, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, number in numbers.items():
            builder.PrependInt32Slot(slot, number, 0)
        return int(builder.EndObject())

    name = builder.CreateString(custom) if custom else 0
    builder.StartObject(CodeField.CODE + 1)
    builder.PrependInt8Slot(CodeField.OLD_CODE, min(code, _OLD_CODE_LIMIT), 0)
    if custom:
        builder.PrependUOffsetTRelativeSlot(CodeField.CUSTOM_NAME, name, 0)
    builder.PrependInt32Slot(CodeField.VERSION, version, 1)
    builder.PrependInt32Slot(CodeField.CODE, code, 0)
    codes = vector([builder.EndObject()])
    none = vector([])
    used = []
    if custom:
        links = {OperatorField.INPUTS: none, OperatorField.OUTPUTS: none}
        used.append(table(OperatorField.OPTIONS, links, {}))
    operators = vector(used)
    parts = dict.fromkeys(
        (SubgraphField.TENSORS, SubgraphField.INPUTS, SubgraphField.OUTPUTS), none
    )
    graph = table(5, {**parts, SubgraphField.OPERATORS: operators}, {})
    buffers = vector([table(1, {}, {})])
    graphs = vector([graph])
    links = {
        ModelField.OPERATOR_CODES: codes,
        ModelField.SUBGRAPHS: graphs,
        ModelField.BUFFERS: buffers,
    }
    builder.Finish(table(8, links, {ModelField.VERSION: SCHEMA_VERSION}), b"TFL3")
    return bytes(builder.Output())
