"""Operators that ONNX defines by other operators, opened up.

ONNX Runtime does the same where it has no kernel for such an operator. Definitions come from the
`onnx` package; some depend on the types of the inputs and on attributes of the node.
"""

from typing import Any

import onnx
from onnx import defs, helper

from edgefleet_converters.compatibility import onnx_types
from edgefleet_converters.compatibility.onnx_types import Types


def opened(node: Any, domain: str, opsets: dict[str, int], types: Types) -> Any | None:
    """Return a model that computes what a node does; None if there is no definition for it.

    Args:
        node: of an operator whose schema has a body.
        domain: of the operator.
        opsets: that the node's model imports.
        types: of all names in scope.
    """
    schema = defs.get_schema(node.op_type, opsets[domain], domain)
    function = _definition(node, schema, opsets.get("", 0), types)
    if function is None:
        return None
    given = dict(zip(function.input, node.input, strict=False))
    inputs = [onnx_types.value_info(name, types.get(held, "")) for name, held in given.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in function.output]
    values = {
        name: item.default_value for name, item in schema.attributes.items() if not item.required
    }
    values.update({attribute.name: attribute for attribute in function.attribute_proto})
    values.update({attribute.name: attribute for attribute in node.attribute})
    nodes = [_bound(inner, values) for inner in function.node]
    absent = {name for name in function.input if not given.get(name)}
    for inner in nodes:
        for index, name in enumerate(inner.input):
            if name in absent:
                inner.input[index] = ""
    graph = helper.make_graph(
        nodes, node.op_type, [info for info in inputs if info.name not in absent], outputs
    )
    return helper.make_model(graph, opset_imports=list(function.opset_import))


def _definition(node: Any, schema: Any, opset: int, types: Types) -> Any | None:
    function = onnx.FunctionProto()
    if schema.has_function:
        known = [version for version in schema.function_opset_versions if version <= opset]
        if known:
            function.ParseFromString(schema.get_function_with_opset_version(max(known)))
            return function
    if schema.has_context_dependent_function:
        versions = schema.context_dependent_function_opset_versions
        known = [version for version in versions if version <= opset]
        kinds = [onnx_types.value_info(name, types.get(name, "")).type for name in node.input]
        # Without every type the definition cannot be chosen, and onnx would crash.
        if known and all(kind.WhichOneof("value") for kind in kinds):
            data = schema.get_context_dependent_function_with_opset_version(
                max(known),
                node.SerializeToString(),
                [kind.SerializeToString() for kind in kinds],
            )
            function.ParseFromString(data)
            return function if function.node else None
    return None


def _bound(inner: Any, values: dict[str, Any]) -> Any:
    """Return a node of a definition with the attributes that it takes from the outer one.

    Args:
        inner: the node.
        values: attributes of the outer node, defaults included; without a type for none.
    """
    bound = onnx.NodeProto()
    bound.CopyFrom(inner)
    del bound.attribute[:]
    for attribute in inner.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in values and values[attribute.ref_attr_name].type:
            copied = onnx.AttributeProto()
            copied.CopyFrom(values[attribute.ref_attr_name])
            copied.name = attribute.name
            bound.attribute.append(copied)
    return bound
