"""Models that go wrong, or just go, made at run time: nothing has to be kept or fetched.

ONNX files are built here; TFLite ones in `tflite_traps.py`. Each is small; none holds code.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgefleet_hardware.cases import Case, Limits

_EXTERNAL_BYTES = 30 * 10**9
# 4 TB of float32.
_FILLED = 2**40
_FLOATS = TensorProto.FLOAT
# Opset → the lowest IR version that goes with it, as the onnx releases that brought them wrote it.
_OPSETS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}


def onnx_cases(limits: Limits) -> list[Case]:
    """Return ONNX traps and, beside them, files at the edge of what a release runs.

    Args:
        limits: of each; a trap that never ends takes all its time.
    """
    made = {
        "opset-999": _relu(999, 8),
        "ir-99": _relu(17, 99),
        "unknown-domain": _relu(17, 8, domain="no.such.domain"),
        "unknown-operator": _one("NoSuchOperator", 17, 8),
        "external-30-gb": _external("weights.bin", _EXTERNAL_BYTES),
        "external-outside": _external("../../../etc/hostname", 8),
        "constant-4-tb": _filled(_FILLED),
        "endless-loop": _loop(),
        "double-conv": _double_conv(),
        "gelu-20": _one("Gelu", 20, 9),
        "rms-normalization-23": _normalization(),
        "swish-24": _one("Swish", 24, 12),
        "int4-weights-21": _int4(),
        "half-precision": _one("Relu", 17, 8, TensorProto.FLOAT16),
        "brain-floats": _one("Relu", 17, 8, TensorProto.BFLOAT16),
    }
    made |= {f"opset-{opset}": _relu(opset, ir) for opset, ir in _OPSETS.items()}
    # The first opset in a file of the newest form: either may be what a release refuses.
    made |= {f"ir-{ir}": _relu(17, ir) for ir in (9, 10, 11, 12, 13)}
    models = {name: proto.SerializeToString() for name, proto in made.items()}
    models["login-page"] = b"<!DOCTYPE html><html><body>Please log in</body></html>\n"
    return [
        Case(f"traps/{name}.onnx", "onnx", data, limits=limits) for name, data in models.items()
    ]


def _model(graph: onnx.GraphProto, opset: int, ir: int, *domains: str) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="")


def _graph(
    nodes: Sequence[onnx.NodeProto],
    kind: int = _FLOATS,
    shape: Sequence[int] = (1, 8),
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    """Return a graph from `x` to `y`."""
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        weights,
    )


def _one(operator: str, opset: int, ir: int, kind: int = _FLOATS) -> onnx.ModelProto:
    return _model(_graph([helper.make_node(operator, ["x"], ["y"])], kind), opset, ir)


def _relu(opset: int, ir: int, domain: str = "") -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
    return _model(_graph([node]), opset, ir, *filter(None, [domain]))


def _external(place: str, size_bytes: int) -> onnx.ModelProto:
    weights = TensorProto(name="w", data_type=_FLOATS, dims=[size_bytes // 4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": place, "offset": 0, "length": size_bytes}.items():
        weights.external_data.add(key=key, value=str(value))
    nodes = [
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return _model(_graph(nodes, weights=[weights]), 17, 8)


def _filled(count: int) -> onnx.ModelProto:
    shape = helper.make_tensor("n", TensorProto.INT64, [1], [count])
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["w"]),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return _model(_graph(nodes, weights=[shape]), 17, 8)


def _loop() -> onnx.ModelProto:
    """Return a Loop without a trip count whose condition stays true."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Neg", ["held"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", _FLOATS, (1, 8)),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", _FLOATS, (1, 8)),
        ],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    node = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    return _model(_graph([node], weights=[true]), 17, 8)


def _double_conv() -> onnx.ModelProto:
    """Return a valid model of a type for which ONNX Runtime has no kernel."""
    weights = helper.make_tensor("w", TensorProto.DOUBLE, [1, 1, 3, 3], np.ones(9))
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return _model(_graph([node], TensorProto.DOUBLE, (1, 1, 8, 8), [weights]), 17, 8)


def _normalization() -> onnx.ModelProto:
    weights = helper.make_tensor("w", _FLOATS, [8], np.ones(8))
    node = helper.make_node("RMSNormalization", ["x", "w"], ["y"])
    return _model(_graph([node], weights=[weights]), 23, 11)


def _int4() -> onnx.ModelProto:
    weights = [
        helper.make_tensor("q", TensorProto.INT4, [8, 8], np.arange(64) % 16 - 8),
        helper.make_tensor("scale", _FLOATS, [], [0.1]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return _model(_graph(nodes, weights=weights), 21, 10)
