"""Types and schemas of ONNX operators, in the words of ONNX Runtime's kernel table.

A schema comes from the `onnx` package, or from the table for operators that only ONNX Runtime
knows (`com.microsoft`). Types that inference left open are followed through the schema: an output
whose type has the name of an input's type is of that input's type.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import onnx
from msgspec import Struct
from onnx import defs, helper

from edgefleet_converters.compatibility import kernels

Types = dict[str, str]
_P = onnx.TensorProto
_NAMES: dict[int, tuple[str, int]] = {
    _P.FLOAT: ("float", 32), _P.UINT8: ("uint8", 8), _P.INT8: ("int8", 8),
    _P.UINT16: ("uint16", 16), _P.INT16: ("int16", 16), _P.INT32: ("int32", 32),
    _P.INT64: ("int64", 64), _P.STRING: ("string", 64), _P.BOOL: ("bool", 8),
    _P.FLOAT16: ("float16", 16), _P.DOUBLE: ("double", 64), _P.UINT32: ("uint32", 32),
    _P.UINT64: ("uint64", 64), _P.COMPLEX64: ("complex64", 64),
    _P.COMPLEX128: ("complex128", 128), _P.BFLOAT16: ("bfloat16", 16),
    _P.FLOAT8E4M3FN: ("float8e4m3fn", 8), _P.FLOAT8E4M3FNUZ: ("float8e4m3fnuz", 8),
    _P.FLOAT8E5M2: ("float8e5m2", 8), _P.FLOAT8E5M2FNUZ: ("float8e5m2fnuz", 8),
    _P.UINT4: ("uint4", 4), _P.INT4: ("int4", 4), _P.FLOAT4E2M1: ("float4e2m1", 4),
    _P.FLOAT8E8M0: ("float8e8m0", 8), _P.UINT2: ("uint2", 2), _P.INT2: ("int2", 2),
}  # fmt: skip
ITEM_BITS = {kind: size for kind, (_, size) in _NAMES.items()}
_BITS = {f"tensor({name})": size for name, size in _NAMES.values()}


class Argument(Struct, frozen=True):
    """An input or output of a schema."""

    name: str
    type: str
    optional: bool = False
    variadic: bool = False
    homogeneous: bool = True


class OpSchema(Struct, frozen=True):
    """What counts here of an operator's schema.

    Attributes:
        allowed: name of a type → what it may be.
        attributes: names; None where any are taken.
        required: attributes that must be there.
        has_body: whether ONNX defines it by other operators.
    """

    since: int
    inputs: list[Argument]
    outputs: list[Argument]
    allowed: dict[str, list[str]]
    min_input: int
    max_input: int
    attributes: list[str] | None = None
    required: list[str] = []
    has_body: bool = False


def product(sizes: list[int]) -> int:
    """Return the product of sizes; 1 for none."""
    return prod(sizes)


def tensor_text(kind: int) -> str:
    """Return `tensor(float)` for the number of a type; empty for an unknown one."""
    return f"tensor({_NAMES[kind][0]})" if kind in _NAMES else ""


def bits(text_of_type: str) -> int | None:
    """Return the bits of an item of a tensor; None for other types."""
    return _BITS.get(text_of_type)


def text(kind: Any) -> str:
    """Return a type as schemas write it; empty where it is not declared."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return tensor_text(kind.tensor_type.elem_type)
    if which == "sequence_type":
        return f"seq({text(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({text(kind.optional_type.elem_type)})"
    if which == "sparse_tensor_type":
        return f"sparse_{tensor_text(kind.sparse_tensor_type.elem_type)}"
    if which == "map_type":
        key = _NAMES.get(kind.map_type.key_type, ("", 0))[0]
        return f"map({key},{text(kind.map_type.value_type)})"
    return ""


def shape(kind: Any) -> list[int | None] | None:
    """Return the sizes of a tensor, None for a free one; None if it declares no shape."""
    if kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return [
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None
        for dim in kind.tensor_type.shape.dim
    ]


def value_info(name: str, held: str) -> Any:
    """Return the declaration of a tensor of a type; without one where that is not known."""
    for kind, (word, _) in _NAMES.items():
        if held == f"tensor({word})":
            return helper.make_tensor_value_info(name, kind, None)
    return onnx.ValueInfoProto(name=name)


