"""Kernels that are known to be slow on some CPUs, and which of them a model file needs.

Times taken on one architecture say little about another. What is known without measuring: a kernel
whose instruction a CPU lacks falls back to something slower. The table `SLOW` holds such facts with
their sources; it can only refuse a variant, never recommend one. Of LiteRT no such fact is known:
its int8 kernels were seen to be faster than float32 on cores without dot product instructions too
(https://github.com/google/XNNPACK/issues/6653), and what it is slow at (16-bit activations), it is
slow at everywhere, which is measured.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from edgefleet_protocol.manifest import Runtime

Kernels = Literal["int8", "int8-dynamic", "int16", "nbits", "float16"]

_NAMES: dict[Kernels, str] = {
    "int8": "int8 arithmetic",
    "int8-dynamic": "dynamic int8 arithmetic",
    "int16": "int16 arithmetic",
    "nbits": "MatMulNBits",
    "float16": "float16 arithmetic",
}
_DYNAMIC = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}


class SlowKernels(Struct, frozen=True):
    """Kernels that are slow in a runtime on CPUs of an architecture.

    Attributes:
        lacks: the CPU feature whose absence makes it slow; empty if it is slow with any.
    """

    kernels: Kernels
    runtime: Runtime
    architecture: str
    lacks: str
    why: str
    source: str


SLOW = (
    SlowKernels(
        "int8",
        "onnxruntime",
        "aarch64",
        "dotprod",
        "without dot product instructions its int8 convolutions gain only from 128 channels on",
        "https://github.com/microsoft/onnxruntime/pull/9772",
    ),
    SlowKernels(
        "int8-dynamic",
        "onnxruntime",
        "aarch64",
        "dotprod",
        "it quantizes in every call, and no dot product instructions win the time back",
        "https://github.com/microsoft/onnxruntime/issues/20052",
    ),
    SlowKernels(
        "nbits",
        "onnxruntime",
        "aarch64",
        "dotprod",
        "its kernels that do not first unpack to float32 need dot product instructions",
        "https://github.com/microsoft/onnxruntime/pull/18953",
    ),
    SlowKernels(
        "float16",
        "onnxruntime",
        "aarch64",
        "",
        "most operators are wrapped in casts to float32; 4 times slower was seen on a Cortex-A76",
        "https://github.com/microsoft/onnxruntime/issues/25824",
    ),
)


def known_slow(
    kinds: Iterable[Kernels], runtime: Runtime, architecture: str, features: Sequence[str]
) -> list[str]:
    """Return why a variant is expected to be slow on a CPU; empty if nothing speaks against it.

    Args:
        kinds: that the variant needs.
        runtime: that runs it.
        architecture: of the CPU, as `platform.machine()` names it.
        features: of the CPU, as in board profiles.
    """
    held = set(kinds)
    return [
        f"not measured on this board, and {_NAMES[fact.kernels]} is known to be slow there:"
        f" {fact.why} ({fact.source})"
        for fact in SLOW
        if fact.kernels in held
        and fact.runtime == runtime
        and fact.architecture == architecture
        and fact.lacks not in features
    ]


def of_onnx(data: bytes) -> list[Kernels]:
    """Return which kernels an ONNX file needs beyond float32. Call this in a child process."""
    import onnx

    graph = onnx.load_model_from_string(data).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    wide = {onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
    found: set[Kernels] = set()
    for node in graph.node:
        held = {types[name] for name in node.input if name in types}
        if node.op_type in _DYNAMIC:
            found.add("int8-dynamic")
        elif node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear"):
            found.add("int16" if held & wide else "int8")
        elif node.op_type == "MatMulNBits":
            found.add("nbits")
        elif onnx.TensorProto.FLOAT16 in held and node.op_type != "Cast":
            found.add("float16")
    return sorted(found)
