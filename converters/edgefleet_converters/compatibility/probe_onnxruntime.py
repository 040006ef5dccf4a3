"""Runs in a throw-away environment, by path: what does this ONNX Runtime say of itself?

Standard library and the runtime only. Reads limit → version → model (hexadecimal) from standard
input; writes the kernels of the CPU provider, the schemas of ONNX Runtime's own operators, and the
highest version of each limit that loads.
"""

import json
import sys

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

CPU = "CPUExecutionProvider"


def loads(model: str) -> bool:
    """Tell whether a model loads. ONNX Runtime's exceptions have no common base."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(bytes.fromhex(model), options, providers=[CPU])
    except Exception:
        return False
    return True


def main() -> None:
    """Answer on standard output, as JSON."""
    limits = {
        name: max((int(version) for version, model in tries.items() if loads(model)), default=0)
        for name, tries in json.load(sys.stdin).items()
    }
    kernels = [
        [kernel.domain, kernel.op_name, *kernel.version_range, kernel.type_constraints]
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == CPU
    ]
    schemas = [
        [
            schema.domain,
            schema.name,
            schema.since_version,
            [[item.name, item.typeStr] for item in schema.inputs],
            [[item.name, item.typeStr] for item in schema.outputs],
            {item.type_param_str: list(item.allowed_type_strs) for item in schema.type_constraints},
        ]
        for schema in state.get_all_operator_schema()
        if schema.domain == "com.microsoft"
    ]
    said = {
        "version": onnxruntime.__version__,
        "limits": limits,
        "kernels": kernels,
        "schemas": schemas,
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
