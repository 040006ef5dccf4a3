"""TFLite traps: a file that kills the process, one that never ends, one that answers nonsense.

The first two are written with the schema classes of the LiteRT wheel; the third with its quantizer,
from a real model, in a child process.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgefleet_converters import child
from edgefleet_hardware.cases import Case, Limits, model_digest
from edgefleet_hardware.references import Truth

# Of the folder of real models: the model whose quantized form old runtimes get wrong, and one
# with a batch of one whose damaged copy must never be opened.
_FLOAT = "mlperf_tiny/ic_resnet8_float.tflite"
_INTEGER = "mlperf_tiny/kws_ref_model.tflite"
_FLIPPED_EVERY = 997


def made(limits: Limits) -> list[Case]:
    """Return the traps that need no other model.

    Args:
        limits: of each; the one that never ends takes all its time.
    """
    models = {"calls-itself": _calls_itself(), "endless-while": _endless()}
    return [
        Case(f"traps/{name}.tflite", "tflite", data, limits=limits) for name, data in models.items()
    ]


def derived(cases: Sequence[Case], truths: dict[str, Truth]) -> tuple[list[Case], dict[str, Truth]]:
    """Return the traps that are made from real models, as far as those are there.

    Args:
        cases: the real models'.
        truths: what is known of them.

    Raises:
        ConversionError: the quantizer failed.
    """
    by_name = {case.name: case for case in cases}
    found, known = [], {}
    if _FLOAT in by_name:
        case = by_name[_FLOAT]
        data = child.run("quantizing a trap", quantize, case.data, returns=bytes)
        trap = dataclasses.replace(case, name="traps/dynamic-int8.tflite", data=data)
        found.append(trap)
        known[trap.name] = dataclasses.replace(truths[_FLOAT], precision="reduced")
    if _INTEGER in by_name:
        case = by_name[_INTEGER]
        found.append(
            dataclasses.replace(
                case,
                name="traps/flipped-bits.tflite",
                data=flipped(case.data),
                digest=model_digest(case),
            )
        )
    return found, known


def flipped(data: bytes) -> bytes:
    """Return data with a bit flipped in every 997th byte of its second half, where weights lie."""
    changed = bytearray(data)
    for place in range(len(data) // 2, len(data), _FLIPPED_EVERY):
        changed[place] ^= 0x10
    return bytes(changed)


def quantize(data: bytes) -> bytes:
    """Return a float model with weights of 8 bits, quantized as it runs; meant for a child process.

    The quantizer keeps the stated versions of operators, so that runtimes that are too old load the
    file without an error.
    """
    from ai_edge_quantizer import quantizer, recipe

    result = quantizer.Quantizer(data, recipe.dynamic_wi8_afp32()).quantize()
    return bytes(result.quantized_model)


def _calls_itself() -> bytes:
    """Return a loop whose body is itself the loop: preparing it recurses until the stack ends."""
    return _loop(_while)


def _endless() -> bytes:
    """Return a loop whose condition is a constant."""

    def negate(schema: Any) -> Any:
        return _operator(
            schema, 1, [0], [1], schema.NegOptionsT(), schema.BuiltinOptions.NegOptions
        )

    return _loop(negate)


def _loop(step: Any) -> bytes:
    """Return a model `y = while(true, step)(x)` of one number.

    Args:
        step: gets the schema; returns the body's operator from tensor 0 to tensor 1.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    real, truth = schema.TensorType.FLOAT32, schema.TensorType.BOOL
    either = _operator(
        schema, 2, [1, 1], [2], schema.LogicalOrOptionsT(), schema.BuiltinOptions.LogicalOrOptions
    )
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [
        _code(schema, code)
        for code in (
            schema.BuiltinOperator.WHILE,
            schema.BuiltinOperator.NEG,
            schema.BuiltinOperator.LOGICAL_OR,
        )
    ]
    model.subgraphs = [
        _subgraph(
            schema, [_tensor(schema, "x", real), _tensor(schema, "y", real)], 1, _while(schema)
        ),
        _subgraph(
            schema,
            [
                _tensor(schema, "held", real),
                _tensor(schema, "true", truth, 1),
                _tensor(schema, "go_on", truth),
            ],
            2,
            either,
        ),
        _subgraph(
            schema, [_tensor(schema, "held", real), _tensor(schema, "next", real)], 1, step(schema)
        ),
    ]
    empty, true = schema.BufferT(), schema.BufferT()
    true.data = [1]
    model.buffers = [empty, true]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _while(schema: Any) -> Any:
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    return _operator(schema, 0, [0], [1], options, schema.BuiltinOptions.WhileOptions)


def _code(schema: Any, code: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = code
    made.version = 1
    return made


def _operator(
    schema: Any, code: int, inputs: list[int], outputs: list[int], options: Any, kind: int
) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
    made.builtinOptions, made.builtinOptionsType = options, kind
    return made


def _tensor(schema: Any, name: str, kind: int, buffer: int = 0) -> Any:
    made = schema.TensorT()
    made.name, made.type, made.shape, made.buffer = name, kind, [1], buffer
    return made


def _subgraph(schema: Any, tensors: list[Any], output: int, operator: Any) -> Any:
    made = schema.SubGraphT()
    made.name, made.tensors, made.operators = "g", tensors, [operator]
    made.inputs, made.outputs = [0], [output]
    return made