def schema(domain: str, operator: str, version: int | None) -> OpSchema | None:
    """Return the schema of an operator at an opset; None if there is none.

    Args:
        domain: empty for ONNX's own.
        operator: its name.
        version: opset of the domain that the model imports; None if it imports none.
    """
    if version is not None and defs.has(operator, domain):
        try:
            return _of_onnx(defs.get_schema(operator, min(version, 2**31 - 1), domain))
        except defs.SchemaError:
            return None  # it came with a later opset
    held = kernels.shipped().schema(domain, operator)
    if held is None:
        return None
    return OpSchema(
        held.since,
        [Argument(name, kind) for name, kind in held.inputs],
        [Argument(name, kind) for name, kind in held.outputs],
        held.constraints,
        0,
        2**31 - 1,
    )


def _of_onnx(held: Any) -> OpSchema:
    return OpSchema(
        held.since_version,
        [_argument(item) for item in held.inputs],
        [_argument(item) for item in held.outputs],
        {item.type_param_str: list(item.allowed_type_strs) for item in held.type_constraints},
        held.min_input,
        held.max_input,
        list(held.attributes),
        [name for name, item in held.attributes.items() if item.required],
        bool(held.has_function or held.has_context_dependent_function),
    )


def _argument(item: Any) -> Argument:
    option = defs.OpSchema.FormalParameterOption
    return Argument(
        item.name,
        item.type_str,
        item.option == option.Optional,
        item.option == option.Variadic,
        bool(item.is_homogeneous),
    )


def misuse(node: Any, known: OpSchema) -> Iterator[str]:
    """Yield how a node contradicts its operator's schema in number of inputs and attributes."""
    if not known.min_input <= len(node.input) <= known.max_input:
        yield (
            f"it has {len(node.input)} inputs; the operator takes {known.min_input} to"
            f" {known.max_input}"
        )
    if known.attributes is None:
        return
    given = {attribute.name for attribute in node.attribute}
    for name in sorted(given - set(known.attributes)):
        yield f"it has the attribute {name!r}, which the operator does not have at this opset"
    for name in known.required:
        if name not in given:
            yield f"it lacks the attribute {name!r}"


def bind(node: Any, known: OpSchema, types: Types) -> tuple[Types, str]:
    """Return the type of each name in a node's schema, and what contradicts it.

    Types of outputs that are not known yet are filled in where an input tells them.

    Args:
        node: the node.
        known: schema of its operator.
        types: of all names in scope; gets what is told.
    """
    bound: Types = {}
    fault = ""
    pairs = [*_pairs(node.input, known.inputs), *_pairs(node.output, known.outputs)]
    for name, argument in pairs:
        held = types.get(name, "")
        if held and argument.homogeneous:
            allowed = known.allowed.get(argument.type, [argument.type])
            before = bound.get(argument.type, "")
            if held not in allowed:
                fault = fault or f"{name!r} is {held}; the operator takes {', '.join(allowed)}"
            elif before and before != held:
                fault = fault or f"{name!r} is {held} where {before} is needed"
        bound[argument.type] = bound.get(argument.type) or held
        if argument.name not in known.allowed:
            bound[argument.name] = bound.get(argument.name) or held
    for name, argument in _pairs(node.output, known.outputs):
        if not types.get(name) and argument.homogeneous:
            allowed = known.allowed.get(argument.type, [argument.type])
            told = bound.get(argument.type, "") or (allowed[0] if len(allowed) == 1 else "")
            told = told or _told_otherwise(node, bound)
            types[name] = told
            bound[argument.type] = told
            if argument.name not in known.allowed:
                bound[argument.name] = told
    return bound, fault


def _told_otherwise(node: Any, bound: Types) -> str:
    """Return the type of an output that no input of the same type name tells. ONNX Runtime's own.

    Those of its operators whose outputs are neither of an input's type nor of one type only.
    """
    if node.domain != "com.microsoft":
        return ""
    if node.op_type == "QGemm":  # without a zero point of the result, the result is float
        return bound.get("TYZ", kernels.FLOAT32)
    if node.op_type == "GridSample":
        return bound.get("T1", "")
    if node.op_type == "QuantizeLinear":
        return "tensor(uint8)"
    return "tensor(int32)" if node.op_type == "MatMulInteger16" else ""


def _pairs(names: Any, arguments: list[Argument]) -> Iterator[tuple[str, Argument]]:
    for index, name in enumerate(names):
        if index < len(arguments):
            argument = arguments[index]
        elif arguments and arguments[-1].variadic:
            argument = arguments[-1]
        else:
            return
        if name:
            yield name, argument
